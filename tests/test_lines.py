"""Lines end at \\n and \\r\\n alone, wherever the package reads them."""

import ast
import re
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite.lines import read_lines, split_lines

OTHERS = "\u2028 \u2029 \x85 \f \v \x1c \x1d \x1e \r"


@pytest.mark.parametrize(
    "text, lines",
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\n\nc", ["a", "b", "", "c"]),
        ("a\rb\r\r\n", ["a\rb\r"]),
        (f"a{OTHERS}b\nc", [f"a{OTHERS}b", "c"]),
    ],
)
def test_lines_of_a_text(text, lines):
    assert split_lines(text) == lines


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(f"\ufeffa{OTHERS}\r\n\nb".encode())
    assert read_lines(path) == [f"a{OTHERS}", "", "b"]
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_lines(path)


def _other_ends(tree: ast.AST):
    """Line numbers of what ends lines elsewhere: splitlines, readlines, a text file in `for`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("splitlines", "readlines"):
            yield node.lineno
        if isinstance(node, ast.With):
            for item in node.items:
                call, name = item.context_expr, item.optional_vars
                if not (isinstance(call, ast.Call) and isinstance(name, ast.Name)):
                    continue
                if not re.fullmatch(r"(?!tarfile)([\w.]+\.)?open", ast.unparse(call.func)):
                    continue
                strings = [a.value for a in call.args if isinstance(a, ast.Constant)]
                if any("b" in str(mode) for mode in strings) or any(
                    k.arg == "newline" and getattr(k.value, "value", "") == "\n"
                    for k in call.keywords
                ):
                    continue
                for inner in ast.walk(node):
                    loops = getattr(inner, "iter", None)
                    if isinstance(loops, ast.Name) and loops.id == name.id:
                        yield inner.lineno if hasattr(inner, "lineno") else node.lineno


@pytest.mark.parametrize(
    "code, found",
    [
        ("x.splitlines()", 1),
        ("with open(p) as f:\n  for line in f: pass", 1),
        ("with p.open('r') as f:\n  y = [z for z in f]", 1),
        ("with open(p, 'rb') as f:\n  for line in f: pass", 0),
        ("with open(p, newline='\\n') as f:\n  for line in f: pass", 0),
        ("with open(p) as f:\n  json.load(f)", 0),
    ],
)
def test_what_is_looked_for(code, found):
    assert len(list(_other_ends(ast.parse(code)))) == found


def test_the_package_ends_lines_nowhere_else():
    root = Path(t5x_lite.__file__).parent
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in sorted(root.rglob("*.py"))
        for line in _other_ends(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, f"use t5x_lite.lines: {', '.join(found)}"

"""Lines end at \\n and \\r\\n alone, wherever the package reads them."""

import pytest

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

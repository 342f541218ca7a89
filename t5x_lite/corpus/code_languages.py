"""Programming and markup languages of files, by name and, where one name is of several, by content.

The names are the keys of LANGUAGES: StarCoder's in lower case, where it has one.
"""

import re
from collections.abc import Callable
from pathlib import PurePosixPath

LANGUAGES = {
    "ada": "adb ads", "agda": "agda", "assembly": "s asm nasm", "awk": "awk",
    "batchfile": "bat cmd", "bazel": "bzl bazel", "bluespec": "bsv", "c": "c h",
    "clojure": "clj cljs cljc edn", "cmake": "cmake", "coffeescript": "coffee",
    "common-lisp": "lisp lsp cl", "coq": "", "cpp": "cc cpp cxx c++ hpp hh hxx h++ ipp tcc inl",
    "crystal": "cr", "csharp": "cs csx", "css": "css", "cuda": "cu cuh", "cython": "pyx pxd pxi",
    "d": "d", "dart": "dart", "diff": "diff patch", "dockerfile": "dockerfile containerfile",
    "elixir": "ex exs eex heex", "elm": "elm", "emacs-lisp": "el", "erlang": "erl hrl",
    "f-sharp": "fs fsi fsx", "forth": "fth 4th", "fortran": "f f77 f90 f95 f03 f08 for ftn",
    "gdscript": "gd", "glsl": "glsl vert frag geom comp", "go": "go", "graphql": "graphql gql",
    "groovy": "groovy gradle gvy", "haskell": "hs lhs", "haxe": "hx", "hcl": "tf tfvars hcl",
    "html": "html htm xhtml", "idris": "idr", "ini": "ini cfg", "isabelle": "thy", "java": "java",
    "javascript": "js jsx mjs cjs", "json": "json json5 jsonc webmanifest", "julia": "jl",
    "jupyter": "ipynb", "kotlin": "kt kts", "lean": "lean", "less": "less", "llvm": "ll",
    "lua": "lua", "m4": "m4", "makefile": "mk mak make", "markdown": "md markdown mdx",
    "mathematica": "wl wls", "matlab": "", "meson": "", "nim": "nim nims", "nix": "nix",
    "objective-c": "mm", "ocaml": "ml mli mll mly", "odin": "odin", "pascal": "pas pp dpr lpr",
    "perl": "pl pm pod t", "php": "php php3 php4 php5 phtml", "powershell": "ps1 psm1 psd1",
    "prolog": "pro", "protocol-buffer": "proto", "purescript": "purs", "python": "py pyi pyw",
    "r": "r", "racket": "rkt", "restructuredtext": "rst rest", "ruby": "rb rake gemspec erb",
    "rust": "rs", "sass": "sass", "scala": "scala sc sbt", "scheme": "scm ss sld", "scss": "scss",
    "shell": "sh bash zsh ksh fish bats", "smalltalk": "st", "solidity": "sol",
    "sparql": "sparql rq", "sql": "sql ddl dml", "standard-ml": "sml sig", "starlark": "star",
    "stata": "do ado", "svelte": "svelte", "swift": "swift", "systemverilog": "sv svh",
    "tcl": "tcl tk", "tex": "tex sty cls bib ltx dtx", "toml": "toml",
    "typescript": "ts tsx mts cts", "verilog": "v vh", "vhdl": "vhd vhdl", "vim-script": "vim",
    "visual-basic": "vb vbs bas", "vue": "vue", "wasm": "wat wast",
    "xml": "xml xsd xsl xslt svg wsdl", "yacc": "y yy", "yaml": "yaml yml", "zig": "zig",
}  # fmt: skip
BY_SUFFIX = {suffix: name for name, all_of in LANGUAGES.items() for suffix in all_of.split()}
_BY_NAME = {
    "makefile": "makefile", "gnumakefile": "makefile", "bsdmakefile": "makefile",
    "kbuild": "makefile", "makefile.am": "makefile", "makefile.in": "makefile",
    "dockerfile": "dockerfile", "containerfile": "dockerfile", "cmakelists.txt": "cmake",
    "meson.build": "meson", "meson_options.txt": "meson", "build": "bazel", "workspace": "bazel",
    "build.bazel": "bazel", "rakefile": "ruby", "gemfile": "ruby", "vagrantfile": "ruby",
    "podfile": "ruby", "fastfile": "ruby", "guardfile": "ruby", "jenkinsfile": "groovy",
    "sconstruct": "python", "sconscript": "python", "wscript": "python", "snakefile": "python",
    "pipfile": "toml", "cargo.lock": "toml", "poetry.lock": "toml", "go.mod": "go",
    "package-lock.json": "json", ".bashrc": "shell", ".bash_profile": "shell", ".zshrc": "shell",
    ".profile": "shell", ".vimrc": "vim-script", ".emacs": "emacs-lisp", ".clang-format": "yaml",
    ".babelrc": "json", ".eslintrc": "json", ".gitconfig": "ini", ".editorconfig": "ini",
    "configure.ac": "m4",
}  # fmt: skip
_INTERPRETERS = {
    "python": "python", "pypy": "python", "node": "javascript", "nodejs": "javascript",
    "deno": "typescript", "bun": "typescript", "sh": "shell", "bash": "shell", "dash": "shell",
    "zsh": "shell", "ksh": "shell", "fish": "shell", "perl": "perl", "ruby": "ruby", "lua": "lua",
    "m4": "m4", "luajit": "lua", "php": "php", "tclsh": "tcl", "wish": "tcl", "expect": "tcl",
    "awk": "awk", "gawk": "awk", "mawk": "awk", "rscript": "r", "julia": "julia",
    "escript": "erlang", "elixir": "elixir", "runhaskell": "haskell", "groovy": "groovy",
    "make": "makefile", "guile": "scheme", "racket": "racket", "sbcl": "common-lisp",
    "swipl": "prolog", "ocaml": "ocaml", "swift": "swift", "pwsh": "powershell",
    "crystal": "crystal", "scala": "scala", "kotlin": "kotlin",
}  # fmt: skip
# Kinds of files that hold documents for the reader; in a source tree they are code.
DOCUMENT_SUFFIXES = frozenset(["json", "html", "htm", "xhtml", "md", "rst", "tex", "xml", "ipynb"])
_SHEBANG = re.compile(
    r"#!\s*(?:\S*/env\s+(?:-\S+\s+)*(?:\w+=\S*\s+)*)?(?:\S*/)?([\w+-]+?)[\d.]*(?:\s|$)"
)


def is_code(document: dict) -> bool:
    """Whether a document is source code: rules about natural language don't apply to it.

    The reader says so in "code"; without that the language tells, though some names (lua, awk) are
    ISO 639's codes of natural languages, too.
    """
    return bool(document.get("code", document.get("language") in LANGUAGES))


def language_of(name: str, head: str) -> str | None:
    """The language of a file by its name and its first characters; None if neither tells."""
    path = PurePosixPath(name.lower())
    stem, suffix = path.name, path.suffix.lstrip(".")
    if stem in _BY_NAME:
        return _BY_NAME[stem]
    if stem.startswith(("dockerfile.", "makefile.", "jenkinsfile.")):
        return _BY_NAME[stem.partition(".")[0]]
    if suffix in _BY_CONTENT:
        return _BY_CONTENT[suffix](head)
    if suffix in BY_SUFFIX:
        return BY_SUFFIX[suffix]
    if not suffix and (found := _SHEBANG.match(head)):
        return _INTERPRETERS.get(found[1].lower())
    return None


def _has(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda head: bool(compiled.search(head))


_objective_c = _has(r"^\s*(?:@(?:interface|implementation|protocol|end|class|import)\b|#import\b)")
_cpp = _has(
    r"^\s*(?:(?:class|namespace|template\s*<|using\s|public:|private:|protected:|virtual\s)|"
    r"#include\s*<(?:string|vector|map|memory|iostream|algorithm|functional|utility)>)|\bstd::"
)
_matlab = _has(r"^\s*(?:%|function\b|end\s*;?\s*$|clear\b|clc\b)")
_mathematica = _has(r"\(\*|:=|\[\[")
_perl = _has(r"^\s*(?:use\s+[\w:]+|package\s+[\w:]+|sub\s+\w+|my\s+[$@%(]|=\w+)|^#!.*\bperl")
_prolog = _has(r"^\s*:-|^\w+\([^()]*\)\s*(?::-|\.\s*$)")
_coq = _has(r"^\s*(?:Require|Import|Lemma|Theorem|Definition|Fixpoint|Inductive|Proof)\b")
_translations = _has(r"<!DOCTYPE TS>|<TS\b")
_forth = _has(r"^: \S+")
_php = _has(r"<\?(?:php|=)")
_assembly = _has(r"^\s*\.(?:text|globl|section)\b")

# Names that several languages share.
_BY_CONTENT: dict[str, Callable[[str], str | None]] = {
    "h": lambda head: "objective-c" if _objective_c(head) else "cpp" if _cpp(head) else "c",
    "m": lambda head: (
        "objective-c" if _objective_c(head)
        else "mathematica" if _mathematica(head) and not _matlab(head) else "matlab"
    ),
    "pl": lambda head: "prolog" if _prolog(head) and not _perl(head) else "perl",
    "t": lambda head: "perl" if _perl(head) else None,
    "v": lambda head: "coq" if _coq(head) else "verilog",
    "ts": lambda head: "xml" if _translations(head) else "typescript",
    "cls": lambda head: "tex" if "\\" in head else "visual-basic",
    "d": lambda head: "makefile" if re.match(r"\S+\.o\s*:", head) else "d",
    "inc": lambda head: "php" if _php(head) else "assembly" if _assembly(head) else None,
    "fs": lambda head: "forth" if _forth(head) else "f-sharp",
}  # fmt: skip

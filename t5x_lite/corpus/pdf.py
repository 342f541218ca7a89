"""Text of PDF files by pypdf, in a process of its own with limits of time and memory.

pypdf is Python throughout: 30 ms a page and 0.06 MB of text a second, a twentieth of what the
filters take on. A few hundred bytes of PDF can ask for any amount of work or memory, hence the
process (0.2 s to start).
"""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import t5x_lite

MB = 1 << 20


def pdf_text(path: str, limit: int, seconds: int, megabytes: int) -> tuple[str, str]:
    """(text, problem), one of which is empty. limit: bytes of text; seconds: of processor time."""
    root = str(Path(t5x_lite.__file__).parent.parent)
    given = [path, str(limit), str(seconds), str(megabytes)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); "
             "from t5x_lite.corpus.pdf import main; main()", *given],
            capture_output=True, timeout=20 * seconds,  # of a machine with more to do
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", "PDF that takes too long"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "", "PDF that takes too long"
    try:
        found = json.loads(done.stdout)
        return found["text"], found["problem"]
    except ValueError:  # it was ended from outside, or ran out of memory for good
        return "", "damaged PDF"


def main() -> None:
    path, limit, seconds, megabytes = sys.argv[1], *map(int, sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * MB, megabytes * MB))
    try:
        text, problem = _text(path, limit)
    except MemoryError:
        text, problem = "", "PDF that takes too much memory"
    sys.stdout.write(json.dumps({"text": text, "problem": problem}))


def _text(path: str, limit: int) -> tuple[str, str]:
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader: Any = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            return "", "encrypted PDF"
        pages, size = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            size += len(pages[-1].encode(errors="replace"))
            if size > limit:
                return "", "document too long"
        text = "\n\n".join(filter(None, pages))
        return text, "" if text else "PDF without text"
    except MemoryError:
        raise
    except (pypdf.errors.DependencyError, NotImplementedError):
        return "", "encrypted PDF"  # AES needs another package
    except Exception:  # its parser meets anything with any error
        return "", "damaged PDF"

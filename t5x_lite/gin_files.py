"""gin files: found by name, read from disk or from a URL."""

import os
from collections.abc import Iterable
from pathlib import Path

from t5x_lite import config_checks as checks
from t5x_lite.errors import UserError

MAX_GIN_BYTES = 1 << 20
_OF_A_RUN = ("run.json", "parameters.txt")  # files that make a folder a run's


def shipped_gin_configs() -> Path:
    """The folder of the gin files that come with t5x_lite, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "gin_configs"
    return inside if inside.is_dir() else package.parent / "gin_configs"


def find_gin_file(
    name: str, search_paths: Iterable[str] = (), *, beside: str | None = None, where: str = ""
) -> str:
    """Returns the path of a gin file.

    An absolute name, or a URL, is taken as it is. Any other is looked for in the current folder,
    then in `search_paths`, then `beside` (the folder of the file that includes it), then among the
    shipped files.

    Raises:
      UserError: if there is none, with the nearest names of those that exist.
    """
    if is_url(name):
        return name
    path = Path(name).expanduser()
    if path.is_absolute():
        folders, path = [path.parent], Path(path.name)
    else:
        more = [*search_paths, beside] if beside else search_paths
        folders = [Path.cwd(), *(Path(p).expanduser() for p in more), shipped_gin_configs()]
    folders = list(dict.fromkeys(folders))
    for folder in folders:
        if (folder / path).is_file():
            return str(folder / path)
    known: dict[str, str] = {}  # what the user may have had in mind, less ".gin" -> what to write
    for found in (name for folder in folders for name in gin_files_under(folder)):
        known.setdefault(found.removesuffix(".gin"), found)
        known.setdefault(os.path.basename(found).removesuffix(".gin"), found)
    wanted = path.as_posix().removesuffix(".gin")
    hint = checks.nearest(wanted, known) or checks.nearest(os.path.basename(wanted), known)
    place = f" ({where})" if where else ""
    raise UserError(f"no gin file '{name}'{place} in {', '.join(map(str, folders))}.{hint}")


def is_url(path: str) -> bool:
    return "://" in path


def is_shipped(path: str) -> bool:
    """Whether a gin file came with t5x_lite."""
    return shipped_gin_configs().resolve() in Path(path).resolve().parents


def foreign(path: str) -> str | None:
    """Why a gin file may be somebody else's though the user names it; None if nothing says so.

    Runs are handed on, with all that is in their folders.
    """
    if is_url(path):
        return "it comes from a URL"
    own, real = Path(os.path.abspath(path)), Path(path).resolve()
    for folder in (*own.parents, *real.parents):
        if any((folder / name).exists() for name in _OF_A_RUN):
            return f"it lies in the run's folder {folder}"
    return None


def read_gin_file(path: str) -> str:
    """The text of a file, or of a URL. Raises UserError if it can't be read, or is far too long."""
    try:
        if path.startswith(("http://", "https://")):
            import urllib.request

            with urllib.request.urlopen(path, timeout=30) as response:
                data = response.read(MAX_GIN_BYTES + 1)
        elif is_url(path):
            from etils import epath

            with epath.Path(path).open("rb") as file:
                data = file.read(MAX_GIN_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_GIN_BYTES + 1)
        if len(data) > MAX_GIN_BYTES:
            raise ValueError(f"it has more than {MAX_GIN_BYTES:,} bytes")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the gin file {path}: {error}") from error


def gin_files_under(folder: Path, depth: int = 3) -> list[str]:
    """The *.gin files as relative names; not too deep, as the folder may be someone's home."""
    return sorted(
        path.relative_to(folder).as_posix()
        for level in range(depth)
        for path in folder.glob("*/" * level + "*.gin")
    )

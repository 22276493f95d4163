"""Files that users bring: read, or refused with a sentence that names the argument and the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ufm._check import require


@contextmanager
def reading(path: Path, expected: str, *, argument: str = "checkpoint") -> Iterator[None]:
    """Turn what a library says of a malformed file into a ``ValueError`` that names the argument and the file.

    Raises:
        ValueError: what is said of the file; or it is a pointer of Git LFS, as a clone without that has them.
    """
    _refuse_pointer(argument, path)
    try:
        yield
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        words = str(error).splitlines()
        detail = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
        raise ValueError(f"{argument}: expected {expected}, got {str(path)!r} ({detail})") from error


def _refuse_pointer(argument: str, path: Path) -> None:
    """Refuse a file that only says where the file is."""
    if path.is_file() and path.stat().st_size < 1024:
        with path.open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
        got = f"{str(path)!r}, a pointer of Git LFS: bring the file with `git lfs pull`"
        require(not pointer, argument, "the file itself", got)


_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, in any encoding of Unicode, with a byte-order mark or without.

    Raises:
        ValueError: it cannot be read or is none.
    """
    _refuse_pointer(path.name, path)
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name}: expected a file that can be read, got {str(path)!r} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected JSON, got {str(path)!r} ({error})") from error
    require(isinstance(data, dict), path.name, "a JSON object", type(data).__name__)
    return data


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with a byte-order mark or without.

    Raises:
        ValueError: it cannot be read or is not in UTF-8.
    """
    with reading(path, "a text file in UTF-8", argument=path.name):
        return path.read_text(encoding="utf-8-sig")


def require_file(argument: str, path: Path, expected: str) -> None:
    """Refuse what is no file, and say whether there is anything.

    Raises:
        ValueError: nothing there, or a folder.
    """
    kind = "which is a folder" if path.is_dir() else "which does not exist"
    require(path.is_file(), argument, expected, f"{str(path)!r}, {kind}")


def require_new_folder(path: Path) -> None:
    """Refuse a folder that holds something, and a file.

    Raises:
        ValueError: names the argument ``folder``.
    """
    free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(free, "folder", "one that is not there, or empty", repr(str(path)))


def text_lines(argument: str, path: Path, expected: str) -> list[str]:
    """The lines of a text file that are not empty, without spaces around them.

    Args:
        argument: what the file was given as.
        path: the file.
        expected: what it should be, for messages.

    Raises:
        ValueError: no file, or none with such a line.
    """
    require_file(argument, path, expected)
    lines = [line.strip() for line in read_text(path).split("\n")]
    texts = [line for line in lines if line]
    require(len(texts) > 0, argument, expected, f"an empty one, {str(path)!r}")
    return texts


def some_of(listed: list[str]) -> str:
    """The first of a list of names, and how many more there are."""
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")

"""Steering vectors from files and into files.

    vector = read_vector("joy.gguf", lm)          # of repeng, llama.cpp, NumPy, ours
    write_vector(vector, "joy.safetensors")       # with all that is known of it

What a file is, is told by what it begins with; what is written, by the ending of its name. A pickle can run code, and is
refused with what to do.
"""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sim.bridge.files import reading, require_file
from sim.bridge.model import LanguageModel
from sim.directions.array_files import read_npy, read_npz, read_safetensors, write_npy, write_npz, write_safetensors
from sim.directions.file_format import Contents, bare, contents_of, vector_of
from sim.directions.gguf_vectors import for_gguf, read_gguf, write_gguf
from sim.directions.vector import SteeringVector
from sim.output import writable_file, write_whole
from ufm._check import require, shown, typed

_READERS: dict[str, Callable[[Path], Contents]] = {
    "safetensors": read_safetensors,
    "gguf": read_gguf,
    "npz": read_npz,
    "npy": read_npy,
}
_WRITERS: dict[str, Callable[[Contents, Path], None]] = {
    ".safetensors": write_safetensors,
    ".gguf": write_gguf,
    ".npz": write_npz,
    ".npy": write_npy,
}
ENDINGS = tuple(_WRITERS)
"""The endings of names that are written."""

_EXPECTED = "a file of a steering vector (.safetensors, .gguf, .npz, .npy)"

_ZIP = b"PK\x03\x04"
"""What a zip archive begins with."""

_UNPICKLE = (
    "a pickle, which can run code: load it with the library that wrote it, put its directions into a dictionary by block "
    "(vector.directions of repeng, vector.layer_activations of steering-vectors), and "
    'numpy.savez("vector.npz", **{f"direction.{block}": v for block, v in directions.items()})'
)


@typed
def read_vector(
    path: str | Path, lm: LanguageModel | None = None, *, other_weights: bool = False, layer: int | None = None
) -> SteeringVector:
    """A steering vector from a file: safetensors, a GGUF control vector, NumPy's .npz or .npy.

    Args:
        path: the file.
        lm: the model that it is to steer, if it is to be checked that it can.
        other_weights: as in `SteeringVector.require_fits`.
        layer: the block of a single direction, ``[d]``, in a file that does not say it.

    Raises:
        ValueError: no file, half of one, a pickle, another kind of file; arrays that are no directions; numbers that are not
            finite; a vector that is not one for the model.
    """
    file = Path(path)
    require_file("vector", file, _EXPECTED)
    blocks = None if lm is None else lm.config.num_layers
    vector = vector_of(_READERS[_kind(file)](file), file, layer, blocks)
    return vector if lm is None else vector.require_fits(lm, other_weights=other_weights)


def is_bare(path: Path) -> bool:
    """Whether a file holds a single direction, ``[d]``, and does not say which block it is for.

    Raises:
        ValueError: as `read_vector`, of the file.
    """
    require_file("vector", path, _EXPECTED)
    return bare(_READERS[_kind(path)](path))


@typed
def write_vector(vector: SteeringVector, path: str | Path) -> Path:
    """Write a steering vector, whole or not at all; .safetensors, .npz and .gguf keep all that is known of it.

    Args:
        vector: to write.
        path: a file ending in .safetensors, .gguf (which has no block 0), .npz or .npy (which has numbers only).

    Returns:
        The file.

    Raises:
        ValueError: another ending, a folder that cannot be written, blocks that the format cannot name.
    """
    file = writable_target(path)
    require_blocks(file, vector.layers, "vector")
    write = _WRITERS[file.suffix.lower()]
    contents = contents_of(for_gguf(vector) if write is write_gguf else vector)
    return write_whole(file, lambda temporary: write(contents, temporary))


def writable_target(path: str | Path, argument: str = "path") -> Path:
    """Make sure that a vector can be written at a path, before one is made.

    Args:
        path: of the file.
        argument: what the path was given as.

    Raises:
        ValueError: another ending, a folder that cannot be written.
    """
    file = Path(path)
    known = file.suffix.lower() in _WRITERS
    require(known, argument, f"a file that ends in {', '.join(ENDINGS)}", shown(str(path)))
    return writable_file(file, argument)


def require_blocks(file: Path, blocks: Sequence[int] | None, argument: str) -> None:
    """Refuse blocks that a vector file cannot name by its format.

    Args:
        file: from `writable_target`.
        blocks: those that are asked for; None for all, or where they are not yet known.
        argument: what they were given as.

    Raises:
        ValueError: block 0 alone for GGUF; several blocks that do not begin at 0, or not each, for .npy.
    """
    if blocks is None:
        return
    write, asked = _WRITERS[file.suffix.lower()], sorted(set(blocks))
    if write is write_gguf:
        expected = "a block from 1 on, as llama.cpp has no control vector for block 0 (write .safetensors)"
        require(asked != [0], argument, expected, "block 0 only")
    if write is write_npy:
        whole = len(asked) == 1 or asked == list(range(len(asked)))
        expected = "one block, or all from block 0 on, in a file that cannot name them (write .npz or .safetensors)"
        require(whole, argument, expected, f"blocks {', '.join(map(str, asked))}")


def _kind(path: Path) -> str:
    """The format of a file, by what it begins with.

    Raises:
        ValueError: none of the known ones; the message says what it is.
    """
    with reading(path, "a file that can be read", argument="vector"), path.open("rb") as file:
        start = file.read(64)
    zipped = start[:4] == _ZIP
    kinds = {
        "gguf": start[:4] == b"GGUF",
        "npy": start[:6] == b"\x93NUMPY",
        "npz": zipped and _members_end_in(path, ".npy"),
        "safetensors": start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40,
    }
    kind = next((kind for kind, fits in kinds.items() if fits), None)
    if kind is None:
        require(False, "vector", "a .safetensors, .gguf, .npz or .npy file", f"{str(path)!r}, {_described(path, start)}")
    return str(kind)


def _described(path: Path, start: bytes) -> str:
    """What a file is that no vector is read from."""
    zipped = start[:4] == _ZIP
    descriptions: dict[str, Any] = {
        "an empty file": not start,
        _UNPICKLE: start[:1] == b"\x80" or (zipped and _members_end_in(path, "data.pkl", any_of_them=True)),
        "an archive with other things than arrays of NumPy": zipped and _members_end_in(path, "", any_of_them=True),
        "a damaged or empty archive": zipped,
    }
    return next((text for text, fits in descriptions.items() if fits), "a file that begins like none of these")


def _members_end_in(path: Path, ending: str, *, any_of_them: bool = False) -> bool:
    """Whether all (or some) names in a zip archive end so; none do in a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    fits = [name.endswith(ending) for name in names]
    return any(fits) if any_of_them else bool(fits) and all(fits)

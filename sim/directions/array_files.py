"""Steering vectors in safetensors files and in NumPy's: arrays by name, with the facts as a text beside them.

.safetensors   all of it; the facts are in the metadata, under "ufm.vector"
.npz           all of it; the facts are one more array, called "facts"
.npy           numbers only: one direction, [d], or those of all blocks, [L, d]
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from sim.bridge.files import reading, some_of
from sim.directions.file_format import KEY, Contents
from ufm._check import require

_FACTS = "facts"

_BELOW_16_BITS = ("F8_", "F6_", "F4")
"""How safetensors begins the names of types that NumPy does not have."""


def read_safetensors(path: Path) -> Contents:
    """The arrays and the facts of a safetensors file.

    Raises:
        ValueError: a file that is not whole; numbers of a type that is not read.
    """
    with reading(path, "a whole safetensors file", argument="vector"), safetensors.safe_open(path, "np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        arrays = {name: file.get_tensor(name) for name, kind in kinds.items() if not kind.startswith(_BELOW_16_BITS)}
        facts = (file.metadata() or {}).get(KEY)
    unread = [f"{kind} at {name!r}" for name, kind in kinds.items() if name not in arrays]
    expected = "numbers in a type that is read (F32, F16, BF16, F64)"
    require(not unread, "vector", expected, f"{some_of(unread)} in {str(path)!r}")
    return Contents(arrays, facts)


def write_safetensors(contents: Contents, path: Path) -> None:
    """Write the arrays and the facts into a safetensors file."""
    save_file(dict(contents.arrays), path, {KEY: contents.facts or ""})


def read_npz(path: Path) -> Contents:
    """The arrays and the facts of an archive of NumPy.

    Raises:
        ValueError: a file that is not whole, or that holds objects of Python.
    """
    with reading(path, "a whole .npz file of numbers", argument="vector"), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    text = arrays.pop(_FACTS) if _FACTS in arrays and arrays[_FACTS].dtype.kind == "U" else None
    return Contents(arrays, None if text is None else str(text))


def write_npz(contents: Contents, path: Path) -> None:
    """Write the arrays and the facts into an archive of NumPy."""
    arrays: dict[str, Any] = {_FACTS: np.asarray(contents.facts), **contents.arrays}
    with path.open("wb") as file:  # to a name without its ending in small letters NumPy adds one
        np.savez(file, **arrays)


def read_npy(path: Path) -> Contents:
    """The one array of a file of NumPy.

    Raises:
        ValueError: a file that is not whole, or that holds objects of Python.
    """
    with reading(path, "a whole .npy file of numbers", argument="vector"):
        return Contents({"array": np.load(path, allow_pickle=False)})


def write_npy(contents: Contents, path: Path) -> None:
    """Write the directions into a file of NumPy: ``[d]`` of one block, ``[L, d]`` of all from block 0 on."""
    rows = {int(name.split(".")[1]): array for name, array in contents.arrays.items() if name.startswith("direction.")}
    blocks = sorted(rows)
    with path.open("wb") as file:
        np.save(file, rows[blocks[0]] if len(blocks) == 1 else np.stack([rows[block] for block in blocks]))

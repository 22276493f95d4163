"""What is the same in all files of steering vectors: the names of arrays and what they mean, and that metadata go with them.

Files of ours have the text of `sim.directions.metadata` beside the arrays. The kinds of files differ in how they keep the
two (`sim.directions.gguf_vectors`, `sim.directions.array_files`). A direction is called ``direction.<block>``, or has just
the number of its block for a name; the unit vector along the attention sinks of a block is called ``sink.<block>``. A file
with a single array and no such name holds one direction, ``[d]``, or those of all blocks, ``[L, d]``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sim.bridge.files import some_of
from sim.directions import metadata
from sim.directions.vector import ModelTag, SteeringVector
from ufm._check import finite, require, whole_number

KEY = "ufm.vector"
"""The name of the facts in metadata."""

_DIRECTION = re.compile(r"(?:direction\.)?(\d{1,6})")
_ALMOST = re.compile(r"(?:direction|sink)\..*|[-+\d.]+", re.IGNORECASE)
"""A name that was to say a block."""

_SINK = re.compile(r"sink\.(\d{1,6})")


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        arrays: by name.
        facts: as `sim.directions.metadata` writes them; None in a file that another library wrote.
        family: of the model, as such a file names it; "" if it does not.
    """

    arrays: Mapping[str, np.ndarray]
    facts: str | None = None
    family: str = ""


def contents_of(vector: SteeringVector) -> Contents:
    """The arrays and the facts of a vector.

    Raises:
        ValueError: as `sim.directions.metadata.as_text`.
    """
    arrays = {f"direction.{layer}": v for layer, v in vector.directions.items()}
    arrays |= {f"sink.{layer}": v for layer, v in vector.sinks.items()}
    return Contents(arrays, metadata.as_text(vector), vector.model.family if vector.model else "")


def vector_of(contents: Contents, path: Path, layer: int | None = None, blocks: int | None = None) -> SteeringVector:
    """The vector that a file holds.

    Args:
        contents: of the file.
        path: of the file, for messages; a vector of another library is named after it.
        layer: the block of a single direction, where the file does not say it.
        blocks: how many the model has, if it is known.

    Raises:
        ValueError: arrays that are no directions, no `layer` where one is needed or one where none is; facts that cannot be
            read; as `SteeringVector`.
    """
    arrays = {name: _numbers(name, array, path) for name, array in contents.arrays.items()}
    directions = _directions(arrays, path, layer, blocks)
    sinks = {int(match[1]): array for name, array in arrays.items() if (match := _SINK.fullmatch(name))}
    try:
        if contents.facts is None:
            model = ModelTag(family=contents.family) if contents.family else None
            return SteeringVector(directions, path.stem.encode(errors="replace").decode(), model, sinks=sinks)
        known = metadata.of_text(contents.facts)
        more = (known.name, known.model, known.site, known.extraction, known.diagnosis, sinks, known.scales)
        return SteeringVector(directions, *more)
    except ValueError as error:
        raise ValueError(f"{error}, in {str(path)!r}") from error


def bare(contents: Contents) -> bool:
    """Whether all there is is one direction, ``[d]``, of no block by name."""
    return [np.ndim(array) for array in contents.arrays.values()] == [1] and not any(
        map(_DIRECTION.fullmatch, contents.arrays)
    )


def _directions(
    arrays: Mapping[str, np.ndarray], path: Path, layer: int | None, blocks: int | None
) -> dict[int, np.ndarray]:
    """The directions by block."""
    named = {name: match for name in arrays if (match := _DIRECTION.fullmatch(name))}
    if not named and len(arrays) == 1:
        ((name, array),) = arrays.items()
        known = not _ALMOST.fullmatch(name)
        require(known, "vector", "an array named direction.<block>, as in direction.15", f"{name!r} in {str(path)!r}")
        return _of_array(array, path, layer, blocks)
    others = sorted(name for name in arrays if name not in named and not _SINK.fullmatch(name))
    expected = "arrays with the names direction.<block>, or a single array [d] or [L, d]"
    require(len(named) > 0, "vector", expected, f"{some_of(others) or 'none'} in {str(path)!r}")
    require(not others, "vector", expected, f"also {some_of(others)} in {str(path)!r}")
    require(layer is None, "layer", f"none, as {path.name} says which blocks its directions are for", layer)
    numbers = [int(match[1]) for match in named.values()]
    repeated = sorted({number for number in numbers if numbers.count(number) > 1})
    require(not repeated, "vector", "one direction for each block", f"several for block {repeated} in {str(path)!r}")
    return {number: arrays[name] for number, name in zip(numbers, named, strict=True)}


def _numbers(name: str, array: np.ndarray, path: Path) -> np.ndarray:
    """An array of a file, if it has numbers, and those of a vector if it is named so."""
    numbers = finite(f"{name} in {str(path)!r}", array)
    named = _DIRECTION.fullmatch(name) or _SINK.fullmatch(name)
    require(not named or numbers.ndim == 1, f"{name} in {str(path)!r}", "a vector [d]", f"shape {numbers.shape}")
    return numbers


def _of_array(array: np.ndarray, path: Path, layer: int | None, blocks: int | None) -> dict[int, np.ndarray]:
    """The directions of a bare array: of one block, ``[d]``, or of all, ``[L, d]``."""
    shape = tuple(array.shape)
    require(array.ndim in (1, 2) and array.size > 0, "vector", "an array [d] or [L, d]", f"shape {shape} in {str(path)!r}")
    if array.ndim == 1:
        expected = f"the block that the one direction of {path.name} is for (layer=12, or --layer 12)"
        require(layer is not None, "layer", expected, "none")
        return {whole_number("layer", layer, 0): array}
    require(layer is None, "layer", f"none, as {path.name} has a row for each of {shape[0]} blocks", layer)
    states = "; hidden_states of transformers begin with the embedding: leave it out" if shape[0] - 1 == blocks else ""
    expected = f"a row for each of the {blocks} blocks of the model"
    require(blocks in (None, shape[0]), "vector", expected, f"{shape[0]} rows in {str(path)!r}{states}")
    return dict(enumerate(array))

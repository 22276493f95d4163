"""Control vectors in GGUF files, as repeng and llama.cpp write and read them.

    general.architecture        "controlvector"
    controlvector.model_hint    the family of the model: transformers' `model_type`, or llama.cpp's name for it
    controlvector.layer_count   how many directions there are
    direction.<N>               float32, [d]

Both count blocks from 0 as we do: N is the block after which the direction is added. llama.cpp has no direction for block 0,
and refuses a file that has one or that has any other tensor. What only we know is therefore in metadata, which others skip:
``ufm.vector``, the facts; ``ufm.sink.<N>``, the bytes of a vector of float32, little end first, in base 64.
"""

import base64
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sim.bridge.files import reading
from sim.directions.file_format import KEY, Contents
from sim.directions.vector import SteeringVector
from ufm._check import require

ARCHITECTURE = "controlvector"

_PLAIN = [gguf.GGMLQuantizationType[name] for name in ("F64", "I8", "I16", "I32", "I64")]
"""Types of tensors that NumPy has, and `gguf.dequantize` passes by."""

_SINK = "ufm.sink."
_UNKNOWN = "unknown"


def read_gguf(path: Path) -> Contents:
    """The arrays and the facts of a control vector.

    Raises:
        ValueError: a file that is not whole, or big end first; a model or an adapter; a type of numbers that is not read.
    """
    with reading(path, "a whole GGUF file", argument="vector"):
        reader = gguf.GGUFReader(path)
        with path.open("rb") as file:
            version = int.from_bytes(file.read(8)[4:], "little")
    require(version < 2**16, "vector", "a GGUF file with its numbers little end first", f"{str(path)!r}, big end first")
    kind, purpose = _value(reader, "general.architecture", path), _value(reader, "general.type", path)
    what = f"a LoRA adapter for {kind}" if purpose == "adapter" else f"a model of the architecture {kind}"
    require(kind in (None, ARCHITECTURE), "vector", "a GGUF file of a control vector", f"{str(path)!r}, {what}")
    with reading(path, "a whole GGUF file of a control vector", argument="vector"):
        arrays = {tensor.name: _numbers(tensor, path) for tensor in reader.tensors}
        for name in [name for name in reader.fields if name.startswith(_SINK)]:
            data = base64.b64decode(_value(reader, name, path), validate=True)
            arrays[f"sink.{name.removeprefix(_SINK)}"] = np.frombuffer(data, "<f4").astype(np.float32)
    family = _value(reader, f"{ARCHITECTURE}.model_hint", path)
    return Contents(arrays, _value(reader, KEY, path), family if isinstance(family, str) and family != _UNKNOWN else "")


def _numbers(tensor: gguf.ReaderTensor, path: Path) -> np.ndarray:
    """The numbers of a tensor: a copy, as the reader's arrays are the file, which may be replaced."""
    if tensor.tensor_type in _PLAIN:
        return np.array(tensor.data)
    try:
        return np.array(gguf.dequantize(tensor.data, tensor.tensor_type))
    except NotImplementedError as error:
        expected = "numbers in a type that the package gguf dequantises (F32, say)"
        kind = tensor.tensor_type.name
        raise ValueError(f"vector: expected {expected}, got {kind} at {tensor.name!r} in {str(path)!r}") from error


def _value(reader: gguf.GGUFReader, key: str, path: Path) -> Any:
    """A value of the metadata; None if it is not there."""
    field = reader.get_field(key)
    with reading(path, f"a readable {key}", argument="vector"):
        return None if field is None else field.contents()


def for_gguf(vector: SteeringVector) -> SteeringVector:
    """The vector without block 0, which llama.cpp has no direction for, with a warning. There must be another block."""
    if 0 not in vector.layers:
        return vector
    later = [layer for layer in vector.layers if layer > 0]
    said = "GGUF: the direction of block 0 is left out, as llama.cpp refuses files that have one; .safetensors keeps it"
    warnings.warn(said, stacklevel=4)
    return vector.at(later)


def write_gguf(contents: Contents, path: Path) -> None:
    """Write a control vector that repeng and llama.cpp read."""
    directions = {name: array for name, array in contents.arrays.items() if name.startswith("direction.")}
    sinks = {name: array for name, array in contents.arrays.items() if name.startswith("sink.")}
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", contents.family or _UNKNOWN)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
    writer.add_string(KEY, contents.facts or "")
    for name, array in sinks.items():
        writer.add_string(f"ufm.{name}", base64.b64encode(array.astype("<f4").tobytes()).decode())
    for name, array in directions.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

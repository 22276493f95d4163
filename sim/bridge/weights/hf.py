"""Weights from files: tensors that are read one at a time, and the parameters of a decoder filled from them.

Formats: safetensors (one file, or shards with an index), `flax_model.msgpack`, GGUF. A pickle is refused: it can run code.
Nothing of a model is returned unless all of it is there, in the right shapes, and finite.
"""

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import safetensors
from jax.typing import DTypeLike
from tqdm import tqdm

from sim.bridge.architectures import from_config, refuse_quantised
from sim.bridge.config import Config
from sim.bridge.files import read_json, reading, some_of
from sim.bridge.parameters import ShardingOf, is_gain, placed, require_finite, shapes
from sim.bridge.weights import tensor_names
from ufm._check import require, shown

_FLOATS = ("F64", "F32", "F16", "BF16")

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@runtime_checkable
class Tensors(Protocol):
    """The named tensors of a checkpoint."""

    kind: str

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name, without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the type that it is stored in (dequantised if it is quantised)."""
        ...


class Safetensors:
    """One or several safetensors files."""

    kind = "safetensors"

    def __init__(self, files: Mapping[str, Path]) -> None:
        """A set of tensors, given the file of each; names must be those in the files."""
        self._files = dict(files)

    @classmethod
    def of_file(cls, path: Path) -> "Safetensors":
        """All tensors of a file."""
        with reading(path, "a whole safetensors file"), safetensors.safe_open(path, "np") as file:
            return cls(dict.fromkeys(file.keys(), path))

    @classmethod
    def of_index(cls, path: Path) -> "Safetensors":
        """The tensors that a `model.safetensors.index.json` lists, in the shards beside it.

        Raises:
            ValueError: an index of another form, a shard that is missing or does not hold what the index says.
        """
        index = read_json(path)
        listed = index.get("weight_map")
        ok = isinstance(listed, dict) and all(isinstance(x, str) for x in listed.values()) and bool(listed)
        entries = listed.items() if isinstance(listed, dict) else ()
        wrong = next((f"{shown(shard)} for {shown(name)}" for name, shard in entries if not isinstance(shard, str)), None)
        got = "an empty one" if listed == {} else wrong or type(listed).__name__
        require(ok, "weight_map", f"the shard of every tensor, in {path.name}", got)
        assert isinstance(listed, dict)
        plain = [shard for shard in set(listed.values()) if Path(shard).name != shard]
        require(not plain, "weight_map", "names of files beside the index", plain)
        missing = sorted(shard for shard in set(listed.values()) if not (path.parent / shard).is_file())
        require(not missing, "checkpoint", f"all shards that {path.name} names", f"no {', '.join(missing)}")
        for shard in sorted(set(listed.values())):
            names = set(cls.of_file(path.parent / shard)._files)
            absent = sorted(name for name, where in listed.items() if where == shard and name not in names)
            require(not absent, "checkpoint", f"in {shard} what {path.name} says", f"no {', '.join(absent[:3])}")
        return cls({name: path.parent / shard for name, shard in listed.items()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(set(self._files.values())):
            with reading(path, "a whole safetensors file"), safetensors.safe_open(path, "np") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name, at in self._files.items() if at == path}
        return shapes

    def read(self, name: str) -> np.ndarray:
        """Read one tensor of the file.

        Raises:
            ValueError: the file is damaged; the tensor is of a type of quantised weights.
        """
        path = self._files[name]
        with reading(path, "a whole safetensors file"), safetensors.safe_open(path, "np") as file:
            kind = file.get_slice(name).get_dtype()
            if kind in _FLOATS:
                return file.get_tensor(name)
        refuse_quantised(name, "float8" if kind.startswith("F8") else f"weights of type {kind}")
        raise AssertionError


class Msgpack:
    """A `flax_model.msgpack`: nested maps with arrays in Flax's extension type. Only where arrays are is kept in memory.

    `flax.serialization.msgpack_restore` holds all arrays at once, and the file besides: on a file of 768 MiB it takes 2.1
    times the file's size (1.1 times if the file is mapped). This class takes one tensor.
    """

    kind = "msgpack"

    def __init__(self, path: Path) -> None:
        self._places: dict[str, tuple[tuple[int, ...], np.dtype, int, int]] = {}
        self._data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
        with reading(path, "a whole file of Flax parameters"):
            end = self._map(0, ())
            require(end == self._data.size, "end", f"at byte {self._data.size}", end)

    def _map(self, at: int, path: tuple[str, ...]) -> int:
        """Note the arrays of a map that starts at a byte; where it ends."""
        require(len(path) < 16, "depth", "maps nested at most 16 deep", "more")
        count, at = self._unpacked(at, msgpack.Unpacker.read_map_header)
        for _ in range(count):
            key, at = self._unpacked(at, msgpack.Unpacker.unpack)
            require(isinstance(key, str), "type", "a key", type(key).__name__)
            inner = (*path, key)
            at = self._map(at, inner) if self._is_map(at) else self._array(at, ".".join(inner))
        return at

    def _is_map(self, at: int) -> bool:
        kind = int(self._data[at])
        return kind >> 4 == 0x8 or kind in (0xDE, 0xDF)

    def _unpacked(self, at: int, read: Callable[[msgpack.Unpacker], Any]) -> tuple[Any, int]:
        """The object that msgpack reads at a byte, the name of a tensor at most; and its end."""
        unpacker = msgpack.Unpacker()
        unpacker.feed(self._data[at : at + 1024].tobytes())
        try:
            return read(unpacker), at + unpacker.tell()
        except msgpack.OutOfData as error:
            raise ValueError(f"the file is cut off at byte {self._data.size}") from error

    def _array(self, at: int, name: str) -> int:
        kind = int(self._data[at])
        require(kind in (0xC7, 0xC8, 0xC9), name, "an array", hex(kind))
        width = {0xC7: 1, 0xC8: 2, 0xC9: 4}[kind]
        size, start = self._number(at + 1, width), at + 2 + width
        require(int(self._data[at + 1 + width]) == 1, name, "an array of Flax", "another extension")
        # Inside: an array of the shape, the name of the type and the bytes. The bytes come last.
        unpacker = msgpack.Unpacker(max_buffer_size=2**31 - 1)
        unpacker.feed(bytes(self._slice(start, min(size, 256))))
        require(unpacker.read_array_header() == 3, name, "shape, type and bytes", "another count")
        shape, kind_of = tuple(unpacker.unpack()), unpacker.unpack()
        whole = all(isinstance(n, int) and n >= 0 for n in shape) and isinstance(kind_of, str)
        require(whole, name, "a shape and a type", (shape, kind_of))
        dtype = np.dtype(ml_dtypes.bfloat16) if kind_of == "bfloat16" else np.dtype(kind_of)
        length = int(np.prod(shape, dtype=object)) * dtype.itemsize
        require(dtype.kind in "fV" and length <= size, name, "floats that fill the shape", (shape, kind_of, size))
        self._slice(start, size)
        self._places[name] = (shape, dtype, start + size - length, length)
        return start + size

    def _number(self, at: int, width: int) -> int:
        return int.from_bytes(bytes(self._slice(at, width)), "big")

    def _slice(self, at: int, size: int) -> np.ndarray:
        require(at + size <= self._data.size, "length", f"{at + size} bytes", f"{self._data.size}: the file is cut off")
        return self._data[at : at + size]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name, maps joined by dots."""
        return {name: place[0] for name, place in self._places.items()}

    def read(self, name: str) -> np.ndarray:
        """Read one tensor of the file."""
        shape, dtype, start, length = self._places[name]
        return np.frombuffer(bytes(self._data[start : start + length]), dtype).reshape(shape)


def open_folder(folder: Path) -> tuple[Config, Tensors]:
    """The architecture and the tensors of a Hugging Face folder.

    Raises:
        ValueError: no `config.json`, no weights, weights that are pickled only, anything malformed.
    """
    config = from_config(read_json(folder / "config.json"))
    tensors = _open_tensors(folder, config)
    _refuse_quantised(tensors.shapes())
    return tied_as_saved(config, tensors), tensors


def _open_tensors(folder: Path, config: Config) -> Tensors:
    if (folder / "model.safetensors").is_file():
        return Safetensors.of_file(folder / "model.safetensors")
    if (folder / "model.safetensors.index.json").is_file():
        return Safetensors.of_index(folder / "model.safetensors.index.json")
    if (folder / "flax_model.msgpack").is_file():
        require(
            config.family == "gpt2",
            "flax_model.msgpack",
            "a GPT-2, the family known in this format",
            config.family,
        )
        return Msgpack(folder / "flax_model.msgpack")
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    require(
        not pickled, "checkpoint", "safetensors (a pickle can run code; convert it with safetensors)", ", ".join(pickled)
    )
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".h5", ".onnx", ".msgpack"))
    shards = any(re.fullmatch(r".*-\d+-of-\d+\.safetensors", name) for name in others)
    hint = " without the index model.safetensors.index.json" if shards else " only" if others else ""
    got = f"{', '.join(others) or 'none'}{hint} in {str(folder)!r}"
    raise ValueError(f"checkpoint: expected model.safetensors, its index or flax_model.msgpack, got {got}")


_QUANTISED_PARTS = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".scales": "MLX, GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "float8 or integers",
    ".weight_scale_inv": "float8",
    "_blocks": "MXFP4",
}
"""How names end that only quantised checkpoints have."""


def _refuse_quantised(names: Mapping[str, Any]) -> None:
    for name in names:
        method = next((method for end, method in _QUANTISED_PARTS.items() if name.endswith(end)), None)
        if method is not None:
            refuse_quantised(name, method)


def tied_as_saved(a: Config, tensors: Tensors) -> Config:
    """The architecture, with an unembedding of its own if the checkpoint has one that is not its embedding.

    So does transformers, whatever the configuration says of it.
    """
    names = tensors.shapes()
    entries = tensor_names.table(replace(a, tied=False), tensors.kind, names)
    pair = [entries["embedding"], entries["unembedding"]]
    if not a.tied or not all(entry.template in names for entry in pair):
        return a
    embedding, head = (_changed(tensors.read(entry.template), entry, a, entry.template) for entry in pair)
    if np.array_equal(embedding, head):
        return a
    warning = f"tie_word_embeddings is true, but {pair[1].template} is not {pair[0].template}: each is used as it is saved"
    warnings.warn(warning, stacklevel=3)
    return replace(a, tied=False)


def load_params(
    a: Config,
    tensors: Tensors,
    *,
    dtype: DTypeLike = jnp.float32,
    sharding_of: ShardingOf | None = None,
    progress: bool | None = None,
    digest: "hashlib._Hash | None" = None,
) -> dict[str, jax.Array]:
    """The parameters of a decoder by path, filled tensor by tensor: at most one of ours is in host memory at a time.

    Args:
        a: the architecture.
        tensors: the checkpoint.
        dtype: of all parameters but those of norms, which are float32.
        sharding_of: where each is to be; the default device if left out.
        progress: whether to show a bar; as the terminal is, if left out.
        digest: updated with the name, the shape and a sample of every parameter, if given.

    Raises:
        ValueError: tensors that are missing, too many, of a wrong shape, or not finite; the message names them.
    """
    return placed(a, _read(a, tensors, np.dtype(dtype), progress), sharding_of, digest)


def _read(a: Config, tensors: Tensors, dtype: np.dtype, progress: bool | None) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters one by one, the layers of the blocks put together, each checked against the architecture."""
    stored, expected = tensors.shapes(), shapes(a)
    entries = tensor_names.table(a, tensors.kind, stored)
    _check_names(a, stored, entries)
    # The largest first: what is needed beside the parameters that are there gets smaller as these add up.
    order = sorted(expected, key=lambda name: -math.prod(expected[name]))
    for name in tqdm(order, desc="load", unit="tensor", disable=progress is False or None):
        whole = np.empty(expected[name], np.float32 if is_gain(name) else dtype)
        entry, stacked = entries[name], name.startswith("blocks.")
        for i in range(a.num_layers if stacked else 1):
            theirs = entry.template.format(i)
            tensor = _changed(tensors.read(theirs), entry, a, theirs)
            part = whole[i] if stacked else whole
            require(tensor.shape == part.shape, theirs, f"shape {part.shape} for {name}", stored[theirs])
            part[...] = tensor
            require_finite(theirs, part)
        yield name, whole
        del whole, part, tensor


def _changed(tensor: np.ndarray, entry: tensor_names.Entry, a: Config, name: str) -> np.ndarray:
    try:
        return entry.change(tensor, a)
    except ValueError as error:
        raise ValueError(f"{name}: expected a shape that fits the architecture, got {tensor.shape} ({error})") from error


def _check_names(a: Config, names: Mapping[str, Any], entries: Mapping[str, tensor_names.Entry]) -> None:
    wanted = {
        entry.template.format(i)
        for name, entry in entries.items()
        for i in range(a.num_layers if name.startswith("blocks.") else 1)
    }
    missing = sorted(wanted - set(names))
    gap = f"no {some_of(missing)}{_wrapped(missing, names)}"
    require(not missing, "checkpoint", "all tensors of the architecture", gap)
    extra = sorted(name for name in set(names) - wanted if not tensor_names.ignored(name, a))
    require(not extra, "checkpoint", "tensors of the architecture only", f"also {some_of(extra)}")


def _wrapped(missing: list[str], names: Iterable[str]) -> str:
    """A clause that says so, if the first missing name is there behind a prefix, as wrappers save theirs."""
    prefixes = (name.removesuffix(missing[0]) for name in names if missing and name.endswith(f".{missing[0]}"))
    prefix = next(prefixes, None)
    return "" if prefix is None else f", but names that begin with {prefix!r}, as a wrapper saves them: take it off"

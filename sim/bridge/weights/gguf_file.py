"""GGUF files: their tensors, dequantised one at a time, their architecture and their tokenizer, from their metadata.

The package `gguf` reads the format; what is here puts its keys into the terms of `sim.bridge.config`.
"""

import math
import mmap
import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sim.bridge.architectures import MOST_LAYERS, from_config, is_mixture
from sim.bridge.config import Config
from sim.bridge.files import reading
from sim.bridge.rope import Rope, mscale
from ufm._check import finite_number, require, shown, whole_number

_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
    "phi3": "phi3",
    "granite": "granite",
    "gptneox": "gpt_neox",
}


_WITHOUT_EFFECT = (
    *("vocab_size", "tensor_data_layout", "pooling_type", "expert_count", "expert_used_count", "rope.scaling.finetuned"),
    *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
)
"""Keys of architectures that change nothing where nothing asks for them."""


class _Reader(gguf.GGUFReader):
    """A reader whose data are a plain array: it makes 250,000 views of the metadata, and a view of a memmap takes long."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The whole file."""
        return self._plain

    @data.setter
    def data(self, value: Any) -> None:
        self._plain, self._mapped = np.asarray(value), value._mmap

    def let_go(self) -> None:
        """Give back the memory of what has been read, where the system can; reading again maps it again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


class Gguf:
    """A GGUF file."""

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        """Reads the metadata only.

        Raises:
            ValueError: the file cannot be read, is cut off or is malformed; the message names it.
        """
        self.path = path
        with reading(path, "a whole GGUF file (one that is cut off or damaged cannot be read)"):
            self._reader = _Reader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        keys = (("split.no", 0), ("split.count", 1))
        part, parts = (whole_number(key, self.metadata(key, default), 0) for key, default in keys)
        got = f"part {part + 1} of {parts} in {path.name}: join them with llama-gguf-split --merge"
        require(parts in (0, 1), "model", "a GGUF file that is not split", got)
        kind = self.metadata("general.type", "model")
        require(kind == "model", "model", "a GGUF file of a whole model", f"{path.name}, of the type {kind!r}")

    def metadata(self, key: str, default: Any = None) -> Any:
        """A value of the metadata, in Python types."""
        field = self._reader.get_field(key)
        if field is None:
            return default
        with reading(self.path, f"a readable {key}"):
            return field.contents()

    def metadata_keys(self) -> list[str]:
        """The keys of all metadata."""
        return list(self._reader.fields)

    def forget_metadata(self) -> None:
        """Free what they take, a quarter of a million Python objects; tensors can still be read."""
        self._reader.fields.clear()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name, ``[out, in]`` for matrices."""
        return {name: _shape(tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, in float32.

        Raises:
            ValueError: a type that is not read, a file that is not whole.
        """
        tensor = self._tensors[name]
        if tensor.tensor_type == gguf.GGMLQuantizationType.F64:
            return np.asarray(tensor.data, np.float32).reshape(_shape(tensor))
        # What the scale of a damaged block gives is found by the check for finite weights.
        with reading(self.path, "a whole GGUF file"), np.errstate(all="ignore"):
            try:
                values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(_shape(tensor))
            except NotImplementedError:
                values = None
        require(values is not None, name, "a type that the package gguf dequantises", tensor.tensor_type.name)
        self._reader.let_go()
        assert values is not None
        return values

    @cached_property
    def config(self) -> Config:
        """The configuration in the metadata.

        Raises:
            ValueError: an unknown architecture, a key that is missing, a file without weights.
        """
        kind, tensors = self.metadata("general.architecture"), self.shapes()
        require(bool(tensors), "model", "a GGUF file with weights", f"{self.path.name}, which has metadata only")
        mixed = is_mixture(str(kind), {"num_experts": self.metadata(f"{kind}.expert_count")})
        require(not mixed, "general.architecture", "a dense model", f"{kind!r} with experts, which is not implemented")
        known = isinstance(kind, str) and kind in _FAMILIES
        require(known, "general.architecture", f"one of {', '.join(_FAMILIES)}", shown(kind))
        about = _About(self, kind)
        sizes = about.sizes()
        config = sizes | about.family(sizes) | {"tie_word_embeddings": "output.weight" not in tensors}
        config |= {"vocab_size": tensors.get("token_embd.weight", (0,))[0]}
        a = about.with_positions(from_config({"model_type": _FAMILIES[kind], **config}))
        about.warn_of_unknown_keys()
        return replace(
            a,
            qkv_bias=any(f"blk.0.attn_{part}.bias" in tensors for part in ("q", "qkv")),
            out_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_up.bias" in tensors,
        )


class _About:
    """The metadata of a file, in the terms of `config.json`.

    llama.cpp takes another value than transformers for some keys that are absent: what it takes is written out.
    """

    def __init__(self, file: Gguf, kind: str) -> None:
        self.file, self.kind = file, kind
        self._known = set(_WITHOUT_EFFECT)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture."""
        self._known.add(key)
        return self.file.metadata(f"{self.kind}.{key}", default)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.get(key, default)
        require(isinstance(value, bool), f"{self.kind}.{key}", "true or false", shown(value))
        return bool(value)

    def warn_of_unknown_keys(self) -> None:
        """Say which keys of the architecture nothing has asked for: they may be of settings that are not implemented."""
        known = {f"{self.kind}.{key}" for key in self._known}
        theirs = {key for key in self.file.metadata_keys() if key.startswith(f"{self.kind}.")}
        if theirs - known:
            names = ", ".join(sorted(theirs - known))
            warnings.warn(f"{names}: not known for this architecture, and not used", stacklevel=4)

    def needed(self, key: str) -> Any:
        """One that no reader has a default for."""
        value = self.get(key)
        require(value is not None, f"{self.kind}.{key}", "a value", "none")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.needed(key) if default is None else self.get(key, default)
        return whole_number(f"{self.kind}.{key}", value, 1)

    def positive(self, key: str, default: float) -> float:
        """A positive number."""
        return finite_number(f"{self.kind}.{key}", self.get(key, default), "a positive number", lambda x: x > 0)

    def sizes(self) -> dict[str, Any]:
        """The sizes that all families have."""
        width, heads = self.whole("embedding_length"), self.whole("attention.head_count")
        layers = self.whole("block_count")
        require(layers <= MOST_LAYERS, f"{self.kind}.block_count", f"at most {MOST_LAYERS} layers", layers)
        head_dim = self.whole("attention.key_length", width // heads)
        value_length = self.whole("attention.value_length", head_dim)
        expected = f"{head_dim}, the length of a key"
        require(value_length == head_dim, f"{self.kind}.attention.value_length", expected, value_length)
        causal = self.flag("attention.causal", True)
        require(causal, f"{self.kind}.attention.causal", "true (else not implemented)", "false")
        eps = "layer_norm_epsilon" if self.kind in ("gpt2", "gptneox") else "layer_norm_rms_epsilon"
        turned = self.whole("rope.dimension_count", head_dim)
        partly = self.kind in ("phi3", "gptneox")
        require(turned == head_dim or partly, f"{self.kind}.rope.dimension_count", f"{head_dim}, a whole head", turned)
        sizes = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "intermediate_size": self.needed("feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.needed("context_length"),
            "rope_parameters": {
                "rope_theta": self.get("rope.freq_base", 10_000.0),
                "partial_rotary_factor": _share(turned, head_dim),
            },
        }
        return sizes | {"rms_norm_eps" if "rms" in eps else "layer_norm_eps": self.needed(f"attention.{eps}")}

    def family(self, sizes: dict[str, Any]) -> dict[str, Any]:
        """The settings that only this family has."""
        window = self.get("attention.sliding_window")
        readers = {"gpt2": self._gpt2, "gptneox": self._gpt_neox, "phi3": self._phi3, "granite": self._granite}
        readers |= {"gemma2": self._gemma2, "gemma3": self._gemma3}
        if window and self.kind not in ("gemma2", "gemma3", "phi3", "olmo2"):
            warnings.warn(f"{self.kind}.attention.sliding_window: {window} is not used, as in llama.cpp", stacklevel=2)
        return readers[self.kind](sizes) if self.kind in readers else {}

    def _gpt2(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return {"n_inner": sizes["intermediate_size"], "layer_norm_epsilon": sizes["layer_norm_eps"]}

    def _gpt_neox(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return {"use_parallel_residual": self.get("use_parallel_residual", True)}

    def _phi3(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return {"sliding_window": self.get("attention.sliding_window") or None}

    def _granite(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return {
            "attention_multiplier": self.get("attention.scale") or sizes["head_dim"] ** -0.5,
            "embedding_multiplier": self.get("embedding_scale") or 1.0,
            "residual_multiplier": self.get("residual_scale") or 1.0,
            "logits_scaling": self.get("logit_scale") or 1.0,
        }

    def _gemma2(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return _query_scale(sizes, 46) | {
            "sliding_window": self.get("attention.sliding_window", 4096),
            "layer_types": self._layer_types(2, sizes["num_hidden_layers"]),
            "attn_logit_softcapping": self.get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": self.get("final_logit_softcapping", 30.0),
        }

    def _gemma3(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return _query_scale(sizes, 62) | {
            "sliding_window": self.needed("attention.sliding_window"),
            "layer_types": self._layer_types(6, sizes["num_hidden_layers"]),
            "rope_parameters": {
                "full_attention": {"rope_theta": self.needed("rope.freq_base")},
                "sliding_attention": {"rope_theta": self.get("rope.freq_base_swa", 10_000.0)},
            },
            "final_logit_softcapping": self.get("final_logit_softcapping") or None,
        }

    def _layer_types(self, usual: int, layers: int) -> list[str]:
        """Which layers have a window: all but one in so many, the last of them; or all, where the number is 0."""
        key = "attention.sliding_window_pattern"
        every = self.get(key, usual)
        single = isinstance(every, int) and not isinstance(every, bool) and every >= 0
        require(single, f"{self.kind}.{key}", "one number for all layers", shown(every))
        full = [every > 0 and (i + 1) % every == 0 for i in range(layers)]
        return ["full_attention" if whole else "sliding_attention" for whole in full]

    def with_positions(self, a: Config) -> Config:
        """An architecture with the scaling of positions that the file has, and with what only files of GGUF say of them."""
        rope = a.rope
        if rope is None:
            return a
        if self.kind in ("gemma2", "olmo2"):
            key, base = "rope.freq_base_swa", rope.theta
            expected = f"{base:g}, that of the other layers (else not implemented)"
            require(self.get(key, base) == base, f"{self.kind}.{key}", expected, self.get(key))
        if self.kind == "granite" and not self.flag("rope.scaling.finetuned", True):
            a = replace(a, nope_layers=tuple(range(a.num_layers)))
        if self.kind == "olmo2" and self.get("attention.sliding_window"):
            # OLMo 3: what scaling there is, is that of the layers without a window.
            types, window = self._layer_types(4, a.num_layers), self.whole("attention.sliding_window")
            windows = tuple(window if kind == "sliding_attention" else None for kind in types)
            a = replace(a, windows=windows, local_rope=Rope(rope.theta))
        return replace(a, rope=self.scaled(rope, a))

    def scaled(self, rope: Rope, a: Config) -> Rope:
        """Rotary positions with the scaling that the file has: factors, and those of single frequencies."""
        # Files of models without scaling have a factor of 0.
        source = next((key for key in ("rope.scaling.factor", "rope.scale_linear") if self.get(key) is not None), None)
        factor = 1.0 if source is None or self.get(source) == 0 else self.positive(source, 1.0)
        kind = self.get("rope.scaling.type", "linear")
        attention_factor = self.positive("rope.scaling.attn_factor", 1.0)
        original = self.whole("rope.scaling.original_context_length", a.max_seq_len)
        known = ("none", "linear", "yarn", "longrope")
        require(kind in known, f"{self.kind}.rope.scaling.type", f"one of {', '.join(known)}", repr(kind))
        for key, allowed in (("yarn_log_multiplier", 0), ("yarn_ext_factor", 1), ("alpha", 0)):
            value = self.get(f"rope.scaling.{key}", allowed)
            require(value in (allowed, -1), f"{self.kind}.rope.scaling.{key}", f"{allowed} (else not implemented)", value)
        fast, slow = (self.positive(f"rope.scaling.yarn_beta_{end}", x) for end, x in (("fast", 32.0), ("slow", 1.0)))
        yarn_attention_factor = self.positive("rope.scaling.yarn_attn_factor", 1.0) * mscale(factor)
        if kind == "linear" and factor != 1:
            rope = replace(rope, scaling="linear", factor=factor)
        if kind == "yarn":
            require(rope.theta > 1, f"{self.kind}.rope.freq_base", "a number above 1, for yarn", rope.theta)
            rope = replace(
                rope,
                scaling="yarn",
                factor=factor,
                beta_slow=slow,
                beta_fast=fast,
                original_context_length=original,
            )
            attention_factor *= yarn_attention_factor
        rope = replace(rope, attention_factor=attention_factor)
        freq_factors = self._freq_factors("rope_freqs.weight")
        short, long = self._freq_factors("rope_factors_short.weight"), self._freq_factors("rope_factors_long.weight")
        require(bool(short) == bool(long), "rope_factors_short.weight", "both short and long factors, or none", "one")
        require(kind != "longrope" or bool(short), "rope_factors_short.weight", "factors, for longrope", "none")
        if short:
            plain = not freq_factors and rope.scaling == "default"
            require(plain, "rope_factors_short.weight", "no other scaling beside it", rope.scaling)
            rope = replace(
                rope,
                scaling="longrope",
                original_context_length=original,
                freq_factors=short,
                long_freq_factors=long,
            )
        elif freq_factors:
            rope = replace(rope, freq_factors=freq_factors)
        for listed in (rope.freq_factors, rope.long_freq_factors):
            pairs = rope.pairs(a.head_dim)
            require(len(listed) in (0, pairs), "rope_freqs.weight", f"{pairs} numbers, one for each pair", len(listed))
        return rope

    def _freq_factors(self, name: str) -> tuple[float, ...]:
        if name not in self.file.shapes():
            return ()
        values = self.file.read(name).ravel()
        require(bool((np.isfinite(values) & (values > 0)).all()), name, "positive numbers", values.tolist())
        return () if bool((values == 1).all()) else tuple(float(x) for x in values)


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """The file has the innermost axis first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _query_scale(sizes: dict[str, Any], layers_of_27b: int) -> dict[str, Any]:
    # The 27B models scale queries by the width over the heads; the file does not say so.
    largest = sizes["num_hidden_layers"] == layers_of_27b
    return {"query_pre_attn_scalar": sizes["hidden_size"] // sizes["num_attention_heads"] if largest else sizes["head_dim"]}


def _share(turned: int, head_dim: int) -> float:
    """A fraction of a head that is so many coordinates when it is rounded down."""
    share = turned / head_dim
    return share if int(head_dim * share) == turned else math.nextafter(share, 2)

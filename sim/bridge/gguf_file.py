"""GGUF files: their tensors, dequantised one at a time, their architecture and their tokenizer, from their metadata.

The package `gguf` reads the format; what is here puts its keys into the terms of `sim.bridge.architecture`.
"""

import mmap
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sim.bridge.architecture import Architecture, from_config
from sim.bridge.checkpoint import reading
from ufm._check import require

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Quantised types that are read, beside F32, F16 and BF16."""

_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
}


class _Reader(gguf.GGUFReader):
    """A reader whose data are a plain array: metadata are read in 250,000 views, which are dear of a memmap."""

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
            self._tensors = {one.name: one for one in self._reader.tensors}
        part, parts = self.metadata("split.no", 0), self.metadata("split.count", 1)
        got = f"part {part + 1} of {parts} in {path.name}: join them with llama-gguf-split --merge"
        require(parts in (0, 1), "model", "a GGUF file that is not split", got)

    def metadata(self, key: str, default: Any = None) -> Any:
        """A value of the metadata, in Python types."""
        field = self._reader.get_field(key)
        if field is None:
            return default
        with reading(self.path, f"a readable {key}"):
            return field.contents()

    def forget_metadata(self) -> None:
        """Free what they take, a quarter of a million Python objects; tensors can still be read."""
        self._reader.fields.clear()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name, ``[out, in]`` for matrices."""
        return {name: _shape(one) for name, one in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, in float32."""
        one = self._tensors[name]
        kind = one.tensor_type.name
        known = ("F32", "F16", "BF16", *QUANTISED)
        require(kind in known, name, f"a type of {', '.join(known)}", kind)
        # What the scale of a damaged block gives is found by the check for finite weights.
        with reading(self.path, "a whole GGUF file"), np.errstate(all="ignore"):
            values = gguf.dequantize(one.data, one.tensor_type).reshape(_shape(one))
        self._reader.let_go()
        return values

    @cached_property
    def architecture(self) -> Architecture:
        """What the metadata says.

        Raises:
            ValueError: an unknown architecture, or a key that is missing.
        """
        kind = self.metadata("general.architecture")
        require(kind in _FAMILIES, "general.architecture", f"one of {', '.join(_FAMILIES)}", repr(kind))
        config = {ours: self.metadata(f"{kind}.{theirs}") for ours, theirs in _KEYS.items()}
        heads, width = config["num_attention_heads"], config["hidden_size"]
        config |= {
            "model_type": _FAMILIES[kind],
            "vocab_size": self.shapes().get("token_embd.weight", (0,))[0],
            "tie_word_embeddings": "output.weight" not in self.shapes(),
            "attention_bias": "blk.0.attn_q.bias" in self.shapes(),
            "rms_norm_eps": config["rms_norm_eps"] or config["layer_norm_epsilon"],
        }
        if isinstance(config["rope_factor"], float) and config["rope_type"] not in (None, "none"):
            config["rope_scaling"] = {"type": config["rope_type"], "factor": config["rope_factor"]}
        if kind == "gpt2":
            config |= {"n_embd": width, "n_head": heads, "n_layer": config["num_hidden_layers"]}
            config |= {"n_inner": config["intermediate_size"], "n_positions": config["max_position_embeddings"]}
        if kind == "gemma2":
            config |= {"attn_logit_softcapping": config["attn_logit_softcapping"] or 50.0}
            config |= {"final_logit_softcapping": config["final_logit_softcapping"] or 30.0}
        if kind.startswith("gemma") and config["head_dim"] is not None:
            # The 27B models scale queries by the width over the heads; the file does not say so.
            whole = config["num_hidden_layers"] in (46, 62)
            config["query_pre_attn_scalar"] = width // heads if whole else config["head_dim"]
        if "rope_freqs.weight" in self._tensors:
            factors = self.read("rope_freqs.weight")
            require(
                bool(np.all(factors == 1)),
                "rope_freqs.weight",
                "rotary frequencies that are not scaled one by one",
                "others",
            )
        return from_config({key: value for key, value in config.items() if value is not None})


def _shape(one: gguf.ReaderTensor) -> tuple[int, ...]:
    """The file has the innermost axis first."""
    return tuple(int(n) for n in reversed(one.shape))


_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_type": "rope.scaling.type",
    "rope_factor": "rope.scaling.factor",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

"""Where a checkpoint has the parameters of `sim.bridge.decoder`: one table for each way of naming them.

An entry is the template of a name, with ``{}`` for the layer, and what is done to the tensor. A family needs a table here
only if its names are not those of Llama; whether GGUF files permute its queries and keys has to be said for every family.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from sim.bridge.config import Config
from sim.bridge.parameters import axes
from ufm._check import require

Change = Callable[[np.ndarray, Config], np.ndarray]


class Entry(NamedTuple):
    """A tensor of a checkpoint: the template of its name, and what is done to it."""

    template: str
    change: Change


Table = dict[str, Entry]


def _same(x: np.ndarray, a: Config) -> np.ndarray:
    return x


def _transposed(x: np.ndarray, a: Config) -> np.ndarray:
    return x.T


def _plus_one(x: np.ndarray, a: Config) -> np.ndarray:
    """Gemma stores gains less one."""
    return x.astype(np.float32) + np.float32(1)


# Matrices and biases that are stored as one. What is stored has rows for outputs, a bias has no other axis, and transposing
# what is taken out gives a matrix as ``[in, out]`` and leaves a bias as it is.


def _third(k: int, *, transposed: bool = False) -> Change:
    """Queries, keys or values of GPT-2, of equal size, one after the other along the last axis."""

    def change(x: np.ndarray, a: Config) -> np.ndarray:
        return np.split(x.T if transposed else x, 3, axis=-1)[k]

    return change


def _of_heads(k: int) -> Change:
    """Queries, keys or values of GPT-NeoX: each head has its own three, one after the other."""

    def change(x: np.ndarray, a: Config) -> np.ndarray:
        size = 3 * a.num_heads * a.head_dim
        require(x.shape[0] == size, "tensor", f"{size} rows, queries, keys and values of {a.num_heads} heads", x.shape[0])
        return x.reshape(a.num_heads, 3, a.head_dim, *x.shape[1:])[:, k].reshape(-1, *x.shape[1:]).T

    return change


def _rows(k: int, sizes: Callable[[Config], tuple[int, ...]]) -> Change:
    """The k-th of several, of these numbers of rows."""

    def change(x: np.ndarray, a: Config) -> np.ndarray:
        parts = sizes(a)
        require(x.shape[0] == sum(parts), "tensor", f"{' + '.join(map(str, parts))} rows", x.shape[0])
        return np.split(x, np.cumsum(parts)[:-1])[k].T

    return change


def _qkv_rows(a: Config) -> tuple[int, ...]:
    return a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.num_kv_heads * a.head_dim


def _mlp_rows(a: Config) -> tuple[int, ...]:
    return a.d_mlp, a.d_mlp


def _unpermuted(heads: Callable[[Config], int]) -> Change:
    """Rows in the order of rotary halves; GGUF files of Llama have neighbours in pairs, in biases too."""

    def change(x: np.ndarray, a: Config) -> np.ndarray:
        n = heads(a)
        require(x.shape[0] % (2 * n) == 0, "tensor", f"rows for {n} heads", f"shape {x.shape}")
        return x.reshape(n, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape).T

    return change


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def _llama(prefix: str, gain: Change = _same) -> Table:
    """Names of Llama, Mistral, Qwen, SmolLM, Granite and the first Gemma."""
    layer = f"{prefix}layers.{{}}."
    linear = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj"}
    linear |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    table = {f"blocks.{ours}": Entry(f"{layer}{theirs}.weight", _transposed) for ours, theirs in linear.items()}
    table |= {f"blocks.{ours}_bias": Entry(f"{layer}{theirs}.bias", _same) for ours, theirs in linear.items()}
    table |= {f"blocks.{kind}_norm": Entry(f"{layer}self_attn.{kind[0]}_norm.weight", gain) for kind in ("query", "key")}
    table |= {
        "blocks.attention_norm": Entry(f"{layer}input_layernorm.weight", gain),
        "blocks.mlp_norm": Entry(f"{layer}post_attention_layernorm.weight", gain),
        "embedding": Entry(f"{prefix}embed_tokens.weight", _same),
        "norm": Entry(f"{prefix}norm.weight", gain),
    }
    return table


def _gemma(prefix: str) -> Table:
    return _llama(prefix, _plus_one)


def _with_post_norms(prefix: str, gain: Change = _same) -> Table:
    layer = f"{prefix}layers.{{}}."
    return _llama(prefix, gain) | {
        "blocks.after_attention_norm": Entry(f"{layer}post_attention_layernorm.weight", gain),
        "blocks.mlp_norm": Entry(f"{layer}pre_feedforward_layernorm.weight", gain),
        "blocks.after_mlp_norm": Entry(f"{layer}post_feedforward_layernorm.weight", gain),
    }


def _gemma_with_post_norms(prefix: str) -> Table:
    return _with_post_norms(prefix, _plus_one)


def _phi3(prefix: str) -> Table:
    layer = f"{prefix}layers.{{}}."
    table = _llama(prefix)
    for k, ours in enumerate(("query", "key", "value")):
        table[f"blocks.{ours}"] = Entry(f"{layer}self_attn.qkv_proj.weight", _rows(k, _qkv_rows))
    for k, ours in enumerate(("gate", "up")):
        table[f"blocks.{ours}"] = Entry(f"{layer}mlp.gate_up_proj.weight", _rows(k, _mlp_rows))
    return table


def _with_bias(ours: str, theirs: str, weight: str, change: Change, of_bias: Change = _same) -> Table:
    """A weight of the blocks and its bias, which stand beside each other under one name."""
    return {f"blocks.{ours}": Entry(f"{theirs}.{weight}", change), f"blocks.{ours}_bias": Entry(f"{theirs}.bias", of_bias)}


def _gpt_neox(prefix: str) -> Table:
    layer = f"{prefix}layers.{{}}."
    table = {
        "embedding": Entry(f"{prefix}embed_in.weight", _same),
        "norm": Entry(f"{prefix}final_layer_norm.weight", _same),
        "norm_bias": Entry(f"{prefix}final_layer_norm.bias", _same),
    }
    for ours, theirs in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        table |= _with_bias(ours, f"{layer}{theirs}", "weight", _same)
    for k, ours in enumerate(("query", "key", "value")):
        table |= _with_bias(ours, f"{layer}attention.query_key_value", "weight", _of_heads(k), _of_heads(k))
    for ours, theirs in (("out", "attention.dense"), ("up", "mlp.dense_h_to_4h"), ("down", "mlp.dense_4h_to_h")):
        table |= _with_bias(ours, f"{layer}{theirs}", "weight", _transposed)
    return table


def _gpt2(prefix: str, weight: str = "weight") -> Table:
    """Names of GPT-2, whose matrices are ``[in, out]``.

    Flax has them as ``[out, in]``, and other names for gains and embeddings.
    """
    layer, flax = f"{prefix}h.{{}}.", weight == "kernel"
    gain, embedding = ("scale", "embedding") if flax else ("weight", "weight")
    matrix = _transposed if flax else _same
    table = {
        "embedding": Entry(f"{prefix}wte.{embedding}", _same),
        "positions": Entry(f"{prefix}wpe.{embedding}", _same),
        "norm": Entry(f"{prefix}ln_f.{gain}", _same),
        "norm_bias": Entry(f"{prefix}ln_f.bias", _same),
    }
    for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        table |= _with_bias(ours, f"{layer}{theirs}", gain, _same)
    for k, ours in enumerate(("query", "key", "value")):
        table |= _with_bias(ours, f"{layer}attn.c_attn", weight, _third(k, transposed=flax), _third(k))
    for ours, theirs in (("out", "attn.c_proj"), ("up", "mlp.c_fc"), ("down", "mlp.c_proj")):
        table |= _with_bias(ours, f"{layer}{theirs}", weight, matrix)
    return table


_NAMED: dict[str, Callable[[str], Table]] = {
    "gpt2": _gpt2,
    "gemma": _gemma,
    "gemma2": _gemma_with_post_norms,
    "gemma3": _gemma_with_post_norms,
    "olmo2": _with_post_norms,
    "phi3": _phi3,
    "gpt_neox": _gpt_neox,
}
"""Whose names are not those of Llama."""

_PREFIXES = {
    "gpt2": ("transformer.",),
    "gpt_neox": ("gpt_neox.",),
    "gemma3": ("model.", "language_model.model.", "model.language_model.", "language_model."),
}
"""The prefixes of names, where they are not "model."; there is none where a model was saved without its unembedding."""

_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "embed_out.weight")


# --- GGUF -------------------------------------------------------------------------------------------------------------

_PERMUTED = dict.fromkeys(("llama", "mistral", "smollm3", "granite"), True) | dict.fromkeys(
    ("gemma", "gemma2", "gemma3", "gpt2", "gpt_neox", "olmo2", "phi3", "qwen2", "qwen3"), False
)
"""Whether llama.cpp permutes the rows of queries and keys. Every family is named: a wrong order raises no error."""


def _gguf(family: str) -> Table:
    """Names in GGUF files, which have matrices as ``[out, in]`` and Gemma's gains as they are used."""
    linear = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output"}
    linear |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    norms = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm", "query_norm": "attn_q_norm", "key_norm": "attn_k_norm"}
    norms |= {"after_attention_norm": "post_attention_norm", "after_mlp_norm": "post_ffw_norm"}
    table = {f"blocks.{ours}": Entry(f"blk.{{}}.{theirs}.weight", _transposed) for ours, theirs in linear.items()}
    table |= {f"blocks.{ours}_bias": Entry(f"blk.{{}}.{theirs}.bias", _same) for ours, theirs in (linear | norms).items()}
    table |= {f"blocks.{ours}": Entry(f"blk.{{}}.{theirs}.weight", _same) for ours, theirs in norms.items()}
    table |= {
        "embedding": Entry("token_embd.weight", _same),
        "positions": Entry("position_embd.weight", _same),
        "unembedding": Entry("output.weight", _same),
        "norm": Entry("output_norm.weight", _same),
        "norm_bias": Entry("output_norm.bias", _same),
    }
    if _PERMUTED[family]:
        for part in ("weight", "bias"):
            suffix = "" if part == "weight" else "_bias"
            table[f"blocks.query{suffix}"] = Entry(f"blk.{{}}.attn_q.{part}", _unpermuted(lambda a: a.num_heads))
            table[f"blocks.key{suffix}"] = Entry(f"blk.{{}}.attn_k.{part}", _unpermuted(lambda a: a.num_kv_heads))
    return table


def _gguf_fused(family: str) -> Table:
    """The names where queries, keys and values are one tensor, and gate and up one where there is a gate."""
    table = _gguf(family)
    for k, ours in enumerate(("query", "key", "value")):
        table[f"blocks.{ours}"] = Entry("blk.{}.attn_qkv.weight", _rows(k, _qkv_rows))
        table[f"blocks.{ours}_bias"] = Entry("blk.{}.attn_qkv.bias", _rows(k, _qkv_rows))
    if family == "phi3":
        for k, ours in enumerate(("gate", "up")):
            table[f"blocks.{ours}"] = Entry("blk.{}.ffn_up.weight", _rows(k, _mlp_rows))
    return table


def _gguf_phi3_apart() -> Table:
    """Phi 3 with queries, keys and values apart, and gate and up as one."""
    fused, apart = _gguf_fused("phi3"), _gguf("phi3")
    return {**apart, **{name: fused[name] for name in ("blocks.gate", "blocks.up")}}


# --- the choice -------------------------------------------------------------------------------------------------------


def _tables(family: str, kind: str) -> list[Table]:
    """The tables that a checkpoint of a family may follow."""
    if kind == "gguf":
        fused = [_gguf_fused(family)] if family in ("gpt2", "gpt_neox", "phi3") else [_gguf(family)]
        return [*fused, _gguf_phi3_apart()] if family == "phi3" else fused
    if kind == "msgpack":
        head = {"unembedding": Entry("lm_head.kernel", _transposed)}
        return [_gpt2(prefix, "kernel") | head for prefix in ("transformer.", "")]
    named, prefixes = _NAMED.get(family, _llama), (*_PREFIXES.get(family, ("model.",)), "")
    heads = ({"unembedding": Entry(head, _same)} for head in _HEADS)
    return [named(prefix) | head for head in heads for prefix in prefixes]


def table(a: Config, kind: str, names: Iterable[str]) -> Table:
    """The parameters of an architecture by our path, each with its entry; from the table that fits the names best.

    A tied embedding that is stored as the unembedding only is read from there.

    Args:
        a: the architecture.
        kind: "safetensors", "msgpack" or "gguf".
        names: of the tensors of the checkpoint.
    """
    stored, wanted = set(names), {*axes(a), "unembedding"}

    def fit(candidate: Table) -> int:
        return sum(candidate[name].template.format(0) in stored for name in wanted)

    chosen = max(_tables(a.family, kind), key=fit)
    if a.tied and chosen["embedding"].template not in stored and chosen["unembedding"].template in stored:
        chosen = {**chosen, "embedding": chosen["unembedding"]}
    return {name: chosen[name] for name in axes(a)}


_IGNORED = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def ignored(name: str, a: Config) -> bool:
    """Whether a tensor is no parameter of the decoder: a constant, a copy of the embedding, the part that sees images."""
    copy = a.tied and name.rsplit(".", 1)[0].endswith(("lm_head", "embed_out"))
    return copy or name.endswith(_IGNORED) or name.startswith(_OTHER_PARTS)

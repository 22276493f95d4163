"""Where a checkpoint has the parameters of `sim.bridge.decoder`: one table for each way of naming them.

An entry is the template of a name, with ``{}`` for the layer, and what is done to the tensor. A family is added by a
table here and a configuration in `sim.bridge.architecture`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from sim.bridge.architecture import Architecture
from sim.bridge.decoder import axes
from ufm._check import require

Change = Callable[[np.ndarray, Architecture], np.ndarray]


class Entry(NamedTuple):
    """A tensor of a checkpoint: the template of its name, and what is done to it."""

    template: str
    change: Change


def _same(x: np.ndarray, a: Architecture) -> np.ndarray:
    return x


def _transposed(x: np.ndarray, a: Architecture) -> np.ndarray:
    return x.T


def _plus_one(x: np.ndarray, a: Architecture) -> np.ndarray:
    """Gemma stores gains less one."""
    return x.astype(np.float32) + np.float32(1)


def _third(k: int, *, transposed: bool = False) -> Change:
    """Queries, keys or values out of one matrix or bias for all three."""

    def change(x: np.ndarray, a: Architecture) -> np.ndarray:
        return np.split(x.T if transposed else x, 3, axis=-1)[k]

    return change


def _unpermuted(heads: Callable[[Architecture], int]) -> Change:
    """Rows in the order of rotary halves; GGUF files of Llama have neighbours in pairs."""

    def change(x: np.ndarray, a: Architecture) -> np.ndarray:
        n = heads(a)
        require(x.ndim == 2 and x.shape[0] % (2 * n) == 0, "tensor", f"a matrix of rows for {n} heads", f"shape {x.shape}")
        return x.reshape(n, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape).T

    return change


def _llama(prefix: str, unembedding: str, gain: Change = _same) -> dict[str, Entry]:
    """Names of Llama, Mistral, Qwen and Gemma in Hugging Face checkpoints."""
    layer = f"{prefix}layers.{{}}."
    linear = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj"}
    linear |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    found = {f"blocks.{ours}": Entry(f"{layer}{theirs}.weight", _transposed) for ours, theirs in linear.items()}
    found |= {f"blocks.{ours}_bias": Entry(f"{layer}{theirs}.bias", _same) for ours, theirs in linear.items()}
    found |= {f"blocks.{kind}_norm": Entry(f"{layer}self_attn.{kind[0]}_norm.weight", gain) for kind in ("query", "key")}
    found |= {
        "blocks.attention_norm": Entry(f"{layer}input_layernorm.weight", gain),
        "blocks.mlp_norm": Entry(f"{layer}post_attention_layernorm.weight", gain),
        "embedding": Entry(f"{prefix}embed_tokens.weight", _same),
        "norm": Entry(f"{prefix}norm.weight", gain),
        "unembedding": Entry(unembedding, _same),
    }
    return found


def _gemma(prefix: str, unembedding: str) -> dict[str, Entry]:
    layer = f"{prefix}layers.{{}}."
    return _llama(prefix, unembedding, _plus_one) | {
        "blocks.after_attention_norm": Entry(f"{layer}post_attention_layernorm.weight", _plus_one),
        "blocks.mlp_norm": Entry(f"{layer}pre_feedforward_layernorm.weight", _plus_one),
        "blocks.after_mlp_norm": Entry(f"{layer}post_feedforward_layernorm.weight", _plus_one),
    }


def _gpt2(prefix: str, weight: str = "weight") -> dict[str, Entry]:
    """Names of GPT-2, whose matrices are ``[in, out]``.

    Flax has them as ``[out, in]``, and other names for gains and embeddings.
    """
    layer, flax = f"{prefix}h.{{}}.", weight == "kernel"
    gain, table = ("scale", "embedding") if flax else ("weight", "weight")
    matrix = _transposed if flax else _same
    found = {
        "embedding": Entry(f"{prefix}wte.{table}", _same),
        "positions": Entry(f"{prefix}wpe.{table}", _same),
        "unembedding": Entry(f"lm_head.{weight}", matrix),
        "norm": Entry(f"{prefix}ln_f.{gain}", _same),
        "norm_bias": Entry(f"{prefix}ln_f.bias", _same),
    }
    for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        found[f"blocks.{ours}"] = Entry(f"{layer}{theirs}.{gain}", _same)
        found[f"blocks.{ours}_bias"] = Entry(f"{layer}{theirs}.bias", _same)
    for k, ours in enumerate(("query", "key", "value")):
        found[f"blocks.{ours}"] = Entry(f"{layer}attn.c_attn.{weight}", _third(k, transposed=flax))
        found[f"blocks.{ours}_bias"] = Entry(f"{layer}attn.c_attn.bias", _third(k))
    for ours, theirs in (("out", "attn.c_proj"), ("up", "mlp.c_fc"), ("down", "mlp.c_proj")):
        found[f"blocks.{ours}"] = Entry(f"{layer}{theirs}.{weight}", matrix)
        found[f"blocks.{ours}_bias"] = Entry(f"{layer}{theirs}.bias", _same)
    return found


def _gguf(family: str) -> dict[str, Entry]:
    """Names in GGUF files, which have matrices as ``[out, in]`` and Gemma's gains as they are used."""
    linear = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output"}
    linear |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    norms = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm", "query_norm": "attn_q_norm", "key_norm": "attn_k_norm"}
    norms |= {"after_attention_norm": "post_attention_norm", "after_mlp_norm": "post_ffw_norm"}
    found = {f"blocks.{ours}": Entry(f"blk.{{}}.{theirs}.weight", _transposed) for ours, theirs in linear.items()}
    found |= {f"blocks.{ours}_bias": Entry(f"blk.{{}}.{theirs}.bias", _same) for ours, theirs in (linear | norms).items()}
    found |= {f"blocks.{ours}": Entry(f"blk.{{}}.{theirs}.weight", _same) for ours, theirs in norms.items()}
    found |= {
        "embedding": Entry("token_embd.weight", _same),
        "positions": Entry("position_embd.weight", _same),
        "unembedding": Entry("output.weight", _same),
        "norm": Entry("output_norm.weight", _same),
        "norm_bias": Entry("output_norm.bias", _same),
    }
    if family in ("llama", "mistral"):
        found["blocks.query"] = Entry("blk.{}.attn_q.weight", _unpermuted(lambda a: a.heads))
        found["blocks.key"] = Entry("blk.{}.attn_k.weight", _unpermuted(lambda a: a.kv_heads))
    if family == "gpt2":
        for k, ours in enumerate(("query", "key", "value")):
            found[f"blocks.{ours}"] = Entry("blk.{}.attn_qkv.weight", _third(k, transposed=True))
            found[f"blocks.{ours}_bias"] = Entry("blk.{}.attn_qkv.bias", _third(k))
    return found


def _tables(family: str, kind: str) -> list[dict[str, Entry]]:
    """The tables that a checkpoint of a family may follow; which one, the name of its embedding tells."""
    if kind == "gguf":
        return [_gguf(family)]
    if kind == "msgpack":
        return [_gpt2(prefix, "kernel") for prefix in ("transformer.", "")]
    if family == "gpt2":
        return [_gpt2(prefix) for prefix in ("transformer.", "")]
    if family == "gemma2":
        return [_gemma("model.", "lm_head.weight")]
    if family == "gemma3":
        plain = _gemma("model.", "lm_head.weight")
        inside = [("language_model.model.", "language_model.lm_head.weight"), ("model.language_model.", "lm_head.weight")]
        return [plain, *(_gemma(*names) for names in inside)]
    return [_llama("model.", "lm_head.weight")]


def table(a: Architecture, kind: str, names: Iterable[str]) -> dict[str, Entry]:
    """The parameters of an architecture by our path, each with its entry; the table is chosen by the names that there are.

    Args:
        a: the architecture.
        kind: "safetensors", "msgpack" or "gguf".
        names: of the tensors of the checkpoint.
    """
    there, candidates = set(names), _tables(a.family, kind)
    chosen = next((one for one in candidates if one["embedding"].template in there), candidates[0])
    return {name: chosen[name] for name in axes(a)}


_IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", "rope_freqs.weight")
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def ignored(name: str, a: Architecture) -> bool:
    """Whether a tensor is no parameter of the decoder: a constant, a copy of the embedding, the part that sees images."""
    copy = a.tied and name.rsplit(".", 1)[0].endswith("lm_head")
    return copy or name.endswith(_IGNORED) or name.startswith(_OTHER_PARTS)

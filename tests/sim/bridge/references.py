"""Small random models of every family: their configurations and weights, from which reference logits were made.

Run as a script, where torch and transformers are installed, it makes the logits again:

    python tests/sim/bridge/references.py

Weights are not stored. They follow from names and shapes of tensors alone (`weights`), in exact integer arithmetic, so that
the tests write the same checkpoint that the reference logits were computed from.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "references.npz"

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 40}
LONG |= {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 3.0, 7.0]}
PHI3 = SMALL | HEADS | {"pad_token_id": 0}
GRANITE = {"embedding_multiplier": 12.0, "attention_multiplier": 0.3, "residual_multiplier": 0.22, "logits_scaling": 8.0}
SLIDE = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
GEMMA = SMALL | HEADS | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9}

CONFIGS = {
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt2 of one layer": {"model_type": "gpt2", **GPT2, "n_layer": 1, "n_inner": 80},
    "gpt2, untied, gelu": {"model_type": "gpt2", **GPT2, "tie_word_embeddings": False, "activation_function": "gelu"},
    "llama": {"model_type": "llama", **SMALL, "num_attention_heads": 4},
    "llama, grouped, tied": {"model_type": "llama", **SMALL, **HEADS, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "llama, biases, scaled": {
        **{"model_type": "llama", **SMALL, **HEADS, "head_dim": 12, "attention_bias": True, "mlp_bias": True},
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64},
    },
    "mistral": {"model_type": "mistral", **SMALL, **HEADS, "sliding_window": None},
    "mistral, window": {"model_type": "mistral", **SMALL, **HEADS, "sliding_window": 9, "head_dim": 12},
    "mistral, tied": {
        "model_type": "mistral",
        **SMALL,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "sliding_window": 1,
        "tie_word_embeddings": True,
    },
    "qwen2": {"model_type": "qwen2", **SMALL, **HEADS},
    "qwen2, windows, tied": {"model_type": "qwen2", **SMALL, **HEADS, **SLIDE, "tie_word_embeddings": True},
    "qwen2, theta": {
        "model_type": "qwen2",
        **SMALL,
        **HEADS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen3": {"model_type": "qwen3", **SMALL, **HEADS, "head_dim": 16},
    "qwen3, windows, biases": {"model_type": "qwen3", **SMALL, **HEADS, **SLIDE, "head_dim": 8, "attention_bias": True},
    "qwen3, tied": {"model_type": "qwen3", **SMALL, **HEADS, "head_dim": 10, "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", **GEMMA},
    "gemma2, low caps": {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma2, biases, no caps": {
        **{"model_type": "gemma2", **GEMMA, "attention_bias": True, "num_hidden_layers": 2},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    },
    "gemma3": {"model_type": "gemma3_text", **GEMMA, "num_hidden_layers": 7},
    "gemma3, scaled": {
        **{"model_type": "gemma3_text", **GEMMA, "num_hidden_layers": 4, "_sliding_window_pattern": 2},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "gemma": {"model_type": "gemma", **SMALL, **HEADS, "head_dim": 16, "hidden_act": "gelu", "num_hidden_layers": 2},
    "gemma, untied, biases": {
        **{"model_type": "gemma", **SMALL, **HEADS, "head_dim": 12, "attention_bias": True, "num_hidden_layers": 2},
        "tie_word_embeddings": False,
    },
    "olmo2": {"model_type": "olmo2", **SMALL, **HEADS},
    "olmo2, biases, tied": {
        **{"model_type": "olmo2", **SMALL, **HEADS, "attention_bias": True, "tie_word_embeddings": True},
        "num_hidden_layers": 2,
    },
    "smollm3": {"model_type": "smollm3", **SMALL, **HEADS, "no_rope_layers": [1, 0, 1], "pad_token_id": 0},
    "smollm3, windows, biases": {
        **{"model_type": "smollm3", **SMALL, **HEADS, "no_rope_layer_interval": 2, "use_sliding_window": True},
        **{"sliding_window": 9, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        "pad_token_id": 0,
    },
    "phi3": {"model_type": "phi3", **PHI3, "sliding_window": 9},
    "phi3, longrope": {
        **{"model_type": "phi3", **PHI3, "original_max_position_embeddings": 40, "num_hidden_layers": 2},
        "rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
    },
    "granite": {"model_type": "granite", **SMALL, **HEADS, **GRANITE, "tie_word_embeddings": True},
    "granite, biases": {
        **{"model_type": "granite", **SMALL, **HEADS, **GRANITE, "attention_bias": True, "mlp_bias": True},
        "num_hidden_layers": 2,
    },
    "gpt_neox": {"model_type": "gpt_neox", **SMALL, "num_attention_heads": 4},
    "gpt_neox, in series": {
        **{"model_type": "gpt_neox", **SMALL, "num_attention_heads": 4, "use_parallel_residual": False},
        **{"rotary_pct": 0.5, "attention_bias": False, "num_hidden_layers": 2},
    },
    "qwen2, yarn": {"model_type": "qwen2", **SMALL, **HEADS, "rope_parameters": YARN, "num_hidden_layers": 2},
    "llama, yarn": {
        **{"model_type": "llama", **SMALL, **HEADS, "num_hidden_layers": 2},
        "rope_parameters": {
            **YARN,
            **{"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.5, "mscale_all_dim": 0.7, "truncate": False},
        },
    },
    "gemma3 among images": {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", **GEMMA, "num_hidden_layers": 2},
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 8,
            "patch_size": 4,
        },
        "mm_tokens_per_image": 1,
        "image_token_index": 60,
        "boi_token_index": 59,
        "eoi_token_index": 58,
    },
}
"""Configurations by name, in the terms of transformers."""

LENGTHS = (1, 13, 200)
"""Of single sequences."""

PADDED = (4, 21, 30)
"""Of sequences in one batch, padded on either side."""

KEPT = 40
"""How many last positions of a sequence have reference logits."""


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors by name, in float32: evenly distributed numbers whose size keeps that of what they act on."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    x = np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (29, 0xC4CEB9FE1A85EC53), (32, 0x9E3779B97F4A7C15)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    even = (x >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    if len(shape) == 1:
        gain = "norm" in name or "ln_" in name
        centre = 1 if gain and not name.endswith("bias") else 0
        return (centre + 0.3 * even).reshape(shape).astype(np.float32)
    embeds = any(part in name for part in ("embed", "wte", "wpe"))
    size = 1.0 if embeds else 1.5 * (shape[0] if "c_" in name else shape[1]) ** -0.5
    return (size * np.sqrt(3) * even).reshape(shape).astype(np.float32)


def tokens(length: int, vocabulary: int = 58, seed: int = 0) -> np.ndarray:
    """A sequence of token ids."""
    k = np.arange(length, dtype=np.int64)
    return (k * k * 7 + 31 * k + 5 + 11 * seed) % vocabulary


def batch(side: str) -> tuple[np.ndarray, np.ndarray]:
    """The sequences of `PADDED` in one batch, padded on the "left" or the "right"; and which tokens are not padding."""
    longest = max(PADDED)
    ids, mask = np.zeros((len(PADDED), longest), np.int64), np.zeros((len(PADDED), longest), bool)
    for row, length in enumerate(PADDED):
        place = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, place], mask[row, place] = tokens(length, seed=row), True
    return ids, mask


def reference(config: dict) -> tuple[dict, dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """What transformers says: the configuration as it writes it, the shapes of its tensors, and logits by case."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    kind = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
    whole = AutoConfig.for_model(**config)
    model = kind.from_config(whole, attn_implementation="eager").eval().float()
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    with torch.no_grad():
        for name, value in weights(shapes).items():
            parameters[name].copy_(torch.from_numpy(value))

        def logits(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            attended = torch.from_numpy(mask.astype(np.int64))
            positions = torch.clamp(torch.cumsum(attended, dim=1) - 1, min=0)
            return model(torch.from_numpy(ids), attention_mask=attended, position_ids=positions).logits.numpy()

        results = {}
        for length in LENGTHS:
            results[str(length)] = logits(tokens(length)[None], np.ones((1, length), bool))[0, -KEPT:]
        for side in ("left", "right"):
            ids, mask = batch(side)
            results[side] = logits(ids, mask)[mask]
    return json.loads(whole.to_json_string(use_diff=False)), shapes, results


def main() -> None:
    """Write the file of references."""
    kept: dict[str, np.ndarray] = {}
    about = {}
    for name, config in CONFIGS.items():
        settings, shapes, results = reference(config)
        about[name] = {"config": settings, "shapes": shapes}
        kept |= {f"{name}|{case}": values for case, values in results.items()}
    np.savez_compressed(FILE, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **kept)
    print(f"{len(CONFIGS)} models, {FILE.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

"""The architecture of a model from its Hugging Face `config.json`.

A setting that is absent is what transformers takes for the family (`DEFAULTS`). A value that the decoder
(`sim.bridge.decoder`) does not implement is refused rather than ignored.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sim.bridge import rope
from sim.bridge.config import Config
from sim.bridge.config_file import Settings
from ufm._check import require, shown, whole_number


def from_config(config: Mapping[str, Any]) -> Config:
    """The architecture of a Hugging Face `config.json`.

    Raises:
        ValueError: an unknown architecture (the message lists the known ones), a mixture of experts, a quantised model, a
            setting that is malformed or not implemented.
    """
    outer = Settings(config)
    family = outer.get("model_type")
    mixed = is_mixture(str(family), config)
    require(not mixed, "model_type", "a dense model", f"{family!r}, a mixture of experts, which is not implemented")
    require(
        isinstance(family, str) and family in FAMILIES, "model_type", f"one of {', '.join(sorted(FAMILIES))}", repr(family)
    )
    settings = config
    if family == "gemma3" and outer.has("text_config"):
        # Whether the unembedding is the embedding is a setting of the whole, and the family's default where it says nothing.
        settings = {**Settings(config["text_config"], name="text_config").raw, "tie_word_embeddings": True}
        settings |= {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    for holder in (config, settings):
        _refuse_quantised(holder)
    for key in ("num_hidden_layers", "n_layer"):
        layers = settings.get(key)
        require(not isinstance(layers, int) or layers <= MOST_LAYERS, key, f"at most {MOST_LAYERS} layers", shown(layers))
    read = FAMILIES[family](Settings(settings, DEFAULTS["gemma3_text" if family == "gemma3" else family]))
    _check(read)
    return read


MOST_LAYERS = 2**16
"""More than any model has: a configuration that says more is damaged."""


def is_mixture(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a model is a mixture of experts, by its type or by how many experts it says that it has."""
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    counts = [whole_number(key, config[key], 0) for key in keys if config.get(key) is not None]
    named = "moe" in kind or kind in ("mixtral", "dbrx", "gpt_oss", "deepseek_v2", "deepseek_v3", "llama4", "jamba")
    return named or any(counts)


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    name = next((key for key in ("quantization_config", "compression_config", "quantization") if config.get(key)), None)
    if name is None:
        return
    about = config[name]
    method = about.get("quant_method") if isinstance(about, Mapping) else None
    if method is None:
        loads = isinstance(about, Mapping) and any(key in about for key in ("load_in_4bit", "load_in_8bit"))
        method = "MLX" if name == "quantization" else "bitsandbytes" if loads else "an unknown method"
    refuse_quantised(name, str(method))


def refuse_quantised(name: str, method: str) -> None:
    """Refuse a quantised checkpoint, and say what to do."""
    raise ValueError(f"{name}: quantised with {method}; load an unquantised or GGUF file")


# --- what transformers takes where a setting is absent ----------------------------------------------------------------


def _sizes(vocabulary: int, width: int, hidden: int, layers: int, heads: int, kv_heads: int | None, context: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
    }


_LLAMA = {
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rope_theta": 1e4,
    "sliding_window": None,
}
_QWEN = {
    **_LLAMA,
    **_sizes(151_936, 4096, 22_016, 32, 32, 32, 32_768),
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = {**_LLAMA, "head_dim": 256, "tie_word_embeddings": True, "use_bidirectional_attention": None}
_GEMMA_2 = {
    **_GEMMA,
    **_sizes(256_000, 2304, 9216, 26, 8, 4, 8192),
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50_257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    "llama": {**_LLAMA, **_sizes(32_000, 4096, 11_008, 32, 32, None, 2048)},
    "mistral": {**_LLAMA, **_sizes(32_000, 4096, 14_336, 32, 32, 8, 131_072), "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "gemma": {**_GEMMA, **_sizes(256_000, 3072, 24_576, 28, 16, 16, 8192), "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": _GEMMA_2,
    "gemma3_text": {
        **_GEMMA_2,
        "vocab_size": 262_208,
        "use_bidirectional_attention": False,
        "max_position_embeddings": 131_072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "olmo2": {**_LLAMA, **_sizes(50_304, 4096, 11_008, 32, 32, None, 2048), "rms_norm_eps": 1e-5},
    "smollm3": {
        **_LLAMA,
        **_sizes(128_256, 2048, 11_008, 36, 16, 4, 32_768),
        "tie_word_embeddings": True,
        "rope_theta": 2e6,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
    },
    "phi3": {
        **_LLAMA,
        **_sizes(32_064, 3072, 8192, 32, 32, None, 4096),
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "granite": {
        **_LLAMA,
        **_sizes(32_000, 4096, 11_008, 32, 32, None, 2048),
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    "gpt_neox": {
        "vocab_size": 50_432,
        "hidden_size": 6144,
        "intermediate_size": 24_576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "rotary_pct": 0.25,
        "rotary_emb_base": 1e4,
    },
}
"""The defaults of the configuration classes of transformers 5, by family; None where the value follows from others."""


# --- the families -----------------------------------------------------------------------------------------------------


def _common(s: Settings, family: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The settings that every family shares; `names` maps those that a family calls differently."""
    sizes = {"d_model": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
    sizes |= {"vocab_size": "vocab_size", "max_seq_len": "max_position_embeddings"}
    read = {field: s.whole(names.get(name, name)) for field, name in sizes.items()}
    return {"family": family, **read, "windows": (None,) * read["num_layers"], "tied": s.flag("tie_word_embeddings")}


def _gpt_like(s: Settings, family: str, names: Mapping[str, str], **other: Any) -> Config:
    """The configuration that GPT-2 and GPT-NeoX share: LayerNorm, no gate, keys for every head, biases in the MLP.

    Args:
        s: the settings.
        family: which.
        names: its own for settings that most families call by other names.
        other: what is the family's own.
    """
    common = _common(s, family, names)
    width, heads = common["d_model"], common["num_heads"]
    require(width % heads == 0, names.get("hidden_size", "hidden_size"), f"a multiple of the {heads} heads", width)
    return Config(
        **{
            **common,
            "num_kv_heads": heads,
            "head_dim": width // heads,
            "norm": "layer",
            "eps": s.number(names.get("layer_norm_eps", "layer_norm_eps")),
            "activation": s.activation(names.get("hidden_act", "hidden_act")),
            "gated": False,
            "mlp_bias": True,
            "query_scale": (width // heads) ** -0.5,
            **other,
        }
    )


def _gpt2(s: Settings) -> Config:
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    names |= {"max_position_embeddings": "n_positions"}
    # The names that most families have stand for those of this one.
    s = Settings({**s.raw, **{key: s.raw[usual] for usual, key in names.items() if usual in s.raw}})
    names |= {"layer_norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function"}
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        s.refuse(key, False)
    return _gpt_like(
        s,
        "gpt2",
        names,
        d_mlp=s.maybe_whole("n_inner") or 4 * s.whole("n_embd"),
        learned_positions=True,
        qkv_bias=True,
        out_bias=True,
        **({} if s.flag("scale_attn_weights") else {"query_scale": 1.0}),
    )


def _llama_like(s: Settings, family: str, **other: Any) -> Config:
    """The configuration that Llama and its descendants share."""
    common = _common(s, family, {})
    head_dim = other.pop("head_dim", None) or s.maybe_whole("head_dim") or max(1, common["d_model"] // common["num_heads"])
    return Config(
        **{
            **common,
            "num_kv_heads": s.maybe_whole("num_key_value_heads") or common["num_heads"],
            "head_dim": head_dim,
            "d_mlp": s.whole("intermediate_size"),
            "eps": s.number("rms_norm_eps"),
            "activation": other.get("activation") or s.activation("hidden_act"),
            "rope": other.get("rope") or rope.read(s),
            "query_scale": head_dim**-0.5,
            **other,
        }
    )


def _biases(s: Settings, *, mlp: bool = False) -> dict[str, bool]:
    bias = s.flag("attention_bias")
    return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": mlp and s.flag("mlp_bias")}


def _llama(s: Settings) -> Config:
    return _llama_like(s, "llama", **_biases(s, mlp=True))


def _everywhere(s: Settings) -> tuple[int | None, ...]:
    """Read the window that all layers share; None for each layer where there is none."""
    window = s.maybe_whole("sliding_window")
    windows = s.windows(lambda i: window is not None)
    expected = f"the same for all layers, and a sliding_window of {window}"
    require(set(windows) == {window}, "layer_types", expected, s.get("layer_types"))
    return windows


def _mistral(s: Settings) -> Config:
    return _llama_like(s, "mistral", windows=_everywhere(s))


def _qwen(s: Settings, family: str, **other: Any) -> Config:
    first, used = s.whole("max_window_layers", least=0), s.flag("use_sliding_window") and s.has("sliding_window")
    return _llama_like(s, family, windows=s.windows(lambda i: used and i >= first, used=used), **other)


def _qwen2(s: Settings) -> Config:
    return _qwen(s, "qwen2", qkv_bias=True)


def _qwen3(s: Settings) -> Config:
    return _qwen(s, "qwen3", head_dim=s.whole("head_dim"), qk_norm=True, **_biases(s))


def _gemma_like(s: Settings, family: str, **other: Any) -> Config:
    """The configuration that all Gemma share."""
    s.refuse("use_bidirectional_attention", False)
    more = {"head_dim": s.whole("head_dim"), "embedding_scale": s.whole("hidden_size") ** 0.5, **_biases(s)}
    return _llama_like(s, family, **more, **other)


def _gemma(s: Settings) -> Config:
    # The first files say gelu where its approximation is meant.
    activation = "gelu_tanh" if s.get("hidden_act") == "gelu" else s.activation("hidden_act")
    return _gemma_like(s, "gemma", activation=activation)


def _gemma_with_windows(s: Settings, family: str, every: int, **other: Any) -> Config:
    """The configuration that the second and third Gemma share.

    Args:
        s: the settings.
        family: which.
        every: unless `layer_types` is given, one layer in so many has no window.
        other: what is the family's own.
    """
    return _gemma_like(
        s,
        family,
        activation=s.activation("hidden_activation"),
        windows=s.windows(lambda i: (i + 1) % every != 0),
        post_norm=True,
        query_scale=s.number("query_pre_attn_scalar") ** -0.5,
        final_softcap=s.maybe("final_logit_softcapping"),
        **other,
    )


def _gemma2(s: Settings) -> Config:
    return _gemma_with_windows(s, "gemma2", 2, attention_softcap=s.maybe("attn_logit_softcapping"))


def _gemma3(s: Settings) -> Config:
    # Nothing in transformers uses its attn_logit_softcapping.
    return _gemma_with_windows(
        s,
        "gemma3",
        s.whole("sliding_window_pattern"),
        rope=rope.read(s, layer_type="full_attention"),
        local_rope=rope.read(s, theta="rope_local_base_freq", layer_type="sliding_attention"),
        qk_norm=True,
    )


def _olmo2(s: Settings) -> Config:
    return _llama_like(s, "olmo2", pre_norm=False, post_norm=True, qk_norm=True, whole_qk_norm=True, **_biases(s))


def _smollm3(s: Settings) -> Config:
    layers, every = s.whole("num_hidden_layers"), s.whole("no_rope_layer_interval")
    turned = s.get("no_rope_layers")
    if turned is None:
        turned = [int((i + 1) % every != 0) for i in range(layers)]
    ok = isinstance(turned, list) and all(x in (0, 1) for x in turned) and len(turned) >= layers
    require(ok, "no_rope_layers", f"0 or 1 for each of {layers} layers", turned)
    nope_layers = tuple(i for i in range(layers) if not turned[i])
    slides = s.flag("use_sliding_window") and s.has("sliding_window")
    windows = s.windows(lambda i: slides and i in nope_layers)
    return _llama_like(s, "smollm3", windows=windows, nope_layers=nope_layers, **_biases(s, mlp=True))


def _phi3(s: Settings) -> Config:
    rotary = rope.read(s, fraction="partial_rotary_factor", renamed={"su": "longrope", "yarn": "longrope"})
    require(rotary.scaling in ("default", "longrope"), "rope_type", "default or longrope, in this family", rotary.scaling)
    return _llama_like(s, "phi3", windows=_everywhere(s), rope=rotary)


def _granite(s: Settings) -> Config:
    return _llama_like(
        s,
        "granite",
        query_scale=s.number("attention_multiplier"),
        embedding_scale=s.number("embedding_multiplier"),
        residual_scale=s.number("residual_multiplier"),
        logit_scale=1 / s.number("logits_scaling"),
        **_biases(s, mlp=True),
    )


def _gpt_neox(s: Settings) -> Config:
    return _gpt_like(
        s,
        "gpt_neox",
        {},
        d_mlp=s.whole("intermediate_size"),
        rope=rope.read(s, theta="rotary_emb_base", fraction="rotary_pct"),
        parallel_residual=s.flag("use_parallel_residual"),
        **_biases(s) | {"mlp_bias": True},
    )


FAMILIES: dict[str, Callable[[Settings], Config]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "phi3": _phi3,
    "granite": _granite,
    "gpt_neox": _gpt_neox,
}
"""The known families by the `model_type` of their configuration."""


def _check(a: Config) -> None:
    require(
        a.num_heads % a.num_kv_heads == 0, "num_key_value_heads", f"a divisor of the {a.num_heads} heads", a.num_kv_heads
    )
    for rotary in a.ropes:
        pairs = rotary.pairs(a.head_dim)
        fits = 0 < 2 * pairs <= a.head_dim and (rotary.fraction < 1 or a.head_dim % 2 == 0)
        require(fits, "head_dim", "an even number of coordinates to turn, for rotary positions", a.head_dim)
        for key, listed in (("short_factor", rotary.freq_factors), ("long_factor", rotary.long_freq_factors)):
            require(len(listed) in (0, pairs), key, f"{pairs} numbers, one for each pair of coordinates", len(listed))

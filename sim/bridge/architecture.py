"""What a decoder is made of: one description for all families, read from a Hugging Face `config.json`.

Families differ in a few switches. `from_config` reads those of the families in `FAMILIES` and refuses every value that the
decoder (`sim.bridge.decoder`) does not implement, rather than ignoring it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ufm._check import require

Settings = Mapping[str, Any]

Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Rope:
    """Rotary positions.

    Attributes:
        theta: base of the wavelengths.
        scaling: "default"; "linear": all wavelengths are `factor` times as long; "llama3": the long ones are.
        factor: of the scaling.
        low, high: "llama3": context lengths, in wavelengths, below and above which all or nothing is scaled.
        original: "llama3": the context length before scaling.
    """

    theta: float
    scaling: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def frequencies(self, head_dim: int) -> tuple[float, ...]:
        """Radians per position of every pair of coordinates, ``[head_dim / 2]``."""
        plain = [self.theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        if self.scaling == "linear":
            return tuple(f / self.factor for f in plain)
        if self.scaling == "llama3":
            return tuple(self._llama3(f) for f in plain)
        return tuple(plain)

    def _llama3(self, frequency: float) -> float:
        turns = self.original * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - self.low) / (self.high - self.low)))
        return kept * frequency + (1 - kept) * frequency / self.factor


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer. Hashable, so that it is part of a compiled program's key.

    Attributes:
        family: a key of `FAMILIES`.
        vocabulary: V.
        width: d, of the residual stream.
        layers: L, the number of blocks.
        heads, kv_heads: of queries; of keys and values (grouped-query attention if fewer).
        head_dim: of a head; ``heads * head_dim`` need not be d.
        hidden: width of the MLP.
        context: the longest sequence.
        norm, eps: of all norms.
        activation, gated: of the MLP, ``down(act(gate x) * up x)`` if gated, else ``down(act(up x))``.
        learned_positions: added to the embedding; otherwise positions are rotary.
        rope: of layers without a window; None with learned positions.
        local_rope: of layers with one, if it differs.
        windows: for each layer, how many positions back it sees, itself included; None for all.
        qkv_bias, out_bias, mlp_bias: which projections have biases.
        qk_norm: whether queries and keys are normalised, head by head.
        sandwich: whether a norm also follows attention and MLP.
        query_scale: what attention logits are multiplied with.
        embedding_scale: what embeddings are multiplied with.
        attention_softcap, final_softcap: ``c tanh(x / c)`` on attention logits, on logits.
        tied: whether the unembedding is the embedding.
    """

    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context: int
    norm: Norm = "rms"
    eps: float = 1e-6
    activation: Activation = "silu"
    gated: bool = True
    learned_positions: bool = False
    rope: Rope | None = None
    local_rope: Rope | None = None
    windows: tuple[int | None, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich: bool = False
    query_scale: float = 1.0
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    tied: bool = True

    @property
    def parameters(self) -> int:
        """How many numbers the decoder holds."""
        from sim.bridge.decoder import shapes

        return sum(math.prod(shape) for shape in shapes(self).values())

    @property
    def rotations(self) -> tuple[tuple[float, ...], ...]:
        """The sets of rotary frequencies that occur, `rope`'s first."""
        ropes = [rope for rope in (self.rope, self.local_rope) if rope is not None]
        return tuple(rope.frequencies(self.head_dim) for rope in ropes)

    @property
    def rotation_of_layer(self) -> tuple[int, ...]:
        """Which of `rotations` every layer uses."""
        return tuple(int(window is not None and self.local_rope is not None) for window in self.windows)


def from_config(config: Settings) -> Architecture:
    """The architecture of a Hugging Face `config.json`.

    Raises:
        ValueError: an unknown architecture (the message lists the known ones), a setting that is missing, malformed, or
            not implemented.
    """
    require(isinstance(config, Mapping), "config", "an object of settings", type(config).__name__)
    family = config.get("model_type")
    require(family in FAMILIES, "model_type", f"one of {', '.join(sorted(FAMILIES))}", repr(family))
    assert isinstance(family, str)
    settings = _Settings(config["text_config"] if family == "gemma3" and "text_config" in config else config)
    architecture = FAMILIES[family](settings)
    _check(architecture)
    return architecture


class _Settings:
    """Settings with checked reads: errors name the key."""

    def __init__(self, raw: Any) -> None:
        require(isinstance(raw, Mapping), "config", "an object of settings", type(raw).__name__)
        self.raw: Settings = raw

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.raw.get(key)
        value = default if value is None else value
        require(isinstance(value, int) and not isinstance(value, bool) and value > 0, key, "a positive whole number", value)
        assert isinstance(value, int)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.raw.get(key)
        value = default if value is None else value
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        require(ok, key, "a positive number", value)
        assert isinstance(value, int | float)
        return float(value)

    def maybe(self, key: str) -> float | None:
        """A positive number or nothing."""
        return None if self.raw.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw.get(key)
        value = default if value is None else value
        require(isinstance(value, bool), key, "true or false", value)
        return bool(value)

    def activation(self, *keys: str, default: str) -> Activation:
        """The activation under the first key that is there."""
        name = next((self.raw[key] for key in keys if self.raw.get(key) is not None), default)
        require(name in _ACTIVATIONS, keys[0], f"one of {', '.join(_ACTIVATIONS)}", repr(name))
        return _ACTIVATIONS[name]

    def refuse(self, key: str, *allowed: Any) -> None:
        """Refuse what is not implemented."""
        value = self.raw.get(key)
        require(
            value is None or value in allowed,
            key,
            f"{' or '.join(map(str, allowed)) or 'nothing'} (else not implemented)",
            value,
        )

    def rope(self, theta: float, key: str = "rope_theta", kind: str | None = None) -> Rope:
        """Rotary positions, in the spelling of any version of transformers.

        Args:
            theta: the family's default.
            key: where older files have theta.
            kind: where newer files distinguish, "full_attention" or "sliding_attention".
        """
        settings = self.raw.get("rope_parameters")
        old = settings is None
        if old:
            settings = (self.raw.get("rope_scaling") or {}) if kind != "sliding_attention" else {}
        elif kind is not None and isinstance(settings, Mapping) and kind in settings:
            settings = settings[kind] or {}
        rope = _Settings(settings)
        base = self.number(key, theta) if old or rope.raw.get("rope_theta") is None else rope.number("rope_theta")
        scaling = rope.raw.get("rope_type", rope.raw.get("type", "default"))
        require(scaling in ("default", "linear", "llama3"), "rope_type", "default, linear or llama3", repr(scaling))
        rope.refuse("partial_rotary_factor", 1, 1.0)
        if scaling == "default":
            return Rope(base)
        if scaling == "linear":
            return Rope(base, "linear", rope.number("factor"))
        return Rope(
            base,
            "llama3",
            rope.number("factor"),
            rope.number("low_freq_factor"),
            rope.number("high_freq_factor"),
            rope.whole("original_max_position_embeddings", self.whole("max_position_embeddings", 2048)),
        )

    def windows(self, layers: int, window: int | None, sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
        """The window of every layer: from `layer_types` if it is given, else as `sliding` tells."""
        types = self.raw.get("layer_types")
        if types is None:
            return tuple(window if window is not None and sliding(i) else None for i in range(layers))
        ok = isinstance(types, list) and set(types) <= {"full_attention", "sliding_attention"} and len(types) == layers
        require(ok, "layer_types", f"full_attention or sliding_attention for each of {layers} layers", types)
        return tuple(window if kind == "sliding_attention" else None for kind in types)


def _gpt2(s: _Settings) -> Architecture:
    width, heads = s.whole("n_embd", 768), s.whole("n_head", 12)
    layers = s.whole("n_layer", 12)
    for key, allowed in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        s.refuse(key, allowed)
    return Architecture(
        family="gpt2",
        vocabulary=s.whole("vocab_size", 50257),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=s.whole("n_inner", 4 * width),
        context=s.whole("n_positions", 1024),
        norm="layer",
        eps=s.number("layer_norm_epsilon", 1e-5),
        activation=s.activation("activation_function", default="gelu_new"),
        gated=False,
        learned_positions=True,
        windows=(None,) * layers,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        query_scale=(width // heads) ** -0.5,
        tied=s.flag("tie_word_embeddings", True),
    )


def _llama_like(s: _Settings, family: str, windows: tuple[int | None, ...], rope: Rope, **other: Any) -> Architecture:
    """What Llama and its descendants share."""
    width, heads = s.whole("hidden_size"), s.whole("num_attention_heads")
    head_dim = s.whole("head_dim", max(1, width // heads))
    return Architecture(
        **{
            "family": family,
            "vocabulary": s.whole("vocab_size"),
            "width": width,
            "layers": s.whole("num_hidden_layers"),
            "heads": heads,
            "kv_heads": s.whole("num_key_value_heads", heads),
            "head_dim": head_dim,
            "hidden": s.whole("intermediate_size"),
            "context": s.whole("max_position_embeddings", 2048),
            "eps": s.number("rms_norm_eps", 1e-6),
            "activation": s.activation("hidden_act", default="silu"),
            "rope": rope,
            "windows": windows,
            "query_scale": head_dim**-0.5,
            "tied": s.flag("tie_word_embeddings", False),
            **other,
        }
    )


def _llama(s: _Settings) -> Architecture:
    bias = s.flag("attention_bias")
    windows = (None,) * s.whole("num_hidden_layers")
    switches = {"qkv_bias": bias, "out_bias": bias, "mlp_bias": s.flag("mlp_bias")}
    return _llama_like(s, "llama", windows, s.rope(10_000.0), **switches)


def _mistral(s: _Settings) -> Architecture:
    window = None if s.raw.get("sliding_window") is None else s.whole("sliding_window")
    return _llama_like(s, "mistral", s.windows(s.whole("num_hidden_layers"), window, lambda _: True), s.rope(10_000.0))


def _qwen_windows(s: _Settings) -> tuple[int | None, ...]:
    layers = s.whole("num_hidden_layers")
    window = s.whole("sliding_window", 4096) if s.flag("use_sliding_window") else None
    first = s.raw.get("max_window_layers", 28)
    return s.windows(layers, window, lambda i: i >= first)


def _qwen2(s: _Settings) -> Architecture:
    return _llama_like(s, "qwen2", _qwen_windows(s), s.rope(10_000.0), qkv_bias=True)


def _qwen3(s: _Settings) -> Architecture:
    bias = s.flag("attention_bias")
    # The family's head_dim is 128 unless told otherwise, whatever the width.
    more = {"head_dim": s.whole("head_dim", 128), "query_scale": s.whole("head_dim", 128) ** -0.5}
    return _llama_like(s, "qwen3", _qwen_windows(s), s.rope(10_000.0), qk_norm=True, qkv_bias=bias, out_bias=bias, **more)


def _gemma(s: _Settings, family: str, defaults: Settings, sliding: Callable[[int], bool], **other: Any) -> Architecture:
    """What the second and third Gemma share. Checkpoints leave out what is the family's default."""
    filled = _Settings({**defaults, **{key: value for key, value in s.raw.items() if value is not None}})
    filled.refuse("use_bidirectional_attention", False)
    bias = filled.flag("attention_bias")
    return _llama_like(
        filled,
        family,
        filled.windows(filled.whole("num_hidden_layers"), filled.whole("sliding_window"), sliding),
        **{
            "activation": filled.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
            "sandwich": True,
            "qkv_bias": bias,
            "out_bias": bias,
            "query_scale": filled.number("query_pre_attn_scalar") ** -0.5,
            "embedding_scale": filled.whole("hidden_size") ** 0.5,
            "tied": filled.flag("tie_word_embeddings", True),
            **other,
        },
    )


def _gemma2(s: _Settings) -> Architecture:
    defaults = {"vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    defaults |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192}
    defaults |= {"query_pre_attn_scalar": 256, "sliding_window": 4096}
    softcaps = {"attention_softcap": _softcap(s, "attn_logit_softcapping", 50.0)}
    softcaps |= {"final_softcap": _softcap(s, "final_logit_softcapping", 30.0)}
    return _gemma(s, "gemma2", defaults, lambda i: i % 2 == 0, rope=s.rope(10_000.0), **softcaps)


def _softcap(s: _Settings, key: str, default: float) -> float | None:
    """The family's default where the key is missing, nothing where it is null."""
    return s.maybe(key) if key in s.raw else default


def _gemma3(s: _Settings) -> Architecture:
    defaults = {"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    defaults |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072}
    defaults |= {"query_pre_attn_scalar": 256, "sliding_window": 4096}
    pattern = s.whole("sliding_window_pattern", 6)
    return _gemma(
        s,
        "gemma3",
        defaults,
        lambda i: (i + 1) % pattern != 0,
        rope=s.rope(1_000_000.0, kind="full_attention"),
        local_rope=s.rope(10_000.0, "rope_local_base_freq", "sliding_attention"),
        qk_norm=True,
        attention_softcap=s.maybe("attn_logit_softcapping"),
        final_softcap=s.maybe("final_logit_softcapping"),
    )


FAMILIES: dict[str, Callable[[_Settings], Architecture]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
}
"""The known families by the `model_type` of their configuration."""


def _check(a: Architecture) -> None:
    require(a.heads % a.kv_heads == 0, "num_key_value_heads", f"a divisor of the {a.heads} heads", a.kv_heads)
    require(a.learned_positions or a.head_dim % 2 == 0, "head_dim", "an even number, for rotary positions", a.head_dim)
    if a.family == "gpt2":
        require(a.width % a.heads == 0, "n_embd", f"a multiple of the {a.heads} heads", a.width)

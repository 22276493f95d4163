"""Rotary positions: the frequencies of every kind of scaling, and the settings that they are read from."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sim.bridge.config_file import Settings
from ufm._check import require

Scaling = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys.

    Attributes:
        theta: base of the wavelengths.
        scaling: "default": no frequency is scaled; "linear": all are, divided by `factor`; "llama3" and "yarn": the low ones
            are, in full where a pair of coordinates turns less than `beta_slow` times in the original context, not at all
            where it turns more than `beta_fast` times, and in part between. "longrope": each has a factor of its own.
        factor: of the scaling.
        beta_slow, beta_fast: of "llama3" and "yarn". Between them the part grows evenly, with the number of turns in
            "llama3", with the index of the pair in "yarn".
        original_context_length: the longest context before scaling.
        truncated: whether "yarn" rounds the two indices outwards.
        fraction: of the coordinates of a head that are turned, the first ones.
        attention_factor: what cosines and sines are multiplied with.
        freq_factors: what every frequency is divided by, beside the scaling; of "longrope" in sequences up to the original
            context. Empty for none.
        long_freq_factors: the same of "longrope" in longer sequences.
    """

    theta: float
    scaling: Scaling = "default"
    factor: float = 1.0
    beta_slow: float = 1.0
    beta_fast: float = 4.0
    original_context_length: int = 8192
    truncated: bool = True
    fraction: float = 1.0
    attention_factor: float = 1.0
    freq_factors: tuple[float, ...] = ()
    long_freq_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings that give no frequencies."""
        if self.scaling == "llama3":
            expected = f"a number above the low_freq_factor, {self.beta_slow:g}"
            require(self.beta_fast > self.beta_slow, "high_freq_factor", expected, self.beta_fast)
        if self.scaling == "yarn":
            require(self.theta > 1, "rope_theta", "a number above 1, for yarn", self.theta)
            for key, turns in (("beta_fast", self.beta_fast), ("beta_slow", self.beta_slow)):
                within = 0 < self.original_context_length / (turns * 2 * math.pi) < math.inf
                require(within, key, f"a number of turns in {self.original_context_length} tokens", turns)

    def pairs(self, head_dim: int) -> int:
        """How many pairs of coordinates of a head are turned."""
        return (int(head_dim * self.fraction) + 1) // 2

    def frequencies(self, head_dim: int, *, long: bool = False) -> tuple[float, ...]:
        """Radians per position of every pair of coordinates that is turned.

        Args:
            head_dim: coordinates of a head.
            long: whether of sequences that are longer than the original context.
        """
        turned = int(head_dim * self.fraction)
        scaled = []
        for i in range(self.pairs(head_dim)):
            plain = self.theta ** (-2 * i / turned)
            kept = self._kept(i, plain, turned)
            scaled.append(kept * plain + (1 - kept) * plain / self.factor)
        factors = (self.long_freq_factors if long and self.long_freq_factors else self.freq_factors) or (1.0,) * len(scaled)
        return tuple(f / factor for f, factor in zip(scaled, factors, strict=True))

    def _kept(self, i: int, frequency: float, turned: int) -> float:
        """The part of a frequency that is not scaled."""
        if self.scaling == "linear":
            return 0.0
        if self.scaling == "llama3":
            turns = self.original_context_length * frequency / (2 * math.pi)
            return _clipped((turns - self.beta_slow) / (self.beta_fast - self.beta_slow))
        if self.scaling == "yarn":
            first, last = (self._index(turns, turned) for turns in (self.beta_fast, self.beta_slow))
            if self.truncated:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, turned - 1)
            return 1 - _clipped((i - first) / (last - first if last != first else 1e-3))
        return 1.0

    def _index(self, turns: float, turned: int) -> float:
        """Where a pair of coordinates would be that turns so many times in the original context."""
        return turned * math.log(self.original_context_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


def _clipped(x: float) -> float:
    return min(1.0, max(0.0, x))


def mscale(factor: float, weight: float = 1.0) -> float:
    """The factor by which "yarn" scales cosines and sines (Peng et al. 2023, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
_EVERYWHERE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def read(
    s: Settings,
    *,
    theta: str = "rope_theta",
    fraction: str | None = None,
    layer_type: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Rope:
    """Rotary positions from a configuration, in the spelling of any version of transformers.

    Versions before 5 have the base at the top and a scaling under "rope_scaling"; later ones have both under
    "rope_parameters", in Gemma 3 once for each type of layer.

    Args:
        s: the configuration.
        theta: where older files have the base.
        fraction: where older files have the fraction of coordinates; None where the family turns all of them.
        layer_type: "full_attention" or "sliding_attention" in families that distinguish.
        renamed: other names of scalings.

    Raises:
        ValueError: a scaling that is not implemented, settings that are missing or malformed.
    """
    older = layer_type is None and bool(s.get("rope_scaling"))
    settings = Settings(_parameters(s, layer_type), name="rope_scaling" if older else "rope_parameters")
    base = settings.number("rope_theta") if settings.has("rope_theta") else s.number(theta)
    scaling = settings.get("rope_type") or settings.get("type") or "default"
    scaling = (renamed or {}).get(str(scaling), scaling)
    known = get_args(Scaling)
    require(scaling in known, "rope_type", f"{', '.join(known)}: the scalings that are implemented", repr(scaling))
    more = ("original_max_position_embeddings",) if scaling in ("llama3", "yarn", "longrope") else ()
    unused = sorted(set(settings.raw) - {*_EVERYWHERE, *_KEYS[scaling], *more})
    if unused:
        warnings.warn(f"rope_parameters: {', '.join(unused)} of type {scaling} is not used", stacklevel=4)
    share = _fraction(s, settings, fraction)
    if scaling == "default":
        return Rope(base, fraction=share)
    if scaling == "linear":
        return Rope(base, "linear", settings.number("factor"), fraction=share)
    original = _original(s, settings, nested=layer_type is not None)
    if scaling == "llama3":
        low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
        return Rope(base, "llama3", settings.number("factor"), low, high, original, fraction=share)
    factor = settings.maybe("factor") or s.whole("max_position_embeddings") / original
    return (_yarn if scaling == "yarn" else _longrope)(settings, base, factor, original, share)


def _yarn(settings: Settings, base: float, factor: float, original: int, fraction: float) -> Rope:
    require("factor" in settings.raw, "factor", "a number, for yarn", "none")
    attention_factor = _attention_factor(settings)
    if attention_factor is None:
        weight, whole = _maybe(settings, "mscale"), _maybe(settings, "mscale_all_dim")
        attention_factor = mscale(factor, weight) / mscale(factor, whole) if weight and whole else mscale(factor)
    low, high = _maybe(settings, "beta_slow") or 1.0, _maybe(settings, "beta_fast") or 32.0
    # A null is false, as in transformers.
    truncated = settings.flag("truncate") if settings.has("truncate") else "truncate" not in settings.raw
    return Rope(
        base, "yarn", factor, low, high, original, truncated=truncated, fraction=fraction, attention_factor=attention_factor
    )


def _maybe(settings: Settings, key: str) -> float | None:
    """Read a positive number; None if it is null, absent or 0, as in transformers."""
    return None if settings.get(key) == 0 else settings.maybe(key)


def _attention_factor(settings: Settings) -> float | None:
    """Read a number, which may be 0: then positions that are turned give no attention; None if it is null or absent."""
    return 0.0 if settings.get("attention_factor") == 0 else settings.maybe("attention_factor")


def _longrope(settings: Settings, base: float, factor: float, original: int, fraction: float) -> Rope:
    attention_factor = _attention_factor(settings)
    if attention_factor is None:
        expected = "at least 2, for longrope without an attention_factor"
        require(original > 1 or factor <= 1, "original_max_position_embeddings", expected, original)
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = settings.numbers("short_factor"), settings.numbers("long_factor")
    return Rope(
        base,
        "longrope",
        original_context_length=original,
        fraction=fraction,
        attention_factor=attention_factor,
        freq_factors=short,
        long_freq_factors=long,
    )


def _parameters(s: Settings, layer_type: str | None) -> Any:
    """The settings of a layer's rotary positions, without those at the top of the configuration."""
    older, newer = s.get("rope_scaling"), s.get("rope_parameters")
    if layer_type is None:
        settings = older or newer or {}
        nested = isinstance(settings, Mapping) and any(isinstance(value, Mapping) for value in settings.values())
        require(
            not nested,
            "rope_scaling" if older else "rope_parameters",
            "the same for all layers, in this family",
            "settings for types of layers",
        )
        return settings
    by_type = Settings(newer or {}, name="rope_parameters")
    named = {"full_attention", "sliding_attention"} & set(by_type.raw)
    require(not by_type.raw or bool(named), "rope_parameters", "settings for each type of layer", sorted(by_type.raw))
    settings = by_type.get(layer_type) or {}
    # A scaling in the older spelling is one of the layers without a window.
    scaled = older is not None and layer_type == "full_attention"
    return {**settings, **Settings(older, name="rope_scaling").raw} if scaled else settings


def _fraction(s: Settings, settings: Settings, key: str | None) -> float:
    if key is None:
        for holder in (s, settings):
            holder.refuse("partial_rotary_factor", 1)
        return 1.0
    value = settings.number("partial_rotary_factor") if settings.has("partial_rotary_factor") else s.number(key)
    require(value <= 1, "partial_rotary_factor", "a share of the coordinates, at most 1", value)
    return value


def _original(s: Settings, settings: Settings, *, nested: bool) -> int:
    key = "original_max_position_embeddings"
    holders = [holder for holder in ([] if nested else [s]) + [settings] if holder.has(key)]
    return holders[0].whole(key) if holders else s.whole("max_position_embeddings")

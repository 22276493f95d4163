"""A steering vector as a value: a direction for each block, the model it was made for, and a diagnosis of each direction.

vector = sim.make_vector(lm, positive, negative)
print(vector)
lm.generate(prompts, steering=vector.steering(20), alpha=2.0)

Layers are blocks, counted from 0, and a direction acts on the residual stream after its block. Strengths are in units of the
vector, so that arithmetic (`2 * joy - anger`) means what it says.
"""

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from sim.bridge.model import LanguageModel
from sim.bridge.split import sites_of
from ufm._check import finite, finite_number, require, shown, text, whole_number
from ufm.interventions import Add
from ufm.steering import RESIDUAL, Steering

MOST_ALONG_SINKS = 0.1
"""A larger share of a direction's squared length along the attention sinks: it measures the length of texts."""

LEAST_AGREEMENT = 0.3
"""A smaller cosine between the directions of two halves of the texts: there are too few texts, or they differ in nothing."""

LEAST_ACCURACY = 0.6
"""A smaller share of held-out texts told apart along the direction."""


MOST_BLOCKS = 10**6
"""Blocks have smaller numbers than this, in files, too."""


@dataclass(frozen=True)
class ModelTag:
    """The model that a vector was made for.

    Attributes:
        name: what it was loaded as.
        family: of its architecture, a key of `sim.bridge.architectures.FAMILIES`.
        fingerprint: a hash of its weights; "" if unknown.
        d_model: width of the residual stream.
        num_layers: number of blocks; None if unknown.
    """

    name: str = ""
    family: str = ""
    fingerprint: str = ""
    d_model: int = 0
    num_layers: int | None = None

    @classmethod
    def of(cls, lm: LanguageModel) -> "ModelTag":
        """The tag of a loaded model."""
        a = lm.config
        return cls(lm.name, a.family, lm.fingerprint, a.d_model, a.num_layers)


@dataclass(frozen=True)
class Diagnosis:
    """What tells whether a direction means what it should; None where it is not known.

    Attributes:
        sink_share: share of its squared length along the mean state of the attention sinks (0 to 1).
        removed_share: the same before that part was taken out, if it was.
        halves_cosine: cosine between the directions of two halves of the texts.
        accuracy: share of held-out texts whose state along the direction of the other half is on the right side.
        effect_size: distance between the sets along it, in standard deviations of held-out texts (Cohen's d).
        relative_norm: its length in units of the median length of the states.
    """

    sink_share: float | None = None
    removed_share: float | None = None
    halves_cosine: float | None = None
    accuracy: float | None = None
    effect_size: float | None = None
    relative_norm: float | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the direction, a sentence each."""
        wrong = {
            "much of its squared length is along the attention sinks: it measures how long texts are": (
                self.sink_share is not None and self.sink_share > MOST_ALONG_SINKS
            ),
            "two halves of the texts give different directions": (
                self.halves_cosine is not None and self.halves_cosine < LEAST_AGREEMENT
            ),
            "it hardly tells held-out texts apart": self.accuracy is not None and self.accuracy < LEAST_ACCURACY,
        }
        return tuple(sentence for sentence, holds in wrong.items() if holds)


_KINDS = {"mistral": "llama", "gemma3_text": "gemma3", "gptneox": "gpt_neox"}
"""Families that llama.cpp counts as one, or for which it, or transformers, has another name than we do."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """Directions by block; immutable. Two are equal if all that they hold is, bit for bit.

    Attributes:
        directions: by block, one for each that it has one for, ``[d]``, float32.
        name: of what it steers towards.
        model: what it was made for; None if unknown.
        site: where it acts in a block, "residual" unless said otherwise.
        extraction: how it was made: names and numbers.
        diagnosis: of every direction, by block; empty if unknown.
        sinks: unit vectors along the mean state of the attention sinks, by block, ``[d]``; empty if unknown.
        scales: median length of the states, by block; empty if unknown.
    """

    directions: Any
    name: str = ""
    model: ModelTag | None = None
    site: str = RESIDUAL
    extraction: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Mapping[int, Diagnosis] = field(default_factory=dict)
    sinks: Mapping[int, Float[np.ndarray, " d"]] = field(default_factory=dict)
    scales: Mapping[int, float] = field(default_factory=dict)

    # Arrays of NumPy leave arithmetic to the vector, and do not multiply it entry by entry.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", text("name", self.name))
        object.__setattr__(self, "site", text("site", self.site))
        for name in ("sinks", "scales", "diagnosis", "extraction"):
            require(isinstance(getattr(self, name), Mapping), name, "a mapping", shown(getattr(self, name)))
        require(self.model is None or isinstance(self.model, ModelTag), "model", "a ModelTag, or None", shown(self.model))
        object.__setattr__(self, "extraction", _plain_facts(self.extraction))
        require(isinstance(self.directions, Mapping), "directions", "directions by block", shown(self.directions))
        require(len(self.directions) > 0, "directions", "at least one", "none")
        arrays = {}
        for layer, value in self.directions.items():
            number = whole_number("layer", layer, 0)
            require(number < MOST_BLOCKS, "layer", f"a block from 0 to {MOST_BLOCKS - 1}", number)
            arrays[number] = _vector(f"direction of block {number}", value)
        widths = {array.size for array in arrays.values()}
        require(len(widths) == 1, "directions", "one width", f"{sorted(widths)}")
        (width,) = widths
        if self.model is not None:
            d, blocks = self.model.d_model, self.model.num_layers
            require(d in (0, width), "directions", f"the {d} numbers of the model's states", width)
            inside = blocks is None or max(arrays) < blocks
            require(inside, "layer", f"a block of the model, 0 to {(blocks or 0) - 1}", max(arrays))
        sinks = {_block(layer): _vector(f"sink of block {layer}", value) for layer, value in self.sinks.items()}
        others = [f"{sink.size} at block {layer}" for layer, sink in sinks.items() if sink.size != width]
        require(not others, "sinks", f"the {width} numbers of the directions", ", ".join(others[:3]))
        object.__setattr__(self, "directions", dict(sorted(arrays.items())))
        object.__setattr__(self, "sinks", sinks)
        scales = {_block(layer): finite_number(f"scale of block {layer}", scale) for layer, scale in self.scales.items()}
        object.__setattr__(self, "scales", scales)
        for layer, known in self.diagnosis.items():
            require(isinstance(known, Diagnosis), f"diagnosis of block {layer}", "a Diagnosis", shown(known))
            for name, value in asdict(known).items():
                if value is not None:
                    finite_number(f"{name} of block {layer}", value)
        object.__setattr__(self, "diagnosis", {_block(layer): known for layer, known in self.diagnosis.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        arrays, facts = ("directions", "sinks"), ("name", "model", "site", "extraction", "diagnosis", "scales")
        return all(getattr(self, name) == getattr(other, name) for name in facts) and all(
            _same_arrays(getattr(self, name), getattr(other, name)) for name in arrays
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks it has a direction for, in order."""
        return tuple(self.directions)

    @property
    def d_model(self) -> int:
        """The width of its directions."""
        return next(iter(self.directions.values())).size

    def __getitem__(self, layer: int) -> Float[np.ndarray, " d"]:
        """The direction of a block, ``[d]``.

        Raises:
            ValueError: a block that it has no direction for.
        """
        number = _block(layer)
        require(number in self.directions, "layer", f"one of {_ranges(self.layers)}", number)
        return self.directions[number]

    def at(self, layers: int | Sequence[int]) -> "SteeringVector":
        """The directions of one block or several.

        Raises:
            ValueError: a block that it has no direction for, none.
        """
        several = isinstance(layers, Iterable) and not isinstance(layers, str | bytes) and np.ndim(layers) != 0
        listed: Any = layers if several else [layers]
        chosen = {_block(layer): self[layer] for layer in listed}

        def kept(facts: Mapping[int, Any]) -> dict[int, Any]:
            return {layer: fact for layer, fact in facts.items() if layer in chosen}

        return replace(
            self, directions=chosen, diagnosis=kept(self.diagnosis), sinks=kept(self.sinks), scales=kept(self.scales)
        )

    def steering(self, layers: int | Sequence[int] | None = None, *, tokens: Any = None) -> Steering:
        """The steering that adds it.

        Args:
            layers: after which blocks; after all that it has a direction for if left out.
            tokens: at which tokens; all if left out.

        Raises:
            ValueError: a block that it has no direction for.
        """
        chosen = self if layers is None else self.at(layers)
        return Steering({layer: Add(v) for layer, v in chosen.directions.items()}, site=self.site, tokens=tokens)

    def require_fits(self, lm: LanguageModel, *, other_weights: bool = False) -> "SteeringVector":
        """The vector itself, if it is one for this model.

        Args:
            lm: the model to steer.
            other_weights: whether a model of the same shape with other weights will do (another quantisation of it).

        Raises:
            ValueError: another width, a site or a block that the model does not have, other weights.
        """
        sites = sites_of(lm.config)
        require(self.site in sites, "vector", f"one for a site among {', '.join(sites)}", f"one for {shown(self.site)}")
        here, tag = ModelTag.of(lm), self.model or ModelTag()
        require(self.d_model == here.d_model, "vector", f"the model's width {here.d_model}", f"width {self.d_model}")
        blocks = here.num_layers or 0
        require(self.layers[-1] < blocks, "vector", f"blocks 0 to {blocks - 1}, the model's", f"block {self.layers[-1]}")
        require(tag.num_layers in (None, blocks), "vector", f"one for {blocks} blocks", f"one for {tag.num_layers}")
        known = not tag.family or _KINDS.get(tag.family, tag.family) == _KINDS.get(here.family, here.family)
        require(known, "vector", f"one for the architecture {here.family}", f"one for {tag.family}")
        same = other_weights or not tag.fingerprint or tag.fingerprint == here.fingerprint
        allow = "other_weights=True, or --other-weights, if the two are the same model, as in another quantisation"
        require(same, "vector", f"one for {here.name or 'this model'} ({allow})", f"one for {tag.name or 'another model'}")
        return self

    # --- arithmetic --------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> "SteeringVector":
        return self._with(other, lambda a, b: a + b, "+")

    def __sub__(self, other: Any) -> "SteeringVector":
        return self._with(other, lambda a, b: a - b, "-")

    def __mul__(self, factor: Any) -> "SteeringVector":
        if not _is_number(factor):
            return NotImplemented
        number = finite_number("factor", factor)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            scaled = {layer: np.float32(number) * v for layer, v in self.directions.items()}
        diagnosis = {
            layer: replace(known, relative_norm=None if known.relative_norm is None else abs(number) * known.relative_norm)
            for layer, known in self.diagnosis.items()
        }
        return replace(self, directions=scaled, name=f"{number:g} * {_grouped(self.name)}", diagnosis=diagnosis)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "SteeringVector":
        if not _is_number(divisor):
            return NotImplemented
        return self * (1 / finite_number("divisor", divisor, "a number other than 0", lambda number: number != 0))

    def __neg__(self) -> "SteeringVector":
        return self * -1.0

    def normalized(self) -> "SteeringVector":
        """Its directions, each divided by its length.

        Raises:
            ValueError: a direction of length 0.
        """
        lengths = {layer: length_of(v) for layer, v in self.directions.items()}
        empty = [layer for layer, length in lengths.items() if length == 0]
        require(not empty, "vector", "directions that are not 0", f"zeros at block {empty[0] if empty else None}")
        unit = {layer: np.asarray(v, float) / lengths[layer] for layer, v in self.directions.items()}
        diagnosis = {
            layer: replace(known, relative_norm=1 / self.scales[layer] if layer in self.scales else None)
            for layer, known in self.diagnosis.items()
        }
        return replace(self, directions=unit, diagnosis=diagnosis)

    def _with(self, other: Any, operation: Callable[[Any, Any], Any], sign: str) -> "SteeringVector":
        if not isinstance(other, SteeringVector):
            return NotImplemented
        model = _joined(self.model, other.model)
        require(self.site == other.site, "vector", f"one for the site {self.site}", f"one for {other.site}")
        require(self.d_model == other.d_model, "vector", f"width {self.d_model}", f"width {other.d_model}")
        shared = [layer for layer in self.layers if layer in other.directions]
        expected = f"one with directions for some of {_ranges(self.layers)}"
        require(len(shared) > 0, "vector", expected, f"one for {_ranges(other.layers)}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            directions = {layer: operation(self[layer], other[layer]) for layer in shared}
        sinks = _between_both(self.sinks, other.sinks, shared, _direction_of_sum)
        scales = _between_both(self.scales, other.scales, shared, lambda a, b: (a + b) / 2)
        name = f"{self.name or '?'} {sign} {other.name if sign == '+' else _grouped(other.name)}"
        diagnosis = {layer: geometry(directions[layer], sinks.get(layer), scales.get(layer)) for layer in shared}
        extraction = {"combined": name, "of": [dict(self.extraction), dict(other.extraction)]}
        return SteeringVector(directions, name, model, self.site, extraction, diagnosis, sinks, scales)

    # --- for people --------------------------------------------------------------------------------------------------

    @property
    def warnings(self) -> dict[int, tuple[str, ...]]:
        """What speaks against a direction, that it is 0 or its diagnosis, by block; blocks without anything are left out."""
        sentences = {}
        for layer, v in self.directions.items():
            zero = () if v.any() else ("it is zero, and steers nowhere",)
            sentences[layer] = zero + self.diagnosis.get(layer, Diagnosis()).warnings
        return {layer: warnings for layer, warnings in sentences.items() if warnings}

    def table(self) -> str:
        """The diagnosis as a table of text, one line for each block, with what speaks against directions below it."""
        columns = ("length", "/ states", "along sinks", "halves", "held out", "effect")
        lines = ["block " + " ".join(f"{column:>12}" for column in columns)]
        for layer, v in self.directions.items():
            known = self.diagnosis.get(layer, Diagnosis())
            length, share = length_of(v), known.sink_share
            # What is left of a part that was taken out is rounding.
            share = 0.0 if share is not None and share < 1e-9 else share
            numbers = (length, known.relative_norm, share, known.halves_cosine, known.accuracy, known.effect_size)
            lines.append(f"{layer:5d} " + " ".join(f"{'-' if x is None else f'{x:.3g}':>12}" for x in numbers))
        return "\n".join([*lines, *self.warning_lines()])

    def warning_lines(self) -> list[str]:
        """What speaks against its directions, a line for each sentence, with its blocks."""
        blocks: dict[str, list[int]] = {}
        for layer, sentences in self.warnings.items():
            for sentence in sentences:
                blocks.setdefault(sentence, []).append(layer)
        return [f"{_blocks(at)}: {sentence}" for sentence, at in blocks.items()]

    def __repr__(self) -> str:
        of = f" for {self.model.name}" if self.model is not None and self.model.name else ""
        return f"SteeringVector({self.name!r}{of}: {_blocks(self.layers)}, width {self.d_model})"

    def __str__(self) -> str:
        return f"{self!r}\n{self.table()}"


def combined(terms: Sequence[tuple[float, SteeringVector]]) -> SteeringVector:
    """The sum of vectors, each times a factor, for the blocks that all of them have.

    Args:
        terms: factors and vectors, one at least.

    Raises:
        ValueError: no vector; other models, widths or sites; no block that all have; a factor that is not finite.
    """
    require(len(terms) > 0, "terms", "at least one vector", "none")
    (factor, first), *others = terms
    result = first if factor == 1 else factor * first
    for factor, vector in others:
        size = finite_number("factor", abs(factor))
        term = vector if size == 1 else size * vector
        result = result - term if factor < 0 else result + term
    return result


def geometry(
    v: Float[np.ndarray, " d"], sink: Float[np.ndarray, " d"] | None, scale: float | None, *, removed: float | None = None
) -> Diagnosis:
    """What a direction's own numbers tell.

    Args:
        v: the direction.
        sink: unit vector along the mean state of the attention sinks, if known.
        scale: median length of the states, if known.
        removed: the share along the sinks that was taken out, if any.
    """
    length = length_of(v)
    along = None if sink is None or length == 0 else float((np.asarray(v, float) @ np.asarray(sink, float) / length) ** 2)
    return Diagnosis(sink_share=along, removed_share=removed, relative_norm=None if not scale else length / scale)


def length_of(v: Float[np.ndarray, " d"]) -> float:
    """The length of a direction, in float64: the square of a long one is more than float32 can hold."""
    return float(np.linalg.norm(np.asarray(v, float)))


def _joined(mine: ModelTag | None, theirs: ModelTag | None) -> ModelTag | None:
    """The model that two vectors are for, with all that either knows of it.

    Raises:
        ValueError: two models.
    """
    if mine is None or theirs is None:
        return mine or theirs
    for name in ("fingerprint", "family", "num_layers", "d_model"):
        values = [getattr(tag, name) for tag in (mine, theirs)]
        values = [_KINDS.get(value, value) if name == "family" else value for value in values]
        same = not values[0] or not values[1] or values[0] == values[1]
        words = [tag.name or f"{name.replace('_', ' ')} {getattr(tag, name)}" for tag in (mine, theirs)]
        require(same, "vector", f"another one for {words[0]}", f"one for {words[1]}")
    return replace(mine, **{name: value for name, value in asdict(theirs).items() if not getattr(mine, name)})


def _between_both(mine: Mapping[int, Any], theirs: Mapping[int, Any], layers: Sequence[int], join: Any) -> dict[int, Any]:
    """What either of two vectors knows of blocks: what both know is joined, in whatever order they are."""
    known: dict[int, Any] = {}
    for layer in layers:
        values = [facts[layer] for facts in (mine, theirs) if layer in facts]
        if values:
            known[layer] = values[0] if len(values) == 1 or np.array_equal(*values) else join(*values)
    return known


def _direction_of_sum(a: Float[np.ndarray, " d"], b: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The unit vector between two."""
    total = np.asarray(a, float) + np.asarray(b, float)
    length = length_of(total)
    return total / length if length > 0 else a


def _plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How a vector was made as files keep it: texts, finite numbers, truth values, lists and mappings of them.

    Raises:
        ValueError: something else among them.
    """
    try:
        written = json.dumps(dict(facts), default=_of_numpy, allow_nan=False, ensure_ascii=False)
        written.encode()
        return json.loads(written)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extraction: expected facts that JSON can hold, got others ({error})") from error


def _of_numpy(value: Any) -> Any:
    """Numbers and arrays of NumPy as those of Python."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{shown(value)} of type {type(value).__name__}")


def _vector(argument: str, value: Any) -> Float[np.ndarray, " d"]:
    """Numbers as a vector of float32.

    Raises:
        ValueError: another shape, numbers that are not finite, in float32 too.
    """
    array = finite(argument, value)
    require(array.ndim == 1 and array.size > 0, argument, "a vector [d]", f"shape {array.shape}")
    with np.errstate(over="ignore"):
        return finite(argument, array.astype(np.float32)).astype(np.float32)


def _block(layer: Any) -> int:
    """The number of a block.

    Raises:
        ValueError: something else.
    """
    try:
        known = not isinstance(layer, bool)
        number = operator.index(layer)
    except TypeError:
        known, number = False, 0
    require(known, "layer", "the number of a block", shown(layer))
    return number


def _is_number(value: Any) -> bool:
    """Whether a factor is for the vector to judge: a number, or an array, of which a single number will do."""
    return isinstance(value, Real) or hasattr(value, "__array__")


def _same_arrays(mine: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> bool:
    return mine.keys() == other.keys() and all(np.array_equal(mine[layer], other[layer]) for layer in mine)


def _grouped(name: str) -> str:
    return f"({name})" if " " in name else name or "?"


def _blocks(layers: Sequence[int]) -> str:
    return f"block{'s' * (len(layers) > 1)} {_ranges(layers)}"


def _ranges(layers: Sequence[int]) -> str:
    """Blocks in words: "3", "0 to 29", "3, 7 to 11"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)

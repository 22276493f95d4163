"""Settings of the experiments: those of every stage, three presets, and how a variant of steering is named.

S, section 5 and appendix A, is the preset "paper"; "laptop" is less of the same, "smoke" a little of everything.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError

from sim.bridge.config import Config
from sim.bridge.generation import Sampling
from sim.directions.texts import CONCEPTS
from ufm._check import known_names, require
from ufm.interventions import FORMS


class Variant(NamedTuple):
    """How a model is steered.

    Attributes:
        name: as in `ExperimentSettings.variants`.
        negatives: what the concept is contrasted with: "random" text of the model, or its "contrastive" opposite.
        normalised: whether v has length 1.
        last_only: whether the last position alone is steered.
        resample: which bootstrap sample of the two sets of texts v is made from; 0 for the sets themselves.
    """

    name: str
    negatives: str = "random"
    normalised: bool = False
    last_only: bool = False
    resample: int = 0


VARIANTS = {
    "random": Variant("random"),
    "contrastive": Variant("contrastive", negatives="contrastive"),
    "normalised": Variant("normalised", normalised=True),
    "last-token": Variant("last-token", last_only=True),
}
"""Variants by name; besides them, "resampled" is a vector from each bootstrap sample of the first variant's texts."""


@dataclass(frozen=True)
class Sampled:
    """Text that a model writes.

    Attributes:
        temperature, top_k, top_p: of the sampling.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.95

    @property
    def sampling(self) -> Sampling:
        """The sampling that `generate` takes."""
        return Sampling(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class Sweep:
    """Strengths of both signs, 0 in the middle.

    Attributes:
        strengths: how many.
        reach: the largest.
        spread: see `NextToken`.
    """

    strengths: int
    reach: float
    spread: float

    @property
    def alphas(self) -> Float[np.ndarray, " K"]:
        """The strengths, ``[K]``."""
        return grid(self.strengths, self.reach, self.spread)


@dataclass(frozen=True)
class Prompts(Sampled):
    """Texts that show a concept and texts that do not.

    Attributes:
        texts: in each set.
        max_new_tokens: of each, at most.
        batch: generated together.
    """

    texts: int = 24
    max_new_tokens: int = 64
    batch: int = 48


@dataclass(frozen=True)
class Vectors:
    """Difference of means, of every layer.

    Attributes:
        tokens: of a text that are used, its first.
        averaged: over which of them: "content", without attention sinks and as far as most of every set reach, so that the
            length of texts has no say; or "all", as in the paper.
        unit: what strength 1 adds: "states", a vector as long as the states that it is added to, so that one range of
            strengths suits every layer of every model; or "vector", the difference of means as it is, as in the paper.
        resamples: bootstrap samples of the texts.
        batch: texts in one pass.
    """

    tokens: int = 64
    averaged: Literal["content", "all"] = "content"
    unit: Literal["states", "vector"] = "states"
    resamples: int = 5
    batch: int = 8


@dataclass(frozen=True)
class NextToken:
    """Curves of next-token probability.

    Attributes:
        strengths: how many, 0 and both signs included.
        reach: the largest.
        normalised_reach: the largest where v has length 1.
        spread: 0 for even steps; otherwise steps grow with the strength, from about ``reach spread / sinh(spread)``-th of
            the even ones at 0 on.
        kept: tokens that are kept, the likeliest at each end.
        context: tokens of a context, at most.
        contexts: how many; at most those there are.
        tokens: texts of tokens whose curves are kept and drawn beside the likeliest ones.
    """

    strengths: int = 161
    reach: float = 8.0
    normalised_reach: float = 2000.0
    spread: float = 6.0
    kept: int = 100
    context: int = 100
    contexts: int = 3
    tokens: tuple[str, ...] = ()

    def alphas(self, variant: Variant) -> Float[np.ndarray, " K"]:
        """The strengths, ``[K]``."""
        return grid(self.strengths, self.normalised_reach if variant.normalised else self.reach, self.spread)


@dataclass(frozen=True)
class ConceptProbability(Sampled, Sweep):
    """Completions of a steered model, and whether they show the concept.

    Attributes:
        strengths, reach, spread: as for next tokens.
        prompts: how many beginnings, at most those there are.
        completions: of each at each strength.
        max_new_tokens: of each.
        batch: generated together, about.
        lexicon: words that count as the concept's, those of the highest log-odds.
        judged_together: texts in one pass of the judge.
        chat: whether the judge is asked in its chat template, if it has one; a small model answers better without.
    """

    strengths: int = 11
    reach: float = 1.0
    spread: float = 4.0
    prompts: int = 4
    completions: int = 2
    max_new_tokens: int = 24
    batch: int = 132
    lexicon: int = 100
    judged_together: int = 16
    chat: bool = False


@dataclass(frozen=True)
class CrossEntropy(Sweep):
    """Increase of cross-entropy on text.

    Attributes:
        strengths, reach, spread: as for next tokens.
        blocks: of text, of each kind.
        tokens: of a block.
        part: blocks that are computed and kept together.
    """

    strengths: int = 17
    reach: float = 8.0
    spread: float = 7.0
    blocks: int = 6
    tokens: int = 128
    part: int = 6


@dataclass(frozen=True)
class Mmlu(Sweep):
    """Questions with four answers.

    Attributes:
        strengths, reach, spread: as for next tokens.
        shots: worked examples before a question.
        questions: how many, at most those there are.
        part: questions that are computed and kept together.
    """

    strengths: int = 7
    reach: float = 1.0
    spread: float = 3.0
    shots: int = 5
    questions: int = 40
    part: int = 10


@dataclass(frozen=True)
class Recipe:
    """How updates of one form are trained (W).

    Attributes:
        rate: the learning rate of AdamW at first; it falls linearly to 0.
        levels: strengths that examples are trained at, evenly from reach / levels to reach.
        reach: the largest of these.
        gamma, theta: of SPLIT's hinge (`ufm.preference.split`).
    """

    rate: float
    reach: float
    gamma: float
    theta: float
    levels: int = 10

    def __post_init__(self) -> None:
        _numbers(self, "", above=("rate", "reach"), least=("gamma", "theta"))
        require(1 <= self.levels <= LARGEST, "levels", f"at least 1, at most {LARGEST:g}", self.levels)

    @property
    def strengths(self) -> Float[np.ndarray, " k"]:
        """The strengths that examples are trained at."""
        return self.reach * np.arange(1, self.levels + 1) / self.levels


@dataclass(frozen=True)
class Updates:
    """Updates that are trained on paired answers, and measured on others (W).

    Attributes:
        concepts: those with paired answers.
        methods: some of `METHODS`.
        forms: some of `ufm.interventions.FORMS`.
        layer: the block, or "early", "middle" or "last".
        trained: pairs that are trained on; the others are held out.
        held_out: of these, how many are measured, at most.
        epochs: passes over the pairs.
        batch: pairs of a step.
        rank: of LoRA.
        clip: the largest norm of a gradient.
        weight_positive, weight_negative: of SPLIT's losses.
        scale: of RePS's weight.
        every: steps between checkpoints.
        chat: whether questions are put into the model's chat template, if it has one.
        vector, lora, weight: recipes of the forms.
        strengths, beyond, spread: of the sweep that measures preference and utility, to `beyond` times a recipe's reach.
        part: strengths that are measured together.
        law_layers, law_pairs, law_strengths, law_reach: layers, pairs and strengths at which preference is laid beside N7;
            the largest strength is `law_reach` times the median of the lengths of the states by that of the vector.
    """

    concepts: tuple[str, ...] = ("impolite", "optimistic")
    methods: tuple[str, ...] = ("difference", "sft", "reps", "split")
    forms: tuple[str, ...] = ("vector", "lora", "weight")
    layer: int | str = "middle"
    trained: int = 40
    held_out: int = 20
    epochs: int = 2
    batch: int = 4
    rank: int = 4
    clip: float = 1.0
    weight_positive: float = 1.0
    weight_negative: float = 0.5
    scale: float = 1.0
    every: int = 10
    chat: bool = False
    vector: Recipe = field(default_factory=lambda: Recipe(0.08, 20.0, 8.0, 0.3))
    lora: Recipe = field(default_factory=lambda: Recipe(0.01, 2.0, 5.0, 0.4))
    weight: Recipe = field(default_factory=lambda: Recipe(0.01, 2.0, 5.0, 0.4))
    strengths: int = 25
    beyond: float = 2.0
    spread: float = 2.0
    part: int = 5
    law_layers: int = 7
    law_pairs: int = 8
    law_strengths: int = 41
    law_reach: float = 10.0

    def __post_init__(self) -> None:
        for name, known in (("methods", METHODS), ("forms", FORMS)):
            known_names(f"updates.{name}", getattr(self, name), known)
        for name in ("concepts", "methods", "forms"):
            _names(getattr(self, name), f"updates.{name}")
        at_least_0 = ("weight_positive", "weight_negative")
        _numbers(self, "updates.", above=("clip", "beyond", "law_reach", "scale"), least=at_least_0)

    def recipe(self, form: str) -> Recipe:
        """How updates of a form are trained."""
        recipe: Recipe = getattr(self, form)
        return recipe

    def methods_of(self, form: str) -> list[str]:
        """The methods that make updates of a form: a difference of means is a vector."""
        return [method for method in self.methods if method != "difference" or form == "vector"]

    def alphas(self, form: str) -> Float[np.ndarray, " K"]:
        """The strengths at which updates of a form are measured."""
        return grid(self.strengths, self.beyond * self.recipe(form).reach, self.spread)


METHODS = ("difference", "sft", "reps", "split")
"""Ways to an update: the difference of means (of vectors only), and the objectives of W."""


@dataclass(frozen=True)
class ExperimentSettings:
    """Everything that is set.

    Attributes:
        concepts: names of concepts.
        layers: numbers of blocks, or "early", "middle" and "last".
        variants: how the model is steered (`VARIANTS`). The first is used by all stages at all layers; the others give
            next-token curves at the middle layer.
        seed: of everything random.
        prompts, vectors, next_token, concept, cross_entropy, mmlu, updates: of the stages.
    """

    concepts: tuple[str, ...] = ("joy", "evil")
    layers: tuple[int | str, ...] = ("early", "middle", "last")
    variants: tuple[str, ...] = ("random", "contrastive", "normalised", "last-token", "resampled")
    seed: int = 0
    prompts: Prompts = field(default_factory=Prompts)
    vectors: Vectors = field(default_factory=Vectors)
    next_token: NextToken = field(default_factory=NextToken)
    concept: ConceptProbability = field(default_factory=ConceptProbability)
    cross_entropy: CrossEntropy = field(default_factory=CrossEntropy)
    mmlu: Mmlu = field(default_factory=Mmlu)
    updates: Updates = field(default_factory=Updates)

    def __post_init__(self) -> None:
        for part in (setting for setting in fields(self) if is_dataclass(getattr(self, setting.name))):
            _check(part.name, getattr(self, part.name))
        for name in ("concepts", "layers", "variants"):
            _names(getattr(self, name), name)
        require(0 <= self.seed < 2**32, "seed", "a number from 0 on, below 2^32", self.seed)
        known = [*VARIANTS, "resampled"]
        for concept in self.concepts:
            free = bool(concept.strip()) and concept != "random" and not concept.startswith("not ")
            require(free, "concepts", 'names other than random, and without "not " before them', repr(concept))
        known_names("variants", self.variants, known)
        require(self.variants[0] != "resampled", "variants", "another one than resampled at first", "resampled")

    @property
    def main(self) -> Variant:
        """The variant that all stages use."""
        return VARIANTS[self.variants[0]]

    @property
    def steered(self) -> tuple[Variant, ...]:
        """All variants, one for each bootstrap sample."""
        variants = []
        for name in self.variants:
            if name == "resampled":
                count = self.vectors.resamples
                variants += [self.main._replace(name=f"resampled {k}", resample=k) for k in range(1, count + 1)]
            else:
                variants.append(VARIANTS[name])
        return tuple(variants)

    @property
    def middle(self) -> int:
        """The middle one of the layers that are steered, whose names must have been replaced by numbers."""
        return sorted(int(layer) for layer in self.layers)[(len(self.layers) - 1) // 2]

    def for_model(self, a: Config) -> "ExperimentSettings":
        """These settings with layers as numbers.

        Raises:
            ValueError: a layer that the model does not have.
        """
        names = layers_by_name(a.num_layers)

        def number(layer: int | str, name: str) -> int:
            block = names.get(layer) if isinstance(layer, str) else layer
            known = f"a block from 0 to {a.num_layers - 1}, early, middle or last"
            require(block is not None and 0 <= block < a.num_layers, name, known, repr(layer))
            assert block is not None
            return block

        # In a model of few blocks early and middle may be the same.
        layers = sorted({number(layer, "layers") for layer in self.layers})
        updates = replace(self.updates, layer=number(self.updates.layer, "updates.layer"))
        widest = min(a.d_model, a.d_mlp)
        require(updates.rank <= widest, "updates.rank", f"at most {widest}, the smaller width of the site", updates.rank)
        return replace(self, layers=tuple(layers), updates=updates)

    def changed(self, changes: Mapping[str, Any]) -> "ExperimentSettings":
        """These settings with other values, by names such as "seed" or "next_token.strengths".

        A text is read as JSON if it is JSON; where a list is set, as the entries of one with commas between them.

        Raises:
            ValueError: an unknown name, a value of another type.
        """
        whole = self.as_json()
        for name, value in changes.items():
            part: Any = whole
            for key in name.split("."):
                require(isinstance(part, dict), "set", "the name of a setting", repr(name))
                require(key in part, "set", f"one of {', '.join(part)}", repr(name))
                group, part = part, part[key]
            require(not isinstance(part, dict), "set", f"the name of one setting of {name}", repr(name))
            group[key] = _value(value, isinstance(part, list))
        return _read(whole, "set")

    def as_json(self) -> dict[str, Any]:
        """These settings as plain data, which `from_json` reads."""
        return json.loads(json.dumps(asdict(self)))


def layers_by_name(count: int) -> dict[str, int]:
    """The blocks that are called early, middle and last, of so many."""
    return {"early": count // 4, "middle": count // 2, "last": count - 1}


def from_json(data: Mapping[str, Any]) -> ExperimentSettings:
    """Settings from what `ExperimentSettings.as_json` gave.

    Raises:
        ValueError: an unknown setting, such as one of an older version; a value of another type.
    """
    return _read(data, "settings")


_schema = functools.cache(lambda: TypeAdapter(ExperimentSettings))


def _read(data: Mapping[str, Any], argument: str) -> ExperimentSettings:
    """Settings from plain data; what pydantic finds wrong with them is said as `require` says it."""
    try:
        return _schema().validate_json(json.dumps(data, default=repr), strict=True, extra="forbid")
    except ValidationError as error:
        details = error.errors(include_url=False)
    # A place may end in a number in a list and in one of the types that a value may have.
    places = [[key for key in problem["loc"] if isinstance(key, str) and key not in ("int", "str")] for problem in details]
    problems = list(zip(map(".".join, places), details, strict=True))
    versions = {"unexpected_keyword_argument": "", "missing": "no "}
    others = [versions[problem["type"]] + name for name, problem in problems if problem["type"] in versions]
    require(not others, argument, "those of this version", ", ".join(others))
    name, first = problems[0]
    if first["type"] == "value_error":
        raise first["ctx"]["error"]
    kinds = [_KINDS.get(problem["type"], problem["msg"]) for other, problem in problems if other == name]
    wanted = " or ".join(dict.fromkeys(kinds)).removeprefix("Input should be ")
    raise ValueError(f"{argument}: expected {wanted} for {name or 'the whole'}, got {first['input']!r}")


_KINDS = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false", "string_type": "a name"}
"""The type that a setting must have, by the name of pydantic's error."""


def _value(value: Any, listed: bool) -> Any:
    """A text as JSON, or as names and numbers with commas between them; one entry as a list of it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            parts = [part.strip() for part in value.split(",")] if listed else []
            value = [int(part) if part.lstrip("-").isdigit() else part for part in parts] or value
    return [value] if listed and not isinstance(value, list | tuple) else value


def differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The entries in which two nested mappings differ, one line for each."""
    lines = []
    for name in sorted({*stored, *here}):
        old, new = stored.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += [f"{name}.{line}" for line in differences(old, new)]
        elif old != new:
            lines.append(f"{name} {_short(old)} there, {_short(new)} here")
    return lines


def grid(count: int, reach: float, spread: float) -> Float[np.ndarray, " K"]:
    """Strengths from ``-reach`` to ``reach`` with 0 in the middle, denser there the larger `spread`."""
    half = count // 2
    even = np.arange(-half, half + 1) / max(half, 1)
    return reach * (even if spread == 0 else np.sinh(spread * even) / np.sinh(spread))


LARGEST = 1e6
"""The largest value of any setting. Beyond it a strength leaves no digits of the state, and a count makes a run endless."""


def _check(name: str, part: Any) -> None:
    """Require counts of at least 1, odd numbers of strengths and ranges of at least 0."""
    for setting in fields(part):
        value, what = getattr(part, setting.name), f"{name}.{setting.name}"
        if setting.name in ("strengths", "law_strengths"):
            odd = 3 <= value <= LARGEST and value % 2 == 1
            require(odd, what, f"an odd number from 3 on, so that 0 is among them, at most {LARGEST:g}", value)
        elif setting.name in ("reach", "normalised_reach"):
            require(0 < value <= LARGEST, what, f"a number above 0, at most {LARGEST:g}", value)
        elif setting.name in ("spread", "resamples", "shots"):
            require(0 <= value < 100, what, "a number from 0 to 99", value)
        elif what == "cross_entropy.tokens":
            require(2 <= value <= LARGEST, what, f"at least 2, at most {LARGEST:g}", value)
        elif isinstance(value, int) and not isinstance(value, bool) and what != "updates.layer":
            require(1 <= value <= LARGEST, what, f"at least 1, at most {LARGEST:g}", value)
    if hasattr(part, "sampling"):
        _ = part.sampling


def _names(values: Sequence[Any], what: str) -> None:
    """Require at least one value, and no value twice."""
    require(len(values) > 0, what, "at least one", "none")
    require(len(set(values)) == len(values), what, "different ones", ", ".join(map(str, values)))


def _numbers(part: Any, inside: str, *, above: Sequence[str], least: Sequence[str]) -> None:
    """Require values above 0 and values of at least 0, none above `LARGEST`."""
    for name in (*above, *least):
        value, range_of_values = getattr(part, name), "above 0" if name in above else "of at least 0"
        good = (value > 0 if name in above else value >= 0) and value <= LARGEST
        require(good, f"{inside}{name}", f"a number {range_of_values}, at most {LARGEST:g}", value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


PRESETS = {
    "laptop": ExperimentSettings(),
    "paper": ExperimentSettings(
        concepts=CONCEPTS,
        updates=Updates(chat=True, strengths=41, spread=0.0),
        prompts=Prompts(texts=500, max_new_tokens=300, batch=250),
        vectors=Vectors(tokens=300, averaged="all", unit="vector", resamples=5, batch=8),
        next_token=NextToken(strengths=1025, reach=200.0, spread=0.0, contexts=1),
        concept=ConceptProbability(
            strengths=41, reach=40.0, spread=0.0, prompts=12, completions=32, max_new_tokens=100, batch=384, chat=True
        ),
        cross_entropy=CrossEntropy(strengths=129, reach=100.0, spread=0.0, blocks=8192, part=64),
        mmlu=Mmlu(strengths=21, reach=10.0, spread=0.0, questions=100_000, part=50),
    ),
    "smoke": ExperimentSettings(
        concepts=("joy",),
        layers=("middle", "last"),
        variants=("random", "contrastive"),
        updates=Updates(
            concepts=("optimistic",),
            forms=("vector", "lora"),
            methods=("difference", "split"),
            trained=8,
            held_out=2,
            epochs=1,
            strengths=9,
            part=9,
            law_layers=2,
            law_pairs=2,
            law_strengths=9,
        ),
        prompts=Prompts(texts=4, max_new_tokens=12, batch=12),
        vectors=Vectors(tokens=12, resamples=0, batch=4),
        next_token=NextToken(strengths=33, kept=20, context=16, contexts=1),
        concept=ConceptProbability(strengths=5, prompts=2, completions=1, max_new_tokens=8, batch=10, judged_together=5),
        cross_entropy=CrossEntropy(strengths=5, blocks=2, tokens=16, part=2),
        mmlu=Mmlu(strengths=3, shots=2, questions=4, part=4),
    ),
}
"""Settings by name. S has 1,024 and 128 strengths, 0 included; here their number is odd, so that 0 is in the middle."""

SMOKE_DURATION = "all stages of the preset smoke take about two minutes with the default model on two cores"
"""How long `ufm lm all` takes with the preset smoke."""

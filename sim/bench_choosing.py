"""Is the chosen strength any good? Ways to choose one, side by side on prompts that none of them saw.

Every way gets the same prompts, the same concept and, where it takes one, the same budget. What its strength costs and buys
is measured on other prompts, on text that the model writes with other randomness. One strength by each way, for each model,
concept and layer, is a cell; a table shows the medians over cells, and in how many the cost paid is near the budget asked.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sim.bridge import fetch
from sim.bridge.model import LanguageModel, load
from sim.choosing.criteria import LossRise, statistic
from sim.choosing.rollouts import Effects, FixedText, Rollouts, Writer, promoted, prompts_alone
from sim.choosing.search import choose
from sim.directions.extraction import make_vector
from sim.directions.texts import CONCEPTS, concept_pairs, json_lines
from sim.directions.vector import SteeringVector
from sim.output import finite_or_none, package_version, writable_file, write_whole
from ufm._check import known_names, require, shown

PEOPLE = (
    "my sister",
    "the old man",
    "our teacher",
    "a friend of mine",
    "the driver",
    "the woman next door",
    "my cousin",
    "the doctor",
)
SITUATIONS = (
    "Yesterday {} told me that",
    "On Monday {} opened the door and",
    "When I asked, {} said that",
    "After lunch {} sat down and began to",
    "From the window {} could see",
    "Every summer {} goes to",
    "In the letter {} wrote that",
    "At the station {} met",
)

NEAR = 0.2
"""A cost paid within this share of the budget counts as near it."""

COLLAPSED = 2.0
"""A text has collapsed if the unsteered model's loss on it is so many nats per token above that on its own, or if it repeats
itself (`sim.choosing.rollouts.Rollouts`)."""


def prompts(held_out: bool) -> list[str]:
    """32 beginnings to choose on, or 32 others to try the choice on."""
    cells = product(range(len(SITUATIONS)), range(len(PEOPLE)))
    return [SITUATIONS[i].format(PEOPLE[j]) for i, j in cells if (i + j) % 2 == int(held_out)]


@dataclass(frozen=True)
class ChoiceOutcome:
    """The outcome of one way to choose a strength in one cell.

    Attributes:
        model, concept, layer, way: which.
        alpha: the strength; NaN if the way gave none.
        passes: what it took, in passes of the model over prompts and continuations.
        seconds: the same as time.
        p95, mean: KL per token paid on other prompts, nats.
        share: the concept's share there, and `before` without steering.
        before: see `share`.
        collapsed: share of the texts that collapsed, and `collapsed_before` of those without steering.
        collapsed_before: see `collapsed`.
    """

    model: str
    concept: str
    layer: int
    way: str
    alpha: float
    passes: float
    seconds: float
    p95: float
    mean: float
    share: float
    before: float
    collapsed: float
    collapsed_before: float


class Strength(NamedTuple):
    """A strength that a way chose.

    Attributes:
        alpha: the strength; NaN if there is none.
        passes: what it took, in passes of the model over prompts and continuations.
    """

    alpha: float
    passes: float


@dataclass(frozen=True)
class Trial:
    """One cell: a model, a vector and a layer, for which each way chooses a strength.

    Attributes:
        lm: the model.
        vector: of the concept.
        layer: to steer after.
        budget: KL per token at the 95th percentile, nats.
        horizon: tokens of a continuation.
        count: how many of the prompts are used, to choose on and to try on.
    """

    lm: LanguageModel
    vector: SteeringVector
    layer: int
    budget: float
    horizon: int
    count: int

    def ours(self) -> Strength:
        """`sim.choose` with the budget."""
        return self._chosen(budget=self.budget)

    def alert(self) -> Strength:
        """The strength at which the unsteered model's loss on the text has risen by a fifth."""
        return self._chosen(criteria=[LossRise(0.2)])

    def ratio(self) -> Strength:
        """The strength at which the addition is half as long as the states of the model's own text."""
        base = self.writer(held_out=False, seed=0)()
        length = float(np.linalg.norm(self.vector[self.layer]))
        return Strength(0.5 * FixedText.of(self.lm, base, self.steering).scale / length, 2.0)

    def unit_strength(self) -> Strength:
        """Strength 1, the difference of the means itself."""
        return Strength(1.0, 0.0)

    def bisection(self, start: float = 1.0) -> Strength:
        """The budget by doubling and halving: at every strength the model writes, and both models read what it wrote.

        Args:
            start: the first strength. From another one, others are looked at, and where the statistic jumps from text to
                text the end is another, too.
        """
        writer, passes = self.writer(held_out=False, seed=0), 0.0

        def within(alpha: float) -> bool:
            nonlocal passes
            passes += 3
            rollouts = writer(self.steering, alpha)
            return statistic(self.effects(rollouts, alpha).kl, "p95") < self.budget

        if within(start):
            low, high = start, 2 * start
            while within(high):
                low, high = high, 2 * high
                if high > 1e6:
                    return Strength(np.nan, passes)
        else:
            low, high = start / 2, start
            while not within(low):
                low, high = low / 2, low
        while high / low > 1.01:
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if within(middle) else (low, middle)
        return Strength(low, passes)

    def _chosen(self, **limits: Any) -> Strength:
        choice = choose(
            self.lm,
            self.vector,
            prompts(held_out=False)[: self.count],
            layer=self.layer,
            horizon=self.horizon,
            completions=0,
            **limits,
        )
        return Strength(np.nan if choice.alpha is None else choice.alpha, choice.passes)

    @property
    def steering(self) -> Any:
        """The vector at the layer."""
        return self.vector.steering(self.layer)

    def writer(self, *, held_out: bool, seed: int) -> Writer:
        """A writer of continuations of the prompts to choose on, or of the others."""
        return Writer.of(self.lm, prompts(held_out)[: self.count], self.horizon, seed=seed)

    @cached_property
    def members(self) -> Any:
        """The tokens that the vector promotes in the prompts to choose on: those that `sim.choose` takes, ``[V]``."""
        alone = prompts_alone(self.writer(held_out=False, seed=0).prompts)
        text = FixedText.of(self.lm, alone, self.steering, skip=False)
        return jnp.asarray(promoted(text.tilt(jnp.zeros(self.lm.config.vocab_size, bool))[1], 1))

    @cached_property
    def unsteered(self) -> tuple[Rollouts, Effects]:
        """What the model writes after the other prompts by itself, and its predictions: every way is compared with them."""
        written = self.writer(held_out=True, seed=1)()
        return written, self.effects(written, 0.0, self.members)

    def effects(self, rollouts: Rollouts, alpha: float, members: Any = None) -> Effects:
        """The effects of a strength on the predictions of texts."""
        nobody = jnp.zeros(self.lm.config.vocab_size, bool)
        text = FixedText.of(self.lm, rollouts, self.steering)
        return text.effects(alpha, nobody if members is None else members)

    def outcome(self, way: str, alpha: float, passes: float, seconds: float) -> ChoiceOutcome:
        """The cost and the effect of a strength on other prompts.

        Args:
            way: that gave it.
            alpha, passes, seconds: what it gave, and what that took.
        """
        name, concept = self.lm.name.rsplit("/", 1)[-1], self.vector.name
        if not np.isfinite(alpha):
            return ChoiceOutcome(name, concept, self.layer, way, alpha, passes, seconds, *[np.nan] * 6)
        written, (alone, unsteered) = self.writer(held_out=True, seed=1)(self.steering, alpha), self.unsteered
        paid = self.effects(written, alpha, self.members)
        costs = (statistic(paid.kl, "p95"), statistic(paid.kl, "mean"))
        shares = (float(np.nanmean(paid.share)), float(np.nanmean(unsteered.share)))
        most = float(np.nanmean(unsteered.loss)) + COLLAPSED
        collapsed = (_collapsed(written, paid, most), _collapsed(alone, unsteered, most))
        return ChoiceOutcome(name, concept, self.layer, way, alpha, passes, seconds, *costs, *shares, *collapsed)


def _collapsed(written: Rollouts, effects: Effects, most: float) -> float:
    """The share of texts that repeat themselves, or on which the unsteered model's mean loss is above `most`."""
    return float(np.mean(written.repeating | (np.nanmean(effects.loss, axis=1) > most)))


WAYS: dict[str, Callable[[Trial], Strength]] = {
    "ours": Trial.ours,
    "bisection": Trial.bisection,
    "ALERT": Trial.alert,
    "ratio 0.5": Trial.ratio,
    "alpha = 1": Trial.unit_strength,
}
"""Ways to choose a strength, each from a cell to a strength and the passes it took."""


def run(
    models: Sequence[str] = (fetch.NAME,),
    concepts: Sequence[str] = CONCEPTS,
    *,
    depths: Sequence[float] = (0.5,),
    ways: Sequence[str] = tuple(WAYS),
    budget: float = 1.0,
    horizon: int = 50,
    count: int = 32,
    kept: str | Path | None = None,
) -> list[ChoiceOutcome]:
    """Choose strengths in every cell, by every way, and try them on other prompts.

    Args:
        models: what `sim.load` takes.
        concepts: of the library.
        depths: layers, as a share of all.
        ways: some of `WAYS`.
        budget: KL per token at the 95th percentile, nats.
        horizon: tokens of a continuation.
        count: prompts to choose on, and to try on, at most 32.
        kept: a file of JSON lines that every outcome is put down in as soon as it is there. What is in it already, of the
            same model and settings and by this version, is not measured again.

    Raises:
        ValueError: an unknown way or concept; a file of something else.
    """
    known_names("ways", ways, WAYS)
    known_names("concepts", concepts, CONCEPTS)
    store = None if kept is None else OutcomeFile(writable_file(kept, "kept"))
    outcomes = []
    cells = [(concept, depth) for concept in concepts for depth in depths]
    for name in models:
        lm = load(name)
        settings: dict[str, Any] = {"version": package_version(), "fingerprint": lm.fingerprint}
        settings |= {"budget": budget, "horizon": horizon, "count": count}
        for concept, depth in tqdm(cells, desc=str(name).rsplit("/", 1)[-1], disable=None):
            layer = round(depth * (lm.config.num_layers - 1))
            known = {} if store is None else store.outcomes_of(settings, concept, layer)
            absent = [way for way in ways if way not in known]
            for outcome in _measured(absent, lm, concept, layer, budget, horizon, count):
                known[outcome.way] = outcome
                if store is not None:
                    store.add(settings, outcome)
            outcomes += [known[way] for way in ways]
    return outcomes


def _measured(ways: Sequence[str], *cell: Any) -> Iterator[ChoiceOutcome]:
    """The outcomes of ways in a cell, timed, as they come."""
    if ways:
        trial = _trial(*cell)
        for way in ways:
            start = time.perf_counter()
            alpha, passes = WAYS[way](trial)
            yield trial.outcome(way, alpha, passes, time.perf_counter() - start)


def _trial(lm: LanguageModel, concept: str, layer: int, budget: float, horizon: int, count: int) -> Trial:
    """A cell, with what all ways are compared with looked at before any of them is timed."""
    vector = make_vector(lm, pairs=concept_pairs(concept), name=concept, progress=False)
    trial = Trial(lm, vector.at(layer), layer, budget, horizon, count)
    _ = trial.members, trial.unsteered
    return trial


class OutcomeFile:
    """A file of JSON lines, one for each outcome, with the settings that it was measured at.

    Args:
        path: of the file, which need not be there yet.

    Raises:
        ValueError: a line that is no outcome; names the file and the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[tuple[dict[str, Any], ChoiceOutcome]] = []
        if path.is_file():
            self.lines = [_outcome_of(line, where) for where, line in json_lines(path, "kept")]

    def outcomes_of(self, settings: dict[str, Any], concept: str, layer: int) -> dict[str, ChoiceOutcome]:
        """The outcomes of a cell at some settings, by way."""
        at_settings = (known for used, known in self.lines if used == settings)
        return {known.way: known for known in at_settings if (known.concept, known.layer) == (concept, layer)}

    def add(self, settings: dict[str, Any], outcome: ChoiceOutcome) -> None:
        """Put an outcome down, and the file on disk with it."""
        self.lines.append((settings, outcome))
        rows = [used | {name: finite_or_none(value) for name, value in asdict(known).items()} for used, known in self.lines]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_whole(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _outcome_of(line: Any, where: str) -> tuple[dict[str, Any], ChoiceOutcome]:
    """Settings and an outcome, from a line of a file."""
    names = [field.name for field in fields(ChoiceOutcome)]
    is_one = isinstance(line, dict) and set(names) <= set(line)
    require(is_one, where, "an outcome of `ufm bench choosing`", shown(line))
    values: dict[str, Any] = {name: math.nan if line[name] is None else line[name] for name in names}
    return {name: value for name, value in line.items() if name not in names}, ChoiceOutcome(**values)


def case(
    seed: int = 0, models: Sequence[str] = (), concepts: Sequence[str] = (), kept: str | Path | None = None
) -> dict[str, float]:
    """Ways to choose a strength on concepts of the library: passes, seconds, and what is paid on other prompts."""
    del seed  # prompts and seeds of texts are part of the case
    outcomes = run(models or (fetch.NAME,), concepts or CONCEPTS, kept=kept)
    tqdm.write(as_table(outcomes, 1.0))
    table = figures(outcomes, 1.0)
    medians = {f"{way}: {name}": value for way, row in table.items() for name, value in row.items()}
    # A way that gave no strength in any cell has no medians.
    return {name: value for name, value in medians.items() if math.isfinite(value)}


def figures(outcomes: Sequence[ChoiceOutcome], budget: float) -> dict[str, dict[str, float]]:
    """The medians over cells of every way, and the share of cells where the cost paid is near the budget.

    Args:
        outcomes: of `run`.
        budget: what was asked for.
    """
    result = {}
    for way in dict.fromkeys(outcome.way for outcome in outcomes):
        rows = [asdict(outcome) for outcome in outcomes if outcome.way == way]
        names = ("passes", "seconds", "p95", "mean", "share", "before", "collapsed", "collapsed_before")
        medians = {name: float(np.nanmedian([row[name] for row in rows])) for name in names}
        near = np.mean([abs(row["p95"] / budget - 1) <= NEAR for row in rows])
        result[way] = {"cells": float(len(rows)), "near the budget": float(near), **medians}
    return result


def as_table(outcomes: Sequence[ChoiceOutcome], budget: float) -> str:
    """The figures as text, and every cell below them."""
    table = figures(outcomes, budget)
    names = list(next(iter(table.values())))
    lines = [f"{'way':<12}" + "".join(f"{name:>17}" for name in names)]
    lines += [f"{way:<12}" + "".join(f"{row[name]:>17.3g}" for name in names) for way, row in table.items()]
    lines += [
        "",
        "model            concept      layer way             alpha  passes seconds   p95  mean  share  before"
        " collapsed  before",
    ]
    for o in outcomes:
        lines.append(
            f"{o.model[:16]:<17}{o.concept[:12]:<13}{o.layer:5d} {o.way:<12}{o.alpha:10.4g}{o.passes:8.1f}{o.seconds:8.1f}"
            f"{o.p95:7.3g}{o.mean:6.2g}{o.share:7.3f}{o.before:8.3f}{o.collapsed:10.2f}{o.collapsed_before:8.2f}"
        )
    return "\n".join(lines)

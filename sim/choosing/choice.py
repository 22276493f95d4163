"""What a choice of strength is: the strength, or why there is none; its cost and its use; and what is certain of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sim.choosing.bounds import Bound
from sim.choosing.criteria import statistic
from sim.choosing.rollouts import Effects
from ufm.steering import Steering

NAMED = 12
"""Tokens of the concept that a text names."""


@dataclass(frozen=True)
class Cost:
    """KL per token from the unsteered to the steered prediction, nats, on text of the steered model.

    Attributes:
        mean, p95, max: over all predictions.
        cumulative: the sum over a continuation, the mean over prompts.
    """

    mean: float
    p95: float
    max: float
    cumulative: float

    @classmethod
    def of(cls, effects: Effects) -> "Cost":
        """The cost of a strength."""
        mean, p95, most = (statistic(effects.kl, name) for name in ("mean", "p95", "max"))
        return cls(mean, p95, most, float(np.nansum(effects.kl, axis=1).mean()))


@dataclass(frozen=True)
class PromptChoice:
    """What the strength is to one prompt.

    Attributes:
        prompt: the end of it, as text if there is a tokenizer.
        cost: KL per token at the common strength, the mean over its continuation, nats; None if no prediction counts.
        share: the concept's share there; None with `cost`.
        own_alpha: the strength that the first-order rule of N23 gives it; for the same mean cost near 0 more share in total.
            No answer for the prompt by itself: at large budgets the common strength may serve better. None for a prompt of
            one token, in which nothing is predicted.
    """

    prompt: str
    cost: float | None
    share: float | None
    own_alpha: float | None


@dataclass(frozen=True)
class Point:
    """A strength that was looked at.

    Attributes:
        alpha: the strength.
        cost: KL per token.
        share: mean probability of the concept's tokens.
        on: the strength that the text was written at.
    """

    alpha: float
    cost: Cost
    share: float
    on: float


@dataclass(frozen=True)
class Choice:
    """One strength, or the reason why there is none.

    Attributes:
        alpha: the strength, in units of the vector; None if there is none.
        layer: the first block that is steered.
        interval: 90 % of bootstrap samples of the prompts give a strength in it; None without one, or for one prompt.
        per_prompt: what it is to each prompt.
        cost: None without a strength.
        share: the concept's share before and after, the mean over predictions.
        shown: the share of the texts that show the concept, before and after, where one of texts was asked for.
        least_cost: nats per token that any intervention pays for this change of the share (N15).
        efficiency: the part of the mean cost that is, between 0 and 1; None where nothing is paid.
        safe_alpha: strengths that bounds allow for the budget, by number (`sim.choosing.bounds`).
        guess: N9's strength, from one derivative at 0 on the prompts.
        stopped_by: the limit that a larger strength would break, "finite logits" if that gives none, or "share", which a
            smaller one would miss.
        passes: what the choice took, in passes of the model over all prompts and continuations.
        reason: why there is no strength, or what went wrong on the way; "" if nothing.
        steering: what was asked about.
        tokens: the concept's tokens.
        words: their texts; none for a model without a tokenizer.
        points: all strengths that were looked at.
        completions: what the model writes after the first prompts, by strength.
        settings: what was asked for.
        frontier: where layers were compared, what each is good for (`sim.choosing.layers.LayerPoint`).
        others: where layers were compared, the choices at those that were not taken.
    """

    alpha: float | None
    layer: int
    interval: tuple[float, float] | None
    per_prompt: tuple[PromptChoice, ...]
    cost: Cost | None
    share: tuple[float, float]
    least_cost: float | None
    efficiency: float | None
    safe_alpha: dict[str, Bound]
    guess: float
    stopped_by: str
    passes: float
    reason: str
    steering: Steering
    tokens: tuple[int, ...]
    points: tuple[Point, ...]
    words: tuple[str, ...] = ()
    shown: tuple[float, float] | None = None
    completions: dict[float, tuple[str, ...]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    frontier: tuple[Any, ...] = field(default=())
    others: tuple["Choice", ...] = field(default=())

    @property
    def written_at(self) -> float | None:
        """The strength that the text was written at on which this one was solved; None without a strength."""
        return next((point.on for point in reversed(self.points) if point.alpha == self.alpha), None)

    @property
    def bounds(self) -> dict[str, Bound]:
        """`safe_alpha`, where a budget was asked for; nothing otherwise."""
        return {} if self.settings.get("budget") is None else self.safe_alpha

    def as_json(self) -> dict[str, Any]:
        """The choice as names and numbers; names are fixed. A bound that allows all strengths has an `alpha` of None."""
        before, after = self.share
        return {
            "alpha": self.alpha,
            "layer": self.layer,
            "interval": self.interval,
            "per_prompt": [asdict(prompt) for prompt in self.per_prompt],
            "cost": None if self.cost is None else asdict(self.cost),
            "share": {"before": before, "after": after},
            "shown": None if self.shown is None else dict(zip(("before", "after"), self.shown, strict=True)),
            "least_cost": self.least_cost,
            "efficiency": self.efficiency,
            "tokens": list(self.tokens),
            "words": list(self.words),
            "safe_alpha": {name: _as_json(bound) for name, bound in self.safe_alpha.items()},
            "guess": self.guess,
            "stopped_by": self.stopped_by,
            "passes": self.passes,
            "written_at": self.written_at,
            "reason": self.reason,
            "guarantees": self.guarantees,
            "points": [asdict(point) for point in sorted(self.points, key=lambda point: (point.on, point.alpha))],
            "completions": {f"{alpha:g}": list(texts) for alpha, texts in self.completions.items()},
            "settings": self.settings,
            "frontier": [asdict(point) for point in self.frontier],
        }

    @property
    def guarantees(self) -> dict[str, list[str]]:
        """What is certain, what holds under assumptions, and what was measured: sentences."""
        certain: list[str] = []
        assumed: list[str] = []
        measured: list[str] = []
        if self.alpha is not None and self.cost is not None:
            certain.append(
                f"no intervention of any kind moves {share_in_words(self.settings)} from {self.share[0]:.3g} to "
                f"{self.share[1]:.3g} on these texts for less than {self.least_cost:.3g} nats per token (N15)"
            )
            measured.append(
                f"KL per token is {self.cost.mean:.3g} in the mean and {self.cost.p95:.3g} at the 95th percentile, on text "
                f"that the model steered at {self.written_at:.4g} wrote after {prompts_in_words(len(self.per_prompt))}"
                + (
                    ""
                    if self.interval is None
                    else "; for 90 % of bootstrap samples of the prompts the strength is between {:.4g} and {:.4g}".format(
                        *self.interval
                    )
                )
            )
        for name, bound in self.bounds.items():
            reach = "at every strength" if np.isinf(bound.alpha) else f"up to strength {bound.alpha:.3g}"
            words = f"in the prompts the budget is kept {reach} ({name})"
            (certain if bound.is_theorem else assumed).append(
                words if bound.is_theorem else f"{words}, given {bound.assumes}"
            )
        return {"theorems": certain, "under_assumptions": assumed, "measured": measured}

    def table(self) -> str:
        """Each prompt with the strength that N23 gives it, and its cost and share at the common strength, as text."""
        common = "" if self.alpha is None else f"cost and share at the common strength {self.alpha:.4g}; "
        lines = [f"{common}own strength: a rule for small budgets (N23)", "      cost     share  own strength  prompt"]
        for p in self.per_prompt:
            cost, share = ("-" if value is None else f"{value:.3g}" for value in (p.cost, p.share))
            own = "-" if p.own_alpha is None else f"{p.own_alpha:.4g}"
            lines.append(f"{cost:>10}{share:>10}{own:>14}  {p.prompt}")
        return "\n".join(lines)

    def frontier_table(self) -> str:
        """What each layer is good for, as text."""
        wrong = "falls" if aim_of(self.settings) > 0 else "rises"
        lines = [f"     block  rho^2, -: share {wrong}  strength  mean cost    share"]
        for point in self.frontier:
            known = (point.alpha, point.cost, point.share)
            cells = [" " * 10 if value is None else f"{value:10.3g}" for value in known]
            lines.append(f"{point.layer:10d}{point.rho_squared:24.3f}{''.join(cells)}".rstrip())
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        before, after = self.share
        if self.alpha is None or self.cost is None:
            lines = [f"no strength at block {self.layer}: {self.reason}"]
        else:
            over = "" if self.interval is None else " ({:.4g} to {:.4g} over prompts)".format(*self.interval)
            stopped = "a smaller one misses the share" if self.stopped_by == "share" else f"stopped by {self.stopped_by}"
            lines = [
                f"alpha {self.alpha:.4g} at block {self.layer}{over}; {stopped}",
                f"costs {self.cost.mean:.3g} nats per token (95th percentile {self.cost.p95:.3g}, "
                f"largest {self.cost.max:.3g}, {self.cost.cumulative:.3g} over a continuation)",
                f"moves {share_in_words(self.settings)} from {before:.3g} to {after:.3g}"
                + (
                    ""
                    if self.efficiency is None
                    else f", for which any intervention pays at least {self.efficiency:.2g} of that cost"
                ),
            ]
            if self.shown is not None:
                lines.append("texts that show the concept: {:.1%} without steering, {:.1%} with it".format(*self.shown))
            more = f" and {len(self.words) - NAMED} more" if len(self.words) > NAMED else ""
            guessed = self.settings.get("tokens") == "promoted"
            what = "taken for the concept's tokens, as steering promotes them most" if guessed else "the concept's tokens"
            lines += [f"{what}: {', '.join(map(repr, self.words[:NAMED]))}{more}"] if self.words else []
            lines += ["(name others with --tokens)"] if self.words and guessed else []
            lines += [f"note: {self.reason}"] if self.reason else []
        for kind, words in zip(("theorem", "assumed", "measured"), self.guarantees.values(), strict=True):
            lines += [f"{kind}: {sentence}" for sentence in words]
        return [*lines, f"first guess {self.guess:.4g}; {self.passes:.1f} passes of the model"]


def prompts_in_words(count: int) -> str:
    """A number of prompts in words."""
    return f"{count} prompt{'s' if count != 1 else ''}"


def share_in_words(settings: Mapping[str, Any]) -> str:
    """Whose share a choice speaks of."""
    promoted = settings.get("tokens") == "promoted"
    return "the mean share of the tokens that steering promotes" if promoted else "the concept's mean share"


def aim_of(settings: Mapping[str, Any]) -> int:
    """What is wanted of the concept's share: 1 if it is to rise, -1 if it is to fall, away from tokens that were named."""
    return -1 if settings.get("sign", 1) < 0 and settings.get("tokens") == "given" else 1


def _as_json(bound: Bound) -> dict[str, Any]:
    """A bound without an infinite number, which JSON has not."""
    return asdict(bound) | ({"alpha": None} if np.isinf(bound.alpha) else {})

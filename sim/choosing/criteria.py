"""What a strength may cost, or must reach: criteria that `sim.choose` combines.

A criterion gives a number from what a strength does (`sim.choosing.rollouts.Effects`), and the limit for it. Ceilings are
combined by taking the strength at which the first of them is reached; a floor, `ShareAtLeast` or `TextsAtLeast`, asks for
the least strength.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm._check import finite, finite_number, require, shown

STATISTICS = ("p95", "mean", "max")
"""Over the predictions of all texts: the 95th percentile, the mean, the largest."""


def statistic(values: Float[np.ndarray, "*n"], name: str) -> float:
    """One of `STATISTICS` of numbers; NaN marks those that do not count.

    Raises:
        ValueError: another name.
    """
    require(name in STATISTICS, "statistic", f"one of {', '.join(STATISTICS)}", repr(name))
    counted = np.asarray(values, float)
    counted = counted[~np.isnan(counted)]
    if name == "p95":
        return float(np.quantile(counted, 0.95))
    return float(counted.mean() if name == "mean" else counted.max())


@dataclass(frozen=True)
class Situation:
    """What a criterion is told of a strength.

    Attributes:
        effects: on each prediction.
        alpha: the strength.
        relative: length of what is added, in units of the median length of the states; NaN if nothing is added.
        base_loss: of the unsteered model on its own text, per token; NaN unless a criterion needs it.
        aim: 1 if the concept's share is to rise, -1 if it is to fall.
    """

    effects: Any
    alpha: float
    relative: float = field(default=np.nan)
    base_loss: float = field(default=np.nan)
    aim: int = 1


@dataclass(frozen=True)
class Ceiling:
    """A criterion that a small strength meets: `excess` grows, and crosses 0 where the limit is reached."""

    @property
    def name(self) -> str:
        """What stopped a strength, in one word.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError

    @property
    def needs_base_text(self) -> bool:
        """Whether it compares with text of the unsteered model."""
        return False

    @property
    def needs_slope(self) -> bool:
        """Whether it needs the derivative of the share."""
        return False

    def excess(self, situation: Situation) -> float:
        """How far over the limit, as a logarithm; below 0 within it.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class KLBudget(Ceiling):
    """KL per token within a budget.

    Attributes:
        nats: the budget.
        of: the statistic over tokens, one of `STATISTICS`.
        reverse: whether KL is from the steered to the unsteered prediction, in place of the other way round.
    """

    nats: float = 1.0
    of: str = "p95"
    reverse: bool = False

    def __post_init__(self) -> None:
        _as_float(self, "nats", "budget", "a number of nats above 0", lambda nats: nats > 0)
        require(self.of in STATISTICS, "statistic", f"one of {', '.join(STATISTICS)}", repr(self.of))

    @property
    def name(self) -> str:
        """What stopped a strength, in one word."""
        return "budget"

    def value(self, effects: Any) -> float:
        """The statistic, in nats."""
        return statistic(effects.reverse_kl if self.reverse else effects.kl, self.of)

    def excess(self, situation: Situation) -> float:
        """The logarithm of the statistic in budgets."""
        return _log(self.value(situation.effects) / self.nats)


@dataclass(frozen=True)
class LossRise(Ceiling):
    """The unsteered model finds what the steered one writes not much less likely than its own text (ALERT).

    Attributes:
        share: by which its loss per token may rise.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        _as_float(self, "share", "loss_rise", "a share above 0, such as 0.2", lambda share: share > 0)

    @property
    def name(self) -> str:
        """What stopped a strength, in one word."""
        return "log-probability"

    @property
    def needs_base_text(self) -> bool:
        """Text of the unsteered model is what is compared with."""
        return True

    def excess(self, situation: Situation) -> float:
        """The logarithm of the loss in units of the most there may be."""
        loss = statistic(situation.effects.loss, "mean")
        return _log(loss / ((1 + self.share) * situation.base_loss))


@dataclass(frozen=True)
class NormRatio(Ceiling):
    """What is added is not long compared with the states: ``alpha |v| / |h|`` within a limit.

    Attributes:
        most: the limit.
    """

    most: float = 0.5

    def __post_init__(self) -> None:
        _as_float(self, "most", "norm_ratio", "a ratio above 0", lambda ratio: ratio > 0)

    @property
    def name(self) -> str:
        """What stopped a strength, in one word."""
        return "norm"

    def excess(self, situation: Situation) -> float:
        """The logarithm of the ratio in units of the limit.

        Raises:
            ValueError: a steering that adds no vector.
        """
        require(not np.isnan(situation.relative), "norm_ratio", "a steering that adds one vector", "another one")
        return _log(situation.relative / self.most)


@dataclass(frozen=True)
class Rising(Ceiling):
    """The concept's share still moves the wanted way with the strength: its peak (N3, theorem 3.3) is not yet passed."""

    @property
    def name(self) -> str:
        """What stopped a strength, in one word."""
        return "peak"

    @property
    def needs_slope(self) -> bool:
        """The derivative is all it looks at."""
        return True

    def excess(self, situation: Situation) -> float:
        """Minus ten times the slope of the logarithm of the share by that of the strength: a peak is flat."""
        effects = situation.effects
        slope, share = situation.aim * np.nanmean(effects.share_slope) * situation.alpha, np.nanmean(effects.share)
        return float(-10 * slope / share) if share > 0 else -np.inf


@dataclass(frozen=True)
class ShareAtLeast:
    """A floor: the mean probability of the concept's tokens.

    Attributes:
        share: what it has to reach, between 0 and 1.
    """

    share: float

    def __post_init__(self) -> None:
        _as_float(self, "share", "share", "a probability between 0 and 1", lambda share: 0 < share < 1)

    @property
    def name(self) -> str:
        """What stopped a strength, in one word."""
        return "share"

    def excess(self, situation: Situation) -> float:
        """The log-odds of the share less those to be reached: crosses 0 where it is."""
        share = float(np.nanmean(situation.effects.share))
        return logit(share) - logit(self.share)


@dataclass(frozen=True)
class TextsAtLeast:
    """A floor: the share of the texts that the steered model writes which show the concept.

    Attributes:
        share: what it has to reach, between 0 and 1.
        shows: the probability that a text shows it, of a list of texts: `sim.directions.opinions.Shows`, or any function.
    """

    share: float
    shows: Callable[[Sequence[str]], Any]

    def __post_init__(self) -> None:
        _as_float(self, "share", "share", "a part of the texts between 0 and 1", lambda share: 0 < share < 1)
        require(callable(self.shows), "shows", "a function of a list of texts, such as Shows(lm, 'joy')", shown(self.shows))

    @property
    def name(self) -> str:
        """What stopped a strength, in one word."""
        return "share"

    def of(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """The probability that each text shows the concept.

        Raises:
            ValueError: a function that gives something else.
        """
        probabilities = finite("shows", self.shows(list(texts)))
        expected = f"a probability for each of {len(texts)} texts"
        require(probabilities.shape == (len(texts),), "shows", expected, f"an array of shape {probabilities.shape}")
        low, high = probabilities.min(), probabilities.max()
        require(low >= 0 and high <= 1, "shows", expected, f"numbers from {low} to {high}")
        return probabilities

    def excess(self, situation: Situation) -> float:
        """The share less the one to be reached, which is finite also where all texts show it, or none."""
        return float(np.mean(situation.effects.shown)) - self.share


def floor_of(
    share: float | None, *, falls: bool, shows: Callable[[Sequence[str]], Any] | None = None
) -> ShareAtLeast | TextsAtLeast | None:
    """The floor that a share to be reached is; none without one.

    Args:
        share: what was asked for.
        falls: whether strengths are negative, and tokens named that they lead away from.
        shows: who says whether a text shows the concept, if the share is one of texts.

    Raises:
        ValueError: no number between 0 and 1; a share where it is to fall; nothing to be reached by texts.
    """
    if share is None:
        require(shows is None, "share", "the part of the texts that is to show the concept, beside shows", "none")
        return None
    if shows is not None:
        return TextsAtLeast(share, shows)
    floor = ShareAtLeast(share)
    expected = "none for negative strengths and named tokens, of which a budget says how far they fall"
    require(not falls, "share", expected, share)
    return floor


def _as_float(criterion: Any, field_name: str, argument: str, expected: str, fits: Callable[[float], bool]) -> None:
    """Make a field a float, whatever kind of number it was given as."""
    object.__setattr__(criterion, field_name, finite_number(argument, getattr(criterion, field_name), expected, fits))


def _log(ratio: float) -> float:
    return float(np.log(ratio)) if ratio > 0 else -np.inf


def logit(share: float) -> float:
    """The log-odds of a probability; infinite at 0 and 1."""
    return float(np.log(share) - np.log1p(-share)) if 0 < share < 1 else float(np.copysign(np.inf, share - 0.5))

"""Intervals for what few values estimate: means, shares, differences of shares, orders of two kinds of values.

An interval that comes from the spread of the values has length 0 where few values are all alike: 0 of 4 answers are right,
and the share has an error of 0. The intervals here do not have this fault: Wilson's for a share, Newcombe's for a
difference of shares and for an area under the curve (AUC), that of Agresti and Min for differences within pairs. A mean has
Student's interval. All have a level of 95 % unless another is named. Scipy has Wilson's interval only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

LEVEL = 0.95
"""How often an interval holds what is estimated."""


class Estimate(NamedTuple):
    """An estimate; NaN where too little is known.

    Attributes:
        value: what was estimated.
        low, high: the ends of its interval.
    """

    value: float
    low: float
    high: float

    @classmethod
    def none(cls, value: float = float("nan")) -> "Estimate":
        """A value about whose error nothing is known, or no value."""
        return cls(value, float("nan"), float("nan"))


def finite(values: Any) -> Float[np.ndarray, " n"]:
    """The finite ones among numbers, in one row."""
    numbers = np.asarray(values, float).ravel()
    return numbers[np.isfinite(numbers)]


def mean(values: Any, level: float = LEVEL) -> Estimate:
    """The mean of what is finite among numbers, with Student's interval; no interval for fewer than two of them."""
    numbers = finite(values)
    if numbers.size < 2:
        return Estimate.none(float(numbers[0]) if numbers.size else float("nan"))
    half = student(numbers.size, level) * numbers.std(ddof=1) / np.sqrt(numbers.size)
    return around(float(numbers.mean()), float(half))


def student(count: int, level: float = LEVEL) -> float:
    """How many standard errors the interval of a mean reaches on either side; NaN for fewer than two values."""
    return float(stats.t.ppf((1 + level) / 2, count - 1)) if count > 1 else float("nan")


def around(value: float, half: float) -> Estimate:
    """An interval that reaches as far on either side."""
    return Estimate(value, value - half, value + half)


def within(estimate: Estimate, least: float | int = -np.inf, most: float | int = np.inf) -> Estimate:
    """The estimate with the ends of its interval no further than what the quantity can be."""
    return Estimate(estimate.value, *(float(np.clip(end, least, most)) for end in estimate[1:]))


def wilson(hits: Any, asked: Any, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of Wilson's interval of a share; 0 and 1 where nothing was asked.

    Args:
        hits, asked: how many of how many; numbers, or arrays of one shape.
        z: how many standard errors the interval reaches on either side if there are many.
    """
    hits, asked = np.asarray(hits, float), np.asarray(asked, float)
    trials = asked + z * z
    centre = (hits + z * z / 2) / trials
    half = z * np.sqrt(hits * (asked - hits) / np.maximum(asked, 1) + z * z / 4) / trials
    # At 0 hits and at all of them an end is 0 or 1, not one rounding beyond.
    return np.where(hits == 0, 0.0, centre - half), np.where(hits == asked, 1.0, centre + half)


def share(hits: Sequence[float] | Float[np.ndarray, "..."], level: float = LEVEL) -> Estimate:
    """The share of ones among ones and zeros (NaN is left out), with Wilson's interval."""
    numbers = finite(hits)
    if not numbers.size:
        return Estimate.none()
    low, high = wilson(numbers.sum(), numbers.size, _z(level))
    return Estimate(float(numbers.mean()), float(low), float(high))


def difference(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."], level: float = LEVEL) -> Estimate:
    """The second share less the first, of ones and zeros that are not paired: Newcombe's interval.

    Newcombe, Interval estimation for the difference between independent proportions, 1998, method 10.
    """
    p, p_low, p_high = share(first, level)
    q, q_low, q_high = share(second, level)
    value = q - p
    return Estimate(value, value - float(np.hypot(q - q_low, p_high - p)), value + float(np.hypot(q_high - q, p - p_low)))


def paired_difference(values: Sequence[float] | Float[np.ndarray, "..."], level: float = LEVEL) -> Estimate:
    """The mean of differences within pairs, each between -1 and 1.

    The interval is that of differences to which one half of each of 1, -1, 0, 0 is added: Agresti and Min, Simple improved
    confidence intervals for comparing matched proportions, 2005.
    """
    numbers = finite(values)
    if not numbers.size:
        return Estimate.none()
    n = numbers.size + 2
    centre = numbers.sum() / n
    spread = ((numbers**2).sum() + 1) / n - centre**2
    half = _z(level) * float(np.sqrt(spread / n))
    return Estimate(float(numbers.mean()), max(centre - half, -1.0), min(centre + half, 1.0))


def auc(positive: Float[np.ndarray, " n"], negative: Float[np.ndarray, " m"], level: float = LEVEL) -> Estimate:
    """The chance that a value of the first kind is the larger one; ties count one half.

    The ends are the areas from which the one that was measured is as many standard errors away, by the formula of Hanley and
    McNeil: Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, 2006, method 5.
    """
    n, m = positive.size, negative.size
    if min(n, m) == 0:
        return Estimate.none()
    less = np.subtract.outer(positive, negative)
    value, z = float((less > 0).mean() + (less == 0).mean() / 2), _z(level)

    def beyond(area: float) -> float:
        others = (n + m) / 2 - 1
        ratio = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
        return (area - value) ** 2 - z * z * area * (1 - area) * ratio / (n * m)

    # At an area of 0 or 1 the formula has a root there, beside the one that is wanted.
    near = 1e-9
    low = float(optimize.brentq(beyond, 0, value * (1 - near))) if value > 0 else 0.0
    high = float(optimize.brentq(beyond, value + (1 - value) * near, 1)) if value < 1 else 1.0
    return Estimate(value, low, high)


def ratio(above: Float[np.ndarray, " n"], below: Float[np.ndarray, " n"], level: float = LEVEL) -> Estimate:
    """The ratio of two means of paired values, with an interval to first order; none for fewer than two pairs."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    value = float(above.mean() / below.mean())
    rest = mean(above - value * below, level)
    return around(value, (rest.high - rest.low) / 2 / abs(float(below.mean())))


def _z(level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2))

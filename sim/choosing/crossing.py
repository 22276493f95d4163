"""The strength at which a measured quantity crosses its limit, from few evaluations: a bracketed secant on log strength."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

SHORTEST = 0.005
"""The logarithm of the shortest stride, doubled with every one."""

STEEPEST = 8.0
"""A function that seems steeper by the logarithm of the strength may have jumped: it is not solved by being near 0."""

FLATTEST = 0.02
"""A function that seems flatter says nothing of its steepness."""

APART = (2.0, 0.05)
"""The logarithm of the shortest stride between the first two strengths where two tell the crossing: so many tolerances, and
this at most."""

CLOSER = 3
"""How often the steps around a peak are halved."""


class Crossing(NamedTuple):
    """Where a function crosses 0.

    Attributes:
        alpha: the strength; None if it does not, within reach.
        low: the largest strength known to be below; 0 if none is.
        evaluations: how often the function was evaluated.
        steepness: of the function by the logarithm of the strength, as far as it was seen.
    """

    alpha: float | None
    low: float
    evaluations: int
    steepness: float


def crossing(
    excess: Callable[[float], float],
    start: float,
    *,
    steepness: float = 2.0,
    stride: float = 8.0,
    tolerance: float = 0.01,
    most: float = np.inf,
    evaluations: int = 30,
    least: float = 0.0,
    between: tuple[float, float] | None = None,
    expected: Callable[[float, float], float | None] | None = None,
) -> Crossing:
    """The positive strength at which `excess` crosses 0 upwards.

    Args:
        excess: of a strength; below 0 at small ones. Where it is NaN or +inf, the strength is taken to be too large.
        start: the first guess.
        steepness: of `excess` by the logarithm of the strength, where nothing is known of it: 2 for the logarithm of KL.
        stride: the factor that a step goes at most, while nothing is known on the other side.
        tolerance: relative error of the strength.
        most, least: the largest strength that is looked at, and the least.
        evaluations: after which the best is taken.
        between: strengths, one below the crossing and one not, if they are known.
        expected: what else is known of the crossing: where it is expected, of the largest strength below it (0 if none is
            known) and the least above (infinite); None where that is not known. Then a strength is a solution only if the
            crossing is expected near it; else the value there, and the steepness, say how far it is.
    """
    low, high = (0.0, -np.inf), (np.inf, np.inf)
    alpha, last, halve, values = float(min(start, most)), None, False, {}
    if between is not None:
        low, high = ((end, float(excess(end))) for end in between)
        last, alpha = high, _next(low, high, high, steepness, (0.0, np.inf), halve=False)
    for count in range(1, evaluations + 1):
        value = float(excess(alpha))
        value = values[alpha] = np.inf if np.isnan(value) else value
        here, side_before = (alpha, value), (low[0] > 0, high[0] < np.inf)
        if last is not None and np.isfinite([value, last[1]]).all() and alpha != last[0]:
            local = (value - last[1]) / np.log(alpha / last[0])
            steepness = local if local > FLATTEST else steepness
        low, high = (here, high) if value < 0 else (low, here)
        root = expected(low[0], high[0]) if expected is not None and np.isfinite(value) else None
        good = _solved(values, here, root, steepness if expected is None else None, tolerance)
        if good is not None:
            return Crossing(good, good if values[good] <= 0 else low[0], count, steepness)
        if (value < 0 and alpha >= most) or (value >= 0 and alpha <= least):
            return Crossing(None, low[0], count, steepness)
        if low[0] > 0 and high[0] / low[0] <= 1 + tolerance:
            return Crossing(low[0], low[0], count, steepness)
        # Where two steps have ended on one side, the bracket is halved once.
        halve = all(side_before) and last is not None and (value < 0) == (last[1] < 0) and not halve
        # Strides grow while the other side is not known: where `excess` is small and flat, its slope leads nowhere.
        shortest = SHORTEST * 2.0**count if expected is None or count > 1 else min(APART[0] * tolerance, APART[1])
        strides = (min(shortest, np.log(stride)), np.log(stride))
        # So an expectation beyond all that is known is followed once, and then only if it goes as far.
        beyond = count > 2 and not (low[0] > 0 and high[0] < np.inf)
        if root is None or halve or (beyond and abs(np.log(root / alpha)) < strides[0]):
            root = _next(low, high, here, steepness, strides, halve=halve)
        last, alpha = here, float(np.clip(root, least, most))
    return Crossing(low[0] or None, low[0], evaluations, steepness)


def _solved(
    values: Mapping[float, float], here: tuple[float, float], root: float | None, steepness: float | None, tolerance: float
) -> float | None:
    """A strength that is within the tolerance of the crossing; None if none is.

    Args:
        values: of the function, by strength.
        here: the strength that was looked at last, with its value.
        root: where the crossing is expected; None where that is not known.
        steepness: of the function, where its value may be trusted to tell the distance.
        tolerance: relative.
    """
    if root is not None:
        nearest = min(values, key=lambda alpha: abs(np.log(alpha / root)))
        return nearest if max(abs(np.log(nearest / root)), abs(values[nearest]) / STEEPEST) <= tolerance else None
    if steepness is None:
        return None
    return here[0] if abs(here[1]) <= tolerance * min(steepness, STEEPEST) else None


def first_rise(excess: Callable[[float], float], rungs: Iterable[float]) -> tuple[float, float] | None:
    """Strengths that the first crossing of 0 is between, as far as can be seen from a ladder of strengths.

    A function that has a peak below 0 on the ladder is looked at more closely around it: the peak itself may be above.

    Args:
        excess: of a strength; below 0 at small ones. Where it is NaN or +inf, the ladder ends.
        rungs: growing strengths.

    Returns:
        The strength below the crossing, 0 if the first is not, and the one that is not below; None if all are.
    """
    seen: list[tuple[float, float]] = [(0.0, -np.inf)]
    for alpha in rungs:
        value = float(excess(alpha))
        if value >= 0 and np.isfinite(value):
            return seen[-1][0], alpha
        ended = not value < 0
        seen.append((alpha, -np.inf if ended else value))
        if (
            len(seen) > 3
            and _may_rise(*(value for _, value in seen[-3:]))
            and (rise := _at_a_peak(excess, seen[-3:])) is not None
        ):
            return rise
        if ended:
            break
    return None


def least_reaching(
    excess: Callable[[float], float], rungs: Iterable[float], *, tolerance: float, least: float
) -> float | None:
    """The least strength at which a function is not below 0, where it is rough, as one that counts texts is.

    The first crossing on a ladder is halved until its ends are close, and its upper end taken, which is not below 0.

    Args:
        excess: of a strength; below 0 at small ones. Where it is NaN or +inf, the ladder ends.
        rungs: growing strengths.
        tolerance: relative distance of the ends.
        least: strength below which nothing is looked at.

    Returns:
        The strength; None if the function is below 0 at all rungs.
    """
    bracket = first_rise(excess, rungs)
    if bracket is None:
        return None
    low, high = bracket
    while high > max((1 + tolerance) * low, least):
        middle = float(np.sqrt(low * high)) if low > 0 else high / 2
        low, high = (low, middle) if excess(middle) >= 0 else (middle, high)
    return high


def _may_rise(left: float, top: float, right: float) -> bool:
    """Whether a function with such values at equal distances may be above 0 between them."""
    # The vertex of the parabola through them is above the highest by an eighth of the larger difference at most.
    return top > max(left, right) and top + (top - min(left, right)) / 2 >= 0


def _at_a_peak(excess: Callable[[float], float], around: list[tuple[float, float]]) -> tuple[float, float] | None:
    """Strengths that a crossing is between, close to a peak: halves of the steps on both of its sides are looked at.

    Args:
        excess: as for `first_rise`.
        around: three strengths with what `excess` is there, the second the highest.
    """
    for _ in range(CLOSER):
        (low, _), (peak, _), (high, _) = around
        places = [np.sqrt(low * peak), np.sqrt(peak * high)]
        sides = []
        for before, place in ((low, places[0]), (peak, places[1])):
            value = float(excess(float(place)))
            if value >= 0 and np.isfinite(value):
                return before, float(place)
            sides.append((float(place), value if value < 0 else -np.inf))
        five = [around[0], sides[0], around[1], sides[1], around[2]]
        top = max(range(1, 4), key=lambda k: five[k][1])
        around = five[top - 1 : top + 2]
    return None


def _next(low, high, here, steepness: float, strides: tuple[float, float], *, halve: bool) -> float:
    """The next strength to look at; the logarithm of a step has a size between `strides` where one side is not known."""
    if low[0] > 0 and high[0] < np.inf:
        log_low, log_high = np.log(low[0]), np.log(high[0])
        if not halve and np.isfinite([low[1], high[1]]).all():
            step = log_low - low[1] * (log_high - log_low) / (high[1] - low[1])
            margin = 0.02 * (log_high - log_low)
            return float(np.exp(np.clip(step, log_low + margin, log_high - margin)))
        return float(np.exp((log_low + log_high) / 2))
    size = abs(here[1]) / steepness if np.isfinite(here[1]) else np.log(2)
    # A little farther than the guess, so that the other side is soon known.
    step = np.clip(1.02 * size, *strides)
    # At the crossing itself, which counts as above it, a smaller strength is looked at.
    return float(here[0] * np.exp(step if here[1] < 0 else -step))

"""How much a strength depends on the prompts it was chosen on: a bootstrap over them, from strengths already looked at."""

from collections.abc import Callable, Mapping

import numpy as np

from sim.choosing.rollouts import Effects

SAMPLES = 400
"""Bootstrap samples."""

COVERAGE = 0.9
"""Share of them inside the interval."""

BEYOND = np.log(4)
"""The logarithm of how far beyond the strengths that were looked at a straight line is followed."""


def interval_of(
    excess: Callable[[float, Effects], float], looked_at: Mapping[float, Effects], alpha: float, seed: int
) -> tuple[float, float] | None:
    """The interval that holds the strength for 90 % of samples of the prompts, taken with replacement.

    None where fewer than two prompts have a prediction that counts: their samples are all alike. If no sample
    tells a strength, it is that of all strengths that were looked at.

    Args:
        excess: of a strength and its effects: crosses 0 at the strength that is chosen.
        looked_at: effects on one text by strength, at least two.
        alpha: the chosen strength.
        seed: of the samples.
    """
    strengths = np.array(sorted(looked_at))
    known = np.flatnonzero(looked_at[strengths[0]].counted.any(axis=1))
    if len(known) < 2:
        return None
    draws = known[np.random.default_rng(seed).integers(len(known), size=(SAMPLES, len(known)))]
    crossings = []
    for rows in draws:
        values = np.array([excess(a, Effects(*(field[rows] for field in looked_at[a]))) for a in strengths])
        crossings.append(_crossing(np.log(strengths), values))
    tail = (1 - COVERAGE) / 2
    known = np.array([c for c in crossings if np.isfinite(c)])
    # Where no sample tells a strength, all that was looked at is possible.
    low, high = np.exp(np.quantile(known, [tail, 1 - tail])) if known.size else (strengths[0], strengths[-1])
    return float(min(low, alpha)), float(max(high, alpha))


def _crossing(log_alpha: np.ndarray, excess: np.ndarray) -> float:
    """Where straight lines through points cross 0 upwards; beyond the ends, the line of the last two."""
    finite = np.isfinite(excess)
    x, y = log_alpha[finite], excess[finite]
    if len(x) < 2:
        return np.nan
    above = np.flatnonzero(y > 0)
    k = int(np.clip(above[0] if above.size else len(x) - 1, 1, len(x) - 1))
    slope = (y[k] - y[k - 1]) / (x[k] - x[k - 1])
    # What a sample does between two strengths that are close says little of its slope.
    return float(np.clip(x[k] - y[k] / slope, x[0] - BEYOND, x[-1] + BEYOND)) if slope > 0.1 else np.nan

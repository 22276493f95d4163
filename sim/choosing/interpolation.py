"""The effects of a strength that was not looked at, and where a limit is reached, from strengths that were.

A statistic over predictions, a percentile above all, is rough where each of them is smooth: every prediction follows a
straight line by itself, and the statistic is taken of what they are then.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit, logit

from sim.choosing.rollouts import Effects

LEAST = 1e-12
"""KL below it, and probabilities that are nearer to 0 or 1, are taken to be so large."""

BEYOND = np.log(1.5)
"""The logarithm of how far beyond the strengths that were looked at a root is looked for."""


def effects_at(alpha: float, looked_at: Mapping[float, Effects]) -> Effects:
    """The effects of a strength, from those of the two nearest ones around it, or of the last two where it is beyond.

    By the logarithm of the strength, the logarithm of KL and the log-odds of a share go straight on, and what else there is.

    Args:
        alpha: the strength.
        looked_at: effects on one text by strength, finite, at least two.
    """
    strengths = sorted(looked_at)
    k = int(np.clip(np.searchsorted(strengths, alpha), 1, len(strengths) - 1))
    low, high = strengths[k - 1], strengths[k]
    part, (before, after) = np.log(alpha / low) / np.log(high / low), (looked_at[low], looked_at[high])
    return Effects(
        kl=np.exp(_line(np.log(_positive(before.kl)), np.log(_positive(after.kl)), part)),
        reverse_kl=np.exp(_line(np.log(_positive(before.reverse_kl)), np.log(_positive(after.reverse_kl)), part)),
        loss=_line(before.loss, after.loss, part),
        share=expit(_line(_log_odds(before.share), _log_odds(after.share), part)),
        share_slope=_line(before.share_slope, after.share_slope, part),
        counted=before.counted,
        shown=before.shown,
    )


def expected_root(
    excess: Callable[[float, Effects], float], looked_at: Mapping[float, Effects], low: float, high: float
) -> float | None:
    """The strength at which a limit is reached, as far as strengths that were looked at tell.

    Args:
        excess: of a strength and its effects: crosses 0 upwards.
        looked_at: effects on one text by strength.
        low, high: strengths that it is known to cross between; 0 and infinity where an end is not known.

    Returns:
        The strength; None where fewer than two are known, or the crossing is farther off than lines can be followed.
    """
    known = {alpha: effects for alpha, effects in looked_at.items() if effects.is_finite}
    if len(known) < 2:
        return None
    ends = (low if low > 0 else min(known) / np.exp(BEYOND), high if high < np.inf else max(known) * np.exp(BEYOND))

    def at(log_alpha: float) -> float:
        alpha = float(np.exp(log_alpha))
        return excess(alpha, effects_at(alpha, known))

    values = [at(float(np.log(end))) for end in ends]
    if not np.isfinite(values).all() or not values[0] < 0 <= values[1]:
        return None
    return float(np.exp(brentq(at, *np.log(ends), xtol=1e-5)))


def _line(before: Float[np.ndarray, "n h"], after: Float[np.ndarray, "n h"], part: float) -> Float[np.ndarray, "n h"]:
    return before + part * (after - before)


def _positive(values: Float[np.ndarray, "n h"]) -> Float[np.ndarray, "n h"]:
    return np.maximum(values, LEAST)


def _log_odds(shares: Float[np.ndarray, "n h"]) -> Float[np.ndarray, "n h"]:
    return logit(np.clip(shares, LEAST, 1 - LEAST))

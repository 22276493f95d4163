"""What next-token probabilities do along a sweep: bumps and their order, and the probabilities of concepts.

Of S these are theorems 3.3 and 3.6, for curves that are measured or predicted: log-probabilities ``[n, K, V]`` of n contexts
at K increasing strengths.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from scipy import stats
from scipy.optimize import least_squares
from scipy.signal import find_peaks

from ufm._check import require

Curves = Mapping[str, Float[np.ndarray, "n K V"]]
"""Log-probabilities by kind: "measured", and whatever predicts them."""


KINDS_OF_CURVE = ("one bump", "none", "several bumps")
"""What a probability can do along a sweep: rise to one peak and fall; rise or fall throughout; have several peaks."""


def bumps(curve: Float[np.ndarray, " K"], noise: float = 1e-3) -> np.ndarray:
    """Where a curve has its bumps: maxima inside that stand out by `noise` of the highest value on both sides."""
    return find_peaks(curve, prominence=noise * curve.max())[0]


class Peaks(NamedTuple):
    """The curves of the likeliest tokens at the two ends of a sweep, over all contexts.

    Attributes:
        context, token: of every curve, ``[N]``.
        bumps: how many it has, 2 for several, by kind of curve, ``[N]``.
        place: strength of the only bump, or of the highest point if there is not one alone, by kind of curve, ``[N]``.
    """

    context: Int[np.ndarray, " N"]
    token: Int[np.ndarray, " N"]
    bumps: dict[str, Int[np.ndarray, " N"]]
    place: dict[str, Float[np.ndarray, " N"]]


def peaks(curves: Curves, alphas: Float[np.ndarray, " _"], likeliest: int) -> Peaks:
    """Bumps and highest points of the tokens that are likeliest, as measured, at one end of the sweep or the other.

    Args:
        curves: by kind, "measured" among them.
        alphas: strengths, in increasing order.
        likeliest: tokens at each end.

    Raises:
        ValueError: strengths in another order; curves of another number of strengths.
    """
    measured = curves["measured"]
    require(bool(np.all(np.diff(alphas) > 0)), "alphas", "strengths in increasing order", alphas.tolist())
    require(measured.shape[1] == alphas.size, "curves", f"one point for each of {alphas.size} strengths", measured.shape)
    ends = [np.argsort(-measured[:, end], axis=-1)[:, :likeliest] for end in (0, -1)]
    chosen = [np.union1d(*both) for both in zip(*ends, strict=True)]
    context = np.repeat(np.arange(len(chosen)), [tokens.size for tokens in chosen])
    token = np.concatenate(chosen)
    found = {kind: [_peak(np.exp(row, dtype=float)) for row in values[context, :, token]] for kind, values in curves.items()}
    counts = {kind: np.asarray([count for count, _ in each]) for kind, each in found.items()}
    return Peaks(context, token, counts, {kind: alphas[[place for _, place in each]] for kind, each in found.items()})


def _peak(curve: Float[np.ndarray, " K"]) -> tuple[int, int]:
    """How many bumps a curve has, 2 for several, and where the only one is, or the highest point."""
    places = bumps(curve)
    return min(places.size, 2), int(places[0] if places.size == 1 else curve.argmax())


def shares(counts: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Which share of curves has one bump, none, several (`KINDS_OF_CURVE`)."""
    return {kind: float(np.mean(counts == count)) for kind, count in zip(KINDS_OF_CURVE, (1, 0, 2), strict=True)}


def order(found: Peaks, m: Float[np.ndarray, " V"], kind: str = "measured") -> float | None:
    """Kendall's tau between the log-odds and the place of the peak of tokens with one bump: its mean over contexts.

    1 is the order of theorem 3.3, in full (N2). None if no context has two such tokens.
    """
    single, values = found.bumps[kind] == 1, []
    for context in np.unique(found.context):
        some = single & (found.context == context)
        if np.unique(found.place[kind][some]).size > 1:
            values.append(stats.kendalltau(m[found.token[some]], found.place[kind][some]).statistic)
    return float(np.mean(values)) if values else None


def alike(found: Peaks, kind: str) -> dict[str, float | None]:
    """How near predicted curves are to measured ones.

    Returns:
        ``same_kind``, the share of curves that have as many bumps as measured (none, one, several), and ``off``, the median
        distance of the places of peaks where both have one; None if none have.
    """
    both = (found.bumps[kind] == 1) & (found.bumps["measured"] == 1)
    off = np.abs(found.place[kind] - found.place["measured"])[both]
    same = float(np.mean(found.bumps[kind] == found.bumps["measured"]))
    return {"same_kind": same, "off": float(np.median(off)) if off.size else None}


def of_concepts(
    curves: Float[np.ndarray, "n K V"], concept: Int[np.ndarray, " V"], count: int
) -> Float[np.ndarray, "n K G"]:
    """The probability of every concept: the sum over its tokens."""
    return np.exp(curves, dtype=float) @ (concept[:, None] == np.arange(count)).astype(float)


class Sigmoid(NamedTuple):
    """``low + (high - low) / (1 + exp(-(x - centre) / width))``, fitted: S's tanh with four numbers free.

    Attributes:
        low, high, centre, width: the four.
        r_squared: how much of the variance along the sweep it explains.
    """

    low: float
    high: float
    centre: float
    width: float
    r_squared: float

    def __call__(self, x: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """The values of the curve."""
        return _sigmoid(np.asarray([self.low, self.high, self.centre, self.width]), x)


def sigmoid(x: Float[np.ndarray, " K"], y: Float[np.ndarray, " K"]) -> Sigmoid:
    """The sigmoid nearest to a curve in squares.

    Raises:
        ValueError: fewer than five points; a curve that does not change.
    """
    require(x.size >= 5 and x.size == y.size, "x", "at least 5 points, as many as in y", (x.size, y.size))
    require(np.ptp(y) > 0, "y", "a curve that changes", "one value")
    middle = float(x[np.argmin(np.abs(y - (y[0] + y[-1]) / 2))])
    start = np.asarray([y[0], y[-1], middle, np.ptp(x) / 10])
    found = least_squares(lambda given: _sigmoid(given, x) - y, start, x_scale=np.asarray([1, 1, np.ptp(x), np.ptp(x)]))
    low, high, centre, width = found.x.tolist()
    return Sigmoid(low, high, centre, width, r_squared(y, _sigmoid(found.x, x)))


def r_squared(measured: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the variance of what is measured that a prediction explains."""
    return float(1 - np.sum((measured - predicted) ** 2) / np.sum((measured - measured.mean()) ** 2))


def _sigmoid(given: np.ndarray, x: np.ndarray) -> np.ndarray:
    low, high, centre, width = given
    # Half a tanh does not overflow.
    return low + (high - low) * (1 + np.tanh((x - centre) / (2 * width))) / 2


def as_dataset(found: Peaks, m: Float[np.ndarray, " V"]) -> xr.Dataset:
    """Every curve with its log-odds, bumps and places; dims curve, kind."""
    kinds = list(found.place)
    return xr.Dataset(
        {
            "context": ("curve", found.context),
            "token": ("curve", found.token),
            "log_odds": ("curve", m[found.token]),
            "bumps": (("curve", "kind"), np.stack([found.bumps[kind] for kind in kinds], axis=1)),
            "place": (("curve", "kind"), np.stack([found.place[kind] for kind in kinds], axis=1)),
        },
        coords={"curve": np.arange(found.token.size), "kind": kinds},
    )

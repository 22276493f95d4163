"""The shapes of next-token probabilities along a sweep: bumps and their order, and the probabilities of concepts.

Of S these are theorems 3.3 and 3.6, for curves that are measured or predicted: log-probabilities ``[n, K, V]`` of n contexts
at K increasing strengths.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy import stats
from scipy.optimize import least_squares
from scipy.signal import find_peaks

from ufm._check import require

Curves = Mapping[str, Float[np.ndarray, "n K V"]]
"""Log-probabilities by kind: "measured", and whatever predicts them."""


KINDS_OF_CURVE = ("one bump", "none", "several bumps")
"""The shapes of a probability along a sweep: rise to one peak and fall; rise or fall throughout; have several peaks."""


class Shapes(NamedTuple):
    """The shapes of several probabilities along a sweep.

    Attributes:
        bumps: how many each has, ``[N]``.
        place: the index of the only bump, or of the highest point if there is not one alone, ``[N]``.
    """

    bumps: Int[np.ndarray, " N"]
    place: Int[np.ndarray, " N"]

    @property
    def single(self) -> Bool[np.ndarray, " N"]:
        """A mask of the curves that have one bump."""
        return self.bumps == 1


def shapes(curves: Float[np.ndarray, "N K"], noise: float = 1e-3) -> Shapes:
    """The bumps of probabilities: maxima inside that stand out by `noise` of the highest value on both sides."""
    places = [find_peaks(curve, prominence=noise * curve.max())[0] for curve in curves]
    highest = [bumps[0] if bumps.size == 1 else curve.argmax() for bumps, curve in zip(places, curves, strict=True)]
    return Shapes(np.asarray([bumps.size for bumps in places], int), np.asarray(highest, int))


def counts_of_kinds(bumps: Int[np.ndarray, " N"]) -> Int[np.ndarray, " 3"]:
    """How many curves there are of each of `KINDS_OF_CURVE`, from how many bumps each curve has."""
    return np.asarray([np.sum(bumps == 1), np.sum(bumps == 0), np.sum(bumps > 1)])


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
    shaped = {kind: shapes(np.exp(values[context, :, token], dtype=float)) for kind, values in curves.items()}
    bumps = {kind: np.minimum(shape.bumps, 2) for kind, shape in shaped.items()}
    return Peaks(context, token, bumps, {kind: alphas[shape.place] for kind, shape in shaped.items()})


def shares(bumps: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Which share of curves has one bump, none, several (`KINDS_OF_CURVE`)."""
    return dict(zip(KINDS_OF_CURVE, (counts_of_kinds(bumps) / bumps.size).tolist(), strict=True))


def order(peaks: Peaks, log_odds: Float[np.ndarray, " V"], kind: str = "measured") -> float | None:
    """Kendall's tau between the log-odds and the place of the peak of tokens with one bump: its mean over contexts.

    1 is the order of theorem 3.3, in full (N2). None if no context has two such tokens.
    """
    single = peaks.bumps[kind] == 1
    groups = [single & (peaks.context == context) for context in np.unique(peaks.context)]
    tau = mean_tau((log_odds[peaks.token[group]], peaks.place[kind][group]) for group in groups)
    return tau if np.isfinite(tau) else None


def mean_tau(pairs: Iterable[tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]]) -> float:
    """Kendall's tau of log-odds and places, its mean over contexts; NaN if none has two tokens that differ in both."""
    taus = [stats.kendalltau(odds, places).statistic for odds, places in pairs if odds.size > 1]
    ordered = [tau for tau in taus if np.isfinite(tau)]
    return float(np.mean(ordered)) if ordered else float("nan")


def alike(peaks: Peaks, kind: str) -> dict[str, float | None]:
    """How near predicted curves are to measured ones.

    Returns:
        ``same_kind``, the share of curves that have as many bumps as measured (none, one, several), and ``off``, the median
        distance of the places of peaks where both have one; None if none have.
    """
    both = (peaks.bumps[kind] == 1) & (peaks.bumps["measured"] == 1)
    off = np.abs(peaks.place[kind] - peaks.place["measured"])[both]
    same = float(np.mean(peaks.bumps[kind] == peaks.bumps["measured"]))
    return {"same_kind": same, "off": float(np.median(off)) if off.size else None}


def of_concepts(
    curves: Float[np.ndarray, "n K V"], concept: Int[np.ndarray, " V"], count: int
) -> Float[np.ndarray, "n K G"]:
    """The probability of every concept: the sum over its tokens."""
    return np.exp(curves, dtype=float) @ (concept[:, None] == np.arange(count)).astype(float)


class Sigmoid(NamedTuple):
    """``level + height tanh(rate (x - centre))``, fitted: S's tanh with four numbers free.

    Attributes:
        level, height, rate, centre: the four.
        r_squared: how much of the variance along the sweep it explains.
    """

    level: float
    height: float
    rate: float
    centre: float
    r_squared: float = float("nan")

    def __call__(self, x: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """The values of the curve."""
        return self.level + self.height * np.tanh(self.rate * (x - self.centre))


def sigmoid(x: Float[np.ndarray, " K"], y: Float[np.ndarray, " K"], start: Sigmoid | None = None) -> Sigmoid:
    """The sigmoid nearest to a curve of probabilities in squares.

    Args:
        x: strengths.
        y: the curve.
        start: the fit of a curve like it, to begin from; if left out, several beginnings are tried.

    Raises:
        ValueError: fewer than five points; a curve that does not change.
    """
    require(x.size >= 5 and x.size == y.size, "x", "at least 5 points, as many as in y", (x.size, y.size))
    require(np.ptp(y) > 0, "y", "a curve that changes", "one value")
    reach = np.abs(x).max()
    low, high = [-1.0, -2.0, 1e-3 / reach, -reach], [2.0, 2.0, 1e3 / reach, reach]
    starts = [[0.5, height, rate / reach, 0.0] for rate in (2, 20, 100) for height in (0.4, -0.4)]
    fits = [
        least_squares(
            lambda law: Sigmoid(*law)(x) - y,
            np.clip(law, low, high),
            bounds=(low, high),
            x_scale=(1, 1, 1 / reach, reach),
            max_nfev=200,
        )
        for law in (starts if start is None else [start[:4]])
    ]
    best = Sigmoid(*min(fits, key=lambda fit: fit.cost).x.tolist())
    return best._replace(r_squared=r_squared(y, best(x)))


def r_squared(measured: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the variance of what is measured that a prediction explains."""
    return float(1 - np.sum((measured - predicted) ** 2) / np.sum((measured - measured.mean()) ** 2))


def as_dataset(peaks: Peaks, log_odds: Float[np.ndarray, " V"]) -> xr.Dataset:
    """Every curve with its log-odds, bumps and places; dims curve, kind."""
    kinds = list(peaks.place)
    return xr.Dataset(
        {
            "context": ("curve", peaks.context),
            "token": ("curve", peaks.token),
            "log_odds": ("curve", log_odds[peaks.token]),
            "bumps": (("curve", "kind"), np.stack([peaks.bumps[kind] for kind in kinds], axis=1)),
            "place": (("curve", "kind"), np.stack([peaks.place[kind] for kind in kinds], axis=1)),
        },
        coords={"curve": np.arange(peaks.token.size), "kind": kinds},
    )

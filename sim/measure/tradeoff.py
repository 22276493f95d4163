"""What steering gains in preference and costs in utility: from losses on pairs of answers to W's curves, and what they say.

A pair is a prompt with an answer that matches a concept and one that does not, of mean losses L_p and L_n in nats per token.
W (arXiv:2602.02343) compares the two answers with each other, ``preference = L_n - L_p``, and both with all others,
``utility = log((e^-L_p + e^-L_n) / (1 - e^-L_p - e^-L_n))``. The latter is not defined where e^-L_p + e^-L_n is 1 or more,
which such means over tokens can be; those pairs are counted and left out, and nothing is clamped.

Updates are told apart by labels such as "split vector": how it was made, and of which form it is.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

import ufm
from sim.measure.decay import Decay, between, fit_preference, fit_utility
from ufm._check import require
from ufm.precision import in_float64

SIDES = ("matching", "not_matching")
"""The two answers of a pair: that which shows the concept, and the other."""

BUDGET = 2.0
"""How much utility may be lost, in nats of log-odds."""

_QUANTITIES = {"preference": fit_preference, "utility": fit_utility}
_DIMS = ("concept", "update", "strength")


def averages(losses: xr.Dataset) -> xr.Dataset:
    """Preference and utility along every sweep, as means over pairs.

    A pair counts for an update if its losses are finite at every strength; for utility it has to be defined at every
    strength of that update as well, so that all points of a curve are means over the same pairs. What is gained for what is
    lost compares both over the latter pairs.

    Args:
        losses: `loss` over concept, update, strength, pair and side (`SIDES`), in nats per token, a mean over the tokens of
            an answer; `alpha` over update and strength, increasing.

    Returns:
        Over concept, update and strength `preference` and `utility`, in nats, with standard errors over pairs
        `preference_error` and `utility_error` (NaN for fewer than two pairs), `preference_used`, the mean preference of the
        pairs that utility is a mean of, and `undefined`, how many of the pairs that count have no utility there; over
        concept and update `pairs`, how many count, and `pairs_used`, for how many of these utility is defined throughout;
        `alpha`. NaN where no pair is left.

    Raises:
        ValueError: other dimensions or sides; strengths that are not finite and increasing.
    """
    loss, alpha = losses["loss"], losses["alpha"].transpose("update", "strength")
    dims = (*_DIMS, "pair", "side")
    require(set(loss.dims) == set(dims), "loss", f"dims {dims}", loss.dims)
    sides = [str(side) for side in loss["side"].values]
    require(set(sides) == set(SIDES), "side", f"{SIDES}", sides)
    increasing = np.isfinite(alpha.values).all() and (np.diff(alpha.values, axis=1) > 0).all()
    require(bool(increasing), "alpha", "finite strengths in increasing order", alpha.values.tolist())

    matching, other = (loss.sel(side=side).transpose(*_DIMS, "pair").values.astype(float) for side in SIDES)
    defined = (np.isfinite(matching) & np.isfinite(other)).all(axis=2, keepdims=True)
    with in_float64():
        # What is not computed is masked again below: losses are numbers.
        both = tuple(jnp.asarray(np.where(defined, side, 1.0)) for side in (matching, other))
        preference, utility = (np.where(defined, odds(*both), np.nan) for odds in (ufm.preference_odds, ufm.utility_odds))
    undefined = defined & np.isnan(utility)
    used = defined & ~undefined.any(axis=2, keepdims=True)
    utility = np.where(used, utility, np.nan)
    results = {name: _mean(values) for name, values in (("preference", preference), ("utility", utility))}
    curves = {name: (_DIMS, mean) for name, (mean, _) in results.items()}
    curves["preference_used"] = (_DIMS, _mean(np.where(used, preference, np.nan))[0])
    errors = {f"{name}_error": (_DIMS, error) for name, (_, error) in results.items()}
    counts = {
        "undefined": (_DIMS, undefined.sum(axis=-1)),
        "pairs": (_DIMS[:2], defined.sum(axis=(2, 3))),
        "pairs_used": (_DIMS[:2], used.sum(axis=(2, 3))),
        "alpha": (_DIMS[1:], alpha.values.astype(float)),
    }
    return xr.Dataset(curves | errors | counts, {dim: losses[dim].values for dim in _DIMS[:2]})


def _mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the last axis and its standard error, without NaN."""
    finite = np.isfinite(values)
    n = finite.sum(axis=-1)
    count, more = np.where(n > 0, n, np.nan), np.where(n > 1, n - 1, np.nan)
    mean = np.where(finite, values, 0).sum(axis=-1) / count
    squares = np.where(finite, (values - mean[..., None]) ** 2, 0).sum(axis=-1)
    return mean, np.sqrt(squares / more / count)


# --- the best that can be had for a loss of utility -------------------------------------------------------------------


def frontier(
    gain: Float[np.ndarray, " k"], change: Float[np.ndarray, " k"], allowed: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The best gain of preference on a path where no more than some utility is lost.

    The path is linear between its points, and all of it can be had: the strength is free. It is not extended beyond its end.

    Args:
        gain, change: of preference and of utility since strength 0, in nats, at increasing strengths from 0 on.
        allowed: losses of utility, 0 or more.

    Returns:
        The best gain for each loss, ``[n]``; at least 0, which strength 0 has for nothing.

    Raises:
        ValueError: a path that does not begin with 0 and 0, or is not finite; a loss below 0.
    """
    gain, loss = _path(gain, change)
    require(bool((np.asarray(allowed) >= 0).all()), "allowed", "losses of 0 or more", allowed)
    gains = [np.where(loss[k] <= allowed, gain[k], -np.inf) for k in range(gain.size)]
    for k, j in pairwise(range(gain.size)):
        if loss[k] != loss[j]:
            share = (allowed - loss[k]) / (loss[j] - loss[k])
            gains.append(np.where((share >= 0) & (share <= 1), gain[k] + share * (gain[j] - gain[k]), -np.inf))
    return np.max(gains, axis=0)


def area(gain: Float[np.ndarray, " k"], change: Float[np.ndarray, " k"], budget: float = BUDGET) -> float:
    """The mean of `frontier` over losses from 0 to `budget` nats: exact, since it is piecewise linear (with steps).

    Of two updates that gain the same, the one that loses less has the larger area. A path that ends before the budget is
    spent keeps its best gain.

    Raises:
        ValueError: those of `frontier`; a budget that is not positive.
    """
    require(budget > 0, "budget", "a positive number of nats", budget)
    gain, loss = _path(gain, change)
    ends = np.unique(np.clip([0.0, budget, *loss, *_crossings(gain, loss)], 0.0, budget))
    return float(np.diff(ends) @ frontier(gain, -loss, (ends[1:] + ends[:-1]) / 2) / budget)


def spent(alpha: Float[np.ndarray, " k"], change: Float[np.ndarray, " k"], budget: float = BUDGET) -> float:
    """The first strength on a path, linear between its points, at which `budget` nats of utility are lost; NaN for none.

    Args:
        alpha: strengths from 0 on.
        change: of utility since strength 0, in nats.
        budget: in nats.
    """
    over = np.flatnonzero(-change >= budget)
    if over.size == 0 or over[0] == 0:
        return float("nan")
    k = int(over[0])
    share = (budget + change[k - 1]) / (change[k - 1] - change[k])
    return float(alpha[k - 1] + share * (alpha[k] - alpha[k - 1]))


def _path(gain: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gains and the losses of a path, checked."""
    gain, change = np.asarray(gain, float), np.asarray(change, float)
    require(gain.ndim == 1 and gain.shape == change.shape, "change", f"one for each gain, shape {gain.shape}", change.shape)
    finite = bool(np.isfinite(gain).all() and np.isfinite(change).all())
    require(finite, "gain and change", "finite numbers", (gain.tolist(), change.tolist()))
    starts = gain.size > 0 and gain[0] == 0 and change[0] == 0
    require(bool(starts), "gain and change", "paths from 0, which strength 0 has", (gain[:1].tolist(), change[:1].tolist()))
    return gain, -change


def _crossings(gain: np.ndarray, loss: np.ndarray) -> list[float]:
    """Losses at which a segment's gain equals that of another segment or of a point."""
    moving = np.flatnonzero(np.diff(loss) != 0)
    slope = np.diff(gain)[moving] / np.diff(loss)[moving]
    slope, offset = (
        np.append(values, more) for values, more in ((slope, 0 * gain), (gain[moving] - slope * loss[moving], gain))
    )
    across, apart = slope[:, None] - slope, offset - offset[:, None]
    return (apart[across != 0] / across[across != 0]).tolist()


# --- fits and what is told of them ------------------------------------------------------------------------------------


def with_fits(sweeps: xr.Dataset, budget: float = BUDGET) -> xr.Dataset:
    """Sweeps with the curves fitted to them, and what is gained for what is lost.

    Args:
        sweeps: of `averages`; 0 among the strengths of every update.
        budget: of `area`, in nats.

    Returns:
        `sweeps`, and over concept, update and `fine` the curves ``preference_fit`` and ``utility_fit`` at strengths
        `fine_alpha`; over concept and update, for either quantity: ``_r_squared``; ``_exponent`` and ``_exponent_error``
        and ``_half``, the strength where D is 1/2, over `half` as well ("below" 0 and "above"); and `best_gain`, the largest
        gain of preference at a strength of 0 or more, `area`, `spent`, `reached`, the largest loss of utility at a strength
        of 0 or more. NaN where there is nothing to fit: a curve with gaps or of one value, too few strengths, or strengths
        of one sign.

    Raises:
        ValueError: strengths without 0.
    """
    alpha = sweeps["alpha"].transpose("update", "strength").values
    require(bool((alpha == 0).any(axis=1).all()), "alpha", "0 among the strengths of every update", alpha.tolist())
    fine = np.stack([between(row) for row in alpha])
    size = (sweeps.sizes["concept"], sweeps.sizes["update"])
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {"fine_alpha": (("update", "fine"), fine)}
    for name in _QUANTITIES:
        arrays[f"{name}_fit"] = ((*_DIMS[:2], "fine"), np.full((*size, fine.shape[1]), np.nan))
        arrays[f"{name}_r_squared"] = (_DIMS[:2], np.full(size, np.nan))
        for key in ("exponent", "exponent_error", "half"):
            arrays[f"{name}_{key}"] = ((*_DIMS[:2], "half"), np.full((*size, 2), np.nan))
    of_path = ("best_gain", "area", "spent", "reached")
    arrays |= {name: (_DIMS[:2], np.full(size, np.nan)) for name in of_path}

    curves = {name: sweeps[name].transpose(*_DIMS).values for name in (*_QUANTITIES, "preference_used")}
    for place in np.ndindex(*size):
        strengths = alpha[place[1]]
        for name, fit in _QUANTITIES.items():
            curve = _fitted(fit, strengths, curves[name][place])
            if curve is None:
                continue
            told: dict[str, Any] = {
                "fit": curve(fine[place[1]]),
                "r_squared": curve.r_squared,
                "exponent": [curve.below.exponent, curve.above.exponent],
                "exponent_error": [curve.errors[f"{side}.exponent"] for side in ("below", "above")],
                "half": [curve.half(-1), curve.half(1)],
            }
            for key, value in told.items():
                arrays[f"{name}_{key}"][1][place] = value
        start = int(np.flatnonzero(strengths == 0)[0])
        since = {name: values[place][start:] - values[place][start] for name, values in curves.items()}
        of_this = _of_path(strengths[start:], since["preference_used"], since["utility"], budget)
        for name, value in zip(of_path, (float(since["preference"].max()), *of_this), strict=True):
            arrays[name][1][place] = value
    return sweeps.assign(arrays).assign_coords(half=["below", "above"]).assign_attrs(budget=budget)


def _fitted(fit: Any, alpha: np.ndarray, y: np.ndarray) -> Decay | None:
    try:
        return fit(alpha, y)
    except ValueError:
        return None


def _of_path(alpha: np.ndarray, gain: np.ndarray, change: np.ndarray, budget: float) -> tuple[float, float, float]:
    """`area`, `spent`, and the largest loss of utility."""
    if not (np.isfinite(gain).all() and np.isfinite(change).all()):
        return (float("nan"),) * 3
    return area(gain, change, budget), spent(alpha, change, budget), float(-change.min())


def table(sweeps: xr.Dataset) -> list[dict[str, Any]]:
    """One row for each concept and update: how well the curves fit, and what is gained for what is lost.

    Args:
        sweeps: of `with_fits`, or of `averages`, which is then fitted.

    Returns:
        Rows with `concept`, `update`, `pairs`, `pairs_used`; `least` and `largest`, the ends of the strengths; for
        preference and utility ``_r_squared``, and by side ("below" 0, "above") ``_exponent``, ``_exponent_error``,
        ``_half``; `best_gain`, `area`, `spent`, `reached`.
    """
    sweeps = sweeps if "area" in sweeps else with_fits(sweeps)
    rows = []
    for concept in sweeps["concept"].values:
        for update in sweeps["update"].values:
            path = sweeps.sel(concept=concept, update=update)
            row: dict[str, Any] = {"concept": str(concept), "update": str(update)}
            row |= {name: int(path[name]) for name in ("pairs", "pairs_used")}
            row |= {"least": float(path["alpha"].min()), "largest": float(path["alpha"].max())}
            for name in _QUANTITIES:
                row[f"{name}_r_squared"] = float(path[f"{name}_r_squared"])
                for side in ("below", "above"):
                    sided = path.sel(half=side)
                    keys = ("exponent", "exponent_error", "half")
                    row |= {f"{name}_{key}_{side}": float(sided[f"{name}_{key}"]) for key in keys}
            rows.append(row | {name: float(path[name]) for name in ("best_gain", "area", "spent", "reached")})
    return rows


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `table` in columns: exponents and strengths at which validity is 1/2 are given below 0 / above it."""
    heads = ["concept", "update", "pairs", "R² pref", "R² util", "exponents pref", "exponents util"]
    heads += ["half pref", "half util", "best gain", "area", "reached"]
    lines = [heads]
    for row in rows:
        line = [str(row["concept"]), str(row["update"]), f"{row['pairs_used']}/{row['pairs']}"]
        line += [f"{row[f'{name}_r_squared']:.3f}" for name in _QUANTITIES]
        line += [" / ".join(_with_error(row, name, side) for side in ("below", "above")) for name in _QUANTITIES]
        line += [" / ".join(halved(row, name, side) for side in ("below", "above")) for name in _QUANTITIES]
        lines.append([*line, *(f"{round(row[name], 2) + 0.0:.2f}" for name in ("best_gain", "area", "reached"))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def halved(row: Mapping[str, Any], name: str, side: str) -> str:
    """The strength where validity is 1/2, for a table; past the end of the sweep only that it is there.

    Args:
        row: of `table`.
        name: "preference" or "utility".
        side: "below" or "above".
    """
    at = row[f"{name}_half_{side}"]
    if side == "below":
        return f"< {row['least']:.3g}" if at < row["least"] else f"{at:.3g}"
    return f"> {row['largest']:.3g}" if at > row["largest"] else f"{at:.3g}"


def _with_error(row: Mapping[str, Any], name: str, side: str) -> str:
    value, error = row[f"{name}_exponent_{side}"], row[f"{name}_exponent_error_{side}"]
    return f"{value:.2f}±{error:.2g}" if np.isfinite(error) else f"{value:.2f}"

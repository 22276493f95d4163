"""The cost of steering on a language model: its parts, its efficiency, bounds on it, turns of shares (N15, N16, N18, N20).

N15's split and bound, N20's range, and N18 with the change of the logits for M are theorems about any two predictions:
nothing measured may contradict them. N20's arc is a theorem after the last block. N18 with the slopes of the logits for M
is exact where logits are straight lines in the strength; on a language model it is a forecast from one JVP.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool

from sim.bridge.model import LanguageModel
from sim.bridge.readout import readout
from sim.bridge.split import Split
from sim.checks.validation.cost_curves import DIRECTIONS, SETS, by_block, curves, least, sets_of
from sim.checks.validation.findings import STEP, Finding, Run, about_of, by_pair
from theory import budgets
from ufm import Add, Steering
from ufm.distributions import kl
from ufm.measures import slopes
from ufm.steerable import sweep_states

LEAST, MOST = 1e-2, 2.0
"""Nats that the curvature forecasts at the ends of the sweep."""

TURN = 1e-9
"""Steps of a share that are smaller are no turns."""

WIDTHS = 64
"""Directions in which the diameter of an arc is measured: the bound is 0.03 % larger than with all of them."""


def costs(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """N15, N18 and N20: what a share costs, and bounds beside the KL that is measured, in float64.

    After the blocks of the run everything; after all others what N15 says, in one finding for each concept.
    """
    findings, parts, sets = [], [], {name: sets_of(run, name) for name in run.names}
    with jax.enable_x64(True):
        wide = run.lm.with_dtype(jnp.float64)
        for name, layer in run.pairs():
            split, steering = wide.split(run.texts.openings, layer), _adding(run, name, layer)
            start, strengths, coarse, limit = _sweep(split, steering, jnp.asarray(sets[name][0]), run.size.costs)
            about = about_of(name, layer)
            findings += _split(about, coarse, start["efficiency"], limit)
            slope = _of_slopes(start, strengths)
            findings += _bounded(about, coarse, slope)
            data = {key: (("context", "strength"), value) for key, value in (coarse | {"slope_bound": slope}).items()}
            if layer == run.lm.config.num_layers - 1:
                findings += _on_the_arc(run, name, coarse["kl"], strengths)
            before = {"efficiency": ("context", start["efficiency"]), "limit": ("context", limit)}
            before["share_before"] = ("context", start["share"])
            part = xr.Dataset(data | before | {"strengths": ("strength", strengths)})
            drawn = curves(split, steering, sets[name], run.size.drawn)
            findings += _turns(about, drawn)
            parts.append(part.merge(drawn))
        together = least(by_pair(run, parts))
        findings += [finding for name in run.names for finding in _elsewhere(run, wide, name, sets[name][0])]
    every = by_block(run, sets)
    return together.merge(every), findings + _best_blocks(every)


def _adding(run: Run, name: str, layer: int) -> Steering:
    return Steering(Add(jnp.asarray(run.v(name, layer), float)))


def _sweep(
    split: Split, steering: Steering, members: Bool[Array, " V"], count: int
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """A sweep of costs.

    Args:
        split, steering, members: the contexts, what steers them, and the tokens whose share is followed.
        count: of the strengths on each side of 0, from `LEAST` to `MOST` nats by the curvature.

    Returns:
        What one JVP says (`_at_zero`); the strengths ``[K]``; at each of them what `_swept` measures; and the part of the
        cost that moves the share, ``[n]``, at strengths of either sign that are so small that it is the limit.
    """
    start = jax.tree.map(np.asarray, _at_zero(split, steering, members))
    nats = np.geomspace(LEAST, MOST, count)
    far, near = np.sqrt(nats / (start["variance"].mean() / 2)), STEP / np.max(start["above"] + start["below"])
    alphas = np.concatenate([far[::-1], [near, near], far]) * np.repeat([-1.0, 1.0], count + 1)
    sweep = {key: np.asarray(value) for key, value in _swept(split, steering, jnp.asarray(alphas), members).items()}
    fine = slice(count, count + 2)
    limit = (sweep["share_cost"][:, fine] / sweep["kl"][:, fine]).mean(axis=1)
    return start, np.delete(alphas, fine), {key: np.delete(value, fine, axis=1) for key, value in sweep.items()}, limit


def _elsewhere(run: Run, wide: LanguageModel, name: str, members: np.ndarray) -> list[Finding]:
    """N15 after the blocks at which nothing else is looked at: the largest errors of sweeps at each, of two contexts."""
    others = [block for block in range(wide.config.num_layers) if block not in run.layers]
    findings = []
    for block in others:
        split = wide.split(run.texts.openings[:2], block)
        start, _, sweep, limit = _sweep(split, _adding(run, name, block), jnp.asarray(members), 2)
        findings.append(_split("", sweep, start["efficiency"], limit))
    worst = [max(column, key=lambda finding: finding.value) for column in zip(*findings, strict=True)]
    return [replace(finding, about=f"{name}, other blocks") for finding in worst if finding.tolerance is not None]


@jax.jit
def _at_zero(split: Split, steering: Steering, members: Bool[Array, " V"]) -> dict[str, Array]:
    """The results of one JVP for every context, ``[n]`` each: efficiency, share of the tokens, spread of the slopes."""
    logits, derivative = slopes(split, split.embed(jnp.arange(split.n_contexts)), steering)
    log_p = jax.nn.log_softmax(logits)
    share = jnp.sum(jnp.where(members, jnp.exp(log_p), 0), axis=-1)
    return {
        "efficiency": budgets.efficiency(log_p, derivative, jnp.broadcast_to(members, log_p.shape)),
        "share": share,
        **budgets.spread_of(log_p, derivative)._asdict(),
    }


@jax.jit
def _swept(split: Split, steering: Steering, alphas: Array, members: Bool[Array, " V"]) -> dict[str, Array]:
    """The cost at every strength, its parts, and what N18 and N20 make of the change of the logits, ``[n, K]`` each."""
    states = split.embed(jnp.arange(split.n_contexts))
    base = split.decode(states)

    def measure(logits, i):
        parts = budgets.split_cost(jax.nn.log_softmax(base[i]), jax.nn.log_softmax(logits), members)
        change = logits - base[i]
        spread = budgets.spread_of(jax.nn.log_softmax(base[i]), change)
        return {
            "kl": kl(base[i], logits),
            "share_cost": parts.share,
            "total": parts.total,
            "share": jnp.sum(jnp.where(members, jax.nn.softmax(logits), 0)),
            "moments_bound": budgets.budget_bound(spread.variance, spread.above, 1.0),
            "range_bound": budgets.range_bound(change),
        }

    return sweep_states(split, states, steering, alphas, measure)


def _of_slopes(start: dict[str, np.ndarray], alphas: np.ndarray) -> np.ndarray:
    """N18's bound with the slopes of the logits at 0 in the place of M, ``[n, K]``."""
    above = np.where(alphas > 0, start["above"][:, None], start["below"][:, None])
    return np.asarray(budgets.budget_bound(jnp.asarray(start["variance"][:, None]), jnp.asarray(above), jnp.asarray(alphas)))


def _split(about: str, sweep: dict[str, np.ndarray], efficiency: np.ndarray, limit: np.ndarray) -> list[Finding]:
    """N15 from a sweep, and from the limit: the mean at two small strengths of either sign."""
    ratio = sweep["share_cost"] / sweep["kl"]
    return [
        Finding(
            "N15.split", about, "KL less its three parts, relative", np.abs(sweep["total"] / sweep["kl"] - 1).max(), 1e-9
        ),
        Finding(
            "N15.bound", about, "nats below the least cost of the share", (sweep["share_cost"] - sweep["kl"]).max(), 1e-12
        ),
        Finding("N15.bound", about, "part of KL that moves the share, largest in the sweep", ratio.max()),
        Finding("N15.bound", about, "part of KL that moves the share, median", np.median(ratio)),
        Finding("N15.efficiency", about, "ρ² by JVP against a fine sweep", np.abs(limit - efficiency).max(), 1e-4),
        Finding("N15.efficiency", about, "ρ², mean over contexts", efficiency.mean()),
    ]


def _bounded(about: str, sweep: dict[str, np.ndarray], of_slopes: np.ndarray) -> list[Finding]:
    """N18 and N20 beside the KL of a sweep."""
    findings = []
    for statement, key, of in (("N18", "moments_bound", "moments"), ("N20.range", "range_bound", "range")):
        ratio = sweep["kl"] / sweep[key]
        findings += [
            Finding(
                statement, about, f"KL beyond the bound from the {of} of the change", (sweep["kl"] - sweep[key]).max(), 1e-12
            ),
            Finding(statement, about, "KL over that bound, largest", ratio.max()),
            Finding(statement, about, "KL over that bound, median", np.median(ratio)),
        ]
    ratio = sweep["kl"] / of_slopes
    return [
        *findings,
        Finding("N18", about, "KL over the bound from one JVP, largest", ratio.max()),
        Finding("N18", about, "KL over the bound from one JVP, median", np.median(ratio)),
    ]


def _turns(about: str, drawn: xr.Dataset) -> list[Finding]:
    """N16: how often shares turn as a positive strength grows. A theorem of the tilt; of a language model it is reported."""
    steps = np.diff(drawn["measured_share"].values, axis=-1)
    signs = [np.sign(row[np.abs(row) > TURN]) for row in steps]
    return [
        Finding("N16.turns", about, f"turns of the share of the {name}", float(np.sum(row[1:] != row[:-1])))
        for name, row in zip(SETS, signs, strict=True)
    ]


def _on_the_arc(run: Run, name: str, nats: np.ndarray, alphas: np.ndarray) -> list[Finding]:
    """N20's arc beside the KL of the contexts steered after the last block; where logits are capped, it is no theorem."""
    layer, out = run.lm.config.num_layers - 1, readout(run.lm)
    path = jax.vmap(out.arc, (0, None))(jnp.asarray(run.ends(layer, float)), jnp.asarray(run.v(name, layer), float))
    across = budgets.diameter(path, WIDTHS)
    bound = np.asarray(jax.vmap(budgets.arc_bound, (0, None, 0))(path, jnp.asarray(alphas), across))
    about, tolerance = about_of(name, layer), 1e-12 if out.softcap is None else None
    return [
        Finding("N20.arc", about, "KL beyond the bound from two unembeddings", (nats - bound).max(), tolerance),
        Finding("N20.arc", about, "KL over that bound, largest", (nats / bound).max()),
        Finding("N20.arc", about, "KL over that bound, median", np.median(nats / bound)),
    ]


def _best_blocks(every: xr.Dataset) -> list[Finding]:
    """The block after which the difference of means is most efficient, by concept."""
    own = every["by_block"].sel(direction=DIRECTIONS[0], set=SETS[0]).values
    return [
        Finding("N15.efficiency", about_of(name, int(np.argmax(row))), "ρ², the largest of all blocks", row.max())
        for name, row in zip(every["concept"].values, own, strict=True)
    ]

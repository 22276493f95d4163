"""Curves of the cost of steering after one context: shares of tokens, efficiency by block and direction, safe strengths.

Beside what is measured stands the tilt by the slopes of the logits at strength 0: what the theory of the unconstrained
features model makes of one Jacobian-vector product. Where logits are straight lines in the strength, the two agree.

Two sets of tokens are looked at. Those of the concept's texts are few; steering moves many others, too. Those that the
vector lifts after the last block are the ones that it names by itself.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float

from sim.bridge.readout import readout
from sim.bridge.split import Split
from sim.checks.validation.findings import Run
from sim.measure import costs
from theory import budgets
from ufm import Add, Steering
from ufm.distributions import kl, variance
from ufm.measures import slopes
from ufm.steerable import sweep_states

SETS = ("tokens of its texts", "tokens it lifts most")
"""Sets of tokens whose shares are followed."""

DIRECTIONS = ("difference of means", "unembedding of its tokens", "random")
"""Directions whose efficiency is looked at after every block."""

NATS = np.geomspace(1e-3, 3, 12)
"""Budgets."""

REACH = (0.8, 2.5)
"""The ends of a sweep, in strengths at which the tilt costs the least budget and the largest."""

LIFT = 1.0
"""Slopes of the log-probabilities that are lifted most, at least: in standard deviations of the prediction."""


def sets_of(run: Run, concept: str) -> Bool[np.ndarray, "2 V"]:
    """The tokens of a concept's texts, and those that its vector lifts after the last block (`SETS`)."""
    last = run.lm.config.num_layers - 1
    steering = Steering(Add(jnp.asarray(run.v(concept, last), jnp.float32)))
    with jax.enable_x64(False):
        return np.stack([run.members(concept), np.asarray(_lifts(run.openings.at(last), steering)) > LIFT])


@jax.jit
def _lifts(split: Split, steering: Steering) -> Float[Array, " V"]:
    """The slope of every log-probability after the first context, in standard deviations of the prediction."""
    logits, derivative = _start(split, steering)
    return (derivative - jax.nn.softmax(logits) @ derivative) / jnp.sqrt(variance(logits, derivative))


@jax.jit
def _start(split: Split, steering: Steering) -> tuple[Float[Array, " V"], Float[Array, " V"]]:
    """The logits after the first context, and their slopes."""
    logits, derivative = slopes(split, split.embed(jnp.arange(1)), steering)
    return logits[0], derivative[0]


def curves(split: Split, steering: Steering, sets: Bool[np.ndarray, "2 V"], count: int) -> xr.Dataset:
    """Costs and shares after the first context as a positive strength grows, and strengths that keep to budgets.

    Args:
        split: the contexts, in float64.
        steering: what steers them.
        sets: from `sets_of`.
        count: of strengths.

    Returns:
        "tilted_cost" and "tilted_share" (by set), "measured_cost" and "measured_share", by strength, and "before", the
        unsteered share; "N4", "N18", "N20" and "exact", the strengths of the tilt by budget, and "measured", where the model
        first costs as much.
    """
    logits, m = _start(split, steering)
    log_p, members = jax.nn.log_softmax(logits), jnp.asarray(sets)
    safe = costs.safe_strengths(log_p, m, NATS)
    low, high = np.array(REACH) * safe["exact"][[0, -1]]
    alphas = np.geomspace(low, high, count)
    log_q, (nats, shares) = costs.tilted(log_p, m, alphas), _swept(split, steering, jnp.asarray(alphas), members)
    return xr.Dataset(
        {
            "tilted_cost": ("fine", np.asarray(kl(log_p, log_q))),
            "tilted_share": (("set", "fine"), np.asarray(_share(log_q, members))),
            "measured_cost": ("fine", np.asarray(nats[0])),
            "measured_share": (("set", "fine"), np.asarray(shares[0]).T),
            "before": ("set", np.asarray(_share(log_p[None], members))[:, 0]),
            **{name: ("budget", values) for name, values in safe.items()},
            "measured": ("budget", crossings(alphas, np.asarray(nats[0]), NATS)),
            "alpha": ("fine", alphas),
        },
        coords={"set": list(SETS), "budget": NATS},
    )


def _share(log_q: Float[Array, "K V"], members: Bool[Array, "s V"]) -> Float[Array, "s K"]:
    return members.astype(log_q.dtype) @ jnp.exp(log_q).T


@jax.jit
def _swept(split: Split, steering: Steering, alphas: Array, members: Bool[Array, "s V"]) -> tuple[Array, Array]:
    """KL, ``[1, K]``, and shares, ``[1, K, s]``, of the first context."""
    states = split.embed(jnp.arange(1))
    base = split.decode(states)

    def measure(steered, i):
        return kl(base[i], steered), _share(jax.nn.log_softmax(steered)[None], members)[:, 0]

    return sweep_states(split, states, steering, alphas, measure)


def crossings(alphas: np.ndarray, nats: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The strengths at which a sampled cost first crosses levels, on straight lines of logarithms; NaN where it does not."""
    # For each level the first sample that is above or on it, and the one before.
    first = np.array([np.argmax(nats >= level) if nats.max() >= level else 0 for level in levels])
    before = np.maximum(first - 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.log(levels / nats[before]) / np.log(nats[first] / nats[before])
        return np.where(first > 0, alphas[before] * (alphas[first] / alphas[before]) ** part, np.nan)


def least(data: xr.Dataset, count: int = 200) -> xr.Dataset:
    """The data with "least" by "reached": the least cost (N15) of shares that a layer reaches for the largest budget."""
    shares = [data[f"{kind}_share"].where(data[f"{kind}_cost"] <= NATS[-1]) for kind in ("tilted", "measured")]
    both = xr.concat(shares, "of")
    # The context is one and the same: so is the share before.
    before = data["before"].isel(layer=0, drop=True)
    low, high = (end(("of", "layer", "fine")).fillna(before) for end in (both.min, both.max))
    before, reached = xr.broadcast(before, low + (high - low) * xr.DataArray(np.linspace(0, 1, count), dims="place"))
    values = np.asarray(budgets.binary_divergence(jnp.asarray(before.values), jnp.asarray(reached.values)))
    return data.assign(reached=reached, least=(reached.dims, values))


def by_block(run: Run, sets: Mapping[str, Bool[np.ndarray, "2 V"]]) -> xr.Dataset:
    """rho^2 after every block, for `DIRECTIONS` and `SETS`, mean over contexts: one JVP for each direction.

    Args:
        run: the model and the texts.
        sets: from `sets_of`, by concept.
    """
    blocks = range(run.lm.config.num_layers)
    rows = np.empty((len(run.names), len(SETS), len(DIRECTIONS), len(blocks)))
    with jax.enable_x64(False):
        for i, name in enumerate(run.names):
            members, vectors = jnp.asarray(sets[name]), _vectors(run, name)
            for k, block in np.ndindex(rows.shape[2:]):
                steering = Steering(Add(jnp.asarray(vectors[k, block], jnp.float32)))
                rows[i, :, k, block] = _efficiencies(run.openings.at(block), steering, members)
    return xr.Dataset(
        {"by_block": (("concept", "set", "direction", "block"), rows)},
        coords={"concept": run.names, "direction": list(DIRECTIONS), "block": list(blocks), "set": list(SETS)},
    )


@jax.jit
def _efficiencies(split: Split, steering: Steering, sets: Bool[Array, "s V"]) -> Float[Array, " s"]:
    logits, derivative = slopes(split, split.embed(jnp.arange(split.n_contexts)), steering)
    log_p = jax.nn.log_softmax(logits)
    return jnp.mean(
        budgets.efficiency(log_p, derivative, jnp.broadcast_to(sets[:, None], (len(sets), *log_p.shape))), axis=-1
    )


def _vectors(run: Run, name: str) -> Float[np.ndarray, "3 L d"]:
    """The vectors of `DIRECTIONS` after every block."""
    out, members, blocks = readout(run.lm), run.members(name), range(run.lm.config.num_layers)
    rows = np.asarray(out.W * out.gamma)
    own = np.stack([run.v(name, block) for block in blocks])
    towards = np.broadcast_to(rows[members].mean(axis=0) - rows.mean(axis=0), own.shape)
    return np.stack([own, towards, np.random.default_rng(run.seed).normal(size=own.shape)])

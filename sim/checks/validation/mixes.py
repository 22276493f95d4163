"""Two concepts at once on a language model: how they interfere, and the mix that gains one of them most (N23).

In any model the mean over tokens of the mixed second derivative of log p at 0 is ``-Cov(M_1, M_2)``, with the slopes of the
logits for M. As the mean of the change of log p is -KL, it is measured as the mixed second derivative of KL. That it is the
same for all tokens needs logits that are affine in the strengths. The first-order rule for the mix holds in any model, at
small budgets; how far it carries is reported.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float

from sim.bridge.split import Split
from sim.checks.validation.findings import STEP, Finding, Run, about_of
from theory import allocation
from ufm import Add, Steering
from ufm._check import require
from ufm.distributions import kl
from ufm.measures import slopes
from ufm.steerable import sweep_states

BUDGET = 0.1
"""Nats, for what is reported."""

WAYS = ("best mix", "first alone", "second alone", "plain sum")
"""Directions in the plane of the two strengths."""


class TwoSlopes(NamedTuple):
    """The results of one JVP for each of two vectors.

    Attributes:
        log_p: unsteered log-probabilities, ``[n, V]``.
        m: slopes of the logits, ``[n, 2, V]``.
    """

    log_p: Float[Array, "n V"]
    m: Float[Array, "n 2 V"]


def mixes(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """N23 with the first two concepts at every layer, in float64.

    Raises:
        ValueError: fewer than two concepts.
    """
    findings, rows, names = [], [], run.names[:2]
    require(len(names) == 2, "concepts", "two concepts, or statements other than N23", len(names))
    with jax.enable_x64(True):
        wide = run.lm.with_dtype(jnp.float64)
        for layer in run.layers:
            split = wide.split(run.texts.openings, layer)
            steerings = tuple(Steering(Add(jnp.asarray(run.v(name, layer), float))) for name in names)
            start = _at_zero(split, steerings)
            findings += _interference(about_of(" and ".join(names), layer), split, steerings, start)
            gains = []
            for name in names:
                ahead, measured = _gains(split, steerings, start, jnp.asarray(run.members(name)))
                findings += _mix(about_of(name, layer), ahead, measured)
                gains.append(measured[1])
            rows.append(gains)
    data = xr.Dataset(
        {"gain": (("layer", "concept", "way"), rows)}, coords={"layer": run.layers, "concept": names, "way": list(WAYS)}
    )
    return data, findings


@jax.jit
def _at_zero(split: Split, steerings: tuple[Steering, ...]) -> TwoSlopes:
    states = split.embed(jnp.arange(split.n_contexts))
    logits, first = slopes(split, states, steerings[0])
    return TwoSlopes(jax.nn.log_softmax(logits), jnp.stack([first, slopes(split, states, steerings[1])[1]], axis=1))


@jax.jit
def _swept(split: Split, steerings: tuple[Steering, ...], alphas: Array, members: Array) -> tuple[Array, Array]:
    """KL and the share of the members at pairs of strengths ``[K, 2]``: the mean over contexts, ``[K]`` each."""
    states = split.embed(jnp.arange(split.n_contexts))
    base = split.decode(states)

    def measure(logits, i):
        return kl(base[i], logits), jnp.sum(jnp.where(members, jax.nn.softmax(logits), 0))

    nats, share = sweep_states(split, states, steerings[0] + steerings[1], alphas, measure)
    return nats.mean(axis=0), share.mean(axis=0)


@jax.jit
def _crossed(split: Split, steerings: tuple[Steering, ...], alphas: Array) -> tuple[Array, Array]:
    """Mixed second derivatives of log p, ``[n, V]``, and of KL, ``[n]``, from differences between strengths ``+-alphas``."""
    states = split.embed(jnp.arange(split.n_contexts))
    signs = jnp.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    base = split.decode(states)

    def measure(logits, i):
        return jax.nn.log_softmax(logits), kl(base[i], logits)

    values = sweep_states(split, states, steerings[0] + steerings[1], signs * alphas, measure)
    return jax.tree.map(
        lambda leaf: jnp.einsum("k,nk...->n...", jnp.prod(signs, axis=1), leaf) / (4 * jnp.prod(alphas)), values
    )


def _interference(about: str, split: Split, steerings: tuple[Steering, ...], start: TwoSlopes) -> list[Finding]:
    """Mixed second derivatives beside the covariance of the slopes, in units of their standard deviations."""
    token = jnp.arange(start.log_p.shape[-1]) == 0
    covariance = np.asarray(allocation.response(start.log_p, start.m, token).covariance)
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    unit, cross, p = np.sqrt(np.prod(variances, axis=1)), covariance[:, 0, 1], np.exp(start.log_p)
    steps = _crossed(split, steerings, STEP / jnp.max(jnp.ptp(start.m, axis=-1), axis=0))
    of_log_p, of_kl = (np.asarray(part) for part in steps)
    mean = np.sum(p * of_log_p, axis=-1)
    spread = np.sqrt(np.sum(p * (of_log_p - mean[:, None]) ** 2, axis=-1))
    return [
        Finding(
            "N23.interference",
            about,
            "mixed second derivative of KL and Cov, in deviations",
            np.max(np.abs(of_kl - cross) / unit),
            1e-3,
        ),
        Finding("N23.interference", about, "correlation of the slopes, mean over contexts", np.mean(cross / unit)),
        Finding("N23.interference", about, "spread of the interference over tokens, median", np.median(spread / unit)),
    ]


def _gains(
    split: Split, steerings: tuple[Steering, ...], start: TwoSlopes, members: Bool[Array, " V"]
) -> tuple[np.ndarray, np.ndarray]:
    """The members' mean gain over contexts from ways of mixing, by the square root of the KL that they cost.

    Returns:
        As forecast for small budgets, ``[4]``; and measured at a small strength and at `BUDGET`, ``[2, 4]``.
    """
    of = allocation.response(start.log_p, start.m, members)
    gains, covariance = of.gains.mean(axis=0), of.covariance.mean(axis=0)
    ways = jnp.stack([allocation.best_mix(gains, covariance, 1.0), *jnp.eye(2), jnp.ones(2)])
    ways = ways * jnp.where(ways @ gains < 0, -1, 1)[:, None]
    unit = ways / jnp.sqrt(jnp.einsum("wk,kl,wl->w", ways, covariance, ways) / 2)[:, None]
    fine, large = STEP / jnp.max(jnp.ptp(jnp.einsum("wk,nkv->wnv", unit, start.m), axis=-1)), np.sqrt(BUDGET)
    nats, share = _swept(split, steerings, jnp.concatenate([fine * unit, -fine * unit, large * unit, 0 * unit[:1]]), members)
    count, cost = len(WAYS), jnp.sqrt(nats)
    near = (share[:count] - share[count : 2 * count]) / (cost[:count] + cost[count : 2 * count])
    far = (share[2 * count : 3 * count] - share[-1]) / cost[2 * count : 3 * count]
    return np.asarray(unit @ gains), np.asarray([near, far])


def _mix(about: str, ahead: np.ndarray, measured: np.ndarray) -> list[Finding]:
    """The best mix beside the others: as the rule says, and as measured."""
    near, far = measured
    return [
        Finding(
            "N23.mix", about, "gain of the best mix at a small budget, relative error", abs(near[0] / ahead[0] - 1), 1e-3
        ),
        Finding(
            "N23.mix", about, "best of the others at a small budget beyond it, relative", near[1:].max() / near[0] - 1, 1e-3
        ),
        Finding("N23.mix", about, "at 0.1 nats: gain of the better one alone, in the best mix's", far[1:3].max() / far[0]),
        Finding("N23.mix", about, "at 0.1 nats: gain of the plain sum, in the best mix's", far[3] / far[0]),
        Finding("N23.mix", about, "at 0.1 nats: gain of the best mix, in its forecast", far[0] / ahead[0]),
    ]

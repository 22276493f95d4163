"""Steering with normalised states: the tempered tilt after the last block, and what is left of it before (N19).

The direction is the difference of means of the states of a concept's texts at their last positions, each divided by what
the last norm would divide it by. After the last block, where the norm has no bias and the logits no cap, the steered
prediction is the tempered tilt exactly. Before, the blocks that follow have their say: what is left is reported.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from sim.bridge.readout import Readout, readout
from sim.bridge.split import Split, end_states
from sim.checks.validation.findings import Finding, Run, about_of, by_pair
from theory import tempered
from ufm import Add, Steering
from ufm.distributions import kl
from ufm.measures import slopes
from ufm.normalised import as_seen
from ufm.steerable import sweep_states

LENGTHS = np.asarray([-1.0, -0.5, -0.25, 0.25, 0.5, 1.0])
"""Strengths: the length of what is added, in median lengths of the states."""


class Contrast(NamedTuple):
    """Directions of normalised states, and what they mean.

    Attributes:
        v: for every block, ``[L, d]``.
        m: the log-odds M of the model's own predictions after the texts, ``[V]`` nats.
    """

    v: Float[Array, "L d"]
    m: Float[Array, " V"]


def tilts(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """N19 at every layer, in float64."""
    findings, parts = [], []
    with jax.enable_x64(True):
        wide, out = run.lm.with_dtype(jnp.float64), readout(run.lm)
        for concept in run.texts.concepts:
            texts = wide.split([*concept.positive, *concept.negative], 0)
            made = _contrast(texts, jnp.asarray(len(concept.positive)), out)
            for layer in run.layers:
                split, v = wide.split(run.texts.openings, layer), made.v[layer]
                h = end_states(split)
                alphas = jnp.median(jnp.linalg.norm(h, axis=-1)) / jnp.linalg.norm(v) * jnp.asarray(LENGTHS)
                steps = {key: np.asarray(value) for key, value in _compared(split, out, h, v, made.m, alphas).items()}
                about = about_of(concept.name, layer)
                if layer == run.lm.config.num_layers - 1:
                    findings += _at_the_end(about, out, v, made.m, steps["error"])
                left = steps["off"].sum() / steps["moved"].sum()
                findings += [
                    Finding("N19.tilt", about, "KL from the model to the tilt, in KL that the model moves", left),
                    Finding("N19.tilt", about, "correlation of the slopes with the tilt's", steps["correlation"].mean()),
                ]
                sweep = {key: (("context", "length"), steps[key]) for key in ("off", "moved")}
                correlation = {"correlation": ("context", steps["correlation"])}
                parts.append(xr.Dataset(sweep | correlation, coords={"length": LENGTHS}))
    return by_pair(run, parts), findings


def _at_the_end(about: str, out: Readout, v: Array, m: Array, error: np.ndarray) -> list[Finding]:
    """After the last block: the tilt beside the model, at finite strengths and at infinite ones of both signs."""
    is_theorem = out.softcap is None and (out.bias is None or not bool(jnp.any(out.bias)))
    tolerance, length = 1e-9 if is_theorem else None, jnp.linalg.norm(as_seen(v, out.kind))
    far = [float(jnp.max(jnp.abs(jax.nn.softmax(out.limit(v, sign)) - tempered.limit(m, length, sign)))) for sign in (-1, 1)]
    return [
        Finding("N19.tilt", about, "log-probabilities of the tilt, largest error", error.max(), tolerance),
        Finding("N19.tilt", about, "its probabilities at infinite strength, largest error", max(far), tolerance),
    ]


@jax.jit
def _contrast(texts: Split, count: Array, out: Readout) -> Contrast:
    """The directions from the other texts to the first `count`, and the log-odds of the predictions after them."""
    n = texts.n_contexts
    weights = jnp.where(jnp.arange(n) < count, 1 / count, -1 / (n - count))
    ends = texts.embed_all(jnp.arange(n)).stream[:, :, -1]
    v = jax.vmap(lambda h: tempered.direction(h, weights, kind=out.kind, eps=out.eps))(ends)
    return Contrast(v, weights @ jax.nn.log_softmax(texts.decoder.logits(ends[-1])))


@jax.jit
def _compared(split: Split, out: Readout, h: Array, v: Array, m: Array, alphas: Array) -> dict[str, Array]:
    """Steered predictions beside the tilt.

    Args:
        cut: the contexts.
        out: the last norm and the unembedding.
        h: states of the contexts at the last position, ``[n, d]``.
        v: direction of normalised states, ``[d]``.
        m: M, ``[V]`` nats.
        alphas: strengths, ``[K]``.

    Returns:
        By context and strength, ``[n, K]``: the largest "error" of a log-probability, how far the model is "off" the tilt
        and how far it has "moved", both in nats of KL; by context, ``[n]``, the "correlation" of the slopes at 0 with the
        tilt's, under the unsteered prediction.
    """
    states, steering = split.embed(jnp.arange(split.n_contexts)), Steering(Add(v))
    logits, derivative = slopes(split, states, steering)
    log_p = jax.nn.log_softmax(logits)

    def tilted(own, state, alpha):
        before, after = (tempered.size_of(x, kind=out.kind, eps=out.eps) for x in (state, state + alpha * v))
        return tempered.log_probabilities(own, m, alpha, before, after)

    def of_context(own, state):
        return jax.vmap(lambda alpha: tilted(own, state, alpha))(alphas)

    def slope(own, state):
        return jax.jvp(lambda alpha: tilted(own, state, alpha), (jnp.zeros(()),), (jnp.ones(()),))[1]

    measured = sweep_states(split, states, steering, alphas, lambda steered, _: jax.nn.log_softmax(steered))
    stated = jax.vmap(of_context)(log_p, h)
    return {
        "error": jnp.max(jnp.abs(measured - stated), axis=-1),
        "off": kl(measured, stated),
        "moved": kl(log_p[:, None], measured),
        "correlation": jax.vmap(_correlation)(jnp.exp(log_p), derivative, jax.vmap(slope)(log_p, h)),
    }


def _correlation(p: Array, a: Array, b: Array) -> Array:
    """The correlation of two quantities of a token, ``[V]`` each, under p."""
    a, b = a - p @ a, b - p @ b
    return p @ (a * b) / jnp.sqrt((p @ a**2) * (p @ b**2))

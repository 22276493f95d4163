"""N2: peaks come in the order of the log-odds, in every context and for every two tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import signs
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, TOKENS, least, model_curves, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen

_FAR = 1e3
"""The lead, in units of 1/R, that a peak at +inf has over others."""

_TIED = 1e-6
"""Log-odds closer than this share of R are not compared: their peaks are as close, and rounding orders them."""


def _pairs(instance: Instance):
    """Pairs of tokens z, z' with ``M(z) < M(z')``, ``[V, V]``."""
    m = instance.log_odds
    return m[None, :] - m[:, None] > _TIED * instance.range


def _least_lead(instance: Instance, peaks, pairs):
    """The least ``(peak of z' - peak of z)`` over contexts and pairs (z, z'), infinite leads counted as `_FAR`."""
    # Peaks at the same infinity have no lead over each other; pairs never ask for one.
    leads = jnp.where(pairs, peaks[:, None, :] - peaks[:, :, None], _FAR)
    return least(jnp.clip(leads, -_FAR, _FAR), jnp.broadcast_to(pairs, leads.shape))


def _ordered(tex: str, pairs) -> Claim:
    """The claim that in each pair (z, z') of a mask ``[V, V]`` z peaks before z'."""

    def instances(instance):
        return _least_lead(instance, instance.peaks * instance.range, pairs(instance)) + ROUNDING

    def autodiff(instance):
        """Where z peaks, z' still rises."""
        curves, peaks = model_curves(instance, TOKENS), instance.peaks

        def at(j, z):
            finite = jnp.isfinite(peaks[j, z])
            slopes = slope(curves, jnp.where(finite, peaks[j, z], 0))[j] / instance.range
            return least(slopes, pairs(instance)[z] & finite)

        contexts, tokens = (jnp.arange(n) for n in instance.log_p.shape)
        return jnp.min(jax.vmap(lambda j: jax.vmap(lambda z: at(j, z))(tokens))(contexts)) + ROUNDING

    @compiled_quickly
    def on_peaks(instance, top):
        return _least_lead(instance, top, pairs(instance))

    def sweep(swept: Measured):
        top = swept.alphas[np.argmax(swept.log_probabilities, axis=1)]
        peaks = np.where(top == swept.alphas[-1], np.inf, np.where(top == swept.alphas[0], -np.inf, top))
        # Peaks closer than the grid's step coincide on it.
        return float(on_peaks(swept.instance, jnp.asarray(peaks / swept.step))) + 1e-9

    def never_in_turn(instance, alpha):
        slopes = signs.of_tokens(instance, alpha)
        either = jnp.maximum(slopes[:, None, :], -slopes[:, :, None])
        return jnp.where(pairs(instance), either, jnp.inf)

    reading = "the least lead, in units of 1/R, by which a token peaks before one of larger M, with 1e-11 for rounding"
    return Claim(tex, instances, autodiff, sweep, (Curve(never_in_turn, beyond=signs.settled),), reading=reading)


def _pairs_of_one_contrast(instance: Instance):
    """The wrong order: by the log-odds of the first context of P over the first of N."""
    first = instance.log_p[jnp.argmax(instance.contrast > 0)] - instance.log_p[jnp.argmax(instance.contrast < 0)]
    apart = jnp.abs(instance.log_odds[None, :] - instance.log_odds[:, None]) > _TIED * instance.range
    return (first[None, :] - first[:, None] > _TIED * jnp.ptp(first)) & apart


_ORDER = _ordered(r"M(z) < M(z') \iff \alpha_{j,z} < \alpha_{j,z'}", _pairs)
_ORDER_OF_ONE = _ordered(
    r"\log\frac{p_i(z)}{p_k(z)} < \log\frac{p_i(z')}{p_k(z')} \implies \alpha_{j,z} \le \alpha_{j,z'},"
    r"\quad i = \min P,\ k = \min N",
    _pairs_of_one_contrast,
)

STATEMENTS = (
    Statement(
        id="N2",
        title="Peaks come in the order of the log-odds",
        source="N2",
        claim=_ORDER,
        twin=_ORDER_OF_ONE,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="For any two tokens and without assumption 1; theorem 3.3's order is the case of one token on the target "
        "and one off it.",
        proof="proofs/N2",
        figure="next-token-curves",
    ),
)

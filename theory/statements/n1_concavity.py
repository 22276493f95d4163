"""N1 to N3: log-probabilities are strictly concave in the strength, which orders all peaks and leaves a sweet spot."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import signs, symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, TOKENS, closed_form_curves, least, model_curves, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen

_PROOF = "proofs/N1-N3"

# --- N1 --------------------------------------------------------------------------------------------------------------

_NEAR = np.linspace(-8, 8, 17)
"""Strengths in units of 1/R at which curvature is well above rounding, or has run out."""


def _curvatures(curves, step):
    """Second differences of values on an even grid, ``[m, K - 2, V]``."""
    return (curves[:, 2:] - 2 * curves[:, 1:-1] + curves[:, :-2]) / step**2


def _concave(tex: str, identities, transform, curve: Curve) -> Claim:
    """The claim that a function of the log-probabilities is strictly concave in alpha for every token."""

    def instances(instance):
        curves = transform(closed_form_curves(instance, TOKENS, jnp.asarray(_NEAR) / instance.range))
        return jnp.min(-_curvatures(curves, _NEAR[1] - _NEAR[0])) + ROUNDING

    def autodiff(instance):
        curves = model_curves(instance, TOKENS)

        def second(alpha):
            return slope(lambda a: slope(lambda b: transform(curves(b)), a), alpha)

        return jnp.min(-jax.vmap(second)(jnp.asarray(_NEAR) / instance.range)) / instance.range**2 + ROUNDING

    @compiled_quickly
    def least_curvature(measured):
        return jnp.min(-_curvatures(transform(measured), 1.0))

    def sweep(swept: Measured):
        # Every twentieth strength, so that a second difference is above the error of the model.
        return float(least_curvature(swept.log_probabilities[:, ::20])) + 1e-9

    return Claim(tex, instances, autodiff, sweep, (curve,), identities)


def _curvature_of_probability(instance: Instance, alpha):
    """Minus the second derivative of every probability: ``sigma_z (Var - (M(z) - E[M])^2)``."""
    m = instance.log_odds

    def context(log_p):
        q = jnp.exp(tilting.log_probabilities(log_p, m, alpha))
        return q * (tilting.variance(log_p, m, alpha) - (m - tilting.mean(log_p, m, alpha)) ** 2)

    return jax.vmap(context)(instance.log_p)


_CONCAVE = _concave(
    r"\frac{d^2}{d\alpha^2} \log \sigma_z(f_\alpha(c_j)) = -\operatorname{Var}_\alpha(M) < 0",
    symbolic.IDENTITIES["N1"],
    lambda log_q: log_q,
    Curve(signs.of_variance),
)
_PROBABILITIES_CONCAVE = _concave(
    r"\frac{d^2}{d\alpha^2} \sigma_z(f_\alpha(c_j)) = -\sigma_z(f_\alpha(c_j)) \operatorname{Var}_\alpha(M) < 0",
    symbolic.TWINS["N1"],
    jnp.exp,
    Curve(_curvature_of_probability),
)

# --- N2 --------------------------------------------------------------------------------------------------------------

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

    return Claim(tex, instances, autodiff, sweep, (Curve(never_in_turn),))


def _target_before(instance: Instance):
    """The wrong order: by unsteered probability in the first context."""
    p = instance.log_p[0]
    return (p[None, :] > p[:, None]) & (
        jnp.abs(instance.log_odds[None, :] - instance.log_odds[:, None]) > _TIED * instance.range
    )


_ORDER = _ordered(r"M(z) < M(z') \iff \alpha_{j,z} < \alpha_{j,z'}", _pairs)
_ORDER_BY_PROBABILITY = _ordered(r"p_1(z) < p_1(z') \iff \alpha_{j,z} < \alpha_{j,z'}", _target_before)

# --- N3 --------------------------------------------------------------------------------------------------------------


def sweet_spot(instance: Instance):
    """The ends of S_j for every context: the last off-target peak and the first target peak, each ``[m]``."""
    peaks, target = instance.peaks, instance.in_target
    return (
        jnp.max(jnp.where(target, -jnp.inf, peaks), axis=-1),
        jnp.min(jnp.where(target, peaks, jnp.inf), axis=-1),
    )


def _finite_spot(instance: Instance):
    """The sweet spot with infinite ends moved to 4/R from the finite one, or to +-4/R."""
    low, high = sweet_spot(instance)
    reach = 4 / instance.range
    low_end = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high - reach, -reach))
    high_end = jnp.where(jnp.isfinite(high), high, jnp.where(jnp.isfinite(low), low + reach, reach))
    return low_end, high_end


_INSIDE = np.array([0.02, 0.25, 0.5, 0.75, 0.98])


def _all_move_right(tex: str, ends, *, exists: bool = False) -> Claim:
    """The claim that strictly between two ends, for every context, target tokens rise and off-target tokens fall.

    Args:
        tex: the claim.
        ends: of an instance, ``[m]`` each; nothing is claimed where the first is not below the second.
        exists: claim also that it always is.
    """

    def direction(instance):
        return jnp.where(instance.in_target, 1.0, -1.0)

    def claimed(slopes, low, high):
        return least(slopes, jnp.broadcast_to((low < high)[:, None, None], slopes.shape))

    def instances(instance):
        m, (low, high) = instance.log_odds, ends(instance)

        def context(log_p, low, high):
            alphas = low + (high - low) * _INSIDE
            return jax.vmap(lambda alpha: direction(instance) * (m - tilting.mean(log_p, m, alpha)))(alphas)

        slopes = jax.vmap(context)(instance.log_p, low, high) / instance.range
        width = jnp.min(high - low) * instance.range if exists else jnp.inf
        return jnp.minimum(claimed(slopes, low, high), width) + ROUNDING

    def autodiff(instance):
        curves, (low, high) = model_curves(instance, TOKENS), ends(instance)

        def context(j, low, high):
            alphas = low + (high - low) * _INSIDE
            return jax.vmap(lambda alpha: direction(instance) * slope(curves, alpha)[j])(alphas)

        slopes = jax.vmap(context)(jnp.arange(low.size), low, high) / instance.range
        return claimed(slopes, low, high) + ROUNDING

    @compiled_quickly
    def secants(instance, alphas, measured):
        low, high = ends(instance)
        within = (alphas[:-1] >= low[:, None]) & (alphas[1:] <= high[:, None])
        return least(direction(instance) * jnp.diff(measured, axis=1), within[..., None])

    def sweep(swept: Measured):
        margin = secants(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.log_probabilities))
        return float(margin) + 1e-9

    def inside(instance, alpha):
        low, high = ends(instance)
        blur = 1e-3 / instance.range
        within = (alpha >= low + blur) & (alpha <= high - blur)
        # Outside nothing is claimed: any positive number. Infinities have no ball around them.
        return jnp.where(within[:, None], direction(instance) * signs.of_tokens(instance, alpha), 1.0)

    return Claim(tex, instances, autodiff, sweep, (Curve(inside),))


def _from_zero(instance: Instance):
    """The wrong range: from 0 to the end of the sweet spot."""
    _, high = _finite_spot(instance)
    return jnp.zeros_like(high), high


_SWEET_SPOT = _all_move_right(
    r"S_j = \left(\max_{z \notin T} \alpha_{j,z},\ \min_{z \in T} \alpha_{j,z}\right) \neq \emptyset,"
    r"\quad \alpha \in S_j \implies \text{every}\ z \in T\ \text{rises and every}\ z \notin T\ \text{falls}",
    _finite_spot,
    exists=True,
)
_FROM_ZERO = _all_move_right(
    r"0 < \alpha < \min_{z \in T} \alpha_{j,z} \implies \text{every}\ z \in T\ \text{rises and every}\ "
    r"z \notin T\ \text{falls}",
    _from_zero,
)

STATEMENTS = (
    Statement(
        id="N1",
        title="Log-probabilities are strictly concave",
        source="N1",
        claim=_CONCAVE,
        twin=_PROBABILITIES_CONCAVE,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Theorem 3.3's bump is a corollary: a strictly concave function has at most one maximum, and rises before "
        "it. Probabilities themselves are not concave.",
        proof=_PROOF,
        figure="next-token-curves",
    ),
    Statement(
        id="N2",
        title="Peaks come in the order of the log-odds",
        source="N2",
        claim=_ORDER,
        twin=_ORDER_BY_PROBABILITY,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="For any two tokens and without assumption 1; theorem 3.3's order is the case of one token on the target "
        "and one off it.",
        proof=_PROOF,
        figure="next-token-curves",
    ),
    Statement(
        id="N3",
        title="The sweet spot",
        source="N3",
        claim=_SWEET_SPOT,
        twin=_FROM_ZERO,
        hypotheses=chosen("A2", "not-constant", "positive", "separated"),
        remarks="The range of strengths that S asks for in its section 3.1. It need not begin at 0, nor contain it.",
        proof=_PROOF,
        figure="next-token-curves",
    ),
)

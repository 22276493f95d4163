"""N5: the probability of a concept lies between two logistic curves, which tells how hard to push for a given share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit

from theory import signs, symbolic
from theory._compilation import compiled_quickly
from theory.claims import GRID, ROUNDING, closed_form_curves, concepts, least, measured_curves, model_curves, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen
from theory.statements.theorem_3_6 import slopes as concept_slopes

_SHARES = np.array([0.5, 0.9, 0.99])


def enough(instance: Instance, share):
    """The strength from which ``F_T >= share`` is guaranteed in every context, ``[m]``; +inf where N5 gives none.

    ``(logit share - r_j) / (min_T M - max_{T^c} M)`` where the denominator is positive, and at least 0.
    """
    low, _ = signs.slope_bounds(instance, _target(instance))
    r = closed_form_curves(instance, _target, jnp.zeros(1))[:, 0, 0]
    wanted = jnp.maximum(logit(share) - r, 0)
    return jnp.where(low[0] > 0, wanted / jnp.where(low[0] > 0, low[0], 1), jnp.inf)


def _target(instance: Instance):
    """The target concept as the only event, ``[1, V]``."""
    return instance.in_target[None]


def _reached(instance: Instance, curves):
    """By how much the target's log-odds, ``[m, 1]`` by strength, exceed the wanted ones where `enough` guarantees them."""
    wanted = jnp.asarray(_SHARES)
    strengths = jax.vmap(lambda share: enough(instance, share))(wanted)
    finite = jnp.isfinite(strengths)
    contexts = jnp.arange(strengths.shape[1])
    at = jax.vmap(jax.vmap(lambda j, alpha: curves(alpha)[j, 0]), (None, 0))(contexts, jnp.where(finite, strengths, 0))
    return least(at - logit(wanted)[:, None] + 1e-8 * (1 + jnp.abs(at)), finite)


def _between(tex: str, identities, bounds, curves) -> Claim:
    """The claim that ``logit F_C - r`` lies between alpha times each of two slopes.

    Args:
        tex: the claim.
        identities: what it rests on, symbolic.
        bounds: the slopes for strengths of a sign, (low, high), each ``[m, G]`` or ``[G]``.
        curves: the certificate.
    """

    def slack(instance, values, start, alpha):
        low, high = bounds(instance)
        secant = (values - start) / alpha
        return jnp.minimum(jnp.min(secant - low), jnp.min(high - secant)) / instance.range

    def instances(instance):
        grid = jnp.asarray(GRID[GRID != 0]) / instance.range
        curves = jnp.moveaxis(closed_form_curves(instance, concepts, grid), 1, 0)
        start = closed_form_curves(instance, concepts, jnp.zeros(1))[:, 0]
        margin = jnp.min(jax.vmap(lambda values, alpha: slack(instance, values, start, alpha))(curves, grid))
        return jnp.minimum(
            margin + 1e-9, _reached(instance, lambda alpha: closed_form_curves(instance, _target, alpha[None])[:, 0])
        )

    def autodiff(instance):
        curves, (low, high) = model_curves(instance, concepts), bounds(instance)

        def slack(alpha):
            slopes = slope(curves, alpha)
            return jnp.minimum(jnp.min(slopes - low), jnp.min(high - slopes)) / instance.range

        margin = jnp.min(jax.vmap(slack)(jnp.asarray(GRID) / instance.range)) + ROUNDING
        return jnp.minimum(margin, _reached(instance, model_curves(instance, _target)))

    @compiled_quickly
    def on_grid(instance, alphas, values, start):
        low, high = bounds(instance)
        secant = (values - start[:, None]) / alphas[:, None]
        return jnp.minimum(jnp.min(secant - low[..., None, :]), jnp.min(high[..., None, :] - secant))

    def sweep(swept: Measured):
        curves = measured_curves(swept, concepts)
        away = np.abs(swept.alphas) > 0.5 * swept.step
        return float(on_grid(swept.instance, swept.alphas[away], curves[:, away], curves[:, swept.zero])) + 1e-8

    reading = (
        "the least slack of a bound on the secants of a concept's log-odds, in units of R and with 1e-9 for "
        "rounding, or by how much the target's log-odds exceed the wanted ones at the strength that guarantees "
        "them, whichever is less"
    )
    return Claim(tex, instances, autodiff, sweep, curves, identities, reading=reading)


def _logistic_bounds(instance: Instance):
    low, high = signs.slope_bounds(instance, instance.members)
    shape = (instance.log_p.shape[0], low.size)
    return jnp.broadcast_to(low, shape), jnp.broadcast_to(high, shape)


def _slope_at_zero(instance: Instance):
    at_zero = concept_slopes(instance, jnp.zeros(()))
    return at_zero, at_zero


def _stays_straight(instance: Instance, alpha):
    return 1e-6 * instance.range - jnp.abs(concept_slopes(instance, alpha) - concept_slopes(instance, 0 * alpha))


_SANDWICH = _between(
    r"\frac{d}{d\alpha} \operatorname{logit} F_C \in \left[\min_C M - \max_{C^\complement} M,\ "
    r"\max_C M - \min_{C^\complement} M\right];\quad "
    r"\min_T M > \max_{T^\complement} M,\ F_T(0) \le \tau < 1,\ "
    r"\alpha \ge \frac{\operatorname{logit} \tau - r_j}{\min_T M - \max_{T^\complement} M} \implies F_T(\alpha) \ge \tau",
    symbolic.IDENTITIES["N5"],
    _logistic_bounds,
    (
        Curve(
            lambda instance, alpha: jnp.stack(signs.between_events(instance, alpha, instance.members)),
            beyond=lambda instance, alpha: signs.apart(instance, instance.members),
        ),
    ),
)
_LOGISTIC = _between(
    r"\frac{d}{d\alpha} \operatorname{logit} F_C = \left.\frac{d}{d\alpha} \operatorname{logit} F_C\right|_{\alpha = 0}"
    r"\quad \text{for all}\ \alpha",
    symbolic.TWINS["N5"],
    _slope_at_zero,
    (Curve(_stays_straight, (1.0, 16.0)),),
)

STATEMENTS = (
    Statement(
        id="N5",
        title="A concept between two logistic curves",
        source="N5",
        claim=_SANDWICH,
        twin=_LOGISTIC,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="The guarantee needs min M over the target above max M off it. Assumption 1 gives that, for then the first "
        "is positive and the second at most 0.",
        proof="proofs/N5",
        figure="concept-curves",
    ),
)

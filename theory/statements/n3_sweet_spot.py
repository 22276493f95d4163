"""N3: between the last peak off the target and the first on it, every target token rises and every other one falls."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import signs, tilting
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, TOKENS, least, model_curves, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen


def sweet_spot(instance: Instance):
    """The ends of S_j for every context: the last off-target peak and the first target peak, each ``[m]``."""
    peaks, target = instance.peaks, instance.in_target
    return (
        jnp.max(jnp.where(target, -jnp.inf, peaks), axis=-1),
        jnp.min(jnp.where(target, peaks, jnp.inf), axis=-1),
    )


def finite_spot(instance: Instance):
    """The sweet spot with infinite ends moved to 4/R from the finite one, or to +-4/R."""
    low, high = sweet_spot(instance)
    reach = 4 / instance.range
    low_end = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high - reach, -reach))
    high_end = jnp.where(jnp.isfinite(high), high, jnp.where(jnp.isfinite(low), low + reach, reach))
    return low_end, high_end


_INSIDE = np.array([0.02, 0.25, 0.5, 0.75, 0.98])


def all_move_right(tex: str, ends, *, exists: bool = False) -> Claim:
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

    reading = (
        "the least slope of a log-probability inside the sweet spot, in the claimed direction and in units of R, or"
        " the width of the spot in units of 1/R, whichever is less, with 1e-11 for rounding"
    )
    return Claim(tex, instances, autodiff, sweep, (Curve(inside, beyond=signs.settled),), reading=reading)


def _from_zero(instance: Instance):
    """The wrong range: from 0 to the end of the sweet spot."""
    _, high = finite_spot(instance)
    return jnp.zeros_like(high), high


_SWEET_SPOT = all_move_right(
    r"S_j = \left(\max_{z \notin T} \alpha_{j,z},\ \min_{z \in T} \alpha_{j,z}\right) \neq \emptyset,"
    r"\quad \alpha \in S_j \implies \text{every}\ z \in T\ \text{rises and every}\ z \notin T\ \text{falls}",
    finite_spot,
    exists=True,
)
_FROM_ZERO = all_move_right(
    r"0 < \alpha < \min_{z \in T} \alpha_{j,z} \implies \text{every}\ z \in T\ \text{rises and every}\ "
    r"z \notin T\ \text{falls}",
    _from_zero,
)

STATEMENTS = (
    Statement(
        id="N3",
        title="The sweet spot",
        source="N3",
        claim=_SWEET_SPOT,
        twin=_FROM_ZERO,
        hypotheses=chosen("A2", "not-constant", "positive", "separated"),
        remarks="The strengths at which every token moves the right way. It need not begin at 0, nor contain it. It says "
        "nothing of what steering costs there, which S asks about in its section 3.1 too.",
        proof="proofs/N3",
        figure="next-token-curves",
    ),
)

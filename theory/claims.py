"""Makers of the claims that statements share: a curve is monotone in alpha, a curve has a limit, one thing equals another.

A curve belongs to an item of a context: the log-probability of a token, or the log-odds of an event (a set of tokens: a
concept, say). Both kinds are computed three ways: in closed form (instances), through a split model of gap 0 that JAX can
differentiate (autodiff), and as measured on a trained model (sweep).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from theory import signs, tilting
from theory._compilation import compiled_quickly
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve
from ufm import difference_of_means, steer
from ufm.model import representing

Events = Callable[[Instance], Bool[Array, "E V"]] | None
"""The sets of tokens whose log-odds are meant, ``[E, V]``; None: log-probabilities of single tokens."""

TOKENS: Events = None
"""Every token by itself."""


def concepts(instance: Instance) -> Bool[Array, "G V"]:
    """The concepts as events."""
    return instance.members


ROUNDING = 1e-11
"""Allowance for rounding in the margins of inequalities, in units of the log-odds' range R."""

_SIDE = 2.0 ** np.array([-5, -3, -2, -1, 0, 1, 2, 3, 4, 6])

GRID = np.concatenate([-_SIDE[::-1], [0.0], _SIDE])
"""Strengths in units of 1/R, from -64 to 64: dense where curves bend, wide enough for them to settle."""


def closed_form_curves(instance: Instance, events: Events, alphas: Float[Array, " K"]) -> Float[Array, "m K i"]:
    """Log-probabilities of tokens, or log-odds of events, from the tilted family."""
    m = instance.log_odds

    def at(log_p, alpha):
        if events is None:
            return tilting.log_probabilities(log_p, m, alpha)
        return jax.vmap(lambda members: tilting.concept_log_odds(log_p, m, alpha, members))(events(instance))

    return jax.vmap(lambda log_p: jax.vmap(lambda alpha: at(log_p, alpha))(alphas))(instance.log_p)


def exact_split(instance: Instance):
    """A split model of gap 0 for the instance, the indices of its contexts, and its steering vector."""
    model, contexts = representing(instance.log_p), jnp.arange(instance.log_p.shape[0])
    return model, contexts, difference_of_means(model, contexts, instance.contrast)


def model_curves(instance: Instance, events: Events) -> Callable[[Float[Array, ""]], Float[Array, "m i"]]:
    """`closed_form_curves` as a function of alpha, through the split of a model of gap 0: what autodiff differentiates."""
    model, contexts, v = exact_split(instance)

    def curves(alpha):
        log_q = jax.nn.log_softmax(steer(model, contexts, v, alpha))
        if events is None:
            return log_q
        members = events(instance)
        inside = jax.nn.logsumexp(jnp.where(members, log_q[:, None, :], -jnp.inf), axis=-1)
        return inside - jax.nn.logsumexp(jnp.where(members, -jnp.inf, log_q[:, None, :]), axis=-1)

    return curves


def slope(curves: Callable[[Float[Array, ""]], Float[Array, "*s"]], alpha: Float[Array, ""]) -> Float[Array, "*s"]:
    """d/dalpha of curves, by forward-mode autodiff."""
    return jax.jvp(curves, (alpha,), (jnp.ones_like(alpha),))[1]


def measured_curves(swept: Measured, events: Events) -> Float[np.ndarray, "m K i"]:
    """The curves of `closed_form_curves` as measured on the trained model."""
    if events is None:
        return swept.log_probabilities
    return np.stack([swept.event_log_odds(mask) for mask in np.asarray(events(swept.instance))], axis=-1)


def increases(instance: Instance, events: Events, curves: Float[Array, "m i"]) -> Float[Array, "m i"]:
    """The probability that a curve's value stands for: of a token, or the mean over an event's tokens."""
    return jnp.exp(curves) if events is None else jax.nn.sigmoid(curves) / jnp.sum(events(instance), axis=-1)


def least(values: Num[Array, "..."], where: Bool[Array, "..."]) -> Float[Array, ""]:
    """The least value where the mask is true; +inf, the claim of nothing, where it is true nowhere."""
    return jnp.min(jnp.where(where, values, jnp.inf))


def largest_error(left: Num[Array, "..."], right: Num[Array, "..."]) -> Float[Array, ""]:
    """The largest absolute difference."""
    return jnp.max(jnp.abs(left - right))


def monotone(tex: str, events: Events, direction: Callable[[Instance], Num[Array, "m i"]]) -> Claim:
    """The claim that curves are monotone on all of R.

    Args:
        tex: the claim.
        events: whose curves.
        direction: for every context and item +1 where the curve is claimed to increase, -1 to decrease, 0 for no claim.

    Log-probabilities and log-odds are increasing functions of probabilities, and keep their slope where those saturate.
    """

    def instances(instance):
        sign = direction(instance)
        curves = closed_form_curves(instance, events, jnp.asarray(GRID) / instance.range)
        secants = jnp.diff(curves, axis=1) / jnp.diff(jnp.asarray(GRID))[:, None]
        return least(sign[:, None, :] * secants, sign[:, None, :] != 0) + ROUNDING

    def autodiff(instance):
        sign, spread = direction(instance), instance.range
        curves = model_curves(instance, events)
        slopes = jax.vmap(lambda t: slope(curves, t / spread))(jnp.asarray(GRID)) / spread
        return least(sign * slopes, sign != 0) + ROUNDING

    @compiled_quickly
    def least_secant(instance, curves, step):
        sign = direction(instance)[:, None, :]
        secants = jnp.diff(curves, axis=1) / (step * instance.range)
        return least(sign * secants, sign != 0)

    def sweep(swept):
        # Curves are measured to about 1e-12, the model's own error, which a secant divides by the step.
        return float(least_secant(swept.instance, measured_curves(swept, events), swept.step)) + 1e-8

    def sign_of_slope(instance, alpha):
        sign = direction(instance)
        slopes = signs.of_tokens(instance, alpha) if events is None else signs.of_events(instance, alpha, events(instance))
        return jnp.where(sign != 0, sign * slopes, jnp.inf)

    def beyond(instance, alpha):
        if events is None:
            return signs.settled(instance, alpha)
        # Between the bounds of N5, at every strength.
        low, high = signs.slope_bounds(instance, events(instance))
        sign = direction(instance)
        return jnp.where(sign > 0, low, jnp.where(sign < 0, -high, jnp.inf))

    what = "log-probability" if events is None else "log-odds"
    reading = f"the least slope of a {what} curve in the claimed direction, per unit of αR, with 1e-11 for rounding"
    return Claim(tex, instances, autodiff, sweep, curves=(Curve(sign_of_slope, beyond=beyond),), reading=reading)


RESOLVED = 200.0
"""Quadrature serves up to this many 1/R: where derivatives are integrated, an instance that settles later is not counted."""


def limiting(
    tex: str,
    events: Events,
    value: Callable[[Instance, int], Float[Array, "m i"]],
    where: Callable[[Instance], Bool[Array, "m i"]],
) -> Claim:
    """The claim that the increase Delta p of items has a limit as alpha goes to +inf and to -inf.

    Args:
        tex: the claim.
        events: whose increases.
        value: the limit, given the sign of alpha.
        where: which contexts and items the claim is about.

    The autodiff route integrates the derivative from 0 until the curve has settled: the limit is what it adds up to.
    """
    tolerance = 1e-7

    def start(instance):
        return increases(instance, events, closed_form_curves(instance, events, jnp.zeros(1))[:, 0])

    def saturated(instance, sign):
        return _saturation(instance, sign, tolerance / 100)

    def instances(instance):
        def error(sign):
            curves = closed_form_curves(instance, events, saturated(instance, sign)[None])[:, 0]
            return jnp.abs(increases(instance, events, curves) - start(instance) - value(instance, sign))

        return least(tolerance - jnp.maximum(error(1), error(-1)), where(instance))

    def autodiff(instance):
        curves = model_curves(instance, events)

        def derivative(alpha):
            return slope(lambda alpha: increases(instance, events, curves(alpha)), alpha)

        def error(sign):
            far = saturated(instance, sign)
            added = _integral(derivative, far)
            return jnp.abs(added - value(instance, sign)), jnp.abs(far) * instance.range

        (up, far_up), (down, far_down) = error(1), error(-1)
        resolved = jnp.maximum(far_up, far_down) <= RESOLVED
        return least(tolerance - jnp.maximum(up, down), where(instance) & resolved)

    @compiled_quickly
    def margin_at_ends(instance, low_end, low_curves, high_end, high_curves):
        low = increases(instance, events, low_curves) - start(instance) - value(instance, -1)
        high = increases(instance, events, high_curves) - start(instance) - value(instance, 1)
        # A sweep that ends before the curves have settled measures no limit.
        settled = (saturated(instance, 1) <= high_end) & (saturated(instance, -1) >= low_end)
        return least(tolerance - jnp.maximum(jnp.abs(low), jnp.abs(high)), where(instance) & settled)

    def sweep(swept):
        curves, ends = measured_curves(swept, events), swept.alphas
        return float(margin_at_ends(swept.instance, ends[0], curves[:, 0], ends[-1], curves[:, -1]))

    reading = "1e-7 less the largest distance of a settled curve from the claimed limit"
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _saturation(instance: Instance, sign: int, tolerance: float) -> Float[Array, ""]:
    """The strength of a sign from which on all contexts have settled."""
    m = instance.log_odds
    far = jax.vmap(lambda log_p: tilting.saturation(log_p, m, sign, tolerance))(instance.log_p)
    return sign * jnp.max(jnp.abs(far))


def _integral(
    derivative: Callable[[Float[Array, ""]], Float[Array, "m i"]], end: Float[Array, ""], panels: int = 50, nodes: int = 8
) -> Float[Array, "m i"]:
    """The integral from 0 to `end`, by Gauss and Legendre in even panels.

    For an end of 50/R these are unit panels in units of 1/R, where curves bend at the scale that R allows; for a curve that
    settles later they are wider.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    shares = jnp.asarray((np.arange(panels)[:, None] + (points + 1) / 2).ravel() / panels)
    total_weights = jnp.asarray(np.tile(weights / 2, panels) / panels)
    return end * jnp.tensordot(total_weights, jax.vmap(lambda share: derivative(share * end))(shares), axes=1)


def on_sweep(margin: Callable[[Instance, Float[Array, " K"], Float[Array, "m K V"]], Float[Array, ""]]):
    """A sweep margin from a JAX function of the instance, the strengths and the measured log-probabilities."""
    compiled = compiled_quickly(margin)

    def sweep(swept: Measured) -> float:
        return float(compiled(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.log_probabilities)))

    return sweep

"""What steering costs, in closed form: the least cost of a share, what is wasted, and strengths that keep to a budget.

The cost is ``KL(p || p_alpha)`` in nats, from the unsteered next-token distribution to the steered one; where the model has
gap 0 its mean over contexts is the increase of the cross-entropy. In the order of the statements:

- N15: `binary_divergence`, `cost_of_share`, `share_within`, `split_cost`, `efficiency`. For any intervention on any model.
- N18: `spread_of`, `budget_bound`, `safe_strength`. For logits that are affine in the strength; for any other intervention,
  put the change of the logits in the place of M, and 1 in the place of the strength.
- N20: `divergence_of_range`, `range_bound`, `range_within` for any intervention on any model, and `diameter`, `arc_bound`,
  `safe_angle`, `safe_interval` for steering between the last block and the final norm (`theory.arc`).

Functions broadcast over leading axes and compute in the precision they are given, in float32 at least. Inside
transformations arguments are not checked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from theory.arc import Arc
from ufm._check import part_of_the_tokens, require, shown, typed
from ufm._numerics import exp_minus_tangent
from ufm.concepts import check_count
from ufm.precision import full, wide

Numbers = Float[Array, "..."]
"""Numbers in any axes, which broadcast with each other."""

# --- N15: what a share costs -----------------------------------------------------------------------------------------


@typed
def binary_divergence(f0: Numbers | float, f1: Numbers | float) -> Numbers:
    """``kl(f0 || f1) = f0 log(f0/f1) + (1 - f0) log((1 - f0)/(1 - f1))``, nats, to full relative precision near f1 = f0.

    Args:
        f0: shares before, in [0, 1].
        f1: shares after, in [0, 1]; the divergence is +inf where f1 is 0 or 1 and f0 is not.

    Raises:
        ValueError: a share outside [0, 1].
    """
    f0, f1 = _shares("f0", f0), _shares("f1", f1)
    return _surplus(f0, f1, f1 - f0) + _surplus(1 - f0, 1 - f1, f0 - f1)


@typed
def cost_of_share(f0: Numbers | float, tau: Numbers | float) -> Numbers:
    """The least KL at which any intervention can raise a share from `f0` to `tau`: ``kl(f0 || tau)``, nats (N15).

    A distribution of that share and that cost exists: the unsteered one, with the set made likelier as a whole.

    Args:
        f0: unsteered shares of the set, in [0, 1).
        tau: wanted shares, each above its f0 and below 1. A share that is there already costs nothing, and is refused.

    Raises:
        ValueError: a share outside [0, 1]; a threshold outside (f0, 1).
    """
    f0 = _shares("f0", f0)
    tau = wide(tau)
    _require_all("tau", tau, "thresholds above the unsteered share and below 1", (tau > f0) & (tau < 1), f0)
    return binary_divergence(f0, tau)


@typed
def share_within(f0: Numbers | float, budget: Numbers | float) -> Numbers:
    """The largest share that any intervention can reach for a KL of `budget`: the inverse of `cost_of_share` in tau.

    Args:
        f0: unsteered shares, in (0, 1).
        budget: nats, above 0.

    Raises:
        ValueError: a share outside (0, 1); a budget that is not positive.
    """
    f0, budget = wide(f0), _budget(budget)
    _require_all("f0", f0, "shares between 0 and 1, ends left out", (f0 > 0) & (f0 < 1))
    f0, budget = _alike(f0, budget)
    law = _Law(jnp.sqrt(1 - f0) / jnp.sqrt(f0), jnp.log(f0), jnp.log1p(-f0))
    return jax.nn.sigmoid(law.log_rare - law.log_common + _rise_within(law, budget) / (1 - f0))


class SplitCost(NamedTuple):
    """``KL(p || q)`` in three parts, none of them negative (N15).

    Attributes:
        share: ``kl(F_0 || F_1)``, what the change of the set's share must cost.
        inside: ``F_0 KL(p given T || q given T)``, wasted on tokens of the set.
        outside: ``(1 - F_0) KL(p given not T || q given not T)``, wasted on the others.
    """

    share: Numbers
    inside: Numbers
    outside: Numbers

    @property
    def total(self) -> Numbers:
        """``KL(p || q)``, nats."""
        return self.share + self.inside + self.outside


@typed
@full
def split_cost(log_p: Float[Array, "... V"], log_q: Float[Array, "... V"], members: Bool[Array, "... V"]) -> SplitCost:
    """The cost of going from p to q: of the share of a set of tokens, within the set, and within the rest (N15).

    Args:
        log_p: log-probabilities before, ``[..., V]`` nats, normalised.
        log_q: after.
        members: which tokens are in the set, ``[..., V]``.

    Raises:
        ValueError: a set that is empty or everything.
    """
    part_of_the_tokens("members", members)
    log_p, log_q = wide(log_p), wide(log_q)
    parts = []
    for mask in (members, ~members):
        before, after = _log_share(log_p, mask), _log_share(log_q, mask)
        p = jnp.where(mask, jnp.exp(log_p), 0)
        # Where q has nothing of the part, the cost of the share is +inf, and no law within the part is left to compare.
        left = jnp.isfinite(after)[..., None]
        change = jnp.where((p > 0) & left, (log_p - before[..., None]) - (log_q - jnp.where(left, after[..., None], 0)), 0)
        parts.append((before, after, jnp.sum(p * change, axis=-1)))
    (f0, f1, inside), (g0, g1, outside) = parts
    f0, f1, g0, g1 = (jnp.exp(value) for value in (f0, f1, g0, g1))
    # Each difference of shares is taken where the shares are small, and keeps its digits there.
    rise = jnp.where(f0 < g0, f1 - f0, g0 - g1)
    return SplitCost(_surplus(f0, f1, rise) + _surplus(g0, g1, -rise), inside, outside)


@typed
@full
def efficiency(log_p: Float[Array, "... V"], m: Float[Array, "... V"], members: Bool[Array, "... V"]) -> Numbers:
    """``rho^2``, the squared correlation of ``1_T`` and M under p: the limit of ``kl(F_0 || F_alpha) / KL`` at 0 (N15).

    It is the share of a small budget that raises (or lowers) the set's share; the rest is wasted. 1 if and only if M is
    constant on the set and on the rest.

    Args:
        log_p: unsteered log-probabilities, ``[..., V]`` nats, normalised.
        m: log-odds M, or in any model the derivative of the logits by the strength at 0, ``[..., V]``.
        members: which tokens are in the set, ``[..., V]``.

    Raises:
        ValueError: a set that is empty or everything; an M that is constant on the tokens of positive probability, where
            steering does nothing.
    """
    part_of_the_tokens("members", members)
    log_p, m = wide(log_p), wide(m)
    likely = jnp.exp(log_p) > 0
    spread = jnp.max(jnp.where(likely, m, -jnp.inf), axis=-1) - jnp.min(jnp.where(likely, m, jnp.inf), axis=-1)
    _require_all("m", spread, "log-odds that are not constant on the tokens of positive probability", spread > 0)
    # It does not depend on the size of M, whose square need not be a number.
    root = jnp.sqrt(jnp.max(jnp.where(likely, jnp.abs(m), 0), axis=-1, keepdims=True))
    m = m / root / root
    f, mu, variance = _conditional(log_p, m, members)
    g, nu, other = _conditional(log_p, m, ~members)
    between = f * g * (mu - nu) ** 2
    return between / (between + f * variance + g * other)


# --- N18: a budget from a variance and an end ---------------------------------------------------------------------------


class Spread(NamedTuple):
    """How M is spread under p: what N18 asks for.

    Attributes:
        variance: ``Var M``, nats squared.
        above: ``max M - E M``: what positive strengths run into.
        below: ``E M - min M``: what negative strengths run into.
    """

    variance: Numbers
    above: Numbers
    below: Numbers


@typed
@full
def spread_of(log_p: Float[Array, "... V"], m: Float[Array, "... V"]) -> Spread:
    """The spread of M, ``[..., V]``, under p, ``[..., V]`` (`Spread`)."""
    log_p, m = jnp.broadcast_arrays(wide(log_p), wide(m))
    p = jnp.exp(log_p)
    # From the likeliest token: where it has nearly everything, its distance to the mean keeps its digits.
    ahead = m - jnp.take_along_axis(m, jnp.argmax(log_p, axis=-1, keepdims=True), axis=-1)
    ahead = ahead - jnp.sum(p * ahead, axis=-1, keepdims=True)
    return Spread(jnp.sum(p * ahead**2, axis=-1), jnp.max(ahead, axis=-1), -jnp.min(ahead, axis=-1))


@typed
def budget_bound(variance: Numbers | float, above: Numbers | float, alpha: Numbers | float) -> Numbers:
    """The most that ``KL(p || p_alpha)`` can be, from the variance of M and one of its ends (N18, after Bennett), nats.

    ``log[(b^2 e^{-a s/b} + s e^{a b}) / (b^2 + s)]`` with ``a = |alpha|``, s the variance and b what is `above`. Attained
    where M has two values: no smaller bound is made of these two numbers.

    Args:
        variance: of M under p, at least 0.
        above: for strengths of at least 0 how far M goes above its mean, ``max M - E M``; for negative ones how far below,
            ``E M - min M`` (`spread_of` has both). A larger number is allowed and gives a larger bound.
        alpha: strengths of either sign.

    Raises:
        ValueError: a variance below 0; an `above` that is not positive where the variance is.
    """
    law, end = _two_values(variance, above)
    # Not 0 times a strength, which may be infinite.
    return _two_valued(law, jnp.where(end > 0, jnp.abs(alpha) * end, 0))


@typed
def safe_strength(
    variance: Numbers | float,
    above: Numbers | float,
    budget: Numbers | float,
    weights: Float[Array, " n"] | None = None,
) -> Numbers:
    """The largest ``|alpha|`` at which `budget_bound` keeps to a budget: the KL is certain not to exceed it (N18).

    Args:
        variance, above: as for `budget_bound`: the sign of the strength is in `above`.
        budget: nats, above 0.
        weights: of contexts, ``[n]``, adding up to 1, where the last axis of the others counts them: then the result is one
            strength for all contexts, at which the weighted mean of their bounds is the budget.

    Returns:
        strengths, +inf where the variance is 0; solved for to rounding. Differentiable.

    Raises:
        ValueError: as `budget_bound`; a budget that is not positive; weights that are negative or do not add up to 1.
    """
    budget = _budget(budget)
    law, end = _two_values(variance, above)
    if weights is None:
        ratio, log_rare, log_common, end, budget = _alike(*law, end, budget)
        rise = _rise_within(_Law(ratio, log_rare, log_common), budget)
        return jnp.where(end > 0, rise / jnp.where(end > 0, end, 1), jnp.inf)
    _require_weights(weights)
    return _safe_for_mean(law, end, budget, weights)


def _safe_for_mean(law, end, budget, weights):
    """The strength at which the weighted mean of the bounds of contexts, on the last axis, is the budget."""
    counts = (end > 0) & (weights > 0)
    total = jnp.sum(jnp.where(counts, weights, 0), axis=-1)
    # Where each context alone keeps to what the moving ones may spend: the mean is below the budget at the least of these
    # strengths, and above it at the largest.
    *parts, share = _alike(*law, (budget / jnp.where(total > 0, total, 1))[..., None])
    alone = _rise_within(_Law(*parts), share) / jnp.where(end > 0, end, 1)
    low, high = jnp.min(jnp.where(counts, alone, jnp.inf), axis=-1), jnp.max(jnp.where(counts, alone, 0), axis=-1)

    def mean(alpha):
        up = jnp.where(counts, alpha[..., None] * end, 0)
        return _two_valued(law, up) @ weights, (_growth(law, up) * end) @ weights

    strength = _crossing(mean, jnp.where(total > 0, low, 1.0), jnp.where(total > 0, high, 1.0), budget)
    return jnp.where(total > 0, strength, jnp.inf)


# --- N20: a budget from a range --------------------------------------------------------------------------------------


@typed
def divergence_of_range(width: Numbers | float) -> Numbers:
    """The most that ``KL(p || q)`` can be if ``log q - log p`` has this range (N20), nats.

    ``log(sinh y / y) + y coth y - 1`` with y half the range: at most ``range^2 / 8`` (Hoeffding), which it tends to at 0,
    and less than the range. Attained by two tokens: no smaller bound is made of the range alone.

    Args:
        width: ranges, at least 0.

    Raises:
        ValueError: a range below 0.
    """
    width = wide(width)
    _require_all("width", width, "ranges of at least 0", width >= 0)
    finite = jnp.isfinite(width)
    return jnp.where(finite, _of_half_range(jnp.where(finite, width, 0) / 2)[0], width)


@typed
def range_bound(change: Float[Array, "... V"]) -> Numbers:
    """The most that ``KL(p || p_alpha)`` can be, from the change of the logits alone: `divergence_of_range` (N20), nats.

    For any model, layer and intervention, whatever p is; ``KL(p_alpha || p)`` obeys it too. With ``alpha (m_estimated - m)``
    for a change it is what an estimate of the log-odds can cost.

    Args:
        change: steered less unsteered logits, ``[..., V]`` nats.
    """
    return divergence_of_range(jnp.ptp(wide(change), axis=-1))


@typed
def range_within(budget: Numbers | float) -> Numbers:
    """The range of the change of logits up to which a budget is kept whatever p is: the inverse of `divergence_of_range`.

    At least ``sqrt(8 budget)``; solved for to rounding.

    Args:
        budget: nats, above 0.

    Raises:
        ValueError: a budget that is not positive.
    """
    budget = _budget(budget)

    def curve(width):
        value, slope = _of_half_range(width / 2)
        return value, slope / 2

    # log cosh y is a lower bound, and y^2 / (2 + y) one of that.
    high = jnp.minimum(_quadratic_root(budget), jnp.finfo(budget.dtype).max / 2)
    return _crossing(curve, np.sqrt(8) * jnp.sqrt(budget), 2 * high, budget)


_BLOCK = 16
"""Directions that `diameter` takes at a time."""


@typed
def diameter(arc: Arc, directions: int = 2048) -> Numbers:
    """The largest distance between two tokens in the plane of h and v, where they are the points ``(A_z, B_z)``, nats.

    Never less than the exact diameter, and more by at most the factor ``1 / cos(pi / (2 directions))``, 3e-7 in excess of 1
    by default: it is the largest width over so many directions, times that factor. Pairs of tokens would be too many.

    Args:
        arc: `theory.arc.arc_of`, of one hidden state or a batch.
        directions: how many, at least 2.

    Raises:
        ValueError: fewer than two directions, or more than fit in memory.
    """
    require(directions >= 2, "directions", "at least 2", directions)
    check_count("directions", "directions", directions)

    def widest(largest, angles):
        towards = angles.reshape(-1, *[1] * arc.A.ndim)
        across = jnp.ptp(jnp.cos(towards) * arc.A + jnp.sin(towards) * arc.B, axis=-1)
        return jnp.maximum(largest, jnp.max(across, axis=0)), None

    # In blocks, of which the last one begins anew at angle 0.
    angles = np.resize(np.arange(directions) * (np.pi / directions), (-(-directions // _BLOCK), _BLOCK))
    largest, _ = lax.scan(widest, jnp.zeros_like(arc.centre), jnp.asarray(angles, arc.A.dtype))
    return largest / np.cos(np.pi / (2 * directions))


@typed
def arc_bound(arc: Arc, alpha: Numbers | float, across: Numbers | float) -> Numbers:
    """The most that ``KL(p || p_alpha)`` can be where a final norm is steered (N20), nats.

    It is `divergence_of_range` of ``2 sin(|theta - theta_0| / 2) D``, theta the angles of alpha and of 0: at most
    ``(alpha D)^2 / (8 L)``.

    Args:
        arc: `theory.arc.arc_of`.
        alpha: strengths; they broadcast with the batch of the arc.
        across: D, the `diameter` of the arc, or anything larger.
    """
    return divergence_of_range(2 * jnp.sin(_turn(arc, wide(alpha)) / 2) * across)


def _turn(arc: Arc, alpha: Numbers) -> Numbers:
    """The angle between the states of strengths 0 and alpha: of ``(width, -centre)`` and ``(width, alpha - centre)``.

    From their cross product, ``width alpha``, in which no difference of angles is.
    """
    most = jnp.finfo(jnp.result_type(alpha, arc.width)).max / 2
    alpha = jnp.clip(alpha, -most, most)
    away = alpha - arc.centre
    # In units of their largest entries, which the angle does not depend on.
    unit, other = (lax.stop_gradient(jnp.maximum(arc.width, jnp.abs(x))) for x in (arc.centre, away))
    smaller, larger = jnp.minimum(unit, other), jnp.maximum(unit, other)
    cross = (arc.width / smaller) * (jnp.abs(alpha) / larger)
    return jnp.arctan2(cross, (arc.width / unit) * (arc.width / other) - (arc.centre / unit) * (away / other))


@typed
def safe_angle(across: Numbers | float, budget: Numbers | float) -> Numbers:
    """How far a state may turn in the plane of h and v at a budget, in radians: pi where any angle is safe (N20).

    Args:
        across: D, the `diameter` of the arc, above 0.
        budget: nats, above 0.

    Raises:
        ValueError: a diameter or a budget that is not positive.
    """
    sine = _half_chord(across, budget)
    return jnp.where(sine < 1, 2 * jnp.arcsin(jnp.where(sine < 1, sine, 0)), np.pi)


def _half_chord(across: Numbers | float, budget: Numbers | float) -> Numbers:
    """The sine of half the safe angle; 1 or more where any angle is safe."""
    across = wide(across)
    _require_all("across", across, "diameters above 0", across > 0)
    return range_within(budget) / 2 / across


@typed
def safe_interval(arc: Arc, budget: Numbers | float, across: Numbers | float) -> tuple[Numbers, Numbers]:
    """The strengths around 0 at which `arc_bound` keeps to a budget: lowest and highest, infinite where all are (N20).

    Args:
        arc: `theory.arc.arc_of`.
        budget: nats, above 0.
        across: D, the `diameter` of the arc.

    Raises:
        ValueError: a diameter or a budget that is not positive.
    """
    half_sine = _half_chord(across, budget)
    limited = half_sine < 1
    half_sine = jnp.where(limited, half_sine, 0)
    half_cosine = jnp.sqrt((1 - half_sine) * (1 + half_sine))
    sine, cosine = 2 * half_sine * half_cosine, (half_cosine - half_sine) * (half_cosine + half_sine)
    # The state of strength 0 is at the angle of (width, -centre), and a turn from there to the strength is length * sine /
    # rest, with rest the cosine of the angle that it comes to: no difference of tangents.
    length = jnp.hypot(arc.width, arc.centre)
    x, y = arc.width / length, arc.centre / length

    def end(sign):
        rest = x * cosine + sign * y * sine
        within = limited & (rest > 0)
        return jnp.where(within, sign * length * (sine / jnp.where(within, rest, 1)), sign * jnp.inf)

    return end(-1), end(1)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _surplus(before: Numbers, after: Numbers, rise: Numbers) -> Numbers:
    """``before log(before / after) - before + after``, never negative, with ``rise = after - before``."""
    positive = before > 0
    unit = jnp.where(positive, before, 1)
    x = rise / unit
    # XLA's log1p loses two digits below -0.4.
    near, half = jnp.abs(x) < 0.03, jnp.abs(x) < 0.25
    small = jnp.where(near, x, 0)
    series = small**2 * jnp.polyval(jnp.asarray(_LOG_SERIES, x.dtype), small)
    far = x - jnp.where(half, jnp.log1p(jnp.where(half, x, 0)), jnp.log(jnp.where(half, 1, after / unit)))
    return jnp.where(positive, before * jnp.where(near, series, far), after)


_LOG_SERIES = tuple((-1.0) ** k / k for k in range(12, 1, -1))
"""Coefficients of ``(x - log(1 + x)) / x^2``, highest power first."""


def _log_share(log_p: Float[Array, "... V"], members: Bool[Array, "... V"]) -> Numbers:
    return jax.nn.logsumexp(jnp.where(members, log_p, -jnp.inf), axis=-1)


def _conditional(log_p, m, members):
    """The share of a set, and the mean and the variance of M within it."""
    q = jax.nn.softmax(jnp.where(members, log_p, -jnp.inf), axis=-1)
    mean = jnp.sum(q * jnp.where(members, m, 0), axis=-1)
    return jnp.exp(_log_share(log_p, members)), mean, jnp.sum(q * jnp.where(members, m - mean[..., None], 0) ** 2, axis=-1)


class _Law(NamedTuple):
    """A law of two values with mean 0, of which the higher one is b and the standard deviation is sigma.

    Attributes:
        ratio: ``b / sigma``, whose square is the odds of the lower value. Where that square is not a float it still is one.
        log_rare: the log-probability of b.
        log_common: the log-probability of the lower value.
    """

    ratio: Numbers
    log_rare: Numbers
    log_common: Numbers


def _two_values(variance, above) -> tuple[_Law, Numbers]:
    """The law of two values with mean 0, this variance and largest value b, and b; 0 for b where the variance is."""
    variance, above = wide(variance), wide(above)
    _require_all("variance", variance, "variances of at least 0", (variance >= 0) & jnp.isfinite(variance))
    wanted = "a distance above 0 (the variance is not 0)"
    _require_all("above", above, wanted, ((above > 0) | (variance == 0)) & jnp.isfinite(above))
    moving = variance > 0
    deviation, end = jnp.sqrt(jnp.where(moving, variance, 1)), jnp.where(moving, above, 1)
    log_odds = 2 * (jnp.log(end) - jnp.log(deviation))
    law = _Law(end / deviation, -jnp.logaddexp(0, log_odds), -jnp.logaddexp(0, -log_odds))
    return law, jnp.where(moving, end, 0)


def _most(x: Numbers) -> float:
    """What an exponential of this type can take with room to spare: 71 in float32, 567 in float64."""
    return 0.8 * float(np.log(float(jnp.finfo(x.dtype).max)))


def _roots(law: _Law) -> tuple[Numbers, Numbers]:
    """The square roots of the two probabilities, which are floats where these are not."""
    ratio = jnp.minimum(law.ratio, jnp.finfo(law.ratio.dtype).max)
    length = jnp.hypot(1, ratio)
    return 1 / length, ratio / length


def _fall(law: _Law, up: Numbers) -> Numbers:
    """How far the lower value goes down while the higher one goes up: ``up / ratio^2``, where it matters."""
    # Nothing is left of its exponential from there on.
    furthest = 2 * _most(up)
    over = up > furthest * law.ratio * law.ratio
    ratio = jnp.where(over, 1, law.ratio)
    return jnp.where(over, furthest, jnp.where(over, 0, up) / ratio / ratio)


def _two_valued(law: _Law, up: Numbers) -> Numbers:
    """``log(q e^up + (1 - q) e^-down)`` for up >= 0, q the rare probability and ``down = up q / (1 - q)``.

    Precise where up is small, and where a probability is too small for a float. It is at most up.
    """
    up = jnp.asarray(up, jnp.result_type(up, law.ratio))
    most, down = _most(up), _fall(law, up)
    near, small = up < most, down < most  # nowhere near the strengths of certificates: balls cannot choose where forms meet
    of_rare, of_common = _roots(law)
    likelier = law.log_rare + up
    rise = of_rare * exp_minus_tangent(jnp.where(near, up, 0)) * of_rare
    rise = jnp.where(near, rise, jnp.exp(jnp.minimum(likelier, most)))
    little = of_common * exp_minus_tangent(-jnp.where(small, down, 0)) * of_common
    # The same without the tangent, as what is left of that is a product of numbers that need not be floats.
    much = of_rare * of_rare * jnp.minimum(up, most) + of_common**2 * jnp.expm1(-down)
    return jnp.where(likelier < most, jnp.log1p(rise + jnp.where(small, little, much)), likelier)


def _growth(law: _Law, up: Numbers) -> Numbers:
    """The derivative of `_two_valued` by up: no difference of shares is in it."""
    shift = up + _fall(law, up)
    return jax.nn.sigmoid(law.log_rare - law.log_common + shift) * -jnp.expm1(-shift)


@jax.jit
def _rise_within(law: _Law, budget: Numbers) -> Numbers:
    """The rise of the higher value, above 0, at which `_two_valued` is the budget."""

    def curve(up):
        return _two_valued(law, up), _growth(law, up)

    # With x for up and down together, up is (1 - q) x. Below: up is an upper bound, and so is x^2/8. Above: log q + up is a
    # lower one, and so is q (1-q) x^2 / (2 + x).
    of_rare, of_common = _roots(law)
    flat, share = np.sqrt(8) * of_common, jnp.sqrt(budget) / of_rare
    low = jnp.maximum(budget, flat * jnp.sqrt(budget) * of_common)
    high = share / 2 * (share + jnp.hypot(share, flat))
    return _crossing(curve, low, jnp.minimum(budget - law.log_rare, high), budget)


def _quadratic_root(s: Numbers) -> Numbers:
    """The x > 0 with ``x^2 / (2 + x) = s``."""
    return (s / 2) + (jnp.sqrt(s) / 2) * jnp.sqrt(s + 8)


def _of_half_range(half: Numbers) -> tuple[Numbers, Numbers]:
    """``log(sinh y / y) + y coth y - 1`` and its derivative ``2 coth y - 1/y - y / sinh(y)^2``."""
    near = half < 0.3
    y, s = jnp.where(near, 1.0, half), jnp.where(near, half, 0) ** 2
    fall = jnp.exp(-2 * y)
    ratio, coth = -jnp.expm1(-2 * y) / (2 * jnp.minimum(y, 1000)), (1 + fall) / -jnp.expm1(-2 * y)
    # Of ratio only 1/(2 y) is left from y = 1000 on, and soon not even that.
    huge = jnp.maximum(y / 1000, 1)
    far = y + jnp.log(ratio) - jnp.log(huge) + y * coth - 1
    far_slope = 2 * coth - 1 / y - 4 * fall * y / jnp.expm1(-2 * y) ** 2
    series, slope = jnp.zeros_like(s), jnp.zeros_like(s)
    for order, coefficient in reversed(list(enumerate(_SERIES, start=1))):
        series, slope = s * (coefficient + series), 2 * order * coefficient + s * slope
    return jnp.where(near, series, far), jnp.where(near, half * slope, far_slope)


_SERIES = (1 / 2, -1 / 36, 1 / 405, -1 / 4200, 1 / 42525, -691 / 294698250, 2 / 8513505, -3617 / 153243090000)
"""Coefficients of y^2, y^4, ... in ``log(sinh y / y) + y coth y - 1``."""


def _crossing(curve: Callable[[Numbers], tuple[Numbers, Numbers]], low: Numbers, high: Numbers, level: Numbers) -> Numbers:
    """Where a convex curve that rises from 0 at 0 reaches a level: Newton on its logarithm, within a bracket.

    `curve` gives value and slope. The logarithm is straight where the curve is an exponential, and close to it elsewhere.
    As the value is at most x times the slope, the root is as precise as the curve.
    """
    held = lax.stop_gradient(level)

    def unfinished(carry):
        _, _, x, step, k = carry
        return jnp.any(jnp.abs(step) > 4 * jnp.finfo(x.dtype).eps * x) & (k < 100)

    def improve(carry):
        low, high, x, step, k = carry
        value, slope = (lax.stop_gradient(part) for part in curve(x))
        low, high = jnp.where(value < held, x, low), jnp.where(value > held, x, high)
        newton = x - value / slope * jnp.log(value / held)
        # Bisect (between logarithms) where Newton leaves the bracket or has not halved its step.
        trust = (newton >= low) & (newton <= high) & ((2 * jnp.abs(newton - x) <= jnp.abs(step)) | (k < 8))
        new = jnp.where(trust, newton, jnp.sqrt(low) * jnp.sqrt(high))
        return low, high, new, new - x, k + 1

    low, high = (lax.stop_gradient(end) for end in _alike(low, high))
    _, _, x, _, _ = lax.while_loop(unfinished, improve, (low, high, low, high, 0))
    value, slope = curve(x)
    # This step is below rounding in value; its derivative is that of the root.
    return x - (value - level) / lax.stop_gradient(slope)


def _shares(argument: str, value: Any) -> Numbers:
    shares = wide(value)
    _require_all(argument, shares, "shares between 0 and 1", (shares >= 0) & (shares <= 1))
    return shares


def _alike(*numbers: Numbers) -> tuple[Numbers, ...]:
    """Numbers in the common shape and the common type."""
    dtype = jnp.result_type(*numbers)
    return tuple(jnp.broadcast_arrays(*(x.astype(dtype) for x in numbers)))


def _budget(value: Any) -> Numbers:
    budget = wide(value)
    _require_all("budget", budget, "budgets above 0, finite, in nats", (budget > 0) & jnp.isfinite(budget))
    return budget


def _require_weights(weights: Float[Array, " n"]) -> None:
    if not isinstance(weights, jax.core.Tracer):
        total, least = float(jnp.sum(weights)), float(jnp.min(weights))
        fits = least >= 0 and abs(total - 1) <= 1e-5
        require(fits, "weights", "weights of at least 0 that add up to 1", f"a sum of {total:g}, the least {least:g}")


def _require_all(argument: str, value: Numbers, expected: str, fits: Any, unsteered: Numbers | None = None) -> None:
    """Refuse numbers for which `fits` is false, and show the first; what JAX traces is let through."""
    if isinstance(fits, jax.core.Tracer):
        return
    bad = np.argwhere(~np.asarray(fits))
    if len(bad):
        place = tuple(bad[0].tolist())
        got = shown(float(np.broadcast_to(value, np.shape(fits))[place]))
        if unsteered is not None:
            got += f" for a share of {float(np.broadcast_to(unsteered, np.shape(fits))[place]):g}"
        require(False, argument, expected, got + (f" at index {place}" if place else ""))

"""N4: the cross-entropy of the steered model, to all orders and for all strengths."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import jet

from theory import signs, symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import GRID, ROUNDING, exact_split, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen
from theory.statements.theorem_3_8 import increase, increases
from theory.taylor import taylor
from ufm import cross_entropy_increase, steer

_PROOF = "proofs/N4"
_FIGURE = "cross-entropy"


def _model_cross_entropies(instance: Instance):
    """The cross-entropy of every context as a function of alpha, through the split of a model of gap 0: ``[m]``."""
    model, contexts, v = exact_split(instance)

    def cross_entropies(alpha):
        return -jnp.sum(instance.p * jax.nn.log_softmax(steer(model, contexts, v, alpha)), axis=-1)

    return cross_entropies


def _measured(swept: Measured, alphas) -> np.ndarray:
    return np.asarray(cross_entropy_increase(swept.model, swept.corpus, swept.v, alphas))


# --- divergence ------------------------------------------------------------------------------------------------------

_STRENGTHS = np.linspace(-10, 10, 21)


def _is_divergence(tex: str, identities, divergence, second_derivative, curve: Curve) -> Claim:
    """The claim that Delta CE is the mean of a divergence of each context, which is convex.

    Args:
        tex: the claim.
        identities: the same, symbolic.
        divergence: of log p, of log p_alpha, both ``[V]``.
        second_derivative: of it with respect to alpha, of log p, M and alpha.
        curve: the sign of that.
    """

    def values(instance, alpha):
        m = instance.log_odds
        return jax.vmap(lambda row: divergence(row, tilting.log_probabilities(row, m, alpha)))(instance.log_p)

    def instances(instance):
        alphas = jnp.asarray(_STRENGTHS) / instance.range
        per_context = jax.vmap(lambda alpha: values(instance, alpha))(alphas)
        total = per_context @ instance.weights
        m = instance.log_odds

        def by_partition(log_p, alpha):
            return tilting.log_partition(log_p, m, alpha) - alpha * tilting.mean(log_p, m, 0.0)

        expected = jax.vmap(lambda alpha: instance.weights @ jax.vmap(lambda row: by_partition(row, alpha))(instance.log_p))(
            alphas
        )
        convex = jnp.min(per_context[2:] - 2 * per_context[1:-1] + per_context[:-2])
        size = 1 + jnp.max(jnp.abs(instance.log_p)) + jnp.max(jnp.abs(m)) / instance.range
        return jnp.minimum(1e-11 * size - jnp.max(jnp.abs(total - expected)), convex + 1e-12 * size)

    def autodiff(instance):
        cross_entropies, m = _model_cross_entropies(instance), instance.log_odds

        def error(alpha):
            second = slope(lambda a: slope(cross_entropies, a), alpha)
            expected = jax.vmap(lambda row: second_derivative(row, m, alpha))(instance.log_p)
            return jnp.max(jnp.abs(second - expected)) / instance.range**2

        return 1e-9 - jnp.max(jax.vmap(error)(jnp.asarray(_STRENGTHS) / instance.range))

    @compiled_quickly
    def total(instance, alphas):
        return jax.vmap(lambda alpha: instance.weights @ values(instance, alpha))(alphas)

    def sweep(swept: Measured):
        alphas = swept.alphas[::40]
        measured, expected = _measured(swept, alphas), np.asarray(total(swept.instance, jnp.asarray(alphas)))
        convex = np.diff(measured, 2).min()
        return float(min(1e-8 - np.abs(measured - expected).max(), convex + 1e-10))

    reading = (
        "1e-11 of the size of the logarithms less the largest difference between ΔCE and its closed form, or the "
        "least second difference of ΔCE with 1e-12 of that size for rounding, whichever is less"
    )
    return Claim(tex, instances, autodiff, sweep, (curve,), identities, reading=reading)


def _backward_curvature(log_p, m, alpha):
    """``d^2/dalpha^2 KL(p_alpha || p) = Var_alpha + alpha kappa_{3,alpha}``."""
    q = jnp.exp(tilting.log_probabilities(log_p, m, alpha))
    d = m - jnp.dot(q, m)
    return jnp.dot(q, d**2) + alpha * jnp.dot(q, d**3)


def _kl(log_p, log_q):
    return jnp.dot(jnp.exp(log_p), log_p - log_q)


_DIVERGENCE = _is_divergence(
    r"\Delta\mathrm{CE}(\alpha) = \sum_j \pi_j \left[A_j(\alpha) - \alpha\, \mathbb{E}_{p_j} M\right]"
    r" = \sum_j \pi_j \operatorname{KL}(p_j \,\|\, p_{j,\alpha}),\quad \text{convex}",
    symbolic.IDENTITIES["N4.divergence"],
    _kl,
    tilting.variance,
    Curve(signs.of_variance, beyond=signs.is_varied),
)
_BACKWARD_DIVERGENCE = _is_divergence(
    r"\Delta\mathrm{CE}(\alpha) = \sum_j \pi_j \operatorname{KL}(p_{j,\alpha} \,\|\, p_j),\quad \text{convex}",
    symbolic.TWINS["N4.divergence"],
    lambda log_p, log_q: _kl(log_q, log_p),
    _backward_curvature,
    Curve(lambda instance, alpha: jax.vmap(lambda row: _backward_curvature(row, instance.log_odds, alpha))(instance.log_p)),
)

# --- Taylor ----------------------------------------------------------------------------------------------------------

_ORDER = 8
_SMALL = np.array([-0.04, -0.02, 0.02, 0.04])


def _cumulants(instance: Instance):
    """Coefficients of alpha^k in Delta CE, k = 0..8, from the symbolic expansion."""
    return taylor("cross-entropy", _ORDER).evaluate(instance.log_p, instance.log_odds, instance.weights)


def _central_moments(instance: Instance):
    """The coefficients with central moments in place of cumulants, which are the same up to order 3."""
    m = instance.log_odds
    d = m - (instance.p @ m)[:, None]
    orders = np.arange(_ORDER + 1)
    moments = jnp.stack([instance.weights @ jnp.sum(instance.p * d**k, axis=-1) for k in orders])
    factorials = np.cumprod(np.concatenate([[1], orders[1:]]))
    return jnp.where(orders >= 2, moments / factorials, 0)


def _expands_to(tex: str, identities, coefficients) -> Claim:
    """The claim that these are the Taylor coefficients of Delta CE at 0; `identities` say the same, symbolic."""

    def instances(instance):
        scaled = coefficients(instance) / instance.range ** np.arange(_ORDER + 1)
        values = jax.vmap(lambda x: increase(instance, x / instance.range))(jnp.asarray(_SMALL))
        sums = jnp.polyval(scaled[::-1], jnp.asarray(_SMALL))
        # Cumulants of order k are at most R^(k-2) Var times a number; nine orders up they are out of sight.
        return 1e-9 - jnp.max(jnp.abs(values - sums) / (scaled[2] * _SMALL**2))

    def autodiff(instance):
        """Taylor mode: derivatives to order 6 in one pass through the model."""
        cross_entropies, spread = _model_cross_entropies(instance), instance.range

        def scaled(t):
            return instance.weights @ cross_entropies(t / spread)

        zero = jnp.zeros(())
        series = [jnp.ones(())] + [zero] * 5
        _, derivatives = jet.jet(scaled, (zero,), (series,))
        factorials = np.array([1, 2, 6, 24, 120, 720])
        expected = coefficients(instance)[1:7] / spread ** np.arange(1, 7)
        return 1e-9 - jnp.max(jnp.abs(jnp.stack(derivatives) / factorials - expected))

    compiled = compiled_quickly(coefficients)

    def sweep(swept: Measured):
        """A polynomial through the measured cross-entropy near 0 has these coefficients."""
        reach = 0.8 / float(swept.instance.range)
        nodes = reach * np.cos(np.pi * (np.arange(24) + 0.5) / 24)
        fitted = np.polynomial.chebyshev.Chebyshev.fit(nodes, _measured(swept, nodes), 16, domain=[-reach, reach])
        measured = fitted.convert(kind=np.polynomial.Polynomial).coef[:5].astype(float) * reach ** np.arange(5)
        expected = np.asarray(compiled(swept.instance))[:5] * reach ** np.arange(5)
        return float(1e-6 - np.abs(measured - expected).max() / expected[2])

    reading = "1e-9 less the largest error of the Taylor sum, as a share of its leading term"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_TAYLOR = _expands_to(
    r"\Delta\mathrm{CE}(\alpha) = \sum_{k \ge 2} \Big(\sum_j \pi_j\, \kappa_{k,j}\Big) \frac{\alpha^k}{k!}"
    r"\ \ (|\alpha| < \pi / R),\quad \kappa_{k,j}\ \text{the cumulants of}\ M\ \text{under}\ p_j",
    symbolic.IDENTITIES["N4.taylor"],
    _cumulants,
)
_MOMENTS = _expands_to(
    r"\Delta\mathrm{CE}(\alpha) = \sum_{k \ge 2} \Big(\sum_j \pi_j\, \mathbb{E}_{p_j}(M - \mathbb{E}_{p_j}M)^k\Big)"
    r" \frac{\alpha^k}{k!}",
    symbolic.TWINS["N4.taylor"],
    _central_moments,
)

# --- bounds ----------------------------------------------------------------------------------------------------------


def _lower(x):
    """``e^{-x} + x - 1``."""
    return jnp.expm1(-x) + x


def _upper(x):
    """``e^x - x - 1``."""
    return jnp.expm1(x) - x


def _variances(instance: Instance, alpha=0.0):
    m = instance.log_odds
    return jax.vmap(lambda row: tilting.variance(row, m, alpha))(instance.log_p)


def _bounded(tex: str, bounds, curvature_bounds, curves) -> Claim:
    """The claim that Delta CE of every context lies between two functions of x = R |alpha|.

    Args:
        tex: the claim.
        bounds: of the instance and x, (low, high), each ``[m]``; Delta CE in nats.
        curvature_bounds: the same for the second derivative of Delta CE, whose integral the bounds are.
        curves: their certificates.
    """
    grid = GRID[GRID != 0]

    def instances(instance):
        def slack(t):
            low, high = bounds(instance, jnp.abs(t))
            value = increases(instance, t / instance.range)
            # Relative to the larger of the two, so that the margin keeps its meaning where all are small.
            return jnp.minimum(jnp.min((value - low) / value), jnp.min((high - value) / jnp.maximum(high, value)))

        return jnp.min(jax.vmap(slack)(jnp.asarray(grid))) + 1e-9

    def autodiff(instance):
        cross_entropies = _model_cross_entropies(instance)

        def slack(t):
            second = slope(lambda a: slope(cross_entropies, a), t / instance.range)
            low, high = curvature_bounds(instance, jnp.abs(t))
            return jnp.minimum(jnp.min(second - low), jnp.min(high - second)) / instance.range**2

        return jnp.min(jax.vmap(slack)(jnp.asarray(grid))) + ROUNDING

    @compiled_quickly
    def expected(instance, alphas):
        low, high = jax.vmap(lambda alpha: bounds(instance, instance.range * jnp.abs(alpha)))(alphas)
        return low @ instance.weights, high @ instance.weights

    def sweep(swept: Measured):
        alphas = swept.alphas[::20]
        alphas = alphas[np.abs(alphas) > 0.05]
        measured, (low, high) = _measured(swept, alphas), expected(swept.instance, jnp.asarray(alphas))
        return float(min((measured - low).min(), (high - measured).min())) + 1e-9

    reading = "the least slack of a bound on ΔCE, as a share of the larger of the two, with 1e-9 for rounding"
    return Claim(tex, instances, autodiff, sweep, curves, reading=reading)


def proved_bounds(instance: Instance, x):
    """The least and the most that Delta CE of every context can be at ``x = R |alpha|``, ``[m]`` nats each."""
    return bounds_of_moments(_variances(instance), instance.range, x)


def bounds_of_moments(variance, spread, x):
    """The least and the most that KL can be at ``x = R |alpha|``, from the variance of M and its range R, nats."""
    return variance * _lower(x) / spread**2, jnp.minimum(variance * _upper(x) / spread**2, x**2 / 8)


def _proved_curvature(instance: Instance, x):
    variance = _variances(instance)
    return variance * jnp.exp(-x), jnp.minimum(variance * jnp.exp(x), instance.range**2 / 4)


def _quadratic_bounds(instance: Instance, x):
    return jnp.zeros(instance.weights.shape), _variances(instance) * (x / instance.range) ** 2 / 2


def _log_partition_increases(instance: Instance, alpha):
    """Delta CE of every context as ``log sum p e^{alpha (M - E M)}``: a strength in every term once."""
    m = instance.log_odds
    centred = m - (instance.p @ m)[:, None]
    return jnp.log(jnp.sum(instance.p * jnp.exp(alpha * centred), axis=-1))


def _beyond_zero(gap) -> tuple[Curve, Curve]:
    """Curves for both signs of alpha, off 0: `gap` of the instance, x = R|alpha| and Delta CE."""

    def side(sign):
        return lambda instance, alpha: gap(
            instance, instance.range * alpha, _log_partition_increases(instance, sign * alpha)
        )

    return Curve(side(1.0), (0.25, 32.0)), Curve(side(-1.0), (0.25, 32.0))


def _rates(instance: Instance, alpha):
    """``R Var - |kappa_3|`` and ``R^2/4 - Var`` at every strength: what the bounds are the integrals of, at 0 too.

    Even odds of two log-odds attain the last one, which is therefore certified up to a thousandth.
    """
    m, spread = instance.log_odds, instance.range

    def context(log_p):
        q = jnp.exp(tilting.log_probabilities(log_p, m, alpha))
        above, below = jnp.dot(q, m - jnp.min(m)), jnp.dot(q, jnp.max(m) - m)
        squares = q * (m - jnp.dot(q, m)) ** 2
        # R - d and R + d, of the distance d from the mean, as sums of what is positive.
        left = jnp.stack([(jnp.max(m) - m) + above, (m - jnp.min(m)) + below])
        return jnp.append(left @ squares, 1.001 * spread**2 / 4 - jnp.sum(squares))

    return jax.vmap(context)(instance.log_p)


_BOUNDS = _bounded(
    r"\operatorname{Var}_j(M) \frac{e^{-x} + x - 1}{R^2} \le \Delta\mathrm{CE}_j(\alpha) \le "
    r"\min\left\{\operatorname{Var}_j(M) \frac{e^{x} - x - 1}{R^2},\ \frac{x^2}{8}\right\},\quad x = R |\alpha|",
    proved_bounds,
    _proved_curvature,
    (
        *_beyond_zero(lambda instance, x, value: _variances(instance) * _upper(x) / instance.range**2 - value),
        *_beyond_zero(lambda instance, x, value: value - _variances(instance) * _lower(x) / instance.range**2),
        *_beyond_zero(lambda instance, x, value: x**2 / 8 - value),
        Curve(_rates, (-8.0, 8.0)),
    ),
)
_QUADRATIC_BOUND = _bounded(
    r"\Delta\mathrm{CE}_j(\alpha) \le \tfrac12 \operatorname{Var}_j(M)\, \alpha^2\quad \text{for all}\ \alpha",
    _quadratic_bounds,
    lambda instance, x: (jnp.zeros(instance.weights.shape), _variances(instance)),
    _beyond_zero(lambda instance, x, value: _variances(instance) * (x / instance.range) ** 2 / 2 - value),
)

# --- asymptote -------------------------------------------------------------------------------------------------------

_SETTLED = 1e-9


def _far(instance: Instance, sign: int):
    m = instance.log_odds
    return sign * jnp.max(jnp.abs(jax.vmap(lambda row: tilting.saturation(row, m, sign, _SETTLED))(instance.log_p)))


def _tends_to(tex: str, intercept) -> Claim:
    """The claim that Delta CE has the asymptote of slope ``max M - sum_j pi_j E_{p_j} M`` and this intercept.

    Args:
        tex: the claim.
        intercept: of the instance and the sign of alpha.
    """

    def line(instance, sign, alpha):
        m = instance.log_odds
        end = jnp.max(m) if sign > 0 else jnp.min(m)
        return alpha * (end - instance.weights @ (instance.p @ m)) + intercept(instance, sign)

    def instances(instance):
        def slack(sign):
            far = _far(instance, sign)
            value = instance.weights @ increases(instance, far)
            return 1e-8 + 1e-12 * jnp.abs(value) - jnp.abs(value - line(instance, sign, far))

        return jnp.minimum(slack(1), slack(-1))

    def autodiff(instance):
        """The tangent far out, by its slope and its value at 0."""
        cross_entropies = _model_cross_entropies(instance)

        def total(alpha):
            return instance.weights @ cross_entropies(alpha)

        def slack(sign):
            far = _far(instance, sign)
            value, slope_there = jax.jvp(total, (far,), (jnp.ones_like(far),))
            at_zero = value - total(jnp.zeros(())) - far * slope_there
            size = 1 + jnp.abs(value)
            slope_error = slope_there * far - (line(instance, sign, far) - line(instance, sign, 0.0))
            return 1e-7 + 1e-11 * size - jnp.maximum(jnp.abs(at_zero - line(instance, sign, 0.0)), jnp.abs(slope_error))

        return jnp.minimum(slack(1), slack(-1))

    @compiled_quickly
    def lines(instance, low, high):
        settled = (_far(instance, 1) <= high) & (_far(instance, -1) >= low)
        return line(instance, -1, low), line(instance, 1, high), settled

    def sweep(swept: Measured):
        ends = swept.alphas[[0, -1]]
        low, high, settled = lines(swept.instance, *ends)
        if not settled:
            return float("inf")
        return float(1e-7 - np.abs(_measured(swept, ends) - np.array([low, high])).max())

    reading = "1e-8 and 1e-12 of ΔCE, less the distance of ΔCE from its asymptote where it has settled"
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _mass_at_end(instance: Instance, sign: int):
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    extreme = highest if sign > 0 else lowest
    return instance.weights @ jax.nn.logsumexp(jnp.where(extreme, instance.log_p, -jnp.inf), axis=-1)


def _likeliest_at_end(instance: Instance, sign: int):
    """The wrong intercept where extreme tokens tie: of the likeliest of them alone."""
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    return instance.weights @ jnp.max(jnp.where(highest if sign > 0 else lowest, instance.log_p, -jnp.inf), axis=-1)


_ASYMPTOTE_TEX = r"\Delta\mathrm{CE}(\alpha) = \alpha \Big(M_{\max} - \sum_j \pi_j \mathbb{E}_{p_j} M\Big)"
_ASYMPTOTE = _tends_to(
    _ASYMPTOTE_TEX + r" + \sum_j \pi_j \log p_j(\overline{M}) + o(1)\quad (M_{\min}, \underline{M}\ \text{at}\ -\infty)",
    _mass_at_end,
)
_OF_ONE = _tends_to(
    _ASYMPTOTE_TEX
    + r" + \sum_j \pi_j \max_{z \in \overline{M}} \log p_j(z) + o(1)\quad (M_{\min}, \underline{M}\ \text{at}\ -\infty)",
    _likeliest_at_end,
)


STATEMENTS = (
    Statement(
        id="N4.divergence",
        title="The cross-entropy grows by a divergence",
        source="N4",
        claim=_DIVERGENCE,
        twin=_BACKWARD_DIVERGENCE,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="The divergence is from p to the steered p, in that order: the other one is not convex.",
        proof=_PROOF,
        figure=_FIGURE,
    ),
    Statement(
        id="N4.taylor",
        title="All Taylor coefficients of the cross-entropy",
        source="N4",
        claim=_TAYLOR,
        twin=_MOMENTS,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Cumulants and central moments agree up to order 3 and part at order 4.",
        proof=_PROOF,
        figure=_FIGURE,
    ),
    Statement(
        id="N4.bounds",
        title="Bounds on the cross-entropy for every strength",
        source="N4",
        claim=_BOUNDS,
        twin=_QUADRATIC_BOUND,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="A budget of delta nats is safe for |alpha| up to sqrt(8 delta) / R, with no sweep. The quadratic of "
        "theorem 3.8 is no bound: near 0 the cross-entropy exceeds it on the side where alpha has the sign of the third "
        "cumulant.",
        proof=_PROOF,
        figure=_FIGURE,
    ),
    Statement(
        id="N4.asymptote",
        title="The cross-entropy ends as a straight line",
        source="N4",
        claim=_ASYMPTOTE,
        twin=_OF_ONE,
        hypotheses=chosen("A2", "not-constant", "positive", "resolved"),
        remarks="The line meets the axis below 0: the extreme tokens have less than all of the probability. Tied ones count "
        "together.",
        proof=_PROOF,
        figure=_FIGURE,
    ),
)

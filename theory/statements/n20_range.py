"""N20: the most that any intervention can cost, from the range of the change of the logits; on the arc, from an angle."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import arc, budgets, symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import GRID, least, on_sweep, slope
from theory.instance import Instance
from theory.norms import ANGLES, NORMS, MeasuredNorm, NormInstance, kinds
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen
from theory.statements.n7_norm import NOT_PARALLEL
from theory.statements.n18_budget import integrated
from ufm.distributions import kl

_PROOF = "proofs/N20"

Bound = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A claimed bound on KL, as a function of the range of the change of the logits."""


def _slack(bound: Bound, width, value):
    """The excess of a range's bound over a divergence, relative to the larger of the two."""
    most = bound(width)
    return jnp.where(width > 0, (most - value) / jnp.maximum(jnp.maximum(most, value), 1e-300), 1.0)


# --- any model -------------------------------------------------------------------------------------------------------

_WIDTHS = np.array([0.25, 1.0, 4.0, 16.0, 64.0])
"""Ranges for which the distribution that attains the bound is tried."""


def _worst_share(width):
    """The share of the token that gains, in the distribution of two tokens that costs most at this range."""
    return 1 / width - 1 / jnp.expm1(width)


def _divergence(before, after):
    return jnp.sum(jnp.exp(before) * (before - after), axis=-1)


def _two_tokens(width) -> Instance:
    """The distribution that costs most at this range, and itself with its logits changed, as contexts to steer between."""
    share = _worst_share(width)
    before = jnp.log(jnp.stack([share, 1 - share]))
    rows = jnp.stack([before, jax.nn.log_softmax(before + jnp.stack([width, 0 * width]))])
    first = jnp.arange(2) < 1
    return Instance(rows, jnp.ones(2) / 2, jnp.arange(2), jnp.stack([first, ~first]), jnp.array([-1.0, 1.0]), jnp.asarray(1))


def _of_two_tokens(bound: Bound, instance: Instance, measured: Float[Array, "m K V"]) -> Float[Array, ""]:
    """The least slack between any two strengths, of the tokens with the largest and the least M alone."""
    m = instance.log_odds

    def pairs(row):
        width = row - row[:, None]
        share = jax.nn.sigmoid(row)[:, None]
        value = jax.nn.softplus(row) - jax.nn.softplus(row)[:, None] - share * width
        return jnp.min(jnp.where(jnp.abs(width) > 0.1, _slack(bound, jnp.abs(width), value), jnp.inf))

    return jnp.min(jax.lax.map(pairs, measured[..., jnp.argmax(m)] - measured[..., jnp.argmin(m)]))


def _costs_at_most(tex: str, identities, bound: Bound, curves, *, extremal: bool) -> Claim:
    """The claim that KL, either way round, is at most a function of the range of the change of the logits.

    Args:
        tex: the claim.
        identities: those of the law that attains it.
        bound: the function.
        curves: the certificate.
        extremal: whether the law that attains the bound is among what is tried.
    """

    def gap(before, after):
        width = jnp.ptp(after - before, axis=-1)
        both = jnp.stack([_divergence(before, after), _divergence(after, before)])
        # Divergences are sums of terms that cancel.
        allowance = 1e-13 * (1 + jnp.max(jnp.abs(before), axis=-1))
        return jnp.min(_slack(bound, width, jnp.maximum(both - allowance, 0)))

    def instances(instance):
        log_p, m = instance.log_p, instance.log_odds
        estimated = m + log_p[0] - log_p[1]

        def tilts(t):
            def steered_by(values):
                return jax.vmap(lambda row: tilting.log_probabilities(row, values, t / instance.range))(log_p)

            steered, alike = steered_by(m), steered_by(estimated)
            return jnp.minimum(gap(log_p, steered), gap(steered, alike))

        others = jax.vmap(lambda k: gap(log_p, jnp.roll(log_p, k, axis=0)))(jnp.arange(1, log_p.shape[0]))
        slack = jnp.minimum(jnp.min(jax.vmap(tilts)(jnp.asarray(GRID))), jnp.min(others))
        if extremal:
            worst = jax.vmap(lambda width: gap(*_two_tokens(width).log_p))(jnp.asarray(_WIDTHS))
            slack = jnp.minimum(slack, jnp.min(worst))
        return slack + 1e-9

    def autodiff(instance):
        least_slack = jnp.minimum(_slack_of_integral(bound, instance, 1), _slack_of_integral(bound, instance, -1))
        if extremal:
            worst = jax.vmap(lambda width: _slack_of_integral(bound, _two_tokens(width), 1))(jnp.asarray([1.0, 4.0, 8.0]))
            least_slack = jnp.minimum(least_slack, jnp.min(worst))
        return least_slack + 1e-8

    @on_sweep
    def sweep(instance, alphas, measured):
        """The margin from unsteered to steered; and between any two strengths near 0 if only two tokens are looked at."""
        steered = jnp.moveaxis(measured[:, ::10], 1, 0)
        whole = jax.lax.map(lambda after: gap(instance.log_p, after), steered)
        middle = alphas.size // 2
        near = measured[:, middle - 30 : middle + 31]
        return jnp.minimum(jnp.min(whole), _of_two_tokens(bound, instance, near) if extremal else jnp.inf) + 1e-8

    reading = (
        "the least slack of the bound on KL, either way round, as a share of the larger of the two, with 1e-9 for rounding"
    )
    return Claim(tex, instances, autodiff, sweep, curves, identities, reading=reading)


def _slack_of_integral(bound: Bound, instance: Instance, sign: int) -> Float[Array, ""]:
    """The least slack at strengths of a sign, the divergence being integrated from its derivative through a model."""
    alphas, values = integrated(instance, sign)
    allowance = 1e-13 * (1 + jnp.max(jnp.abs(instance.log_p)))
    return jnp.min(_slack(bound, (instance.range * jnp.abs(alphas))[:, None], jnp.maximum(values - allowance, 0)))


_CERTIFIED = (1.0, 4.0, 16.0)
"""Ranges of the change for which the bound is certified."""


def _between_strengths(bound: Bound) -> tuple[Curve, ...]:
    """The bound less the divergence from any strength to one that is larger or smaller by a range, in every context.

    Of two tokens nothing is certified: they attain the bound at one strength, as the identities say.
    """

    def to(step):
        def gap(instance, alpha):
            if instance.log_p.shape[-1] == 2:
                return jnp.full(instance.log_p.shape[0], jnp.inf)
            m = instance.log_odds - (jnp.max(instance.log_odds) + jnp.min(instance.log_odds)) / 2
            weights = instance.p * jnp.exp(alpha * m)
            total = jnp.sum(weights, axis=-1)
            factor = jnp.exp(step * m / instance.range)
            value = jnp.log(weights @ factor / total) - step / instance.range * (weights @ m) / total
            return bound(jnp.asarray(abs(step))) - value

        return Curve(gap, (-16.0, 16.0))

    return tuple(to(sign * width) for width in _CERTIFIED for sign in (1, -1))


_CHANGE_TEX = r"\operatorname{KL}(p \,\|\, q),\ \operatorname{KL}(q \,\|\, p) \le "
_RANGE_TEX = r"\quad r = \max_z \Delta_z - \min_z \Delta_z,\ \ \Delta = \log q - \log p"
_RANGE = _costs_at_most(
    _CHANGE_TEX + r"\log \frac{\sinh(r/2)}{r/2} + \frac r2 \coth \frac r2 - 1 \le \frac{r^2}{8}," + _RANGE_TEX,
    symbolic.IDENTITIES["N20.range"],
    lambda width: budgets.divergence_of_range(width),
    _between_strengths(lambda width: budgets.divergence_of_range(width)),
    extremal=True,
)
_EVENLY_SPREAD = _costs_at_most(
    _CHANGE_TEX + r"\frac{r^2}{12}," + _RANGE_TEX,
    symbolic.TWINS["N20.range"],
    lambda width: width**2 / 12,
    _between_strengths(lambda width: width**2 / 12),
    extremal=False,
)

# --- the arc ---------------------------------------------------------------------------------------------------------

_TURNS, _DIRECTIONS = ANGLES[[2, 8]], 16
"""Angles at which the costliest decoder is tried, and directions that the diameter is taken in."""


def _least(instance: NormInstance, value: Callable[[NormInstance], Float[Array, ""]]) -> Float[Array, ""]:
    return jnp.minimum(*[value(other) for other in kinds(instance)])


def _angles(instance: NormInstance, theta):
    """The angle of the unsteered state, and the one halfway from there to `theta`."""
    start = arc.theta_of_alpha(instance.arc, jnp.zeros(()))
    return start, (start + theta) / 2


def _costliest(instance: NormInstance, theta) -> NormInstance:
    """The decoder for which the same turn costs the most: two groups of tokens on a line across its middle, and a bias."""
    path, (start, middle) = instance.arc, _angles(instance, theta)
    h, v = instance.centred
    along = v / jnp.linalg.norm(v)
    e1 = h - (h @ along) * along
    e1 = e1 / jnp.linalg.norm(e1)
    u = jnp.cos(middle) * along - jnp.sin(middle) * e1
    across, (tokens, d) = budgets.diameter(path, _DIRECTIONS), instance.W.shape
    change = 2 * jnp.sin((theta - start) / 2) * across
    share = _worst_share(jnp.maximum(jnp.abs(change), 1e-2))
    wanted = jnp.sign(change) * (jnp.log(share) - jnp.log1p(-share)) + jnp.log(tokens - 1.0)
    offset = wanted + change / 2
    side = jnp.where(jnp.arange(tokens) < 1, 0.5, -0.5)
    W = side[:, None] * across * u / (instance.gamma * jnp.sqrt(d))
    return replace(instance, W=W, bias=offset * jnp.sqrt(d) / across * u * instance.gamma)


def _on_arc(tex: str, identities, across: Callable[[arc.Arc], Float[Array, ""]], *, extremal: bool) -> Claim:
    """The claim that KL is at most that of the range ``2 sin(|theta - theta_0| / 2)`` times a length.

    Args:
        tex: the claim.
        identities: those it rests on.
        across: the length, of the arc.
        extremal: whether the decoder that attains the bound is among what is tried.
    """

    def slack(instance, alpha, before, after):
        path = instance.arc
        most = budgets.arc_bound(path, alpha, across(path))
        size = 1e-12 * (1 + jnp.max(jnp.abs(before)))
        return (most - kl(before, after) + size) / (jnp.maximum(most, kl(before, after)) + size)

    def decoded(instance, theta):
        alpha = arc.alpha_of_theta(instance.arc, theta)
        return slack(instance, alpha, instance.decode(jnp.zeros(())), instance.decode(alpha))

    def everywhere(instance, slack_at, slack_of_costliest):
        """The least of a slack over angles, and of that of the costliest decoder of each turn."""

        def of_kind(instance):
            slacks = jnp.min(jax.vmap(lambda theta: slack_at(instance, theta))(jnp.asarray(ANGLES[::2])))
            if not extremal:
                return slacks
            worst = jax.vmap(lambda theta: slack_of_costliest(instance, theta))(jnp.asarray(_TURNS))
            return jnp.minimum(slacks, jnp.min(worst))

        return _least(instance, of_kind) + 1e-7

    def instances(instance):
        return everywhere(instance, decoded, lambda instance, theta: decoded(_costliest(instance, theta), theta))

    def autodiff(instance):
        """The differential form: the derivatives of the logits have a range of ``D cos(theta)^2 / sqrt(L)`` at most."""

        def rate(instance, theta):
            path = instance.arc
            slopes = slope(instance.decode, arc.alpha_of_theta(path, theta))
            most = across(path) * jnp.cos(theta) ** 2 / path.width
            return (most - jnp.ptp(slopes)) / jnp.maximum(most, jnp.ptp(slopes))

        def at_middle(instance, theta):
            return rate(_costliest(instance, theta), _angles(instance, theta)[1])

        return everywhere(instance, rate, at_middle)

    @compiled_quickly
    def on_grid(instance, alphas, logits):
        before = logits[alphas.size // 2]
        slacks = jax.vmap(lambda alpha, after: slack(instance, alpha, before, after))(alphas, logits)
        return least(slacks, jnp.abs(alphas) > 1e-6) + 1e-7

    def sweep(swept: MeasuredNorm):
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    reading = "the least slack of the bound on KL, as a share of the larger of the two, with 1e-7 for rounding"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


def _radius(path: arc.Arc) -> Float[Array, ""]:
    """The longest of the tokens instead of the largest distance between two of them."""
    return jnp.max(jnp.hypot(path.A, path.B))


_ARC_TEX = (
    r"\operatorname{KL}(p \,\|\, p_\alpha) \le \tfrac18 \left(2 \sin\tfrac{|\theta - \theta_0|}{2}\, D\right)^2 \le "
    r"\tfrac18 \left(\frac{|\alpha| D}{\sqrt L}\right)^2,\quad D = \max_{"
)
_ARC = _on_arc(
    _ARC_TEX + r"y, z} \|(A_y, B_y) - (A_z, B_z)\|",
    symbolic.IDENTITIES["N20.arc"],
    lambda path: budgets.diameter(path, _DIRECTIONS),
    extremal=True,
)
_BY_RADIUS = _on_arc(_ARC_TEX + r"z} \|(A_z, B_z)\|", symbolic.TWINS["N20.arc"], _radius, extremal=False)

STATEMENTS = (
    Statement(
        id="N20.range",
        title="A budget for any model, from a range",
        source="N20",
        claim=_RANGE,
        twin=_EVENLY_SPREAD,
        hypotheses=chosen("not-constant", "positive"),
        remarks="For any model, layer and intervention: q is whatever p becomes. The first bound is attained by two tokens "
        "at every range, the second (Hoeffding's) as the range goes to 0. With M estimated as M', the change from the "
        "wanted to the actual steering is alpha (M' - M).",
        proof=_PROOF,
    ),
    Statement(
        id="N20.arc",
        title="A budget for the angle of a state",
        source="N20",
        claim=_ARC,
        twin=_BY_RADIUS,
        hypotheses=NOT_PARALLEL,
        remarks="After the last block, before the final norm. The sharper bound of N20.range holds for the same range, and "
        "is what is checked.",
        domain=NORMS,
        proof=_PROOF,
        figure="arc",
    ),
)

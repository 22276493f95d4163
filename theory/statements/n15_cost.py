"""N15: what raising a concept's share must cost, what is wasted on top of it, and the share of the cost that is of use."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import budgets, signs, symbolic, tilting
from theory._compilation import compiled_quickly
from theory.budgets import SplitCost
from theory.claims import GRID, least, model_curves, on_sweep, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen
from theory.statements.theorem_3_8 import divergence_of, increases
from ufm import steer

_PROOF = "proofs/N15"


def _costs(before: Float[Array, "m V"], after: Float[Array, "m V"], instance: Instance) -> SplitCost:
    """The three parts for every context and concept, ``[m, G]``."""
    return budgets.split_cost(before[:, None, :], after[:, None, :], instance.members[None])


def _divergences(before: Float[Array, "m V"], after: Float[Array, "m V"]) -> Float[Array, " m"]:
    return jnp.sum(jnp.exp(before) * (before - after), axis=-1)


def _size(instance: Instance, alpha):
    """The scale of rounding errors."""
    return 1 + jnp.max(jnp.abs(instance.log_p)) + jnp.abs(alpha) * instance.range


def _tilted(instance: Instance, alpha) -> Float[Array, "m V"]:
    return jax.vmap(lambda row: tilting.log_probabilities(row, instance.log_odds, alpha))(instance.log_p)


# --- the parts -------------------------------------------------------------------------------------------------------


def _adds_up(tex: str, identities, total: Callable[[SplitCost], Float[Array, "m G"]]) -> Claim:
    """The claim that KL is a sum of the parts."""

    def instances(instance):
        def slack(alpha):
            expected = increases(instance, alpha)[:, None]
            error = jnp.abs(total(_costs(instance.log_p, _tilted(instance, alpha), instance)) - expected)
            return 1e-12 - jnp.max(error) / _size(instance, alpha)

        return jnp.min(jax.vmap(slack)(jnp.asarray(GRID) / instance.range))

    def autodiff(instance):
        """Both sides have one derivative, ``E_alpha M - E_0 M``."""
        curves, m = model_curves(instance, None), instance.log_odds

        def slack(alpha):
            rate = slope(lambda a: total(_costs(instance.log_p, curves(a), instance)), alpha)
            expected = jnp.exp(_tilted(instance, alpha)) @ m - instance.p @ m
            return 1e-10 - jnp.max(jnp.abs(rate - expected[:, None])) / instance.range

        return jnp.min(jax.vmap(slack)(jnp.asarray(GRID) / instance.range))

    @on_sweep
    def sweep(instance, alphas, measured):
        def error(log_q):
            direct = _divergences(instance.log_p, log_q)
            return jnp.max(jnp.abs(total(_costs(instance.log_p, log_q, instance)) - direct[:, None]))

        return 1e-10 - jnp.max(jax.lax.map(error, jnp.moveaxis(measured[:, ::20], 1, 0)))

    reading = "1e-12 less the largest error of the sum of the three parts of ΔCE, relative to its size"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_SPLIT_TEX = r"\operatorname{KL}(p \,\|\, p_\alpha) = \operatorname{kl}(F_0 \,\|\, F_\alpha)"
_OUTSIDE_TEX = r" + (1 - F_0) \operatorname{KL}(p_{\mid T^\complement} \,\|\, p_{\alpha \mid T^\complement})"
_SPLIT = _adds_up(
    _SPLIT_TEX + r" + F_0 \operatorname{KL}(p_{\mid T} \,\|\, p_{\alpha \mid T})" + _OUTSIDE_TEX,
    symbolic.IDENTITIES["N15.split"],
    lambda cost: cost.total,
)
_NOTHING_INSIDE = _adds_up(_SPLIT_TEX + _OUTSIDE_TEX, symbolic.TWINS["N15.split"], lambda cost: cost.share + cost.outside)

# --- the bound -------------------------------------------------------------------------------------------------------


def _wasted(instance: Instance, alpha) -> Float[Array, "m G"]:
    """What goes within a set and within the rest, for every context and concept, to full relative precision."""

    def within(log_p, mask):
        log_share = jax.nn.logsumexp(jnp.where(mask, log_p, -jnp.inf))
        # Tokens of probability 0 get a value among the others, so that they are never the extreme ones.
        m = jnp.where(mask, instance.log_odds, jnp.min(jnp.where(mask, instance.log_odds, jnp.inf)))
        return jnp.exp(log_share) * divergence_of(jnp.where(mask, log_p - log_share, -jnp.inf), m, alpha)

    def both(log_p, mask):
        return within(log_p, mask) + within(log_p, ~mask)

    return jax.vmap(lambda row: jax.vmap(lambda mask: both(row, mask))(instance.members))(instance.log_p)


def _backward(cost_of: Callable[..., SplitCost]) -> Callable[..., Float[Array, "m G"]]:
    return lambda before, after, instance: cost_of(after, before, instance).share


def _costs_at_least(tex: str, bound: Callable[..., Float[Array, "m G"]], curves) -> Claim:
    """The claim that KL is at least some divergence of the shares, whatever the intervention.

    Args:
        tex: the claim.
        bound: of log-probabilities before and after, and the instance.
        curves: the certificate.
    """

    def gap(instance, before, after, alpha):
        slack = _divergences(before, after)[:, None] - bound(before, after, instance)
        return jnp.min(slack) / _size(instance, alpha)

    def cheapest(instance):
        """Every set made likelier as a whole, up to half of what it lacks, costs just the bound and no more."""
        masks = instance.members[None]
        inside = jax.nn.logsumexp(jnp.where(masks, instance.log_p[:, None, :], -jnp.inf), axis=-1)[..., None]
        rest = jax.nn.logsumexp(jnp.where(masks, -jnp.inf, instance.log_p[:, None, :]), axis=-1)[..., None]
        raised = jnp.logaddexp(inside, rest - jnp.log(2.0))
        after = instance.log_p[:, None, :] + jnp.where(masks, raised - inside, -jnp.log(2.0))
        before = jnp.broadcast_to(instance.log_p[:, None, :], after.shape)
        spent = jnp.sum(jnp.exp(before) * (before - after), axis=-1)
        error = jnp.abs(spent - budgets.cost_of_share(jnp.exp(inside), jnp.exp(raised))[..., 0])
        # What a share lacks has no digits in it where that is next to nothing.
        return least(1e-11 - error, rest[..., 0] > jnp.log(1e-9))

    def instances(instance):
        before = instance.log_p
        alphas = jnp.asarray(GRID) / instance.range
        tilts = jax.vmap(lambda alpha: gap(instance, before, _tilted(instance, alpha), alpha))(alphas)
        # Any two distributions are before and after some intervention: those of other contexts, for instance.
        others = jax.vmap(lambda k: gap(instance, before, jnp.roll(before, k, axis=0), 0.0))(jnp.arange(1, before.shape[0]))
        return jnp.minimum(jnp.minimum(jnp.min(tilts), jnp.min(others)) + 1e-12, cheapest(instance))

    def autodiff(instance):
        """The excess over the bound grows with the strength, in both directions."""
        curves = model_curves(instance, None)

        def above(alpha):
            after = curves(alpha)
            return _divergences(instance.log_p, after)[:, None] - bound(instance.log_p, after, instance)

        def rate(t):
            return jnp.min(jnp.sign(t) * slope(above, t / instance.range)) / instance.range

        return jnp.min(jax.vmap(rate)(jnp.asarray(GRID))) + 1e-11

    @on_sweep
    def sweep(instance, alphas, measured):
        """The margin of steps from no steering to every strength, and from each to the one before: all are interventions."""
        steered = jnp.moveaxis(measured[:, ::20], 1, 0)
        back = jax.lax.map(lambda log_q: gap(instance, instance.log_p, log_q, 0.0), steered)
        on = jax.lax.map(lambda pair: gap(instance, *pair, 0.0), (steered[1:], steered[:-1]))
        return jnp.minimum(jnp.min(back), jnp.min(on)) + 1e-9

    reading = (
        "the least slack of the bound on KL, relative to the size of the cost and with 1e-12 for rounding, or 1e-11"
        " less the error of the cost of the cheapest intervention, whichever is less"
    )
    return Claim(tex, instances, autodiff, sweep, curves, reading=reading)


def _wasted_rate(instance: Instance, alpha):
    """The sign of the second derivative of what is wasted: sums of ``p(z) p(z') (M(z) - M(z'))^2`` within parts, tilted.

    +inf for a concept on which, and off which, M is constant: there nothing is wasted.
    """
    m, masks = instance.log_odds, instance.members
    together = masks[:, :, None] == masks[:, None, :]
    squares = jnp.where(together, (m[:, None] - m) ** 2, 0)
    middle = jnp.max(m) + jnp.min(m)
    pairs = jnp.exp(alpha * (m[:, None] + m - middle))
    sums = jnp.einsum("jz,gzy,jy->jg", instance.p, squares * pairs, instance.p)
    return jnp.where(jnp.max(squares, axis=(1, 2)) > 0, sums, jnp.inf)


def _backward_gap(sign: float):
    def gap(instance, alpha):
        after = _tilted(instance, sign * alpha)
        return _divergences(instance.log_p, after)[:, None] - _backward(_costs)(instance.log_p, after, instance)

    return gap


_BOUND = _costs_at_least(
    r"\operatorname{KL}(p \,\|\, q) \ge \operatorname{kl}\Big(\sum_T p \,\|\, \sum_T q\Big)\ \ \text{for all}\ q,"
    r"\quad \min_{q\,:\, \sum_T q \ge \tau} \operatorname{KL}(p \,\|\, q) = \operatorname{kl}(F_0 \,\|\, \tau)"
    r"\ \ (F_0 < \tau < 1)",
    lambda before, after, instance: _costs(before, after, instance).share,
    (Curve(_wasted_rate, beyond=signs.is_varied),),
)
_BACKWARD_BOUND = _costs_at_least(
    r"\operatorname{KL}(p \,\|\, q) \ge \operatorname{kl}\Big(\sum_T q \,\|\, \sum_T p\Big)\ \ \text{for all}\ q",
    _backward(_costs),
    (Curve(_backward_gap(1.0), (0.25, 32.0)), Curve(_backward_gap(-1.0), (0.25, 32.0))),
)

# --- efficiency ------------------------------------------------------------------------------------------------------

_NEAR = np.array([-2e-2, -1e-2, 1e-2, 2e-2])
_TO_ZERO = np.array([-1 / 6, 4 / 6, 4 / 6, -1 / 6])
"""Strengths in units of 1/R, and the weights of a cubic's values there that make its value at 0."""


def _efficiencies(instance: Instance) -> Float[Array, "m G"]:
    return budgets.efficiency(instance.log_p[:, None, :], instance.log_odds, instance.members[None])


def _between_all(instance: Instance) -> Float[Array, "m G"]:
    """The share of the variance of M that lies between all the concepts: right where there are two of them."""
    p, m, masks = instance.p[:, None, :], instance.log_odds, instance.members.astype(float)
    # A concept that is listed twice counts once.
    first = jnp.argmax(instance.members, axis=-1)
    new = jnp.arange(first.size) == jnp.argmax(first == first[:, None], axis=-1)
    shares = p @ masks.T
    means = (p @ (masks * m).T) / shares
    centred = means - (instance.p @ m)[:, None, None]
    between = jnp.sum(jnp.where(new, shares * centred**2, 0), axis=-1)
    variance = jax.vmap(lambda row: tilting.variance(row, m, 0.0))(instance.log_p)
    return jnp.broadcast_to(between / variance[:, None], (instance.p.shape[0], masks.shape[0]))


def _tends_to(tex: str, identities, efficiency: Callable[[Instance], Float[Array, "m G"]]) -> Claim:
    """The claim that ``kl(F_0 || F_alpha) / KL`` tends to an efficiency as alpha goes to 0."""

    def instances(instance):
        def ratio(x):
            alpha = x / instance.range
            return 1 - _wasted(instance, alpha) / increases(instance, alpha)[:, None]

        limit = jnp.tensordot(jnp.asarray(_TO_ZERO), jax.vmap(ratio)(jnp.asarray(_NEAR)), axes=1)
        return 1e-6 - jnp.max(jnp.abs(limit - efficiency(instance)))

    def autodiff(instance):
        """By second derivatives at 0, of which the rule of de l'Hospital makes the limit."""
        curves, zero = model_curves(instance, None), jnp.zeros(())

        def of_share(alpha):
            # The derivative of kl(F_0 || F) by F vanishes at F_0, so that the second one needs F' alone, and no difference.
            return _costs(instance.log_p, curves(alpha), instance).share

        def of_all(alpha):
            return _divergences(instance.log_p, curves(alpha))

        share, total = (slope(lambda a, f=f: slope(f, a), zero) for f in (of_share, of_all))
        # Derivatives of a log-softmax make the variance of M as a difference of squares.
        resolved = jnp.sqrt(total) > 3e-3 * jnp.max(jnp.abs(instance.log_odds))
        return least(1e-8 - jnp.abs(share / total[:, None] - efficiency(instance)), resolved[:, None])

    @compiled_quickly
    def measured_error(instance, model, v):
        contexts = jnp.arange(instance.log_p.shape[0])

        def ratio(x):
            log_q = jax.nn.log_softmax(steer(model, contexts, v, x / instance.range))
            base = jax.nn.log_softmax(steer(model, contexts, v, jnp.zeros(())))
            return _costs(base, log_q, instance).share / _divergences(base, log_q)[:, None]

        limit = jnp.tensordot(jnp.asarray(_TO_ZERO), jax.vmap(ratio)(jnp.asarray(5 * _NEAR)), axes=1)
        return jnp.max(jnp.abs(limit - efficiency(instance)))

    def sweep(swept: Measured):
        return 1e-3 - float(measured_error(swept.instance, swept.model, swept.v))

    reading = (
        "1e-6 less the largest difference between the efficiency and the limit of the useful part of the cost at "
        "small strengths"
    )
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_EFFICIENCY_TEX = (
    r"\lim_{\alpha \to 0} \frac{\operatorname{kl}(F_0 \,\|\, F_\alpha)}{\operatorname{KL}(p \,\|\, p_\alpha)} = "
)
_EFFICIENCY = _tends_to(
    _EFFICIENCY_TEX + r"\rho^2(1_T, M) = \frac{\operatorname{Cov}_p(1_T, M)^2}{F_0 (1 - F_0) \operatorname{Var}_p(M)}",
    symbolic.IDENTITIES["N15.efficiency"],
    _efficiencies,
)
_BETWEEN_ALL = _tends_to(
    _EFFICIENCY_TEX + r"\frac{\operatorname{Var}_p(\mathbb{E}_p[M \mid \text{concept}])}{\operatorname{Var}_p(M)}",
    symbolic.TWINS["N15.efficiency"],
    _between_all,
)

STATEMENTS = (
    Statement(
        id="N15.split",
        title="The cost of a share, and two wastes",
        source="N15",
        claim=_SPLIT,
        twin=_NOTHING_INSIDE,
        hypotheses=chosen("not-constant"),
        remarks="The chain rule of the divergence: true of any two distributions in the place of p and its tilt, of any set "
        "of tokens, in any model. The twin is right where M is constant on the set.",
        proof=_PROOF,
        figure="share-costs",
    ),
    Statement(
        id="N15.bound",
        title="No intervention is cheaper",
        source="N15",
        claim=_BOUND,
        twin=_BACKWARD_BOUND,
        hypotheses=chosen("not-constant"),
        remarks="For any intervention on any model, prompts, weights and decoding included. The least is attained by making "
        "the set likelier as a whole. What steering pays above the bound grows with |alpha|.",
        proof=_PROOF,
        figure="share-costs",
    ),
    Statement(
        id="N15.efficiency",
        title="The share of a small cost that is of use",
        source="N15",
        claim=_EFFICIENCY,
        twin=_BETWEEN_ALL,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="1 exactly where M is constant on the set and on the rest. In any model that is smooth in the strength it "
        "is the same with the derivatives of the logits for M: one Jacobian-vector product. The twin is right for two "
        "concepts.",
        proof=_PROOF,
        figure="efficiencies",
    ),
)

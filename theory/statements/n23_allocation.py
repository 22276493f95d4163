"""N23: several vectors at once, and a strength for each prompt: concavity, interference, and how to spend a budget."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sympy import log as log_of
from sympy import symbols

from theory import allocation, tilting
from theory._compilation import compiled_quickly
from theory.claims import exact_split, largest_error, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Hypothesis, Statement
from theory.statements.hypotheses import chosen
from theory.symbolic import Identity, derivative
from ufm import difference_of_means, steer
from ufm._numerics import exp_minus_tangent


def second_contrast(instance: Instance) -> Float[Array, " m"]:
    """The weights of another vector: those of the first, each moved to the next context."""
    return jnp.roll(instance.contrast, 1)


def _two(instance: Instance) -> Float[Array, "2 V"]:
    """The log-odds of both vectors."""
    return jnp.stack([instance.log_odds, replace(instance, contrast=second_contrast(instance)).log_odds])


def _ranges(m: Float[Array, "k V"]) -> Float[Array, " k"]:
    return jnp.maximum(jnp.max(m, axis=-1) - jnp.min(m, axis=-1), 1e-30)


# --- concavity, interference -----------------------------------------------------------------------------------------

_POINTS = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, -1.0], [-3.0, 0.5], [0.5, 4.0]])
"""Strengths of both vectors, in units of 1/R of each."""


def _hessians(curves: Callable, m: Float[Array, "2 V"], at: Float[Array, " 2"], step: float) -> Float[Array, "2 2 ..."]:
    """Second differences of curves of two strengths, in units of 1/R of each, with an error of fourth order in the step."""

    def along(first, second):
        def value(x, y):
            return curves((at + x * first + y * second) / _ranges(m))

        def mixed(h):
            return (value(h, h) - value(h, -h) - value(-h, h) + value(-h, -h)) / (4 * h * h)

        return (4 * mixed(step) - mixed(2 * step)) / 3

    unit = jnp.eye(2)
    return jnp.stack([jnp.stack([along(unit[i], unit[k]) for k in range(2)]) for i in range(2)])


def _covariances(instance: Instance, at: Float[Array, " 2"]) -> Float[Array, "m 2 2"]:
    """Cov_alpha of both log-odds, each in units of its range."""
    m = _two(instance)
    log_q = jax.nn.log_softmax(instance.log_p + (at / _ranges(m)) @ m)
    response = allocation.response(log_q, jnp.broadcast_to(m, (*log_q.shape[:1], *m.shape)), instance.in_target)
    return response.covariance / (_ranges(m)[:, None] * _ranges(m))


def _interferes(tex: str, transform, margin, identities) -> Claim:
    """A claim about the second derivatives of the log-probabilities by two strengths, or of what is made of them.

    Args:
        tex: the claim.
        transform: of the instance and log-probabilities ``[m, V]``, to curves.
        margin: of the instance, the strengths, and the second derivatives ``[2, 2, ...]``.
        identities: of the symbolic route.
    """

    def over_points(instance, curves, error, second):
        m = _two(instance)

        def worst(at):
            return margin(instance, at, second(lambda a: transform(instance, curves(a)), m, at))

        return jnp.min(jax.vmap(worst)(jnp.asarray(_POINTS))) + error

    def by_differences(step):
        return lambda curves, m, at: _hessians(curves, m, at, step)

    def by_autodiff(curves, m, at):
        def second(i, k):
            unit = jnp.eye(2)
            return slope(
                lambda y: slope(lambda x: curves((at + x * unit[i] + y * unit[k]) / _ranges(m)), 0 * y), jnp.zeros(())
            )

        return jnp.stack([jnp.stack([second(i, k) for k in range(2)]) for i in range(2)])

    def instances(instance):
        m = _two(instance)
        return over_points(instance, lambda a: jax.nn.log_softmax(instance.log_p + a @ m), 1e-7, by_differences(1e-2))

    def of_model(instance, model, contexts):
        vectors = jnp.stack(
            [difference_of_means(model, contexts, w) for w in (instance.contrast, second_contrast(instance))]
        )
        return lambda a: jax.nn.log_softmax(steer(model, contexts, a @ vectors, 1.0))

    def autodiff(instance):
        model, contexts, _ = exact_split(instance)
        return over_points(instance, of_model(instance, model, contexts), 1e-9, by_autodiff)

    @compiled_quickly
    def on_model(instance, model):
        curves = of_model(instance, model, jnp.arange(instance.log_p.shape[0]))
        return over_points(instance, curves, 1e-5, by_differences(3e-2))

    def sweep(swept: Measured):
        return float(on_model(swept.instance, swept.model))

    reading = "1e-7 less the largest error of a second derivative, per unit of each strength times its range"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


def _least_of_covariance(instance: Instance, at, second) -> Float[Array, ""]:
    """Minus the covariance, which is one number for all tokens."""
    return -largest_error(jnp.moveaxis(second, 2, 0), -_covariances(instance, at)[..., None])


def _log_shares(instance: Instance, log_q: Float[Array, "m V"]) -> Float[Array, " m"]:
    return jax.nn.logsumexp(jnp.where(instance.in_target, log_q, -jnp.inf), axis=1)


def _concave(instance: Instance, at, second) -> Float[Array, ""]:
    """Less the largest eigenvalue of the symmetric 2 x 2 matrices."""
    a, b, c = second[0, 0], (second[0, 1] + second[1, 0]) / 2, second[1, 1]
    return -jnp.max((a + c) / 2 + jnp.hypot((a - c) / 2, b))


_E, _M1, _M2 = symbols("E_0:4", positive=True), symbols("M1_0:4", real=True), symbols("M2_0:4", real=True)


def _mixed_derivatives(*, of_target: bool = False) -> tuple[Identity, ...]:
    """Identities of the tilted weights E, which grow at the rates M1 by the first strength, and M2 by the second."""
    by_first, by_second = ({weight: weight * m for weight, m in zip(_E, ms, strict=True)} for ms in (_M1, _M2))
    total = sum(_E)

    def mean(values):
        return sum(weight * x for weight, x in zip(_E, values, strict=True)) / total

    covariance = mean([x * y for x, y in zip(_M1, _M2, strict=True)]) - mean(_M1) * mean(_M2)
    curves = {"the target": (_E[0] + _E[1]) / total} if of_target else {f"token {z}": _E[z] / total for z in range(4)}
    return tuple(
        Identity(f"interference at {name}", derivative(derivative(log_of(share), by_first), by_second), -covariance)
        for name, share in curves.items()
    )


_INTERFERENCE = _interferes(
    r"\frac{\partial^2}{\partial\alpha_i\, \partial\alpha_k} \log \sigma_z = -\operatorname{Cov}_\alpha(M_i, M_k)"
    r"\ \text{for every token}\ z:\ \log \sigma_z\ \text{is concave in}\ \alpha \in \mathbb{R}^k",
    lambda instance, log_q: log_q,
    _least_of_covariance,
    _mixed_derivatives,
)
_INTERFERENCE_TWIN = _interferes(
    r"\log F_T\ \text{is concave in}\ \alpha \in \mathbb{R}^k",
    _log_shares,
    _concave,
    lambda: _mixed_derivatives(of_target=True),
)

# --- near 0: the best strengths --------------------------------------------------------------------------------------

_CANCELLED = 1e-6
"""The share of their ranges that log-odds leave of each other where they count as cancelled."""

_REACH = 1e-3
"""How far log-odds are tilted where only the first order counts, nats."""


def _gains_and_costs(instance: Instance, m, strengths) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Half the target's mean gain of share from minus the strengths to plus them, and the mean KL of both: no expansion."""

    def of_prompt(log_p, a):
        p = jnp.exp(log_p)
        x = a @ (m - (m @ p)[:, None])
        inside = jax.nn.logsumexp(jnp.where(instance.in_target, log_p + jnp.stack([x, -x]), -jnp.inf), axis=1)
        outside = jax.nn.logsumexp(jnp.where(instance.in_target, -jnp.inf, log_p + jnp.stack([x, -x])), axis=1)
        up, down = inside - outside
        gain = -jnp.expm1(down - up) * jax.nn.sigmoid(up) * jax.nn.sigmoid(-down)
        return gain, (jnp.log1p(p @ exp_minus_tangent(x)) + jnp.log1p(p @ exp_minus_tangent(-x))) / 2

    gains, costs = jax.vmap(of_prompt)(instance.log_p, strengths)
    return instance.weights @ gains / 2, instance.weights @ costs


def _kl(log_p, log_q) -> Float[Array, " m"]:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _responses(instance: Instance, m) -> allocation.Response:
    return allocation.response(
        instance.log_p, jnp.broadcast_to(m, (*instance.log_p.shape[:1], *m.shape)), instance.in_target
    )


def _curves_of_strengths(instance: Instance, model, contexts, count: int) -> Callable:
    """Log-probabilities ``[m, V]`` of a model at strengths ``[m, count]`` of its vectors, one row for each prompt."""
    weights = jnp.stack([instance.contrast, second_contrast(instance)])[:count]
    vectors = jnp.stack([difference_of_means(model, contexts, w) for w in weights])

    def of_prompt(context, strengths):
        return jax.nn.log_softmax(steer(model, context[None], strengths @ vectors, 1.0))[0]

    return lambda strengths: jax.vmap(of_prompt)(contexts, strengths)


def _efficiency_near_zero(instance: Instance, curves: Callable, strengths, m) -> Float[Array, ""]:
    """Gain for the root of the cost, from the gradient of the share and the second derivative of KL that curves have."""
    strengths = strengths / jnp.max(jnp.abs(strengths) @ _ranges(m))
    start, zero = curves(jnp.zeros(strengths.shape)), jnp.zeros(())

    def share(t):
        return instance.weights @ jnp.exp(_log_shares(instance, curves(t * strengths)))

    def cost(t):
        return instance.weights @ _kl(start, curves(t * strengths))

    gain, bend = slope(share, zero), slope(lambda t: slope(cost, t), zero)
    # The log-odds have a range of 1 now. A variance or a gain far below that is lost in the rounding of the model.
    above = (bend > 1e-9) & (jnp.abs(gain) > 1e-9)
    return jnp.where(above, gain / jnp.sqrt(jnp.where(above, bend, 1.0) / 2), 0.0)


def _spent_best(tex: str, effects, best, others, *, worth=None) -> Claim:
    """The claim that no strengths gain more of the target for their cost, near 0, than those of a rule.

    Args:
        tex: the claim.
        effects: log-odds of the vectors, ``[k, V]``.
        best: the rule's strengths, of the instance and the response, ``[m, k]``.
        others: strengths to compare with, ``[c, m, k]``.
        worth: the rule's gain for one nat of cost to first order, of the same; None: not claimed.
    """

    def compared(instance, efficiency):
        m = effects(instance)
        response = _responses(instance, m)

        def of(strengths):
            # Vectors that cancel do nothing, and what is left of them is rounding: of gain and of cost.
            left = jnp.max(_ranges(strengths @ m) / jnp.max(jnp.abs(strengths) @ _ranges(m)))
            return jnp.where(left > _CANCELLED, efficiency(strengths, m), 0.0)

        reached, rivals = of(best(instance, response)), jax.vmap(of)(others(instance, response))
        margin = (reached - jnp.max(rivals)) / jnp.maximum(jnp.abs(reached), jnp.max(jnp.abs(rivals)))
        if worth is not None:
            margin = jnp.minimum(margin, -jnp.abs(worth(instance, response) / reached - 1))
        # Nothing is claimed where what the rule does is lost.
        return jnp.where(reached == 0, jnp.inf, margin)

    def instances(instance):
        def efficiency(strengths, m):
            strengths = strengths * _REACH / jnp.max(jnp.abs(strengths) @ _ranges(m))
            gain, cost = _gains_and_costs(instance, m, strengths)
            return gain / jnp.sqrt(cost)

        return compared(instance, efficiency) + 1e-4

    def of_model(instance, model, contexts):
        curves = _curves_of_strengths(instance, model, contexts, effects(instance).shape[0])
        return compared(instance, partial(_efficiency_near_zero, instance, curves))

    def autodiff(instance):
        model, contexts, _ = exact_split(instance)
        return of_model(instance, model, contexts) + 1e-4

    @compiled_quickly
    def on_model(instance, model):
        return of_model(instance, model, jnp.arange(instance.log_p.shape[0])) + 1e-5

    def sweep(swept: Measured):
        return float(on_model(swept.instance, swept.model))

    reading = (
        "by how much the rule gains more for its cost than the best of its rivals, or less the error of its "
        "forecast where there is one, as a share, with 1e-4 for the finite strengths that are compared"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _pooled(instance: Instance, response: allocation.Response) -> allocation.Response:
    """The mean over the prompts, to which one mix for all prompts responds."""
    return allocation.Response(
        instance.weights @ response.gains, jnp.einsum("j,jkl->kl", instance.weights, response.covariance)
    )


def _for_all(instance: Instance, mix: Float[Array, "*c k"]) -> Float[Array, "*c m k"]:
    return jnp.broadcast_to(mix[..., None, :], (*mix.shape[:-1], instance.weights.size, mix.shape[-1]))


def _best_mix(instance: Instance, response: allocation.Response) -> Float[Array, "m k"]:
    return _for_all(instance, allocation.best_mix(*_pooled(instance, response), 1.0))


def _mix_without_signs(instance: Instance, response: allocation.Response) -> Float[Array, "m k"]:
    """The wrong mix: no vector may go against its own gain; then the better one alone, if the best mix asks for it."""
    gains, covariance = _pooled(instance, response)
    best = allocation.best_mix(gains, covariance, 1.0)
    alone = gains / jnp.diagonal(covariance)
    better = jnp.argmax(jnp.abs(gains) / jnp.sqrt(jnp.diagonal(covariance)))
    single = jnp.where(jnp.arange(gains.size) == better, alone, 0.0)
    return _for_all(instance, jnp.where(jnp.all(best * gains >= 0), best, single))


_FAN = np.pi * np.arange(24) / 12


def _mixes(instance: Instance, response: allocation.Response) -> Float[Array, "c m k"]:
    """All ratios of two strengths, evenly in units of their cost."""
    size = jnp.sqrt(jnp.diagonal(_pooled(instance, response).covariance))
    return _for_all(instance, jnp.stack([np.cos(_FAN), np.sin(_FAN)], axis=1) / size)


def _worth_of_mix(instance: Instance, response: allocation.Response) -> Float[Array, ""]:
    return _pooled(instance, response).gains @ _best_mix(instance, response)[0]


def _rule(instance: Instance, response: allocation.Response) -> Float[Array, "m 1"]:
    return allocation.strength_for_each(response.gains[:, 0], response.covariance[:, 0, 0], 1.0, instance.weights)[:, None]


def _constant(instance: Instance) -> Float[Array, "m 1"]:
    return jnp.ones((instance.weights.size, 1))


def _equal_cost(instance: Instance, response: allocation.Response) -> Float[Array, "m 1"]:
    return 1 / jnp.sqrt(response.covariance[:, 0])


def _other_strengths(instance: Instance, response: allocation.Response) -> Float[Array, "c m 1"]:
    """A constant, an equal cost for each prompt, and the rule with one prompt's share changed by a half."""
    m = instance.weights.size
    changed = _rule(instance, response) * (1 + 0.5 * jnp.eye(m)[:4, :, None])
    return jnp.concatenate([jnp.stack([_constant(instance), _equal_cost(instance, response)]), changed])


def _worth_of_rule(instance: Instance, response: allocation.Response) -> Float[Array, ""]:
    return instance.weights @ (response.gains * _rule(instance, response))[:, 0]


def _first(instance: Instance) -> Float[Array, "1 V"]:
    return instance.log_odds[None]


_MIX_TEX = (
    r"\text{to first order}\ \alpha \propto \Sigma^{-1} g,\ g_i = \operatorname{Cov}(1_T, M_i),\ "
    r"\Sigma_{ik} = \operatorname{Cov}(M_i, M_k),\ \text{gains most of}\ T\ \text{for its}\ \operatorname{KL}"
)
_MIX = _spent_best(
    _MIX_TEX + r":\ \sqrt{2 \delta\, g^\top \Sigma^{-1} g}\ \text{for}\ \delta", _two, _best_mix, _mixes, worth=_worth_of_mix
)
_MIX_TWIN = _spent_best(
    _MIX_TEX + r"\ \text{of all mixes in which}\ \alpha_i g_i \ge 0,\ \text{and no other gains more}",
    _two,
    _mix_without_signs,
    _mixes,
)
_RULE = _spent_best(
    r"\text{to first order}\ \alpha_j = c\, \frac{\operatorname{Cov}_j(1_T, M)}{\operatorname{Var}_j(M)}\ \text{gains most}"
    r"\ \text{of}\ T\ \text{for its mean}\ \operatorname{KL}:\ "
    r"\sqrt{2 \delta \textstyle\sum_j \pi_j \operatorname{Cov}_j^2 / \operatorname{Var}_j}\ \text{for}\ \delta",
    _first,
    _rule,
    _other_strengths,
    worth=_worth_of_rule,
)
_RULE_TWIN = _spent_best(
    r"\text{to first order an equal}\ \operatorname{KL}\ \text{for every prompt gains at least as much of}\ T\ "
    r"\text{for its mean}\ \operatorname{KL}\ \text{as one}\ \alpha\ \text{for all}",
    _first,
    _equal_cost,
    lambda instance, response: _constant(instance)[None],
)

# --- at any budget: one strength for all prompts ---------------------------------------------------------------------

_LEVELS = np.array([-8.0, -2.0, -0.5, 0.5, 2.0, 8.0])
"""Strengths in units of 1/R."""

_PATTERN = np.array([1.0, 0.6, 1.4, 0.2, 1.2, 0.9])
"""Factors by which strengths of prompts differ from a common one, in turn."""


def _backwards(log_p, log_q) -> Float[Array, " m"]:
    """``KL(p_alpha || p)``."""
    return _kl(log_q, log_p)


def _steered(instance: Instance, strengths: Float[Array, " m"]) -> Float[Array, "m V"]:
    return jax.nn.log_softmax(instance.log_p + strengths[:, None] * instance.log_odds)


def _constant_of_same_cost(instance: Instance, cost: Callable, strengths: Float[Array, " m"]) -> Float[Array, ""]:
    """The constant that costs what strengths of one sign cost, by bisection.

    The cost increases with the size of the constant, and the constant lies between the strengths.
    """

    def total(strengths):
        return instance.weights @ cost(instance.log_p, _steered(instance, strengths))

    wanted, even, sign = total(strengths), jnp.ones(strengths.shape), jnp.sign(strengths[0])

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        enough = total(sign * middle * even) > wanted
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    ends = jnp.min(jnp.abs(strengths)), jnp.max(jnp.abs(strengths))
    return sign * jax.lax.fori_loop(0, 60, halve, ends)[0]


def _constant_is_best(tex: str, cost: Callable, *, identity: bool) -> Claim:
    """The claim that for a total cost no strengths that differ between prompts reach a larger mean of M than a constant.

    Args:
        tex: the claim.
        cost: of the unsteered and the steered log-probabilities, ``[m, V]`` both, for each prompt.
        identity: claim also how much the others lose: ``sum_j pi_j KL(p_{alpha_j} || p_alpha)`` over alpha.
    """

    def gain(instance, log_q):
        return instance.weights @ (jnp.exp(log_q) @ instance.log_odds)

    def instances(instance):
        def slack(level):
            pattern = jnp.asarray(_PATTERN)[jnp.arange(instance.weights.size) % _PATTERN.size]
            strengths = level / instance.range * pattern
            alpha = _constant_of_same_cost(instance, cost, strengths)
            others, even = _steered(instance, strengths), _steered(instance, alpha * jnp.ones(strengths.shape))
            lead = gain(instance, even) - gain(instance, others)
            margin = jnp.sign(alpha) * lead / instance.range
            if identity:
                lost = instance.weights @ _kl(others, even)
                error = jnp.abs(alpha * lead - lost) / (1 + jnp.abs(alpha) * instance.range)
                margin = jnp.minimum(margin, 1e-11 - error)
            return margin

        return jnp.min(jax.vmap(slack)(jnp.asarray(_LEVELS))) + 1e-11

    def unevenness(instance, model, contexts, v):
        """How far cost and gain are from rising in one ratio for all prompts, as a share of the cost's rise."""

        def curves(alpha):
            return jax.nn.log_softmax(steer(model, contexts, v, alpha))

        def at(alpha):
            rise = slope(lambda a: jnp.exp(curves(a)) @ instance.log_odds, alpha)
            price = slope(lambda a: cost(instance.log_p, curves(a)), alpha)
            common = (instance.weights @ price) / (instance.weights @ rise)
            return jnp.max(jnp.abs(price - common * rise)) / (jnp.max(jnp.abs(price)) + 1e-9 * instance.range)

        return jnp.max(jax.vmap(at)(jnp.asarray(_LEVELS) / instance.range))

    def autodiff(instance):
        return 1e-6 - unevenness(instance, *exact_split(instance))

    @compiled_quickly
    def on_model(instance, model, v):
        return 1e-4 - unevenness(instance, model, jnp.arange(instance.log_p.shape[0]), v)

    def sweep(swept: Measured):
        return float(on_model(swept.instance, swept.model, swept.v))

    reading = (
        "by how much the constant gains more than another pattern of the same cost, in units of R and with 1e-11 "
        "for rounding, or 1e-11 less the relative error of the identity behind it, whichever is less"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


_EVEN_TEX = (
    r"\text{for a total}\ \textstyle\sum_j \pi_j \operatorname{KL}(%s)\ \text{one}\ \alpha > 0\ \text{for all prompts "
    r"reaches the largest}\ \sum_j \pi_j \mathbb{E}_{\alpha_j}[M]"
)
_EVEN = _constant_is_best(_EVEN_TEX % r"p_{j,\alpha_j} \| p_j", _backwards, identity=True)
_EVEN_TWIN = _constant_is_best(_EVEN_TEX % r"p_j \| p_{j,\alpha_j}", _kl, identity=False)

_TABLE = chosen("A2", "not-constant", "positive")


def _second_works(instance: Instance):
    return jnp.where(tilting.is_constant(instance.log_p, _two(instance)[1]), -1.0, 1.0)


_BOTH = {
    **_TABLE,
    "second": Hypothesis(
        "the second vector, which here has the weights of the first moved by one context, does something: its M is not "
        "constant either",
        _second_works,
    ),
}


def _independent(instance: Instance):
    covariance = _pooled(instance, _responses(instance, _two(instance))).covariance
    variances = covariance[0, 0] * covariance[1, 1]
    return 1 - covariance[0, 1] ** 2 / jnp.where(variances > 0, variances, 1) - jnp.where(variances > 0, 1e-9, 2.0)


_APART = {
    **_BOTH,
    "independent": Hypothesis(
        "the log-odds of both vectors are not all but multiples of each other: their squared correlation is below 1 - 1e-9. "
        "Where they are, one vector is as good as both; in between rounding grows with the inverse",
        _independent,
    ),
}

STATEMENTS = (
    Statement(
        id="N23.interference",
        title="Several vectors interfere by their covariance, in the same way for all tokens",
        source="N23",
        claim=_INTERFERENCE,
        twin=_INTERFERENCE_TWIN,
        hypotheses=_BOTH,
        remarks="So, if no combination of the M_i is constant, every token is likeliest at one point of the space of "
        "strengths, if it is anywhere, and falls off from it in every direction. What a second vector adds to the effect of "
        "the first is Cov(1_T, M) under the first.",
        proof="proofs/N23",
    ),
    Statement(
        id="N23.mix",
        title="The mix of vectors that gains most for its cost",
        source="N23",
        claim=_MIX,
        twin=_MIX_TWIN,
        hypotheses=_APART,
        remarks="One mix for all prompts: g and Sigma are means over them. A vector that gains nothing alone may be worth a "
        "negative strength, since it takes away what another one costs.",
        proof="proofs/N23",
    ),
    Statement(
        id="N23.prompts",
        title="The strength for each prompt that gains most for its cost",
        source="N23",
        claim=_RULE,
        twin=_RULE_TWIN,
        hypotheses=_TABLE,
        remarks="The first-order rule. For the mean of M, at any budget, it is one strength for all prompts. An equal KL "
        "for each prompt is neither, and may be worse than a constant.",
        proof="proofs/N23",
    ),
    Statement(
        id="N23.constant",
        title="For the log-odds themselves, one strength for all prompts is best",
        source="N23",
        claim=_EVEN,
        twin=_EVEN_TWIN,
        hypotheses=_TABLE,
        remarks="Negative alpha: the smallest. Not only among strengths: no other distributions of the same total "
        "divergence from the unsteered ones have a larger mean of M (Gibbs).",
        proof="proofs/N23",
    ),
)

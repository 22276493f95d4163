"""N19: before a norm without a bias, steering by normalised states is a tempered tilt. Its limit, a ceiling on a concept."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sympy import Symbol, sqrt, symbols

from theory import tempered
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, largest_error, slope
from theory.statement import Claim, Hypothesis, Statement
from theory.states import STATES_BEFORE_A_NORM, MeasuredStates, States, kinds
from theory.symbolic import Identity

_SIDE = np.array([0.1, 0.5, 1.0, 2.0, 8.0, 100.0])
_STRENGTHS = np.concatenate([-_SIDE, [0.0], _SIDE])
"""Strengths at which the law is checked, in lengths of the longest state."""


def _seen(instance: States) -> Float[Array, ""]:
    return jnp.min(jnp.stack([jnp.minimum(other.length, jnp.min(other.sizes(other.H))) for other in kinds(instance)])) - 1e-6


def _apart(instance: States) -> Float[Array, ""]:
    return jnp.min(jnp.stack([1 - jnp.max(jnp.abs(other.cosines)) for other in kinds(instance)])) - 1e-9


_SEEN = Hypothesis("the norm sees v' and the states: none is 0 (for LayerNorm: less their means)", _seen)
_NOT_PARALLEL = Hypothesis("no state is parallel to v'; a positive eps of the norm will do", _apart)


def _log_odds(instance: States) -> Float[Array, " V"]:
    return instance.contrast @ instance.decode(instance.H)


def _error_scale(instance: States, steered: Float[Array, "m d"]) -> Float[Array, ""]:
    """The scale of rounding errors: the logits, and how much of a state cancels when it is steered."""
    logits = 1 + jnp.max(jnp.linalg.norm(instance.W * instance.gamma, axis=1)) * jnp.sqrt(instance.H.shape[1])
    moved = jnp.max(jnp.abs(steered - instance.H), axis=1) + instance.sizes(instance.H)
    return logits * jnp.max(moved / instance.sizes(steered)) * (1 + 1 / jnp.min(instance.sizes(instance.H)))


def _tilts(tex: str, identities, direction: Callable[[States], Float[Array, " d"]]) -> Claim:
    """The claim that steering along a direction is the tempered tilt by M."""

    def predicted(instance, alpha):
        v, m, log_p = direction(instance), _log_odds(instance), instance.decode(instance.H)
        before, after = instance.sizes(instance.H), instance.sizes(instance.H + alpha * v)
        return jax.vmap(lambda *of_prompt: tempered.log_probabilities(of_prompt[0], m, alpha, *of_prompt[1:]))(
            log_p, before, after
        )

    def measured(instance, alpha):
        return instance.decode(instance.H + alpha * direction(instance))

    def strengths(instance):
        return jnp.max(instance.sizes(instance.H)) / jnp.linalg.norm(direction(instance)) * _STRENGTHS

    def instances(instance):
        def error(instance, alpha):
            scale = _error_scale(instance, instance.H + alpha * direction(instance))
            return largest_error(predicted(instance, alpha), measured(instance, alpha)) / scale

        def worst(instance):
            return jnp.max(jax.vmap(lambda alpha: error(instance, alpha))(strengths(instance)))

        return 1e-11 - jnp.maximum(*[worst(other) for other in kinds(instance)])

    def autodiff(instance):
        """The derivative through the norm against the derivative of the law."""

        def error(instance, alpha):
            left, right = (slope(lambda a, f=f: f(instance, a), alpha) for f in (predicted, measured))
            v = direction(instance)
            steered = instance.H + alpha * v
            turned = jnp.linalg.norm(v) / jnp.min(instance.sizes(steered))
            return largest_error(left, right) / (_error_scale(instance, steered) * turned)

        def worst(instance):
            return jnp.max(jax.vmap(lambda alpha: error(instance, alpha))(strengths(instance)))

        return 1e-10 - jnp.maximum(*[worst(other) for other in kinds(instance)])

    @compiled_quickly
    def on_grid(instance, alphas, curves):
        return 1e-9 - largest_error(jax.vmap(lambda alpha: predicted(instance, alpha))(alphas), curves)

    def sweep(swept: MeasuredStates):
        if direction is not _normalised:
            curves = jax.vmap(lambda alpha: measured(swept.instance, alpha))(jnp.asarray(swept.alphas))
            return float(on_grid(swept.instance, jnp.asarray(swept.alphas), curves))
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.log_probabilities)))

    reading = "1e-11 less the largest error of a log-probability, relative to its size"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


def _normalised(instance: States) -> Float[Array, " d"]:
    return instance.v


def _of_means(instance: States) -> Float[Array, " d"]:
    """The plain difference of means, in units of the mean size: right where all sizes are one."""
    return instance.contrast @ instance.H / jnp.mean(instance.sizes(instance.H))


def _identities(*, normalised: bool = True) -> tuple[Identity, ...]:
    """One logit, ``u . x / ||x||``, of three states of two coordinates; state 0 is steered, the weights are 1, -2, 1."""
    alpha, u = Symbol("alpha"), symbols("u_0:2", real=True)
    states = [symbols(f"h_{j}_0:2", real=True) for j in range(3)]
    sizes = [sqrt(x * x + y * y) for x, y in states]
    logits = [(u[0] * x + u[1] * y) / size for (x, y), size in zip(states, sizes, strict=True)]
    weights = (1, -2, 1)
    v = [
        sum(w * h[i] / (size if normalised else 1) for w, h, size in zip(weights, states, sizes, strict=True))
        for i in (0, 1)
    ]
    steered = [states[0][i] + alpha * v[i] for i in (0, 1)]
    # The size of the steered state divides both sides, and may be any number.
    size = Symbol("r", positive=True)
    m = sum(w * logit for w, logit in zip(weights, logits, strict=True))
    left = (u[0] * steered[0] + u[1] * steered[1]) / size
    return (Identity("steered logit", left, (sizes[0] * logits[0] + alpha * m) / size),)


_TILT_TEX = (
    r"p_\alpha(z \mid c_j) \propto \left(p_j(z)^{\|h_j\|}\, e^{\alpha M(z)}\right)^{1 / \|h_j + \alpha v'\|},\quad v' = "
)
_TILT = _tilts(_TILT_TEX + r"\textstyle\sum_i w_i\, h_i / \|h_i\|,\ M = \sum_i w_i \log p_i", _identities, _normalised)
_TILT_TWIN = _tilts(
    _TILT_TEX + r"\textstyle\sum_i w_i\, h_i / r,\ r\ \text{the mean of all}\ \|h_i\|",
    lambda: _identities(normalised=False),
    _of_means,
)

# --- the limit, and the ceiling --------------------------------------------------------------------------------------

_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 33)[1:-1]
_FAR = 1e9


def _shares(instance: States, log_q: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """Log-odds of the target: they keep their digits where shares do not."""
    inside = jax.nn.logsumexp(jnp.where(instance.target, log_q, -jnp.inf), axis=-1)
    return inside - jax.nn.logsumexp(jnp.where(instance.target, -jnp.inf, log_q), axis=-1)


def _limits(instance: States) -> Float[Array, " 2"]:
    """Log-odds of the target at both ends."""
    ends = jnp.stack([tempered.limit(_log_odds(instance), instance.length, sign) for sign in (1, -1)])
    return _shares(instance, jnp.log(ends))


def _bounded(tex: str, ceiling: Callable[[States], Float[Array, " m"]]) -> Claim:
    """The claim that both limits are as said and that log-odds of the target stay below a ceiling at every strength."""

    def strengths(instance):
        """Even in the angle, so that the whole sweep of each prompt is covered, ``[m, K]``."""
        sizes, cosines = instance.sizes(instance.H), instance.cosines
        middle, width = -cosines * sizes, jnp.sqrt((1 - cosines) * (1 + cosines)) * sizes
        return (middle[:, None] + width[:, None] * np.tan(_ANGLES)) / instance.length

    def measured(instance, alphas):
        """Log-odds of the target along the sweep, ``[m, K]``, and at the far ends, ``[m, 2]``."""
        states = instance.H[:, None] + alphas[..., None] * instance.v
        far = _FAR * jnp.max(instance.sizes(instance.H)) / instance.length * jnp.asarray([1.0, -1.0])
        ends = instance.H[:, None] + far[:, None] * instance.v
        return _shares(instance, instance.decode(states)), _shares(instance, instance.decode(ends))

    def slack(instance, curves, ends):
        scale = _error_scale(instance, instance.H)
        below = jnp.min(ceiling(instance)[:, None] - curves) / scale + ROUNDING
        return jnp.minimum(below, 1e-6 - jnp.max(jnp.abs(ends - _limits(instance))) / scale)

    def instances(instance):
        return jnp.min(jnp.stack([slack(other, *measured(other, strengths(other))) for other in kinds(instance)]))

    def autodiff(instance):
        """The ends as value less slope of the curve in t = 1/alpha, near t = 0: there the curve is straight."""

        def worst(instance):
            def of_inverse(t):
                return _shares(instance, instance.decode(instance.H + instance.v / t))

            tiny = 1e-5 * instance.length / jnp.max(instance.sizes(instance.H))
            ends = [of_inverse(t) - t * slope(of_inverse, t) for t in (tiny, -tiny)]
            return slack(instance, measured(instance, strengths(instance))[0], jnp.stack(ends, axis=-1))

        return jnp.minimum(*[worst(other) for other in kinds(instance)])

    @compiled_quickly
    def on_grid(instance, log_q):
        curves = _shares(instance, log_q)
        return jnp.min(ceiling(instance)[None] - curves) + ROUNDING

    def sweep(swept: MeasuredStates):
        return float(on_grid(swept.instance, jnp.asarray(swept.log_probabilities)))

    reading = (
        "the least slack of the ceiling on the target's log-odds, relative to their size and with 1e-11 for "
        "rounding, or 1e-6 less the relative error of their two limits, whichever is less"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _ceiling_of(instance: States, cosines: Float[Array, " m"]) -> Float[Array, " m"]:
    m, log_p = _log_odds(instance), instance.decode(instance.H)
    return jax.vmap(lambda row, c: tempered.ceiling(row, m, instance.target, instance.length, c))(log_p, cosines)


def _ceiling(instance: States) -> Float[Array, " m"]:
    return _ceiling_of(instance, instance.cosines)


def _ceiling_at_right_angles(instance: States) -> Float[Array, " m"]:
    """The wrong ceiling: as if no state had a part along v'."""
    return _ceiling_of(instance, 0 * instance.cosines)


_CEILING_TEX = (
    r"\lim_{\alpha \to \pm\infty} p_\alpha = \operatorname{softmax}(\pm M / \|v'\|),\quad "
    r"\operatorname{logit} F_T(\alpha) \le \log\tfrac{|T|}{|T^\complement|} + \max_{z \in T,\, y \notin T} "
)
_CEILING = _bounded(
    _CEILING_TEX + r"\sqrt{\frac{\ell^2 - 2 c_j \ell n + n^2}{1 - c_j^2}},\ \ell = \log\tfrac{p_j(z)}{p_j(y)},\ "
    r"n = \tfrac{M(z) - M(y)}{\|v'\|},\ c_j = \cos(h_j, v')",
    _ceiling,
)
_CEILING_TWIN = _bounded(
    _CEILING_TEX + r"\sqrt{\ell^2 + n^2},\ \ell = \log\tfrac{p_j(z)}{p_j(y)},\ n = \tfrac{M(z) - M(y)}{\|v'\|}",
    _ceiling_at_right_angles,
)

STATEMENTS = (
    Statement(
        id="N19.tilt",
        title="Before a norm, steering by normalised states is a tempered tilt",
        source="N19",
        claim=_TILT,
        twin=_TILT_TWIN,
        hypotheses={"seen": _SEEN},
        remarks="The norm has no bias, or one that adds the same to every logit. Sizes are those that the norm divides by: "
        "with its eps, and for LayerNorm less the mean. Weights w are any, and so are the sizes of states and of P and N. "
        "The plain difference of means is this with w_i ||h_i|| for w_i: long states count for more in its log-odds.",
        domain=STATES_BEFORE_A_NORM,
        proof="proofs/N19",
    ),
    Statement(
        id="N19.ceiling",
        title="Strong steering forgets the prompt without collapsing, and a concept's share has a ceiling",
        source="N19",
        claim=_CEILING,
        twin=_CEILING_TWIN,
        hypotheses={"seen": _SEEN, "not-parallel": _NOT_PARALLEL},
        remarks="The limits are the same for every prompt, and every token keeps a share in them. A decoder of two rows, "
        "one for the target's tokens and one for the others, attains the ceiling if h + alpha v' turns as far.",
        domain=STATES_BEFORE_A_NORM,
        proof="proofs/N19",
    ),
)

"""N8: under a final norm a sweep is half a great circle. Its plateaus, how fast they are reached, and how many bumps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from theory import arc, symbolic
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, least, slope
from theory.norms import ANGLES, NORMS, MeasuredNorm, NormInstance, kinds
from theory.statement import Claim, Statement
from theory.statements.n7_norm import NOT_PARALLEL, decodes_to, size_of

# --- the arc ---------------------------------------------------------------------------------------------------------


def _on_arc(instance: NormInstance, alpha):
    """The logits on the arc, from two unembeddings: of the directions at angles 0 and pi/2."""
    path = instance.arc
    return arc.arc_logits(path, arc.theta_of_alpha(path, alpha))


def _on_arc_from_zero(instance: NormInstance, alpha):
    path = instance.arc
    return arc.arc_logits(path, jnp.arctan(alpha / path.width))


_ARC_TEX = r"\operatorname{logit}_z = A_z \cos\theta + B_z \sin\theta + c_z,\quad \alpha = "
_ARC = decodes_to(_ARC_TEX + r"m_0 + \sqrt{L} \tan\theta", symbolic.IDENTITIES["N8.arc"], _on_arc)
_ARC_TWIN = decodes_to(_ARC_TEX + r"\sqrt{L} \tan\theta", symbolic.TWINS["N8.arc"], _on_arc_from_zero)

# --- the plateau -----------------------------------------------------------------------------------------------------

_TIMES = np.array([1.0001, 3.0, 10.0, 100.0, 1e3])
"""Strengths at which plateaus are checked, as multiples of the one from which the bound holds."""


def _error_of_derivative(instance: NormInstance, coefficient: Float[Array, " V"]) -> Float[Array, ""]:
    """How far the derivatives of the logits by 1/alpha, at both ends, are from the coefficient."""
    size, condition = size_of(instance)
    scale = arc.plateau_rate(instance.arc).beyond
    errors = [
        jnp.abs(slope(lambda t: instance.decode(1 / t), sign * 1e-6 / scale) * sign - coefficient) for sign in (1.0, -1.0)
    ]
    return jnp.max(jnp.stack(errors)) / (scale * size * condition)


def _room_for_remainder(instance: NormInstance, coefficient: Float[Array, " V"]) -> Float[Array, ""]:
    """The least margin of the remainder's bound over the remainder, at the strength from which the bound holds."""
    rate, (size, condition) = arc.plateau_rate(instance.arc), size_of(instance)
    t = 1 / (_TIMES[0] * rate.beyond)
    points, weights = np.polynomial.legendre.leggauss(12)

    def remainder(sign):
        """The difference between the logits and the line that their plateau and the coefficient make."""
        slopes = jax.vmap(lambda share: slope(lambda t: instance.decode(sign / t), share * t))
        added = slopes(jnp.asarray((points + 1) / 2)) - coefficient
        return t * jnp.tensordot(jnp.asarray(weights / 2), added, axes=1)

    most = jnp.max(jnp.abs(jax.vmap(remainder)(jnp.asarray([1.0, -1.0]))), axis=0)
    return jnp.min(rate.remainder * t**2 - most) / size + 1e-10 * condition


def _approaches(tex: str, identities, coefficient: Callable[[NormInstance], Float[Array, " V"]]) -> Claim:
    """The claim that logits approach their plateaus like ``coefficient / |alpha|``, with the remainder of `plateau_rate`."""

    def slack(instance, alpha, logits):
        path = instance.arc
        rate = arc.plateau_rate(path)
        ends = jnp.where(alpha > 0, arc.plateau(path, 1), arc.plateau(path, -1))
        error = jnp.abs(logits - ends - coefficient(instance) / jnp.abs(alpha))
        bound = rate.remainder / alpha**2
        size, condition = size_of(instance)
        inside = jnp.abs(alpha) >= rate.beyond
        return least((bound - error) / size + 1e-12 * condition, inside & jnp.isfinite(error))

    def far(instance):
        beyond = arc.plateau_rate(instance.arc).beyond
        return jnp.concatenate([-_TIMES, _TIMES]) * beyond

    def instances(instance):
        def worst(instance):
            return jnp.min(jax.vmap(lambda alpha: slack(instance, alpha, instance.decode(alpha)))(far(instance)))

        return jnp.minimum(*[worst(other) for other in kinds(instance)])

    def autodiff(instance):
        """In t = 1/|alpha|, the coefficient is the derivative at 0, and what else it adds up to is at most K t^2."""

        def slack_near_infinity(instance):
            line = coefficient(instance)
            return jnp.minimum(1e-4 - _error_of_derivative(instance, line), _room_for_remainder(instance, line))

        return jnp.min(jnp.stack([slack_near_infinity(other) for other in kinds(instance)]))

    @compiled_quickly
    def on_grid(instance, alphas, logits):
        return jnp.min(jax.vmap(lambda alpha, row: slack(instance, alpha, row))(alphas, logits))

    def sweep(swept: MeasuredNorm):
        away = swept.alphas != 0
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas[away]), jnp.asarray(swept.logits[away])))

    reading = (
        "the least slack of the bound on what a logit's approach to its plateau leaves, relative to the size of the"
        " logits, with 1e-12 for rounding, times how much the norm magnifies it"
    )
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


def _from_whole_state(instance: NormInstance):
    """The wrong coefficient: of h where it should be the part of h across v."""
    h, v = instance.centred
    return jnp.sqrt(h.size) * (instance.W * instance.gamma) @ h / jnp.linalg.norm(v)


_PLATEAU_TEX = (
    r"\left|\operatorname{logit}_z(\alpha) \mp B_z - c_z - \frac{C_z}{|\alpha|}\right| \le \frac{K_z}{\alpha^2}"
    r"\ \text{as}\ \alpha \to \pm\infty,\quad C_z = \sqrt{d}\, (\gamma \odot w_z) \cdot "
)
_PLATEAU = _approaches(
    _PLATEAU_TEX + r"\frac{h_\perp}{\|v\|},\quad h_\perp = h - \frac{h \cdot v}{\|v\|^2} v",
    symbolic.IDENTITIES["N8.plateau"],
    lambda instance: arc.plateau_rate(instance.arc).coefficient,
)
_PLATEAU_TWIN = _approaches(_PLATEAU_TEX + r"\frac{h}{\|v\|}", symbolic.TWINS["N8.plateau"], _from_whole_state)

# --- bumps -----------------------------------------------------------------------------------------------------------


def _unbiased(instance: NormInstance) -> NormInstance:
    return NormInstance(instance.W, instance.gamma, jnp.zeros_like(instance.bias), instance.h, instance.v, instance.kind)


def _ahead(logits: Float[Array, "K V"]) -> Bool[Array, "K V"]:
    """True where a token's logit is at least the mean logit, as the greedy token's always is."""
    q = jax.nn.softmax(logits)
    return logits >= jnp.sum(q * logits, axis=-1, keepdims=True)


_FINE = np.linspace(-1.5, 1.5, 61)


def _concave_while_ahead() -> Claim:
    def on_arc(instance):
        path = instance.arc
        return jax.vmap(lambda theta: arc.arc_logits(path, theta))(jnp.asarray(_FINE))

    def second_differences(values):
        return values[2:] - 2 * values[1:-1] + values[:-2]

    def instances(instance):
        instance = _unbiased(instance)
        logits = on_arc(instance)
        ahead = _ahead(logits)
        bent = second_differences(jax.nn.log_softmax(logits)) / (_FINE[1] - _FINE[0]) ** 2
        within = ahead[2:] & ahead[1:-1] & ahead[:-2]
        return least(-bent / size_of(instance)[0], within) + ROUNDING

    def autodiff(instance):
        instance = _unbiased(instance)
        path, (size, condition) = instance.arc, size_of(instance)

        def log_q(theta):
            return jax.nn.log_softmax(instance.decode(arc.alpha_of_theta(path, theta)))

        thetas = jnp.asarray(ANGLES[1:-1])
        bent = jax.vmap(lambda theta: slope(lambda t: slope(log_q, t), theta))(thetas)
        ahead = _ahead(jax.vmap(lambda theta: instance.decode(arc.alpha_of_theta(path, theta)))(thetas))
        return least(-bent / (size * condition), ahead) + 1e-8

    @compiled_quickly
    def on_sweep(instance, alphas, logits):
        """Secants in the angle of the measured log-probabilities decrease while the token is ahead."""
        theta = arc.theta_of_alpha(instance.arc, alphas)
        log_q = jax.nn.log_softmax(logits - instance.W @ instance.bias)
        slopes = jnp.diff(log_q, axis=0) / jnp.diff(theta)[:, None]
        ahead = _ahead(logits - instance.W @ instance.bias)
        return least(-jnp.diff(slopes, axis=0), ahead[2:] & ahead[1:-1] & ahead[:-2])

    def sweep(swept: MeasuredNorm):
        return float(on_sweep(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits))) + 1e-8

    return Claim(
        r"c = 0,\ \operatorname{logit}_z \ge \mathbb{E}_\theta[\operatorname{logit}] \implies "
        r"\frac{d^2}{d\theta^2} \log \sigma_z = "
        r"-\left(\operatorname{logit}_z - \mathbb{E}_\theta[\operatorname{logit}]\right)"
        r" - \operatorname{Var}_\theta\left(\tfrac{d}{d\theta} \operatorname{logit}\right) \le 0:\ "
        r"\text{a token has at most one bump while it is the likeliest}",
        instances,
        autodiff,
        sweep,
        reading=(
            "the least downward curvature of a log-probability along the arc while its logit is above the mean, "
            "relative to the size of the logits, with 1e-11 for rounding"
        ),
    )


def _one_bump_everywhere() -> Claim:
    """The wrong survival of theorem 3.3: no token has two bumps on the arc. Margins: 1.5 less the number of bumps."""

    def rises_then_falls(slopes: Float[Array, "K V"]):
        """How often the sign of slopes goes from + to -, zeros left out of the count."""
        return jnp.sum((slopes[:-1] > 0) & (slopes[1:] < 0), axis=0)

    def instances(instance):
        return 1.5 - jnp.max(arc.bumps(_unbiased(instance).arc, points=256))

    def autodiff(instance):
        instance = _unbiased(instance)
        path = instance.arc

        def log_q(theta):
            return jax.nn.log_softmax(instance.decode(arc.alpha_of_theta(path, theta)))

        slopes = jax.vmap(lambda theta: slope(log_q, theta))(jnp.asarray(_FINE))
        return 1.5 - jnp.max(rises_then_falls(jnp.where(jnp.abs(slopes) > 1e-6, slopes, 0)))

    def sweep(swept: MeasuredNorm):
        slopes = np.diff(swept.log_probabilities, axis=0)
        return float(1.5 - np.max(rises_then_falls(jnp.where(np.abs(slopes) > 1e-9, slopes, 0))))

    return Claim(r"\text{every token has at most one bump on}\ (-\pi/2, \pi/2)", instances, autodiff, sweep)


STATEMENTS = (
    Statement(
        id="N8.arc",
        title="A sweep is half a great circle",
        source="N8",
        claim=_ARC,
        twin=_ARC_TWIN,
        hypotheses=NOT_PARALLEL,
        remarks="Two unembeddings give the logits at every strength.",
        domain=NORMS,
        proof="proofs/N8",
        figure="arc",
    ),
    Statement(
        id="N8.plateau",
        title="The plateau, its rate and its leading coefficient",
        source="N8",
        claim=_PLATEAU,
        twin=_PLATEAU_TWIN,
        hypotheses=NOT_PARALLEL,
        remarks="Both plateaus are approached with the same coefficient: from h only the part across v is left.",
        domain=NORMS,
        proof="proofs/N8",
        figure="arc",
    ),
    Statement(
        id="N8.bumps",
        title="One bump while ahead, many bumps in all",
        source="N8",
        claim=_concave_while_ahead(),
        twin=_one_bump_everywhere(),
        hypotheses=NOT_PARALLEL,
        remarks="What is left of theorem 3.3 under a norm without bias. Over the whole arc a token can have as many bumps "
        "as there are valleys between the other tokens: V - 2 at least.",
        domain=NORMS,
        proof="proofs/N8",
        figure="arc",
    ),
)

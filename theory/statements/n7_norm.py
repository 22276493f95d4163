"""N7 and N8: steering before a final norm. A rational-quadratic law, an arc, its plateaus, and how many bumps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from theory import arc, symbolic
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, largest_error, least, slope
from theory.norms import ANGLES, NORMS, MeasuredNorm, Normed, kinds
from theory.statement import Claim, Hypothesis, Statement

_PROOF = "normalised"


def _turned(one: Normed):
    """1 less the cosine between h and v, in the norm's eyes, squared: 0 where they are parallel and there is no arc."""

    def share(one):
        h, v = one.centred
        return 1 - (h @ v) ** 2 / ((h @ h) * (v @ v))

    return jnp.minimum(*[share(other) for other in kinds(one)]) - 1e-9


NOT_PARALLEL = {
    "not-parallel": Hypothesis(
        "h and v are not parallel, and neither is 0 (for LayerNorm: less their means); else the arc is two points",
        _turned,
    )
}


def _strengths(one: Normed):
    return arc.alpha_of_theta(one.arc, jnp.asarray(ANGLES))


def size_of(one: Normed):
    """What rounding is relative to: the logits, and how far h and v are from parallel."""
    bends = one.arc
    return 1 + jnp.max(jnp.hypot(bends.A, bends.B)) + jnp.max(jnp.abs(bends.c)), 1 / jnp.sqrt(_turned(one) + 1e-9)


def _decodes_to(tex: str, identities, closed_form: Callable[[Normed, Float[Array, ""]], Float[Array, " V"]]) -> Claim:
    """The claim that the logits through the norm are those of a closed form of the instance and the strength."""

    def instances(one):
        def error(one):
            logits = jax.vmap(one.decode)(_strengths(one))
            size, steep = size_of(one)
            closed = jax.vmap(lambda alpha: closed_form(one, alpha))(_strengths(one))
            return largest_error(logits, closed) / (size * steep)

        return 1e-11 - jnp.maximum(*[error(other) for other in kinds(one)])

    def autodiff(one):
        def error(one):
            width, (size, steep) = one.arc.width, size_of(one)

            def at(alpha):
                measured = slope(one.decode, alpha)
                return largest_error(measured, slope(lambda a: closed_form(one, a), alpha)) * width / (size * steep)

            return jnp.max(jax.vmap(at)(_strengths(one)))

        return 1e-10 - jnp.maximum(*[error(other) for other in kinds(one)])

    @compiled_quickly
    def on_grid(one, alphas, logits):
        size, steep = size_of(one)
        return 1e-10 - largest_error(logits, jax.vmap(lambda alpha: closed_form(one, alpha))(alphas)) / (size * steep)

    def sweep(swept: MeasuredNorm):
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    return Claim(tex, instances, autodiff, sweep, identities=identities)


# --- N7: the law -----------------------------------------------------------------------------------------------------


def _law(one: Normed, alpha):
    found = arc.law(one.W, one.gamma, one.bias, one.h, one.v, kind=one.kind)
    return arc.law_logits(found, alpha)


def _law_of_wrong_width(one: Normed, alpha):
    h, v = one.centred
    found = arc.law(one.W, one.gamma, one.bias, one.h, one.v, kind=one.kind)
    width = jnp.sqrt((h @ h) / (v @ v))
    # The height of the curve at its centre is right, so that only the width is wrong.
    return arc.law_logits(found._replace(width=width), alpha)


_LAW_TEX = (
    r"\operatorname{logit}_z(\alpha) = \frac{\beta_z + a_z \alpha}{\sqrt{1 + (\alpha - m_0)^2 / L}} + c_z,"
    r"\quad m_0 = -\frac{h \cdot v}{\|v\|^2},\quad L = "
)
_LAW = _decodes_to(_LAW_TEX + r"\frac{\|h\|^2 \|v\|^2 - (h \cdot v)^2}{\|v\|^4}", symbolic.IDENTITIES["N7"], _law)
_LAW_TWIN = _decodes_to(_LAW_TEX + r"\frac{\|h\|^2}{\|v\|^2}", symbolic.TWINS["N7"], _law_of_wrong_width)

# --- N8: the arc -----------------------------------------------------------------------------------------------------


def _on_arc(one: Normed, alpha):
    """From two unembeddings: of the directions at angles 0 and pi/2."""
    bends = one.arc
    return arc.arc_logits(bends, arc.theta_of_alpha(bends, alpha))


def _on_arc_from_zero(one: Normed, alpha):
    bends = one.arc
    return arc.arc_logits(bends, jnp.arctan(alpha / bends.width))


_ARC_TEX = r"\operatorname{logit}_z = A_z \cos\theta + B_z \sin\theta + c_z,\quad \alpha = "
_ARC = _decodes_to(_ARC_TEX + r"m_0 + \sqrt{L} \tan\theta", symbolic.IDENTITIES["N8.arc"], _on_arc)
_ARC_TWIN = _decodes_to(_ARC_TEX + r"\sqrt{L} \tan\theta", symbolic.TWINS["N8.arc"], _on_arc_from_zero)

# --- N8: the plateau -------------------------------------------------------------------------------------------------

_TIMES = np.array([1.01, 3.0, 10.0, 100.0, 1e3])
"""Strengths at which plateaus are checked, as multiples of the one from which the bound holds."""


def _approaches(tex: str, identities, coefficient: Callable[[Normed], Float[Array, " V"]]) -> Claim:
    """The claim that logits approach their plateaus like ``coefficient / |alpha|``, with the remainder of `plateau_rate`."""

    def slack(one, alpha, logits):
        bends = one.arc
        rate = arc.plateau_rate(bends)
        ends = jnp.where(alpha > 0, arc.plateau(bends, 1), arc.plateau(bends, -1))
        error = jnp.abs(logits - ends - coefficient(one) / jnp.abs(alpha))
        bound = rate.remainder / alpha**2
        size, steep = size_of(one)
        inside = jnp.abs(alpha) >= rate.beyond
        return least((bound - error) / size + 1e-12 * steep, inside & jnp.isfinite(error))

    def far(one):
        beyond = arc.plateau_rate(one.arc).beyond
        return jnp.concatenate([-_TIMES, _TIMES]) * beyond

    def instances(one):
        def worst(one):
            return jnp.min(jax.vmap(lambda alpha: slack(one, alpha, one.decode(alpha)))(far(one)))

        return jnp.minimum(*[worst(other) for other in kinds(one)])

    def autodiff(one):
        """In t = 1/alpha, the logits have the plateau as value and the coefficient as derivative at 0, from both sides."""

        def error(one):
            def of_inverse(t):
                return one.decode(1 / t)

            bends, (size, steep) = one.arc, size_of(one)
            scale = arc.plateau_rate(bends).beyond
            t = 1e-6 / scale
            errors = [
                jnp.abs(slope(of_inverse, sign * t) * sign - coefficient(one)) / (scale * size * steep)
                for sign in (1.0, -1.0)
            ]
            return jnp.max(jnp.stack(errors))

        return 1e-4 - jnp.maximum(*[error(other) for other in kinds(one)])

    @compiled_quickly
    def on_grid(one, alphas, logits):
        return jnp.min(jax.vmap(lambda alpha, row: slack(one, alpha, row))(alphas, logits))

    def sweep(swept: MeasuredNorm):
        away = swept.alphas != 0
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas[away]), jnp.asarray(swept.logits[away])))

    return Claim(tex, instances, autodiff, sweep, identities=identities)


def _from_whole_state(one: Normed):
    """The wrong coefficient: of h where it should be the part of h across v."""
    h, v = one.centred
    return jnp.sqrt(h.size) * (one.W * one.gamma) @ h / jnp.linalg.norm(v)


_PLATEAU_TEX = (
    r"\left|\operatorname{logit}_z(\alpha) \mp B_z - c_z - \frac{C_z}{|\alpha|}\right| \le \frac{K_z}{\alpha^2}"
    r"\ \text{as}\ \alpha \to \pm\infty,\quad C_z = \sqrt{d}\, (\gamma \odot w_z) \cdot "
)
_PLATEAU = _approaches(
    _PLATEAU_TEX + r"\frac{h_\perp}{\|v\|},\quad h_\perp = h - \frac{h \cdot v}{\|v\|^2} v",
    symbolic.IDENTITIES["N8.plateau"],
    lambda one: arc.plateau_rate(one.arc).coefficient,
)
_PLATEAU_TWIN = _approaches(_PLATEAU_TEX + r"\frac{h}{\|v\|}", symbolic.TWINS["N8.plateau"], _from_whole_state)

# --- N8: bumps -------------------------------------------------------------------------------------------------------


def _unbiased(one: Normed) -> Normed:
    return Normed(one.W, one.gamma, jnp.zeros_like(one.bias), one.h, one.v, one.kind)


def _ahead(logits: Float[Array, "K V"]) -> Bool[Array, "K V"]:
    """Where a token's logit is at least the mean logit: the greedy token's always is."""
    q = jax.nn.softmax(logits)
    return logits >= jnp.sum(q * logits, axis=-1, keepdims=True)


_FINE = np.linspace(-1.5, 1.5, 61)


def _concave_while_ahead() -> Claim:
    def on_arc(one):
        bends = one.arc
        return jax.vmap(lambda theta: arc.arc_logits(bends, theta))(jnp.asarray(_FINE))

    def second_differences(values):
        return values[2:] - 2 * values[1:-1] + values[:-2]

    def instances(one):
        one = _unbiased(one)
        logits = on_arc(one)
        ahead = _ahead(logits)
        bent = second_differences(jax.nn.log_softmax(logits)) / (_FINE[1] - _FINE[0]) ** 2
        within = ahead[2:] & ahead[1:-1] & ahead[:-2]
        return least(-bent / size_of(one)[0], within) + ROUNDING

    def autodiff(one):
        one = _unbiased(one)
        bends, (size, steep) = one.arc, size_of(one)

        def log_q(theta):
            return jax.nn.log_softmax(one.decode(arc.alpha_of_theta(bends, theta)))

        thetas = jnp.asarray(ANGLES[1:-1])
        bent = jax.vmap(lambda theta: slope(lambda t: slope(log_q, t), theta))(thetas)
        ahead = _ahead(jax.vmap(lambda theta: one.decode(arc.alpha_of_theta(bends, theta)))(thetas))
        return least(-bent / (size * steep), ahead) + 1e-8

    @compiled_quickly
    def on_sweep(one, alphas, logits):
        """Secants in the angle of the measured log-probabilities decrease while the token is ahead."""
        theta = arc.theta_of_alpha(one.arc, alphas)
        log_q = jax.nn.log_softmax(logits - one.W @ one.bias)
        steep = jnp.diff(log_q, axis=0) / jnp.diff(theta)[:, None]
        ahead = _ahead(logits - one.W @ one.bias)
        return least(-jnp.diff(steep, axis=0), ahead[2:] & ahead[1:-1] & ahead[:-2])

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
    )


def _one_bump_everywhere() -> Claim:
    """The wrong survival of theorem 3.3: no token has two bumps on the arc. Margins: 1.5 less the number of bumps."""

    def rises_then_falls(steep: Float[Array, "K V"]):
        """How often the sign of slopes goes from + to -, zeros left out of the count."""
        return jnp.sum((steep[:-1] > 0) & (steep[1:] < 0), axis=0)

    def instances(one):
        return 1.5 - jnp.max(arc.bumps(_unbiased(one).arc, points=256))

    def autodiff(one):
        one = _unbiased(one)
        bends = one.arc

        def log_q(theta):
            return jax.nn.log_softmax(one.decode(arc.alpha_of_theta(bends, theta)))

        steep = jax.vmap(lambda theta: slope(log_q, theta))(jnp.asarray(_FINE))
        return 1.5 - jnp.max(rises_then_falls(jnp.where(jnp.abs(steep) > 1e-6, steep, 0)))

    def sweep(swept: MeasuredNorm):
        steep = np.diff(swept.log_probabilities, axis=0)
        return float(1.5 - np.max(rises_then_falls(jnp.where(np.abs(steep) > 1e-9, steep, 0))))

    return Claim(r"\text{every token has at most one bump on}\ (-\pi/2, \pi/2)", instances, autodiff, sweep)


STATEMENTS = (
    Statement(
        id="N7",
        title="The rational-quadratic law",
        source="N7",
        claim=_LAW,
        twin=_LAW_TWIN,
        hypotheses=NOT_PARALLEL,
        remarks="Preference odds, the difference of two logits, follow the same law: the validity decay of "
        "arXiv:2602.02343 with exponent 1/2, and its centre and width in closed form. LayerNorm: with h and v less their "
        "means; its bias gives c.",
        domain=NORMS,
        proof=_PROOF,
        figure="arc",
    ),
    Statement(
        id="N8.arc",
        title="A sweep is half a great circle",
        source="N8",
        claim=_ARC,
        twin=_ARC_TWIN,
        hypotheses=NOT_PARALLEL,
        remarks="Two unembeddings give the logits at every strength.",
        domain=NORMS,
        proof=_PROOF,
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
        proof=_PROOF,
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
        proof=_PROOF,
        figure="arc",
    ),
)

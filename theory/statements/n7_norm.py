"""N7: steering before a final norm gives every logit a rational-quadratic law."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from theory import arc, symbolic
from theory._compilation import compiled_quickly
from theory.claims import largest_error, slope
from theory.norms import ANGLES, NORMS, MeasuredNorm, NormInstance, kinds
from theory.statement import Claim, Hypothesis, Statement


def _turned(instance: NormInstance):
    """1 less the cosine between h and v, in the norm's eyes, squared: 0 where they are parallel and there is no arc."""

    def share(instance):
        h, v = instance.centred
        return 1 - (h @ v) ** 2 / ((h @ h) * (v @ v))

    return jnp.minimum(*[share(other) for other in kinds(instance)]) - 1e-9


NOT_PARALLEL = {
    "not-parallel": Hypothesis(
        "h and v are not parallel, and neither is 0 (for LayerNorm: less their means); else the arc is two points",
        _turned,
    )
}


def _strengths(instance: NormInstance):
    return arc.alpha_of_theta(instance.arc, jnp.asarray(ANGLES))


def size_of(instance: NormInstance):
    """The scale of rounding errors: the logits, and how far h and v are from parallel."""
    path = instance.arc
    return 1 + jnp.max(jnp.hypot(path.A, path.B)) + jnp.max(jnp.abs(path.c)), 1 / jnp.sqrt(_turned(instance) + 1e-9)


def decodes_to(tex: str, identities, closed_form: Callable[[NormInstance, Float[Array, ""]], Float[Array, " V"]]) -> Claim:
    """The claim that the logits through the norm are those of a closed form of the instance and the strength."""

    def instances(instance):
        def error(instance):
            logits = jax.vmap(instance.decode)(_strengths(instance))
            size, condition = size_of(instance)
            closed = jax.vmap(lambda alpha: closed_form(instance, alpha))(_strengths(instance))
            return largest_error(logits, closed) / (size * condition)

        return 1e-11 - jnp.maximum(*[error(other) for other in kinds(instance)])

    def autodiff(instance):
        def error(instance):
            width, (size, condition) = instance.arc.width, size_of(instance)

            def at(alpha):
                measured = slope(instance.decode, alpha)
                return largest_error(measured, slope(lambda a: closed_form(instance, a), alpha)) * width / (size * condition)

            return jnp.max(jax.vmap(at)(_strengths(instance)))

        return 1e-10 - jnp.maximum(*[error(other) for other in kinds(instance)])

    @compiled_quickly
    def on_grid(instance, alphas, logits):
        size, condition = size_of(instance)
        return 1e-10 - largest_error(logits, jax.vmap(lambda alpha: closed_form(instance, alpha))(alphas)) / (
            size * condition
        )

    def sweep(swept: MeasuredNorm):
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    reading = (
        "1e-11 less the largest error of a logit, relative to the size of the logits and to how much the norm "
        "magnifies rounding"
    )
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


def _law(instance: NormInstance, alpha):
    law = arc.law(instance.W, instance.gamma, instance.bias, instance.h, instance.v, kind=instance.kind)
    return arc.law_logits(law, alpha)


def _law_of_wrong_width(instance: NormInstance, alpha):
    h, v = instance.centred
    law = arc.law(instance.W, instance.gamma, instance.bias, instance.h, instance.v, kind=instance.kind)
    width = jnp.sqrt((h @ h) / (v @ v))
    # The height of the curve at its centre is right, so that only the width is wrong.
    return arc.law_logits(law._replace(width=width), alpha)


_LAW_TEX = (
    r"\operatorname{logit}_z(\alpha) = \frac{\beta_z + a_z \alpha}{\sqrt{1 + (\alpha - m_0)^2 / L}} + c_z,"
    r"\quad m_0 = -\frac{h \cdot v}{\|v\|^2},\quad L = "
)
_LAW = decodes_to(_LAW_TEX + r"\frac{\|h\|^2 \|v\|^2 - (h \cdot v)^2}{\|v\|^4}", symbolic.IDENTITIES["N7"], _law)
_LAW_TWIN = decodes_to(_LAW_TEX + r"\frac{\|h\|^2}{\|v\|^2}", symbolic.TWINS["N7"], _law_of_wrong_width)

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
        proof="proofs/N7",
        figure="arc",
    ),
)

"""N11: how fast the prompt is forgotten through blocks. The leading coefficient of proposition 4.1's rate."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from theory._compilation import compiled_quickly
from theory.blocks import TRANSFORMERS, MeasuredTransformer, SteeredTransformer, kinds, on_both_sides
from theory.claims import largest_error, slope
from theory.statement import Claim, Hypothesis, Statement
from theory.statements.proposition_4_1 import NEEDS
from ufm.transformer import added_in_the_limit

_NEAR = 1e-4
"""1/alpha at which the coefficient is read off, in units of 1/scale."""


def _coefficient(instance: SteeredTransformer, sign: int) -> Float[Array, "m V"]:
    """The derivative of norm and unembedding at +-v along h and what blocks add in the limit."""
    return _along(instance, sign, added_in_the_limit(instance.model, sign * instance.v))


def _without_blocks(instance: SteeredTransformer, sign: int) -> Float[Array, "m V"]:
    return _along(instance, sign, jnp.zeros_like(instance.v))


def _along(instance: SteeredTransformer, sign: int, added: Float[Array, " d"]) -> Float[Array, "m V"]:
    last = instance.states[:, -1]
    exact = replace(instance.model, eps=0.0)
    return slope(lambda t: exact.unembed(sign * instance.v + t * (last + added)), jnp.zeros(()))


def _size(instance: SteeredTransformer) -> Float[Array, ""]:
    """The largest that a coefficient could be, by the bound of proposition 4.1."""
    return jnp.max(instance.bound(instance.scale)) * instance.scale


def _approaches(tex: str, coefficient: Callable[[SteeredTransformer, int], Float[Array, "m V"]]) -> Claim:
    """The claim that |alpha| times the distance from the limit tends to `coefficient`, on both sides."""

    def instances(instance):
        def error(instance):
            def scaled(t):
                return (instance.decode(1 / t) - instance.limit(1)) / t

            # Twice the value at half the distance less the value: what is of first order in t goes.
            at, at_half = jax.vmap(scaled)(jnp.asarray([1.0, 0.5]) * _NEAR / instance.scale)
            return largest_error(2 * at_half - at, coefficient(instance, 1)) / _size(instance)

        return 1e-5 - jnp.max(jnp.stack([on_both_sides(error, other) for other in kinds(instance)]))

    def autodiff(instance):
        """In t = 1/|alpha| the logits have the coefficient as derivative at 0."""

        def error(instance):
            measured = slope(lambda t: instance.decode(1 / t), 1e-6 / instance.scale)
            return largest_error(measured, coefficient(instance, 1)) / _size(instance)

        return 1e-4 - jnp.max(jnp.stack([on_both_sides(error, other) for other in kinds(instance)]))

    @compiled_quickly
    def at_the_ends(instance, alphas, logits):
        def off(k, sign):
            return jnp.abs(alphas[k]) * (logits[:, k] - instance.limit(sign)) - coefficient(instance, sign)

        return 1e-3 - jnp.max(jnp.abs(jnp.stack([off(-1, 1), off(0, -1)]))) / _size(instance)

    def sweep(swept: MeasuredTransformer):
        return float(at_the_ends(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    reading = (
        "1e-5 less the largest error of the leading coefficient of a logit's distance to its limit, relative to its size"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


_TEX = (
    r"|\alpha| \left(\operatorname{logit}_z(c, \alpha) - y^\pm_z\right) \to D y^\pm_z\left[r^\pm_c\right],\quad "
    r"y(x) = W \left(\gamma \odot \operatorname{norm}(x) + b\right),\ y^\pm = y(\pm v),\quad r^\pm_c = h_c"
)

STATEMENTS = (
    Statement(
        id="N11",
        title="How fast the prompt is forgotten",
        source="N11",
        claim=_approaches(_TEX + r" + \sum_{\text{blocks}} f(\operatorname{norm}(\pm v))", _coefficient),
        twin=_approaches(_TEX, _without_blocks),
        hypotheses={
            **NEEDS,
            "everywhere": Hypothesis(
                "v is added at every position: attentions would go on to read the prompt from the others",
                lambda instance: jnp.ones(()) if instance.where is None else jnp.min(jnp.where(instance.where, 1.0, -1.0)),
            ),
        },
        remarks="What the blocks add in the limit does not depend on the prompt. So if v is added at every position, two "
        "prompts differ by their states alone: |alpha| times the difference of their logits tends to the derivative along "
        "the difference of h. After the last block it is N8.plateau. A softcap belongs to y. What blocks do has to be "
        "continuous, no more.",
        domain=TRANSFORMERS,
        proof="proofs/N11",
    ),
)

"""N11: how fast the prompt is forgotten through blocks. The leading coefficient of proposition 4.1's rate."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from theory._compilation import compiled_quickly
from theory.blocks import TRANSFORMERS, MeasuredPush, Pushed, kinds, on_both_sides
from theory.claims import largest_error, slope
from theory.statement import Claim, Statement
from theory.statements.proposition_4_1 import NEEDS
from ufm.transformer import added_in_the_limit

_NEAR = 1e-4
"""1/alpha at which the coefficient is read off, in units of 1/scale."""


def _coefficient(one: Pushed, sign: int) -> Float[Array, "m V"]:
    """The derivative of norm and unembedding at +-v along h and what blocks add in the limit."""
    return _along(one, sign, added_in_the_limit(one.model, sign * one.v))


def _without_blocks(one: Pushed, sign: int) -> Float[Array, "m V"]:
    return _along(one, sign, jnp.zeros_like(one.v))


def _along(one: Pushed, sign: int, added: Float[Array, " d"]) -> Float[Array, "m V"]:
    last = one.states[:, -1]
    exact = replace(one.model, eps=0.0)
    return slope(lambda t: exact.unembed(sign * one.v + t * (last + added)), jnp.zeros(()))


def _size(one: Pushed) -> Float[Array, ""]:
    """The largest that a coefficient could be, by the bound of proposition 4.1."""
    return jnp.max(one.bound(one.scale)) * one.scale


def _approaches(tex: str, coefficient: Callable[[Pushed, int], Float[Array, "m V"]]) -> Claim:
    """The claim that |alpha| times the distance from the limit tends to `coefficient`, on both sides."""

    def instances(one):
        def error(one):
            def scaled(t):
                return (one.decode(1 / t) - one.limit(1)) / t

            # Twice the value at half the distance less the value: what is of first order in t goes.
            at, at_half = jax.vmap(scaled)(jnp.asarray([1.0, 0.5]) * _NEAR / one.scale)
            return largest_error(2 * at_half - at, coefficient(one, 1)) / _size(one)

        return 1e-5 - jnp.max(jnp.stack([on_both_sides(error, other) for other in kinds(one)]))

    def autodiff(one):
        """In t = 1/|alpha| the logits have the coefficient as derivative at 0."""

        def error(one):
            measured = slope(lambda t: one.decode(1 / t), 1e-6 / one.scale)
            return largest_error(measured, coefficient(one, 1)) / _size(one)

        return 1e-4 - jnp.max(jnp.stack([on_both_sides(error, other) for other in kinds(one)]))

    @compiled_quickly
    def at_the_ends(one, alphas, logits):
        def off(k, sign):
            return jnp.abs(alphas[k]) * (logits[:, k] - one.limit(sign)) - coefficient(one, sign)

        return 1e-3 - jnp.max(jnp.abs(jnp.stack([off(-1, 1), off(0, -1)]))) / _size(one)

    def sweep(swept: MeasuredPush):
        return float(at_the_ends(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    return Claim(tex, instances, autodiff, sweep)


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
        hypotheses=NEEDS,
        remarks="What the blocks add in the limit does not depend on the prompt, so that two prompts differ by their "
        "states alone: |alpha| times the difference of their logits tends to the derivative along the difference of h. "
        "After the last block it is N8.plateau. A softcap belongs to y.",
        domain=TRANSFORMERS,
        proof="normalised",
    ),
)

"""N9: the curvature of KL by steering, without a sweep, in any model that is smooth in its hidden state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import symbolic
from theory._compilation import compiled_quickly
from theory.blocks import TRANSFORMERS, MeasuredPush, Pushed, kinds
from theory.claims import largest_error, slope
from theory.statement import Claim, Statement
from ufm import curvature
from ufm.measures import kl

_PLACES = np.array([-1, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1])
"""Strengths of a fine sweep, as shares of the largest."""

_INVERSE = np.linalg.inv(np.vander(_PLACES, increasing=True))
"""From values at these places to the coefficients of the polynomial through them."""


def _contexts(one: Pushed):
    return jnp.arange(one.model.tokens.shape[0])


def _closed_form(one: Pushed) -> Float[Array, " m"]:
    return curvature(one.model, _contexts(one), one.v)


def _uncentred(one: Pushed) -> Float[Array, " m"]:
    """With F = diag(p): the second moment of the slopes, where their variance is meant."""
    zero = jnp.zeros(())
    p, slopes = jax.nn.softmax(one.decode(zero)), slope(one.decode, zero)
    return jnp.sum(p * slopes**2, axis=-1) / 2


def _scale(one: Pushed) -> Float[Array, ""]:
    """A strength that is small for the logits and for every norm."""
    slopes = slope(one.decode, jnp.zeros(()))
    return 3e-3 * jnp.minimum(1 / jnp.max(jnp.ptp(slopes, axis=-1)), one.scale)


def _size(one: Pushed) -> Float[Array, ""]:
    """What errors are relative to: the largest that the curvature could be, by the range of the slopes."""
    return jnp.max(jnp.ptp(slope(one.decode, jnp.zeros(())), axis=-1)) ** 2 / 8


def _quadratic(tex: str, coefficient: Callable[[Pushed], Float[Array, " m"]], identities) -> Claim:
    """The claim that KL grows by ``coefficient alpha^2`` near 0."""

    def off(one, alphas, logits):
        """The polynomial through KL / alpha^2 at `_PLACES` of some strength, ``[m, K, V]``, has the coefficient at 0."""
        base = one.decode(jnp.zeros(()))
        squares = kl(base[:, None], logits) / alphas**2
        return largest_error(squares @ _INVERSE[0], coefficient(one)) / _size(one)

    def instances(one):
        def error(one):
            alphas = _scale(one) * _PLACES
            return off(one, alphas, jnp.moveaxis(jax.vmap(one.decode)(alphas), 0, 1))

        return 1e-6 - jnp.max(jnp.stack([error(other) for other in kinds(one)]))

    def autodiff(one):
        """The first derivative of KL at 0 is 0, the second twice the coefficient."""

        def error(one):
            base, zero = one.decode(jnp.zeros(())), jnp.zeros(())

            def grown(alpha):
                return kl(base, one.decode(alpha))

            first, second = jax.jvp(lambda alpha: slope(grown, alpha), (zero,), (jnp.ones(()),))
            return jnp.maximum(
                jnp.max(jnp.abs(first)) / jnp.sqrt(_size(one)), largest_error(second / 2, coefficient(one)) / _size(one)
            )

        return 1e-9 - jnp.max(jnp.stack([error(other) for other in kinds(one)]))

    @compiled_quickly
    def on_grid(one):
        alphas = _scale(one) * _PLACES
        steered = one.states[:, None] + alphas[:, None, None] * one.v
        return 1e-6 - off(one, alphas, one.model.decode(steered))

    def sweep(swept: MeasuredPush):
        return float(on_grid(swept.instance))

    return Claim(tex, instances, autodiff, sweep, identities=identities)


_TEX = (
    r"\mathrm{KL}(p \,\|\, p_\alpha) = \tfrac12\, v^\top J^\top F J v\, \alpha^2 + o(\alpha^2),\quad "
    r"F = \operatorname{diag}(p)"
)

STATEMENTS = (
    Statement(
        id="N9",
        title="Curvature without a sweep",
        source="N9",
        claim=_quadratic(_TEX + r" - p p^\top", _closed_form, symbolic.IDENTITIES["N9"]),
        twin=_quadratic(_TEX, _uncentred, symbolic.TWINS["N9"]),
        hypotheses={},
        remarks="J is the Jacobian of the logits by the hidden state: one Jacobian-vector product gives the coefficient, "
        "half the variance of the slopes of the logits. Curvatures of the logits play no part. Averaged over text that "
        "the model itself draws, it is the coefficient of Delta CE, which then has no linear term; in the unconstrained "
        "features model it is theorem 3.8.",
        domain=TRANSFORMERS,
        proof="proofs/N9",
    ),
)

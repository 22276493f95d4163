"""N9: the curvature of KL by steering, without a sweep, in any model that is smooth in its hidden state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import symbolic
from theory._compilation import compiled_quickly
from theory.blocks import TRANSFORMERS, MeasuredTransformer, SteeredTransformer, kinds
from theory.claims import largest_error, slope
from theory.statement import Claim, Statement
from ufm import curvature
from ufm.distributions import kl

_PLACES = np.array([-1, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1])
"""Strengths of a fine sweep, as shares of the largest."""

_INVERSE = np.linalg.inv(np.vander(_PLACES, increasing=True))
"""A matrix that maps values at these places to the coefficients of the polynomial through them."""


def _contexts(instance: SteeredTransformer):
    return jnp.arange(instance.model.tokens.shape[0])


def _closed_form(instance: SteeredTransformer) -> Float[Array, " m"]:
    return curvature(instance.model, _contexts(instance), instance.v)


def _uncentred(instance: SteeredTransformer) -> Float[Array, " m"]:
    """The twin with F = diag(p): the second moment of the slopes in place of their variance."""
    zero = jnp.zeros(())
    p, slopes = jax.nn.softmax(instance.decode(zero)), slope(instance.decode, zero)
    return jnp.sum(p * slopes**2, axis=-1) / 2


def _scale(instance: SteeredTransformer) -> Float[Array, ""]:
    """A strength that is small for the logits and for every norm."""
    slopes = slope(instance.decode, jnp.zeros(()))
    return 3e-3 * jnp.minimum(1 / jnp.max(jnp.ptp(slopes, axis=-1)), instance.scale)


def _size(instance: SteeredTransformer) -> Float[Array, ""]:
    """The scale of errors: the largest that the curvature could be, by the range of the slopes."""
    return jnp.max(jnp.ptp(slope(instance.decode, jnp.zeros(())), axis=-1)) ** 2 / 8


def _quadratic(tex: str, coefficient: Callable[[SteeredTransformer], Float[Array, " m"]], identities) -> Claim:
    """The claim that KL grows by ``coefficient alpha^2`` near 0."""

    def off(instance, alphas, logits):
        """The polynomial through KL / alpha^2 at `_PLACES` of some strength, ``[m, K, V]``, has the coefficient at 0."""
        base = instance.decode(jnp.zeros(()))
        squares = kl(base[:, None], logits) / alphas**2
        return largest_error(squares @ _INVERSE[0], coefficient(instance)) / _size(instance)

    def instances(instance):
        def error(instance):
            alphas = _scale(instance) * _PLACES
            return off(instance, alphas, jnp.moveaxis(jax.vmap(instance.decode)(alphas), 0, 1))

        return 1e-6 - jnp.max(jnp.stack([error(other) for other in kinds(instance)]))

    def autodiff(instance):
        """The first derivative of KL at 0 is 0, the second twice the coefficient."""

        def error(instance):
            base, zero = instance.decode(jnp.zeros(())), jnp.zeros(())

            def grown(alpha):
                return kl(base, instance.decode(alpha))

            first, second = jax.jvp(lambda alpha: slope(grown, alpha), (zero,), (jnp.ones(()),))
            return jnp.maximum(
                jnp.max(jnp.abs(first)) / jnp.sqrt(_size(instance)),
                largest_error(second / 2, coefficient(instance)) / _size(instance),
            )

        return 1e-9 - jnp.max(jnp.stack([error(other) for other in kinds(instance)]))

    @compiled_quickly
    def on_grid(instance):
        alphas = _scale(instance) * _PLACES
        steered = instance.states[:, None] + alphas[:, None, None] * instance.v
        return 1e-6 - off(instance, alphas, instance.model.decode(steered))

    def sweep(swept: MeasuredTransformer):
        return float(on_grid(swept.instance))

    reading = (
        "1e-6 less the error of the coefficient of α² in KL, as a share of the largest that the range of the slopes allows"
    )
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


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

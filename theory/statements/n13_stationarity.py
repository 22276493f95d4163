"""N13: where training is at rest, steering costs a divergence, whatever the gap; weight decay adds one known term."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, slope
from theory.statement import Claim, Hypothesis, Statement
from theory.trained import IMPERFECT, Imperfect, MeasuredImperfect, cross_entropy
from ufm import UFM, cross_entropy_increase, steer

_PROOF = "proofs/N13"
_STRENGTHS = np.array([-10, -3, -1, -0.1, 0.1, 1, 3, 10])
"""In units of 1/R."""


def _range(instance: Imperfect) -> Float[Array, ""]:
    """R: the range of what the direction adds to the logits, nats."""
    return jnp.max(instance.tilts) - jnp.min(instance.tilts)


def slope_at_zero(instance: Imperfect) -> Float[Array, ""]:
    """``sum_j dCE/dh_j . v``, the slope of the cross-entropy at strength 0, nats per unit of strength."""
    return jnp.dot(jnp.sum(instance.gradient, axis=1), instance.v)


def slope_from_decay(instance: Imperfect) -> Float[Array, ""]:
    """``-lambda <sum_j h_j, v>``: what the slope is where training with weight decay lambda on H is at rest."""
    return -instance.decay[1] * jnp.dot(jnp.sum(instance.H, axis=1), instance.v)


def _steered_cross_entropy(instance: Imperfect) -> Callable[[Float[Array, ""]], Float[Array, ""]]:
    """The cross-entropy as a function of the strength, through the split of the model."""
    contexts = jnp.arange(instance.log_p.shape[0])

    def value(alpha):
        return cross_entropy(instance, jax.nn.log_softmax(steer(instance.network, contexts, instance.v, alpha)))

    return value


# --- divergence ------------------------------------------------------------------------------------------------------


def divergence(instance: Imperfect, alpha: Float[Array, ""]) -> Float[Array, ""]:
    """``sum_j pi_j KL(q_j || q_{j, alpha})``, q the model's own probabilities, nats."""

    def context(log_q):
        return jnp.dot(jnp.exp(log_q), log_q - tilting.log_probabilities(log_q, instance.tilts, alpha))

    return jnp.dot(instance.weights, jax.vmap(context)(instance.log_q))


def _grows_by(tex: str, identities, linear: Callable[[Imperfect], Float[Array, ""]]) -> Claim:
    """The claim that Delta CE is the divergence of the model from its steered self, plus alpha times a slope."""

    def instances(instance):
        def error(t):
            alpha = t / _range(instance)
            log_q = jax.vmap(lambda row: tilting.log_probabilities(row, instance.tilts, alpha))(instance.log_q)
            increase = cross_entropy(instance, log_q) - cross_entropy(instance, instance.log_q)
            return jnp.abs(increase - divergence(instance, alpha) - alpha * linear(instance))

        return 1e-9 - jnp.max(jax.vmap(error)(jnp.asarray(_STRENGTHS)))

    def autodiff(instance):
        """The slope through the model: at 0 it is the linear term, and from there it grows as that of the divergence."""
        value, spread = _steered_cross_entropy(instance), _range(instance)

        def error(t):
            alpha = t / spread
            means = jax.vmap(lambda row: tilting.mean(row, instance.tilts, alpha))(instance.log_q)
            grown = jnp.dot(instance.weights, means - jnp.exp(instance.log_q) @ instance.tilts)
            return jnp.abs(slope(value, alpha) - grown - linear(instance)) / spread

        return 1e-9 - jnp.max(jax.vmap(error)(jnp.asarray([0.0, *_STRENGTHS])))

    @compiled_quickly
    def expected(instance, alphas):
        return jax.vmap(lambda alpha: divergence(instance, alpha) + alpha * linear(instance))(alphas)

    def sweep(swept: MeasuredImperfect):
        instance = swept.instance
        assert isinstance(instance.network, UFM)
        increase = cross_entropy_increase(instance.network, swept.corpus, instance.v, swept.alphas)
        return float(1e-7 - np.abs(np.asarray(increase - expected(instance, jnp.asarray(swept.alphas)))).max())

    reading = "1e-9 less the largest difference, in nats, between ΔCE and the divergence with the linear term"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


def _at_rest(instance: Imperfect) -> Float[Array, ""]:
    """Positive where the slope of the loss, weight decay included, is 0 along v, as a sum over contexts."""
    total = jnp.sum(instance.gradient + instance.decay[1] * instance.H, axis=1)
    return 1e-10 * (1 + jnp.max(jnp.abs(instance.v))) - jnp.abs(jnp.dot(total, instance.v))


# --- slope -----------------------------------------------------------------------------------------------------------


def _slope_at_most(tex: str, bound: Callable[[Imperfect], Float[Array, ""]]) -> Claim:
    """The claim that the slope at 0 is at most `bound`, in size."""

    def instances(instance):
        return (bound(instance) - jnp.abs(slope_at_zero(instance))) / _range(instance) + ROUNDING

    def autodiff(instance):
        """The slope by the gradient that JAX takes by the hidden states of the model."""

        def loss(H):
            return cross_entropy(instance, jax.nn.log_softmax(UFM(instance.W, H).decode(H.T)))

        total = jnp.sum(jax.grad(loss)(instance.H), axis=1)
        return (bound(instance) - jnp.abs(jnp.dot(total, instance.v))) / _range(instance) + ROUNDING

    @compiled_quickly
    def left(instance, measured):
        return (bound(instance) - jnp.abs(measured)) / _range(instance)

    def sweep(swept: MeasuredImperfect):
        """The slope as a central difference, corrected by that of three times the step; its error is of fourth order."""
        instance, h = swept.instance, 1e-3
        steps = np.array([-3 * h, -h, h, 3 * h])
        far_down, down, up, far_up = np.asarray(cross_entropy_increase(instance.network, swept.corpus, instance.v, steps))
        measured = (27 * (up - down) - (far_up - far_down)) / (48 * h)
        return float(left(instance, measured)) + 1e-9

    reading = "the slack of the bound on the slope of ΔCE at 0, in units of R, with 1e-11 for rounding"
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def slope_bound(instance: Imperfect) -> Float[Array, ""]:
    """``R sqrt(gap / 2)``: no slope is larger, whatever the model (Pinsker), nats per unit of strength."""
    return _range(instance) * jnp.sqrt(instance.gap / 2)


_MOVES = {
    "moves": Hypothesis(
        "the direction moves the logits of some tokens further than those of others: R > 0",
        lambda instance: _range(instance) - 1e-9,
    )
}
_TEX = (
    r"\sum_j \nabla_{h_j}\!\left(\mathrm{CE} + \tfrac{\lambda}{2} \|H\|^2\right) \cdot v = 0 \implies "
    r"\Delta\mathrm{CE}(\alpha) = \sum_j \pi_j \operatorname{KL}(q_j \,\|\, q_{j,\alpha})"
)
_SLOPE_TEX = r"\left|\frac{d}{d\alpha} \Delta\mathrm{CE}(0)\right|"

STATEMENTS = (
    Statement(
        id="N13.divergence",
        title="Stationarity replaces the gap",
        source="N13",
        claim=_grows_by(
            _TEX + r" - \alpha \lambda \langle \sum_j h_j, v \rangle,\quad q_j = \sigma(W h_j)",
            symbolic.IDENTITIES["N13.divergence"],
            lambda instance: slope_from_decay(instance),
        ),
        twin=_grows_by(_TEX, symbolic.TWINS["N13.divergence"], lambda instance: jnp.zeros(())),
        hypotheses={
            "at-rest": Hypothesis(
                "training, with its weight decay, is at rest along v: the gradients by the hidden states, summed over "
                "contexts, have no component along v",
                _at_rest,
            ),
            **_MOVES,
        },
        domain=IMPERFECT,
        remarks="No gap 0, and no condition on the width: the model's own probabilities q take the place of the corpus's. "
        "Without weight decay there is no linear term; Delta CE is convex in any case.",
        proof=_PROOF,
    ),
    Statement(
        id="N13.slope",
        title="The slope at 0 is bounded by the gap",
        source="N13",
        claim=_slope_at_most(
            _SLOPE_TEX + r" \le R \sqrt{\mathrm{gap} / 2},\quad R = \max_z (W v)_z - \min_z (W v)_z",
            lambda instance: slope_bound(instance),
        ),
        twin=_slope_at_most(
            _SLOPE_TEX + r" \le \tfrac12 R \sqrt{\mathrm{gap}}",
            lambda instance: _range(instance) * jnp.sqrt(instance.gap) / 2,
        ),
        hypotheses=_MOVES,
        domain=IMPERFECT,
        remarks="For any model with a linear decoder, trained or not. The constant is the best one: two halves of the "
        "vocabulary at even odds, a little off.",
        proof=_PROOF,
    ),
)

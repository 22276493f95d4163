"""Preference and utility of paired answers, and the objectives that train updates for them (W, arXiv:2602.02343).

A question has an answer that shows a concept (positive) and one that does not (negative). Their mean cross-entropies per
token, L_p and L_n, say which of the two a model prefers, and how likely it finds the two together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ufm._check import in_range, require, typed
from ufm.precision import wide


class Answers(NamedTuple):
    """How likely paired answers are.

    Attributes:
        positive, negative: log-probability of each answer, summed over its tokens, nats, ``[*n]``.
        tokens_positive, tokens_negative: how many tokens each has, ``[*n]``.
    """

    positive: Float[Array, "*n"]
    negative: Float[Array, "*n"]
    tokens_positive: Float[Array, "*n"]
    tokens_negative: Float[Array, "*n"]

    @property
    def loss_positive(self) -> Float[Array, "*n"]:
        """L_p, nats per token."""
        return -self.positive / self.tokens_positive

    @property
    def loss_negative(self) -> Float[Array, "*n"]:
        """L_n, nats per token."""
        return -self.negative / self.tokens_negative

    @property
    def swapped(self) -> "Answers":
        """These answers with the other one as the positive one."""
        return Answers(self.negative, self.positive, self.tokens_negative, self.tokens_positive)


@typed
def preference_odds(loss_positive: Float[Array, "*n"], loss_negative: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``PrefOdds = L_n - L_p``, nats (W), in float32 at least.

    Raises:
        ValueError: losses of two shapes; outside transformations, losses that are negative or not finite.
    """
    loss_positive, loss_negative = _losses(loss_positive, loss_negative)
    return loss_negative - loss_positive


@typed
def utility_odds(loss_positive: Float[Array, "*n"], loss_negative: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``UtilOdds = log((e^-L_p + e^-L_n) / (1 - e^-L_p - e^-L_n))``, nats (W).

    NaN where it is undefined, because ``e^-L_p + e^-L_n`` is not below 1: mean losses per token are not those of one event.

    Raises:
        ValueError: as `preference_odds`.
    """
    loss_positive, loss_negative = _losses(loss_positive, loss_negative)
    both = jnp.logaddexp(-loss_positive, -loss_negative)
    defined = both < 0
    return jnp.where(defined, both - jnp.log(-jnp.expm1(jnp.where(defined, both, -1.0))), jnp.nan)


def _losses(positive: Float[Array, "..."], negative: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The checked losses of both answers, in float32 at least."""
    shape = np.shape(positive)
    require(np.shape(negative) == shape, "loss_negative", f"shape {shape}, as loss_positive has", np.shape(negative))
    for name, loss in (("loss_positive", positive), ("loss_negative", negative)):
        in_range(name, loss, "finite losses of at least 0", lambda x: np.all(np.isfinite(x) & (np.asarray(x) >= 0)))
    return wide(positive), wide(negative)


@typed
def sft(answers: Answers) -> Float[Array, "*n"]:
    """Supervised fine-tuning: ``L_p``."""
    return answers.loss_positive


@typed
def split(
    answers: Answers,
    *,
    weight_positive: float = 1.0,
    weight_negative: float = 0.5,
    gamma: float = 8.0,
    theta: float = 0.3,
) -> Float[Array, "*n"]:
    """SPLIT: ``weight_positive L_p + weight_negative L_n + gamma relu(theta - (L_n - L_p))`` (W).

    The losses of both answers keep utility, the hinge asks for a preference of theta nats per token and no more.

    Args:
        answers: of the model with the update.
        weight_positive, weight_negative: lambda_p and lambda_n.
        gamma: of the hinge.
        theta: the preference from which on the hinge is 0, nats per token.
    """
    p, n = answers.loss_positive, answers.loss_negative
    return weight_positive * p + weight_negative * n + gamma * jax.nn.relu(theta - (n - p))


@typed
def reps(answers: Answers, reference: Answers, *, scale: float = 1.0) -> Float[Array, "*n"]:
    """One side of RePS: ``-log sigmoid(w / |y_p| log p(y_p) - 1 / |y_n| log p(y_n))`` (W).

    ``w = max(scale (log p_ref(y_n) - log p_ref(y_p)), 1)`` is the larger the less likely the model finds the positive answer
    unsteered. It is a constant: no gradient flows through it.

    Args:
        answers: of the model with the update.
        reference: of the model without.
        scale: of the weight.

    Raises:
        ValueError: a scale that is not above 0.
    """
    require(scale > 0, "scale", "a number above 0", scale)
    weight = lax.stop_gradient(jnp.maximum(scale * (reference.negative - reference.positive), 1.0))
    return jax.nn.softplus(weight * answers.loss_positive - answers.loss_negative)

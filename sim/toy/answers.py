"""Preference and utility of two answers of one token, in a UFM and behind a norm: where the validity decay of W comes from.

Steered along a difference of means, the preference of a UFM is a straight line in the strength (N6). Behind a norm it is the
line times ``(1 + (m - centre)^2 / width^2)^(-1/2)``, and a constant (N7): the form that W fits to language models, with the
exponent 1/2, and the centre and width of the hidden state and the steering vector.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from theory import arc
from ufm import (
    Answers,
    FreeFeatures,
    NormalisedUFM,
    Steerable,
    contrast,
    contrastive,
    difference_of_means,
    fit,
    init,
    init_normalised,
    preference_odds,
    sweep,
    uniform,
    utility_odds,
)

UFM, NORMALISED = "UFM", "normalised UFM"
"""Names of the models."""

_WIDTHS = np.linspace(-10, 10, 401)
"""Strengths, in widths from the centre, as far as where the norm's curve is nearly flat."""


def run(seed: int = 0) -> xr.Dataset:
    """Two models of the default corpus, steered from its second concept to its first; a context of the second (in float64).

    The answers are a token of the first concept and one of the second.

    Args:
        seed: of the initial parameters.

    Returns:
        "preference" and "utility" in nats, by model (`UFM`, `NORMALISED`) and strength, in units of each model's difference
        of means; "law", N7's closed form of the normalised model's preference, by strength. The attributes are its "centre",
        "width" and "exponent"; "answers" (tokens) and "context"; and "gaps", of the two models.
    """
    corpus, (target, opposite) = uniform(), (0, 1)
    key = jax.random.key(seed)
    starts: tuple[FreeFeatures, ...] = init(key, corpus, 16), init_normalised(key, corpus, 16, biased=True)
    fits = [fit(corpus, tolerance=1e-8, start=start) for start in starts]
    normalised = fits[1].model
    assert isinstance(normalised, NormalisedUFM)
    contexts, weights = jnp.arange(corpus.n_contexts), contrast(corpus.n_contexts, *contrastive(corpus, target, opposite))
    context, answers = int(corpus.contexts_of(opposite)[0]), [int(corpus.concepts.members(k)[0]) for k in (target, opposite)]

    v = difference_of_means(normalised, contexts, weights)
    law = arc.law(normalised.W, normalised.gamma, normalised.bias, normalised.H[:, context], v, kind=normalised.kind)
    strengths = float(law.centre) + float(law.width) * _WIDTHS
    swept = [
        answered(fitted.model, context, difference_of_means(fitted.model, contexts, weights), strengths, *answers)
        for fitted in fits
    ]
    losses = [(answer.loss_positive, answer.loss_negative) for answer in swept]
    logits = np.asarray(jax.vmap(lambda alpha: arc.law_logits(law, alpha))(jnp.asarray(strengths)))
    return xr.Dataset(
        {
            "preference": (("model", "strength"), np.stack([preference_odds(*pair) for pair in losses])),
            "utility": (("model", "strength"), np.stack([utility_odds(*pair) for pair in losses])),
            "law": ("strength", logits[:, answers[0]] - logits[:, answers[1]]),
        },
        coords={"model": [UFM, NORMALISED], "strength": strengths},
        attrs={
            "centre": float(law.centre),
            "width": float(law.width),
            "exponent": 0.5,
            "answers": answers,
            "context": context,
            "gaps": [fitted.gap for fitted in fits],
        },
    )


def answered(model: Steerable, context: int, v, alphas, positive: int, negative: int) -> Answers:
    """Log-probabilities of two answers of one token, by strength, ``[K]``.

    Args:
        model: a split model.
        context: its index.
        v: steering vector, ``[d]``.
        alphas: strengths, ``[K]``.
        positive, negative: the tokens that are the answers.
    """
    tokens = jnp.asarray([positive, negative])
    alphas = jnp.asarray(alphas)
    log_q = sweep(model, jnp.asarray([context]), v, alphas, lambda logits, _: jax.nn.log_softmax(logits)[tokens])[0]
    return Answers(log_q[:, 0], log_q[:, 1], jnp.ones_like(alphas), jnp.ones_like(alphas))

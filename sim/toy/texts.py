"""Texts of many steps in the toy: the next context is the token just written, and responses add up (N21)."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from theory import chains
from ufm import contrast, contrastive, difference_of_means, fit, sweep, uniform
from ufm._check import typed
from ufm.directions import contrast_of_rows

STEPS = (1, 2, 4, 8, 32)
"""Lengths of the texts."""


@typed
def run(epsilon: float = 0.05, strengths: int = 161, reach: float = 1.5) -> xr.Dataset:
    """The share of the target in the last token of texts, by their length and the strength.

    Unsteered texts are stationary. A chain of nine tokens in three concepts is trained on, one context for each token; the
    steered chain is read off the model, and walked.

    Args:
        epsilon: probability that the next token leaves the concept.
        strengths: how many.
        reach: the largest.

    Returns:
        "predicted" (of the corpus) and "measured" (of the model), by length and strength; "slope" at 0 by length, in units
        of that of one step, and "amplification", what N21 says of it.
    """
    corpus = uniform(epsilon=epsilon, length=1)
    model = fit(corpus).model
    contexts, target = jnp.arange(corpus.n_contexts), jnp.asarray(corpus.concepts.of_token == 0)
    weights = contrast(corpus.n_contexts, *contrastive(corpus, 0, 1))
    v, m = difference_of_means(model, contexts, weights), contrast_of_rows(corpus.log_p, weights)
    alphas = np.linspace(-reach, reach, strengths)
    log_q = jnp.asarray(corpus.log_p)
    start = chains.stationary(log_q)
    chains_of_model = sweep(model, contexts, v, jnp.asarray(alphas), lambda logits, _: jax.nn.log_softmax(logits))

    def walked(chain):
        return chains.shares(chain, target, start, max(STEPS))[jnp.asarray(STEPS) - 1]

    predicted = jax.vmap(lambda alpha: walked(chains.steered(log_q, m, alpha)))(jnp.asarray(alphas))
    measured = jax.vmap(walked)(jnp.moveaxis(chains_of_model, 1, 0))
    slopes = chains.response(log_q, m, target, start, max(STEPS))
    inside, outside = chains.two_shares(log_q, target)
    eigenvalue = float(inside[0] - outside[0])
    return xr.Dataset(
        {
            "predicted": (("length", "alpha"), np.asarray(predicted).T),
            "measured": (("length", "alpha"), np.asarray(measured).T),
            "slope": ("length", np.asarray(slopes)[np.asarray(STEPS) - 1] / float(slopes[0])),
            "amplification": ("length", np.asarray(chains.amplification(eigenvalue, jnp.asarray(STEPS)))),
        },
        coords={"length": list(STEPS), "alpha": alphas},
        attrs={"eigenvalue": eigenvalue, "epsilon": epsilon},
    )

"""How often the share of a set of tokens turns as the strength grows: once for each change of membership but one (N16)."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import xarray as xr

from theory import predicted
from ufm import Concepts, concept_increase, contrast, difference_of_means, fit, from_table
from ufm._check import typed
from ufm.directions import contrast_of_rows

SETS = ((5,), (1,), (1, 5), (1, 3), (1, 3, 5))
"""Sets of tokens whose membership changes once to five times along the order of M."""


@typed
def run(sharpness: float = 3.0, strengths: int = 241) -> xr.Dataset:
    """The shares of five sets of tokens after one context of a model of six tokens, by the strength.

    The log-odds of the tokens are evenly spaced and their log-probabilities lie on a parabola, so that each is the likeliest
    over a stretch of strengths.

    Args:
        sharpness: how fast the parabola falls, nats.
        strengths: how many.

    Returns:
        "predicted" and "measured", by set and strength; "changes" of membership and "turns" of the predicted curve, by set.
    """
    k = np.arange(6) - 2.5
    rows = np.stack([k / 2, -k / 2, -sharpness * k**2 / 2])
    table = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    alphas = np.linspace(-3.6, 3.6, strengths) * sharpness
    curves = []
    fitted, weights, contexts = None, contrast(3, [0], [1]), jnp.arange(3)
    for members in SETS:
        inside = np.isin(np.arange(6), members).astype(int)
        corpus = from_table(table, Concepts(inside), [0, 1, 1])
        # The corpus differs in its concepts alone, which training does not see.
        fitted = fit(corpus) if fitted is None else fitted
        v, m = difference_of_means(fitted.model, contexts, weights), contrast_of_rows(corpus.log_p, weights)
        size, share = int(inside.sum()), float(table[2] @ inside)
        curves.append(
            (
                share + size * np.asarray(predicted.concept_increase(corpus, [2], m, alphas))[0, :, 1],
                share + size * np.asarray(concept_increase(fitted.model, [2], v, alphas, corpus.concepts))[0, :, 1],
            )
        )
    expected, measured = (np.stack(each) for each in zip(*curves, strict=True))
    inside = np.array([np.isin(np.arange(6), members) for members in SETS])
    return xr.Dataset(
        {
            "predicted": (("set", "alpha"), expected),
            "measured": (("set", "alpha"), measured),
            "changes": ("set", np.abs(np.diff(inside.astype(int), axis=1)).sum(axis=1)),
            "turns": ("set", [_turns(curve) for curve in expected]),
        },
        coords={"set": [", ".join(str(1 + z) for z in members) for members in SETS], "alpha": alphas},
    )


def _turns(curve: np.ndarray) -> int:
    steps = np.diff(curve)
    signs = np.sign(steps[np.abs(steps) > 1e-12])
    return sum(int(a != b) for a, b in pairwise(signs))

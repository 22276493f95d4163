"""The cost of steering on text: the increase of the cross-entropy, what is known of it without a sweep (S, theorem 3.8)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.measure.losses import Text, loss_increases, loss_moments
from ufm._check import require
from ufm.distributions import variance

TEXTS = ("written", "held out", "training")
"""Text that the model wrote, that it has not seen, that it was trained on."""


def texts(
    lm: LanguageModel,
    held_out: Int[np.ndarray, " n"],
    training: Int[np.ndarray, " N"],
    rows: int,
    length: int,
    seed: int = 0,
) -> dict[str, Text]:
    """Sequences of ``2 length`` tokens, of which the second half counts; the model goes on from the first half of others.

    Args:
        lm: the model.
        held_out, training: text.
        rows: sequences of each text.
        length: half of a sequence.
        seed: of the choice of places, and of what the model writes.

    Raises:
        ValueError: too little text.
    """
    rng = np.random.default_rng((seed, 1))

    def pieces(tokens: np.ndarray, where: str) -> list[list[int]]:
        count = tokens.size // (2 * length)
        require(count >= rows, "text", f"at least {rows} pieces of {2 * length} tokens {where}", count)
        return [tokens[2 * length * k :][: 2 * length].tolist() for k in rng.permutation(count)[:rows]]

    test, train = pieces(held_out, "held out"), pieces(training, "to train on")
    beginnings = [row[:length] for row in test]
    written = lm.generate(beginnings, max_new_tokens=length, sampling=Sampling(temperature=1.0), seed=seed, stop=False)
    own = [[*start, *more] for start, more in zip(beginnings, written.tokens, strict=True)]
    # Position t predicts token t + 1.
    counted = np.broadcast_to(np.arange(1, 2 * length) >= length, (rows, 2 * length - 1))
    return {name: Text(rows_of_text, counted) for name, rows_of_text in zip(TEXTS, (own, test, train), strict=True)}


def cross_entropy(
    lm: LanguageModel,
    texts_by_name: Mapping[str, Text],
    log_odds: Float[np.ndarray, " V"],
    v: Float[np.ndarray, " d"],
    layer: int,
    steps: int,
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Theorem 3.8: Delta CE on texts by strength, its curvature by one JVP (N9), and half the variance of the log-odds.

    Args:
        lm: the model.
        texts_by_name: texts by name, "written" among them.
        log_odds: log-odds, ``[V]`` nats.
        v: steering vector, ``[d]``.
        layer: after which v is added.
        steps: strengths on each side of 0, up to where the parabola of what is written is at half a nat.

    Returns:
        Data by text and strength, and the numbers that need no sweep, by text.
    """
    moments = {name: loss_moments(lm, text, v, layer) for name, text in texts_by_name.items()}
    alphas = np.sqrt(0.5 / moments["written"].curvature) * np.linspace(-1, 1, 2 * steps + 1)
    increases = {name: loss_increases(lm, text, v, layer, alphas) for name, text in texts_by_name.items()}
    data = xr.Dataset(
        {
            "cross_entropy": (("text", "strength"), np.asarray([each.loss for each in increases.values()])),
            "divergence": (("text", "strength"), np.asarray([each.divergence for each in increases.values()])),
            "curvature": ("text", [moment.curvature for moment in moments.values()]),
            "slope": ("text", [moment.slope for moment in moments.values()]),
            "slope_error": ("text", [moment.error for moment in moments.values()]),
            "half_variance": ("text", [half_variance(lm, text, log_odds) for text in texts_by_name.values()]),
            "alpha": ("strength", alphas),
        },
        coords={"text": list(texts_by_name)},
    )
    known = ("curvature", "half_variance", "slope", "slope_error")
    numbers = {name: {key: float(data[key].sel(text=name)) for key in known} for name in texts_by_name}
    return data, {"cross_entropy": numbers}


def random_slopes(
    lm: LanguageModel, texts_by_name: Mapping[str, Text], layer: int, *, directions: int = 8, seed: int = 0
) -> dict[str, dict[str, float]]:
    """N13: how steeply Delta CE begins along random directions, which no training asked to be at rest one by one.

    Args:
        lm: the model.
        texts_by_name: texts by name.
        layer: after which the directions are added.
        directions: how many.
        seed: of the directions.

    Returns:
        By text, root mean squares over the directions: ``slope``, in units in which KL is alpha^2 nats, and ``error``, its
        standard error in the same units if the model drew the text.
    """
    vectors = np.random.default_rng((seed, 2)).standard_normal((directions, lm.config.d_model)).astype(np.float32)
    numbers = {}
    for name, text in texts_by_name.items():
        moments = [loss_moments(lm, text, v, layer) for v in vectors]
        pairs = np.asarray([(each.slope, each.error) / np.sqrt(each.curvature) for each in moments])
        numbers[name] = dict(zip(("slope", "error"), np.sqrt(np.mean(pairs**2, axis=0)).tolist(), strict=True))
    return numbers


def half_variance(lm: LanguageModel, text: Text, log_odds: Float[np.ndarray, " V"]) -> float:
    """Half the variance of the log-odds under the unsteered model, averaged over a text: the coefficient of theorem 3.8."""
    logits = jnp.asarray(np.stack(lm.logits(text.rows))[:, :-1])
    return float(np.mean(np.asarray(_variances(logits, jnp.asarray(log_odds)), float)[text.counted])) / 2


@jax.jit
def _variances(logits: Array, log_odds: Array) -> Array:
    return variance(logits, jnp.broadcast_to(log_odds, logits.shape))

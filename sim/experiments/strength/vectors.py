"""Difference of means for every layer, and log-odds, from the texts of each set: one pass over a batch gives all layers."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sim.bridge.model import LanguageModel
from sim.bridge.split import all_means, last_log_p
from sim.experiments.experiment import Experiment
from sim.experiments.store import Cell, Layout


def vectors(experiment: Experiment) -> None:
    """Fill the group "vectors": the mean state of every set of texts, ``[set, resample, layer, d_model]``.

    The state of a text is its mean over its first tokens. Sample 0 is the set itself, the others draw from it with
    replacement. A steering vector is the mean of a concept less that of what it is contrasted with (S, equation 3).
    """
    a, settings = experiment.lm.config, experiment.settings.vectors
    coords: dict[str, Any] = {
        "set": experiment.sets,
        "resample": np.arange(settings.resamples + 1),
        "layer": np.arange(a.num_layers),
    }
    layout = Layout(
        coords | {"d_model": np.arange(a.d_model)},
        {"mean": (("set", "resample", "layer", "d_model"), "float32")},
        {"set": 1},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,) = layout.labels(cell)["set"]
        batches = batched(experiment.rows(name), settings.tokens, settings.batch)
        every = np.concatenate(
            [text_means(experiment.lm, part, settings.tokens)[:, :count] for part, count in batches], axis=1
        )
        rng = np.random.default_rng(experiment.seed("resample", name))
        n = every.shape[1]
        shares = [np.full(n, 1 / n), *(rng.multinomial(n, np.full(n, 1 / n)) / n for _ in range(settings.resamples))]
        return {"mean": np.einsum("rn,lnd->rld", np.asarray(shares), every)}

    experiment.store.fill("vectors", layout, compute, progress=experiment.progress)


def text_means(lm: LanguageModel, rows: list[list[int]], length: int) -> Float[np.ndarray, "L n d"]:
    """The mean state of every text, at all layers."""
    tokens, mask = lm.contexts(rows, length=length)
    return np.asarray(all_means(lm.decoder, jnp.asarray(tokens), jnp.asarray(mask)))


def log_odds(experiment: Experiment) -> None:
    """Fill the group "log-odds": mean log-probability of the token after a text, and its standard error, ``[set, token]``.

    The log-odds of a concept are the mean over its texts less that over what it is contrasted with; nothing is steered.
    """
    a, settings = experiment.lm.config, experiment.settings.vectors
    dims = ("set", "token")
    layout = Layout(
        {"set": experiment.sets, "token": np.arange(a.vocab_size)},
        {"log_p": (dims, "float32"), "error": (dims, "float32")},
        {"set": 1},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,) = layout.labels(cell)["set"]
        total, squares, n = np.zeros(a.vocab_size), np.zeros(a.vocab_size), 0
        for part, count in batched(experiment.rows(name), settings.tokens, settings.batch):
            split = experiment.lm.split(part, a.num_layers - 1, length=settings.tokens)
            values = np.asarray(last_log_p(split), float)[:count]
            total, squares, n = total + values.sum(axis=0), squares + (values**2).sum(axis=0), n + count
        mean = total / n
        variance = np.maximum(squares / n - mean**2, 0) * n / max(n - 1, 1)
        return {"log_p": mean, "error": np.sqrt(variance / n)}

    experiment.store.fill("log-odds", layout, compute, progress=experiment.progress)


def batched(rows: list[list[int]], length: int, size: int) -> Iterator[tuple[list[list[int]], int]]:
    """Batches of rows cut to a length, each with its number of rows. The last batch is filled up by repeating a row."""
    for k in range(0, len(rows), size):
        part = [row[:length] for row in rows[k : k + size]]
        yield [*part, *part[:1] * (size - len(part))], len(part)

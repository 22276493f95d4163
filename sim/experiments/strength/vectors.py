"""Difference of means for every layer, and log-odds, from the texts of each set: one pass over a text gives all layers."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float

from sim.bridge.split import last_log_p
from sim.directions.states import Row, content, every_token, mean_states, place_weights
from sim.experiments.experiment import Experiment
from sim.experiments.store import Cell, Layout
from ufm._batches import batched
from ufm._check import require


def vectors(experiment: Experiment) -> None:
    """Fill the group "vectors": the mean state of every set of texts, ``[set, resample, layer, d_model]``.

    The state of a text is its mean over those of its first tokens that the settings say. Sample 0 is the set itself, the
    others draw from it with replacement. A steering vector is the mean of a concept less that of what it is contrasted with
    (S, equation 3). The mean state of the attention sinks of every set is kept beside it, ``[set, layer, d_model]``, and the
    median over texts of the median length of the states that were averaged, ``[set, layer]``.
    """
    a, settings = experiment.lm.config, experiment.settings.vectors
    coords: dict[str, Any] = {
        "set": experiment.sets,
        "resample": np.arange(settings.resamples + 1),
        "layer": np.arange(a.num_layers),
    }
    layout = Layout(
        coords | {"d_model": np.arange(a.d_model)},
        {
            "mean": (("set", "resample", "layer", "d_model"), "float32"),
            "sink": (("set", "layer", "d_model"), "float32"),
            "length": (("set", "layer"), "float32"),
        },
        {"set": 1},
    )
    start = len(experiment.tokenizer.opening)

    def with_content(name: str) -> list[Row]:
        rows = [row[: settings.tokens] for row in experiment.rows(name)]
        return [Row(row, start, len(row)) for row in rows if len(row) > max(start, 1)]

    @cache
    def weights() -> Float[np.ndarray, " k"]:
        return place_weights([[row.length for row in rows] for rows in map(with_content, experiment.sets) if rows])

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,) = layout.labels(cell)["set"]
        if settings.averaged == "content":
            texts = with_content(name)
            require(len(texts) > 0, "prompts", f"a text of two tokens in the set {name!r}", "none")
            rows, chosen = [text.ids for text in texts], [content(text, weights()) for text in texts]
        else:
            rows = [row[: settings.tokens] for row in experiment.rows(name)]
            chosen = every_token(rows)
        read = mean_states(experiment.lm, rows, chosen, leave_out=settings.averaged == "content")
        rng = np.random.default_rng(experiment.seed("resample", name))
        n = len(rows)
        shares = [np.full(n, 1 / n), *(rng.multinomial(n, np.full(n, 1 / n)) / n for _ in range(settings.resamples))]
        means = np.einsum("rn,lnd->rld", np.asarray(shares), read.means)
        return {"mean": means, "sink": read.sink, "length": np.median(read.norms, axis=1)}

    experiment.store.fill("vectors", layout, compute, progress=experiment.progress)


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
            split = experiment.lm.split(part, a.num_layers - 1, length=min(settings.tokens, a.max_seq_len))
            values = np.asarray(last_log_p(split), float)[:count]
            total, squares, n = total + values.sum(axis=0), squares + (values**2).sum(axis=0), n + count
        mean = total / n
        variance = np.maximum(squares / n - mean**2, 0) * n / max(n - 1, 1)
        return {"log_p": mean, "error": np.sqrt(variance / n)}

    experiment.store.fill("log-odds", layout, compute, progress=experiment.progress)

"""The cost of steering: cross-entropy on text of others and on the model's own (S, theorem 3.8; figures 7 and A.13).

On text that the model draws itself it is its own data distribution, so that theorem 3.8 holds with the curvature of N9 and
there is no linear term; on other text there may be one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from sim.bridge.generation import Sampling
from sim.bridge.readout import readout
from sim.experiments.experiment import Experiment
from sim.experiments.store import Cell, Layout
from sim.measure import losses
from ufm import Add, Steering
from ufm._check import require
from ufm.steerable import finite_at

KINDS = ("foreign", "own")
"""Text that the model has not written, and text that it has."""


def blocks(experiment: Experiment) -> None:
    """Fill the group "blocks": the tokens of text of others and of the model's own, ``[text, block, position]``.

    Raises:
        ValueError: too little text.
    """
    settings = experiment.settings.cross_entropy
    layout = Layout(
        {"text": list(KINDS), "block": np.arange(settings.blocks), "position": np.arange(settings.tokens)},
        {"tokens": (("text", "block", "position"), "int32")},
        {"text": 1, "block": settings.part},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        labels = layout.labels(cell)
        numbers = np.asarray(labels["block"])
        return {
            "tokens": _own(experiment, cell[1], len(numbers)) if labels["text"] == ["own"] else _foreign(experiment)[numbers]
        }

    experiment.store.fill("blocks", layout, compute, progress=experiment.progress)


def enough(experiment: Experiment) -> None:
    """Raise an error if there is too little text that the model has not written.

    Raises:
        ValueError: fewer tokens than the blocks have.
    """
    count, wanted = 0, experiment.settings.cross_entropy.blocks * experiment.settings.cross_entropy.tokens
    for document in experiment.inputs.documents:
        count += len(experiment.tokenizer.encode(document, special=False))
        if count >= wanted:
            return
    _foreign(experiment)


def _own(experiment: Experiment, part: int, count: int) -> Int[np.ndarray, "n T"]:
    """Text that the model draws from nothing, at temperature 1; its ends are tokens like others."""
    length, first = experiment.settings.cross_entropy.tokens, experiment.start()
    draw = Sampling(temperature=1.0)
    made = experiment.lm.generate(
        [first],
        num_return_sequences=count,
        max_new_tokens=length - 1,
        sampling=draw,
        seed=experiment.seed("own", part),
        stop=False,
    )
    return np.asarray([[*first, *row] for row in made.tokens], np.int32)


def _foreign(experiment: Experiment) -> Int[np.ndarray, "n T"]:
    """The blocks that are used: of a longer text, some at even distances."""
    settings, every = experiment.settings.cross_entropy, blocks_of_text(experiment)
    wanted = f"at least {settings.blocks} blocks (cross_entropy.blocks) of {settings.tokens} tokens (cross_entropy.tokens)"
    require(len(every) >= settings.blocks, "text", wanted, len(every))
    return every[np.linspace(0, len(every) - 1, settings.blocks).round().astype(int)]


def blocks_of_text(experiment: Experiment) -> Int[np.ndarray, "n T"]:
    """The documents of a run one after the other, cut into blocks."""
    tokens, size = experiment.document_tokens, experiment.settings.cross_entropy.tokens
    return tokens[: len(tokens) // size * size].reshape(-1, size)


def cross_entropy(experiment: Experiment) -> None:
    """Fill the group "cross-entropy", means over the positions of a block, nats per token.

    For every concept, layer, kind of text and block: `increase` of the loss and `divergence` from the unsteered model at
    every strength; `slope` of the loss and `curvature` of the divergence at 0 (N9); `plateau`, the increase at infinite
    strength of either sign (proposition 4.1); and `loss` unsteered.
    """
    settings = experiment.settings.cross_entropy
    coords: dict[str, Any] = {
        "concept": list(experiment.settings.concepts),
        "layer": [int(layer) for layer in experiment.settings.layers],
        "text": list(KINDS),
        "block": np.arange(settings.blocks),
        "strength": np.arange(settings.strengths),
        "side": ["low", "high"],
    }
    dims = ("concept", "layer", "text", "block")
    layout = Layout(
        coords,
        {
            "increase": ((*dims, "strength"), "float32"),
            "divergence": ((*dims, "strength"), "float32"),
            "slope": (dims, "float32"),
            "curvature": (dims, "float32"),
            "plateau": ((*dims, "side"), "float32"),
            "loss": (dims, "float32"),
        },
        {"concept": 1, "layer": 1, "text": 1, "block": settings.part},
        fixed={"alpha": (("strength",), settings.alphas)},
    )
    out, alphas = readout(experiment.lm), settings.alphas
    away = alphas != 0

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        labels = layout.labels(cell)
        (name,), (layer,), (kind,), numbers = labels.values()
        rows = experiment.store.data("blocks")["tokens"].sel(text=kind).values[numbers]
        split = experiment.lm.split(list(rows), layer, last_only=False)
        v = jnp.asarray(experiment.vector(name, layer))
        split, steering = split.resolve(Steering(Add(v)))
        curves = np.zeros((2, len(rows), alphas.size))
        measured = losses.increases(split, steering, jnp.asarray(alphas[away], jnp.float32))
        for values in measured:
            finite_at(split, alphas[away], values, axis=1)
        curves[:, :, away] = [np.asarray(values, float).mean(axis=-1) for values in measured]
        curvature, slope = (np.asarray(values, float).mean(axis=-1) for values in losses.moments(split, steering))
        first = np.asarray(losses.first_losses(split), float)
        ends = np.asarray(jax.nn.log_softmax(jnp.stack([out.limit(v, -1), out.limit(v, 1)])), float)
        return {
            "increase": curves[0],
            "divergence": curves[1],
            "slope": slope,
            "curvature": curvature,
            "plateau": np.stack([(-end[rows[:, 1:]] - first).mean(axis=-1) for end in ends], axis=-1),
            "loss": first.mean(axis=-1),
        }

    experiment.store.fill("cross-entropy", layout, compute, progress=experiment.progress)

"""A mix of several vectors that buys most of a concept for its cost, near strength 0 (N23.mix).

vector = mix(lm, [joy, optimistic], prompts, tokens=tokens).vector
choice = sim.choose(lm, vector, prompts, tokens=tokens, budget=1.0)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sim.bridge.model import LanguageModel
from sim.choosing.layers import promoted_by_all
from sim.choosing.rollouts import FixedText, Writer, members_of, prompts_alone
from sim.directions.vector import SteeringVector, length_of
from theory.allocation import best_mix, response
from ufm._batches import map_in_batches
from ufm._check import require, shown
from ufm.interventions import Add
from ufm.precision import wide
from ufm.steering import Steering

UNIT = 1.0
"""Nats per token that a mix costs at strength 1, to second order, the mean over predictions in the prompts."""


@dataclass(frozen=True)
class Mix:
    """The best mix of several vectors.

    Attributes:
        vector: the mix after every block that all vectors have a direction for.
        weights: how much of each vector it holds, by block, ``[k]``; negative where a vector takes away what others cost.
        tokens: the concept's tokens.
    """

    vector: SteeringVector
    weights: dict[int, Float[np.ndarray, " k"]]
    tokens: tuple[int, ...]

    def in_words(self, layer: int, names: Sequence[str]) -> str:
        """How much of each vector the mix after a block holds.

        Args:
            layer: the block.
            names: of the vectors, in order.
        """
        parts = [f"{weight:.3g} {name}" for weight, name in zip(self.weights[layer], names, strict=True)]
        return f"the mix after block {layer}: {' + '.join(parts)}".replace("+ -", "- ")


def mix(
    lm: LanguageModel,
    vectors: Sequence[Any],
    prompts: Any,
    *,
    tokens: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    chat: bool = False,
    other_weights: bool = False,
) -> Mix:
    """The mix of vectors that gains most of a concept for its cost: ``S^-1 g`` after each block, near strength 0 (N23.mix).

    g and S are means over all predictions in the prompts. The scale is such that strength 1 costs `UNIT` to second order.

    Args:
        lm: the model.
        vectors: at least one `sim.SteeringVector`.
        prompts: texts, token ids, or chats: what the model will be used on.
        tokens: the concept's tokens; those that any of the vectors promotes if left out.
        layers: blocks of which a mix is made; all that every vector has if left out.
        chat: whether prompts are what a user says.
        other_weights: whether vectors for the same model with other weights will do.

    Raises:
        ValueError: no vector, one for another model; vectors without a block in common; tokens that the model does not have;
            vectors that change nothing, or not the concept.
    """
    require(len(vectors) > 0, "vectors", "at least one", "none")
    for vector in vectors:
        require(isinstance(vector, SteeringVector), "vectors", "steering vectors", shown(vector))
        vector.require_fits(lm, other_weights=other_weights)
    shared = sorted(set.intersection(*(set(vector.layers) for vector in vectors)))
    require(len(shared) > 0, "vectors", "directions for one block in common", "none")
    shared = shared if layers is None else list(layers)
    rollouts = prompts_alone(Writer.of(lm, prompts, 1, chat=chat).prompts)
    # Vectors of length 1, so that squares of what they do to the logits are numbers, however long or short they were.
    lengths = {i: np.asarray([length_of(vector[i]) or 1.0 for vector in vectors]) for i in shared}
    units = [{i: _steering(vector, i, lengths[i][k]) for i in shared} for k, vector in enumerate(vectors)]
    first = FixedText.of_layers(lm, rollouts, units[0])
    texts = [{i: text.under(unit[i]) for i, text in first.items()} for unit in units]
    if tokens is None:
        nobody = jnp.zeros(lm.config.vocab_size, bool)
        promoted = [promoted_by_all([text.tilt(nobody) for text in by_layer.values()], 1) for by_layer in texts]
        members = np.any(promoted, axis=0)
    else:
        members = members_of(tokens, lm.config.vocab_size)
    require(0 < members.sum() < members.size, "tokens", "some tokens, and not all", f"{members.sum()} of {members.size}")
    weights = {i: _weights([by_layer[i] for by_layer in texts], members) / lengths[i] for i in shared}
    for i, own in weights.items():
        require(bool(np.abs(own).max() > 0), "vectors", "some that change the concept", f"none that does, after block {i}")
    mixed = {i: own @ np.stack([np.asarray(vector[i], float) for vector in vectors]) for i, own in weights.items()}
    name = " + ".join(vector.name or "a vector" for vector in vectors)
    extraction = {"way": "mix", "of": name} | {f"weights.{i}": own.tolist() for i, own in weights.items()}
    whole = replace(vectors[0].at(shared), directions=mixed, name=name, extraction=extraction, diagnosis={})
    return Mix(whole, weights, tuple(np.flatnonzero(members).tolist()))


def _steering(vector: SteeringVector, layer: int, length: float) -> Steering:
    """The steering after one block by a vector divided by its length."""
    return Steering({layer: Add(np.asarray(vector[layer], float) / length)}, site=vector.site)


def _weights(texts: Sequence[FixedText], members: np.ndarray) -> Float[np.ndarray, " k"]:
    """The mix after one block, from the texts as each vector finds them."""
    slopes = jnp.stack([text.slopes for text in texts], axis=1)
    first = texts[0]
    gains, covariance = _responses(first.split, first.streams, slopes, jnp.asarray(members))
    counted = jnp.asarray(first.rollouts.counted)
    return np.asarray(best_mix(gains[counted].mean(axis=0), covariance[counted].mean(axis=0), UNIT))


@jax.jit
def _responses(split, streams, slopes, members):
    """g and S of every prediction, ``[n, h, k]`` and ``[n, h, k, k]``."""

    def of(text):
        stream, derivatives = text
        logits = partial(jax.jvp, lambda x: wide(split.decoder.logits(x)), (stream,))
        value, _ = logits((derivatives[0],))
        m = jnp.stack([logits((slope,))[1] for slope in derivatives], axis=1)
        return response(jax.nn.log_softmax(value, axis=-1), m, members)

    size = max(1, split.budget // ((1 + slopes.shape[1]) * split.activation_size))
    return map_in_batches(of, (streams, slopes), size, sharding=split.batch_sharding)

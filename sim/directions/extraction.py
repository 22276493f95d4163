"""A steering vector from texts: their states, a way to a direction at every block, and a diagnosis of each."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sim.bridge.model import LanguageModel
from sim.directions.estimators import WAYS, Matrix, Other, weights_of
from sim.directions.states import TextStates, text_states
from sim.directions.texts import sides_of
from sim.directions.vector import ModelTag, SteeringVector, geometry
from ufm._check import require, shown, whole_number


def make_vector(
    lm: LanguageModel,
    positive: Any = None,
    negative: Any = None,
    *,
    pairs: Any = None,
    way: str = "difference-of-means",
    questions: Any = None,
    tokens: Any = "content",
    layers: Any = None,
    chat: bool = False,
    name: str = "",
    budget: int | None = None,
    progress: bool | None = False,
) -> SteeringVector:
    """A direction that leads from the states of one set of texts to those of another, for every block, from one pass.

    With the default tokens, the first token and other attention sinks are left out, late tokens count less the fewer texts
    of either set reach them, and what is left of the direction along the mean state of the sinks is taken out: it would
    measure how long texts are, and not what they say.

    Args:
        lm: the model.
        positive, negative: texts that show what to steer towards, and texts that do not.
        pairs: in place of these, pairs of texts or of answers (`sim.directions.texts`).
        way: one of `sim.directions.estimators.WAYS`.
        questions, tokens, chat, budget, progress: as in `sim.directions.states.text_states`; ``tokens="all"`` is the paper's
            way, and takes nothing out.
        layers: blocks to keep directions of; all if left out.
        name: of what it steers towards.

    Raises:
        ValueError: an unknown way, a block that the model does not have, sets whose states are the same; as `text_states`.
    """
    require(isinstance(lm, LanguageModel), "lm", "a language model of sim.load", shown(lm))
    positive, negative, questions = sets_of(positive, negative, pairs, questions)
    require(isinstance(way, str) and way in WAYS, "way", f"one of {', '.join(WAYS)}", repr(way))
    last = lm.config.num_layers - 1
    listed = range(last + 1) if layers is None else layers if isinstance(layers, Iterable) else [layers]
    blocks = [whole_number("layers", layer, 0) for layer in listed]
    require(len(blocks) > 0 and max(blocks) <= last, "layers", f"blocks from 0 to {last}", str(blocks))
    states = text_states(
        lm, positive, negative, questions=questions, tokens=tokens, chat=chat, budget=budget, progress=progress
    )
    without_sinks = isinstance(tokens, str) and tokens == "content"
    sets = {layer: Sets.at(states, layer, without_sinks=without_sinks) for layer in blocks}
    made = {layer: partial(_made, way, of_block.positive, of_block.negative) for layer, of_block in sets.items()}
    return vector_of(lm, made, sets, name, facts_of(way, states, tokens, questions is not None, chat))


def sets_of(positive: Any, negative: Any, pairs: Any, questions: Any) -> tuple[Any, Any, Any]:
    """Two sets of texts and the questions that they answer, from these or from pairs.

    Args:
        positive, negative, pairs, questions: as for `make_vector`.

    Raises:
        ValueError: both, or neither; pairs of another form.
    """
    if pairs is not None:
        alone = positive is None and negative is None and questions is None
        require(alone, "pairs", "no sets of texts and no questions beside them", "both")
        return sides_of(pairs)
    require(positive is not None and negative is not None, "positive", "two sets of texts, or pairs", "neither")
    # What can be read once only is needed more than once.
    kept = (list(texts) if isinstance(texts, Iterator) else texts for texts in (positive, negative, questions))
    positive, negative, questions = kept
    return positive, negative, questions


class Sets(NamedTuple):
    """What a direction of one block is made from.

    Attributes:
        positive, negative: the states of each text, ``[n, d]`` and ``[m, d]``, float64.
        sink: unit vector along the mean state of the attention sinks, ``[d]``; 0 if there are none.
        scale: median length of the states.
        removed: the share of the squared difference of means along the sinks, if that part was taken out of the states.
    """

    positive: Matrix
    negative: Other
    sink: Float[np.ndarray, " d"]
    scale: float
    removed: float | None

    @classmethod
    def at(cls, states: TextStates, layer: int, *, without_sinks: bool) -> "Sets":
        """The states after a block, without their part along the attention sinks if asked for."""
        positive, negative, sink = (
            np.asarray(array[layer], float) for array in (states.positive, states.negative, states.sinks)
        )
        length, scale = np.linalg.norm(sink), float(states.scales[layer])
        sink = sink / length if length > 0 else sink
        if not without_sinks:
            return cls(positive, negative, sink, scale, None)
        apart = positive.mean(axis=0) - negative.mean(axis=0)
        square = float(apart @ apart)
        removed = float(apart @ sink) ** 2 / square if square > 0 else 0.0
        return cls(without(positive, sink), without(negative, sink), sink, scale, removed)


Made = Callable[[slice], Float[np.ndarray, " d"]]
"""A way at work on two sets: from which texts of each are looked at to the direction."""


def _made(way: str, positive: Matrix, negative: Other, rows: slice) -> Float[np.ndarray, " d"]:
    return weights_of(way, positive[rows], negative[rows]) @ np.concatenate([positive[rows], negative[rows]])


def without(states: Float[np.ndarray, "*n d"], sink: Float[np.ndarray, " d"]) -> Float[np.ndarray, "*n d"]:
    """States, or a direction, without their part along the mean state of the attention sinks."""
    states, sink = np.asarray(states, float), np.asarray(sink, float)
    square = sink @ sink
    return states - np.multiply.outer(states @ sink, sink / square) if square > 0 else states


def separation(made: Made, positive: Matrix, negative: Other) -> tuple[float | None, float | None, float | None]:
    """How well a direction holds on texts that it was not made from: of two halves, each is tried on the other.

    Args:
        made: how the direction is made of some texts of each set.
        positive, negative: states of each text.

    Returns:
        The cosine between the two directions; the share of texts on the right side of the middle between the means of the
        other half, the sets weighted alike; and Cohen's d along the direction of the other half, the mean of both. None
        where there are too few texts.
    """
    if min(len(positive), len(negative)) < 2:
        return None, None, None
    rows = [slice(k, None, 2) for k in (0, 1)]
    halves = [(positive[half], negative[half]) for half in rows]
    try:
        directions = [made(half) for half in rows]
    except ValueError:
        # Half of the texts may be all alike where the whole is not.
        return None, None, None
    lengths = [float(np.linalg.norm(v)) for v in directions]
    if min(lengths) == 0:
        return None, None, None
    cosine = float(directions[0] @ directions[1] / (lengths[0] * lengths[1]))
    right, effects = [], []
    for v, (p, n), (q, m) in zip(directions, halves, halves[::-1], strict=True):
        middle = (p.mean(axis=0) + n.mean(axis=0)) @ v / 2
        high, low = q @ v, m @ v
        right.append((np.mean(high > middle) + np.mean(low < middle)) / 2)
        if min(len(high), len(low)) > 1:
            spread = np.sqrt((high.var(ddof=1) + low.var(ddof=1)) / 2)
            effects.append((high.mean() - low.mean()) / spread if spread > 0 else np.inf)
    effect = float(np.mean(effects)) if effects and np.isfinite(effects).all() else None
    return cosine, float(np.mean(right)), effect


def vector_of(
    lm: LanguageModel, made: Mapping[int, Made], sets: Mapping[int, Sets], name: str, facts: Mapping[str, Any]
) -> SteeringVector:
    """The directions of some blocks, each with its diagnosis, as a vector.

    Args:
        lm: the model that they are for.
        made: how the direction of each block is made.
        sets: what it is made from.
        name: of what it steers towards.
        facts: how it was made.
    """
    directions, diagnosis = {}, {}
    for layer, of_block in sets.items():
        directions[layer] = made[layer](slice(None))
        halves, accuracy, effect = separation(made[layer], of_block.positive, of_block.negative)
        known = geometry(directions[layer], of_block.sink, of_block.scale, removed=of_block.removed)
        diagnosis[layer] = replace(known, halves_cosine=halves, accuracy=accuracy, effect_size=effect)
    return SteeringVector(
        {layer: v.astype(np.float32) for layer, v in directions.items()},
        name,
        ModelTag.of(lm),
        extraction=facts,
        diagnosis=diagnosis,
        sinks={layer: of_block.sink.astype(np.float32) for layer, of_block in sets.items()},
        scales={layer: of_block.scale for layer, of_block in sets.items()},
    )


def facts_of(way: str, states: TextStates, tokens: Any, answers: bool, chat: bool) -> dict[str, Any]:
    """How a vector was made, as names and numbers that go into a file.

    Args:
        way: its name.
        states: what it was made from.
        tokens, chat: as for `make_vector`.
        answers: whether texts were answers to questions.
    """
    return {
        "way": way,
        "tokens": tokens if isinstance(tokens, str) else "masks" if isinstance(tokens, tuple) else int(tokens),
        "texts": [states.positive.shape[1], states.negative.shape[1]],
        "tokens_averaged": int(states.tokens.sum()),
        "tokens_of_a_text_at_most": None if states.places is None else len(states.places),
        "answers": answers,
        "chat": chat,
    }

"""A steering vector from texts: their states, a way to a direction at every block, and a diagnosis of each."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from sim.bridge.model import LanguageModel
from sim.directions.states import TextStates, text_states
from sim.directions.texts import sides_of
from sim.directions.vector import Diagnosis, ModelTag, SteeringVector, geometry
from sim.directions.ways import WAYS, Matrix, Other, weights_of
from ufm._check import require, whole_number


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

    With the default tokens, the first token and other attention sinks are left out, texts are read as far as at least half
    of either set reach, and what is left of the direction along the mean state of the sinks is taken out: it would measure
    how long texts are, and not what they say.

    Args:
        lm: the model.
        positive, negative: texts that show what to steer towards, and texts that do not.
        pairs: in place of these, pairs of texts or of answers (`sim.directions.texts`).
        way: one of `sim.directions.ways.WAYS`.
        questions, tokens, chat, budget, progress: as in `sim.directions.states.text_states`; ``tokens="all"`` is the paper's
            way, and takes nothing out.
        layers: blocks to keep directions of; all if left out.
        name: of what it steers towards.

    Raises:
        ValueError: an unknown way, a block that the model does not have, sets whose states are the same; as `text_states`.
    """
    positive, negative, questions = sets_of(positive, negative, pairs, questions)
    require(isinstance(way, str) and way in WAYS, "way", f"one of {', '.join(WAYS)}", repr(way))
    last = lm.config.num_layers - 1
    blocks = list(range(last + 1)) if layers is None else [whole_number("layers", layer, 0) for layer in layers]
    require(len(blocks) > 0 and max(blocks) <= last, "layers", f"blocks from 0 to {last}", str(blocks))
    states = text_states(
        lm, positive, negative, questions=questions, tokens=tokens, chat=chat, budget=budget, progress=progress
    )
    without_sinks = isinstance(tokens, str) and tokens == "content"
    directions, diagnosis, sinks = {}, {}, {}
    for layer in blocks:
        p, n = (np.asarray(side[layer], float) for side in (states.positive, states.negative))
        sink, scale, removed = unit_vector(states.sinks[layer]), float(states.scales[layer]), None
        if without_sinks:
            removed = share_along(sink, p.mean(axis=0) - n.mean(axis=0))
            p, n = without(p, sink), without(n, sink)
        made = partial(_made, way, p, n)
        v = made(slice(None))
        directions[layer], sinks[layer] = v.astype(np.float32), sink.astype(np.float32)
        diagnosis[layer] = diagnosis_of(v, p, n, made, sink=sink, scale=scale, removed=removed)
    return SteeringVector(
        directions,
        name,
        ModelTag.of(lm),
        extraction=facts_of(way, states, tokens, questions is not None, chat),
        diagnosis=diagnosis,
        sinks=sinks,
        scales={layer: float(states.scales[layer]) for layer in blocks},
    )


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


Made = Callable[[slice], Float[np.ndarray, " d"]]
"""A way at work on two sets: from which texts of each are looked at to the direction."""


def _made(way: str, positive: Matrix, negative: Other, rows: slice) -> Float[np.ndarray, " d"]:
    return weights_of(way, positive[rows], negative[rows]) @ np.concatenate([positive[rows], negative[rows]])


def unit_vector(sink: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """A vector of length 1 along the mean state of the attention sinks, in float64; 0 if that is 0."""
    array = np.asarray(sink, float)
    return array / np.linalg.norm(array) if array.any() else array


def without(states: Float[np.ndarray, "*n d"], sink: Float[np.ndarray, " d"]) -> Float[np.ndarray, "*n d"]:
    """States, or a direction, without their part along the mean state of the attention sinks."""
    states, sink = np.asarray(states, float), np.asarray(sink, float)
    square = sink @ sink
    return states - np.multiply.outer(states @ sink, sink / square) if square > 0 else states


def share_along(sink: Float[np.ndarray, " d"], v: Float[np.ndarray, " d"]) -> float:
    """The share of a direction's squared length along a unit vector."""
    square = float(v @ v)
    return float(v @ sink) ** 2 / square if square > 0 else 0.0


def diagnosis_of(
    v: Float[np.ndarray, " d"],
    positive: Matrix,
    negative: Other,
    made: Made,
    *,
    sink: Float[np.ndarray, " d"],
    scale: float,
    removed: float | None,
) -> Diagnosis:
    """What tells whether a direction means what it should, whatever way it was made.

    Args:
        v: the direction.
        positive, negative: states of each text that it was made from.
        made: how.
        sink: unit vector along the mean state of the attention sinks.
        scale: median length of the states.
        removed: the share along the sinks that was taken out, if any.
    """
    halves, accuracy, effect = separation(made, positive, negative)
    known = geometry(v, sink, scale, removed=removed)
    return replace(known, halves_cosine=halves, accuracy=accuracy, effect_size=effect)


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
        "tokens_of_a_text_at_most": states.cut,
        "answers": answers,
        "chat": chat,
    }

"""A steering vector from texts: their states, a way to a direction at every block, and a diagnosis of each."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from sim.bridge.model import LanguageModel
from sim.directions.states import TextStates, text_states
from sim.directions.texts import sides_of
from sim.directions.vector import ModelTag, SteeringVector, geometry
from sim.directions.ways import WAYS, weights_of
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
    if pairs is not None:
        alone = positive is None and negative is None and questions is None
        require(alone, "pairs", "no sets of texts and no questions beside them", "both")
        positive, negative, questions = sides_of(pairs)
    require(positive is not None and negative is not None, "positive", "two sets of texts, or pairs", "neither")
    assert positive is not None
    assert negative is not None
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
        sink = np.asarray(states.sinks[layer], float)
        sinks[layer] = (sink / np.linalg.norm(sink)).astype(np.float32) if sink.any() else sink.astype(np.float32)
        v, removed = direction(way, p, n, sinks[layer] if without_sinks else None)
        directions[layer] = v.astype(np.float32)
        known = geometry(v, sinks[layer], float(states.scales[layer]), removed=removed)
        halves, accuracy, effect = separation(way, p, n, sinks[layer] if without_sinks else None)
        diagnosis[layer] = replace(known, halves_cosine=halves, accuracy=accuracy, effect_size=effect)
    return SteeringVector(
        directions,
        name,
        ModelTag.of(lm),
        extraction=_facts(way, states, tokens, questions is not None, chat),
        diagnosis=diagnosis,
        sinks=sinks,
        scales={layer: float(states.scales[layer]) for layer in blocks},
    )


def direction(
    way: str, positive: Float[np.ndarray, "n d"], negative: Float[np.ndarray, "m d"], sink: Float[np.ndarray, " d"] | None
) -> tuple[Float[np.ndarray, " d"], float | None]:
    """The direction of a way, and the share of its squared length that was taken out.

    Args:
        way: one of `WAYS`.
        positive, negative: states of each text.
        sink: a unit vector that the direction is made orthogonal to, if any; so are the states that a way looks at.

    Raises:
        ValueError: as `weights_of`.
    """
    if sink is None:
        return weights_of(way, positive, negative) @ np.concatenate([positive, negative]), None
    whole = weights_of("difference-of-means", positive, negative) @ np.concatenate([positive, negative])
    p, n = (without(states, sink) for states in (positive, negative))
    removed = float(1 - np.sum(without(whole, sink) ** 2) / (whole @ whole))
    return weights_of(way, p, n) @ np.concatenate([p, n]), removed


def without(states: Float[np.ndarray, "*n d"], sink: Float[np.ndarray, " d"]) -> Float[np.ndarray, "*n d"]:
    """States, or a direction, without their part along the mean state of the attention sinks."""
    states, sink = np.asarray(states, float), np.asarray(sink, float)
    square = sink @ sink
    return states - np.multiply.outer(states @ sink, sink / square) if square > 0 else states


def separation(
    way: str, positive: Float[np.ndarray, "n d"], negative: Float[np.ndarray, "m d"], sink: Float[np.ndarray, " d"] | None
) -> tuple[float | None, float | None, float | None]:
    """How well a direction holds on texts that it was not made from: of two halves, each is tried on the other.

    Arguments as for `direction`.

    Returns:
        The cosine between the two directions; the share of texts on the right side of the middle between the means of the
        other half, the sets weighted alike; and Cohen's d along the direction of the other half, the mean of both. None
        where there are too few texts.
    """
    if min(len(positive), len(negative)) < 2:
        return None, None, None
    halves = [(positive[k::2], negative[k::2]) for k in (0, 1)]
    try:
        made = [direction(way, p, n, sink)[0] for p, n in halves]
    except ValueError:
        # Half of the texts may be all alike where the whole is not.
        return None, None, None
    lengths = [float(np.linalg.norm(v)) for v in made]
    if min(lengths) == 0:
        return None, None, None
    cosine = float(made[0] @ made[1] / (lengths[0] * lengths[1]))
    right, effects = [], []
    for v, (p, n), (q, m) in zip(made, halves, halves[::-1], strict=True):
        middle = (p.mean(axis=0) + n.mean(axis=0)) @ v / 2
        high, low = q @ v, m @ v
        right.append((np.mean(high > middle) + np.mean(low < middle)) / 2)
        if min(len(high), len(low)) > 1:
            spread = np.sqrt((high.var(ddof=1) + low.var(ddof=1)) / 2)
            effects.append((high.mean() - low.mean()) / spread if spread > 0 else np.inf)
    effect = float(np.mean(effects)) if effects and np.isfinite(effects).all() else None
    return cosine, float(np.mean(right)), effect


def _facts(way: str, states: TextStates, tokens: Any, answers: bool, chat: bool) -> dict[str, Any]:
    """How a vector was made, as names and numbers that go into a file."""
    return {
        "way": way,
        "tokens": tokens if isinstance(tokens, str) else "masks" if isinstance(tokens, tuple) else int(tokens),
        "texts": [states.positive.shape[1], states.negative.shape[1]],
        "tokens_averaged": int(states.tokens.sum()),
        "tokens_of_a_text_at_most": states.cut,
        "answers": answers,
        "chat": chat,
    }

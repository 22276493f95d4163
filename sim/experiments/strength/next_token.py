"""Next-token probabilities along a sweep of strengths (S, theorem 3.3; figures 6, A.1 to A.5 and A.7 to A.10).

What is kept of every strength: the log-probabilities of the likeliest tokens at both ends, the likeliest token, and how far
the whole distribution has moved. Nothing of the size of vocabulary and strengths is ever held.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sim.bridge.readout import readout
from sim.bridge.split import Split, end_states
from sim.experiments.experiment import Experiment
from sim.experiments.store import Cell, Layout
from ufm import Add, All, Last, Steering
from ufm._check import require
from ufm.distributions import kl
from ufm.measures import slopes
from ufm.steerable import finite_at, one_of, steered_logits, sweep_states


def next_token(experiment: Experiment) -> None:
    """Fill the group "next-token".

    For every variant, concept, layer and context: `token`, the likeliest at the low end of the strengths and at the high
    end (`slot`), and `word`, their texts; `log_p` of them at every strength and `start` at 0; `log_odds` and `slope` of
    them, the slope of `log_p` at 0; `agreement`, the correlation of slopes and log-odds of all tokens under the unsteered
    probabilities; `likeliest` token and `divergence` from the unsteered model, in nats, at every strength; `limit`,
    log-probabilities at infinite strength (proposition 4.1), and `apart`, the total variation between the ends and their
    limits; `scale`, the length of the hidden state at the last position over that of what strength 1 adds. For tokens that
    the settings ask for (`asked`): `asked_log_p` and `asked_start`.

    Raises:
        ValueError: more tokens to keep than there are; a text that is asked for and is not one token.
    """
    asked, contexts = asked_tokens(experiment), suitable_contexts(experiment)
    settings, steered = experiment.settings.next_token, experiment.settings.steered
    length = max(map(len, contexts))
    layout = _layout(experiment, [experiment.tokenizer.decode(row) for row in contexts])
    concepts, layers = experiment.settings.concepts, [int(layer) for layer in experiment.settings.layers]
    # The first variant at all layers, the others in the middle.
    middle = layers.index(experiment.settings.middle)
    wanted = [cell for cell in layout.all_cells if cell[0] == 0 or cell[2] == middle]
    out = readout(experiment.lm)

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        number, concept, layer, k = cell
        variant, name, at = steered[number], concepts[concept], layers[layer]
        split = experiment.lm.split([contexts[k]], at, length=length)
        v = jnp.asarray(experiment.vector(name, at, variant))
        split, steering = split.resolve(Steering(Add(v), tokens=Last() if variant.last_only else All()))
        limits = jnp.stack([out.limit(v, -1), out.limit(v, 1)])
        odds = jnp.asarray(experiment.log_odds(name, variant))
        alphas = jnp.asarray(settings.alphas(variant), jnp.float32)
        values = swept(split, steering, alphas, odds, limits, asked if asked.size else None, kept=settings.kept)
        finite_at(split, alphas, values["log_p"])
        return {name: np.asarray(value) for name, value in values.items()} | {
            "word": experiment.words_of(np.asarray(values["token"])),
            "scale": np.asarray(jnp.linalg.norm(end_states(split)) / jnp.linalg.norm(v)),
        }

    experiment.store.fill("next-token", layout, compute, wanted=wanted, progress=experiment.progress)


def suitable_contexts(experiment: Experiment) -> list[list[int]]:
    """The contexts as tokens, cut to a length, if the model can read them and has the tokens that the settings ask for.

    Raises:
        ValueError: more tokens to keep than there are; a text that is asked for and is not one token; contexts that are too
            long for the model.
    """
    settings, vocabulary = experiment.settings.next_token, experiment.lm.config.vocab_size
    asked_tokens(experiment)
    require(settings.kept <= vocabulary, "next_token.kept", f"at most {vocabulary} tokens", settings.kept)
    texts = experiment.inputs.contexts[: settings.contexts]
    contexts = [experiment.tokenizer.encode(text)[: settings.context] for text in texts]
    experiment.lm.contexts(contexts)
    return contexts


def asked_tokens(experiment: Experiment) -> Int[np.ndarray, " n"]:
    """The tokens that the settings ask for by their texts.

    Raises:
        ValueError: a text of several tokens, or of none.
    """
    words = experiment.settings.next_token.tokens
    try:
        return np.asarray([experiment.tokenizer.token(word) for word in words], int)
    except ValueError as error:
        raise ValueError(f"next_token.tokens: {str(error).removeprefix('word: ')}") from error


def _layout(experiment: Experiment, texts: list[str]) -> Layout:
    """The layout of the group for contexts of these texts: a cell for every variant, concept, layer and context."""
    settings, steered = experiment.settings.next_token, experiment.settings.steered
    cut_dims = ("variant", "concept", "layer", "context")
    of_slot, of_strength, of_side = ((*cut_dims, dim) for dim in ("slot", "strength", "side"))
    # An array of no tokens cannot be stored.
    words: dict[str, Sequence[Any]] = {"asked": list(settings.tokens)} if settings.tokens else {}
    asked = {"asked_log_p": ((*of_strength, "asked"), "float32"), "asked_start": ((*cut_dims, "asked"), "float32")}
    coords: dict[str, Sequence[Any] | np.ndarray] = {
        "variant": [variant.name for variant in steered],
        "concept": list(experiment.settings.concepts),
        "layer": [int(layer) for layer in experiment.settings.layers],
        "context": np.arange(len(texts)),
        "strength": np.arange(settings.strengths),
        "slot": np.arange(2 * settings.kept),
        "side": ["low", "high"],
    }
    return Layout(
        coords | words,
        {
            "token": (of_slot, "int32"),
            "word": (of_slot, "U"),
            "log_p": ((*of_strength, "slot"), "float32"),
            "start": (of_slot, "float32"),
            "log_odds": (of_slot, "float32"),
            "slope": (of_slot, "float32"),
            "agreement": (cut_dims, "float32"),
            "likeliest": (of_strength, "int32"),
            "divergence": (of_strength, "float32"),
            "limit": ((*of_side, "slot"), "float32"),
            "apart": (of_side, "float32"),
            "scale": (cut_dims, "float32"),
        }
        | (asked if settings.tokens else {}),
        dict.fromkeys(cut_dims, 1),
        fixed={
            "alpha": (("variant", "strength"), np.stack([settings.alphas(variant) for variant in steered])),
            "text": (("context",), texts),
        },
    )


@partial(jax.jit, static_argnames="kept")
def swept(
    split: Split,
    steering: Steering,
    alphas: Float[Array, " K"],
    log_odds: Float[Array, " V"],
    limits: Float[Array, "2 V"],
    asked: Int[Array, " n"] | None = None,
    *,
    kept: int,
) -> dict[str, Array]:
    """A sweep of the only context of a split, as `next_token` describes it.

    Args:
        split: of one context.
        steering: as the split resolves it.
        alphas: strengths, from low to high.
        log_odds: of all tokens.
        limits: logits at infinite strength of both signs.
        asked: tokens that are kept in any case.
        kept: tokens of each end.
    """
    states = split.embed(jnp.arange(1))
    state = one_of(states, 0)
    base, slope = slopes(split, state, steering)
    at_ends = jax.vmap(lambda alpha: steered_logits(split, state, steering, alpha))(alphas[jnp.array([0, -1])])
    ends = jax.nn.log_softmax(at_ends)
    tokens = jnp.concatenate([jax.lax.top_k(row, kept)[1] for row in ends])
    start, last = jax.nn.log_softmax(base), jax.nn.log_softmax(limits)

    def measure(logits: Float[Array, " V"], _: Int[Array, ""]) -> dict[str, Array]:
        log_p = jax.nn.log_softmax(logits)
        also = {} if asked is None else {"asked_log_p": log_p[asked]}
        return {"log_p": log_p[tokens], "likeliest": jnp.argmax(logits), "divergence": kl(base, logits)} | also

    inside = jax.tree.map(lambda leaf: leaf[0], sweep_states(split, states, steering, alphas[1:-1], measure))
    low, high = (measure(logits, jnp.asarray(0)) for logits in at_ends)
    curves = jax.tree.map(lambda a, b, c: jnp.concatenate([a[None], b, c[None]]), low, inside, high)
    starts = {} if asked is None else {"asked_start": start[asked]}
    return (
        curves
        | starts
        | {
            "token": tokens,
            "start": start[tokens],
            "log_odds": log_odds[tokens],
            "slope": slope[tokens] - jnp.sum(jnp.exp(start) * slope),
            "agreement": correlation(jnp.exp(start), slope, log_odds),
            "limit": last[:, tokens],
            "apart": jnp.sum(jnp.abs(jnp.exp(ends) - jnp.exp(last)), axis=-1) / 2,
        }
    )


def correlation(p: Float[Array, " V"], x: Float[Array, " V"], y: Float[Array, " V"]) -> Float[Array, ""]:
    """The correlation of two quantities of a token that is drawn with probabilities p."""
    x, y = x - jnp.sum(p * x), y - jnp.sum(p * y)
    return jnp.sum(p * x * y) / jnp.sqrt(jnp.sum(p * x * x) * jnp.sum(p * y * y))

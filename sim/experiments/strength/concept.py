"""Concept probability: completions of a steered model, and the share that shows the concept (S, figures 7, A.11, A.12).

A language model judges every completion, as in S. There are two more opinions: whether a word of the lexicon is in it, the
words of the highest log-odds; and by how much the completion is likelier after an opening that announces the concept than
after one that announces its opposite, which also small models can tell. How far each can be trusted is measured: they are
given the texts that show the concept and those that do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from sim.directions.opinions import judged, ratios
from sim.experiments.experiment import Experiment, against
from sim.experiments.store import Cell, Layout
from ufm import Add, Steering
from ufm._check import require

MISSING = -1
"""In place of a judge's answer, where there is no text."""


def concept(experiment: Experiment) -> None:
    """Fill the groups "judge" and "concept".

    "concept": for every concept, layer, strength, prompt and completion the `tokens`, and their text, `written`; the judge's
    `answer` (1 shown, 0 not, 2 neither 0 nor 1) and `score`, the log-odds of "1" against "0"; how many tokens are
    `in_lexicon`; and `ratio`, how much likelier each token is, in nats, after an opening that announces the concept than
    after one that announces its opposite.
    "judge": these values for the texts of two sets, by concept, side ("positive", "negative") and text. "lexicon": words.
    """
    _lexicon(experiment)
    _calibrate(experiment)
    settings, tokenizer = experiment.settings.concept, experiment.tokenizer
    alphas, prompts = settings.alphas, suitable_starts(experiment)
    each = len(prompts) * settings.completions
    coords: dict[str, Any] = {
        "concept": list(experiment.settings.concepts),
        "layer": [int(layer) for layer in experiment.settings.layers],
        "strength": np.arange(alphas.size),
        "prompt": np.arange(len(prompts)),
        "completion": np.arange(settings.completions),
        "position": np.arange(settings.max_new_tokens),
    }
    dims = ("concept", "layer", "strength", "prompt", "completion")
    together = max(1, settings.batch // each)
    layout = Layout(
        coords,
        {
            "tokens": ((*dims, "position"), "int32"),
            "written": (dims, "U"),
            "answer": (dims, "int8"),
            "score": (dims, "float32"),
            "in_lexicon": (dims, "int16"),
            "ratio": (dims, "float32"),
        },
        {"concept": 1, "layer": 1, "strength": together},
        fixed={"alpha": (("strength",), alphas), "text": (("prompt",), [tokenizer.decode(row) for row in prompts])},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,), (layer,), numbers = layout.labels(cell).values()
        # Every cell has the same shape, so that one program serves all: the last is filled up with strengths of 0.
        strengths = np.zeros(together)
        strengths[: len(numbers)] = alphas[numbers]
        rows = [prompt for _ in strengths for prompt in prompts]
        made = experiment.lm.generate(
            rows,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.sampling,
            seed=experiment.seed("concept", *cell),
            num_return_sequences=settings.completions,
            steering=Steering({layer: Add(jnp.asarray(experiment.vector(name, layer)))}),
            alpha=np.repeat(strengths, len(prompts)),
            length=max(map(len, prompts)),
        )
        kept = [list(row) for row in made.tokens][: len(numbers) * each]
        tokens = _in_rows(kept, settings.max_new_tokens)
        texts = np.asarray([tokenizer.decode(row) for row in kept])
        return {"tokens": tokens, "written": texts, **opinions(experiment, kept, name)}

    experiment.store.fill("concept", layout, compute, progress=experiment.progress)


def suitable_starts(experiment: Experiment) -> list[list[int]]:
    """The beginnings of completions as tokens, if the model has room for completions and its tokenizer has whole words.

    Raises:
        ValueError: a beginning that is too long for the model; no token that is a whole word.
    """
    settings = experiment.settings.concept
    require(bool(whole_words(experiment).any()), "tokenizer", "tokens that are whole words", "none")
    prompts = [experiment.tokenizer.encode(text) for text in experiment.inputs.starts[: settings.prompts]]
    experiment.lm.contexts(prompts, room=settings.max_new_tokens)
    return prompts


def _in_rows(texts: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "n length"]:
    """Tokens of texts, filled up with -1."""
    tokens = np.full((len(texts), length), -1, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return tokens


def _lexicon(experiment: Experiment) -> None:
    """Fill the group "lexicon": the tokens that count as a concept's, ``[concept, rank]``."""
    settings = experiment.settings.concept
    words = whole_words(experiment)
    count = min(settings.lexicon, int(words.sum()))
    layout = Layout(
        {"concept": list(experiment.settings.concepts), "rank": np.arange(count)},
        {"token": (("concept", "rank"), "int32"), "word": (("concept", "rank"), "U")},
        {"concept": 1},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,) = layout.labels(cell)["concept"]
        likely = experiment.last_log_p.sel(set=name).values
        # Of words that the model would never say, log-odds are large by chance.
        floor = np.sort(likely[words])[-max(count, int(words.sum()) // 8)]
        chosen = np.argsort(-np.where(words & (likely >= floor), experiment.log_odds(name), -np.inf))[:count]
        return {"token": chosen, "word": experiment.words_of(chosen)}

    experiment.store.fill("lexicon", layout, compute, progress=experiment.progress)


def whole_words(experiment: Experiment) -> Bool[np.ndarray, " V"]:
    """A mask of the tokens that consist of a space and at least three letters."""
    v = experiment.lm.config.vocab_size
    texts = [*experiment.tokenizer.token_strings, *[""] * (v - experiment.tokenizer.size)][:v]
    return np.asarray([len(text) > 3 and text[0] == " " and text[1:].isalpha() for text in texts])


def _calibrate(experiment: Experiment) -> None:
    """Fill the group "judge": what the judge says of the texts that steering vectors are made from."""
    dims, settings = ("concept", "side", "text"), experiment.settings.concept
    texts = (
        experiment.settings.prompts.texts
        if experiment.inputs.prompts is None
        else len(experiment.store.data("prompts")["text"])
    )
    layout = Layout(
        {"concept": list(experiment.settings.concepts), "side": ["positive", "negative"], "text": np.arange(texts)},
        {
            "answer": (dims, "int8"),
            "score": (dims, "float32"),
            "in_lexicon": (dims, "int16"),
            "ratio": (dims, "float32"),
        },
        {"concept": 1, "side": 1},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,), (side,) = (layout.labels(cell)[key] for key in ("concept", "side"))
        rows = experiment.rows(name if side == "positive" else against(name, experiment.settings.main))
        judgements = opinions(experiment, [row[: settings.max_new_tokens] for row in rows], name)
        more = texts - len(rows)
        fills = {"answer": MISSING, "score": np.nan, "in_lexicon": MISSING, "ratio": np.nan}
        return {key: np.pad(value, (0, more), constant_values=fills[key]) for key, value in judgements.items()}

    experiment.store.fill("judge", layout, compute, progress=experiment.progress)


def opinions(experiment: Experiment, rows: list[list[int]], name: str) -> dict[str, np.ndarray]:
    """The measures of texts, which are given as tokens: `answer` and `score` of the judge, `in_lexicon`, `ratio`."""
    settings = experiment.settings.concept
    texts = [experiment.tokenizer.decode(row) for row in rows]
    chat, sizes = settings.chat, {"usual": settings.max_new_tokens, "together": settings.judged_together}
    answers, scores = judged(experiment.judge, texts, name, chat=chat, **sizes)
    lexicon = set(experiment.store.data("lexicon")["token"].sel(concept=name).values.tolist())
    counted = np.asarray([sum(z in lexicon for z in row) for row in rows], np.int16)
    return {
        "answer": answers,
        "score": scores,
        "in_lexicon": counted,
        "ratio": ratios(experiment.judge, texts, name, **sizes),
    }

"""Concept probability: completions of a steered model, and the share that shows the concept (S, figures 7, A.11, A.12).

A language model judges every completion. A lexicon, the words of the highest log-odds, is a second opinion at no cost. How
far the judge can be trusted is measured, too: it also judges the texts that show the concept and those that do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from sim.bridge.language_model import LanguageModel
from sim.experiments.experiment import Experiment, against
from sim.experiments.material import judge_request
from sim.experiments.store import Cell, Layout
from sim.experiments.vectors import batched, last_log_p

SHOWN, NOT_SHOWN, NO_ANSWER, MISSING = 1, 0, 2, -1
"""Answers of a judge."""


def concept(e: Experiment) -> None:
    """Fill the groups "judge" and "concept".

    "judge": `answer` and `score` for every concept, side ("positive", "negative") and text of its two sets.
    "concept": for every concept, layer, strength, prompt and completion the `tokens`, the judge's `answer` (1 shown, 0 not,
    2 neither 0 nor 1) and `score`, the log-odds of "1" against "0", and how many tokens are in the `lexicon`; and the
    `lexicon` itself in "lexicon".
    """
    _lexicon(e)
    _calibrate(e)
    settings = e.settings.concept
    alphas, prompts = settings.alphas, [e.words.encode(text) for text in e.inputs.starts[: settings.prompts]]
    each = len(prompts) * settings.completions
    coords: dict[str, Any] = {
        "concept": list(e.settings.concepts),
        "layer": [int(layer) for layer in e.settings.layers],
        "strength": np.arange(alphas.size),
        "prompt": np.arange(len(prompts)),
        "completion": np.arange(settings.completions),
        "position": np.arange(settings.new),
    }
    dims = ("concept", "layer", "strength", "prompt", "completion")
    together = max(1, settings.batch // each)
    layout = Layout(
        coords,
        {
            "tokens": ((*dims, "position"), "int32"),
            "answer": (dims, "int8"),
            "score": (dims, "float32"),
            "in_lexicon": (dims, "int16"),
        },
        {"concept": 1, "layer": 1, "strength": together},
        fixed={"alpha": (("strength",), alphas), "text": (("prompt",), [e.words.decode(row) for row in prompts])},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        labels = layout.labels(cell)
        (name,), (layer,), numbers = labels.values()
        # Every cell has the same shape, so that one program serves all: the last is filled up with strengths of 0.
        strengths = np.zeros(together)
        strengths[: len(numbers)] = alphas[numbers]
        rows = [prompt for _ in strengths for prompt in prompts for _ in range(settings.completions)]
        v = e.lm.steering({layer: e.vector(name, layer)})
        made = e.lm.generate(
            rows,
            new=settings.new,
            sampling=settings.sampling,
            seed=e.seed("concept", *cell),
            steering=np.repeat(strengths, each)[:, None, None] * v,
            length=max(map(len, prompts)),
        )
        kept = [list(row) for row in made.tokens][: len(numbers) * each]
        texts = [e.words.decode(row) for row in kept]
        answers, scores = judged(e.judge, texts, name, room=settings.new, size=settings.judged_together)
        tokens = np.full((len(kept), settings.new), -1, np.int32)
        for k, row in enumerate(kept):
            tokens[k, : len(row)] = row
        words = set(e.store.data("lexicon")["token"].sel(concept=name).values.tolist())
        counted = [sum(z in words for z in row) for row in kept]
        return {"tokens": tokens, "answer": answers, "score": scores, "in_lexicon": np.asarray(counted)}

    e.store.fill("concept", layout, compute, progress=e.progress)


def _lexicon(e: Experiment) -> None:
    """Fill the group "lexicon": the tokens that count as a concept's, ``[concept, rank]``."""
    settings = e.settings.concept
    words = whole_words(e)
    count = min(settings.lexicon, int(words.sum()))
    layout = Layout(
        {"concept": list(e.settings.concepts), "rank": np.arange(count)},
        {"token": (("concept", "rank"), "int32"), "word": (("concept", "rank"), "U")},
        {"concept": 1},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,) = layout.labels(cell)["concept"]
        likely = e.last_log_p.sel(set=name).values
        # Of words that the model would never say, log-odds are large by chance.
        floor = np.sort(likely[words])[-max(count, int(words.sum()) // 8)]
        chosen = np.argsort(-np.where(words & (likely >= floor), e.log_odds(name), -np.inf))[:count]
        return {"token": chosen, "word": e.words_of(chosen)}

    e.store.fill("lexicon", layout, compute, progress=e.progress)


def whole_words(e: Experiment) -> Bool[np.ndarray, " V"]:
    """Which tokens are a space and at least three letters."""
    texts = [*e.words.spoken, *[""] * (e.lm.architecture.vocabulary - e.words.size)]
    return np.asarray([len(text) > 3 and text[0] == " " and text[1:].isalpha() for text in texts])


def _calibrate(e: Experiment) -> None:
    """Fill the group "judge": what the judge says of the texts that steering vectors are made from."""
    dims, settings = ("concept", "side", "text"), e.settings.concept
    texts = e.settings.prompts.texts if e.inputs.prompts is None else len(e.store.data("prompts")["text"])
    layout = Layout(
        {"concept": list(e.settings.concepts), "side": ["positive", "negative"], "text": np.arange(texts)},
        {"answer": (dims, "int8"), "score": (dims, "float32")},
        {"concept": 1, "side": 1},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,), (side,) = (layout.labels(cell)[key] for key in ("concept", "side"))
        rows = e.rows(name if side == "positive" else against(name, e.settings.main))
        cut = [e.words.decode(row[: settings.new]) for row in rows]
        answer, score = np.full(texts, MISSING, np.int8), np.full(texts, np.nan, np.float32)
        answer[: len(cut)], score[: len(cut)] = judged(e.judge, cut, name, room=settings.new, size=settings.judged_together)
        return {"answer": answer, "score": score}

    e.store.fill("judge", layout, compute, progress=e.progress)


def judged(
    judge: LanguageModel, texts: Sequence[str], name: str, *, room: int, size: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """What a judge says of texts: its likeliest answer, and its log-odds of "1" against "0".

    Args:
        judge: a model with a tokenizer; a chat template is used if it has one.
        texts: to judge.
        name: of the concept.
        room: tokens of a text, about: requests are padded to a length that holds so many.
        size: texts in one pass.
    """
    words, last = judge.tokenizer, judge.architecture.layers - 1
    assert words is not None

    def tokens(text: str) -> list[int]:
        asked = judge_request(text.strip() or "(nothing)", name)
        if words.template is None:
            return words.encode(asked)
        return words.encode(words.chat([{"role": "user", "content": asked}]), special=False)

    rows = [tokens(text) for text in texts]
    # Few lengths, so that few programs are compiled.
    least = len(tokens("")) + room
    length = least if max(map(len, rows)) <= least else -(-max(map(len, rows)) // 64) * 64
    yes, no = (np.asarray([z for z in range(words.size) if words.spoken[z].strip() == digit]) for digit in "10")
    answers, scores = [], []
    for part, count in batched(rows, length, size):
        log_p = np.asarray(last_log_p(judge.at(last, part, length=length)), float)[:count]
        likeliest = log_p.argmax(axis=-1)
        neither = np.where(np.isin(likeliest, no), NOT_SHOWN, NO_ANSWER)
        answers.append(np.where(np.isin(likeliest, yes), SHOWN, neither))
        scores.append(_total(log_p, yes) - _total(log_p, no))
    return np.concatenate(answers).astype(np.int8), np.concatenate(scores)


def _total(log_p: Float[np.ndarray, "n V"], tokens: Int[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
    """The logarithm of the probability of several tokens; a large negative number if there are none."""
    return np.asarray(jax.nn.logsumexp(jnp.asarray(log_p[:, tokens]), axis=-1)) if tokens.size else np.full(len(log_p), -1e3)

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
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from sim.bridge.model import LanguageModel
from sim.bridge.split import last_log_p
from sim.experiments.experiment import Experiment, against
from sim.experiments.prompt_texts import DEFINITIONS, judge_request, plain_request
from sim.experiments.settings import ConceptProbability
from sim.experiments.store import Cell, Layout
from sim.experiments.strength.vectors import batched
from sim.measure import losses
from ufm import Add, Steering
from ufm._check import require

SHOWN, NOT_SHOWN, NO_ANSWER, MISSING = 1, 0, 2, -1
"""Answers of a judge."""


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
    answers, scores = judged(experiment.judge, texts, name, settings)
    lexicon = set(experiment.store.data("lexicon")["token"].sel(concept=name).values.tolist())
    counted = np.asarray([sum(z in lexicon for z in row) for row in rows], np.int16)
    return {
        "answer": answers,
        "score": scores,
        "in_lexicon": counted,
        "ratio": ratios(experiment.judge, texts, name, settings),
    }


def judged(
    judge: LanguageModel, texts: Sequence[str], name: str, settings: ConceptProbability
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The opinion of a judge on texts: its likeliest answer, and its log-odds of "1" against "0".

    Args:
        judge: a model with a tokenizer.
        texts: to judge.
        name: of the concept.
        settings: how it is asked, and how many tokens a text has, about: requests are padded to hold so many.
    """
    tokenizer, last = judge.tokenizer, judge.config.num_layers - 1
    assert tokenizer is not None
    chat = settings.chat and tokenizer.template is not None
    # In many tokenizers " 1" is one token, in others a space and a digit: the space is then given with the request.
    space = [] if chat else tokenizer.encode(" 1", special=False)[:-1]

    def tokens(text: str) -> list[int]:
        asked = judge_request(text.strip() or "(nothing)", name)
        if chat:
            return tokenizer.encode(tokenizer.chat([{"role": "user", "content": asked}]), special=False)
        return [*tokenizer.encode(asked), *space]

    known = tokenizer.token_strings[: judge.config.vocab_size]
    digits = [[z for z, text in enumerate(known) if text.strip() == digit] for digit in "10"]
    yes, no = (np.asarray(numbers, int) for numbers in digits)
    answers, scores = [], []
    rows = [tokens(text) for text in texts]
    length = _padded(judge, rows, len(tokens("")) + settings.max_new_tokens)
    for part, count in batched(rows, length, settings.judged_together):
        log_p = np.asarray(last_log_p(judge.split(part, last, length=length)), float)[:count]
        likeliest = log_p.argmax(axis=-1)
        neither = np.where(np.isin(likeliest, no), NOT_SHOWN, NO_ANSWER)
        answers.append(np.where(np.isin(likeliest, yes), SHOWN, neither))
        scores.append(_total(log_p, yes) - _total(log_p, no))
    return np.concatenate(answers).astype(np.int8), np.concatenate(scores)


def ratios(judge: LanguageModel, texts: Sequence[str], name: str, settings: ConceptProbability) -> Float[np.ndarray, " n"]:
    """By how many nats a token of a text is likelier after the concept is announced than after its opposite.

    The ratio is NaN for empty texts, and for a concept that is not defined. The arguments are those of `judged`.
    """
    tokenizer = judge.tokenizer
    assert tokenizer is not None
    values = np.full(len(texts), np.nan)
    if name not in DEFINITIONS:
        return values
    bodies = [tokenizer.encode(text.strip(), special=False) for text in texts]
    filled = [k for k, body in enumerate(bodies) if body]
    openings = [tokenizer.encode(plain_request(means)) for means in (DEFINITIONS[name].means, DEFINITIONS[name].opposite)]
    both = [[[*opening, *bodies[k]] for k in filled] for opening in openings]
    # One length for all, so that one program serves both sides.
    usual, sides = max(map(len, openings)) + settings.max_new_tokens, []
    length = _padded(judge, [row for rows in both for row in rows], usual)
    for rows in both:
        loss_parts = []
        for part, count in batched(rows, length, settings.judged_together):
            split = judge.split(part, judge.config.num_layers - 1, length=length, last_only=False)
            loss_parts.append(np.asarray(losses.first_losses(split), float)[:count])
        # Texts are padded on the left: those of a row are its last tokens.
        every = np.concatenate(loss_parts) if filled else np.zeros((0, 0))
        sides.append(np.asarray([row[-len(bodies[k]) :].mean() for k, row in zip(filled, every, strict=True)]))
    values[filled] = sides[1] - sides[0]
    return values


def _padded(lm: LanguageModel, rows: list[list[int]], usual: int) -> int:
    """A length that holds all rows; few different ones, so that few programs are compiled."""
    longest = max(map(len, rows), default=0)
    rounded = usual if longest <= usual else -(-longest // 64) * 64
    return max(longest, min(rounded, lm.config.max_seq_len))


def _total(log_p: Float[np.ndarray, "n V"], tokens: Int[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
    """The logarithm of the probability of several tokens; a large negative number if there are none."""
    return logsumexp(log_p[:, tokens], axis=-1) if tokens.size else np.full(len(log_p), -1e3)

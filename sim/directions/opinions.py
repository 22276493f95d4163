"""What a language model says of texts: whether they show a concept, asked of it or read off its likelihoods.

`judged` asks a judge, as in S (arXiv:2602.02712, section 5). `ratios` tells by how much a text is likelier after an opening
that announces the concept than after one that announces its opposite, which also small models can. `Shows` makes a
probability of either, which `sim.choose` takes; how far it can be trusted, `right_on_pairs` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logsumexp

from sim.bridge.model import LanguageModel
from sim.bridge.split import last_log_p
from sim.directions.prompt_texts import DEFINITIONS, judge_request, plain_request
from sim.directions.texts import Pair
from sim.measure import losses
from ufm._batches import batched
from ufm._check import require, shown

SHOWN, NOT_SHOWN, NO_ANSWER = 1, 0, 2
"""Answers of a judge."""


def judged(
    judge: LanguageModel, texts: Sequence[str], name: str, *, chat: bool = False, usual: int = 64, together: int = 16
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The opinion of a judge on texts: its likeliest answer, and its log-odds of "1" against "0".

    Args:
        judge: a model with a tokenizer.
        texts: to judge.
        name: of the concept.
        chat: whether it is asked in its chat template, if it has one; a small model answers better without.
        usual: how many tokens a text has, about: requests are padded to hold so many.
        together: texts in one pass.
    """
    tokenizer, last = judge.tokenizer, judge.config.num_layers - 1
    assert tokenizer is not None
    chat = chat and tokenizer.template is not None
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
    length = _padded(judge, rows, len(tokens("")) + usual)
    for part, count in batched(rows, length, together):
        log_p = np.asarray(last_log_p(judge.split(part, last, length=length)), float)[:count]
        likeliest = log_p.argmax(axis=-1)
        neither = np.where(np.isin(likeliest, no), NOT_SHOWN, NO_ANSWER)
        answers.append(np.where(np.isin(likeliest, yes), SHOWN, neither))
        scores.append(_total(log_p, yes) - _total(log_p, no))
    return np.concatenate(answers).astype(np.int8), np.concatenate(scores)


def ratios(
    judge: LanguageModel, texts: Sequence[str], name: str, *, usual: int = 64, together: int = 16
) -> Float[np.ndarray, " n"]:
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
    sides, expected = [], max(map(len, openings)) + usual
    length = _padded(judge, [row for rows in both for row in rows], expected)
    for rows in both:
        loss_parts = []
        for part, count in batched(rows, length, together):
            split = judge.split(part, judge.config.num_layers - 1, length=length, last_only=False)
            loss_parts.append(np.asarray(losses.first_losses(split), float)[:count])
        # Texts are padded on the left: those of a row are its last tokens.
        every = np.concatenate(loss_parts) if filled else np.zeros((0, 0))
        sides.append(np.asarray([row[-len(bodies[k]) :].mean() for k, row in zip(filled, every, strict=True)]))
    values[filled] = sides[1] - sides[0]
    return values


WAYS = ("judge", "ratio")
"""How a `Shows` tells whether a text shows a concept."""


@dataclass(frozen=True)
class Shows:
    """The probability that a text shows a concept, as a language model has it.

    Attributes:
        judge: the model, with a tokenizer.
        concept: its name; for "ratio" one of `sim.directions.prompt_texts.DEFINITIONS`.
        by: "judge", where the model is asked, and says 1 rather than 0; or "ratio", where the text is compared after an
            opening that announces the concept and after one that announces its opposite, which are as likely beforehand.
        chat: whether a judge is asked in its chat template, if it has one.
    """

    judge: LanguageModel = field(repr=False)
    concept: str
    by: str = "judge"
    chat: bool = False

    def __post_init__(self) -> None:
        require(isinstance(self.judge, LanguageModel), "judge", "a language model of sim.load", shown(self.judge))
        require(isinstance(self.by, str) and self.by in WAYS, "by", f"one of {', '.join(WAYS)}", shown(self.by))
        require(self.judge.tokenizer is not None, "judge", "a model with a tokenizer", repr(self.judge.name))
        named = isinstance(self.concept, str) and bool(self.concept.strip())
        require(named, "concept", "its name", shown(self.concept))
        known = self.by == "judge" or self.concept in DEFINITIONS
        expected = f"one of {', '.join(DEFINITIONS)}, whose opposites are known (a judge may be asked about others)"
        require(known, "concept", expected, shown(self.concept))

    @property
    def name(self) -> str:
        """Who says of what."""
        return f"{self.concept}, by {self.by} of {self.judge.name}"

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """The probabilities of texts; an empty one shows nothing."""
        return expit(self.log_odds(texts))

    def log_odds(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Their log-odds: of an empty text minus infinity."""
        if not texts:
            return np.zeros(0)
        if self.by == "judge":
            odds = judged(self.judge, texts, self.concept, chat=self.chat)[1]
        else:
            assert self.judge.tokenizer is not None
            sizes = [len(self.judge.tokenizer.encode(text.strip(), special=False)) for text in texts]
            odds = ratios(self.judge, texts, self.concept) * sizes
        return np.where([bool(text.strip()) for text in texts], odds, -np.inf)


def right_on_pairs(shows: Shows, pairs: Sequence[Pair]) -> float:
    """Of how many pairs the text that shows a concept gets the higher probability, as a part of all; ties count half.

    Args:
        shows: what is tried.
        pairs: texts of both sides, as `sim.concept_pairs` has them.

    Raises:
        ValueError: no pairs.
    """
    require(len(pairs) > 0, "pairs", "at least one", "none")
    odds = shows.log_odds([text for pair in pairs for text in (pair.matching, pair.not_matching)])
    ahead = odds[::2] - odds[1::2]
    return float(np.mean((ahead > 0) + 0.5 * (ahead == 0)))


def _padded(lm: LanguageModel, rows: list[list[int]], usual: int) -> int:
    """A length that holds all rows; few different ones, so that few programs are compiled."""
    longest = max(map(len, rows), default=0)
    rounded = usual if longest <= usual else -(-longest // 64) * 64
    return max(longest, min(rounded, lm.config.max_seq_len))


def _total(log_p: Float[np.ndarray, "n V"], tokens: Int[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
    """The logarithm of the probability of several tokens; a large negative number if there are none."""
    return logsumexp(log_p[:, tokens], axis=-1) if tokens.size else np.full(len(log_p), -1e3)

"""The case of letters as a concept: of tokens, of text so far, and of the contexts that a corpus in both cases has."""

import numpy as np
from jaxtyping import Int

from sim.bridge.tokenizer import Tokenizer

CASES = ("upper", "lower", "none")
"""Concepts of tokens: with letters of one case only, or without (or with both)."""

UPPER, LOWER, NONE = range(3)


def case_of(text: str) -> int:
    """The index in `CASES` of a piece of text."""
    upper, lower = any(c.isupper() for c in text), any(c.islower() for c in text)
    return UPPER if upper and not lower else LOWER if lower and not upper else NONE


def case_of_tokens(tokenizer: Tokenizer) -> Int[np.ndarray, " V"]:
    """The index in `CASES` of every token."""
    return np.asarray([case_of(tokenizer.decode([z])) for z in range(tokenizer.size)])


def case_so_far(rows: Int[np.ndarray, "n T"], cases: Int[np.ndarray, " V"], end: int) -> Int[np.ndarray, "n T"]:
    """The case of the last token with letters up to every position of a row; none before the first, and after an end."""
    own = cases[rows]
    place = np.where((own != NONE) | (rows == end), np.arange(rows.shape[1]), 0)
    return np.take_along_axis(own, np.maximum.accumulate(place, axis=1), axis=1)


def contexts(
    tokens: Int[np.ndarray, " N"], cases: Int[np.ndarray, " V"], end: int, length: int
) -> dict[int, list[list[int]]]:
    """Pieces of text of one length that do not overlap, each in one document and one case; by index in `CASES`."""
    pieces: dict[int, list[list[int]]] = {UPPER: [], LOWER: []}
    for document in np.split(tokens, np.flatnonzero(tokens == end)):
        body = document[document != end]
        for row in body[: len(body) // length * length].reshape(-1, length):
            kinds = set(cases[row].tolist()) - {NONE}
            if len(kinds) == 1:
                pieces[kinds.pop()].append(row.tolist())
    return pieces

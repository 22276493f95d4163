"""A corpus of one's own for the toy figures: a table of next-token probabilities, or documents that are counted into one.

A table is a CSV file. Its first line names the columns: ``context``, ``concept``, if wanted ``weight``, and the tokens; its
second, which begins with ``concept``, has the concept of every token; each further line is a context. Documents are in any
other text file: lines such as ``colour: red blue`` that name the tokens of a concept, an empty line, then one document on
each line, its tokens parted by spaces. The last token of a document is the next token, those before it are the context.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sim.toy.curves import Names
from theory import make_instance
from theory.examples import Case
from ufm import Concepts, contrastive, from_table
from ufm._check import require, typed
from ufm.counting import count_documents


class NamedCase(NamedTuple):
    """A corpus to train on, how it is steered, and what its tokens, concepts and contexts are called."""

    case: Case
    names: Names


@typed
def read_corpus(path: Path, *, target: str | None = None, away: str | None = None, smoothing: float = 0.0) -> NamedCase:
    """The corpus of a file (call it inside ``jax.enable_x64(True)``), steered from one concept to another.

    Args:
        path: a ``.csv`` file with a table, or a text file with documents.
        target: the concept that is steered to; the first of the file if left out.
        away: the concept that is steered away from; the first other one if left out.
        smoothing: added to every count of documents.

    Returns:
        The case, its concepts in the order target, away, others; all contexts of the target are contrasted with all of away.

    Raises:
        ValueError: a file that cannot be read or is not of its form; the message names the file and the line. A concept that
            is not in it, or has no contexts; a probability of 0 in a contrasted context.
    """
    require(smoothing >= 0, "smoothing", "a finite number of at least 0", smoothing)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        require(False, "corpus", "a CSV or text file in UTF-8", f"{str(path)!r} ({error})")
    is_table = path.suffix.lower() == ".csv"
    require(not (is_table and smoothing), "smoothing", "0 for a table: it is for counts", smoothing)
    file = (_table if is_table else _documents)(path, text)
    order = _ordered(path, file.concepts, target, away)
    of_token = [order.index(name) for name in file.of_token]
    if is_table:
        corpus = from_table(file.rows, Concepts(of_token), [order.index(name) for name in file.of_context], file.weights)
        contexts = file.contexts
    else:
        corpus = count_documents([file.rows.astype(int)], Concepts(of_token), smoothing=smoothing)
        assert corpus.words is not None
        contexts = [" ".join(file.tokens[z] for z in words) for words in np.asarray(corpus.words)]
    counts = np.bincount(np.asarray(corpus.concept), minlength=len(order))
    for name, count in zip(order[:2], counts, strict=False):
        require(count > 0, str(path), f"a context of the concept {name!r}, which steering needs", "none")
    used = np.asarray(corpus.concept) < 2
    zero = np.argwhere(~np.isfinite(np.asarray(corpus.log_p)) & used[:, None])
    if len(zero):
        j, z = zero[0]
        advice = "" if is_table else "; a smoothing of 0.5, say, is added to all counts"
        expected = f"positive probabilities after contexts of {order[0]!r} and {order[1]!r}{advice}"
        require(False, str(path), expected, f"0 for {file.tokens[z]!r} after {contexts[j]!r}")
    instance = make_instance(corpus, *contrastive(corpus, target=0, opposite=1), target=0)
    case = Case(corpus, instance, width=max(16, len(file.tokens)))
    return NamedCase(case, Names(tuple(file.tokens), tuple(order), tuple(contexts)))


class _File(NamedTuple):
    """The contents of a file: names, the concept of every token and context by name, and probabilities or documents."""

    tokens: list[str]
    concepts: list[str]
    of_token: list[str]
    contexts: list[str]
    of_context: list[str]
    weights: list[float]
    rows: np.ndarray


def _table(path: Path, text: str) -> _File:
    reader = csv.reader(text.splitlines())
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table in CSV, got line {reader.line_num}, where {error}") from error
    begin = "a first line context,concept[,weight],TOKEN,TOKEN,..., a second concept,,CONCEPT,CONCEPT,..., and contexts"
    require(len(lines) >= 3, str(path), begin, f"{len(lines)} lines that are not empty")
    (first, header), (second, owners), *rest = lines
    weighted = header[2:3] == ["weight"]
    start = 3 if weighted else 2
    tokens = header[start:]
    _at(path, first, header[:2] == ["context", "concept"], "the columns context, concept[, weight] and the tokens", header)
    _names(path, first, "token", tokens)
    _at(path, second, owners[:1] == ["concept"], "a line that begins with 'concept' and has that of every token", owners)
    of_token = owners[start:]
    _at(path, second, len(of_token) == len(tokens) and all(of_token), f"concepts of {len(tokens)} tokens", of_token)
    concepts = list(dict.fromkeys(of_token))
    contexts: list[str] = []
    of_context, weights, rows = [], [], []
    for k, cells in rest:
        _at(path, k, len(cells) == len(header), f"{len(header)} cells, as the first line has", len(cells))
        _at(path, k, cells[1] in concepts, f"a concept that has tokens: {', '.join(concepts)}", cells[1])
        numbers = [_number(path, k, name, cell) for name, cell in zip(header[2:], cells[2:], strict=True)]
        row = numbers[start - 2 :]
        _at(path, k, abs(sum(row) - 1) < 1e-6, "probabilities that sum to 1", f"a sum of {sum(row):.10g}")
        _at(path, k, not weighted or numbers[0] > 0, "a positive weight", cells[2])
        contexts.append(cells[0] or f"context {len(contexts) + 1}")
        of_context.append(cells[1])
        weights.append(numbers[0] if weighted else 1.0)
        rows.append(row)
    return _File(tokens, concepts, of_token, contexts, of_context, weights, np.array(rows))


def _documents(path: Path, text: str) -> _File:
    lines = text.splitlines()
    owner: dict[str, str] = {}
    end = next((k for k, line in enumerate(lines) if not line.strip()), len(lines))
    for k, line in enumerate(lines[:end], 1):
        name, colon, words = line.partition(":")
        _at(path, k, bool(colon and name.strip() and words.split()), "CONCEPT: TOKEN TOKEN ...", repr(line))
        for token in words.split():
            _at(path, k, token not in owner, "tokens that are of one concept", f"{token!r} a second time")
            owner[token] = name.strip()
    tokens = list(owner)
    documents: list[list[int]] = []
    for k, line in enumerate(lines[end:], end + 1):
        document = line.split()
        if not document:
            continue
        unknown = [word for word in document if word not in owner]
        _at(path, k, not unknown, "tokens of the concepts above", unknown[:3])
        _at(path, k, len(document) >= 2, "a document of two tokens or more", repr(line))
        wanted = len(documents[0]) if documents else len(document)
        _at(path, k, len(document) == wanted, f"a document of {wanted} tokens, as the first", len(document))
        mixed = list(dict.fromkeys(owner[word] for word in document[:-1]))
        _at(path, k, len(mixed) == 1, "a context whose tokens are of one concept", f"tokens of {' and '.join(mixed)}")
        documents.append([tokens.index(word) for word in document])
    require(bool(documents), str(path), "lines CONCEPT: TOKEN ..., an empty line, and documents", "no document")
    concepts = list(dict.fromkeys(owner.values()))
    return _File(tokens, concepts, list(owner.values()), [], [], [], np.array(documents))


def _ordered(path: Path, concepts: list[str], target: str | None, away: str | None) -> list[str]:
    """The concepts, the target first and the one steered away from second."""
    require(len(concepts) >= 2, str(path), "at least two concepts", concepts)
    for argument, name in (("target", target), ("away", away)):
        require(name is None or name in concepts, argument, f"a concept of {path}: {', '.join(concepts)}", name)
    first = target or next(name for name in concepts if name != away)
    second = away or next(name for name in concepts if name != first)
    require(first != second, "away", "another concept than the target", second)
    return [first, second, *(name for name in concepts if name not in (first, second))]


def _at(path: Path, line: int, fits: bool, expected: str, got: Any) -> None:
    require(fits, f"{path}, line {line}", expected, got)


def _names(path: Path, line: int, kind: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    _at(path, line, len(names) >= 2 and all(names), f"at least two {kind}s, each with a name", list(names))
    _at(path, line, not twice, f"{kind}s of different names", f"{', '.join(twice)} more than once")


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    _at(path, line, bool(np.isfinite(value) and value >= 0), f"a number of at least 0 under {column!r}", repr(cell))
    return value

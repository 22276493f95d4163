"""Corpora as documents: counting a next-token table from token sequences, and sampling documents from one.

A document is T tokens: a context of T - 1 and its next token. Counting is streamed, so that documents need not fit in
memory: what is kept is one count per distinct (context, next token).
"""

from collections import Counter
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ufm._check import require, typed
from ufm.concepts import Concepts, check_count
from ufm.corpus import Corpus, from_table


@typed
def count_documents(documents: Iterable[np.ndarray], concepts: Concepts, *, smoothing: float = 0.0) -> Corpus:
    """The empirical next-token table of a stream of documents (S, definition 2.1).

    Args:
        documents: blocks of documents, each ``[n, T]`` (or one document, ``[T]``) integers; an iterator is consumed once.
        concepts: the partition of the vocabulary. The tokens of a context must all be of one concept.
        smoothing: added to every count. With 0, a next token never seen after a context has probability 0, for which
            log-odds are infinite: steering such a corpus is refused.

    Returns:
        A corpus with one row per distinct context, in lexicographic order, and weights proportional to counts.
        Assumption 1 holds up to sampling error; `ufm.corpus.assumption_1` reports by how much.

    Raises:
        ValueError: no document, documents of different lengths, fewer than two tokens, a token outside the vocabulary,
            or a context that mixes concepts.
    """
    require(bool(np.isfinite(smoothing) and smoothing >= 0), "smoothing", "a number of at least 0", smoothing)
    counts: Counter[bytes] = Counter()
    length = 0
    for block in documents:
        array = np.atleast_2d(np.asarray(block))
        require(np.issubdtype(array.dtype, np.integer), "documents", "integer tokens", array.dtype)
        require(array.ndim == 2 and array.shape[1] >= 2, "documents", "documents of T >= 2 tokens", f"shape {array.shape}")
        length = length or array.shape[1]
        require(array.shape[1] == length, "documents", f"documents of {length} tokens, as the first", array.shape[1])
        outside = array[(array < 0) | (array >= concepts.vocabulary_size)]
        require(outside.size == 0, "documents", f"tokens in 0..{concepts.vocabulary_size - 1}", outside[:5].tolist())
        owner = concepts.of_token[array[:, :-1]]
        mixing = np.flatnonzero((owner != owner[:, :1]).any(axis=1))
        if mixing.size:
            require(False, "documents", "contexts whose tokens share one concept", array[mixing[0], :-1].tolist())
        unique, number = np.unique(array.astype(np.int32), axis=0, return_counts=True)
        for document, n in zip(unique, number, strict=True):
            counts[document.tobytes()] += int(n)
    require(len(counts) > 0, "documents", "at least one document", "none")

    documents_seen = np.frombuffer(b"".join(counts), dtype=np.int32).reshape(-1, length)
    words, context = np.unique(documents_seen[:, :-1], axis=0, return_inverse=True)
    table = np.full((len(words), concepts.vocabulary_size), float(smoothing))
    np.add.at(table, (context.ravel(), documents_seen[:, -1]), list(counts.values()))
    seen = np.bincount(context.ravel(), weights=list(counts.values()))
    return from_table(table / table.sum(axis=1, keepdims=True), concepts, concepts.of_token[words[:, 0]], seen, words=words)


@typed
def sample_documents(key: jax.Array, corpus: Corpus, n: int) -> Int[Array, "n T"]:
    """`n` independent documents of T tokens: a context drawn from pi, then its next token from p(. | c).

    Raises:
        ValueError: if the corpus has no words, or n is negative.
    """
    require(corpus.words is not None, "corpus", "contexts made of tokens (a corpus with words)", "anonymous contexts")
    assert corpus.words is not None
    require(n >= 0, "n", "a number of documents of at least 0", n)
    check_count("n", "documents", n)
    of_context, of_token = jax.random.split(key)
    contexts = jax.random.categorical(of_context, jnp.log(corpus.weights), shape=(n,))
    # Inverse-CDF sampling keeps one uniform number per document instead of one per document and token.
    cumulative = jnp.cumsum(jnp.exp(corpus.log_rows), axis=-1)
    level = jax.random.uniform(of_token, (n,), cumulative.dtype) * cumulative[corpus.row[contexts], -1]
    tokens = jax.vmap(lambda r, u: jnp.searchsorted(cumulative[r], u, side="right"))(corpus.row[contexts], level)
    tokens = jnp.minimum(tokens, corpus.vocabulary_size - 1)  # a level that rounds up to the total is the last token
    return jnp.concatenate([corpus.words[contexts], tokens[:, None].astype(corpus.words.dtype)], axis=1)

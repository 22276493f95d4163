from collections import defaultdict

import jax
import numpy as np
import pytest

from ufm import Concepts, assumption_1, count_documents, sample_documents, uniform

CONCEPTS = Concepts([0, 0, 1, 1, 1])


def random_documents(n=300, length=3, seed=0):
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, 2, n)
    contexts = np.where(owner[:, None] == 0, rng.integers(0, 2, (n, length - 1)), rng.integers(2, 5, (n, length - 1)))
    return np.concatenate([contexts, rng.integers(0, 5, (n, 1))], axis=1)


def brute_force(documents, smoothing):
    counts = defaultdict(lambda: [smoothing] * 5)
    seen = defaultdict(int)
    for document in documents.tolist():
        counts[tuple(document[:-1])][document[-1]] += 1
        seen[tuple(document[:-1])] += 1
    words = sorted(counts)
    rows = [[x / sum(counts[w]) for x in counts[w]] for w in words]
    return words, rows, [seen[w] / len(documents) for w in words]


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_streamed_counts_are_the_brute_force_ones(smoothing):
    documents = random_documents()
    blocks = (documents[start:stop] for start, stop in [(0, 1), (1, 40), (40, 40), (40, 300)])
    corpus = count_documents(blocks, CONCEPTS, smoothing=smoothing)
    words, rows, weights = brute_force(documents, smoothing)
    assert [tuple(w) for w in np.asarray(corpus.words).tolist()] == words
    np.testing.assert_allclose(np.exp(corpus.log_p), rows, rtol=1e-14)
    np.testing.assert_allclose(corpus.weights, weights, rtol=1e-14)
    assert corpus.concept.tolist() == [CONCEPTS.of_token[w[0]] for w in words]


def test_documents_one_by_one_or_in_small_integers():
    documents = random_documents(40)
    for form in (iter(documents), list(documents), [documents.astype(np.uint8)]):
        corpus = count_documents(form, CONCEPTS)
        np.testing.assert_allclose(np.exp(corpus.log_p), brute_force(documents, 0.0)[1], rtol=1e-14)


def test_sampling_then_counting_recovers_the_table():
    corpus = uniform((2, 3), 0.3, length=2, weights=np.arange(1, 14))
    n = 200_000
    documents = sample_documents(jax.random.key(0), corpus, n)
    assert documents.shape == (n, 3)
    counted = count_documents([np.asarray(documents)], corpus.concepts)
    order = np.lexsort(np.asarray(corpus.words).T[::-1])
    p, pi = np.exp(np.asarray(corpus.log_p))[order], np.asarray(corpus.weights)[order]
    np.testing.assert_array_equal(counted.words, np.asarray(corpus.words)[order])
    deviations = (np.exp(counted.log_p) - p) / np.sqrt(p * (1 - p) / (n * pi[:, None]))
    assert 0.7 < np.sqrt(np.mean(deviations**2)) < 1.3
    assert np.abs(deviations).max() < 5
    np.testing.assert_allclose(counted.weights, pi, atol=5 * np.sqrt(pi.max() / n))

    margins = assumption_1(counted)
    smallest = np.sqrt(0.25 / (n * pi.min()))
    assert -8 * smallest < float(margins.inside) < 0
    assert -8 * smallest < float(margins.outside) < 0
    assert float(margins.separation) > 0


def test_sampling_never_draws_a_token_of_probability_zero():
    corpus = count_documents([np.array([[0, 4], [0, 2], [2, 1]])], CONCEPTS)
    documents = np.asarray(sample_documents(jax.random.key(1), corpus, 2000))
    assert set(map(tuple, documents.tolist())) == {(0, 4), (0, 2), (2, 1)}


def test_sampling_is_a_function_of_its_key():
    corpus = count_documents([np.array([[0, 4], [0, 2], [2, 1]])], CONCEPTS)
    a, b, c = (np.asarray(sample_documents(jax.random.key(k), corpus, 2000)) for k in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()


BAD_DOCUMENTS = {
    "none": ([], "at least one document, got none"),
    "empty block": ([np.zeros((0, 3), int)], "at least one document, got none"),
    "mixed concepts": ([np.array([[0, 1, 2], [1, 2, 0]])], r"contexts whose tokens share one concept, got \[1, 2\]"),
    "mixed lengths": ([np.array([[0, 1, 2]]), np.array([[0, 1]])], "documents of 3 tokens, as the first, got 2"),
    "one token": ([np.array([[0]])], r"documents of T >= 2 tokens, got shape \(1, 1\)"),
    "token too large": ([np.array([[0, 1, 5]])], r"tokens in 0\.\.4, got \[5\]"),
    "token in the context too large": ([np.array([[7, 7, 0]])], r"tokens in 0\.\.4, got \[7, 7\]"),
    "negative token": ([np.array([[0, 1, -1]])], r"tokens in 0\.\.4, got \[-1\]"),
    "not integers": ([np.array([[0.0, 1.0]])], "integer tokens, got float64"),
}


@pytest.mark.parametrize(("documents", "message"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
def test_refuses_documents(documents, message):
    with pytest.raises(ValueError, match="^documents: expected .*" + message):
        count_documents(documents, CONCEPTS)


@pytest.mark.parametrize("smoothing", [-1.0, np.nan, np.inf])
def test_refuses_smoothing(smoothing):
    with pytest.raises(ValueError, match=rf"^smoothing: .* got {smoothing}"):
        count_documents([np.array([[0, 1]])], CONCEPTS, smoothing=smoothing)


def test_refuses_to_sample():
    with pytest.raises(ValueError, match=r"^corpus: expected contexts made of tokens"):
        sample_documents(jax.random.key(0), uniform((2, 2), contexts_per_concept=1), 3)
    with pytest.raises(ValueError, match=r"^n: .*got -1"):
        sample_documents(jax.random.key(0), uniform((2, 2)), -1)
    with pytest.raises(ValueError, match=r"^n: expected documents that fit in memory, at most 16777216, got 4611"):
        sample_documents(jax.random.key(0), uniform((2, 2)), 2**62)

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ufm import (
    Concepts,
    assumption_1,
    cross_entropy,
    entropy,
    exact,
    families,
    log_linear,
    mixed,
    per_context,
    uniform,
    weighted,
)

SIZES = (1, 2, 3)
OF_TOKEN = [0, 1, 1, 2, 2, 2]
GAMMA = [1.0, 0.4, 0.6, 0.5, 0.3, 0.2]
OMEGA = [1.0, 0.7, 0.3, 0.2, 0.2, 0.6]


def table(a, b, owner):
    """a_z where token and context share their concept, else b_z; a may be per context."""
    a = np.broadcast_to(a, (len(owner), len(OF_TOKEN)))
    return [[a[j][z] if OF_TOKEN[z] == k else b[z] for z in range(len(OF_TOKEN))] for j, k in enumerate(owner)]


def test_the_default_corpus_has_its_known_entropy():
    corpus = uniform()
    assert float(entropy(corpus)) == pytest.approx(1.3317848910419796, abs=1e-12)
    assert (corpus.n_contexts, corpus.vocabulary_size, corpus.concepts.count) == (81, 9, 3)
    assert float(cross_entropy(exact(corpus), corpus)) == pytest.approx(1.3317848910419796, abs=1e-12)


def test_uniform_table():
    corpus = uniform(SIZES, 0.3, length=None, contexts_per_concept=2)
    a, b = [0.7, 0.35, 0.35] + [0.7 / 3] * 3, [0.15, 0.075, 0.075] + [0.05] * 3
    np.testing.assert_allclose(jnp.exp(corpus.log_p), table(a, b, [0, 0, 1, 1, 2, 2]), rtol=1e-14)


def test_weighted_table():
    corpus = weighted(SIZES, GAMMA, OMEGA, 0.3, contexts_per_concept=1, weights=[1.0, 2.0, 5.0])
    a, b = 0.7 * np.array(GAMMA), 0.15 * np.array(OMEGA)
    np.testing.assert_allclose(jnp.exp(corpus.log_p), table(a, b, [0, 1, 2]), rtol=1e-14)
    np.testing.assert_allclose(corpus.weights, [0.125, 0.25, 0.625])


def test_per_context_table():
    owner = [2, 1, 2]
    gamma = np.array([[9.0, 9, 9, 0.5, 0.25, 0.25], [9, 0.4, 0.6, 9, 9, 9], [9, 9, 9, 0.2, 0.3, 0.5]])
    corpus = per_context(SIZES, gamma, OMEGA, 0.3, owner)
    np.testing.assert_allclose(jnp.exp(corpus.log_p), table(0.7 * gamma, 0.15 * np.array(OMEGA), owner), rtol=1e-14)
    assert corpus.concept.tolist() == owner


def test_mixed_table_is_outside_assumption_1():
    q = np.array([[0.8, 0.1, 0.1], [0.1, 0.3, 0.6]])
    corpus = mixed(np.array([[1.0, 0.0], [0.6, 0.4], [0.2, 0.8]]), q, [[0], [1, 2]])
    np.testing.assert_allclose(jnp.exp(corpus.log_p), [q[0], 0.6 * q[0] + 0.4 * q[1], 0.2 * q[0] + 0.8 * q[1]])
    assert corpus.concept.tolist() == [0, 0, 1]
    assert float(assumption_1(corpus).inside) < -0.1


def test_log_linear_table_with_concepts_that_overlap():
    """Token 1 has both attributes: after a context of both it is as likely as e^2 to 1 to a token of neither."""
    features = np.array([[1, 1, 0, 0], [0, 1, 1, 0]])
    corpus = log_linear(np.zeros(4), features, np.array([[1, 0], [0, 1], [1, 1]]), [[0, 1], [2, 3]], weights=[1.0, 1.0, 2.0])
    odds = np.exp([[1, 1, 0, 0], [0, 1, 1, 0], [1, 2, 1, 0]])
    np.testing.assert_allclose(jnp.exp(corpus.log_p), odds / odds.sum(axis=1, keepdims=True), rtol=1e-12)
    assert corpus.concept.tolist() == [0, 0, 0]
    np.testing.assert_allclose(corpus.weights, [0.25, 0.25, 0.5])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_contexts_are_all_words_of_one_concept(length):
    words, owner = families.all_words(Concepts(OF_TOKEN), length)
    expected = [w for w in itertools.product(range(6), repeat=length) if len({OF_TOKEN[z] for z in w}) == 1]
    assert sorted(map(tuple, words.tolist())) == expected
    assert [OF_TOKEN[w[0]] for w in words] == owner.tolist()


def test_corpora_of_words_share_rows():
    corpus = uniform(SIZES, 0.3, length=2)
    assert corpus.n_contexts == 1 + 4 + 9
    assert corpus.words.shape == (14, 2)
    assert corpus.log_rows.shape == (3, 6)
    np.testing.assert_allclose(corpus.row_weights, np.array([1, 4, 9]) / 14)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 0.5, 0.7, np.nan])
def test_refuses_epsilon(epsilon):
    with pytest.raises(ValueError, match=rf"^epsilon: .* got {epsilon}"):
        uniform((2, 2), epsilon)


@pytest.mark.parametrize("build", [lambda: uniform((3,)), lambda: weighted((1,), [1.0], [1.0], 0.1)])
def test_refuses_one_concept(build):
    with pytest.raises(ValueError, match=r"^sizes: .*got 1"):
        build()


BAD_SHARES = {
    "sum": ([1.0, 0.5, 0.6, 0.5, 0.3, 0.2], "sum to 1 over each concept, got .* over concept 1"),
    "negative": ([1.0, -0.5, 1.5, 0.5, 0.3, 0.2], "positive shares, got -0.5"),
    "zero": ([1.0, 0.0, 1.0, 0.5, 0.3, 0.2], "positive shares, got 0"),
    "nan": ([1.0, np.nan, 1.0, 0.5, 0.3, 0.2], r"finite numbers, got nan at index \(1,\)"),
    "length": ([1.0, 1.0], r"one share for each of 6 tokens, got shape \(2,\)"),
}


@pytest.mark.parametrize("argument", ["gamma", "omega"])
@pytest.mark.parametrize(("shares", "message"), BAD_SHARES.values(), ids=BAD_SHARES)
def test_refuses_shares(argument, shares, message):
    arguments = {"gamma": GAMMA, "omega": OMEGA} | {argument: shares}
    with pytest.raises(ValueError, match=f"^{argument}: expected .*{message}"):
        weighted(SIZES, epsilon=0.3, **arguments)


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        (np.ones((1, 2)) / 2, r"shape \(1, 4\), one row per context, got shape \(1, 2\)"),
        (np.array([[0.5, 0.6, 1, 1]]), r"sum to 1 over each context's concept, got 1\.1 in row 0"),
        (np.array([[1.5, -0.5, 1, 1]]), r"positive shares, got -0\.5"),
    ],
)
def test_per_context_refuses_shares(gamma, message):
    with pytest.raises(ValueError, match=r"^gamma: expected .*" + message):
        per_context((2, 2), gamma, [0.5] * 4, 0.1, [0])


def test_per_context_refuses_unknown_concepts():
    with pytest.raises(ValueError, match=r"concept_of_context: expected concepts in 0\.\.1, got \[3\]"):
        per_context((2, 2), np.full((1, 4), 0.5), [0.5] * 4, 0.1, [3])


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ([[0.5, 0.4]], r"rows that sum to 1, got 0\.9"),
        ([[1.5, -0.5]], r"at least 0, got -0\.5"),
        ([[1.0]], r"shape \[contexts, 2\], .* got shape \(1, 1\)"),
        ([[np.nan, 1.0]], r"finite numbers, got nan at index \(0, 0\)"),
    ],
)
def test_mixed_refuses_mixtures(mixture, message):
    with pytest.raises(ValueError, match=r"^mixture: expected .*" + message):
        mixed(np.array(mixture), np.array([[0.9, 0.1], [0.2, 0.8]]), [[0], [1]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "^length: expected contexts of at least one token, got 0"),
        ({"length": None}, "^length: expected a context length, or contexts_per_concept, got None"),
        ({"contexts_per_concept": 0}, "^contexts_per_concept: expected at least one context per concept, got 0"),
    ],
)
def test_refuses_contexts(settings, message):
    with pytest.raises(ValueError, match=message):
        uniform(**settings)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"length": 40}, "length"),
        ({"sizes": (1, 1), "length": 10**12}, "length"),
        ({"contexts_per_concept": 10**13}, "contexts_per_concept"),
    ],
)
def test_refuses_contexts_that_do_not_fit_in_memory(arguments, argument):
    with pytest.raises(ValueError, match=f"^{argument}: expected contexts that fit in memory, at most 16777216, got "):
        uniform(**arguments)

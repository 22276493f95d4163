import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import entropy as exact_entropy
from ufm import Concepts, assumption_1, entropy, from_table, uniform

P = np.array([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5]])
LISTS = [[0], [1, 2]]


def test_from_table_keeps_what_it_is_given():
    corpus = from_table(P, LISTS, [0, 1], [1.0, 3.0])
    np.testing.assert_allclose(jnp.exp(corpus.log_p), P, rtol=1e-15)
    np.testing.assert_allclose(corpus.weights, [0.25, 0.75])
    assert corpus.concept.tolist() == [0, 1]
    assert (corpus.n_contexts, corpus.vocabulary_size, corpus.words) == (2, 3, None)
    assert [corpus.contexts_of(k).tolist() for k in (0, 1)] == [[0], [1]]


def test_rows_are_divided_by_their_sum():
    corpus = from_table(P * (1 + 1e-9), LISTS, [0, 1])
    np.testing.assert_allclose(np.exp(corpus.log_rows).sum(axis=1), 1, atol=2e-16)


def test_float32_tables_have_float32_tolerance():
    third = np.full((2, 3), 1 / 3, dtype=np.float32) * np.float32(1 + 1e-5)
    assert from_table(third, LISTS, [0, 1]).n_contexts == 2
    with pytest.raises(ValueError, match="rows that sum to 1"):
        from_table(third.astype(float), LISTS, [0, 1])


def test_shared_rows():
    corpus = from_table(P, LISTS, [0, 1, 1, 0], [1.0, 2.0, 3.0, 4.0], row=[0, 1, 1, 1])
    np.testing.assert_allclose(jnp.exp(corpus.log_p), P[[0, 1, 1, 1]])
    np.testing.assert_allclose(corpus.row_weights, [0.1, 0.9])


def test_entropy_to_50_digits(small_corpus):
    p, pi = np.exp(np.asarray(small_corpus.log_p)), np.asarray(small_corpus.weights)
    expected = sum(float(w) * float(exact_entropy(row)) for w, row in zip(pi, p, strict=True))
    assert float(entropy(small_corpus)) == pytest.approx(expected, rel=1e-14)


def test_entropy_of_zeros_and_shared_rows():
    corpus = from_table(np.array([[1.0, 0, 0], [0, 0.5, 0.5]]), LISTS, [0, 1, 1], [2.0, 1.0, 1.0], row=[0, 1, 1])
    assert float(entropy(corpus)) == pytest.approx(np.log(2) / 2, rel=1e-15)


def brute_margins(corpus):
    p, g = np.exp(np.asarray(corpus.log_p)), np.asarray(corpus.concept)
    inside, outside, separation = [0.0], [0.0], [np.inf]
    for z, k in enumerate(corpus.concepts.of_token):
        own = [p[j, z] for j in range(len(g)) if g[j] == k]
        other = [p[j, z] for j in range(len(g)) if g[j] != k]
        inside += [abs(x - y) for x in own for y in own]
        outside += [abs(x - y) for x in other for y in other]
        separation += [x - y for x in own for y in other]
    return -max(inside), -max(outside), min(separation), min(p.min(), (1 - p).min())


@pytest.mark.parametrize("seed", range(4))
def test_assumption_1_is_the_brute_force_one(seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(5), size=4)
    owner = rng.permutation([0, 0, 1, 2, 2, 1, 0])
    corpus = from_table(p, Concepts([0, 1, 1, 2, 0]), owner, row=rng.integers(0, 4, 7))
    margins = assumption_1(corpus)
    got = margins.inside, margins.outside, margins.separation, margins.interior
    np.testing.assert_allclose(got, brute_margins(corpus), atol=1e-15)


def test_assumption_1_of_the_uniform_family():
    margins = assumption_1(uniform((3, 3, 3), 0.05))
    assert float(margins.inside) == float(margins.outside) == 0
    assert float(margins.separation) == pytest.approx(0.95 / 3 - 0.05 / 6, rel=1e-14)
    assert float(margins.interior) == pytest.approx(0.05 / 6, rel=1e-14)


def test_assumption_1_of_one_concept_claims_no_separation():
    assert float(assumption_1(from_table(P, [[0, 1, 2]], [0, 0])).separation) == np.inf


def test_a_batch_of_corpora_is_a_corpus():
    corpora = [uniform((2, 2), eps, length=1) for eps in (0.1, 0.2, 0.4)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *corpora)
    got = jax.vmap(entropy)(batch)
    np.testing.assert_allclose(got, [float(entropy(c)) for c in corpora], rtol=1e-15)


BAD_TABLES = {
    "sum": ([[0.5, 0.4, 0.2], [0.2, 0.3, 0.5]], r"rows that sum to 1, got .*1\.1.* in row 0"),
    "negative": ([[0.5, 0.3, 0.2], [1.2, -0.2, 0.0]], r"at least 0, got -0\.2 in row 1, token 1"),
    "nan": ([[0.5, np.nan, 0.2], [0.2, 0.3, 0.5]], "finite probabilities, got nan in row 0, token 1"),
    "infinite": ([[0.5, 0.3, 0.2], [0.2, 0.3, np.inf]], "finite probabilities, got inf in row 1, token 2"),
    "one-dimensional": ([0.5, 0.3, 0.2], r"a table .* got shape \(3,\)"),
}


@pytest.mark.parametrize(("p", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_refuses_tables(p, message):
    with pytest.raises(ValueError, match="^p: expected .*" + message):
        from_table(np.array(p), LISTS, [0, 1])


def test_refuses_an_empty_table():
    with pytest.raises(ValueError, match=r"^p: expected"):
        from_table(np.zeros((0, 3)), LISTS, [])


BAD_ARGUMENTS = {
    "overlapping concepts": ({"concepts": [[0, 1], [1, 2]]}, "members: expected disjoint concepts, got token 1"),
    "token left out": ({"concepts": [[0], [2]]}, r"members: expected concepts that cover .* tokens \[1\]"),
    "partition of another size": ({"concepts": Concepts([0, 1])}, "concepts: expected a partition of the 3 tokens.* 2"),
    "unknown concept": ({"concept_of_context": [0, 2]}, r"concept_of_context: expected concepts in 0\.\.1, got 2 .* 1"),
    "negative concept": ({"concept_of_context": [-1, 0]}, r"concept_of_context: expected concepts in 0\.\.1, got -1"),
    "too few concepts": ({"concept_of_context": [0]}, r"concept_of_context: expected one .* 2 contexts, got shape \(1,\)"),
    "zero weight": ({"weights": [1.0, 0.0]}, r"weights: expected positive numbers, got 0\.0 for context 1"),
    "negative weight": ({"weights": [-1.0, 2.0]}, r"weights: expected positive numbers, got -1\.0 for context 0"),
    "nan weight": ({"weights": [np.nan, 2.0]}, "weights: expected positive numbers, got nan for context 0"),
    "too many weights": ({"weights": [1.0, 1.0, 1.0]}, r"weights: expected one weight .* 2 contexts, got shape \(3,\)"),
    "unknown row": ({"row": [0, 2]}, r"row: expected rows in 0\.\.1, got \[0, 2\]"),
    "words": ({"words": np.zeros((3, 2), int)}, r"words: expected the tokens .* 2 contexts, got shape \(3, 2\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_refuses_arguments(change, message):
    arguments = {"concepts": LISTS, "concept_of_context": [0, 1]} | change
    with pytest.raises(ValueError, match="^" + message):
        from_table(P, **arguments)


@pytest.mark.parametrize("argument", ["concept_of_context", "row"])
def test_refuses_indices_that_are_not_integers(argument):
    arguments = {"concept_of_context": [0, 1], "row": [0, 1]} | {argument: np.array([0.0, 0.5])}
    with pytest.raises(ValueError, match=argument):
        from_table(P, LISTS, **arguments)


def test_refuses_contexts_of_no_concept(small_corpus):
    with pytest.raises(ValueError, match=r"concept: .*got 2"):
        small_corpus.contexts_of(2)


def test_weights_whose_sum_is_no_float():
    corpus = uniform(weights=[1e308] * 80 + [2e307])
    np.testing.assert_allclose(corpus.weights, np.array([5] * 80 + [1]) / 401, rtol=1e-14)

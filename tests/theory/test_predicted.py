import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tests import oracles
from theory import predicted
from ufm import (
    Concepts,
    concept_increase,
    contrast,
    cross_entropy_increase,
    difference_of_means,
    exact,
    from_table,
    log_odds,
    probability_increase,
)

CONTEXTS = [3, 0, 4, 3]
ALPHAS = np.array([-1e6, -20.0, -1.5, 0.0, 0.4, 7.0, 1e6])


@pytest.fixture
def tiny_corpus():
    """Probabilities down to 1e-300, and a concept of one token; the matrix product would underflow."""
    p = np.array([[1.0, 1e-300, 1e-280, 0.5], [1e-300, 0.2, 0.3, 0.5], [0.1, 1e-290, 1e-20, 0.9]])
    p /= p.sum(axis=1, keepdims=True)
    return from_table(p, [[0], [3, 1, 2]], [0, 1, 1, 0, 0], np.arange(1.0, 6.0), row=[0, 1, 2, 0, 2])


@pytest.fixture(params=["small", "tiny"])
def corpus(request):
    return request.getfixturevalue(f"{request.param}_corpus")


@pytest.fixture
def m(corpus):
    return log_odds(corpus, contrast(5, [0, 1], [2, 4]))


def tilted(corpus, m, context, alpha):
    return np.array([float(q) for q in oracles.tilted(np.asarray(corpus.log_p)[context], np.asarray(m), alpha)[0]])


PROBABILITY_ROUNDING = 1e-13
"""A probability keeps its digits at every strength: its exponent is large only where it is 0."""


def rounding(m):
    """What rounding does to a cross-entropy, which grows like alpha M, for each strength."""
    return 1e-15 * (10 + 2 * np.abs(ALPHAS) * np.abs(m).max())


@pytest.mark.parametrize("tokens", [None, [3, 0]])
def test_probability_increase(corpus, m, tokens):
    got = predicted.probability_increase(corpus, CONTEXTS, m, ALPHAS, tokens=tokens)
    chosen = [0, 1, 2, 3] if tokens is None else tokens
    expected = [[(tilted(corpus, m, c, a) - tilted(corpus, m, c, 0))[chosen] for a in ALPHAS] for c in CONTEXTS]
    assert got.shape == (4, 7, len(chosen))
    assert (np.abs(got - np.array(expected)) <= PROBABILITY_ROUNDING).all()


@pytest.mark.parametrize("of_token", [None, [0, 0, 1, 1], [2, 1, 0, 1]])
def test_concept_increase(corpus, m, of_token):
    concepts = None if of_token is None else Concepts(of_token)
    got = predicted.concept_increase(corpus, CONTEXTS, m, ALPHAS, concepts)
    owner = corpus.concepts.of_token if of_token is None else np.array(of_token)
    for i, c in enumerate(CONTEXTS):
        for k, a in enumerate(ALPHAS):
            delta = tilted(corpus, m, c, a) - tilted(corpus, m, c, 0)
            means = [np.mean(delta[owner == g]) for g in range(owner.max() + 1)]
            np.testing.assert_allclose(got[i, k], means, atol=PROBABILITY_ROUNDING)


def test_cross_entropy_increase(corpus, m):
    """The mean divergence from the unsteered distribution, in its direct form, to 50 digits."""

    def increase(alpha):
        total = mpmath.mpf(0)
        for j in range(5):
            p, _ = oracles.tilted(np.asarray(corpus.log_p)[j], np.asarray(m), 0)
            q, _ = oracles.tilted(np.asarray(corpus.log_p)[j], np.asarray(m), alpha)
            total += float(corpus.weights[j]) * mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True))
        return float(total)

    got = predicted.cross_entropy_increase(corpus, m, ALPHAS)
    assert (np.abs(np.asarray(got) - [increase(a) for a in ALPHAS]) < 10 * rounding(m)).all()


@pytest.mark.parametrize("budget", [1, 9])
def test_the_budget_changes_nothing(corpus, m, budget):
    for function, arguments in (
        (predicted.probability_increase, (corpus, CONTEXTS, m, ALPHAS)),
        (predicted.concept_increase, (corpus, CONTEXTS, m, ALPHAS)),
        (predicted.cross_entropy_increase, (corpus, m, ALPHAS)),
    ):
        got, expected = np.asarray(function(*arguments, budget=budget)), np.asarray(function(*arguments))
        scale = rounding(m) if got.ndim == 1 else rounding(m)[:, None]
        assert (np.abs(got - expected) <= 10 * scale).all()


PARTITIONS = {"one concept": [0, 0, 0, 0], "pairs": [0, 0, 1, 1], "scattered": [1, 0, 1, 0], "unequal": [1, 0, 0, 0]}


@pytest.mark.parametrize("of_token", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("budget", [9, 2**20])
def test_both_paths_of_the_partition_to_50_digits(small_corpus, of_token, budget):
    m = log_odds(small_corpus, contrast(5, [0, 1], [2, 4]))
    concepts = Concepts(of_token)
    arguments = small_corpus.log_rows, m, jnp.asarray(ALPHAS), concepts, budget
    by_product, by_logsumexp = predicted._partition_by_product(*arguments), predicted._partition_by_logsumexp(*arguments)
    assert by_product.shape == by_logsumexp.shape == (5, 7, concepts.count)
    expected = np.empty(by_product.shape)
    for i, k, g in np.ndindex(*expected.shape):
        terms = [
            mpmath.exp(mpmath.mpf(float(lp)) + mpmath.mpf(float(ALPHAS[k])) * mpmath.mpf(float(mz)))
            for lp, mz, c in zip(np.asarray(small_corpus.log_rows)[i], np.asarray(m), of_token, strict=True)
            if c == g
        ]
        largest = max(mpmath.mpf(float(ALPHAS[k])) * mpmath.mpf(float(mz)) for mz in np.asarray(m))
        expected[i, k, g] = mpmath.log(mpmath.fsum(terms)) - largest
    np.testing.assert_allclose(by_product, expected, rtol=1e-14, atol=1e-13)
    np.testing.assert_allclose(by_logsumexp, expected, rtol=1e-14, atol=1e-13)


def test_the_partition_takes_the_path_that_does_not_underflow(tiny_corpus, small_corpus, monkeypatch):
    taken = []
    for name in ("_partition_by_product", "_partition_by_logsumexp"):
        path = getattr(predicted, name)
        monkeypatch.setattr(predicted, name, lambda *args, name=name, path=path: taken.append(name) or path(*args))
    zeros = small_corpus.log_rows.at[0, 0].set(-jnp.inf)
    arguments = jnp.zeros(4), jnp.zeros(1), small_corpus.concepts
    for rows in (small_corpus.log_rows, tiny_corpus.log_rows, zeros):
        predicted.concept_log_partition(rows, *arguments)
    jax.jit(lambda rows: predicted.concept_log_partition(rows, *arguments))(small_corpus.log_rows)
    assert taken == ["_partition_by_product"] + 3 * ["_partition_by_logsumexp"]


def test_the_partition_inside_a_transformation(small_corpus):
    m = log_odds(small_corpus, contrast(5, [0, 1], [2, 4]))

    def partition(rows):
        return predicted.concept_log_partition(rows, m, jnp.asarray(ALPHAS), small_corpus.concepts)

    batch = jnp.stack([small_corpus.log_rows, small_corpus.log_rows[::-1]])
    got = jax.vmap(partition)(batch)
    np.testing.assert_allclose(got[0], partition(batch[0]), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(got[1], partition(batch[1]), rtol=1e-13, atol=1e-13)


def test_contexts_that_share_a_row_cost_one(small_corpus):
    corpus = from_table(np.exp(small_corpus.log_p)[:2], small_corpus.concepts, [0, 1] * 500, row=[0, 1] * 500)
    m = log_odds(corpus, contrast(1000, [0], [1]))
    got = predicted.probability_increase(corpus, np.arange(1000), m, ALPHAS)
    assert got.shape == (1000, 7, 4)
    np.testing.assert_array_equal(got[:2], got[-2:])
    rows, which = predicted._rows(corpus, np.arange(1000))
    assert (rows.shape, which.shape) == ((2, 4), (1000,))


def test_zero_probabilities_outside_the_contrast():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.0, 0.25, 0.75]])
    corpus = from_table(p, [[0], [1, 2]], [0, 1, 1])
    m = log_odds(corpus, contrast(3, [0], [1]))
    got = np.asarray(predicted.probability_increase(corpus, [2], m, ALPHAS))
    assert (got[0, :, 0] == 0).all()
    np.testing.assert_allclose(got[0, -1], [0, 0.75, -0.75], atol=1e-12)
    assert np.isfinite(np.asarray(predicted.cross_entropy_increase(corpus, m, ALPHAS))).all()


def test_predicted_and_measured_are_twins(small_corpus):
    """Same trailing arguments, same shapes, same numbers."""
    model, weights = exact(small_corpus), contrast(5, [0, 1], [2, 4])
    m, v = log_odds(small_corpus, weights), difference_of_means(model, jnp.arange(5), weights)
    alphas = np.linspace(-30, 30, 7)
    concepts = small_corpus.concepts
    twins = [
        (
            probability_increase(model, CONTEXTS, v, alphas, tokens=[1, 0]),
            predicted.probability_increase(small_corpus, CONTEXTS, m, alphas, tokens=[1, 0]),
        ),
        (
            concept_increase(model, CONTEXTS, v, alphas, concepts),
            predicted.concept_increase(small_corpus, CONTEXTS, m, alphas, concepts),
        ),
        (cross_entropy_increase(model, small_corpus, v, alphas), predicted.cross_entropy_increase(small_corpus, m, alphas)),
    ]
    for got, expected in twins:
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_float32():
    p, arguments = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), ([[0], [1, 2]], [0, 1])

    def increase():
        corpus = from_table(p, *arguments)
        return predicted.concept_increase(corpus, [0, 1], log_odds(corpus, contrast(2, [0], [1])), [-3.0, 2.0])

    with jax.enable_x64(False):
        single = increase()
        assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, increase(), atol=1e-6)


BAD_ARGUMENTS = {
    "nan strength": ({"alphas": [0.0, np.nan]}, r"alphas: expected finite numbers, got nan at index \(1,\)"),
    "infinite strength": ({"alphas": np.inf}, "alphas: expected finite numbers, got inf"),
    "no strength": ({"alphas": []}, "alphas: expected a list of strengths"),
    "unknown context": ({"contexts": [0, 5]}, r"contexts: expected contexts in 0\.\.4, got \[5\]"),
    "negative context": ({"contexts": [-1]}, r"contexts: expected contexts in 0\.\.4, got \[-1\]"),
    "no context": ({"contexts": []}, "contexts: expected at least one, got none"),
    "infinite log-odds": ({"m": jnp.asarray([0, 0, np.inf, 0])}, r"m: expected finite numbers, got inf at index \(2,\)"),
    "unknown token": ({"tokens": [4]}, r"tokens: expected tokens between 0 and 3, got \[4\]"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_refuses(small_corpus, change, message):
    arguments = {"contexts": [0], "m": jnp.zeros(4), "alphas": [0.0]} | change
    with pytest.raises(ValueError, match="^" + message):
        predicted.probability_increase(small_corpus, **arguments)


def test_concept_increase_refuses_no_contexts(small_corpus):
    with pytest.raises(ValueError, match=r"^contexts: expected at least one, got none"):
        predicted.concept_increase(small_corpus, [], jnp.zeros(4), [1.0])


PREDICTIONS = {
    "probability": lambda corpus, m: predicted.probability_increase(corpus, [0], m, [0.0]),
    "concept": lambda corpus, m: predicted.concept_increase(corpus, [0], m, [0.0]),
    "cross-entropy": lambda corpus, m: predicted.cross_entropy_increase(corpus, m, [0.0]),
}


@pytest.mark.parametrize("predict", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("bad", [np.zeros(3), np.array([0, 0, np.nan, 0])], ids=["size", "nan"])
def test_every_prediction_refuses_log_odds(small_corpus, predict, bad):
    with pytest.raises(ValueError, match=r"^m: expected"):
        predict(small_corpus, jnp.asarray(bad))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import softmax
from ufm import (
    Concepts,
    concept_increase,
    contrast,
    cross_entropy_increase,
    curvature,
    difference_of_means,
    divergence,
    exact,
    from_table,
    init,
    init_normalised,
    probability_increase,
    uniform,
)

CONTEXTS = [3, 0, 4]
V = np.array([0.4, -1.1, 0.7])
ALPHAS = np.array([-1e6, -2.5, 0.0, 0.1, 4.0, 1e6])


def steered(model, context, alpha):
    return softmax(np.asarray(model.W) @ (np.asarray(model.H)[:, context] + alpha * V))


@pytest.mark.parametrize("tokens", [None, [2, 0]])
def test_probability_increase(small_model, tokens):
    got = probability_increase(small_model, CONTEXTS, jnp.asarray(V), ALPHAS, tokens=tokens)
    chosen = [0, 1, 2, 3] if tokens is None else tokens
    expected = [[(steered(small_model, c, a) - steered(small_model, c, 0))[chosen] for a in ALPHAS] for c in CONTEXTS]
    np.testing.assert_allclose(got, expected, atol=1e-14)


@pytest.mark.parametrize("of_token", [[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1]])
def test_concept_increase(small_model, of_token):
    got = concept_increase(small_model, CONTEXTS, jnp.asarray(V), ALPHAS, Concepts(of_token))
    for i, c in enumerate(CONTEXTS):
        for k, a in enumerate(ALPHAS):
            delta = steered(small_model, c, a) - steered(small_model, c, 0)
            means = [np.mean([delta[z] for z in range(4) if of_token[z] == g]) for g in (0, 1)]
            np.testing.assert_allclose(got[i, k], means, atol=1e-14)


def test_cross_entropy_increase(small_model, small_corpus):
    p, pi = np.exp(np.asarray(small_corpus.log_p)), np.asarray(small_corpus.weights)
    alphas = ALPHAS[1:-1]

    def cross_entropy(alpha):
        return -sum(pi[j] * p[j, z] * np.log(steered(small_model, j, alpha)[z]) for j in range(5) for z in range(4))

    got = cross_entropy_increase(small_model, small_corpus, jnp.asarray(V), alphas)
    np.testing.assert_allclose(got, [cross_entropy(a) - cross_entropy(0) for a in alphas], atol=1e-13)


def test_the_budget_changes_nothing(small_model, small_corpus):
    v, budget = jnp.asarray(V), 13
    for measure, arguments in (
        (probability_increase, (small_model, CONTEXTS, v, ALPHAS)),
        (concept_increase, (small_model, CONTEXTS, v, ALPHAS, small_corpus.concepts)),
        (cross_entropy_increase, (small_model, small_corpus, v, ALPHAS)),
    ):
        np.testing.assert_allclose(measure(*arguments, budget=budget), measure(*arguments), rtol=1e-12, atol=1e-14)


def test_cross_entropy_increase_at_extreme_strengths(small_model, small_corpus):
    """Linear in the end: the slope is that of the largest logit less the mean one."""
    p, pi = np.exp(np.asarray(small_corpus.log_p)), np.asarray(small_corpus.weights)
    moved = np.asarray(small_model.W) @ V
    got = cross_entropy_increase(small_model, small_corpus, jnp.asarray(V), [-1e6, 1e6])
    expected = [-moved.min() + pi @ p @ moved, moved.max() - pi @ p @ moved]
    np.testing.assert_allclose(np.asarray(got) / 1e6, expected, rtol=1e-5)


def test_shared_rows_and_weights(small_model):
    table = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    arguments = ([[0, 1], [2, 3]], [0, 1, 0, 1, 1], np.arange(1.0, 6.0))
    row = np.array([1, 0, 0, 1, 1])
    shared, full = from_table(table, *arguments, row=row), from_table(table[row], *arguments)
    got = [cross_entropy_increase(small_model, corpus, jnp.asarray(V), [1.5]) for corpus in (shared, full)]
    np.testing.assert_allclose(*got, rtol=1e-13)


def test_nothing_moves_at_strength_0(small_model, small_corpus):
    v = jnp.asarray(V)
    np.testing.assert_allclose(probability_increase(small_model, CONTEXTS, v, 0.0), 0, atol=1e-16)
    np.testing.assert_allclose(concept_increase(small_model, CONTEXTS, v, [0.0], small_corpus.concepts), 0, atol=1e-16)
    np.testing.assert_allclose(cross_entropy_increase(small_model, small_corpus, v, [0]), 0, atol=1e-15)


def test_float32_stays_float32(small_model):
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), small_model)
    v = jnp.asarray(V, jnp.float32)
    got = probability_increase(model, CONTEXTS, v, np.asarray([0.5], np.float32))
    np.testing.assert_allclose(got, probability_increase(small_model, CONTEXTS, jnp.asarray(V), [0.5]), atol=1e-6)


def test_tiny_probabilities_at_extreme_strengths():
    p = np.array([[1 - 1e-300, 1e-300, 1e-200], [1e-300, 0.5, 0.5]])
    corpus = from_table(p, [[0], [1, 2]], [0, 1])
    model = exact(corpus)
    v = difference_of_means(model, jnp.arange(2), contrast(2, [0], [1]))
    got = np.asarray(probability_increase(model, [0, 1], v, ALPHAS))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1, 0], [0.0, 0.5, -0.5], atol=1e-14)
    np.testing.assert_allclose(got[1, -1], [1.0, -0.5, -0.5], atol=1e-14)


def test_a_batch_of_corpora():
    corpora = [uniform((2, 2), epsilon, length=1) for epsilon in (0.1, 0.4)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *corpora)

    @jax.jit
    def everything(corpus):
        model = init(jax.random.key(0), corpus, 3)
        v = difference_of_means(model, jnp.arange(4), contrast(4, [0, 1], [2, 3]))
        return (
            probability_increase(model, jnp.arange(4), v, [-1.0, 2.0]),
            concept_increase(model, jnp.arange(4), v, [-1.0, 2.0], corpus.concepts),
            cross_entropy_increase(model, corpus, v, [-1.0, 2.0]),
        )

    together = jax.vmap(everything)(batch)
    for i, corpus in enumerate(corpora):
        for got, expected in zip(together, everything(corpus), strict=True):
            np.testing.assert_allclose(got[i], expected, atol=1e-14)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([4], r"tokens between 0 and 3, got \[4\]"),
        ([-1, 0], r"tokens between 0 and 3, got \[-1\]"),
        ([1, 1], r"distinct tokens, got \[1\] more than once"),
        ([], "a non-empty list of tokens"),
    ],
)
def test_refuses_tokens(small_model, tokens, message):
    with pytest.raises(ValueError, match="^tokens: expected " + message):
        probability_increase(small_model, CONTEXTS, jnp.asarray(V), ALPHAS, tokens=tokens)


def test_every_measure_refuses_strengths_that_are_not_finite(small_model, small_corpus):
    v, bad = jnp.asarray(V), [0.0, np.nan]
    for call in (
        lambda: probability_increase(small_model, CONTEXTS, v, bad),
        lambda: concept_increase(small_model, CONTEXTS, v, bad, small_corpus.concepts),
        lambda: cross_entropy_increase(small_model, small_corpus, v, bad),
    ):
        with pytest.raises(ValueError, match=r"^alphas: expected finite numbers, got nan at index \(1,\)"):
            call()


@pytest.mark.parametrize("alpha", [0.0, -0.7])
def test_curvature_is_half_the_variance_of_the_slopes(small_model, alpha):
    """In a UFM the slopes of the logits are W v, at every strength."""
    got = curvature(small_model, CONTEXTS, jnp.asarray(V), alpha)
    slopes = np.asarray(small_model.W) @ V
    for value, context in zip(got, CONTEXTS, strict=True):
        p = steered(small_model, context, alpha)
        assert float(value) == pytest.approx(0.5 * (p @ slopes**2 - (p @ slopes) ** 2), rel=1e-12)


def test_curvature_is_that_of_kl_in_a_model_that_bends():
    """By differences, in a model whose logits are not affine in the strength."""
    model = init_normalised(jax.random.key(3), uniform((2, 2), length=1), 3)
    v, step = jnp.asarray([0.3, -0.8, 0.5]), 1e-4
    for context in (0, 2):
        base = jax.nn.log_softmax(model.decode(model.H[:, context]))
        both = [jax.nn.log_softmax(model.decode(model.H[:, context] + a * v)) for a in (-step, step)]
        kl = sum(float(jnp.exp(base) @ (base - log_q)) for log_q in both)
        assert float(curvature(model, [context], v)[0]) == pytest.approx(kl / (2 * step**2), rel=1e-5)


def test_divergence_is_kl_to_the_steered_model(small_model):
    got = divergence(small_model, CONTEXTS, jnp.asarray(V), ALPHAS)
    for row, context in zip(np.asarray(got), CONTEXTS, strict=True):
        p = steered(small_model, context, 0)
        for value, alpha in zip(row[1:-1], ALPHAS[1:-1], strict=True):
            q = steered(small_model, context, alpha)
            assert value == pytest.approx(p @ np.log(p / q), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("contexts", [[5], [-1], [0, 9]])
def test_contexts_that_are_not_there(small_model, contexts):
    for measure in (curvature, lambda *a: divergence(*a, [1.0]), lambda *a: probability_increase(*a, [1.0])):
        with pytest.raises(ValueError, match=r"^contexts: expected indices from 0 to \d, got"):
            measure(small_model, contexts, jnp.asarray(V))


def test_a_vector_of_another_width(small_model):
    for measure in (curvature, lambda *a: divergence(*a, [1.0]), lambda *a: probability_increase(*a, [1.0])):
        with pytest.raises(
            ValueError,
            match=r"^steering: expected .* from 3 to 3 numbers, got Add with v \(2,\)",
        ):
            measure(small_model, CONTEXTS, jnp.asarray(V[:2]))

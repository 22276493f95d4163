import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm import (
    UFM,
    contrast,
    contrastive,
    difference_of_means,
    exact,
    from_table,
    log_odds,
    random_negatives,
    steer,
    uniform,
)


def test_contrast():
    np.testing.assert_allclose(contrast(6, [4, 1], [0, 2, 5]), [-1 / 3, 0.5, -1 / 3, 0, 0.5, -1 / 3])


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], [1], "positive: .*non-empty"),
        ([0], [], "negative: .*non-empty"),
        ([0, 1], [1, 2], r"negative: .* got \[1\] in both"),
        ([0, 3], [1], r"positive: .*between 0 and 2, got \[3\]"),
        ([0], [-1], r"negative: .*between 0 and 2, got \[-1\]"),
        ([0, 0], [1], r"positive: .* got \[0\] more than once"),
        (np.array([0.0]), [1], r"positive: .*whole numbers, got .*float64"),
    ],
)
def test_contrast_refuses(positive, negative, message):
    with pytest.raises(ValueError, match="^" + message):
        contrast(3, positive, negative)


def test_settings_take_all_contexts(small_corpus):
    p, n = contrastive(small_corpus, 0, 1)
    assert (p.tolist(), n.tolist()) == ([0, 1], [2, 3, 4])
    p, n = random_negatives(uniform((2, 2, 2), length=1), 1)
    assert (p.tolist(), n.tolist()) == ([2, 3], [0, 1, 4, 5])


@pytest.mark.parametrize("setting", [lambda c, **k: contrastive(c, 1, 2, **k), lambda c, **k: random_negatives(c, 1, **k)])
def test_settings_draw_without_replacement(setting):
    corpus = uniform((3, 3, 3), length=2)
    p_all, n_all = setting(corpus)
    draws = [setting(corpus, size=4, key=jax.random.key(k)) for k in (0, 0, 1)]
    for p, n in draws:
        assert len(set(p.tolist())) == len(set(n.tolist())) == 4
        assert set(p.tolist()) <= set(p_all.tolist())
        assert set(n.tolist()) <= set(n_all.tolist())
        assert (np.diff(p) > 0).all()
        assert (np.diff(n) > 0).all()
    assert [x.tolist() for x in draws[0]] == [x.tolist() for x in draws[1]] != [x.tolist() for x in draws[2]]


def one_concept():
    return from_table(np.full((2, 2), 0.5), [[0, 1]], [0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: contrastive(one_concept(), 0, 0), "corpus: expected at least two concepts to contrast, got 1"),
        (lambda c: random_negatives(one_concept(), 0), "corpus: expected at least two concepts to contrast, got 1"),
        (lambda c: contrastive(c, 2, 0), r"target: expected a concept in 0\.\.1, got 2"),
        (lambda c: random_negatives(c, -1), r"target: expected a concept in 0\.\.1, got -1"),
        (lambda c: contrastive(c, 0, 0), "opposite: expected a concept other than the target 0, got 0"),
        (lambda c: contrastive(c, 0, 1, size=0), "size: expected at least one context"),
        (lambda c: contrastive(c, 0, 1, size=3), "size: expected at most the 2 positive and 3 negative contexts, got 3"),
        (lambda c: contrastive(c, 0, 1, size=1), "key: expected a random key"),
    ],
)
def test_settings_refuse(small_corpus, call, message):
    with pytest.raises(ValueError, match="^" + message):
        call(small_corpus)


def test_contrastive_names_an_unknown_opposite(small_corpus):
    with pytest.raises(ValueError, match=r"^opposite: .*got 2"):
        contrastive(small_corpus, 0, 2)


def test_concepts_without_contexts_are_refused():
    corpus = from_table(np.full((2, 2), 0.5), [[0], [1]], [0, 0])
    with pytest.raises(ValueError, match=r"^target: expected a concept with contexts"):
        contrastive(corpus, 1, 0)
    with pytest.raises(ValueError, match=r"^opposite: expected contexts to take negatives from"):
        contrastive(corpus, 0, 1)


def test_difference_of_means(small_model):
    H = np.asarray(small_model.H)
    got = difference_of_means(small_model, jnp.arange(5), contrast(5, [0, 1], [2, 3, 4]))
    np.testing.assert_allclose(got, (H[:, 0] + H[:, 1]) / 2 - (H[:, 2] + H[:, 3] + H[:, 4]) / 3, rtol=1e-12)


def test_difference_of_means_has_the_precision_of_the_model(small_model):
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), small_model)
    assert difference_of_means(model, jnp.arange(5), contrast(5, [0], [1])).dtype == jnp.float32


def test_log_odds(small_corpus):
    log_p = np.log(np.exp(np.asarray(small_corpus.log_p)))
    expected = [np.mean([log_p[i, z] for i in (0, 1)]) - np.mean([log_p[i, z] for i in (2, 4)]) for z in range(4)]
    np.testing.assert_allclose(log_odds(small_corpus, contrast(5, [0, 1], [2, 4])), expected, rtol=1e-12)


def test_log_odds_of_shared_rows():
    corpus = uniform((2, 2), 0.2, length=2)
    p, n = contrastive(corpus, 0, 1)
    expected = np.log([0.4 / 0.1] * 2 + [0.1 / 0.4] * 2)
    np.testing.assert_allclose(log_odds(corpus, contrast(8, p, n)), expected, rtol=1e-14)
    np.testing.assert_allclose(log_odds(corpus, contrast(8, p[:1], n)), expected, rtol=1e-14)


def test_the_vector_implements_the_log_odds(small_corpus):
    """S, lemma B.2 through the softmax: W v is M up to a constant."""
    model, weights = exact(small_corpus), contrast(5, [1], [2, 3])
    moved = steer(model, jnp.arange(5), difference_of_means(model, jnp.arange(5), weights), 1.0) - steer(
        model, jnp.arange(5), jnp.zeros(4), 0.0
    )
    difference = np.asarray(moved - log_odds(small_corpus, weights))
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1], difference.shape), atol=1e-13)


def test_probabilities_of_zero():
    p = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])
    corpus = from_table(p, [[0], [1, 2]], [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"^corpus: expected positive probabilities .* tokens \[2\]"):
        log_odds(corpus, contrast(4, [0], [3]))
    np.testing.assert_allclose(log_odds(corpus, contrast(4, [1], [3])), np.log(p[1] / p[3]), rtol=1e-14)


def test_a_row_that_cancels_may_hold_zeros():
    p = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    corpus = from_table(p, [[0], [1, 2]], [0, 0, 1, 1], row=[0, 1, 0, 0])
    weights = jnp.asarray([1.0, 0.0, -1.0, 0.0])
    np.testing.assert_array_equal(log_odds(corpus, weights), [0.0, 0.0, 0.0])


def test_refuses_contexts_that_do_not_fit_in_memory():
    with pytest.raises(ValueError, match=r"^n_contexts: .*at most 16777216, got 10000000000000"):
        contrast(10**13, [0], [1])


@pytest.mark.parametrize(
    ("contexts", "weights", "message"),
    [([], [], "contexts: expected at least one"), (range(5), [1e308] * 5, "weights: expected finite sums of")],
)
def test_difference_of_means_refuses(small_model, contexts, weights, message):
    with pytest.raises(ValueError, match="^" + message):
        difference_of_means(UFM(small_model.W, 9 + 0 * small_model.H), np.array(contexts, int), np.array(weights))

"""Directions in the span of hidden states, against brute force and trained models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import brentq

import ufm
from theory import examples, make_instance, routes, span, trained
from theory.weightings import KINDS, NEGATIVES_OF_TWO_CONCEPTS, WEIGHTINGS, weighting


@pytest.fixture(scope="module")
def batch():
    with jax.enable_x64(True):
        return routes.populate(jax.random.key(7), 60, WEIGHTINGS)


def each(batch):
    """The instances of a batch, for the closed forms, and as NumPy arrays, for brute force."""
    for k in range(batch.log_p.shape[0]):
        instance = jax.tree.map(lambda leaf, k=k: leaf[k], batch)
        yield instance, jax.tree.map(np.asarray, instance)


def half(log_p, m, target):
    """The strength at which the target has half of the probability, by a search in NumPy."""

    def log_odds(alpha):
        tilted = log_p + alpha * m
        return np.logaddexp.reduce(tilted[target]) - np.logaddexp.reduce(tilted[~target])

    return brentq(log_odds, -1e4, 1e4, xtol=1e-13)


def test_the_weights_of_concepts_add_up(batch):
    for instance, plain in each(batch):
        omega = np.asarray(span.concept_weights(instance))
        expected = [plain.contrast[(plain.members[plain.concept] == row).all(axis=1)].sum() for row in plain.members]
        np.testing.assert_allclose(omega, expected, atol=1e-12)


def test_all_kinds_of_weights_are_drawn(batch):
    sums = np.asarray(batch.contrast).sum(axis=1)
    assert 0.1 < (np.abs(sums) > 1e-9).mean() < 0.4
    mixed = [set(np.sign(row.contrast[row.concept == row.target])) >= {1.0, -1.0} for _, row in each(batch)]
    assert 0.2 < np.mean(mixed) < 0.9
    assert len(KINDS) == 5


def test_the_target_takes_over_between_the_bounds(batch):
    seen = 0
    for instance, plain in each(batch):
        omega = np.asarray(span.concept_weights(instance))
        others = [omega[k] for k in range(3) if (plain.members[k] != plain.members[plain.target]).any()]
        if abs(plain.contrast.sum()) > 1e-9 or omega[plain.target] <= 0 or max(others) > 0:
            continue
        low, high = (np.asarray(end) for end in span.takeover(instance))
        for j in np.flatnonzero(np.isfinite(low)):
            at = half(plain.log_p[j], plain.contrast @ plain.log_p, plain.members[plain.target])
            assert low[j] - 1e-9 * abs(at) <= at <= high[j] + 1e-9 * abs(at)
            seen += 1
    assert seen > 60


def test_bounds_meet_for_two_concepts_whose_tokens_tie():
    corpus = ufm.uniform((2, 3), 0.1, length=None, contexts_per_concept=1)
    instance = make_instance(corpus, [0], [1], target=0)
    low, high = span.takeover(instance)
    at = half(np.asarray(corpus.log_p[1]), np.asarray(instance.log_odds), np.arange(5) < 2)
    np.testing.assert_allclose([low[1], high[1]], at, rtol=1e-12)
    assert np.isinf(low[0])


def test_the_critical_strength_is_a_limit():
    """Weighted family, concepts of 3, 2 and 4 tokens, one negative of each other concept: 2/3, slowly."""
    gamma, omega = [0.6, 0.3, 0.1, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.5, 0.7, 0.3, 0.25, 0.25, 0.25, 0.25]
    for epsilon, expected in ((1e-4, (0.6734, 0.6730)), (1e-24, (0.6679, 0.6678))):
        corpus = ufm.weighted((3, 2, 4), gamma, omega, epsilon, length=None, contexts_per_concept=1)
        instance = make_instance(corpus, [0], [1, 2], target=0)
        m, target = np.asarray(instance.log_odds), np.arange(9) < 3
        got = [half(np.asarray(corpus.log_p[j]), m, target) for j in (1, 2)]
        np.testing.assert_allclose(got, expected, atol=5e-5)
        np.testing.assert_allclose(span.critical_strength(instance), [np.inf, 2 / 3, 2 / 3], rtol=1e-12)


def test_a_difference_of_means_of_two_concepts():
    table = examples.instance_of(ufm.uniform(length=None, contexts_per_concept=3), target=0)
    instance = weighting(table, jnp.asarray(NEGATIVES_OF_TWO_CONCEPTS))
    np.testing.assert_allclose(span.concept_weights(instance), [1, -2 / 3, -1 / 3], rtol=1e-12)
    np.testing.assert_allclose(span.critical_strength(instance)[3:], np.repeat([0.6, 0.75], 3), rtol=1e-12)


def test_the_gram_matrix_is_a_root():
    log_p = np.log(np.random.default_rng(0).dirichlet(np.ones(6), size=4))
    centred = log_p - log_p.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(span.gram(log_p), sqrtm(centred @ centred.T).real, atol=1e-10)


@pytest.mark.parametrize("decay", [1e-3, 1e-4, 1e-5])
def test_weight_decay_fixes_inner_products(decay):
    """Those of the model's own logs at every decay; those of the corpus as it goes to 0, in proportion to it."""
    corpus = examples.toy_case().corpus
    model = ufm.fit(corpus, tolerance=0.0, decay=decay).model
    products = np.asarray(model.H.T @ model.H)
    own, limit = (np.asarray(span.gram(rows)) for rows in (jax.nn.log_softmax(ufm.logits(model)), corpus.log_p))
    assert np.abs(products - own).max() < 1e-7 * np.abs(own).max()
    assert 100 * decay < np.abs(products - limit).max() / np.abs(limit).max() < 300 * decay


def test_a_wide_model_under_decay_does_nothing_outside_the_span():
    corpus = trained.corpus_of_any_rows()
    model = ufm.fit(corpus, d=16, tolerance=0.0, decay=1e-3).model
    outside = np.linalg.svd(np.asarray(model.H))[0][:, 9:]
    assert np.abs(np.asarray(model.W) @ outside).max() < 1e-6
    assert np.abs(ufm.fit(corpus, d=16, tolerance=0.0).model.W @ np.linalg.svd(model.H)[0][:, 9:]).max() > 0.1


def test_bounds_are_empty_where_the_target_is_likelier_unsteered():
    corpus = ufm.from_table([[0.45, 0.45, 0.1], [0.4, 0.4, 0.2]], [[0, 1], [2]], [0, 1])
    instance = make_instance(corpus, [0], [1], target=0)
    assert np.isinf(np.asarray(span.takeover(instance))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrast": jnp.asarray([1.0, -0.9])}, "instance: expected weights that sum to 0"),
        ({"contrast": jnp.asarray([-1.0, 1.0])}, r"instance: expected a total weight above 0 .* got -1, 1"),
        (
            {"log_p": jnp.log(jnp.asarray([[0.2, 0.2, 0.6], [0.4, 0.4, 0.2]]))},
            r"instance: .* own concept, got one that is 1\.1 nats",
        ),
    ],
)
def test_bounds_of_what_the_theorem_is_not_about_are_refused(change, message):
    instance = make_instance(ufm.from_table([[0.4, 0.4, 0.2], [0.2, 0.2, 0.6]], [[0, 1], [2]], [0, 1]), [0], [1], target=0)
    assert np.isfinite(float(span.takeover(instance).low[1]))
    with pytest.raises(ValueError, match=message):
        span.takeover(dataclasses.replace(instance, **change))


@pytest.mark.parametrize("function", [span.takeover, span.critical_strength])
def test_tables_outside_assumption_1_are_refused(function):
    corpus = ufm.from_table([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.2, 0.2, 0.6]], [[0, 1], [2]], [0, 0, 1])
    with pytest.raises(ValueError, match=r"^instance: expected a table of assumption 1"):
        function(make_instance(corpus, [0, 1], [2], target=0))

import jax.numpy as jnp
import numpy as np
import pytest

import theory
from theory import tilting
from theory.instance import Measured, with_peaks
from ufm import difference_of_means, exact, from_table


def test_an_instance_by_hand(small_corpus):
    instance = theory.make_instance(small_corpus, [0, 1], [4], target=0)
    log_p = np.asarray(small_corpus.log_p)
    np.testing.assert_allclose(instance.contrast, [0.5, 0.5, 0, 0, -1])
    m = (log_p[0] + log_p[1]) / 2 - log_p[4]
    np.testing.assert_allclose(instance.log_odds, m, rtol=1e-13)
    np.testing.assert_allclose(instance.range, np.ptp(m), rtol=1e-13)
    np.testing.assert_array_equal(instance.log_p, log_p)
    assert instance.in_target.tolist() == [True, False, True, False]
    assert instance.members.tolist() == [[True, False, True, False], [False, True, False, True]]
    assert instance.inside.tolist() == [instance.members[k].tolist() for k in (0, 0, 1, 1, 1)]
    assert instance.sizes.tolist() == [2, 2]


def test_peaks_are_kept(small_corpus):
    instance = theory.make_instance(small_corpus, [0, 1], [4], target=0)
    kept = with_peaks(instance)
    expected = jnp.stack([tilting.peaks(row, instance.log_odds) for row in instance.log_p])
    np.testing.assert_allclose(instance.peaks, expected, rtol=1e-9)
    assert kept.peaks is kept.known_peaks


def test_probabilities_of_zero_off_the_contrast_do_no_harm():
    corpus = from_table(np.array([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]), [[0], [1]], [0, 1, 1])
    instance = theory.make_instance(corpus, [0], [1], target=0)
    np.testing.assert_allclose(instance.log_odds, np.log([2.5, 0.625]))


@pytest.mark.parametrize(
    ("positive", "negative", "target", "message"),
    [
        ([], [2], 0, "positive: expected a non-empty list of contexts"),
        ([0], [], 0, "negative: expected a non-empty list of contexts"),
        ([0], [0, 2], 0, r"negative: expected contexts that are not in positive, got \[0\] in both"),
        ([0, 2], [3], 0, r"positive: expected contexts of the target concept 0, got contexts \[2\] of others"),
        ([0], [1, 2], 0, r"negative: expected contexts outside the target concept 0, got contexts \[1\] of it"),
        ([0], [2], 2, r"target: expected a concept in 0\.\.1, got 2"),
        ([0], [2], -1, r"target: expected a concept in 0\.\.1, got -1"),
        ([5], [2], 0, r"positive: expected contexts between 0 and 4, got \[5\]"),
    ],
)
def test_refuses(small_corpus, positive, negative, target, message):
    with pytest.raises(ValueError, match="^" + message):
        theory.make_instance(small_corpus, positive, negative, target)


def test_refuses_one_concept():
    corpus = from_table(np.full((2, 2), 0.5), [[0, 1]], [0, 0])
    with pytest.raises(ValueError, match=r"^corpus: .*got 1"):
        theory.make_instance(corpus, [0], [1], 0)


def test_refuses_a_model_of_another_corpus(small_corpus):
    other = exact(from_table(np.full((2, 2), 0.5), [[0], [1]], [0, 1]))
    with pytest.raises(ValueError, match=r"^model: expected W \[4, d\] and H \[d, 5\] .*, got W \(2, 2\) and H \(2, 2\)"):
        theory.make_instance(small_corpus, [0], [2], 0, model=other)


def test_measured_concept_log_odds(small_corpus):
    instance = theory.make_instance(small_corpus, [0], [2, 3], target=0)
    model = exact(small_corpus)
    q = np.random.default_rng(0).dirichlet(np.ones(4), size=(5, 3))
    v = difference_of_means(model, jnp.arange(5), instance.contrast)
    swept = Measured(small_corpus, instance, model, v, np.arange(-1.0, 2.0), np.log(q))
    total = q[..., [0, 2]].sum(axis=-1)
    np.testing.assert_allclose(swept.concept_log_odds[..., 0], np.log(total / (1 - total)), rtol=1e-12)
    np.testing.assert_allclose(swept.concept_log_odds[..., 1], -np.log(total / (1 - total)), rtol=1e-12)
    assert (swept.step, swept.zero) == (1.0, 1)

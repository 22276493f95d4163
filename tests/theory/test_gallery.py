import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from theory import REGISTRY, gallery, predicted, routes, tilting
from ufm import assumption_1, cross_entropy_increase, entropy, gap, logits


def tilted(one):
    """Steered probabilities by the formula, ``[m, K, V]``, in NumPy."""
    log_p, m = np.asarray(one.log_p), np.asarray(one.log_odds)
    return oracles.softmax(log_p[:, None, :] + gallery.ALPHAS[:, None] * m)


def test_strengths_are_even_and_contain_0():
    assert (gallery.ALPHAS[0], gallery.ALPHAS[-1]) == (-60, 60)
    np.testing.assert_allclose(np.diff(gallery.ALPHAS), 0.1, atol=1e-12)
    assert 0.0 in gallery.ALPHAS


def test_models_are_trained_until_rounding(measured):
    for name, swept in measured.items():
        corpus = swept.instance.corpus
        assert float(gap(swept.model, corpus)) < 1e-23, name
        np.testing.assert_allclose(oracles.softmax(np.asarray(logits(swept.model))), np.exp(corpus.log_p), atol=1e-11)


def test_measured_probabilities_are_the_predicted_ones(measured):
    """At every context, strength and token, to 1e-9 where 1e-6 is asked."""
    for name, swept in measured.items():
        assert np.abs(np.exp(swept.log_probabilities) - tilted(swept.instance)).max() < 1e-9, name


def test_measured_cross_entropy_is_the_predicted_one(measured):
    for swept in measured.values():
        one = swept.instance
        got = cross_entropy_increase(swept.model, one.corpus, swept.v, gallery.ALPHAS)
        np.testing.assert_allclose(
            got, predicted.cross_entropy_increase(one.corpus, one.log_odds, gallery.ALPHAS), atol=1e-8
        )


def test_bumps_are_within_a_step_of_the_closed_form(measured):
    peaks_of, seen = jax.jit(jax.vmap(tilting.peaks, (0, None))), 0
    for swept in measured.values():
        one = swept.instance
        top = swept.alphas[np.argmax(swept.log_probabilities, axis=1)]
        m = np.asarray(one.log_odds)
        peaks = np.asarray(peaks_of(one.log_p, one.log_odds))
        for j, z in np.argwhere(np.abs(peaks) < 60 - swept.step):
            assert m.min() < m[z] < m.max()
            assert abs(top[j, z] - peaks[j, z]) <= swept.step
            seen += 1
    assert seen > 100


def test_the_default_instance():
    one = gallery.default_instance()
    assert float(entropy(one.corpus)) == pytest.approx(1.3317848910419796, abs=1e-12)
    level = np.log(0.95 / 3 / (0.05 / 6))
    np.testing.assert_allclose(one.log_odds, [level] * 3 + [-level] * 3 + [0] * 3, atol=1e-14)


def test_the_toy_instance_has_bumps_to_show():
    one = gallery.toy_instance()
    peaks = np.asarray(tilting.peaks(one.log_p[0], one.log_odds))
    inside = np.abs(peaks) < 60
    assert inside.sum() >= 5
    assert (inside & np.asarray(one.in_target)).any()
    assert (inside & ~np.asarray(one.in_target)).any()


def test_the_gallery_shows_every_situation(measured):
    ones = [swept.instance for swept in measured.values()]
    for one in ones:
        assert all(routes.applies(statement, one) for statement in REGISTRY.values())
    sizes = [set(one.corpus.concepts.sizes.tolist()) for one in ones]
    assert any(len(s) == 1 for s in sizes)
    assert any(len(s) > 1 for s in sizes)
    assert any(float(assumption_1(one.corpus).inside) < -0.01 for one in ones)
    negatives = [np.asarray(one.corpus.concept)[np.asarray(one.contrast) < 0] for one in ones]
    assert {len(set(n.tolist())) for n in negatives} == {1, 2}
    assert any((one.contrast > 0).sum() != (one.contrast < 0).sum() for one in ones)
    distinct = [np.unique(np.round(np.asarray(one.log_odds), 9)).size for one in ones]
    assert 3 in distinct
    assert 9 in distinct


def test_instances_that_share_a_corpus_share_a_model(measured):
    toy, random = measured["toy"], measured["toy, random negatives"]
    assert toy.instance.corpus is random.instance.corpus
    assert toy.model is random.model
    assert jnp.abs(toy.v - random.v).max() > 1e-3

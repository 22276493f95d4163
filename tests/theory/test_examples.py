import jax
import numpy as np
import pytest

from tests import oracles
from theory import REGISTRY, examples, predicted, rationals, routes
from theory.statement import TABLES
from ufm import cross_entropy_increase, entropy, gap, logits


def tilted(instance):
    """Steered probabilities by the formula, ``[m, K, V]``, in NumPy."""
    log_p, m = np.asarray(instance.log_p), np.asarray(instance.log_odds)
    return oracles.softmax(log_p[:, None, :] + examples.ALPHAS[:, None] * m)


def test_strengths_are_even_and_contain_0():
    assert (examples.ALPHAS[0], examples.ALPHAS[-1]) == (-60, 60)
    np.testing.assert_allclose(np.diff(examples.ALPHAS), 0.1, atol=1e-12)
    assert 0.0 in examples.ALPHAS


def test_models_are_trained_until_rounding(measured):
    for name, swept in measured.items():
        assert float(gap(swept.model, swept.corpus)) < 1e-23, name
        np.testing.assert_allclose(oracles.softmax(np.asarray(logits(swept.model))), np.exp(swept.corpus.log_p), atol=1e-11)


def test_measured_probabilities_are_the_predicted_ones(measured):
    """At every context, strength and token, to 1e-9 where 1e-6 is asked."""
    for name, swept in measured.items():
        assert np.abs(np.exp(swept.log_probabilities) - tilted(swept.instance)).max() < 1e-9, name


def test_measured_cross_entropy_is_the_predicted_one(measured):
    alphas = examples.ALPHAS[::50]
    for swept in measured.values():
        got = cross_entropy_increase(swept.model, swept.corpus, swept.v, alphas)
        expected = predicted.cross_entropy_increase(swept.corpus, swept.instance.log_odds, alphas)
        np.testing.assert_allclose(got, expected, atol=1e-8)


def test_bumps_are_within_a_step_of_the_closed_form(measured):
    peaks_of, seen = jax.jit(lambda instance: instance.peaks), 0
    for swept in measured.values():
        instance = swept.instance
        top = swept.alphas[np.argmax(swept.log_probabilities, axis=1)]
        m, peaks = np.asarray(instance.log_odds), np.asarray(peaks_of(instance))
        for j, z in np.argwhere(np.abs(peaks) < 60 - swept.step):
            assert m.min() < m[z] < m.max()
            assert abs(top[j, z] - peaks[j, z]) <= swept.step
            seen += 1
    assert seen > 100


def test_the_default_case():
    case = examples.default_case()
    assert float(entropy(case.corpus)) == pytest.approx(1.3317848910419796, abs=1e-12)
    level = np.log(0.95 / 3 / (0.05 / 6))
    np.testing.assert_allclose(case.instance.log_odds, [level] * 3 + [-level] * 3 + [0] * 3, atol=1e-14)


def test_the_examples_show_every_situation():
    cases = examples.all_cases()
    for statement in REGISTRY.values():
        if statement.domain is TABLES:
            applies = [name for name, case in cases.items() if routes.within(statement, case.instance)]
            assert len(applies) >= 5, statement.id
    sizes = [set(case.corpus.concepts.sizes.tolist()) for case in cases.values()]
    assert {len(counts) for counts in sizes} == {1, 3}
    contrasts = [np.asarray(case.instance.contrast) for case in cases.values()]
    assert any((row > 0).sum() != (row < 0).sum() for row in contrasts)
    ties = [np.unique(np.round(np.asarray(case.instance.log_odds), 9)).size for case in cases.values()]
    assert min(ties) < 9
    assert max(ties) == 9


def test_cases_that_share_a_corpus_share_the_fit():
    toy = examples.toy_case()
    small = {"a": toy, "b": toy}
    fits = [trained for _, trained in examples.train(small)]
    assert fits[0] is fits[1]


def test_exact_instances_are_the_trained_ones_in_fractions():
    cases = examples.all_cases()
    for name, exact in examples.exact_instances().items():
        assert all(sum(row) == 1 for row in exact.p)
        m = np.sort(np.asarray(rationals.to_floats(exact).log_odds))
        np.testing.assert_allclose(m, np.sort(np.asarray(cases[name].instance.log_odds)), atol=2e-3)

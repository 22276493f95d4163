import dataclasses

import jax
import numpy as np
import pytest

import theory
from tests import oracles
from theory import REGISTRY, examples, predicted, rationals, routes
from theory.statement import TABLES
from theory.statements import theorem_3_3
from ufm import cross_entropy_increase, entropy, gap, logits, weighted


def tilted(instance):
    """Steered probabilities by the formula, ``[m, K, V]``, in NumPy."""
    log_p, m = np.asarray(instance.log_p), np.asarray(instance.log_odds)
    return oracles.softmax(log_p[:, None, :] + examples.ALPHAS[:, None] * m)


def test_strengths_are_even_and_contain_0():
    assert (examples.ALPHAS[0], examples.ALPHAS[-1]) == (-60, 60)
    np.testing.assert_allclose(np.diff(examples.ALPHAS), 0.1, atol=1e-12)
    assert 0.0 in examples.ALPHAS


@pytest.fixture(scope="module")
def trained(measured):
    """The examples whose models are wide enough for their corpus."""
    cases = examples.all_cases()
    return {name: swept for name, swept in measured.items() if cases[name].width == examples.Case._field_defaults["width"]}


def test_models_are_trained_until_rounding(trained):
    for name, swept in trained.items():
        assert float(gap(swept.model, swept.corpus)) < 1e-23, name
        assert swept.instance.gap == gap(swept.model, swept.corpus)
        np.testing.assert_allclose(oracles.softmax(np.asarray(logits(swept.model))), np.exp(swept.corpus.log_p), atol=1e-11)


def test_measured_probabilities_are_the_predicted_ones(trained):
    """At every context, strength and token, to 1e-9 where 1e-6 is asked."""
    for name, swept in trained.items():
        assert np.abs(np.exp(swept.log_probabilities) - tilted(swept.instance)).max() < 1e-9, name


def test_measured_cross_entropy_is_the_predicted_one(trained):
    alphas = examples.ALPHAS[::50]
    for swept in trained.values():
        got = cross_entropy_increase(swept.model, swept.corpus, swept.v, alphas)
        expected = predicted.cross_entropy_increase(swept.corpus, swept.instance.log_odds, alphas)
        np.testing.assert_allclose(got, expected, atol=1e-8)


def test_bumps_are_within_a_step_of_the_closed_form(trained):
    peaks_of, seen = jax.jit(lambda instance: instance.peaks), 0
    for swept in trained.values():
        instance = swept.instance
        top = swept.alphas[np.argmax(swept.log_probabilities, axis=1)]
        m, peaks = np.asarray(instance.log_odds), np.asarray(peaks_of(instance))
        for j, z in np.argwhere(np.abs(peaks) < 60 - swept.step):
            assert m.min() < m[z] < m.max()
            assert abs(top[j, z] - peaks[j, z]) <= swept.step
            seen += 1
    assert seen > 100


@pytest.mark.parametrize(("name", "low", "high"), [("one feature", 0.1, 0.2), ("three features", 1e-4, 2e-4)])
def test_of_models_that_are_too_narrow_the_theorems_say_nothing(name, low, high, measured):
    swept = measured[name]
    assert low < float(swept.instance.gap) < high
    corpus = swept.corpus
    instance = theory.make_instance(corpus, [3, 4, 5], [0, 6], target=1, model=swept.model)
    assert float(instance.gap) == float(swept.instance.gap)
    for statement in REGISTRY.values():
        if statement.domain is TABLES and "A2" in statement.hypotheses:
            assert not routes.within(statement, swept.instance), statement.id
    assert theory.check("theorem-3.8", instance) == ("the theorem says nothing here", np.inf)
    assert theory.check("theorem-3.8", theory.make_instance(corpus, [3, 4, 5], [0, 6], target=1))[0] == "holds"
    # They would fail here: steering tilts what the model has learned, which is not the corpus.
    beyond = dataclasses.replace(REGISTRY["lemma-B.3"], hypotheses={})
    assert not routes.sweep(beyond, [swept]).holds


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


def test_exact_instances_are_the_trained_ones_in_fractions_and_small_ones():
    cases, exacts = examples.all_cases(), examples.exact_instances()
    for exact in exacts.values():
        assert all(sum(row) == 1 for row in exact.p)
    for name in exacts.keys() & cases.keys():
        exact = exacts[name]
        m = np.sort(np.asarray(rationals.to_floats(exact).log_odds))
        np.testing.assert_allclose(m, np.sort(np.asarray(cases[name].instance.log_odds)), atol=2e-3)
    small = [exacts[name] for name in exacts.keys() - cases.keys()]
    assert {len(exact.members) for exact in small} == {2, 3}
    assert any(len({sum(row) for row in exact.members}) > 1 for exact in small)
    assert any(sum(x > 0 for x in exact.contrast) > 1 for exact in small)
    negatives = [{c for c, x in zip(exact.concept, exact.contrast, strict=True) if x < 0} for exact in small]
    assert {len(concepts) for concepts in negatives} == {1, 2}


def test_without_its_hypothesis_remark_3_4_is_refuted():
    statement = REGISTRY["remark-3.4"]
    kept = {name: margin for name, margin in statement.hypotheses.items() if name != "small-noise"}
    exacts = examples.exact_instances()
    for name in ("loud noise", "concepts by turns"):
        assert not routes.certificate(dataclasses.replace(statement, hypotheses=kept), [exacts[name]]).holds
    assert routes.certificate(dataclasses.replace(statement, hypotheses=kept), [exacts["default"]]).holds


@pytest.mark.parametrize(("concepts", "thresholds"), [(2, (0.1715, 0.1857, 0.1925)), (3, (0.3034, 0.3225, 0.3313))])
def test_how_much_noise_remark_3_4_allows(concepts, thresholds):
    """The largest eps for gamma = (.6, .3, .1) and even omega, by three conditions, each weaker than the one before."""
    even = [1 / 3] * 3

    def slack(epsilon):
        corpus = weighted((3,) * concepts, [0.6, 0.3, 0.1] + even * (concepts - 1), even * concepts, epsilon, length=None,
                          contexts_per_concept=1)  # fmt: skip
        instance = theory.make_instance(corpus, [0], [1], target=0)
        m, p = np.asarray(instance.log_odds)[:3], np.asarray(instance.p)[1, :3]
        level = np.log((1 - epsilon) * (concepts - 1) / epsilon)
        small = routes.hold((REGISTRY["remark-3.4"].hypotheses["small-noise"].margin,), instance)
        assert bool(small) == (p @ m < m.min())
        assert float(theorem_3_3.below_target(instance, instance.log_p)[1]) > 0
        return np.array([m.min() - p.sum() * m.max(), m.min() - p.sum() * level, m.min() - p @ m])

    for k, threshold in enumerate(thresholds):
        assert slack(threshold - 1e-4)[k] > 0 > slack(threshold + 1e-4)[k]

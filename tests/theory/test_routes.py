import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory
from theory import Claim, Statement, routes, signs, tilting
from theory.examples import default_case, measure, toy_case
from theory.random_instances import CONTEXTS, VOCABULARY
from theory.rationals import RationalInstance, checked, rationalise, to_floats
from theory.statement import TABLES, Curve, Domain, Hypothesis
from theory.symbolic import ALPHA, Identity
from ufm.model import representing


def made(margin, hypothesis=lambda instance: jnp.ones(()), **parts):
    """A statement whose margins are those given."""
    claim = Claim("x", margin, margin, lambda swept: float(margin(swept.instance)), **parts)
    return Statement("made", "", "", claim, claim, {"h": Hypothesis("words", hypothesis)})


def weight(instance):
    """Something that differs between instances."""
    return instance.weights[0]


@pytest.fixture(scope="module")
def swept():
    """Sweeps of two models that have gap 0 without training."""
    with jax.enable_x64(True):
        return [measure(case, representing(case.instance.log_p)) for case in (default_case(), toy_case())]


@pytest.fixture(scope="module")
def exact():
    with jax.enable_x64(True):
        return rationalise(default_case().instance, 6)


def weights_of(population):
    return np.asarray(population.weights[:, 0])


def test_a_population_is_one_batch_with_peaks(population):
    assert population.log_p.shape == (60, CONTEXTS, VOCABULARY)
    assert population.known_peaks.shape == population.log_p.shape


def test_some_are_the_first(population):
    np.testing.assert_array_equal(routes.subset(population, 4).weights, population.weights[:4])


def test_populations_are_functions_of_their_key(population):
    again, other = (routes.populate(jax.random.key(k), 60, TABLES) for k in (7, 8))
    np.testing.assert_array_equal(weights_of(population), weights_of(again))
    assert (weights_of(population) != weights_of(other)).all()


def test_numbers_that_are_none_are_no_instance(few):
    instance = jax.tree.map(lambda leaf: leaf[0], few)
    broken = dataclasses.replace(instance, log_p=instance.log_p.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"^instance: .*got NaN"):
        theory.check("theorem-3.6.target", broken)


def test_an_attack_asks_for_a_scalar():
    with pytest.raises(ValueError, match=r"^margin: expected a function that returns a scalar, got shape"):
        theory.attack(lambda instance: instance.weights, jax.random.key(0), TABLES, drawn=4, restarts=1, steps=1)


def test_populate_refuses():
    with pytest.raises(ValueError, match=r"^n: expected .* got 0"):
        routes.populate(jax.random.key(0), 0, TABLES)
    with pytest.raises(ValueError, match=r"^n: expected instances that fit in memory"):
        routes.populate(jax.random.key(0), 2**62, TABLES)


@pytest.mark.parametrize("route", [routes.instances, routes.autodiff])
def test_the_worst_instance_is_reported(route, few):
    evidence = route(made(lambda instance: weight(instance) + 1), few)
    least = weights_of(few).min()
    assert evidence.holds
    assert evidence.checked == 30
    assert evidence.worst_margin == pytest.approx(least + 1, rel=1e-14)
    assert float(weight(evidence.worst)) == pytest.approx(least, rel=1e-14)
    assert evidence.route == route.__name__
    assert evidence.seconds > 0


def test_one_failure_is_enough(few):
    level = np.sort(weights_of(few))[:2].mean()
    evidence = routes.instances(made(lambda instance: weight(instance) - level), few)
    assert not evidence.holds
    assert evidence.worst_margin < 0


def test_a_margin_of_0_does_not_hold(few):
    assert not routes.instances(made(lambda instance: jnp.zeros(())), few).holds


def test_nan_is_a_failure(few):
    level = np.median(weights_of(few))
    evidence = routes.instances(made(lambda instance: jnp.where(weight(instance) > level, 1.0, jnp.nan)), few)
    assert not evidence.holds
    assert np.isnan(evidence.worst_margin)
    assert evidence.checked == 30
    assert float(weight(evidence.worst)) <= level


def test_excluded_and_silent_instances_are_not_counted(few):
    level = np.median(weights_of(few))
    excluded = routes.instances(
        made(lambda instance: weight(instance) - level, lambda instance: weight(instance) - level), few
    )
    silent = routes.instances(made(lambda instance: jnp.where(weight(instance) > level, weight(instance), jnp.inf)), few)
    assert excluded.checked == silent.checked == 15
    assert excluded.holds
    assert silent.holds


def test_nan_outside_the_hypotheses_is_excluded(few):
    level = np.median(weights_of(few))
    statement = made(
        lambda instance: jnp.where(weight(instance) > level, 1.0, jnp.nan), lambda instance: weight(instance) - level
    )
    assert routes.instances(statement, few).holds


def nothing_on(instance, alpha):
    return jnp.full(2, jnp.inf) + 0 * alpha


@pytest.mark.parametrize("silent", ["claim", "hypothesis"])
def test_checking_nothing_is_not_a_success(silent, few, swept, exact):
    margin = (lambda instance: jnp.asarray(jnp.inf)) if silent == "claim" else (lambda instance: jnp.ones(()))
    hypothesis = (lambda instance: jnp.ones(())) if silent == "claim" else (lambda instance: -jnp.ones(()))
    statement = made(margin, hypothesis, curves=(Curve(nothing_on),), identities=lambda: ())
    small = Domain("small", TABLES.sample, TABLES.assemble, TABLES.families)
    results = [
        routes.instances(statement, few),
        routes.autodiff(statement, few),
        routes.sweep(statement, swept),
        routes.sweep(made(lambda instance: jnp.ones(())), []),
        routes.certificate(statement, [exact]),
        routes.certificate(statement, []),
        routes.symbolic(statement),
        routes.refutation(dataclasses.replace(statement, domain=small), jax.random.key(0)),
    ]
    assert [(evidence.holds, evidence.checked, evidence.worst_margin) for evidence in results] == [(False, 0, np.inf)] * len(
        results
    )


def test_the_sweep_route_reports_its_worst(swept):
    ranges = [float(measured.instance.range) for measured in swept]
    evidence = routes.sweep(made(lambda instance: instance.range), iter(swept))
    assert (evidence.holds, evidence.checked) == (True, len(swept))
    assert evidence.worst_margin == pytest.approx(min(ranges))
    assert evidence.worst is swept[int(np.argmin(ranges))].instance


@pytest.mark.parametrize(
    ("curve", "holds", "note"),
    [
        (lambda instance, alpha: 2 + alpha * instance.range, True, "bits"),
        (lambda instance, alpha: alpha * instance.range, False, "refuted at alpha = -"),
        (lambda instance, alpha: (alpha * instance.range - 1 / jnp.sqrt(3.0)) ** 2, False, "undecided on a width of "),
    ],
)
def test_certificates_tell_true_false_and_undecided(curve, holds, note, exact):
    statement = made(lambda instance: jnp.ones(()), curves=(Curve(curve, (-1.0, 4.0)),))
    evidence = routes.certificate(statement, [exact], budget=200)
    assert (evidence.holds, evidence.checked) == (holds, 1)
    assert note in evidence.note


def test_symbolic_names_what_is_false():
    right, wrong = Identity("right", ALPHA * 2, ALPHA + ALPHA), Identity("wrong", ALPHA, 2 * ALPHA)
    statement = made(lambda instance: jnp.ones(()), identities=lambda: (right, wrong))
    evidence = routes.symbolic(statement)
    assert (evidence.holds, evidence.checked, evidence.note) == (False, 2, "false: wrong")
    assert routes.symbolic(made(lambda instance: jnp.ones(()), identities=lambda: (right,))).holds


def test_routes_apply_where_there_is_something_to_work_on():
    bare = Claim("x", lambda instance: jnp.ones(()))
    assert [route for route in routes.ROUTES if routes.applies(bare, route)] == ["instances", "refutation"]


def test_another_claim_under_the_same_hypotheses(few):
    statement = made(lambda instance: jnp.ones(()))
    false = dataclasses.replace(statement.claim, instances=lambda instance: -jnp.ones(()))
    assert routes.instances(statement, few).holds
    assert not routes.instances(statement, few, claim=false).holds


@pytest.mark.parametrize(
    ("margin", "answer"), [(0.5, "holds"), (-0.5, "fails"), (np.nan, "fails"), (np.inf, "the theorem says nothing here")]
)
def test_check(small_corpus, margin, answer):
    instance = theory.make_instance(small_corpus, [0], [2], target=0)
    got = theory.check(made(lambda _: jnp.asarray(margin)), instance)
    assert got[0] == answer
    np.testing.assert_equal(got[1], margin)


def test_every_hypothesis_counts(small_corpus):
    instance = theory.make_instance(small_corpus, [0], [2], target=0)
    signs = {"a": 1.0, "b": -1.0, "c": 1.0}
    hypotheses = {name: Hypothesis("", lambda _, sign=sign: jnp.asarray(sign)) for name, sign in signs.items()}
    statement = dataclasses.replace(made(lambda _: jnp.ones(())), hypotheses=hypotheses)
    assert not routes.within(statement, instance)
    assert theory.check(statement, instance) == ("the theorem says nothing here", np.inf)


def always_rises(token):
    """The sign of the slope of one token, which is claimed to be positive."""
    return lambda instance, alpha: signs.of_tokens(instance, alpha)[:, token]


@pytest.fixture(scope="module")
def late():
    """After the third context the second token peaks at 95/R, where the first one is no longer rare."""
    rare = Fraction(1, 10**40)
    rows = (
        (Fraction(50, 100), Fraction(45, 100), Fraction(5, 100)),
        (Fraction(5, 100), Fraction(5, 100), Fraction(90, 100)),
        (rare, Fraction(1, 2), Fraction(1, 2) - rare),
    )
    members, third = ((True, True, False), (False, False, True)), Fraction(1, 3)
    return checked(RationalInstance(rows, (third,) * 3, (0, 1, 1), members, (Fraction(1), Fraction(-1), Fraction(0)), 0))


def test_what_fails_far_out_is_proved_on_an_interval_and_refuted_on_the_line(late):
    peak = float(to_floats(late).peaks[2, 1] * to_floats(late).range)
    assert 64 < peak < 128
    third_context = lambda instance, alpha: always_rises(1)(instance, alpha)[2:]  # noqa: E731
    near, line = (Curve(third_context, beyond=beyond) for beyond in (None, signs.settled))
    results = [routes.certificate(made(weight, curves=(curve,)), [late]) for curve in (near, line)]
    assert [result.holds for result in results] == [True, False]
    assert "refuted" in results[1].note


def test_on_the_whole_line_is_said_where_signs_stay(late):
    highest = Curve(always_rises(0), beyond=signs.settled)
    assert "on all of R 1 of 1" in routes.certificate(made(weight, curves=(highest,)), [late]).note
    never = Curve(always_rises(0), beyond=lambda instance, alpha: -instance.range)
    result = routes.certificate(made(weight, curves=(never,)), [late])
    assert result.holds
    assert "all of R" not in result.note


def test_signs_that_are_settled_stay(population):
    """At three times the strength signs are the same, but for extreme tokens, whose slopes underflow."""

    def of(instance):
        def at(alpha):
            still = jnp.min(signs.settled(instance, alpha)) > 0
            highest, lowest, _ = tilting.extremes(instance.log_odds)
            here, farther = (jnp.sign(signs.of_tokens(instance, alpha * factor)) for factor in (1, 3))
            return still, jnp.all((here == farther) | jnp.where(alpha > 0, highest, lowest))

        return jax.vmap(at)(jnp.asarray([-200.0, -20, -2, 2, 20, 200]) / instance.range)

    still, same = (np.asarray(x) for x in jax.vmap(of)(population))
    assert same[still].all()
    assert 0 < still.mean() < 1
    assert not same[~still].all()

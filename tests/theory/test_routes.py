import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory
from theory import Claim, Statement, routes
from theory.gallery import default_instance, measure, toy_instance
from theory.instance import SHAPES
from ufm import exact


def made(margin, hypothesis=lambda one: jnp.ones(())):
    """A statement whose margins are those given."""
    claim = Claim("x", margin, margin, lambda swept: float(margin(swept.instance)))
    return Statement("made", "", "", claim, claim, {"h": "words"}, {"h": hypothesis})


def weight(one):
    """Something that differs between instances."""
    return one.corpus.weights[0]


@pytest.fixture(scope="module")
def swept():
    """Sweeps of two models that have gap 0 without training."""
    with jax.enable_x64(True):
        return [measure(one, exact(one.corpus)) for one in (default_instance(), toy_instance())]


def weights_of(population):
    return np.concatenate([np.asarray(batch.corpus.weights[:, 0]) for batch in population])


def test_populations_are_shared_out_evenly(population):
    assert [batch.target.size for batch in population] == [30, 30]
    assert [batch.corpus.vocabulary_size for batch in population] == [sum(sizes) for sizes in SHAPES]


def test_a_sample_is_the_start_of_one_shape(population):
    (batch,) = routes.sample(population, 4)
    assert batch.corpus.concepts.sizes.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(batch.corpus.weights, population[0].corpus.weights[:4])


def test_populations_are_functions_of_their_key(population):
    again, other = (routes.populate(jax.random.key(k), 60) for k in (7, 8))
    np.testing.assert_array_equal(weights_of(population), weights_of(again))
    assert (weights_of(population) != weights_of(other)).all()


@pytest.mark.parametrize(("n", "shares"), [(2, [1, 1]), (5, [3, 2])])
def test_populations_are_of_the_size_asked(n, shares, population, monkeypatch):
    def drawn(keys, sizes):
        return jax.tree.map(lambda leaf: leaf[: len(keys)], population[SHAPES.index(sizes)])

    monkeypatch.setattr(routes, "_draw_batch", drawn)
    assert [batch.target.size for batch in routes.populate(jax.random.key(0), n)] == shares


def test_populate_refuses():
    with pytest.raises(ValueError, match=r"^instances: expected at least 2, one for each shape of corpus, got 1"):
        routes.populate(jax.random.key(0), 1)


@pytest.mark.parametrize("route", [routes.instances, routes.autodiff])
def test_the_worst_instance_is_reported(route, few):
    found = route(made(lambda one: weight(one) + 1), few)
    all_weights = weights_of(few)
    assert found.holds
    assert found.instances == 30
    assert found.worst_margin == pytest.approx(all_weights.min() + 1, rel=1e-14)
    assert float(weight(found.worst)) == pytest.approx(all_weights.min(), rel=1e-14)
    assert found.route == route.__name__
    assert found.seconds > 0


def test_one_failure_is_enough(few):
    level = np.sort(weights_of(few))[:2].mean()
    found = routes.instances(made(lambda one: weight(one) - level), few)
    assert not found.holds
    assert found.worst_margin < 0


def test_a_margin_of_0_does_not_hold(few):
    assert not routes.instances(made(lambda one: jnp.zeros(())), few).holds


def test_nan_is_a_failure(few):
    level = np.median(weights_of(few))
    found = routes.instances(made(lambda one: jnp.where(weight(one) > level, 1.0, jnp.nan)), few)
    assert not found.holds
    assert np.isnan(found.worst_margin)
    assert found.instances == 30
    assert float(weight(found.worst)) <= level


def test_excluded_and_silent_instances_are_not_counted(few):
    level = np.median(weights_of(few))
    excluded = routes.instances(made(lambda one: weight(one) - level, lambda one: weight(one) - level), few)
    silent = routes.instances(made(lambda one: jnp.where(weight(one) > level, weight(one), jnp.inf)), few)
    assert excluded.instances == silent.instances == 15
    assert excluded.holds
    assert silent.holds


def test_nan_outside_the_hypotheses_is_excluded(few):
    level = np.median(weights_of(few))
    statement = made(lambda one: jnp.where(weight(one) > level, 1.0, jnp.nan), lambda one: weight(one) - level)
    assert routes.instances(statement, few).holds


def test_checking_nothing_is_not_a_success(few, swept):
    nothing = made(lambda one: jnp.asarray(jnp.inf))
    never = made(lambda one: jnp.ones(()), lambda one: -jnp.ones(()))
    for found in (
        routes.instances(nothing, few),
        routes.instances(never, few),
        routes.sweep(nothing, swept),
        routes.sweep(never, swept),
        routes.sweep(made(lambda one: jnp.ones(())), []),
    ):
        assert (found.holds, found.instances, found.worst_margin, found.worst) == (False, 0, np.inf, None)


def test_the_sweep_route_reports_its_worst(swept):
    ranges = [float(jnp.ptp(one.instance.log_odds)) for one in swept]
    found = routes.sweep(made(lambda one: jnp.ptp(one.log_odds)), iter(swept))
    assert (found.holds, found.instances) == (True, len(swept))
    assert found.worst_margin == pytest.approx(min(ranges))
    assert found.worst is swept[int(np.argmin(ranges))].instance


def test_another_claim_under_the_same_hypotheses(few):
    statement = made(lambda one: jnp.ones(()))
    false = statement.claim._replace(instances=lambda one: -jnp.ones(()))
    assert routes.instances(statement, few).holds
    assert not routes.instances(statement, few, claim=false).holds


@pytest.mark.parametrize(
    ("margin", "answer"), [(0.5, "holds"), (-0.5, "fails"), (np.nan, "fails"), (np.inf, "the theorem says nothing here")]
)
def test_check(small_corpus, margin, answer):
    one = theory.make_instance(small_corpus, [0], [2], target=0)
    got = theory.check(made(lambda _: jnp.asarray(margin)), one)
    assert got[0] == answer
    np.testing.assert_equal(got[1], margin)


def test_check_of_what_the_hypotheses_exclude(small_corpus):
    one = theory.make_instance(small_corpus, [0], [2], target=0)
    statement = made(lambda _: jnp.asarray(0.5), lambda _: jnp.asarray(-1.0))
    assert not routes.applies(statement, one)
    assert theory.check(statement, one) == ("the theorem says nothing here", np.inf)


def test_every_hypothesis_counts(small_corpus):
    one = theory.make_instance(small_corpus, [0], [2], target=0)
    signs = {"a": 1.0, "b": -1.0, "c": 1.0}
    hypotheses = {name: lambda _, sign=sign: jnp.asarray(sign) for name, sign in signs.items()}
    statement = dataclasses.replace(made(lambda _: jnp.ones(())), needs=dict.fromkeys(signs, ""), hypotheses=hypotheses)
    assert not routes.applies(statement, one)

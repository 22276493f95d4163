"""The checks are checked: a subtle error is planted in each closed form, and some route of some statement must notice."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from theory import REGISTRY, gallery, predicted, routes, tilting
from theory.statements import theorem_3_3, theorem_3_6, theorem_3_8
from ufm import UFM, contrast, difference_of_means, exact, log_odds, probability_increase

RIGHT = {
    name: getattr(tilting, name)
    for name in (
        "log_probabilities",
        "mean",
        "variance",
        "extremes",
        "peaks",
        "limit",
        "saturation",
        "concept_log_odds",
        "conditional_mean",
        "concept_slope",
    )
}


def right(name, *args):
    return RIGHT[name](*args)


def swapped_extremes(m):
    highest, lowest, spread = right("extremes", m)
    return tilting.Extremes(lowest, highest, spread)


def extremes_without_ties(m):
    tokens = jnp.arange(m.size)
    return tilting.Extremes(tokens == jnp.argmax(m), tokens == jnp.argmin(m), jnp.ptp(m))


def unconditional_mean(log_p, m, alpha, members):
    return jnp.dot(jax.nn.softmax(log_p + alpha * m), jnp.where(members, m, 0))


# Each: the closed form, what is put in its place, and the statement and route that notice.
PLANTED = {
    "probabilities, wrong sign": (
        "log_probabilities",
        lambda log_p, m, alpha: right("log_probabilities", log_p, m, -alpha),
        "theorem-3.3.monotone",
        "instances",
    ),
    "probabilities, not normalised": (
        "log_probabilities",
        lambda log_p, m, alpha: log_p + alpha * m,
        "theorem-3.3.bump",
        "instances",
    ),
    "probabilities, half the strength": (
        "log_probabilities",
        lambda log_p, m, alpha: right("log_probabilities", log_p, m, alpha / 2),
        "theorem-3.3.bump",
        "instances",
    ),
    "probabilities, off by one token": (
        "log_probabilities",
        lambda log_p, m, alpha: jnp.roll(right("log_probabilities", log_p, m, alpha), 1),
        "theorem-3.3.monotone",
        "instances",
    ),
    "probabilities, p left out": (
        "log_probabilities",
        lambda log_p, m, alpha: jax.nn.log_softmax(alpha * m),
        "proposition-B.1",
        "instances",
    ),
    "variance, not centred": (
        "variance",
        lambda log_p, m, alpha: jnp.dot(jnp.exp(right("log_probabilities", log_p, m, alpha)), m**2),
        "theorem-3.8",
        "instances",
    ),
    "variance, missing factor": (
        "variance",
        lambda *args: right("variance", *args) / 2,
        "theorem-3.8",
        "autodiff",
    ),
    "variance, unsteered": (
        "variance",
        lambda log_p, m, alpha: right("variance", log_p, m, 0 * alpha),
        "theorem-3.3.bump",
        "autodiff",
    ),
    "extremes, swapped": ("extremes", swapped_extremes, "proposition-B.1", "instances"),
    "extremes, ties dropped": ("extremes", extremes_without_ties, "proposition-B.1", "instances"),
    "peaks, wrong sign": ("peaks", lambda log_p, m: -right("peaks", log_p, m), "theorem-3.3.order", "instances"),
    "peaks, wrong scale": ("peaks", lambda log_p, m: 1.01 * right("peaks", log_p, m), "theorem-3.3.bump", "autodiff"),
    "peaks, off by one token": (
        "peaks",
        lambda log_p, m: jnp.roll(right("peaks", log_p, m), 1),
        "theorem-3.3.bump",
        "instances",
    ),
    "peaks, a fifth of 1/R away": (
        "peaks",
        lambda log_p, m: right("peaks", log_p, m) + 0.2 / jnp.ptp(m),
        "theorem-3.3.bump",
        "instances",
    ),
    "peaks, seen on a sweep": (
        "peaks",
        lambda log_p, m: right("peaks", log_p, m) + 0.25,
        "theorem-3.3.bump",
        "sweep",
    ),
    "limit, other end": (
        "limit",
        lambda log_p, m, sign: right("limit", log_p, m, -sign),
        "proposition-B.1",
        "instances",
    ),
    "limit, evenly shared": (
        "limit",
        lambda log_p, m, sign: right("limit", jnp.zeros_like(log_p), m, sign),
        "proposition-B.1",
        "autodiff",
    ),
    "limit, not normalised": (
        "limit",
        lambda log_p, m, sign: jnp.where(right("limit", log_p, m, sign) > 0, jnp.exp(log_p), 0),
        "proposition-B.1",
        "instances",
    ),
    "saturation, too early": (
        "saturation",
        lambda *args: right("saturation", *args) / 2,
        "proposition-B.1",
        "instances",
    ),
    "concept log-odds, wrong sign": (
        "concept_log_odds",
        lambda log_p, m, alpha, members: right("concept_log_odds", log_p, m, alpha, ~members),
        "theorem-3.6.target",
        "instances",
    ),
    "concept log-odds, log of F": (
        "concept_log_odds",
        lambda *args: jax.nn.log_sigmoid(right("concept_log_odds", *args)),
        "theorem-3.6.tanh",
        "instances",
    ),
    "concept log-odds, half the strength": (
        "concept_log_odds",
        lambda log_p, m, alpha, members: right("concept_log_odds", log_p, m, alpha / 2, members),
        "theorem-3.6.tanh",
        "instances",
    ),
    "conditional mean, not conditional": ("conditional_mean", unconditional_mean, "theorem-3.6.tanh", "autodiff"),
    "conditional mean, unsteered": (
        "conditional_mean",
        lambda log_p, m, alpha, members: right("conditional_mean", log_p, m, 0 * alpha, members),
        "theorem-3.6.tanh",
        "instances",
    ),
    "concept slope, missing factor": (
        "concept_slope",
        lambda *args: right("concept_slope", *args) / 2,
        "theorem-3.6.tanh",
        "instances",
    ),
    "concept slope, complement left out": (
        "concept_slope",
        lambda *args: tilting.conditional_mean(*args),
        "theorem-3.6.tanh",
        "autodiff",
    ),
}


@pytest.fixture(scope="module")
def swept():
    with jax.enable_x64(True):
        one = gallery.toy_instance()
        return [gallery.measure(one, exact(one.corpus))]


@pytest.fixture
def run(few, swept, monkeypatch):
    """Runs a route of a statement, traced anew so that nothing compiled before the error was planted is reused."""
    peaks = theorem_3_3.token_peaks.__wrapped__
    monkeypatch.setattr(theorem_3_3, "token_peaks", jax.jit(lambda one: peaks(one)))

    def found(identity, route):
        statement = REGISTRY[identity]
        if route == "sweep":
            return routes.sweep(statement, swept)
        margin = getattr(statement.claim, route)
        claim = statement.claim._replace(**{route: lambda one: margin(one)})
        return getattr(routes, route)(statement, few, claim=claim)

    return found


@pytest.mark.parametrize(("name", "wrong", "identity", "route"), PLANTED.values(), ids=PLANTED)
def test_an_error_in_the_tilted_family_is_noticed(name, wrong, identity, route, run, monkeypatch):
    monkeypatch.setattr(tilting, name, wrong)
    found = run(identity, route)
    assert not found.holds
    assert found.instances > 0


def test_every_error_is_planted_where_it_is_used():
    """A closed form that no statement uses cannot be checked by one: those are only checked against mpmath."""
    assert {name for name, *_ in PLANTED.values()} == set(RIGHT) - {"mean"}


@pytest.mark.parametrize("route", ["instances", "autodiff", "sweep"])
def test_without_an_error_the_same_runs_hold(route, run):
    assert run("theorem-3.3.bump", route).holds


WRONG_LOG_ODDS = {
    "wrong sign": lambda corpus, weights: -log_odds(corpus, weights),
    "sums instead of means": lambda corpus, weights: log_odds(corpus, jnp.sign(weights)),
    "off by one token": lambda corpus, weights: jnp.roll(log_odds(corpus, weights), 1),
}


@pytest.mark.parametrize("wrong", WRONG_LOG_ODDS.values(), ids=WRONG_LOG_ODDS)
def test_an_error_in_the_log_odds_is_noticed(wrong, run, monkeypatch):
    monkeypatch.setattr(importlib.import_module("theory.instance"), "log_odds", wrong)
    assert not run("theorem-3.3.bump", "autodiff").holds


def test_an_error_in_the_series_near_0_is_noticed(run, monkeypatch):
    monkeypatch.setattr(theorem_3_8, "exp_minus_tangent", lambda x: x * x / 2 + x**3)
    assert not run("theorem-3.8", "instances").holds


def test_an_error_in_the_split_is_noticed(run, monkeypatch):
    """Decoding with a decoder that is not the one embeddings were made for."""
    monkeypatch.setattr(UFM, "decode", lambda self, h: h @ jnp.roll(self.W, 1, axis=0).T)
    assert not run("theorem-3.6.tanh", "autodiff").holds


def test_an_error_in_the_quadrature_is_noticed(run, monkeypatch):
    monkeypatch.setattr(theorem_3_6, "_NODES", 1)
    assert not run("theorem-3.6.tanh", "instances").holds


def test_an_error_in_a_prediction_is_noticed(small_corpus, monkeypatch):
    """The twins disagree as soon as one of the two is wrong."""
    model, weights = exact(small_corpus), contrast(5, [0, 1], [2, 4])
    m, v = log_odds(small_corpus, weights), difference_of_means(model, jnp.arange(5), weights)

    def difference():
        predictions = predicted.probability_increase(small_corpus, [0, 3], m, [-2.0, 1.0])
        return jnp.max(jnp.abs(predictions - probability_increase(model, [0, 3], v, [-2.0, 1.0])))

    assert difference() < 1e-13
    path = predicted._partition_by_product
    monkeypatch.setattr(predicted, "_partition_by_product", lambda rows, m, alphas, *rest: path(rows, m, -alphas, *rest))
    assert difference() > 1e-3

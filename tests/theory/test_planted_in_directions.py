"""Errors of one percent planted in the closed forms of N13, N14, N17 and N24: each is noticed by at least two routes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests import compilation
from theory import REGISTRY, routes, span, trained
from theory.loglinear import LOG_LINEAR, LogLinear
from theory.statements import n13_stationarity as n13
from theory.statements import n14_directions as n14
from theory.statements import n24_overlapping as n24
from theory.trained import IMPERFECT
from theory.weightings import WEIGHTINGS

DIVERGENCE, FROM_DECAY, BOUND = n13.divergence, n13.slope_from_decay, n13.slope_bound
CONTRAST, SHARE, VIRTUAL = n14.contrast_of_rows, n14.share_of_decays, n24.virtual
WEIGHTS, LEVELS, TAKEOVER, CRITICAL = span.concept_weights, span.levels, span.takeover, span.critical_strength


def off(function, factor):
    return lambda *arguments, **options: factor * function(*arguments, **options)


def nearly_all_of_b(instance):
    log_a, log_b = LEVELS(instance)
    return log_a, 1.01 * log_b


def ends(low, high):
    return lambda instance: span.Takeover(low * TAKEOVER(instance).low, high * TAKEOVER(instance).high)


# Each: where the closed form is, its name, what is put in its place, the statement and the routes that notice.
PLANTED = {
    "divergence": (n13, "divergence", off(DIVERGENCE, 1.01), "N13.divergence", ("instances", "sweep")),
    "slope from decay": (
        n13,
        "slope_from_decay",
        lambda instance: 1.01 * FROM_DECAY(instance),
        "N13.divergence",
        ("instances", "autodiff", "sweep"),
    ),
    "bound of the slope": (n13, "slope_bound", off(BOUND, 0.99), "N13.slope", ("instances", "autodiff", "sweep")),
    "weights of contexts": (
        n14,
        "contrast_of_rows",
        lambda log_p, weights: CONTRAST(log_p, 1.01 * weights),
        "N14.tilting",
        ("instances", "autodiff", "sweep"),
    ),
    "weights of concepts": (span, "concept_weights", off(WEIGHTS, 1.01), "N14.values", ("instances", "autodiff")),
    "b": (span, "levels", nearly_all_of_b, "N14.values", ("instances", "autodiff")),
    "weights that favour the target": (
        n14,
        "favours_the_target",
        lambda instance: n14._favours_it_most(instance),
        "N14.order",
        ("instances", "autodiff"),
    ),
    "ratio of decays": (n14, "share_of_decays", off(SHARE, 1.01), "N14.lengths", ("instances", "autodiff", "sweep")),
    "takeover, from below": (span, "takeover", ends(1.01, 1.0), "N17", ("instances", "autodiff")),
    "takeover, from above": (span, "takeover", ends(1.0, 0.99), "N17", ("instances", "autodiff")),
    "limit of the takeover, too late": (span, "critical_strength", off(CRITICAL, 1.01), "N17", ("instances", "autodiff")),
    "limit of the takeover, too early": (span, "critical_strength", off(CRITICAL, 0.99), "N17", ("instances", "autodiff")),
    "virtual context": (
        n24,
        "virtual",
        lambda instance, alpha, *, with_base: VIRTUAL(instance, 1.01 * alpha, with_base=with_base),
        "N24",
        ("instances", "autodiff"),
    ),
    "shift of the coordinates": (
        LogLinear,
        "shift",
        property(lambda instance: 1.01 * instance.combination @ instance.coordinates),
        "N24",
        ("instances", "autodiff"),
    ),
}


@pytest.fixture(scope="module")
def populations():
    with jax.enable_x64(True):
        return {
            domain.name: routes.populate(jax.random.key(7), 60, domain) for domain in (IMPERFECT, WEIGHTINGS, LOG_LINEAR)
        }


@pytest.fixture(scope="module")
def swept():
    with jax.enable_x64(True):
        return trained.measured()


@pytest.fixture
def run(populations, swept):
    """Runs a route of a statement, traced anew so that nothing traced before the error was planted is reused."""

    def evidence(identity, route):
        statement = REGISTRY[identity]
        compilation.forget()
        if route == "sweep":
            return routes.sweep(statement, swept)
        margin = getattr(statement.claim, route)
        claim = dataclasses.replace(statement.claim, **{route: lambda instance: margin(instance)})
        # Hypotheses are those of the truth: they were compiled, or are, from the same closed forms.
        return getattr(routes, route)(statement, populations[statement.domain.name], claim=claim)

    yield evidence
    # Nor is what was traced with the error.
    compilation.forget()


CASES = [
    pytest.param(*planted[:4], route, id=f"{name}, {route}") for name, planted in PLANTED.items() for route in planted[4]
]


@pytest.mark.parametrize(("owner", "name", "wrong", "identity", "route"), CASES)
def test_an_error_in_a_closed_form_is_noticed(owner, name, wrong, identity, route, run, monkeypatch):
    monkeypatch.setattr(owner, name, wrong)
    evidence = run(identity, route)
    assert not evidence.holds
    assert evidence.checked > 0


@pytest.mark.parametrize("identity", sorted({planted[3] for planted in PLANTED.values()}))
def test_without_an_error_the_same_runs_hold(identity, run):
    for route in ("instances", "autodiff"):
        assert run(identity, route).holds


def test_the_slope_that_is_nearly_all_that_a_gap_allows_is_among_the_trained_ones(swept):
    instance = swept[-1].instance
    assert float(jnp.abs(n13.slope_at_zero(instance)) / n13.slope_bound(instance)) > 0.999

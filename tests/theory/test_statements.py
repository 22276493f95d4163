import re

import jax
import pytest

import theory
from theory import REGISTRY, gallery, routes

statements = pytest.mark.parametrize("statement", REGISTRY.values(), ids=REGISTRY)


@pytest.fixture(scope="module")
def populations(population):
    with jax.enable_x64(True):
        domains = {one.domain.name: one.domain for one in REGISTRY.values()}
        others = {name: routes.populate(jax.random.key(7), 60, one) for name, one in domains.items() if name != "tables"}
        return {"tables": population, **others}


@pytest.fixture(scope="module")
def sweeps(measured):
    with jax.enable_x64(True):
        domains = {one.domain.name: one.domain for one in REGISTRY.values()}
        return {name: list(measured.values()) if name == "tables" else one.measured(0) for name, one in domains.items()}


@pytest.fixture(scope="module")
def exacts():
    with jax.enable_x64(True):
        return list(gallery.exact_instances().values())


def evidence(route, statement, claim, populations, sweeps, exacts):
    if route == "sweep":
        return routes.sweep(statement, sweeps[statement.domain.name], claim=claim)
    if route == "certificate":
        return routes.certificate(statement, exacts, claim=claim)
    if route == "symbolic":
        return routes.symbolic(statement, claim=claim)
    return getattr(routes, route)(statement, populations[statement.domain.name], claim=claim)


CHECKED = [
    pytest.param(one, route, id=f"{one.id}-{route}")
    for one in REGISTRY.values()
    for route in ("instances", "autodiff", "sweep", "symbolic", "certificate")
    if routes.applies(one.claim, route)
]


@pytest.mark.parametrize(("statement", "route"), CHECKED)
def test_every_route_rejects_the_false_twin(statement, route, populations, sweeps, exacts):
    """That it accepts the claim is seen by the verification of all statements (`tests/sim`)."""
    found = evidence(route, statement, statement.twin, populations, sweeps, exacts)
    assert not found.holds
    assert found.checked > 0


@statements
def test_a_statement_is_complete(statement):
    assert statement.title
    assert re.match(r"S, |N\d", statement.source)
    assert statement.claim.tex != statement.twin.tex
    assert all(one.words for one in statement.hypotheses.values())


def test_an_attack_on_a_false_claim_is_confirmed_in_fractions():
    found = routes.assault(REGISTRY["N1"], jax.random.key(0), claim=REGISTRY["N1"].twin)
    assert found.confirmation is not None
    assert found.confirmation.sign < 0
    assert all(sum(row) == 1 for row in found.exact.p)


def test_unknown_ids_list_near_matches():
    with pytest.raises(ValueError, match=r"^statement: expected a known id such as .*theorem-3.8"):
        theory.find("theorem-3.9", REGISTRY)

import re

import jax
import pytest

import theory
from theory import REGISTRY, routes

statements = pytest.mark.parametrize("statement", REGISTRY.values(), ids=REGISTRY)


@pytest.fixture(scope="module")
def populations(population):
    with jax.enable_x64(True):
        domains = {one.domain.name: one.domain for one in REGISTRY.values()}
        others = {name: routes.populate(jax.random.key(7), 60, one) for name, one in domains.items() if name != "tables"}
        return {"tables": population, **others}


CHECKED = [
    pytest.param(one, route, id=f"{one.id}-{route}")
    for one in REGISTRY.values()
    for route in ("instances", "autodiff", "symbolic")
    if routes.applies(one.claim, route)
]


@pytest.mark.parametrize(("statement", "route"), CHECKED)
def test_the_claim_holds_and_the_false_twin_is_rejected(statement, route, populations):
    """The other routes need trained models and exact instances: `ufm verify` takes them all, and so does a slow test."""
    given = () if route == "symbolic" else (populations[statement.domain.name],)
    for claim, expected in ((statement.claim, True), (statement.twin, False)):
        found = getattr(routes, route)(statement, *given, claim=claim)
        assert found.holds is expected
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

import inspect
import re

import jax
import numpy as np
import pytest

import theory
from sim.checks.proofs import proof
from theory import REGISTRY, routes
from theory.statement import hold_on, margins_on

statements = pytest.mark.parametrize("statement", REGISTRY.values(), ids=REGISTRY)


@pytest.fixture(scope="module")
def populations(population):
    with jax.enable_x64(True):
        domains = {statement.domain.name: statement.domain for statement in REGISTRY.values()}
        others = {
            name: routes.populate(jax.random.key(7), 60, domain) for name, domain in domains.items() if name != "tables"
        }
        return {"tables": population, **others}


CHECKED = [
    pytest.param(statement, route, id=f"{statement.id}-{route}")
    for statement in REGISTRY.values()
    for route in ("instances", "autodiff", "symbolic")
    if routes.applies(statement.claim, route)
]


@pytest.mark.parametrize(("statement", "route"), CHECKED)
def test_the_claim_holds_and_the_false_twin_is_rejected(statement, route, populations):
    """The other routes need trained models and exact instances: `ufm verify` takes them all, and so does a slow test."""
    arguments = () if route == "symbolic" else (populations[statement.domain.name],)
    for claim, expected in ((statement.claim, True), (statement.twin, False)):
        evidence = getattr(routes, route)(statement, *arguments, claim=claim)
        assert evidence.holds is expected
        assert evidence.checked > 0
        if expected and route == "instances" and (tolerance := re.match(r"(1e-\d+) less", claim.reading)):
            assert evidence.worst_margin <= float(tolerance[1])


def wrong_on_the_page(statement):
    """The share of random instances that a twin is wrong on, as its proof says it; None if it does not."""
    known = proof(statement)
    assert known is not None
    twin = re.search(r"^\*\*False twin\.\*\* ((?:.+\n?)+)", known.text, re.MULTILINE)[1].replace("\n", " ")
    found = re.search(r"\b(wrong|too low|right)\b[^.]*?(\d+ %|half|a quarter) of the random", twin)
    if found is None:
        return None
    share = {"half": 0.5, "a quarter": 0.25}.get(found[2]) or int(found[2].removesuffix(" %")) / 100
    return 1 - share if found[1] == "right" else share


SHARES = {statement.id: share for statement in REGISTRY.values() if (share := wrong_on_the_page(statement)) is not None}


@pytest.fixture(scope="module")
def drawn():
    """600 random instances of a domain, in batches of 60, for which the tests above have compiled what is needed."""
    known = {}

    def of(domain):
        if domain.name not in known:
            known[domain.name] = [routes.populate(key, 60, domain) for key in jax.random.split(jax.random.key(11), 10)]
        return known[domain.name]

    return of


@pytest.mark.parametrize("name", SHARES)
def test_a_false_twin_is_wrong_as_often_as_its_page_says(name, drawn):
    statement, said = REGISTRY[name], SHARES[name]
    batches = drawn(statement.domain)
    applies = np.concatenate([hold_on(statement.conditions, batch) for batch in batches])
    margins = np.concatenate([margins_on(statement.twin.instances, batch) for batch in batches])
    claimed = margins[applies & (margins < np.inf)]
    assert claimed.size > 300
    # Three binomial errors, and what the page rounds.
    assert np.mean(claimed <= 0) == pytest.approx(said, abs=3 * np.sqrt(said * (1 - said) / claimed.size) + 0.01)


def test_the_pages_that_count_where_a_twin_is_wrong_are_found():
    assert {"N7", "N19.ceiling", "N21.amplification", "N22", "N23.interference", "N23.constant"} <= set(SHARES)


@statements
def test_a_statement_is_complete(statement):
    assert statement.title
    assert statement.source
    # Results of the project are numbered; where they come from is their number.
    assert not re.match(r"N\d", statement.id) or statement.source == statement.id.partition(".")[0]
    assert statement.claim.tex != statement.twin.tex
    assert all(hypothesis.words for hypothesis in statement.hypotheses.values())
    assert statement.claim.reading
    source = inspect.getsource(inspect.getmodule(statement.claim.instances))
    for number in re.findall(r"1e-\d+", statement.claim.reading):
        said_only = re.sub(r'"[^"\n]*"', "", source)
        assert number in said_only or (number == "1e-11" and "ROUNDING" in said_only)


def test_an_attack_on_a_false_claim_is_confirmed_in_fractions():
    attack = routes.assault(REGISTRY["N1"], jax.random.key(0), claim=REGISTRY["N1"].twin)
    assert attack.confirmation is not None
    assert attack.confirmation.sign < 0
    assert all(sum(row) == 1 for row in attack.exact.p)


@pytest.mark.parametrize("name", ["theorem-3.6", "Theorem 3.6", "theorem3.6", "3.6"])
def test_a_number_names_all_parts(name):
    parts = [f"theorem-3.6.{part}" for part in ("tanh", "target", "limits", "decreasing")]
    assert [statement.id for statement in theory.find_all(name, REGISTRY)] == parts
    with pytest.raises(ValueError, match=r"^statement: .*theorem-3.6.tanh, .*theorem-3.6.decreasing, got"):
        theory.find(name, REGISTRY)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("remark-3.4", ["remark-3.4"]),
        ("3.4", ["remark-3.4.exact", "remark-3.4"]),
        ("18", ["N18"]),
        ("n16", ["N16.levels", "N16.turns"]),
        ("B.2", ["lemma-B.2"]),
        ("LemmaB.2", ["lemma-B.2"]),
        ("1", ["N1"]),
    ],
)
def test_short_names(name, ids):
    assert [statement.id for statement in theory.find_all(name, REGISTRY)] == ids


def test_near_matches_have_the_number_before_the_letters():
    with pytest.raises(ValueError, match=r"such as proposition-4\.1, .*got 'theorem-4\.1'"):
        theory.find("theorem-4.1", REGISTRY)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("3.66", r"theorem-3\.6\.\w+, theorem-3\.6\.\w+, .*"),
        ("N99", r"N2\d[.\w]*, N2\d[.\w]*, N2\d[.\w]*, .*"),
        ("99", r"N2\d[.\w]*, N2\d[.\w]*, N2\d[.\w]*, .*"),
        ("lemma-B.9", r"lemma-B\.5, lemma-B\.4, lemma-B\.3, lemma-B\.2, .*"),
        ("theorem3.9", r"theorem-3\.8, theorem-3\.6\.\w+, .*"),
        ("theorem-3.6.tahn", r"theorem-3\.6\.tanh, .*"),
        ("monoton", r"theorem-3\.3\.monotone, .*"),
    ],
)
def test_near_matches_are_near_in_number_then_in_letters(name, near):
    with pytest.raises(ValueError, match=rf"^statement: expected a known id such as {near}, got '{name}'"):
        theory.find(name, REGISTRY)


def test_unknown_ids_list_near_matches():
    with pytest.raises(ValueError, match=r"^statement: expected a known id such as .*theorem-3.8"):
        theory.find("theorem-3.9", REGISTRY)

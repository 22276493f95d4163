import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory
from theory import REGISTRY, Statement, routes
from theory.statements.hypotheses import margins
from ufm import from_table, per_context, weighted

statements = pytest.mark.parametrize("statement", REGISTRY.values(), ids=REGISTRY)
every_route = pytest.mark.parametrize("route", ["instances", "autodiff", "sweep"])


@pytest.fixture
def subjects(population, few, measured):
    """What each route runs on."""
    return {"instances": population, "autodiff": few, "sweep": list(measured.values())}


@every_route
@statements
def test_the_statement_holds(statement, route, subjects):
    found = getattr(routes, route)(statement, subjects[route])
    assert found.holds
    assert found.worst_margin > 0
    assert found.instances >= {"instances": 25, "autodiff": 8, "sweep": 2}[route]


@every_route
@statements
def test_the_false_twin_is_rejected(statement, route, subjects, few):
    subject = few if route == "instances" else subjects[route]
    found = getattr(routes, route)(statement, subject, claim=statement.twin)
    assert not found.holds
    assert found.worst_margin < -0.01
    assert found.worst is not None


def test_the_registry_is_that_of_the_paper():
    theorems = {
        "theorem-3.3": {"bump", "order", "monotone"},
        "theorem-3.6": {"tanh", "target", "limits", "decreasing"},
    }
    expected = {f"{theorem}.{part}" for theorem, parts in theorems.items() for part in parts}
    assert set(REGISTRY) >= expected | {"proposition-B.1", "theorem-3.8"}


@statements
def test_a_statement_is_complete(statement):
    assert REGISTRY[statement.id] is statement
    assert statement.title
    assert re.match(r"S, |N\d|W, ", statement.source)
    assert statement.claim.tex
    assert statement.twin.tex
    assert statement.claim.tex != statement.twin.tex
    assert list(statement.needs) == list(statement.hypotheses)
    assert all(statement.needs.values())
    for claim in (statement.claim, statement.twin):
        assert claim.tex.count("{") == claim.tex.count("}")


def test_hypotheses_need_words(population):
    del population
    one = REGISTRY["theorem-3.8"]
    with pytest.raises(ValueError, match="x: every hypothesis needs words and a margin under one name"):
        Statement("x", "", "", one.claim, one.twin, needs={"A2": "words"}, hypotheses=margins("positive"))


@pytest.mark.parametrize(
    ("asked", "suggested"),
    [("theorem-3.3.bumps", "theorem-3.3.bump"), ("theorem-3.9", "theorem-3.8"), ("prop-B.1", "proposition-B.1")],
)
def test_unknown_ids_list_near_matches(asked, suggested):
    with pytest.raises(
        ValueError, match=f"^statement: expected a known id such as .*{re.escape(suggested)}.* got '{asked}'"
    ):
        theory.find(asked, REGISTRY)


def test_an_id_like_no_other_lists_them_all():
    with pytest.raises(ValueError, match=", ".join(map(re.escape, sorted(REGISTRY)))):
        theory.find("???", REGISTRY)


@statements
def test_find(statement):
    assert theory.find(statement.id, REGISTRY) is statement


# --- hypotheses ------------------------------------------------------------------------------------------------------


def alone(statement, one):
    """The evidence from one instance."""
    return routes.instances(statement, (jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], one),))


def outside_assumption_1():
    """Token 0 is of the target but rarer after its contexts, token 2 off the target but likelier."""
    p = np.array([[0.1, 0.3, 0.5, 0.1], [0.3, 0.1, 0.2, 0.4]])
    return theory.make_instance(from_table(p, [[0, 1], [2, 3]], [0, 1]), [0], [1], target=0)


def zero_probability():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.0, 0.5, 0.5]])
    return theory.make_instance(from_table(p, [[0], [1, 2]], [0, 1, 1]), [0], [1], target=0)


def varying_b():
    p = np.array([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4], [0.2, 0.4, 0.4]])
    return theory.make_instance(from_table(p, [[0], [1, 2]], [0, 1, 1]), [0], [1], target=0)


def inside_appendix_b1():
    gamma = np.array([[0.3, 0.7, 1.0, 1.0], [0.8, 0.2, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5], [1.0, 1.0, 0.9, 0.1]])
    corpus = per_context((2, 2), gamma, [0.5, 0.5, 0.6, 0.4], 0.1, [0, 0, 1, 1])
    return theory.make_instance(corpus, [0, 1], [2], target=0)


@pytest.mark.parametrize(
    ("build", "failing"),
    [
        (outside_assumption_1, {"separated"}),
        (varying_b, {"separated"}),
        (zero_probability, {"positive", "separated"}),
        (inside_appendix_b1, set()),
    ],
)
def test_hypotheses(build, failing):
    one = build()
    found = margins("A2", "not-constant", "separated", "positive")
    assert {name for name, margin in found.items() if not float(margin(one)) > 0} == failing


def test_the_constant_fails_its_hypothesis(constant_instance):
    assert float(margins("not-constant")["not-constant"](constant_instance)) < 0


@pytest.mark.parametrize("identity", ["theorem-3.3.order", "theorem-3.6.target"])
def test_without_its_hypothesis_a_statement_is_false(identity):
    """The margin is a real test of the claim: where assumption 1 fails, so does the claim, and the check says so."""
    statement, one = REGISTRY[identity], outside_assumption_1()
    assert float(jax.jit(statement.claim.instances)(one)) < -0.005
    assert theory.check(statement, one) == ("the theorem says nothing here", np.inf)


@pytest.mark.parametrize("identity", ["theorem-3.3.bump", "proposition-B.1", "theorem-3.6.tanh", "theorem-3.8"])
def test_some_statements_need_no_assumption_1(identity):
    found = alone(REGISTRY[identity], outside_assumption_1())
    assert (found.holds, found.instances) == (True, 1)


def test_check_of_a_statement():
    answer, margin = theory.check(REGISTRY["theorem-3.8"], outside_assumption_1())
    assert answer == "holds"
    assert margin == pytest.approx(alone(REGISTRY["theorem-3.8"], outside_assumption_1()).worst_margin, rel=1e-6)


@pytest.mark.parametrize("identity", [name for name in REGISTRY if name.startswith("theorem-3.3")])
def test_a_constant_makes_theorem_3_3_empty(identity, constant_instance):
    statement = REGISTRY[identity]
    assert theory.check(statement, constant_instance) == ("the theorem says nothing here", np.inf)
    only_constants = (jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), constant_instance),)
    found = routes.instances(statement, only_constants)
    assert (found.holds, found.instances, found.worst_margin, found.worst) == (False, 0, np.inf, None)


# --- extreme but legal -----------------------------------------------------------------------------------------------


def tiny_probabilities():
    tiny = 1e-300
    shares = np.array([1 - 2 * tiny, tiny, tiny, 0.5, 0.5])
    corpus = weighted((3, 2), shares, [0.5, 0.25, 0.25, 0.5, 0.5], 1e-4, length=1)
    return theory.make_instance(corpus, [0], [3], target=0)


def rare_noise():
    corpus = weighted((1, 2), [1.0, 0.6, 0.4], [1.0, 0.3, 0.7], 1e-290, length=1)
    return theory.make_instance(corpus, [0], [1, 2], target=0)


@pytest.mark.parametrize("identity", ["theorem-3.3.bump", "proposition-B.1", "theorem-3.6.tanh", "theorem-3.8"])
@pytest.mark.parametrize("build", [tiny_probabilities, rare_noise])
def test_probabilities_of_1e_minus_300(identity, build):
    """Nothing breaks: the statement holds, or says nothing (no token of the rare corpus is between the extremes)."""
    found = alone(REGISTRY[identity], build())
    assert not np.isnan(found.worst_margin)
    assert found.holds or found.instances == 0
    assert found.holds or identity == "theorem-3.3.bump"

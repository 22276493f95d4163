"""Verification in one process and in two: the same evidence, and a sentence where the second one is lost."""

import multiprocessing
import os
import time

import jax
import numpy as np
import pytest

from sim.checks import report
from sim.checks import verify as module
from sim.checks.verify import Verdict, as_json, as_table, verify
from theory import REGISTRY, routes
from theory.routes import Evidence

SOME = ["theorem-3.6.target", "N7", "N21.cost"]
"""Statements of three domains."""


def test_two_processes_give_the_evidence_of_one():
    alone, apart = (
        verify(SOME, seed=3, instances=60, names=["instances", "autodiff", "symbolic"], twins=True, apart=apart)
        for apart in (False, True)
    )
    assert [verdict.statement.id for verdict in apart] == [verdict.statement.id for verdict in alone]
    for ours, theirs in zip(alone, apart, strict=True):
        pairs = list(zip(ours.evidence + ours.twin, theirs.evidence + theirs.twin, strict=True))
        assert {one.route for one, _ in pairs} >= {"instances", "autodiff"}
        for one, other in pairs:
            facts = [(result.route, result.holds, result.checked, result.worst_margin) for result in (one, other)]
            assert facts[0] == facts[1]
            for leaf, same in zip(jax.tree.leaves(one.worst), jax.tree.leaves(other.worst), strict=True):
                assert same.dtype == leaf.dtype
                np.testing.assert_array_equal(same, leaf)


def _lost(route, *_):
    """Ends a second process; in the first one, takes its time."""
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    time.sleep(0.5)
    return Evidence(route, True, 1, 1.0, 0.5)


def test_a_process_that_was_ended_is_named(monkeypatch):
    monkeypatch.setattr(module, "_check_random", _lost)
    with pytest.raises(ValueError, match=r"instances: .*process.*memory"):
        verify(SOME, instances=60, names=["instances", "autodiff"], twins=True, apart=True)


HELD, FELL = Evidence("instances", True, 60, 0.5, 1.0), Evidence("instances", False, 60, -0.5, 1.0)
PROVED, REFUTED = Evidence("certificate", True, 6, 0.5, 1.0), Evidence("certificate", False, 1, -0.5, 1.0)
OPEN = Evidence("certificate", False, 6, float("inf"), 1.0, None, "undecided on a width of 2", undecided=True)
NOTHING = Evidence("certificate", False, 0, float("inf"), 1.0)


@pytest.mark.parametrize(
    ("claim", "twin", "outcome", "rejections"),
    [
        ((HELD, PROVED), (FELL, REFUTED), "holds", 2),
        ((HELD, OPEN), (FELL, REFUTED), "undecided", 2),
        ((HELD, PROVED), (FELL, OPEN), "undecided", 1),
        ((FELL, OPEN), (FELL, REFUTED), "fails", 2),
        ((HELD, OPEN), (FELL, PROVED), "fails", 1),
        ((HELD, OPEN), (HELD, OPEN), "fails", 0),
        ((HELD, NOTHING), (FELL, REFUTED), "fails", 2),
        ((HELD, REFUTED), (FELL, OPEN), "fails", 1),
        ((), (), "fails", 0),
    ],
)
def test_an_undecided_certificate_neither_rejects_nor_verifies(claim, twin, outcome, rejections):
    verdict = Verdict(REGISTRY["N1"], claim, twin)
    assert (verdict.outcome, verdict.rejections) == (outcome, rejections)
    assert verdict.holds == (outcome == "holds")


def test_undecided_is_said_wherever_a_verdict_is_shown(tmp_path):
    verdict = Verdict(REGISTRY["N1"], (HELD, OPEN), (FELL, OPEN))
    table = as_table([verdict])
    assert "FAILS" not in table
    assert [line.count("undecided") for line in table.splitlines() if line.startswith(("N1 ", "  false twin"))] == [1, 1]
    assert "undecided, neither verified nor found to fail: N1" in table
    (data,) = as_json([verdict], 0)["statements"]
    assert (data["holds"], data["outcome"]) == (False, "undecided")
    assert [(route["holds"], route["outcome"]) for route in data["routes"]] == [(True, "holds"), (False, "undecided")]
    assert [route["outcome"] for route in data["twin"]] == ["fails", "undecided"]
    index = report.write_verification(tmp_path, [verdict], {}).read_text()
    page = (tmp_path / "statements" / "N1.html").read_text()
    for html in (index, page):
        body = html[html.index("<main>") :]
        assert 'class="fails"' not in body
        assert ">undecided</span>" in body
    assert '<span class="verdict undecided">0 of 1' in index
    assert "rejected by 1 of 2 routes; undecided by 1" in page


def test_a_twin_that_is_true_is_not_rejected_by_a_certificate_that_is_undecided():
    statement = REGISTRY["N1"]
    touching = routes.Curve(lambda instance, alpha: (alpha * instance.range - 1 / np.sqrt(3.0)) ** 2)
    true_twin = routes.Claim(tex="", instances=statement.claim.instances, curves=(touching,))
    evidence = routes.certificate(statement, list(module.examples.exact_instances().values())[:1], claim=true_twin)
    assert evidence.outcome == "undecided"
    assert evidence.worst_margin == np.inf
    assert Verdict(statement, (HELD,), (evidence,)).rejections == 0

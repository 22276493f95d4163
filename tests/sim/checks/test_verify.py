"""Verification in one process and in two: the same evidence, and a sentence where the second one is lost."""

import multiprocessing
import os
import time

import jax
import numpy as np
import pytest

from sim.checks import verify as module
from sim.checks.verify import verify
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

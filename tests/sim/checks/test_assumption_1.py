"""Assumption 1 left on purpose: what is kept of it is true, and of the departure that it is said to be of."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from sim.checks.assumption_1 import DEPARTURES, DROPPED, leave, write
from sim.checks.refute import conjecture, read_instance
from theory import REGISTRY
from theory.certificate import confirm
from theory.rationals import checked
from theory.statement import TABLES

DATA = Path(__file__).parents[3] / "docs" / "data"
TABLE = json.loads((DATA / "assumption-1.json").read_text())
FAILURES = [
    (entry["id"], name, cell)
    for entry in TABLE["statements"]
    for name, cell in entry["departures"].items()
    if cell["verdict"] == "fails"
]


def spread(exact, own):
    """For each token, its probabilities after the contexts of its own concept, or after all others."""
    tokens = range(len(exact.p[0]))
    rows = list(zip(exact.p, exact.concept, strict=True))
    return [{row[z] for row, concept in rows if exact.members[concept][z] == own} for z in tokens]


def are_mixtures(exact):
    """Within every concept all rows lie on one line, along which every probability rises with the concept's mass."""
    for mask in exact.members:
        parts = [[x for x, inside in zip(row, mask, strict=True) if inside] for row in exact.p]
        for (lowest, low), (third, fourth) in combinations(combinations(parts, 2), 2):
            step, second = ([y - x for x, y in zip(*pair, strict=True)] for pair in ((lowest, low), (third, fourth)))
            if any(x * sum(second) != y * sum(step) for x, y in zip(step, second, strict=True)):
                return False
            if not (all(x > 0 for x in step) or all(x < 0 for x in step) or not any(step)):
                return False
    return True


def test_every_statement_about_tables_has_a_verdict_under_every_departure():
    assert [entry["id"] for entry in TABLE["statements"]] == [
        entry.id for entry in REGISTRY.values() if entry.domain is TABLES
    ]
    assert list(TABLE["departures"]) == list(DEPARTURES) == ["per-context-a", "per-context-b", "mixed", "unequal"]
    for entry in TABLE["statements"]:
        assert list(entry["departures"]) == list(DEPARTURES)
        assert sorted([*entry["kept"], *entry["dropped"]]) == sorted(REGISTRY[entry["id"]].hypotheses)
        assert set(entry["dropped"]) <= set(DROPPED)
        for cell in entry["departures"].values():
            assert cell["verdict"] == ("survives" if float(cell["margin"]) > 0 else "fails")
            assert cell["tried"] > 0


def test_what_is_proved_without_assumption_1_or_from_separated_survives():
    for name, departure, _ in FAILURES:
        assert {"separated", "A1"} & set(REGISTRY[name].hypotheses)
        # With a that depends on the context the signs of lemma B.4 remain, but not its values.
        assert not DEPARTURES[departure].separated or (name, departure) == ("lemma-B.4", "per-context-a")


def test_no_file_is_left_over():
    assert sorted(path.name for path in (DATA / "assumption-1").iterdir()) == sorted(
        Path(cell["counterexample"]["file"]).name for _, _, cell in FAILURES
    )


@pytest.mark.parametrize(("name", "departure", "cell"), FAILURES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_counterexample_is_one_and_of_its_departure(name, departure, cell):
    kept = read_instance(DATA / cell["counterexample"]["file"])
    exact = checked(kept.instance)
    target = conjecture(kept.target, kept.needs)
    assert kept.target == name
    assert list(target.needs) == [hypothesis for hypothesis in REGISTRY[name].hypotheses if hypothesis not in DROPPED]
    assert all(confirm(margin, exact).sign > 0 for margin in target.conditions)
    margin = confirm(target.margin, exact)
    assert margin.sign < 0
    assert (
        [margin.lower, margin.upper] == list(kept.enclosure) == [float(end) for end in cell["counterexample"]["enclosure"]]
    )
    a, b = spread(exact, own=True), spread(exact, own=False)
    assert all(min(own) > max(others) for own, others in zip(a, b, strict=True))
    a_varies, b_varies = (any(len(values) > 1 for values in token) for token in (a, b))
    assert b_varies == (departure != "per-context-a")
    # With two concepts a > b is enough, but for the values of lemma B.4.
    assert len(set(exact.members)) > 2 or name == "lemma-B.4"
    if departure == "mixed":
        assert are_mixtures(exact)
    else:
        assert a_varies == (departure == "per-context-a")


def test_an_attack_on_one_departure_finds_and_writes_a_counterexample(tmp_path):
    outcomes = leave(["theorem-3.6.target"], ["per-context-b"], seed=3, drawn=512)
    assert [(outcome.verdict, outcome.descended) for outcome in outcomes] == [("fails", False)]
    file = write(tmp_path / "new" / "some.json", outcomes, 3)
    cell = json.loads(file.read_text())["statements"][0]["departures"]["per-context-b"]
    kept = read_instance(file.parent / cell["counterexample"]["file"])
    # By hand: the target loses probability somewhere although the strength grows.
    p, contrast = (np.array(x, dtype=float) for x in (kept.instance.p, kept.instance.contrast))
    m = contrast @ np.log(p)
    alphas = np.linspace(-64, 64, 4097) / np.ptp(m)
    weights = np.log(p)[:, None] + alphas[:, None] * m
    inside = np.array(kept.instance.members[kept.instance.target])
    odds = np.logaddexp.reduce(weights[..., inside], axis=-1) - np.logaddexp.reduce(weights[..., ~inside], axis=-1)
    assert np.diff(odds, axis=1).min() < 0


@pytest.mark.slow
def test_where_no_random_table_breaks_gradients_are_followed(tmp_path):
    outcomes = leave(["theorem-3.6.target"], ["per-context-a", "per-context-b"], seed=3, drawn=64)
    assert [(outcome.verdict, outcome.descended) for outcome in outcomes] == [("survives", True), ("fails", True)]
    assert outcomes[0].why == "separated still holds"
    cells = json.loads(write(tmp_path / "some.json", outcomes, 3).read_text())["statements"][0]["departures"]
    assert [cell["counterexample"] is None for cell in cells.values()] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["N99"], None), "statement: expected a known id"),
        ((["N7"], None), "statements: expected statements about next-token tables"),
        ((None, ["per-context-c"]), "departures: expected some of per-context-a, per-context-b, mixed, unequal"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        leave(*arguments)

"""Small tables of round numbers: what they are, which families they are of, and that attacks find the first that breaks."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from theory import REGISTRY
from theory.random_instances import FAMILIES
from theory.rationals import to_floats
from theory.small_tables import DRAWN, SIZES, UNITS, attack_small, small_tables
from theory.statement import TABLES
from theory.statements.hypotheses import chosen

HYPOTHESES = chosen("A1", "separated")


def tables(size, families):
    return small_tables(*size, families, np.random.default_rng(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("families", [("weighted",), ("per-context-a",), FAMILIES])
def test_tables_are_tables_of_their_families(size, families):
    found = tables(size, families)
    assert 0 < len(found) <= 1.1 * DRAWN
    with jax.enable_x64(True):
        for table in found[:: len(found) // 40 + 1]:
            # `exact` checks positivity, sums, and P and N.
            exact = table.exact
            assert all(table.unit in UNITS and (x * table.unit).denominator == 1 for row in exact.p for x in row)
            instance = to_floats(exact)
            if "free" not in families:
                assert HYPOTHESES["separated"].margin(instance) > 0
            if families == ("weighted",):
                assert HYPOTHESES["A1"].margin(instance) > 0


def test_families_of_fewer_tables_are_those_of_their_definitions():
    for table in tables((4, 3), ("tied",)):
        of_token = np.array(table.layout.of_token)
        for g in set(table.layout.of_token):
            part = table.counts[:, of_token == g]
            assert (part * part[:1, :1] == part[:, :1] * part[:1]).all()
    for table in tables((4, 3), ("uniform",)):
        of_token = np.array(table.layout.of_token)
        assert all(len(set(row[of_token == g])) == 1 for row in table.counts for g in set(table.layout.of_token))


def test_there_are_none_of_a_family_of_which_nothing_is_known():
    assert tables((2, 2), ("another",)) == []
    assert len(tables((2, 2), ("another", "uniform"))) == len(tables((2, 2), ("uniform",))) > 0


def test_the_smallest_tables_in_tenths_are_all_looked_at():
    """By hand: of two tokens with p(0) = a after c0 and b < a after c1, in tenths."""
    pairs = {(a, b) for a in range(1, 10) for b in range(1, a)}
    found = {tuple(table.counts[:, 0]) for table in tables((2, 2), ("weighted",)) if table.unit == 10}
    assert found == pairs


def test_an_attack_ends_at_the_first_size_that_breaks_the_margin():
    """The likeliest token has at most 3/5 after every context: false of two tokens, at 7/10 in tenths."""
    with jax.enable_x64(True):
        result = attack_small(lambda instance: 0.6 - instance.p.max(), TABLES, families=("weighted",))
    assert len(result.exact.p) == len(result.exact.p[0]) == 2
    assert {x.denominator for row in result.exact.p for x in row} <= {1, 2, 5, 10}
    assert max(max(row) for row in result.exact.p) > Fraction(3, 5)
    assert result.confirmation.upper < 0
    assert result.margin == pytest.approx(result.confirmation.lower)


@pytest.mark.parametrize("name", ["theorem-3.8", "N1"])
def test_true_statements_survive(name):
    statement = REGISTRY[name]
    with jax.enable_x64(True):
        assert attack_small(statement.claim.instances, TABLES, statement.conditions) is None


def test_hypotheses_are_kept():
    with jax.enable_x64(True):
        result = attack_small(
            REGISTRY["theorem-3.3.order"].twin.instances, TABLES, [hypothesis.margin for hypothesis in HYPOTHESES.values()]
        )
        assert all(hypothesis.margin(to_floats(result.exact)) > 0 for hypothesis in HYPOTHESES.values())

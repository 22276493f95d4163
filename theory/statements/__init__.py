"""The statements, one module per theorem, and the registry of them all.

`ufm new statement NAME` writes a module with a tuple `STATEMENTS` and names it here. Routes, the table of verdicts and the
report follow; `CONTRIBUTING.md` lists what else a statement needs.
"""

from theory.statement import Statement
from theory.statements import (
    lemmas_b,
    n1_concavity,
    n2_order,
    n3_sweet_spot,
    n4_cross_entropy,
    n5_sandwich,
    n6_preference,
    n7_norm,
    n8_arc,
    n9_curvature,
    n10_robustness,
    n11_forgetting,
    n12_equivalence,
    n13_stationarity,
    n14_directions,
    n15_cost,
    n16_turns,
    n17_takeover,
    n18_budget,
    n19_tempered,
    n20_range,
    n21_sequences,
    n22_bumps,
    n23_allocation,
    n24_overlapping,
    proposition_4_1,
    proposition_b1,
    theorem_3_3,
    theorem_3_6,
    theorem_3_8,
)

_MODULES = (
    lemmas_b,
    theorem_3_3,
    proposition_b1,
    theorem_3_6,
    theorem_3_8,
    proposition_4_1,
    n1_concavity,
    n2_order,
    n3_sweet_spot,
    n4_cross_entropy,
    n5_sandwich,
    n6_preference,
    n7_norm,
    n8_arc,
    n9_curvature,
    n10_robustness,
    n11_forgetting,
    n12_equivalence,
    n13_stationarity,
    n14_directions,
    n15_cost,
    n16_turns,
    n17_takeover,
    n18_budget,
    n19_tempered,
    n20_range,
    n21_sequences,
    n22_bumps,
    n23_allocation,
    n24_overlapping,
)

REGISTRY: dict[str, Statement] = {statement.id: statement for module in _MODULES for statement in module.STATEMENTS}
"""All statements by id: those of the paper in its order, then ours."""

MODULE_OF: dict[str, str] = {statement.id: module.__name__ for module in _MODULES for statement in module.STATEMENTS}
"""The module that each statement is written in."""

"""The statements, one module per theorem, and the registry of them all.

To add one: write a module with a tuple `STATEMENTS`, and name it here. Everything else (routes, tables, report) follows.
"""

from theory.statement import Statement
from theory.statements import proposition_b1, theorem_3_3, theorem_3_6, theorem_3_8

REGISTRY: dict[str, Statement] = {
    statement.id: statement
    for module in (theorem_3_3, proposition_b1, theorem_3_6, theorem_3_8)
    for statement in module.STATEMENTS
}
"""All statements by id, in the paper's order."""

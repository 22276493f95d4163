"""The theory on a real language model: what it says of the last block, of strengths weak and strong, and of texts, measured.

Where a statement is exact on a language model (behind its last norm: N7, N8, N19, N20.arc; in the limit: S, proposition 4.1;
to second order: N9, N15.efficiency, N23; for any two predictions: N15, N18, N20.range; on text of its own: N13), the finding
is an error and a tolerance. Where it is about the unconstrained features model (S, theorem 3.3, and N16) or about Markov
chains (N21), the finding is how much of it is left.
"""

from sim.checks.validation.checks import CHECKS, Validation, as_table, chosen, validate
from sim.checks.validation.findings import SMOKE, Finding, Material, Size

__all__ = ["CHECKS", "SMOKE", "Finding", "Material", "Size", "Validation", "as_table", "chosen", "validate"]

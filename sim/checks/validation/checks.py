"""Which statements are checked on a language model, and a run of these checks."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import xarray as xr

from sim.bridge.model import LanguageModel
from sim.checks.validation.cost import costs
from sim.checks.validation.cross_entropy import curvatures
from sim.checks.validation.findings import Finding, Material, Run, Size, material
from sim.checks.validation.last_block import last_block
from sim.checks.validation.mixes import mixes
from sim.checks.validation.next_tokens import next_tokens
from sim.checks.validation.plateaus import plateaus
from sim.checks.validation.sequences import sequences
from sim.checks.validation.tempered import tilts
from sim.output import settings
from sim.progress import bar
from theory._compilation import release_programs
from ufm._check import require


@dataclass(frozen=True)
class Validation:
    """The findings on a model.

    Attributes:
        model: its name.
        findings: comparison by comparison.
        data: labelled, one group for each figure.
        numbers: settings and whatever else the page shows.
    """

    model: str
    findings: tuple[Finding, ...]
    data: xr.DataTree
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every comparison that has a tolerance is within it."""
        return all(finding.holds for finding in self.findings)

    @property
    def summary(self) -> str:
        """How many comparisons that have a tolerance are within it, in words."""
        judged = [finding for finding in self.findings if finding.tolerance is not None]
        return f"{sum(finding.holds for finding in judged)} of {len(judged)} comparisons hold"

    def as_json(self) -> dict[str, Any]:
        """Everything but the data of the figures."""
        findings = [asdict(finding) | {"holds": finding.holds} for finding in self.findings]
        return {"model": self.model, "holds": self.holds, "findings": findings, "settings": self.numbers}


def as_table(validation: Validation) -> str:
    """The findings as a table for the terminal."""
    lines = [f"{'statement':<18}{'where':<28}{'what':<72}{'value':>11}{'at most':>10}"]
    for finding in validation.findings:
        most = "" if finding.tolerance is None else f"{finding.tolerance:.0e}"
        verdict = "" if finding.tolerance is None else ("holds" if finding.holds else "FAILS")
        place = f"{finding.statement:<18}{finding.about:<28}{finding.what:<72}"
        lines.append(f"{place}{finding.value:>11.2e}{most:>10}  {verdict}".rstrip())
    return "\n".join([*lines, f"{validation.summary} on {validation.model}"])


def validate(
    lm: LanguageModel,
    *,
    statements: Sequence[str] | None = None,
    seed: int = 0,
    size: Size | None = None,
    texts: Material | None = None,
    progress: bool | None = None,
) -> Validation:
    """Check the theory on a language model.

    Args:
        lm: the model, in float32.
        statements: some of `CHECKS`; all if left out.
        seed: of the text that the model writes.
        size: how much is computed.
        texts: concepts and contexts; for a model without a tokenizer, as tokens.
        progress: whether to show a bar.

    Raises:
        ValueError: an unknown statement; one that this module has no comparison for.
    """
    names = chosen(statements)
    run = Run(lm, size or Size(), texts or material(), seed)
    findings: list[Finding] = []
    parts: dict[str, xr.Dataset] = {}
    with bar(total=len(names), desc="language model", unit="statement", shown=progress) as steps:
        for name in names:
            steps.set_postfix_str(name)
            release_programs()
            group, check = CHECKS[name]
            if group not in parts:
                data, comparisons = check(run)
                parts[group] = data
                findings += comparisons
            steps.update()
    kept = tuple(finding for finding in findings if finding.statement in names)
    about = {"model": lm.name, "fingerprint": lm.fingerprint, "layers": run.layers, "size": asdict(run.size)}
    return Validation(lm.name, kept, xr.DataTree.from_dict(parts), settings(seed, **about))


def chosen(statements: Sequence[str] | None) -> list[str]:
    """The statements named, or all that language models are checked on.

    Raises:
        ValueError: an unknown statement; one that this module has no comparison for.
    """
    unknown = [name for name in statements or () if name not in CHECKS]
    require(not unknown, "statement", f"one that language models are checked on ({', '.join(CHECKS)})", ", ".join(unknown))
    return list(statements or CHECKS)


Check = Callable[[Run], tuple[xr.Dataset, list[Finding]]]

CHECKS: dict[str, tuple[str, Check]] = {
    "N7": ("last_block", last_block),
    "N8.arc": ("last_block", last_block),
    "N8.plateau": ("last_block", last_block),
    "N8.bumps": ("last_block", last_block),
    "proposition-4.1": ("plateaus", plateaus),
    "N11": ("plateaus", plateaus),
    "N9": ("curvatures", curvatures),
    "N13.divergence": ("curvatures", curvatures),
    "N13.slope": ("curvatures", curvatures),
    "N15.split": ("costs", costs),
    "N15.bound": ("costs", costs),
    "N15.efficiency": ("costs", costs),
    "N16.turns": ("costs", costs),
    "N18": ("costs", costs),
    "N19.tilt": ("tilts", tilts),
    "N20.range": ("costs", costs),
    "N20.arc": ("costs", costs),
    "N21.response": ("sequences", sequences),
    "N21.amplification": ("sequences", sequences),
    "N23.interference": ("mixes", mixes),
    "N23.mix": ("mixes", mixes),
    "theorem-3.3.bump": ("next_tokens", next_tokens),
}
"""Statements that are checked on language models: the group of their data, and what computes it."""

"""The pages of a reproduction: verdicts, figures, numbers and settings on one, and one for each statement.

The first page needs nothing beside it; the others show the figures of the folder they are in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim import output
from sim.checks.validation import Validation
from sim.checks.verify import DEFAULT_ROUTES, Verdict
from sim.figures import FIGURES, VALIDATION_FIGURES, Drawing
from sim.pages import pictures, write_page
from theory import REGISTRY
from theory.statements import MODULE_OF


def write(
    folder: Path,
    verdicts: list[Verdict],
    figures: Mapping[str, dict[str, Path]],
    kept: Mapping[tuple[str, str, bool], Path],
    numbers: dict[str, Any],
    seconds: float,
    *,
    on_model: Validation | None = None,
    missing: str = "",
    choice: bool = False,
) -> Path:
    """Write ``index.html`` and ``statements/ID.html``; returns the path of the first.

    Args:
        folder: where.
        verdicts: from `sim.verify`.
        figures: paths of the saved figures, by name and format; their SVGs are copied into the first page.
        kept: files of the worst instances (`sim.reproduction.keep`).
        numbers: as `sim.reproduce` collects them.
        seconds: how long the run took.
        on_model: what was found on a language model, whose figures are among `figures`.
        missing: why there is none, if one was asked for.
        choice: whether ``choosing/index.html`` is the page of a strength that was chosen on it.
    """
    pages = output.prepare_folder(folder / "statements")
    for verdict in verdicts:
        statement = verdict.statement
        shown = {name: figure for name, figure in FIGURES.items() if figure.dataset == statement.figure}
        write_page(
            pages / f"{statement.id}.html",
            "statement.html",
            verdict=verdict,
            kept=kept,
            module=MODULE_OF[statement.id],
            figures=shown,
        )
    return write_page(
        folder / "index.html",
        "report.html",
        verdicts=verdicts,
        routes=DEFAULT_ROUTES,
        figures=FIGURES,
        language_figures={name: VALIDATION_FIGURES[name] for name in FIRST if name in figures},
        pictures=pictures(figures),
        numbers=numbers,
        seconds=seconds,
        holds=bool(verdicts) and all(verdict.holds for verdict in verdicts),
        on_model=on_model,
        missing=missing,
        choice=choice,
    )


FIRST = ("language-next-tokens", "language-bumps")
"""The figures of a language model that the first page shows; all are on its own."""


def write_language_model(
    folder: Path, validation: Validation, figures: Mapping[str, dict[str, Path]], *, alone: bool = False
) -> Path:
    """Write ``language-model.html``, what was found on a language model; returns its path.

    Args:
        folder: where.
        validation: from `sim.validate`.
        figures: paths of its figures.
        alone: whether there is no first page to go back to.
    """
    groups: dict[str, list[Any]] = {}
    for finding in validation.findings:
        groups.setdefault(finding.statement, []).append(finding)
    shown: dict[str, Drawing] = {name: VALIDATION_FIGURES[name] for name in figures}
    return write_page(
        folder / "language-model.html",
        "language_model.html",
        validation=validation,
        groups=groups,
        titles={name: REGISTRY[name].title for name in groups},
        figures=shown,
        pictures=pictures(figures),
        alone=alone,
    )

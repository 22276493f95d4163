"""The pages of a reproduction: verdicts, figures, numbers and settings on one, and one for each statement.

The first page needs nothing beside it; the others show the figures of the folder they are in.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sim import output
from sim.figures import FIGURES
from sim.tex import to_html
from sim.verify import DEFAULT_ROUTES, Verdict
from theory.statements import MODULE_OF


def write(
    folder: Path,
    verdicts: list[Verdict],
    figures: Mapping[str, dict[str, Path]],
    kept: Mapping[tuple[str, str, bool], Path],
    numbers: dict[str, Any],
    seconds: float,
) -> Path:
    """Write ``index.html`` and ``statements/ID.html``; returns the path of the first.

    Args:
        folder: where.
        verdicts: from `sim.verify.verify`.
        figures: paths of the saved figures, by name and format; their SVGs are copied into the first page.
        kept: files of the worst instances (`sim.reproduce.keep`).
        numbers: as `sim.reproduce.reproduce` collects them.
        seconds: how long the run took.
    """
    environment = Environment(
        loader=PackageLoader("sim"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages = output.prepare_folder(folder / "statements")

    def page(path: Path, template: str, **given: Any) -> Path:
        html = environment.get_template(template).render(tex=to_html, **given)
        return output.write_whole(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))

    for verdict in verdicts:
        one = verdict.statement
        shown = {name: figure for name, figure in FIGURES.items() if figure.dataset == one.figure}
        page(
            pages / f"{one.id}.html",
            "statement.html",
            verdict=verdict,
            kept=kept,
            module=MODULE_OF[one.id],
            figures=shown,
        )
    pictures = {
        name: "data:image/svg+xml;base64," + base64.b64encode(files["svg"].read_bytes()).decode()
        for name, files in figures.items()
    }
    return page(
        folder / "index.html",
        "report.html",
        verdicts=verdicts,
        routes=DEFAULT_ROUTES,
        figures=FIGURES,
        pictures=pictures,
        numbers=numbers,
        seconds=seconds,
        holds=bool(verdicts) and all(verdict.holds for verdict in verdicts),
    )

"""The page of a reproduction: one HTML file that needs nothing beside it. Verdicts, figures, numbers and settings."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sim.figures import TOY_FIGURES
from sim.output import write_whole
from sim.tex import to_html
from sim.verify import DEFAULT_ROUTES, Verdict


def write(
    path: Path, verdicts: list[Verdict], figures: dict[str, dict[str, Path]], numbers: dict[str, Any], seconds: float
) -> Path:
    """Write the page.

    Args:
        path: where.
        verdicts: from `sim.verify.verify`.
        figures: paths of the saved figures, by name and format; their SVGs are copied into the page.
        numbers: as `sim.reproduce.reproduce` collects them.
        seconds: how long the run took.
    """
    pictures = {
        name: "data:image/svg+xml;base64," + base64.b64encode(files["svg"].read_bytes()).decode()
        for name, files in figures.items()
    }
    environment = Environment(
        loader=PackageLoader("sim"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("report.html").render(
        verdicts=verdicts,
        routes=DEFAULT_ROUTES,
        figures=TOY_FIGURES,
        pictures=pictures,
        numbers=numbers,
        seconds=seconds,
        holds=bool(verdicts) and all(verdict.holds for verdict in verdicts),
        tex=to_html,
    )
    return write_whole(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))

"""Pages from templates: written whole, with TeX as MathML and figures inside, so that nothing else is needed beside them."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sim import output
from sim.tex import to_html


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write a page from one of the templates, whole; returns its path."""
    environment = Environment(
        loader=PackageLoader("sim"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template(template).render(tex=to_html, **values)
    return output.write_whole(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def pictures(figures: Mapping[str, dict[str, Path]]) -> dict[str, str]:
    """SVGs of figures as addresses that need no file."""
    return {
        name: "data:image/svg+xml;base64," + base64.b64encode(files["svg"].read_bytes()).decode()
        for name, files in figures.items()
    }

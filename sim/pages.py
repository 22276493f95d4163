"""Pages from templates: written whole, with TeX as MathML and figures inside, so that nothing else is needed beside them.

Every page ends with links to the papers, and to two pages of the documentation, in the folder ``guide`` of its report.
"""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sim import output, tex
from sim.checks import proofs
from sim.checks.markdown import to_html
from theory import REGISTRY

GUIDES = {"glossary": "glossary", "practice": "what to do with α"}
"""The pages of the documentation that reports bring along, and what links to them say."""


def write_page(path: Path, template: str, *, report: Path | None = None, **values: Any) -> Path:
    """Write a page from one of the templates, whole; returns its path.

    Args:
        path: of the page.
        template: the name of its template.
        report: the folder of the report that the page is a part of, which has the guides; if left out, it is the folder of
            the page, and the guides are written too.
        values: what the template shows.
    """
    folder = write_guides(path.parent) if report is None else report / "guide"
    return _write(path, template, folder, values)


def write_guides(report: Path) -> Path:
    """Write the pages of `GUIDES` that are at hand, linked to the statements of a report; returns their folder.

    Args:
        report: the folder of the report.
    """
    folder = output.prepare_folder(report / "guide")
    written = [known for known in REGISTRY.values() if (report / "statements" / f"{known.id}.html").is_file()]
    addresses = proofs.addresses(written, "../statements/") if written else {}
    addresses |= {name: f"{name}.html" for name in GUIDES}
    for name, words in GUIDES.items():
        source = proofs.page(name)
        if source is not None:
            _write(
                folder / f"{name}.html",
                "guide.html",
                folder,
                {"name": name, "words": words, "text": to_html(source, addresses)},
            )
    return folder


def _write(path: Path, template: str, guides: Path, values: Mapping[str, Any]) -> Path:
    environment = Environment(
        loader=PackageLoader("sim"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    place = Path(os.path.relpath(guides, path.parent))
    links = {(place / f"{name}.html").as_posix(): words for name, words in GUIDES.items() if proofs.page(name) is not None}
    html = environment.get_template(template).render(tex=tex.to_html, guides=links, **values)
    return output.write_whole(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def pictures(figures: Mapping[str, dict[str, Path]]) -> dict[str, str]:
    """SVGs of figures as addresses that need no file."""
    return {
        name: "data:image/svg+xml;base64," + base64.b64encode(files["svg"].read_bytes()).decode()
        for name, files in figures.items()
    }

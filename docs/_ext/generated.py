"""Parts of pages that are written from the code at build time, where a page has a marker for them.

``<!-- statements -->`` becomes every statement of the registry; ``<!-- modules of PACKAGE -->`` an `automodule` for each
public module of a package.
"""

import pkgutil
import re
from importlib import import_module

from sphinx.application import Sphinx

from theory import REGISTRY, Statement


def statements() -> str:
    """All statements as MyST: a table with links, then a section for each."""
    rows = "\n".join(
        f"| [{s.id}](#{s.id}) | {s.title} | {s.source} | {', '.join(s.hypotheses)} |" for s in REGISTRY.values()
    )
    table = f"| id | title | source | needs |\n|---|---|---|---|\n{rows}\n"
    return f"{table}\n## One by one\n" + "\n".join(_section(s) for s in REGISTRY.values())


def _section(statement: Statement) -> str:
    needs = "\n".join(f"- **{name}**: {one.words}" for name, one in statement.hypotheses.items())
    remarks = f"\n*Remarks.* {statement.remarks}\n" if statement.remarks else ""
    return f"""
({statement.id})=
### {statement.id}

**{statement.title}** ({statement.source})

$$
{statement.claim.tex}
$$

*Needs*

{needs}

*False twin*, which every route must reject:

$$
{statement.twin.tex}
$$
{remarks}"""


def modules(package: str) -> str:
    """An `automodule` for every public module of a package, in alphabetical order."""
    found = pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
    public = [m for m in found if not any(part.startswith("_") for part in m.name.split("."))]
    # What a package re-exports is documented where it is written.
    directives = [f".. automodule:: {m.name}\n" + "   :no-members:\n" * m.ispkg for m in public]
    return "\n".join(f"## {m.name}\n\n```{{eval-rst}}\n{d}```\n" for m, d in zip(public, directives, strict=True))


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    del app, docname
    source[0] = source[0].replace("<!-- statements -->", statements())
    source[0] = re.sub(r"<!-- modules of (\w+) -->", lambda match: modules(match[1]), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

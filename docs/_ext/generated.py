"""Parts of pages that are written from the code at build time, where a page has a marker for them.

``<!-- statements -->`` becomes every statement of the registry, ``<!-- assumption 1 -->`` the table of
``data/assumption-1.json``, and ``<!-- counterexample ID DEPARTURE -->`` one of its counterexamples.
"""

import json
import re
from pathlib import Path

from sphinx.application import Sphinx

from theory import REGISTRY, Statement, rationals
from theory.statements import MODULE_OF


def statements() -> str:
    """All statements as MyST: a table with links, then a section for each."""
    rows = "\n".join(
        f"| [{s.id}](#{s.id}) | {s.title} | {s.source} | {', '.join(s.hypotheses) or 'none'} |" for s in REGISTRY.values()
    )
    table = f"| id | title | source | needs |\n|---|---|---|---|\n{rows}\n"
    return f"{table}\n## One by one\n" + "\n".join(_section(s) for s in REGISTRY.values())


def _section(statement: Statement) -> str:
    named = "\n".join(f"- **{name}**: {hypothesis.words}" for name, hypothesis in statement.hypotheses.items())
    needs = named or "- nothing besides what the claim itself says"
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
{remarks}
{{doc}}`Proof </{statement.proof}>`; {{py:mod}}`{MODULE_OF[statement.id]}`.
"""


DATA = Path(__file__).parents[1] / "data"


NON_BREAKING_HYPHEN = "\N{NON-BREAKING HYPHEN}"


def assumption_1() -> str:
    """What becomes of each statement under each departure from assumption 1, as a MyST table."""
    report = json.loads((DATA / "assumption-1.json").read_text(encoding="utf-8"))
    names = list(report["departures"])
    rows = [f"| statement | assumption 1 | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for entry in report["statements"]:
        # The same for every departure under which the statement survives, and it survives some.
        free = any(cell["why"] == "the proof does not use it" for cell in entry["departures"].values())
        uses = "the proof does not use it" if free else ", ".join(entry["dropped"])
        cells = " | ".join(_cell(entry["departures"][name]) for name in names)
        rows.append(f"| [{entry['id']}](#{entry['id']}) | {uses} | {cells} |")
    return "\n".join(rows) + "\n"


def _cell(report: dict) -> str:
    margin, kept = float(report["margin"]), report["counterexample"]
    if report["verdict"] == "survives":
        text = f"holds, {margin:.1e}"
    else:
        text = f"**[fails](data/{kept['file']})**, {float(kept['enclosure'][1]):.2g}" if kept else f"open, {margin:.1e}"
    words, number = text.rsplit(" ", 1)
    # Hyphens at which no line is broken.
    return f"{words} {number.replace('-', NON_BREAKING_HYPHEN)}"


def counterexample(statement_id: str, departure: str) -> str:
    """A kept counterexample as a MyST table of fractions, with the log-odds and the margin."""
    file = f"assumption-1/{statement_id}.{departure}.json"
    kept = json.loads((DATA / file).read_text(encoding="utf-8"))
    exact = rationals.from_json(kept["instance"]["fields"])
    instance = rationals.to_floats(exact)
    tokens = range(len(exact.p[0]))
    concept_of = [next(k for k, mask in enumerate(exact.members) if mask[z]) for z in tokens]
    rows = [
        "| context | of concept | in | " + " | ".join(f"token {z}, concept {concept_of[z]}" for z in tokens) + " |",
        "|---" * (3 + len(tokens)) + "|",
    ]
    for j, row in enumerate(exact.p):
        used = "P" if exact.contrast[j] > 0 else "N" if exact.contrast[j] < 0 else ""
        rows.append(f"| $c_{j}$ | {exact.concept[j]} | {used} | " + " | ".join(map(str, row)) + " |")
    rows.append("| $M$ | | | " + " | ".join(f"{m:.4f}" for m in instance.log_odds) + " |")
    low, high = (float(end) for end in kept["enclosure"])
    return (
        "\n".join(rows) + f"\n\nThe target is concept {exact.target}. Margin of [{statement_id}](#{statement_id}): "
        f"in $[{low:.12g}, {high:.12g}]$, proved with {kept['bits']} bits. {{download}}`The file <data/{file}>`.\n"
    )


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    del app, docname
    source[0] = source[0].replace("<!-- statements -->", statements())
    if "<!-- assumption 1 -->" in source[0]:
        source[0] = source[0].replace("<!-- assumption 1 -->", assumption_1())
    source[0] = re.sub(r"<!-- counterexample (\S+) (\S+) -->", lambda match: counterexample(*match.groups()), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

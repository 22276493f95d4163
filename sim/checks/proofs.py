"""Where a statement is proved: its part of a page of the documentation, and the symbols that it uses.

The pages are those of ``docs/``: in a source checkout they lie beside the packages, and an installation brings them along
among its data. Nothing here fails if they are missing: a page of a report then says where a proof is to be read.
"""

import re
import site
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sim.checks.markdown import formulas
from theory import Statement

SHARED = ("proofs/index", "normalised")
"""The pages whose beginnings say what is given, for statements about tables and for those behind a norm."""

_ONLY_WITH = {"$s$": "G"}
"""Letters that proofs also use for other things, and what occurs beside them where the glossary is right."""

_OF_CORPORA = {"$s$", "$g(j)$", "$a_z$, $b_z$", r"$\varepsilon$", r"$\gamma_z$, $\omega_z$", "$W$, $H$, $h_j$"}
"""Symbols that mean something else behind a norm."""

_DEFINED_ANEW = {
    "proposition-4.1": {"$V$"},
    "N14.lengths": {"$G$"},
    "N16.turns": {"$T$", "$P$, $N$"},
    "N18": {r"$\sigma$"},
}
"""Rows of the glossary whose letters all stand for something else in the proof of a statement."""

_LABEL = re.compile(r"^\(proof-of-(.+)\)=\n", re.MULTILINE)


@dataclass(frozen=True)
class Proof:
    """A proof as Markdown.

    Attributes:
        page: the title of its page.
        setting: what the page says before its first statement: definitions that all of them use.
        text: what it says of the statement, without the heading.
    """

    page: str
    setting: str
    text: str


@dataclass(frozen=True)
class Symbol:
    """A row of the glossary, in Markdown.

    Attributes:
        notation: formulas, with commas between them; or words.
        code: the same in this package.
        meaning: in words.
    """

    notation: str
    code: str
    meaning: str


@cache
def folder() -> Path | None:
    """The folder that has ``glossary.md`` and ``proofs/``; None if neither a checkout nor an installation has it."""
    root = Path(__file__).parents[2]
    # Beside the packages after `pip install --target`, else in the environment, or the user's.
    installed = [Path(base) / "share" / "doc" / "ufm-steering" for base in (root, sys.prefix, site.getuserbase())]
    return next((path for path in (root / "docs", *installed) if (path / "proofs" / "index.md").is_file()), None)


@cache
def page(name: str) -> str | None:
    """The Markdown of a page such as "proofs/N2"; None if it is not at hand."""
    path = folder()
    file = path / f"{name}.md" if path else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else None


def proof(statement: Statement) -> Proof | None:
    """The proof of a statement; None if its page is not at hand, or does not have it."""
    source = page(statement.proof) if statement.proof else None
    if source is None:
        return None
    before, *parts = _LABEL.split(source)
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    if statement.id not in texts:
        return None
    title, setting = _headed(before)
    return Proof(title, _without_label(setting), _headed(texts[statement.id])[1])


def shared_setting(name: str) -> str | None:
    """The text of a page of `SHARED` from its section "What is given" to its first proof; None if not at hand."""
    source = page(name)
    if source is None:
        return None
    before = _LABEL.split(source)[0]
    start = re.search(r"^(?:\(.+\)=\n)?## What is given$", before, re.MULTILINE)
    return before[start.start() :] if start else None


def labels(text: str) -> list[str]:
    """The labels of a part of a page."""
    return re.findall(r"^\((.+)\)=$", text, re.MULTILINE)


def addresses(statements: Sequence[Statement], place: str = "") -> dict[str, str]:
    """Where the pages of statements have what the documentation has under a label, or on a page.

    Args:
        statements: those that have a page.
        place: of these pages, as a link to them begins.
    """
    targets: dict[str, str] = {}
    for statement in reversed(statements):
        known, file = proof(statement), f"{statement.id}.html"
        if known is not None:
            targets |= {label: f"{file}#{label}" for label in labels(known.text)}
            # The label of the proof, and the page of the documentation, which begins with its first statement.
            targets |= dict.fromkeys((f"proof-of-{statement.id}", statement.proof.rpartition("/")[2]), f"{file}#proof")
    shared = [label for name in SHARED for label in labels(shared_setting(name) or "")]
    targets |= {label: f"notation.html#{label}" for label in shared}
    targets |= {"index": "notation.html", "normalised": "notation.html#through-a-norm"}
    return {name: place + address for name, address in targets.items()}


def symbols(texts: Iterable[str] | None = None) -> list[Symbol]:
    """The rows of the glossary, or those whose notation occurs in the formulas of texts.

    Args:
        texts: Markdown; all rows if left out. Rows without a formula then come too.
    """
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", page("glossary") or "", re.MULTILINE)
    known = [Symbol(*row) for row in rows[1:]]
    if texts is None:
        return known
    used = [_letters(formula) for text in texts for formula in formulas(text)]
    return [row for row in known if _is_used(row, used)]


def _is_used(row: Symbol, used: list[list[str]]) -> bool:
    """Whether half of the symbols of a row occur, and for a letter that proofs also use otherwise, what it goes with."""
    heads = [_head(formula) for formula in formulas(row.notation)]
    count = sum(_occurs(head, used) for head in heads)
    company = _ONLY_WITH.get(row.notation)
    return count > 0 and 2 * count >= len(heads) and (company is None or _occurs([company], used))


def symbols_of(statement: Statement) -> list[Symbol]:
    """The rows of the glossary that the claim and the proof of a statement use."""
    known = proof(statement)
    rows = symbols([f"$${statement.claim.tex}$$", *((known.setting, known.text) if known else ())])
    behind_a_norm = any(word in statement.domain.name for word in ("norm", "transformers"))
    others = _DEFINED_ANEW.get(statement.id, set()) | (_OF_CORPORA if behind_a_norm else set())
    return [row for row in rows if row.notation not in others]


def terms() -> str:
    """The words of the glossary that are no symbols, as a definition list in Markdown."""
    return re.split(r"^\|.*\|\n\n", page("glossary") or "", flags=re.MULTILINE)[-1]


def _headed(text: str) -> tuple[str, str]:
    """The words of the first heading, and what follows it."""
    heading, _, rest = text.strip().partition("\n")
    return heading.lstrip("# "), rest.strip() + "\n"


def _without_label(setting: str) -> str:
    """A setting up to its first heading: what comes later is shared, and on a page of its own."""
    return re.split(r"^(?:\(.+\)=\n)?## ", setting, flags=re.MULTILINE)[0]


def _letters(formula: str) -> list[str]:
    """Commands and characters of a formula; upright and blackboard letters as plain ones; no words, braces or spaces."""
    symbolic = re.sub(r"\\text\{[^{}]*\}", " ", formula)
    plain = re.sub(r"\\(?:operatorname|mathbb|mathrm|mathcal)\{(.*?)\}", r"\\\1 ", symbolic)
    return [letter for letter in re.findall(r"\\[A-Za-z]+|\S", plain) if letter not in "{}"]


def _head(formula: str) -> list[str]:
    """The letters that a glossary formula is known by: ``p_j`` of ``p_j(z)``, and ``\\Delta p(C`` of a concept's increase.

    A function of one small letter is known by all of it, such as ``g(j)``: the letter alone may be any number.
    """
    letters = _letters(formula)
    if len(letters) > 1 and letters[0].islower() and letters[1] == "(":
        return letters
    stops = [k for k, letter in enumerate(letters) if letter in "(["] + [len(letters)]
    equals = letters.index("=") if "=" in letters else len(letters)
    end = min(stops[0], equals)
    return letters[: end + 2] if letters[0] == r"\Delta" else letters[:end]


def _occurs(head: list[str], used: list[list[str]]) -> bool:
    n = len(head)
    return any(letters[k : k + n] == head for letters in used for k in range(len(letters) - n + 1))

"""The pages of a reproduction: verdicts, figures, numbers and settings on one, and one for each statement.

The first page needs nothing beside it; the others show the figures of the folder they are in.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sim import output
from sim.checks import proofs
from sim.checks.markdown import to_html
from sim.checks.validation import Finding, Validation
from sim.checks.verify import DEFAULT_ROUTES, Verdict
from sim.figures import FIGURES, VALIDATION_FIGURES, Drawing
from sim.pages import pictures, write_page
from theory import REGISTRY, Instance, Statement
from theory.routes import ROUTES, applies
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
    write_statements(folder, verdicts, kept, figures=FIGURES)
    return write_page(
        folder / "index.html",
        "report.html",
        short=in_short(verdicts, numbers, on_model),
        verdicts=verdicts,
        routes=DEFAULT_ROUTES,
        figures=FIGURES,
        language_figures={name: VALIDATION_FIGURES[name] for name in FIRST if name in figures},
        pictures=pictures(figures),
        numbers=numbers,
        seconds=seconds,
        outcome=_outcome(verdicts),
        on_model=on_model,
        missing=missing,
        choice=choice,
    )


def in_short(verdicts: list[Verdict], numbers: Mapping[str, Any], on_model: Validation | None = None) -> list[str]:
    """The findings in a few plain sentences: on toy models first, then on the language model.

    Args:
        verdicts: from `sim.verify`.
        numbers: as `sim.reproduce` collects them.
        on_model: what was found on a language model.
    """
    wrong = [verdict.statement.id for verdict in verdicts if verdict.outcome == "fails"]
    undecided = [verdict.statement.id for verdict in verdicts if verdict.undecided]
    gap, off = numbers["gap"], max(agreement["probability"] for agreement in numbers["agreement"].values())
    fewer = {"did not hold": wrong, "were left undecided by a certificate, which means nothing about their truth": undecided}
    held = " ".join(
        f"{len(names)} of {len(verdicts)} statements {words}: {', '.join(names)}." for words, names in fewer.items() if names
    )
    every = f"All {len(verdicts)} statements held by every route that was taken, and every false version was rejected."
    lines = [
        f"On toy models, trained to within {gap:.0e} nats of the best that is possible: {held or every}",
        "There, as steering grows stronger, a token of the concept rises to one peak and falls again, unless its log-odds "
        "are the largest of all: then it rises for ever. The concept as a whole rises all the way, along a reparametrised "
        "sigmoid. The cross-entropy rises like a parabola at first and like a straight line in the end. (It levels off only "
        "where a norm comes before the logits.) Closed forms predict the probabilities of trained models to "
        f"{off:.0e}.",
    ]
    if on_model is not None:
        lines.append(
            f"On {on_model.model}: {on_model.summary}. These comparisons are about what the theory says of any decoder. "
            f"{_left(on_model)}"
        )
    return lines


def _in_words(finding: Finding) -> str:
    allowed = f"{finding.value:.2g} where {finding.tolerance:.0e} is allowed"
    return f"{finding.statement} ({finding.about}: {finding.what}, {allowed})"


def _judged(on_model: Validation, told: int = 3) -> str:
    """Which of the comparisons that have a tolerance fail on a language model, and by how much; a few of them."""
    judged = [finding for finding in on_model.findings if finding.tolerance is not None]
    failed = [_in_words(finding) for finding in judged if not finding.holds]
    if not judged:
        return "Nothing was compared that has a tolerance."
    if not failed:
        return f"What the theory says of any decoder held wherever it was looked at: {on_model.summary}."
    more = f", and {len(failed) - told} more" if len(failed) > told else ""
    return f"{len(failed)} of {len(judged)} comparisons failed: {'; '.join(failed[:told])}{more}."


def _left(on_model: Validation) -> str:
    """How much of the single bump, and of an efficient push, is left on a language model."""

    def span(what: str) -> str:
        values = [finding.value for finding in on_model.findings if finding.what == what]
        return f"{min(values):.0%} to {max(values):.0%}" if values else ""

    bumps, efficiency = span("share of tokens with one bump"), span("ρ², mean over contexts")
    parts = [f"{bumps} of the likeliest tokens rise to a single peak, depending on the layer"] if bumps else []
    parts += [f"{efficiency} of what a small push costs moves the concept's tokens as a whole"] if efficiency else []
    if not parts:
        return "What it says of toy models only was not looked at."
    return f"What it says of toy models only holds there in part: {'; '.join(parts)}."


def _outcome(verdicts: list[Verdict]) -> str:
    """The verdict on all statements together: the worst among them."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return next((outcome for outcome in ("fails", "undecided", "holds") if outcome in outcomes), "fails")


def write_verification(folder: Path, verdicts: list[Verdict], kept: Mapping[tuple[str, str, bool], Path]) -> Path:
    """Write ``index.html`` with verdicts alone, and ``statements/ID.html``; returns the path of the first.

    Args:
        folder: where.
        verdicts: from `sim.verify`.
        kept: files of the worst instances (`sim.reproduction.keep`).
    """
    write_statements(folder, verdicts, kept)
    used = {result.route for verdict in verdicts for result in verdict.evidence}
    return write_page(
        folder / "index.html",
        "verification.html",
        verdicts=verdicts,
        routes=[route for route in ROUTES if route in used],
        outcome=_outcome(verdicts),
    )


def write_statements(
    folder: Path,
    verdicts: list[Verdict],
    kept: Mapping[tuple[str, str, bool], Path],
    *,
    figures: Mapping[str, Drawing] | None = None,
) -> None:
    """Write ``statements/ID.html`` for every verdict, with its proof, and ``statements/notation.html``.

    Args:
        folder: where.
        verdicts: from `sim.verify`.
        kept: files of the worst instances, in ``instances/`` of the folder.
        figures: those that are saved in ``figures/`` of the folder, by name.
    """
    pages = output.prepare_folder(folder / "statements")
    statements = [verdict.statement for verdict in verdicts]
    addresses = proofs.addresses(statements)
    markdown = partial(to_html, addresses=addresses, level=2)
    settings = [text for text in map(proofs.shared_setting, proofs.SHARED) if text is not None]
    write_page(
        pages / "notation.html",
        "notation.html",
        report=folder,
        symbols=proofs.symbols(),
        terms=markdown(proofs.terms()),
        settings=[markdown(text) for text in settings],
        markdown=markdown,
    )
    for verdict in verdicts:
        statement = verdict.statement
        proof = proofs.proof(statement)
        write_page(
            pages / f"{statement.id}.html",
            "statement.html",
            report=folder,
            verdict=verdict,
            kept=kept,
            module=MODULE_OF[statement.id],
            left_out=_left_out(verdict),
            in_fractions=statement.domain.kind is Instance,
            figures={name: figure for name, figure in (figures or {}).items() if figure.dataset == statement.figure},
            paper=PAPER if statement.source.startswith("S,") else "",
            siblings=_siblings(statement, statements),
            symbols=proofs.symbols_of(statement),
            setting=markdown(proof.setting) if proof else "",
            proof=markdown(proof.text) if proof else "",
            markdown=markdown,
        )


def _left_out(verdict: Verdict) -> list[str]:
    """The routes that apply to a statement and were not taken."""
    taken = {result.route for result in verdict.evidence}
    return [route for route in ROUTES if route not in taken and applies(verdict.statement.claim, route)]


PAPER = "https://arxiv.org/abs/2602.02712"
"""The paper that statements cite as S."""


class Sibling(NamedTuple):
    """Another statement of the same number.

    Attributes:
        id: of the statement.
        title: a few words.
        written: whether it has a page in the folder.
    """

    id: str
    title: str
    written: bool


def _siblings(statement: Statement, written: list[Statement]) -> list[Sibling]:
    """The other statements whose proofs are on the same page."""
    same = [other for other in REGISTRY.values() if other.proof == statement.proof and other.id != statement.id]
    return [Sibling(other.id, other.title, other in written) for other in same if statement.proof]


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
        found=[_judged(validation), _left(validation)],
        groups=groups,
        titles={name: REGISTRY[name].title for name in groups},
        figures=shown,
        pictures=pictures(figures),
        alone=alone,
    )

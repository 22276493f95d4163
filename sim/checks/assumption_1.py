"""Assumption 1 left on purpose: which statements survive each departure from it, and tables on which the others fail.

Assumption 1 says that a token has one probability, a, after the contexts of its own concept, and another one, b, after
all others, and that a is above b. In every departure here a stays above b, after whichever contexts; what goes is that
a or b is one number. The hypotheses that say otherwise are dropped from each statement, all others kept, and the
statement is attacked. What breaks it is made small and rounded to fractions, as a table of the same departure.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sim import output
from sim.checks.refute import Kept, write_instance
from sim.checks.verify import find_each
from sim.progress import bar
from theory import REGISTRY, Instance, Statement, balls
from theory.certificate import Confirmation, confirm
from theory.rationals import RationalInstance, checked, even, rationalise, rounded, smaller, to_floats
from theory.refute import DIGITS, descend, guarded, pick
from theory.statement import TABLES, Hypothesis, Margin, assemble_all, hold_on, margins_on, sample_all
from theory.statements.hypotheses import EXACT, likelier, spreads, varies
from ufm._check import known_names, require
from ufm.precision import in_float64

DROPPED = ("separated", "A1")
"""The hypotheses that are forms of assumption 1."""

NOT_USED = ("theorem-3.3.monotone",)
"""Statements that list such a hypothesis for the sake of their words; their proofs do without."""

DRAWN, RESTARTS, STEPS = 1024, 8, 40
"""Random tables of each departure, how many of them go down the gradient where none broke, and for how many steps."""

TAMEST = 6
"""Tables that break a margin and are made small; the one of the shortest fractions is kept."""

Verdict = Literal["survives", "fails", "not confirmed"]


# --- departures ------------------------------------------------------------------------------------------------------


def _told_apart(instance: Instance) -> Float[Array, ""]:
    """Log-odds are equal or clearly not: margins take those within `theory.tilting.TIE` for equal, the statements do not.

    Mixtures come near to ties: where b is negligible, M is the logarithm of a ratio of shares for all tokens of a concept.
    """
    m = instance.log_odds
    gaps = jnp.abs(m[:, None] - m) / instance.range
    return jnp.min(jnp.maximum(EXACT / 1000 - gaps, gaps - 1000 * EXACT))


def _only_a(instance: Instance) -> Float[Array, ""]:
    low, high, b_low, b_high = spreads(instance)
    return jnp.minimum(varies(low, high), -varies(b_low, b_high))


def _only_b(instance: Instance) -> Float[Array, ""]:
    low, high, b_low, b_high = spreads(instance)
    return jnp.minimum(-varies(low, high), varies(b_low, b_high))


def _mixed(instance: Instance) -> Float[Array, ""]:
    """b varies, and within a concept the probabilities of all contexts lie on one line that rises in each of them.

    That is what mixtures of one row for each concept do, and all that they do: token z of concept C has b_z plus the
    share of C in the context times a_z - b_z.
    """
    _, _, b_low, b_high = spreads(instance)

    def off_line(members: Any) -> Float[Array, ""]:
        p = jnp.where(members, instance.p, 0)
        mass = jnp.sum(p, axis=1)
        low, high = jnp.argmin(mass), jnp.argmax(mass)
        expected = (mass - mass[low])[:, None] * (p[high] - p[low])
        return jnp.max(jnp.abs((mass[high] - mass[low]) * (p - p[low]) - expected))

    return jnp.minimum(varies(b_low, b_high), EXACT - jnp.max(jax.vmap(off_line)(instance.members)))


def _unequal(instance: Instance) -> Float[Array, ""]:
    low, high, b_low, b_high = spreads(instance)
    sizes = instance.sizes.astype(instance.log_p.dtype)
    return jnp.minimum(jnp.max(sizes) - jnp.min(sizes) - 0.5, -jnp.maximum(varies(low, high), varies(b_low, b_high)))


def _completed(instance: Instance, digits: int | None, *, free: bool) -> list[list[Fraction]]:
    """Probabilities rounded, and rows completed by the largest in their own concept or, if not `free`, outside it."""
    rows = []
    for row, own in zip(np.exp(np.asarray(instance.log_p)), np.asarray(instance.inside), strict=True):
        shares = [rounded(x, digits) for x in row]
        largest = int(np.argmax(np.where(own == free, row, 0)))
        shares[largest] += 1 - sum(shares, Fraction(0))
        rows.append(shares)
    return rows


def _mixtures(instance: Instance, digits: int | None) -> list[list[Fraction]]:
    """The line of every concept and its mass after contexts of others, rounded; a context's own gets what is left."""
    p, concept, members = (np.asarray(x) for x in (np.exp(instance.log_p), instance.concept, instance.members))
    distinct = sorted({tuple(mask) for mask in members.tolist()})
    masses = [[rounded(float(row[list(mask)].sum()), digits) for mask in distinct] for row in p]
    for row, own in zip(masses, concept, strict=True):
        mine = distinct.index(tuple(members[own].tolist()))
        row[mine] = 1 - sum(row[:mine] + row[mine + 1 :], Fraction(0))
    rows = [[Fraction(0)] * p.shape[1] for _ in p]
    for k, mask in enumerate(distinct):
        tokens, mass = np.flatnonzero(mask), p[:, list(mask)].sum(axis=1)
        low, high = p[np.argmin(mass)], p[np.argmax(mass)]
        base = [rounded(low[z], digits) for z in tokens]
        rise = [rounded(high[z] - low[z], digits) for z in tokens]
        for row, total in zip(rows, masses, strict=True):
            share = (total[k] - sum(base, Fraction(0))) / sum(rise, Fraction(0))
            for z, b, step in zip(tokens, base, rise, strict=True):
                row[z] = b + share * step
    return rows


@dataclass(frozen=True)
class Departure:
    """A way to leave assumption 1.

    Attributes:
        name: of the family of `theory.random_instances`, or "unequal".
        words: what it is.
        families: where random tables come from.
        margin: positive where an instance is of this departure, if a is above b.
        separated: whether its tables satisfy the hypothesis of that name, which is what proofs use of assumption 1.
        rows: the table in fractions of so many digits, still of the departure; None if `theory.rationals` does that.
    """

    name: str
    words: str
    families: tuple[str, ...]
    margin: Margin
    separated: bool
    rows: Callable[[Instance, int | None], list[list[Fraction]]] | None = field(default=None)

    @property
    def conditions(self) -> tuple[Margin, ...]:
        """Margins that are positive for every table of the departure."""
        return self.margin, likelier, _told_apart


_A = Departure(
    "per-context-a",
    "a depends on the context, b does not",
    ("per-context-a",),
    _only_a,
    separated=True,
    rows=partial(_completed, free=True),
)
_B = Departure(
    "per-context-b",
    "b depends on the context, a does not",
    ("per-context-b",),
    _only_b,
    separated=False,
    rows=partial(_completed, free=False),
)
_MIXED = Departure(
    "mixed",
    "contexts mix the rows of all concepts, each with a larger share of its own than any context of others has",
    ("mixed",),
    _mixed,
    separated=False,
    rows=_mixtures,
)
_UNEQUAL = Departure(
    "unequal",
    "assumption 1 holds, and concepts differ in size",
    ("uniform", "weighted", "tied"),
    _unequal,
    separated=True,
)

DEPARTURES = {departure.name: departure for departure in (_A, _B, _MIXED, _UNEQUAL)}
"""The departures by name."""


# --- the attack ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attack on a statement among the tables of a departure.

    Attributes:
        statement: what was attacked, without its `DROPPED` hypotheses.
        departure: where.
        margin: the lowest in floating point; +inf if nothing was claimed anywhere.
        tried: random tables on which the statement claims something.
        descended: whether gradients were followed.
        exact: a counterexample in fractions.
        confirmation: its margin in ball arithmetic.
    """

    statement: Statement
    departure: Departure
    margin: float
    tried: int
    descended: bool = field(default=False)
    exact: RationalInstance | None = field(default=None)
    confirmation: Confirmation | None = field(default=None)

    @property
    def verdict(self) -> Verdict:
        """Whether the statement survives: no table of the departure breaks it."""
        if self.margin > 0:
            return "survives"
        return "fails" if self.confirmation else "not confirmed"

    @property
    def why(self) -> str:
        """Why a statement that survives had to; empty if that is not known."""
        if self.statement.id in NOT_USED or not dropped(self.statement):
            return "the proof does not use it"
        return "separated still holds" if self.departure.separated else ""


def dropped(statement: Statement) -> tuple[str, ...]:
    """The hypotheses of a statement that are forms of assumption 1, by name."""
    return tuple(name for name in statement.hypotheses if name in DROPPED)


def kept(statement: Statement) -> dict[str, Hypothesis]:
    """The other ones."""
    return {name: hypothesis for name, hypothesis in statement.hypotheses.items() if name not in DROPPED}


class _Tables(NamedTuple):
    """Random tables for a departure: designs, parameters, the instances that they are, and which are of it."""

    departure: Departure
    designs: Any
    parameters: Any
    batch: Any
    of_departure: np.ndarray


def _drawn(departure: Departure, key: jax.Array, n: int) -> _Tables:
    designs, parameters = sample_all(TABLES, departure.families, jax.random.split(key, n))
    batch = assemble_all(TABLES, designs, parameters)
    return _Tables(departure, designs, parameters, batch, np.asarray(hold_on(departure.conditions, batch)))


def leave(
    ids: Sequence[str] | None = None,
    departures: Sequence[str] | None = None,
    *,
    seed: int = 0,
    drawn: int = DRAWN,
    restarts: int = RESTARTS,
    steps: int = STEPS,
    workers: int = 2,
) -> list[Outcome]:
    """Attack statements about tables under departures from assumption 1, in float64.

    Args:
        ids: of statements; all that are about tables if left out.
        departures: names; all `DEPARTURES` if left out.
        seed: of the random tables.
        drawn, restarts, steps: how long to search, see `DRAWN`.
        workers: statements attacked at the same time.

    Returns:
        What was found, statement by statement, for each departure.

    Raises:
        ValueError: an unknown id or departure; a statement that is not about tables; no random tables.
    """
    everything = [statement.id for statement in REGISTRY.values() if statement.domain is TABLES]
    statements = find_each(everything if ids is None else ids)
    others = [statement.id for statement in statements if statement.domain is not TABLES]
    require(not others, "statements", "statements about next-token tables", others)
    known_names("departures", departures or (), DEPARTURES)
    require(drawn >= 1, "drawn", "at least one random table", drawn)
    chosen = [DEPARTURES[name] for name in departures or DEPARTURES]
    with in_float64(), ThreadPoolExecutor(workers) as pool:
        keys = jax.random.split(jax.random.key(seed), len(chosen))
        tables = [_drawn(departure, key, drawn) for departure, key in zip(chosen, keys, strict=True)]
        attacks = pool.map(lambda statement: _attack(statement, tables, restarts, steps), statements)
        done = bar(attacks, total=len(statements), desc="assumption 1", unit="statement")
        return [outcome for outcomes in done for outcome in outcomes]


def _attack(statement: Statement, tables: Sequence[_Tables], restarts: int, steps: int) -> list[Outcome]:
    """The random tables first; where none breaks the margin, the lowest go down, those of all departures in one run."""
    # The setting belongs to a thread.
    with in_float64():
        margin, conditions = statement.claim.instances, tuple(hypothesis.margin for hypothesis in kept(statement).values())
        values = [np.where(_claims(conditions, sample), margins_on(margin, sample.batch), np.inf) for sample in tables]
        require(not np.isnan(values).any(), "margin", "a number or +inf on every instance", "NaN on a random one")
        outcomes = [
            Outcome(statement, sample.departure, float(low.min()), int((low < np.inf).sum()))
            for sample, low in zip(tables, values, strict=True)
        ]
        starts = [
            (k, i) for k, low in enumerate(values) if 0 < low.min() < np.inf for i in np.argsort(low)[:restarts].tolist()
        ]
        where = [(sample.batch, low) for sample, low in zip(tables, values, strict=True)]
        if starts:
            picked = [pick((tables[k].designs, tables[k].parameters), i) for k, i in starts]
            designs, parameters = jax.tree.map(lambda *leaves: jnp.stack(leaves), *picked)
            lowest, best = descend(
                partial(guarded, margin, (*conditions, likelier, _told_apart), TABLES), designs, parameters, steps
            )
            lowest, family = np.where(np.isnan(lowest), np.inf, lowest), np.array([k for k, _ in starts])
            for k in set(family):
                reached = np.where(family == k, lowest, np.inf)
                outcomes[k] = replace(outcomes[k], margin=min(outcomes[k].margin, float(reached.min())), descended=True)
                if outcomes[k].margin < 0:
                    where[k] = assemble_all(TABLES, designs, best), reached
        pairs = zip(outcomes, where, strict=True)
        return [_confirmed(outcome, *source) if outcome.margin < 0 else outcome for outcome, source in pairs]


def _claims(conditions: tuple[Margin, ...], sample: _Tables) -> np.ndarray:
    return np.asarray(hold_on(conditions, sample.batch)) & sample.of_departure


# --- counterexamples -------------------------------------------------------------------------------------------------


def _confirmed(outcome: Outcome, batch: Any, values: np.ndarray) -> Outcome:
    """The outcome with the shortest counterexample among the tamest tables of the lower half of the negative margins."""
    negative = np.sort(values[values < 0])
    half = np.flatnonzero(values <= negative[len(negative) // 2])
    extreme = np.abs(np.asarray(batch.log_p)).max(axis=(1, 2))
    tries = [_small(outcome, pick(batch, k)) for k in half[np.argsort(extreme[half])][:TAMEST].tolist()]
    short = sorted((pair for pair in tries if pair is not None), key=lambda pair: len(str(pair[0].p)))
    return replace(outcome, exact=short[0][0], confirmation=short[0][1]) if short else outcome


def _small(outcome: Outcome, instance: Instance) -> tuple[RationalInstance, Confirmation] | None:
    """A counterexample of few contexts, tokens and digits from a table; None if it is none in exact arithmetic."""
    try:
        exact = rationalise(instance)
    except ValueError:
        return None
    confirmation = _breaks(outcome, exact)
    if confirmation is None:
        return None
    # Neither a context less nor two tokens of a concept taken for one leaves the departure.
    reduced: RationalInstance | None = exact
    while reduced is not None:
        exact = reduced
        reduced = next((other for other in smaller(exact) if _breaks(outcome, other)), None)
    instance = to_floats(exact)
    for digits in DIGITS:
        try:
            short = rationalise(instance, digits)
            if outcome.departure.rows:
                rows = tuple(tuple(row) for row in outcome.departure.rows(instance, digits))
                short = checked(replace(short, p=rows))
        except (ValueError, ZeroDivisionError):
            continue
        short = replace(short, weights=even(len(short.p)))
        if confirmation := _breaks(outcome, short):
            return short, confirmation
    return None


def _breaks(outcome: Outcome, exact: RationalInstance) -> Confirmation | None:
    """The margin in ball arithmetic, if it is negative there and everything that was kept is given."""
    conditions = [*(hypothesis.margin for hypothesis in kept(outcome.statement).values()), *outcome.departure.conditions]
    try:
        if not all(confirm(margin, exact).sign > 0 for margin in conditions):
            return None
        confirmation = confirm(outcome.statement.claim.instances, exact)
    except balls.Unsupported:
        return None
    return confirmation if confirmation.sign < 0 else None


# --- files -----------------------------------------------------------------------------------------------------------


def write(path: str | Path, outcomes: Sequence[Outcome], seed: int) -> Path:
    """Write what was found as JSON, and counterexamples, as `ufm replay` reads them, in a folder of that name beside it.

    What the file says of other statements of the registry stays; the order is the registry's.

    Raises:
        ValueError: a file that cannot be written, or is there and is not of this form.
    """
    file = output.writable_file(path, "out")
    before = _written(file)
    statements: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(outcome.statement.id for outcome in outcomes):
        for departure in DEPARTURES:
            (file.with_suffix("") / f"{name}.{departure}.json").unlink(missing_ok=True)
    for outcome in outcomes:
        names = {"kept": list(kept(outcome.statement)), "dropped": list(dropped(outcome.statement))}
        entry = statements.setdefault(outcome.statement.id, {"id": outcome.statement.id, **names, "departures": {}})
        entry["departures"][outcome.departure.name] = {
            "verdict": outcome.verdict,
            "margin": _number(outcome.margin),
            "tried": outcome.tried,
            "descended": outcome.descended,
            "why": outcome.why if outcome.verdict == "survives" else "",
            "counterexample": _counterexample(outcome, file, seed),
        }
    departures = {name: departure.words for name, departure in DEPARTURES.items()}
    settings = {"version": output.package_version(), "seed": seed}
    statements = before | statements
    ordered = [statements[name] for name in REGISTRY if name in statements]
    return output.write_json(file, {**settings, "departures": departures, "statements": ordered})


def _written(file: Path) -> dict[str, dict[str, Any]]:
    """The entries of a file by statement; none if there is no file."""
    if not file.exists():
        return {}
    try:
        return {entry["id"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))["statements"]}
    except (ValueError, KeyError, TypeError):
        require(False, "out", "a file that `ufm assumption` wrote, or none", str(file))
        raise


def _counterexample(outcome: Outcome, beside: Path, seed: int) -> dict[str, Any] | None:
    """Where it was written and what the margin is there, if there is one."""
    if outcome.exact is None or outcome.confirmation is None:
        return None
    folder = output.prepare_folder(beside.with_suffix(""))
    margin = outcome.confirmation
    keep = Kept(
        outcome.exact,
        outcome.statement.id,
        margin.upper,
        needs=tuple(kept(outcome.statement)),
        route="refutation",
        seed=seed,
        enclosure=(margin.lower, margin.upper),
        bits=margin.precision,
    )
    file = write_instance(folder / f"{outcome.statement.id}.{outcome.departure.name}.json", keep)
    where = f"{folder.name}/{file.name}"
    return {"file": where, "enclosure": [_number(margin.lower), _number(margin.upper)], "bits": margin.precision}


def _number(x: float) -> float | str:
    """JSON has no infinities."""
    return x if np.isfinite(x) else str(x)


def as_table(outcomes: Sequence[Outcome]) -> str:
    """The verdicts as a table for the terminal."""
    names = list(dict.fromkeys(outcome.departure.name for outcome in outcomes))
    lines = [f"{'statement':<24}" + "".join(f"{name:<24}" for name in names).rstrip()]
    for name in dict.fromkeys(outcome.statement.id for outcome in outcomes):
        cells = [f"{outcome.verdict} {outcome.margin:+.2e}" for outcome in outcomes if outcome.statement.id == name]
        lines.append((f"{name:<24}" + "".join(f"{cell:<24}" for cell in cells)).rstrip())
    lines.append("cells: without the hypotheses that are forms of assumption 1, and the lowest margin found")
    return "\n".join(lines)

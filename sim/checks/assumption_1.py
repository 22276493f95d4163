"""Assumption 1 left on purpose: which statements survive each departure from it, and tables on which the others fail.

Assumption 1 says that a token has one probability, a, after the contexts of its own concept, and another one, b, after
all others, and that a is above b. In every departure here a stays above b, after whichever contexts; what goes is that
a or b is one number. The hypotheses that say otherwise are dropped from each statement, all others kept, and the
statement is attacked. What breaks it is made small and rounded to fractions, as a table of the same departure.
"""

from collections.abc import Callable, Iterator, Sequence
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
from tqdm import tqdm

from sim import output
from sim.checks.refute import Kept, write_instance
from theory import REGISTRY, Instance, Statement, balls, find
from theory.certificate import Confirmation, confirm
from theory.rationals import RationalInstance, checked, rationalise, rounded, to_floats
from theory.refute import DIGITS, descend, guarded, pick
from theory.statement import TABLES, Hypothesis, Margin, assemble_all, hold_on, margins_on, sample_all
from theory.statements.hypotheses import EXACT, likelier, spreads, varies
from ufm._check import require
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


def _told_apart(one: Instance) -> Float[Array, ""]:
    """Log-odds are equal or clearly not: margins take those within `theory.tilting.TIE` for equal, the statements do not.

    Mixtures come near to ties: where b is negligible, M is the logarithm of a ratio of shares for all tokens of a concept.
    """
    m = one.log_odds
    gaps = jnp.abs(m[:, None] - m) / one.range
    return jnp.min(jnp.maximum(EXACT / 1000 - gaps, gaps - 1000 * EXACT))


def _only_a(one: Instance) -> Float[Array, ""]:
    low, high, b_low, b_high = spreads(one)
    return jnp.minimum(varies(low, high), -varies(b_low, b_high))


def _only_b(one: Instance) -> Float[Array, ""]:
    low, high, b_low, b_high = spreads(one)
    return jnp.minimum(-varies(low, high), varies(b_low, b_high))


def _mixed(one: Instance) -> Float[Array, ""]:
    """b varies, and within a concept the probabilities of all contexts lie on one line that rises in each of them.

    That is what mixtures of one row for each concept do, and all that they do: token z of concept C has b_z plus the
    share of C in the context times a_z - b_z.
    """
    _, _, b_low, b_high = spreads(one)

    def off_line(members: Any) -> Float[Array, ""]:
        p = jnp.where(members, one.p, 0)
        mass = jnp.sum(p, axis=1)
        low, high = jnp.argmin(mass), jnp.argmax(mass)
        expected = (mass - mass[low])[:, None] * (p[high] - p[low])
        return jnp.max(jnp.abs((mass[high] - mass[low]) * (p - p[low]) - expected))

    return jnp.minimum(varies(b_low, b_high), EXACT - jnp.max(jax.vmap(off_line)(one.members)))


def _unequal(one: Instance) -> Float[Array, ""]:
    low, high, b_low, b_high = spreads(one)
    sizes = one.sizes.astype(one.log_p.dtype)
    return jnp.minimum(jnp.max(sizes) - jnp.min(sizes) - 0.5, -jnp.maximum(varies(low, high), varies(b_low, b_high)))


def _completed(one: Instance, digits: int | None, *, free: bool) -> list[list[Fraction]]:
    """Probabilities rounded, and rows completed by the largest in their own concept or, if not `free`, outside it."""
    rows = []
    for row, own in zip(np.exp(np.asarray(one.log_p)), np.asarray(one.inside), strict=True):
        shares = [rounded(x, digits) for x in row]
        largest = int(np.argmax(np.where(own == free, row, 0)))
        shares[largest] += 1 - sum(shares, Fraction(0))
        rows.append(shares)
    return rows


def _mixtures(one: Instance, digits: int | None) -> list[list[Fraction]]:
    """The line of every concept and its mass after contexts of others, rounded; a context's own gets what is left."""
    p, concept, members = (np.asarray(x) for x in (np.exp(one.log_p), one.concept, one.members))
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
    def given(self) -> tuple[Margin, ...]:
        """What every table of the departure satisfies."""
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

DEPARTURES = {one.name: one for one in (_A, _B, _MIXED, _UNEQUAL)}
"""The departures by name."""


# --- the attack ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What an attack on a statement found among the tables of a departure.

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
    return {name: given for name, given in statement.hypotheses.items() if name not in DROPPED}


class _Tables(NamedTuple):
    """Random tables for a departure: designs, parameters, the instances that they are, and which are of it."""

    departure: Departure
    designs: Any
    parameters: Any
    batch: Any
    given: np.ndarray


def _drawn(departure: Departure, key: jax.Array, n: int) -> _Tables:
    designs, parameters = sample_all(TABLES, departure.families, jax.random.split(key, n))
    batch = assemble_all(TABLES, designs, parameters)
    return _Tables(departure, designs, parameters, batch, np.asarray(hold_on(departure.given, batch)))


def leave(
    ids: Sequence[str] | None = None,
    departures: Sequence[str] | None = None,
    *,
    seed: int = 0,
    drawn: int = DRAWN,
    restarts: int = RESTARTS,
    steps: int = STEPS,
    workers: int = 2,
) -> list[Found]:
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
    everything = [one.id for one in REGISTRY.values() if one.domain is TABLES]
    statements = [find(name, REGISTRY) for name in (everything if ids is None else ids)]
    others = [one.id for one in statements if one.domain is not TABLES]
    require(not others, "statements", "statements about next-token tables", others)
    unknown = [name for name in departures or () if name not in DEPARTURES]
    require(not unknown, "departures", f"some of {', '.join(DEPARTURES)}", unknown)
    require(drawn >= 1, "drawn", "at least one random table", drawn)
    chosen = [DEPARTURES[name] for name in departures or DEPARTURES]
    with in_float64(), ThreadPoolExecutor(workers) as pool:
        keys = jax.random.split(jax.random.key(seed), len(chosen))
        tables = [_drawn(one, key, drawn) for one, key in zip(chosen, keys, strict=True)]
        attacks = pool.map(lambda one: _attack(one, tables, restarts, steps), statements)
        bar = tqdm(attacks, total=len(statements), desc="assumption 1", unit="statement", disable=None)
        return [found for one in bar for found in one]


def _attack(statement: Statement, tables: Sequence[_Tables], restarts: int, steps: int) -> list[Found]:
    """The random tables first; where none breaks the margin, the lowest go down, those of all departures in one run."""
    # The setting belongs to a thread.
    with in_float64():
        margin, conditions = statement.claim.instances, tuple(given.margin for given in kept(statement).values())
        values = [np.where(_claims(conditions, some), margins_on(margin, some.batch), np.inf) for some in tables]
        require(not np.isnan(values).any(), "margin", "a number or +inf on every instance", "NaN on a random one")
        found = [
            Found(statement, some.departure, float(low.min()), int((low < np.inf).sum()))
            for some, low in zip(tables, values, strict=True)
        ]
        starts = [
            (k, i) for k, low in enumerate(values) if 0 < low.min() < np.inf for i in np.argsort(low)[:restarts].tolist()
        ]
        where = [(some.batch, low) for some, low in zip(tables, values, strict=True)]
        if starts:
            picked = [pick((tables[k].designs, tables[k].parameters), i) for k, i in starts]
            designs, parameters = jax.tree.map(lambda *leaves: jnp.stack(leaves), *picked)
            lowest, best = descend(
                partial(guarded, margin, (*conditions, likelier, _told_apart), TABLES), designs, parameters, steps
            )
            lowest, family = np.where(np.isnan(lowest), np.inf, lowest), np.array([k for k, _ in starts])
            for k in set(family):
                reached = np.where(family == k, lowest, np.inf)
                found[k] = replace(found[k], margin=min(found[k].margin, float(reached.min())), descended=True)
                if found[k].margin < 0:
                    where[k] = assemble_all(TABLES, designs, best), reached
        pairs = zip(found, where, strict=True)
        return [_confirmed(one, *found_in) if one.margin < 0 else one for one, found_in in pairs]


def _claims(conditions: tuple[Margin, ...], some: _Tables) -> np.ndarray:
    return np.asarray(hold_on(conditions, some.batch)) & some.given


# --- counterexamples -------------------------------------------------------------------------------------------------


def _confirmed(found: Found, batch: Any, values: np.ndarray) -> Found:
    """With the shortest counterexample among the tamest tables of the lower half of the negative margins."""
    negative = np.sort(values[values < 0])
    half = np.flatnonzero(values <= negative[len(negative) // 2])
    extreme = np.abs(np.asarray(batch.log_p)).max(axis=(1, 2))
    tries = [_small(found, pick(batch, k)) for k in half[np.argsort(extreme[half])][:TAMEST].tolist()]
    short = sorted((one for one in tries if one is not None), key=lambda one: len(str(one[0].p)))
    return replace(found, exact=short[0][0], confirmation=short[0][1]) if short else found


def _small(found: Found, one: Instance) -> tuple[RationalInstance, Confirmation] | None:
    """A counterexample of few contexts, tokens and digits from a table; None if it is none in exact arithmetic."""
    try:
        exact = rationalise(one)
    except ValueError:
        return None
    confirmation = _breaks(found, exact)
    if confirmation is None:
        return None
    smaller: RationalInstance | None = exact
    while smaller is not None:
        exact = smaller
        smaller = next((other for other in _smaller(exact) if _breaks(found, other)), None)
    one = to_floats(exact)
    for digits in DIGITS:
        try:
            short = rationalise(one, digits)
            if found.departure.rows:
                rows = tuple(tuple(row) for row in found.departure.rows(one, digits))
                short = checked(replace(short, p=rows))
        except (ValueError, ZeroDivisionError):
            continue
        short = replace(short, weights=_even(len(short.p)))
        if confirmation := _breaks(found, short):
            return short, confirmation
    return None


def _breaks(found: Found, exact: RationalInstance) -> Confirmation | None:
    """The margin in ball arithmetic, if it is negative there and everything that was kept is given."""
    conditions = [*(given.margin for given in kept(found.statement).values()), *found.departure.given]
    try:
        if not all(confirm(margin, exact).sign > 0 for margin in conditions):
            return None
        confirmation = confirm(found.statement.claim.instances, exact)
    except balls.Unsupported:
        return None
    return confirmation if confirmation.sign < 0 else None


def _smaller(exact: RationalInstance) -> Iterator[RationalInstance]:
    """The table less a context, or with two tokens of a concept taken for one: neither leaves the departure."""
    m, v = len(exact.p), len(exact.p[0])
    for j in range(m):
        left = [i for i in range(m) if i != j]
        signs = [(exact.contrast[i] > 0) - (exact.contrast[i] < 0) for i in left]
        if {1, -1} <= set(signs) and {exact.concept[i] for i in left} == set(exact.concept):
            yield replace(
                exact,
                p=tuple(exact.p[i] for i in left),
                concept=tuple(exact.concept[i] for i in left),
                contrast=tuple(Fraction(sign, signs.count(sign)) if sign else Fraction(0) for sign in signs),
                weights=_even(m - 1),
            )
    for y in range(v):
        for z in range(y):
            if all(mask[y] == mask[z] for mask in exact.members):
                yield replace(
                    exact,
                    p=tuple((*row[:z], row[z] + row[y], *row[z + 1 : y], *row[y + 1 :]) for row in exact.p),
                    members=tuple((*mask[:y], *mask[y + 1 :]) for mask in exact.members),
                )


def _even(m: int) -> tuple[Fraction, ...]:
    return (Fraction(1, m),) * m


# --- files -----------------------------------------------------------------------------------------------------------


def write(path: str | Path, found: Sequence[Found], seed: int) -> Path:
    """Write what was found as JSON, and counterexamples, as `ufm replay` reads them, in a folder of that name beside it.

    Raises:
        ValueError: a file that cannot be written.
    """
    file = output.prepare_file(path, "out")
    statements: dict[str, dict[str, Any]] = {}
    for one in found:
        names = {"kept": list(kept(one.statement)), "dropped": list(dropped(one.statement))}
        entry = statements.setdefault(one.statement.id, {"id": one.statement.id, **names, "departures": {}})
        entry["departures"][one.departure.name] = {
            "verdict": one.verdict,
            "margin": _number(one.margin),
            "tried": one.tried,
            "descended": one.descended,
            "why": one.why if one.verdict == "survives" else "",
            "counterexample": _counterexample(one, file, seed),
        }
    departures = {name: one.words for name, one in DEPARTURES.items()}
    settings = {"version": output.package_version(), "seed": seed}
    return output.write_json(file, {**settings, "departures": departures, "statements": list(statements.values())})


def _counterexample(found: Found, beside: Path, seed: int) -> dict[str, Any] | None:
    """Where it was written and what the margin is there, if there is one."""
    if found.exact is None or found.confirmation is None:
        return None
    folder = output.prepare_folder(beside.with_suffix(""))
    margin = found.confirmation
    keep = Kept(
        found.exact,
        found.statement.id,
        margin.upper,
        needs=tuple(kept(found.statement)),
        route="refutation",
        seed=seed,
        enclosure=(margin.lower, margin.upper),
        bits=margin.precision,
    )
    file = write_instance(folder / f"{found.statement.id}.{found.departure.name}.json", keep)
    where = f"{folder.name}/{file.name}"
    return {"file": where, "enclosure": [_number(margin.lower), _number(margin.upper)], "bits": margin.precision}


def _number(x: float) -> float | str:
    """JSON has no infinities."""
    return x if np.isfinite(x) else str(x)


def as_table(found: Sequence[Found]) -> str:
    """The verdicts as a table for the terminal."""
    names = list(dict.fromkeys(one.departure.name for one in found))
    lines = [f"{'statement':<24}" + "".join(f"{name:<24}" for name in names).rstrip()]
    for name in dict.fromkeys(one.statement.id for one in found):
        cells = [f"{one.verdict} {one.margin:+.2e}" for one in found if one.statement.id == name]
        lines.append((f"{name:<24}" + "".join(f"{cell:<24}" for cell in cells)).rstrip())
    lines.append("cells: without the hypotheses that are forms of assumption 1, and the lowest margin found")
    return "\n".join(lines)

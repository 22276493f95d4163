"""Small tables of round numbers, tried before random ones: a counterexample among them shows itself.

Tables of two or three concepts, 2 to 4 tokens and 2 or 3 contexts, with probabilities in tenths and in hundredths. The
smallest are all there are in tenths; of the others some are drawn. What breaks a margin is evaluated in ball arithmetic, as
it is: nothing has to be rounded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from theory import balls
from theory._compilation import compiled_quickly
from theory.certificate import confirm
from theory.instance import Instance
from theory.rationals import RationalInstance, checked
from theory.refute import Attack, pick
from theory.statement import BATCH, Domain, Margin, hold_on, margins_on
from ufm._batches import map_in_batches

SIZES = ((2, 2), (3, 2), (3, 3), (4, 3))
"""Tokens and contexts, in the order in which they are tried."""

UNITS = (10, 100)
"""Probabilities are multiples of one over these."""

DRAWN = 2_000
"""Tables of a size, about: as many of each layout and unit."""

MANY = 20_000
"""Tables of a layout beyond which not all of them are looked at."""

CANDIDATES = 8
"""How many of the tables that break a margin are tried in exact arithmetic."""

FAMILIES = ("uniform", "weighted", "tied", "per-context-a", "per-context-b", "mixed", "free")
"""Families of `theory.random_instances` of which it is known which small tables are of them; of others there are none."""

_BLENDED = {"weighted", "per-context-a", "per-context-b", "mixed"}
"""Families that have every table in which target tokens gain log-odds, if each concept has one context."""


class ConceptPartition(NamedTuple):
    """The discrete part of a table. The target is concept 0.

    Attributes:
        of_token, of_context: the concept of each.
        positive, negative: the contexts in P and N.
    """

    of_token: tuple[int, ...]
    of_context: tuple[int, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]


@dataclass(frozen=True)
class SmallTable:
    """A table of round numbers.

    Attributes:
        layout: its concepts, P and N.
        counts: the probabilities in units, ``[m, V]``.
        unit: how many units are 1.
    """

    layout: ConceptPartition
    counts: np.ndarray
    unit: int

    @property
    def complexity(self) -> tuple[int, int]:
        """The unit, and the sum of the denominators of the reduced fractions: small for a table of short fractions."""
        return self.unit, sum(Fraction(int(k), self.unit).denominator for k in self.counts.ravel())

    @property
    def exact(self) -> RationalInstance:
        """The table in fractions; contexts are equally likely."""
        layout, m = self.layout, len(self.layout.of_context)
        contrast = [Fraction(0)] * m
        for contexts, sign in ((layout.positive, 1), (layout.negative, -1)):
            for j in contexts:
                contrast[j] = Fraction(sign, len(contexts))
        return checked(
            RationalInstance(
                p=tuple(tuple(Fraction(int(k), self.unit) for k in row) for row in self.counts),
                weights=(Fraction(1, m),) * m,
                concept=layout.of_context,
                members=tuple(tuple(g == k for g in layout.of_token) for k in range(1 + max(layout.of_token))),
                contrast=tuple(contrast),
                target=0,
            )
        )


def attack_small(
    margin: Margin,
    domain: Domain,
    hypotheses: Sequence[Margin] = (),
    *,
    families: Sequence[str] | None = None,
    seed: int = 0,
) -> Attack | None:
    """The smallest table of round numbers that breaks a margin, confirmed in exact arithmetic; None if none of them does.

    Args:
        margin: of one instance. Sizes that it cannot take are passed over.
        domain: of tables; completes instances.
        hypotheses: margins that have to be positive.
        families: names of `theory.random_instances.FAMILIES`: tables are of these. The domain's choice if left out.
        seed: of the tables that are drawn.
    """
    start, conditions, tried = time.perf_counter(), tuple(hypotheses), 0
    chosen = domain.families if families is None else tuple(families)
    for tokens, contexts in SIZES:
        tables = small_tables(tokens, contexts, chosen, np.random.default_rng(seed))
        if not tables:
            continue
        batch = _batch(tables)
        if not _is_taken(margin, domain, batch):
            continue
        batch = _completed(domain, batch)
        values = np.where(hold_on(conditions, batch), margins_on(margin, batch), np.inf)
        values = np.where(np.isnan(values), np.inf, values)
        tried += int(np.sum(values < np.inf))
        for k in _telling(tables, values)[:CANDIDATES]:
            exact = tables[k].exact
            try:
                if not all(confirm(hypothesis, exact).sign > 0 for hypothesis in conditions):
                    continue
                confirmation = confirm(margin, exact)
            except balls.Unsupported:
                return None
            if confirmation.sign < 0:
                seconds = time.perf_counter() - start
                result = Attack(float(values[k]), pick(batch, k), tried, seconds, margin, conditions)
                return replace(result, exact=exact, confirmation=confirmation)
    return None


def small_tables(tokens: int, contexts: int, families: Sequence[str], rng: np.random.Generator) -> list[SmallTable]:
    """Tables of a size whose rows are of families, with every layout, and each layout in tenths and in hundredths.

    Args:
        tokens, contexts: the size.
        families: names of `theory.random_instances.FAMILIES`.
        rng: draws from layouts that have too many.
    """
    tables, layouts = [], _layouts(tokens, contexts)
    share = DRAWN // (len(UNITS) * len(layouts))
    for layout, unit in product(layouts, UNITS):
        counts = _rows(layout, unit, rng, separated="free" not in families)
        counts = np.unique(counts[_fit(counts, layout, families)], axis=0)
        if len(counts) > share:
            counts = rng.choice(counts, share, replace=False)
        tables += [SmallTable(layout, table, unit) for table in counts]
    return tables


def _layouts(tokens: int, contexts: int) -> list[ConceptPartition]:
    """Two concepts or three, each with a context at least. P and N: all contexts of a concept, or one; or N all others."""
    layouts = []
    for count in (2, 3):
        for of_token, of_context in product(_partitions(tokens, count), _partitions(contexts, count)):
            own, other, rest = ([j for j, g in enumerate(of_context) if g == k] for k in range(3))
            pools = product({tuple(own), tuple(own[:1])}, {tuple(other), tuple(other[:1]), tuple(other + rest)})
            layouts += [ConceptPartition(of_token, of_context, *pool) for pool in sorted(pools)]
    return layouts


def _partitions(n: int, count: int) -> list[tuple[int, ...]]:
    """The ways to cut n things in a row into so many parts, none empty: the part of each thing."""
    cuts = combinations(range(1, n), count - 1)
    return [tuple(sum(j >= cut for cut in places) for j in range(n)) for places in cuts]


def _rows(layout: ConceptPartition, unit: int, rng: np.random.Generator, *, separated: bool) -> np.ndarray:
    """Positive counts, rows that sum to the unit, ``[n, m, V]``: all there are if they are few, else some."""
    of_token, of_context = np.array(layout.of_token), np.array(layout.of_context)
    tokens, contexts = len(of_token), len(of_context)
    if unit == UNITS[0]:
        cuts = np.array(list(combinations(range(1, unit), tokens - 1)))
        rows = np.diff(cuts, prepend=0, append=unit)
        if len(rows) ** contexts < MANY:
            return rows[np.stack(np.meshgrid(*[np.arange(len(rows))] * contexts), axis=-1).reshape(-1, contexts)]
    n = MANY // 10
    if not separated:
        return _split(np.full((n, contexts), unit), tokens, rng)
    # What tokens have after contexts of other concepts is common to those; what is left is split among the context's own.
    outside = rng.integers(1, max(2, unit // (2 * tokens)) + 1, (n, 1, tokens))
    counts = np.repeat(outside, contexts, axis=1)
    for j, g in enumerate(of_context):
        own = of_token == g
        counts[:, j, own] = _split(unit - outside[:, 0, ~own].sum(axis=1), int(own.sum()), rng)
    return counts


def _split(totals: np.ndarray, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Positive whole numbers that sum to the totals, often uneven: a new last axis."""
    shares = rng.dirichlet(np.full(parts, 0.7), totals.shape)
    counts = 1 + np.floor(shares * (totals - parts)[..., None]).astype(int)
    counts[..., 0] += totals - counts.sum(axis=-1)
    return counts


def _fit(counts: np.ndarray, layout: ConceptPartition, families: Sequence[str]) -> np.ndarray:
    """Which tables are of one of the families, or of a smaller one: ``[n]``."""
    if "free" in families:
        return np.ones(len(counts), dtype=bool)
    if not set(families) & set(FAMILIES):
        return np.zeros(len(counts), dtype=bool)
    own = np.array(layout.of_token) == np.array(layout.of_context)[:, None]
    inside, outside = (np.where(mask, counts, fill) for mask, fill in ((own, np.iinfo(int).max), (~own, 0)))
    least, lowest = inside.min(axis=1), np.where(own, np.iinfo(int).max, counts).min(axis=1)
    fit = ((least > outside.max(axis=1)) & (lowest == outside.max(axis=1))).all(axis=1)
    if not _BLENDED - {"weighted"} & set(families):
        fit &= (least == np.where(own, counts, 0).max(axis=1)).all(axis=1)
    if not _BLENDED & set(families):
        # Within a concept all rows are proportional, or even.
        for g in range(1 + max(layout.of_token)):
            part = counts[:, :, np.array(layout.of_token) == g]
            even = part if "tied" in families else np.ones_like(part)
            cross = part[:, :, :, None] * even[:, :1, None, :]
            fit &= (cross == np.swapaxes(cross, 2, 3)).all(axis=(1, 2, 3))
    return fit


def _telling(tables: list[SmallTable], values: np.ndarray) -> list[int]:
    """The tables that break the margin, those of short fractions first.

    Not those that break it by a hair, or by an infinity, if others break it clearly.
    """
    finite = np.isfinite(values) & (values < -1e-9)
    broken = finite & (values <= 0.2 * values.min(where=finite, initial=0)) if finite.any() else np.isneginf(values)
    return sorted(np.flatnonzero(broken).tolist(), key=lambda k: (*tables[k].complexity, values[k]))


def _batch(tables: list[SmallTable]) -> Instance:
    """The tables in floats, as one batch; concepts are listed as random tables list them."""
    concepts = 1 + max(max(table.layout.of_token) for table in tables)

    def signs(contexts: tuple[int, ...], m: int) -> np.ndarray:
        return np.isin(np.arange(m), contexts) / len(contexts)

    m = tables[0].counts.shape[0]
    members = [
        [[g == min(k, max(table.layout.of_token)) for g in table.layout.of_token] for k in range(concepts)]
        for table in tables
    ]
    contrast = [signs(table.layout.positive, m) - signs(table.layout.negative, m) for table in tables]
    return Instance(
        log_p=jnp.log(jnp.asarray([table.counts / table.unit for table in tables])),
        weights=jnp.full((len(tables), m), 1 / m),
        concept=jnp.asarray([table.layout.of_context for table in tables]),
        members=jnp.asarray(members),
        contrast=jnp.asarray(contrast),
        target=jnp.zeros(len(tables), dtype=int),
    )


def _is_taken(margin: Margin, domain: Domain, batch: Instance) -> bool:
    """Whether a margin takes tables of this size: one of a user's may count on there being more tokens."""
    try:
        jax.eval_shape(lambda instance: margin(domain.complete(instance)), pick(batch, 0))
    except (TypeError, ValueError, IndexError):
        return False
    return True


def _completed(domain: Domain, batch: Instance) -> Instance:
    return compiled_quickly(lambda instances: map_in_batches(domain.complete, instances, BATCH))(batch)

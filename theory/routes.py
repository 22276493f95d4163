"""The ways to check a statement: over random instances, by autodiff, on sweeps of trained models.

Each route returns `Evidence`. A route that found no instance on which the statement claims something has checked nothing
and does not hold.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from theory.instance import SHAPES, Instance, Measured, draw
from theory.statement import Claim, Margin, Statement, compiled_quickly
from ufm._check import require

ROUTES = ("autodiff", "sweep", "instances")
"""The routes by name."""


@dataclass(frozen=True)
class Evidence:
    """What one route found about one statement.

    Attributes:
        route: its name.
        holds: whether it checked something and every margin was positive.
        instances: how many instances (corpora with a contrast) the statement claimed something about, and was checked on.
        worst_margin: the least margin over them; NaN if a margin was, +inf if nothing was checked.
        seconds: wall time, compilation included.
        worst: the instance that attains the worst margin, where there is one.
    """

    route: str
    holds: bool
    instances: int
    worst_margin: float
    seconds: float
    worst: Instance | None = None


Population = tuple[Instance, ...]
"""Random instances, batched: one `Instance` with a leading axis for each shape of corpus."""


def populate(key: jax.Array, n: int) -> Population:
    """`n` random instances of all families, shared out evenly over `theory.instance.SHAPES`.

    Raises:
        ValueError: fewer instances than shapes.
    """
    require(n >= len(SHAPES), "instances", f"at least {len(SHAPES)}, one for each shape of corpus", n)
    shares = [n // len(SHAPES) + (i < n % len(SHAPES)) for i in range(len(SHAPES))]
    return tuple(
        _draw_batch(jax.random.split(jax.random.fold_in(key, i), share), sizes)
        for i, (share, sizes) in enumerate(zip(shares, SHAPES, strict=True))
    )


def sample(population: Population, n: int) -> Population:
    """The first `n` instances of one shape, the one that has a concept of a single token: enough to check formulas."""
    return (jax.tree.map(lambda leaf: leaf[:n], population[SHAPES.index((1, 2, 4))]),)


@partial(jax.jit, static_argnames="sizes")
def _draw_batch(keys: Any, sizes: tuple[int, ...]) -> Instance:
    return jax.vmap(lambda key: draw(key, sizes))(keys)


def instances(statement: Statement, population: Population, *, claim: Claim | None = None) -> Evidence:
    """The closed-form margin over random instances; those that the hypotheses exclude are not counted.

    Args:
        statement: what to check.
        population: from `populate`.
        claim: another claim under the same hypotheses (the false twin, say).
    """
    return _over_population("instances", statement, (claim or statement.claim).instances, population)


def autodiff(statement: Statement, population: Population, *, claim: Claim | None = None) -> Evidence:
    """As `instances`, with the margin from derivatives that JAX takes through a split model of gap 0."""
    return _over_population("autodiff", statement, (claim or statement.claim).autodiff, population)


def sweep(statement: Statement, measured: Iterable[Measured], *, claim: Claim | None = None) -> Evidence:
    """The margin read off the sweeps of trained models (`theory.gallery`)."""
    start = time.perf_counter()
    margin = (claim or statement.claim).sweep
    checked = [(margin(one), one.instance) for one in measured if applies(statement, one.instance)]
    return _evidence("sweep", [value for value, _ in checked], lambda i: checked[i][1], start)


Answer = Literal["holds", "fails", "the theorem says nothing here"]


def check(statement: Statement, one: Instance) -> tuple[Answer, float]:
    """A statement on one instance: the answer and the margin (+inf where the statement says nothing).

    It says nothing where a hypothesis fails (M constant, for instance) or where nothing in the instance is of the kind it
    speaks of. That is not a success.
    """
    if not applies(statement, one):
        return "the theorem says nothing here", float("inf")
    margin = float(compiled_quickly(statement.claim.instances)(one))
    if margin == np.inf:
        return "the theorem says nothing here", margin
    return ("holds" if margin > 0 else "fails"), margin


def applies(statement: Statement, one: Instance) -> bool:
    """Whether all hypotheses hold on an instance."""
    return bool(_hold(tuple(statement.hypotheses.values()), one))


@partial(jax.jit, static_argnums=0)
def _hold(hypotheses: Sequence[Margin], one: Instance) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([margin(one) > 0 for margin in hypotheses]))


def _over_population(route: str, statement: Statement, margin: Margin, population: Population) -> Evidence:
    start = time.perf_counter()
    hypotheses = tuple(statement.hypotheses.values())
    values = [np.where(_hold_all(hypotheses, batch), _margins(margin, batch), np.inf) for batch in population]
    origin = [(batch, k) for batch, margins in zip(population, values, strict=True) for k in range(margins.size)]

    def worst(index: int) -> Instance:
        batch, k = origin[index]
        return jax.tree.map(lambda leaf: leaf[k], batch)

    return _evidence(route, np.concatenate(values), worst, start)


# Statements share their hypotheses, so that these compile once for all; margins compile once each, and quickly.
@partial(compiled_quickly, static_argnums=0)
def _hold_all(hypotheses: Sequence[Margin], batch: Instance) -> Bool[Array, " n"]:
    return jax.vmap(lambda one: _hold(hypotheses, one))(batch)


@partial(compiled_quickly, static_argnums=0)
def _margins(margin: Margin, batch: Instance) -> Float[Array, " n"]:
    return lax.map(margin, batch, batch_size=min(500, batch.target.shape[0]))


def _evidence(route: str, margins: Any, worst: Callable[[int], Instance], start: float) -> Evidence:
    values = np.asarray(margins, dtype=float)
    claimed = (values < np.inf) | np.isnan(values)
    count = int(claimed.sum())
    if count == 0:
        return Evidence(route, False, 0, float("inf"), time.perf_counter() - start)
    broken = np.isnan(values)
    index = int(np.argmax(broken)) if broken.any() else int(np.argmin(values))
    value = float(values[index])
    return Evidence(route, bool(value > 0), count, value, time.perf_counter() - start, worst(index))

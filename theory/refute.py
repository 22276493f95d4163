"""Attack: a search for instances that break a margin, and confirmation of what it finds.

Random instances come first. If none of them breaks the margin, the lowest go down its gradient with respect to the
parameters of their corpora (`theory.random_instances`), all in one compiled run, each in the family and design it was
drawn with. What breaks the margin is rounded to fractions and evaluated in ball arithmetic, hypotheses included. Only that
makes a counterexample.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from theory import balls
from theory.certificate import Confirmation, confirm
from theory.instance import Instance
from theory.rationals import RationalInstance, even, rationalise, smaller, to_floats
from theory.statement import Domain, Margin, assemble_all, hold, hold_on, margins_on, sample_all
from ufm._check import require, typed
from ufm.concepts import check_count

DRAWN, RESTARTS, STEPS = 1024, 48, 120
"""Random instances looked at first, how many of them go down, and for how many steps."""

CANDIDATES = 4
"""How many of the instances that break a margin are tried in exact arithmetic."""

DIGITS = (1, 2, 3, 6, 12, None)
"""Significant digits that a counterexample is rounded to, tried in this order: the shortest that still breaks the margin."""


@dataclass(frozen=True)
class Attack:
    """The findings of an attack on a margin.

    Attributes:
        margin: the lowest it came to, in floating point; +inf if nothing was claimed anywhere.
        instance: where.
        tried: how many random instances the margin claimed something about.
        seconds: wall time.
        margin_function: what was attacked.
        hypotheses: under which conditions.
        others: more instances that break it, with their margins, in case the first one is not confirmed.
        descended: whether gradients were needed.
        constant: whether the margin was one number on all random instances and did not move: then nothing was tested.
        exact: the counterexample in fractions, once confirmed (None for domains whose floats are taken as exact).
        confirmation: the sign of the margin there; None if there is no confirmed counterexample.
        note: why not, in a few words.
    """

    margin: float
    instance: Any
    tried: int
    seconds: float
    margin_function: Margin
    hypotheses: tuple[Margin, ...]
    others: tuple[tuple[float, Any], ...] = field(default=())
    descended: bool = False
    constant: bool = False
    exact: RationalInstance | None = None
    confirmation: Confirmation | None = None
    note: str = field(default="")


@typed
def attack(
    margin: Margin,
    key: jax.Array,
    domain: Domain,
    hypotheses: Sequence[Margin] = (),
    *,
    families: Sequence[str] | None = None,
    drawn: int = DRAWN,
    restarts: int = RESTARTS,
    steps: int = STEPS,
) -> Attack:
    """The lowest margin that gradient descent finds among instances whose hypotheses are positive.

    Args:
        margin: of one instance; a scalar, differentiable where it is to be moved.
        key: a `jax.random.key`.
        domain: what instances there are.
        hypotheses: margins that have to stay positive.
        families: of the domain; its default choice if left out.
        drawn: random instances to choose the starting points from.
        restarts: how many of them, those of lowest margin first.
        steps: of Adam, all restarts together.

    Raises:
        ValueError: fewer than one instance, restart or step, or more than fit in memory; a margin that is NaN on a random
            instance.
    """
    for name, count in (("drawn", drawn), ("restarts", restarts), ("steps", steps)):
        require(count >= 1, name, "at least one", count)
        check_count(name, name, count)
    start = time.perf_counter()
    chosen = domain.families if families is None else tuple(families)
    conditions = tuple(hypotheses)
    drawn_from = sample_all(domain, chosen, jax.random.split(key, drawn))
    batch = assemble_all(domain, *drawn_from)
    shape = jax.eval_shape(margin, pick(batch, 0)).shape
    require(shape == (), "margin", "a function that returns a scalar", f"shape {shape}")
    values = np.where(hold_on(conditions, batch), margins_on(margin, batch), np.inf)
    require(not np.isnan(values).any(), "margin", "a number or +inf on every instance", "NaN on a random one")
    tried = int(np.sum(values < np.inf))

    def result(lowest: float, instance: Any, others: Any = (), **rest: Any) -> Attack:
        seconds = time.perf_counter() - start
        return Attack(lowest, instance, tried, seconds, margin, conditions, others, **rest)

    if tried == 0:
        return result(float("inf"), None, note="nothing is claimed on any random instance")
    if (values < 0).any():
        return result(*_tamest(batch, values))
    order = np.argsort(values)[: min(restarts, tried)]
    designs, parameters = jax.tree.map(lambda leaf: leaf[order], drawn_from)
    lowest, best = descend(partial(guarded, margin, conditions, domain), designs, parameters, steps)
    lowest = np.where(np.isnan(lowest), np.inf, lowest)
    batch = assemble_all(domain, designs, best)
    k = int(np.argmin(lowest))
    closest = _tamest(batch, lowest) if (lowest < 0).any() else (float(lowest[k]), pick(batch, k))
    claimed = values[values < np.inf]
    constant = bool((claimed == claimed[0]).all() and (lowest == claimed[0]).all())
    return result(*closest, descended=True, constant=constant)


@typed
def confirmed(result: Attack) -> Attack:
    """The attack with its counterexample confirmed in exact arithmetic, if it is one.

    A next-token table is rounded to fractions (`theory.rationals`); anything else is taken as the exact numbers its floats
    are. Hypotheses have to be positive there, and the margin negative, in ball arithmetic.
    """
    start = time.perf_counter()
    if not result.margin < 0:
        return replace(result, note=result.note or f"no counterexample: {result.margin:.2e} is the lowest margin")
    note = "not confirmed"
    is_table = type(result.instance) is Instance
    for (margin, instance), digits in product(
        ((result.margin, result.instance), *result.others), DIGITS if is_table else (None,)
    ):
        try:
            exact = rationalise(instance, digits) if is_table else instance
            if not all(confirm(hypothesis, exact).sign > 0 for hypothesis in result.hypotheses):
                note = "not confirmed: the hypotheses are not, in exact arithmetic"
                continue
            confirmation = confirm(result.margin_function, exact)
        except (balls.Unsupported, ValueError) as error:
            note = f"not confirmed: {error}"
            continue
        if confirmation.sign < 0:
            seconds = result.seconds + time.perf_counter() - start
            rational = exact if isinstance(exact, RationalInstance) else None
            return replace(
                result, margin=margin, instance=instance, exact=rational, confirmation=confirmation, seconds=seconds
            )
        note = f"not confirmed: in exact arithmetic the margin is {confirmation.digits}"
    return replace(result, note=note, seconds=result.seconds + time.perf_counter() - start)


def simplified(result: Attack) -> Attack:
    """The attack with a smaller counterexample, if leaving contexts out or joining tokens of a concept gives one."""
    exact, confirmation = result.exact, result.confirmation
    while exact is not None:
        pairs = ((other, _breaks(result, other)) for other in (*smaller(exact), *_with_even_weights(exact)))
        exact, better = next(((other, broken) for other, broken in pairs if broken is not None), (None, None))
        if exact is not None and better is not None:
            confirmation = better
            result = replace(
                result, exact=exact, confirmation=confirmation, margin=confirmation.upper, instance=to_floats(exact)
            )
    return result


def _breaks(result: Attack, exact: RationalInstance) -> Confirmation | None:
    """The margin in ball arithmetic, if it is negative there and every hypothesis holds."""
    try:
        if not all(confirm(hypothesis, exact).sign > 0 for hypothesis in result.hypotheses):
            return None
        confirmation = confirm(result.margin_function, exact)
    except (balls.Unsupported, TypeError, ValueError, IndexError):
        # A margin may count on the size of the table.
        return None
    return confirmation if confirmation.sign < 0 else None


def _with_even_weights(exact: RationalInstance) -> Iterator[RationalInstance]:
    weights = even(len(exact.p))
    if exact.weights != weights:
        yield replace(exact, weights=weights)


def _tamest(batch: Any, values: np.ndarray) -> tuple[float, Any, tuple[tuple[float, Any], ...]]:
    """The instances of least extreme numbers among those whose margin is in the lower half of the negative ones.

    Returns:
        The margin and the instance of the first, and a few more of these pairs.
    """
    negative = np.sort(values[values < 0])
    broken = values <= negative[len(negative) // 2]
    floats = [np.asarray(leaf) for leaf in jax.tree.leaves(batch) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = [np.where(np.isfinite(leaf), np.abs(leaf), 0).reshape(len(values), -1).max(axis=1) for leaf in floats]
    order = np.argsort(np.where(broken, np.max(finite, axis=0), np.inf))[: min(CANDIDATES, int(broken.sum()))]
    (margin, instance), *others = [(float(values[k]), pick(batch, int(k))) for k in order]
    return margin, instance, tuple(others)


def pick(batch: Any, k: int) -> Any:
    """The k-th instance of a batch, in NumPy."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[k], batch)


def guarded(margin: Margin, hypotheses: tuple[Margin, ...], domain: Domain, design: Any, parameters: Any) -> jax.Array:
    """The margin of a design and its parameters, +inf where a hypothesis fails: what `descend` minimises.

    Args:
        margin: of an instance.
        hypotheses: margins that have to be positive.
        domain: assembles and completes the instance.
        design, parameters: what it is assembled from.
    """
    instance = domain.complete(domain.assemble(design, parameters))
    return jnp.where(hold(hypotheses, instance), margin(instance), jnp.inf)


@partial(jax.jit, static_argnums=(0, 3))
def descend(objective: Callable, designs: Any, parameters: Any, steps: int) -> Any:
    """Adam on every restart; the lowest value each came by and the parameters there. One objective compiles once."""
    optimizer = optax.chain(optax.zero_nans(), optax.adam(0.1))
    value_and_grad = jax.vmap(jax.value_and_grad(objective, argnums=1))

    def step(carry, _):
        parameters, state, lowest, best = carry
        values, gradients = value_and_grad(designs, parameters)
        better = values < lowest
        lowest = jnp.where(better, values, lowest)
        best = jax.tree.map(lambda new, old: _where(better, new, old), parameters, best)
        updates, state = jax.vmap(optimizer.update)(gradients, state)
        return (optax.apply_updates(parameters, updates), state, lowest, best), None

    n = jax.tree.leaves(parameters)[0].shape[0]
    start = (parameters, jax.vmap(optimizer.init)(parameters), jnp.full(n, jnp.inf), parameters)
    (_, _, lowest, best), _ = lax.scan(step, start, length=steps)
    return lowest, best


def _where(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)

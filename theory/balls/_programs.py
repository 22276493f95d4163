"""Programs: a JAX function traced once and carried out in ball arithmetic, with its calls, choices and loops."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import jax
import numpy as np
from flint import arb
from jax.extend import core

from theory._jaxprs import Branches, Call, Scan, While, control
from theory.balls._arrays import array_of, decided, exact, is_float, results, rule_of
from theory.balls._numbers import Number, Undecided, Unsupported, hull, joins, number, working
from ufm._check import require
from ufm.precision import in_float64


def evaluate(function: Callable, *arguments: Any, precision: int = 128) -> Any:
    """``function(*arguments)`` in ball arithmetic.

    Args:
        function: of JAX arrays, hashable; traced once for every structure and shape of the arguments, in float64.
        arguments: pytrees. Leaves are `arb`, object arrays of `arb`, floats (exact), or integers and booleans.
        precision: bits.

    Returns:
        what the function returns, as NumPy arrays: of `arb` where it has floats, of True, False and None (undecided) where
        it has booleans, of integers.

    Raises:
        Unsupported: naming the primitive that has no rule.
        Undecided: if a loop, a sort or an index depends on a comparison that the balls do not decide.
    """
    program, treedef, values = _prepare(function, arguments)
    with working(precision):
        return jax.tree.unflatten(treedef, [_public(x) for x in program.run(values)])


def along(function: Callable, *fixed: Any, precision: int = 128) -> "Along":
    """``alpha -> function(*fixed, alpha)`` in ball arithmetic, for many values of a scalar alpha.

    What does not depend on alpha is computed here, once. Arguments, result and errors are those of `evaluate`.
    """
    program, treedef, values = _prepare(function, (*fixed, 0.0))
    with working(precision):
        return Along(program.partial(values[:-1]), treedef, precision)


class Along:
    """A function of one scalar in ball arithmetic, the result of `along`.

    Attributes:
        joined: whether the last call met a choice that depends on the scalar and is not the same on all of its ball, so
            that branches were joined to their hull. If not, the function has no jump on that ball.
    """

    def __init__(self, program: "_Program", treedef: Any, precision: int) -> None:
        self.joined = False
        self._program, self._treedef, self._precision = program, treedef, precision

    def __call__(self, alpha: Number) -> Any:
        """The value: NumPy arrays as from `evaluate`."""
        with working(self._precision):
            joins.clear()
            values = self._program.run([array_of([number(alpha)], ())])
            self.joined = bool(joins)
            return jax.tree.unflatten(self._treedef, [_public(x) for x in values])


def shapes(function: Callable, *arguments: Any) -> Any:
    """The shapes and types of what `evaluate` would return, as `jax.ShapeDtypeStruct`; traces the function only."""
    program, treedef, _ = _prepare(function, arguments)
    return jax.tree.unflatten(treedef, program.results)


def _prepare(function: Callable, arguments: tuple) -> tuple["_Program", Any, list[np.ndarray]]:
    """The program of a function, the structure of its result, and the values of the leaves of its arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    values = [_leaf(x) for x in leaves]
    kinds = tuple((x.shape, "float64" if x.dtype == object else str(x.dtype)) for x in values)
    program, treedef = _trace(function, structure, kinds)
    return program, treedef, values


@functools.lru_cache(maxsize=1024)
def _trace(function: Callable, structure: Any, kinds: tuple) -> tuple["_Program", Any]:
    """Traces a function; the program and the structure of the result."""
    with in_float64():
        stand_ins = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds]
        # A new function each time: JAX would keep a second trace of the same one, beside this cache.
        anew = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)
        jaxpr, result = anew(*jax.tree.unflatten(structure, stand_ins))
        return _compile(jaxpr), jax.tree.structure(result)


def _leaf(x: Any) -> np.ndarray:
    """A leaf of the arguments as the interpreter has it: an object array of balls, or a NumPy array of integers."""
    array = np.asarray(x, dtype=object if isinstance(x, arb | Fraction) else None)
    if array.dtype == object:
        wrong = {type(y).__name__ for y in array.ravel() if not isinstance(y, arb | Fraction)}
        require(not wrong, "arguments", "object arrays of flint.arb", f"elements of type {sorted(wrong)}")
        return array_of([number(y) for y in array.ravel()], array.shape)
    return exact(array)


def _public(x: np.ndarray) -> np.ndarray:
    return x.astype(object) if x.dtype == bool else np.array(x)


@dataclass(frozen=True)
class _Program:
    """A list of steps on numbered slots. A step is a function, the slots it reads, and the slot or slots it writes."""

    slots: list
    results: list[jax.ShapeDtypeStruct]
    inputs: list[int]
    outputs: list[int]
    steps: list[tuple[Callable, tuple[int, ...], tuple[int, ...]]]

    def run(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for values of the inputs."""
        slots = self.slots.copy()
        for slot, value in zip(self.inputs, values, strict=True):
            slots[slot] = value
        _run(self.steps, slots)
        return [slots[slot] for slot in self.outputs]

    def partial(self, values: Sequence[np.ndarray]) -> "_Program":
        """The program of the inputs after the first ones, which are given, with all that follows from them done."""
        slots = self.slots.copy()
        for slot, value in zip(self.inputs, values, strict=False):
            slots[slot] = value
        varying = set(self.inputs[len(values) :])
        now: list = []
        later: list = []
        for step in self.steps:
            depends = not varying.isdisjoint(step[1])
            (later if depends else now).append(step)
            if depends:
                varying.update(step[2])
        _run(now, slots)
        return _Program(slots, self.results, self.inputs[len(values) :], self.outputs, later)


def _run(steps: list, slots: list) -> None:
    for rule, reads, writes in steps:
        result = rule(*[slots[i] for i in reads])
        if len(writes) == 1:
            slots[writes[0]] = result
        else:
            for slot, value in zip(writes, result, strict=True):
                slots[slot] = value


def _compile(closed: core.ClosedJaxpr) -> _Program:
    """The program of a jaxpr: nested functions inlined, what is computed twice done once, what nothing needs left out.

    Done once is more than quicker: two balls of one number would not be known to be equal.
    """
    slots: list = []

    def new(value: Any = None) -> int:
        slots.append(value)
        return len(slots) - 1

    equations: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = []
    known: dict[tuple, Any] = {}

    def inline(jaxpr: Any, consts: Sequence, arguments: Sequence[int]) -> list[int]:
        where = dict(zip(jaxpr.invars, arguments, strict=True))
        where.update((v, new(exact(np.asarray(x)))) for v, x in zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Any) -> int:
            if not isinstance(atom, core.Literal):
                return where[atom]
            value = np.asarray(atom.val, dtype=cast(Any, atom.aval).dtype)
            key = (value.dtype, value.tobytes())
            if key not in known:
                known[key] = new(exact(value))
            return known[key]

        for eqn in jaxpr.eqns:
            reads = tuple(read(x) for x in eqn.invars)
            called = control(eqn)
            if isinstance(called, Call):
                writes = inline(called.jaxpr, called.consts, reads)
            else:
                key = (eqn.primitive, reads, *(_name(x) for x in eqn.params.items()))
                if key not in known:
                    known[key] = [new() for _ in eqn.outvars]
                    equations.append(((eqn, called), reads, tuple(known[key])))
                writes = known[key]
            where.update(zip(eqn.outvars, writes, strict=True))
        return [read(x) for x in jaxpr.outvars]

    inputs = [new() for _ in closed.jaxpr.invars]
    outputs = inline(closed.jaxpr, closed.consts, inputs)
    needed, steps = set(outputs), []
    for equation, reads, writes in reversed(equations):
        if not needed.isdisjoint(writes):
            needed.update(reads)
            steps.append((_rule(*equation), reads, writes))
    return _Program(slots, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in closed.out_avals], inputs, outputs, steps[::-1])


def _name(value: Any) -> Any:
    """Something that can be hashed and is equal for equal values only."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _rule(eqn: Any, repeated: Any) -> Callable:
    """What carries out an equation, given what `control` says of it."""
    if isinstance(repeated, Branches):
        return _cond(eqn, repeated)
    if isinstance(repeated, Scan):
        return _scan(eqn, repeated)
    if isinstance(repeated, While):
        return _while(repeated)
    return rule_of(eqn)


def _cond(eqn: Any, choice_of: Branches) -> Callable:
    branches = [_compile(branch) for branch in choice_of.branches]
    floats = [is_float(x) for x in eqn.outvars]

    def rule(index: np.ndarray, *values: np.ndarray) -> Any:
        choice = index.item()
        if choice is not None:
            out = branches[int(np.clip(choice, 0, len(branches) - 1))].run(values)
        else:
            joins.append("cond")
            outcomes = zip(*(branch.run(values) for branch in branches), strict=True)
            out = [functools.reduce(np.frompyfunc(hull, 2, 1), outcome) for outcome in outcomes]
            out = [np.asarray(x, dtype=object) if f else decided(x) for x, f in zip(out, floats, strict=True)]
        return results(out)

    return rule


def _scan(eqn: Any, scan: Scan) -> Callable:
    body, consts, carried, length = _compile(scan.body), scan.consts, scan.carried, scan.length
    order = range(length - 1, -1, -1) if scan.reverse else range(length)
    stacked = [x.aval.shape for x in eqn.outvars[carried:]]

    def rule(*values: np.ndarray) -> Any:
        fixed, carry, series = values[:consts], list(values[consts : consts + carried]), values[consts + carried :]
        rows: dict[int, list] = {}
        for k in order:
            out = body.run([*fixed, *carry, *(np.asarray(x[k], dtype=x.dtype) for x in series)])
            carry, rows[k] = out[:carried], out[carried:]
        ys = [
            np.stack([rows[k][i] for k in range(length)]) if length else np.empty(shape, dtype=object)
            for i, shape in enumerate(stacked)
        ]
        out = [*carry, *ys]
        return results(out)

    return rule


_LONGEST = 100_000
"""Rounds after which a while loop is given up."""


def _while(loop: While) -> Callable:
    condition, body, n, k = _compile(loop.condition), _compile(loop.body), loop.condition_consts, loop.body_consts

    def rule(*values: np.ndarray) -> Any:
        state = list(values[n + k :])
        for _ in range(_LONGEST):
            more = condition.run([*values[:n], *state])[0].item()
            if more is None:
                raise Undecided("function: expected a decided condition of the primitive while, got an undecided one")
            if not more:
                return results(state)
            state = body.run([*values[n : n + k], *state])
        raise Unsupported(f"function: expected a while loop of at most {_LONGEST} rounds, got more")

    return rule

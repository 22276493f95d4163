"""Ball arithmetic: the value of a JAX function, with every rounding error enclosed.

The function is traced once, by `jax.make_jaxpr`, and its operations are then carried out on NumPy arrays of `flint.arb`:
numbers with an error bound, whose results contain the true result whatever the precision is. What comes out is a proof
about the function *as a function of real numbers*: where float64 would overflow or round, balls do neither.

Four rules say how the two worlds meet.

- Floats that come in, constants of the function included, are taken as the exact numbers they are. A constant that Python
  or NumPy computed before JAX saw it (``math.log(3)``, ``1 / 3``) is the rounded one.
- A comparison that the balls do not decide is None. `jnp.where` on it is the hull of both branches; a loop or a sort that
  depends on it is refused (`Undecided`).
- Infinities are exact, as masks need them to be: ``exp(-inf)`` is 0. A NaN ball may be any number, infinite or none.
- One `arb` object is one number, wherever it stands: it is equal to itself, and its difference from itself is 0.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import flint
import jax
import jax.numpy as jnp
import numpy as np
from flint import arb
from jax import lax
from jax.extend import core

from theory._jaxprs import Branches, Call, Scan, While, control
from ufm._check import require
from ufm.precision import in_float64

Number = int | float | Fraction | arb


class Unsupported(ValueError):  # noqa: N818
    """The function uses an operation that has no rule here, or uses one in a way that has none."""


class Undecided(Unsupported):
    """The balls are too wide for a choice that the function has to make: narrower ones, or more precision, may do."""


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
            _joins.clear()
            values = self._program.run([_array([number(alpha)], ())])
            self.joined = bool(_joins)
            return jax.tree.unflatten(self._treedef, [_public(x) for x in values])


def shapes(function: Callable, *arguments: Any) -> Any:
    """The shapes and types of what `evaluate` would return, as `jax.ShapeDtypeStruct`; traces the function only."""
    program, treedef, _ = _prepare(function, arguments)
    return jax.tree.unflatten(treedef, program.results)


def number(value: Number) -> arb:
    """The ball of a number: exact for integers, floats and infinities, as narrow as the precision for fractions."""
    if isinstance(value, Fraction):
        return arb(flint.fmpq(value.numerator, value.denominator))
    return value if isinstance(value, arb) else arb(value if isinstance(value, int) else float(value))


def interval(low: Number, high: Number) -> arb:
    """The smallest ball, up to its rounding, that contains both numbers and all between them."""
    return _hull(number(low), number(high))


def bounds(ball: arb) -> tuple[float, float]:
    """A float below the ball and one above it; infinite or NaN if the ball is."""
    low, high = float(ball.lower()), float(ball.upper())
    # float() rounds to nearest.
    low = float(np.nextafter(low, -np.inf)) if arb(low) > ball.lower() else low
    return low, float(np.nextafter(high, np.inf)) if arb(high) < ball.upper() else high


@contextmanager
def working(precision: int) -> Iterator[None]:
    """Sets the working precision, in bits; one thread at a time, since flint has one for the whole process.

    Raises:
        ValueError: a precision below 2 bits.
    """
    require(precision >= 2, "precision", "at least 2 bits", precision)
    with _LOCK, flint.ctx.workprec(precision):
        yield


_LOCK = threading.RLock()

_joins: list[str] = []
"""Where branches, or the values of a step function, were joined to their hull; guarded by the lock."""

# Tracing ---------------------------------------------------------------------------------------------------------------


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
        jaxpr, result = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(structure, stand_ins))
        return _compile(jaxpr), jax.tree.structure(result)


def _leaf(x: Any) -> np.ndarray:
    """A leaf of the arguments as the interpreter has it: an object array of balls, or a NumPy array of integers."""
    array = np.asarray(x, dtype=object if isinstance(x, arb | Fraction) else None)
    if array.dtype == object:
        wrong = {type(y).__name__ for y in array.ravel() if not isinstance(y, arb | Fraction)}
        require(not wrong, "arguments", "object arrays of flint.arb", f"elements of type {sorted(wrong)}")
        return _array([number(y) for y in array.ravel()], array.shape)
    return _floats(array)


def _floats(array: np.ndarray) -> np.ndarray:
    """Exact balls if the array is one of floats; else the array."""
    if array.dtype.kind != "f" and array.dtype != jnp.bfloat16:
        return array
    return _array([arb(x) for x in array.astype(float).ravel().tolist()], array.shape)


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
        where.update((v, new(_floats(np.asarray(x)))) for v, x in zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Any) -> int:
            if not isinstance(atom, core.Literal):
                return where[atom]
            value = np.asarray(atom.val, dtype=cast(Any, atom.aval).dtype)
            key = (value.dtype, value.tobytes())
            if key not in known:
                known[key] = new(_floats(value))
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


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _rule(eqn: Any, repeated: Any) -> Callable:
    """What carries out an equation, given what `control` says of it."""
    name = eqn.primitive.name
    if isinstance(repeated, Branches):
        return _cond(eqn, repeated)
    if isinstance(repeated, Scan):
        return _scan(eqn, repeated)
    if isinstance(repeated, While):
        return _while(repeated)
    known = _RULES if any(_is_float(x) for x in (*eqn.invars, *eqn.outvars)) else {*_RULES, *_INTEGER}
    if name not in known:
        raise Unsupported(f"function: expected operations with a rule in ball arithmetic, got the primitive {name}")
    if name in _SHAPES or known is _RULES:
        return _made(eqn)

    def on_integers(*values: np.ndarray) -> Any:
        if any(x.dtype == object for x in values):
            if name not in _UNDECIDED:
                _require_decided(name, *values)
            return _made(eqn)(*values)
        if name in _NUMPY:
            return np.asarray(_NUMPY[name](*values))
        return _bind(eqn, *values)

    return on_integers


def _made(eqn: Any) -> Callable:
    """The rule of an operation on arrays, made for its parameters."""
    try:
        return _RULES[eqn.primitive.name](eqn)
    except KeyError as error:
        expected = f"the primitive {eqn.primitive.name} with the parameter {error}"
        raise Unsupported(f"function: expected {expected}, got {sorted(eqn.params)} from jax {jax.__version__}") from error


def _bind(eqn: Any, *values: np.ndarray) -> Any:
    """The equation itself, on NumPy arrays of integers."""
    with in_float64():
        result = eqn.primitive.bind(*map(jnp.asarray, values), **eqn.params)
    return _results([np.asarray(x) for x in result]) if eqn.primitive.multiple_results else np.asarray(result)


def _results(values: Sequence[np.ndarray]) -> Any:
    """What a rule returns: the array if there is one, else all of them."""
    return values[0] if len(values) == 1 else values


# Numbers ---------------------------------------------------------------------------------------------------------------

_ZERO, _ONE, _HALF, _INF = arb(0), arb(1), arb(0.5), arb("inf")
_UNKNOWN = arb("nan")


def _array(values: list, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def _hull(a: Any, b: Any) -> Any:
    """What is known of a value that is one of two: balls, or True, False, None and integers."""
    if a is b:
        return a
    if not isinstance(a, arb):
        return a if a == b else None
    return a if a == b else _span(a, b)


def _span(a: arb, b: arb) -> arb:
    """The hull of two balls. If both have one sign, so does the hull, however different they are.

    A radius has 30 bits only, so that flint's own hull of 1e-20 and 1 reaches below 0. This one ends exactly at 1e-20.
    """
    signs = {a > 0, b > 0, not a < 0, not b < 0}
    if len(signs) > 1 or not (a.is_finite() and b.is_finite()):
        return a.union(b)
    low, high = _min(a.lower(), b.lower()), _max(a.upper(), b.upper())
    error = arb(0, ((high - low) / 2).upper())
    # The middle has to be exact: a rounding error would be added to the radius, which is then rounded up.
    with working(4096):
        return error + (low + error.rad() if a > 0 else high - error.rad())


def _sub(a: arb, b: arb) -> arb:
    return _ZERO if a is b and a.is_finite() else a - b


def _max(a: arb, b: arb) -> arb:
    # The larger one itself, not a copy, so that a maximum is equal to the entry it is taken from.
    return a if a is b or a >= b else b if b >= a else a.max(b)


def _min(a: arb, b: arb) -> arb:
    return a if a is b or a <= b else b if b <= a else a.min(b)


def _abs(a: arb) -> arb:
    if a >= 0:
        return a
    # flint's own is [-r, r] for a ball around 0.
    return abs(a) if a < 0 or not a.is_finite() else _ZERO.union(a.abs_upper())


def _sign(a: arb) -> arb:
    if a > 0 or a < 0 or a.is_zero():
        return _ONE if a > 0 else -_ONE if a < 0 else _ZERO
    _joins.append("sign")
    return _UNKNOWN if a.is_nan() else arb(0, 1)


def _power(a: arb, n: int) -> arb:
    """a**n; flint's own is NaN for balls around 0."""
    if n < 0:
        return 1 / _power(a, -n)
    if not a.is_finite():
        return functools.reduce(lambda x, y: x * y, [a] * n, _ONE)
    if a.rad() > 2**-20 * abs(a.mid()):
        if n % 2 == 0:
            low, high = a.abs_lower(), a.abs_upper()
        else:
            low, high = a.lower(), a.upper()
        return _ONE if n == 0 else _product(low, n).union(_product(high, n))
    return _product(a, n)


def _product(a: arb, n: int) -> arb:
    out, square = None, a
    while n:
        if n & 1:
            out = square if out is None else out * square
        n >>= 1
        if n:
            square = square * square
    return _ONE if out is None else out


def _pow(a: arb, b: arb | int) -> arb:
    if isinstance(b, int):
        return _power(a, b)
    n = b.unique_fmpz() if b.is_exact() and b.is_finite() else None
    return _power(a, int(n)) if n is not None and abs(n) < 2**16 else a**b


def _log(a: arb) -> arb:
    return -_INF if a.is_zero() else a.log()


def _log1p(a: arb) -> arb:
    return -_INF if a.is_exact() and a == -1 else a.log1p()


def _exp2(a: arb) -> arb:
    n = a.unique_fmpz() if a.is_exact() and a.is_finite() else None
    return arb(2) ** n if n is not None else (a * arb.const_log2()).exp()


def _increasing(f: Callable[[arb], arb]) -> Callable[[arb], arb]:
    """An increasing function, by its values at the ends of a wide ball: flint's own bound there is loose."""

    def g(a: arb) -> arb:
        return f(a.lower()).union(f(a.upper())) if a.is_finite() and a.rad() > 2**-10 else f(a)

    return g


def _logistic(a: arb) -> arb:
    return 1 / (1 + (-a).exp()) if not a < 0 else a.exp() / (1 + a.exp())


def _lt(a: Any, b: Any) -> bool | None:
    if a is b:
        return None if a.is_nan() else False
    return True if a < b else False if a >= b else None


def _le(a: Any, b: Any) -> bool | None:
    if a is b:
        return None if a.is_nan() else True
    return True if a <= b else False if a > b else None


def _eq(a: Any, b: Any) -> bool | None:
    if not isinstance(a, arb):
        return None if a is None or b is None else a == b
    if a is b:
        return None if a.is_nan() else True
    return True if a == b else False if a < b or a > b else None


def _not(a: bool | None) -> bool | None:
    return None if a is None else not a


def _and(a: bool | None, b: bool | None) -> bool | None:
    if a is None or b is None:
        return False if a is False or b is False else None
    return bool(a) and bool(b)


def _or(a: bool | None, b: bool | None) -> bool | None:
    return _not(_and(_not(a), _not(b)))


def _is_finite(a: arb) -> bool | None:
    if a.is_finite():
        return True
    return False if a.is_exact() and not a.is_nan() else None


def _to_bool(a: arb) -> bool | None:
    return _not(_eq(a, _ZERO))


def _to_int(a: arb) -> int | None:
    """Towards 0, if that is one integer for all of the ball."""
    if not a.is_finite():
        return None
    low, high = int(a.lower().fmpq()), int(a.upper().fmpq())
    return low if low == high else None


def _from_bool(a: bool | None) -> arb:
    if a is None:
        _joins.append("convert_element_type")
        return arb(0.5, 0.5)
    return _ONE if a else _ZERO


def _floor(a: arb) -> arb:
    if not a.is_finite():
        return a
    low, high = a.lower().floor(), a.upper().floor()
    if low == high:
        return low
    _joins.append("floor")
    return low.union(high)


# Rules on arrays -------------------------------------------------------------------------------------------------------


def _decided(x: Any) -> np.ndarray:
    """A NumPy array of booleans or integers if all of them are known; else the object array."""
    array = np.asarray(x, dtype=object)
    values = array.ravel().tolist()
    if None in values:
        return array
    return np.array(values, dtype=int if values and type(values[0]) is int else bool).reshape(array.shape)


def _require_decided(name: str, *values: np.ndarray) -> None:
    if any(x.dtype == object for x in values):
        raise Undecided(f"function: expected decided integers in the primitive {name}, got comparisons of overlapping balls")


def _each(f: Callable, arity: int) -> Callable:
    """A rule that applies a function of balls to each element."""
    ufunc = np.frompyfunc(f, arity, 1)

    def rule(*values: np.ndarray) -> np.ndarray:
        return np.asarray(ufunc(*values), dtype=object)

    return rule


def _dear(f: Callable) -> Callable:
    """`_each` for a costly function of one argument: once for each different number."""

    def rule(x: np.ndarray) -> np.ndarray:
        known: dict[int, arb] = {}
        out = []
        for value in x.ravel().tolist():
            result = known.get(id(value))
            if result is None:
                result = known[id(value)] = f(value)
            out.append(result)
        return _array(out, x.shape)

    return rule


def _truth(f: Callable, arity: int) -> Callable:
    """A rule whose results are True, False or None."""
    ufunc = np.frompyfunc(f, arity, 1)
    return lambda *values: _decided(ufunc(*values))


def _select(eqn: Any) -> Callable:
    floats = _is_float(eqn.outvars[0])

    def rule(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
        if which.dtype != object:
            if len(cases) == 2:
                out = np.where(which, cases[1], cases[0])
            else:
                shape = np.broadcast_shapes(which.shape, *(c.shape for c in cases))
                stacked = np.stack([np.broadcast_to(c, shape) for c in cases])
                index = np.broadcast_to(which, shape)[None].astype(int)
                out = np.take_along_axis(stacked, index, axis=0)[0]
            return out if floats or out.dtype != object else _decided(out)

        def pick(i: Any, *options: Any) -> Any:
            return functools.reduce(_hull, options) if i is None else options[int(i)]

        _joins.append("select_n")
        out = np.asarray(np.frompyfunc(pick, 1 + len(cases), 1)(which, *cases), dtype=object)
        return out if floats else _decided(out)

    return rule


def _convert(eqn: Any) -> Callable:
    target = np.dtype(eqn.outvars[0].aval.dtype)
    from_bool, to_bool = eqn.invars[0].aval.dtype.kind == "b", target.kind == "b"
    if not _is_float(eqn.invars[0]) and not _is_float(eqn.outvars[0]):

        def between(x: np.ndarray) -> np.ndarray:
            if x.dtype != object:
                return x.astype(target)
            change = bool if to_bool else int
            return np.asarray(np.frompyfunc(lambda y: None if y is None else change(y), 1, 1)(x), dtype=object)

        return between
    if _is_float(eqn.invars[0]) and _is_float(eqn.outvars[0]):
        return lambda x: x
    if _is_float(eqn.outvars[0]):
        if from_bool:
            return _each(_from_bool, 1)

        def from_integers(x: np.ndarray) -> np.ndarray:
            _require_decided("convert_element_type", x)
            return _array([arb(y) for y in x.ravel().tolist()], x.shape)

        return from_integers
    return _truth(_to_bool if to_bool else _to_int, 1)


def _reduction(f: Callable, neutral: Any, *, truth: bool = False) -> Callable:
    ufunc = f if isinstance(f, np.ufunc) else np.frompyfunc(f, 2, 1)

    def factory(eqn: Any) -> Callable:
        axes = tuple(eqn.params["axes"])

        def rule(x: np.ndarray) -> np.ndarray:
            rows = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
            shape = rows.shape[: x.ndim - len(axes)]
            rows = rows.reshape(*shape, int(np.prod([x.shape[a] for a in axes])))
            if rows.shape[-1] == 0:
                out = np.full(shape, neutral, dtype=object)
            else:
                out = np.asarray(ufunc.reduce(rows.astype(object, copy=False), axis=-1), dtype=object)
            return _decided(out) if truth else out

        return rule

    return factory


def _cumulative(f: Callable) -> Callable:
    ufunc = f if isinstance(f, np.ufunc) else np.frompyfunc(f, 2, 1)

    def factory(eqn: Any) -> Callable:
        axis, reverse = eqn.params["axis"], eqn.params["reverse"]

        def rule(x: np.ndarray) -> np.ndarray:
            x = np.flip(x, axis) if reverse else x
            out = ufunc.accumulate(x, axis=axis, dtype=object)
            return np.flip(out, axis) if reverse else out

        return rule

    return factory


def _arg_extreme(before: Callable) -> Callable:
    """The first index of the extreme entry; `before(a, b)` says whether a is more extreme than b."""

    def index(row: list) -> int | None:
        for i, value in enumerate(row):
            if all(before(value, x) for x in row[:i]) and all(before(x, value) is False for x in row[i + 1 :]):
                return i
        return None

    def factory(eqn: Any) -> Callable:
        (axis,) = eqn.params["axes"]
        name = eqn.primitive.name

        def rule(x: np.ndarray) -> np.ndarray:
            rows = np.moveaxis(x, axis, -1)
            found = [index(list(row)) for row in rows.reshape(-1, rows.shape[-1])]
            if None in found:
                raise Undecided(f"function: expected a decided index from the primitive {name}, got overlapping balls")
            return np.array(found, dtype=eqn.outvars[0].aval.dtype).reshape(rows.shape[:-1])

        return rule

    return factory


def _dot_general(eqn: Any) -> Callable:
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    left, right = (x.aval for x in eqn.invars)
    lhs_free = [i for i in range(left.ndim) if i not in (*lhs_sum, *lhs_batch)]
    rhs_free = [i for i in range(right.ndim) if i not in (*rhs_sum, *rhs_batch)]
    batch = [left.shape[i] for i in lhs_batch]
    count, terms = int(np.prod(batch)), int(np.prod([left.shape[i] for i in lhs_sum]))
    shape = (*batch, *(left.shape[i] for i in lhs_free), *(right.shape[i] for i in rhs_free))

    def rule(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a = a.transpose(*lhs_batch, *lhs_free, *lhs_sum).reshape(count, -1 if a.size else 0, terms)
        b = b.transpose(*rhs_batch, *rhs_free, *rhs_sum).reshape(count, -1 if b.size else 0, terms)
        out = [_dot(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)]
        return _array([z for product in out for row in product for z in row], shape)

    return rule


def _dot(rows: list[list], columns: list[list]) -> list[list]:
    """Scalar products; equal ones are one object, so that tokens with equal columns have equal log-odds."""
    known: dict[tuple, arb] = {}
    names = [tuple(map(id, column)) for column in columns]
    out = []
    for row in rows:
        key, line = tuple(map(id, row)), []
        for name, column in zip(names, columns, strict=True):
            value = known.get((key, name))
            if value is None:
                value = _ZERO
                for i, (x, y) in enumerate(zip(row, column, strict=True)):
                    value = x * y if i == 0 else value + x * y
                known[key, name] = value
            line.append(value)
        out.append(line)
    return out


def _indices(eqn: Any) -> Callable:
    """The rule of an operation that only moves data: carried out on positions, at each call, and looked up."""
    params = dict(eqn.params)
    fill = None
    if eqn.primitive.name == "gather":
        fill = params["fill_value"]
        fill = arb("nan" if fill is None else float(fill)) if _is_float(eqn.outvars[0]) else None
        params["fill_value"] = -1

    def rule(x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        _require_decided(eqn.primitive.name, *rest)
        if x.dtype != object:
            return _bind(eqn, x, *rest)
        with in_float64():
            positions = jnp.arange(x.size).reshape(x.shape)
            index = np.asarray(eqn.primitive.bind(positions, *map(jnp.asarray, rest), **params))
        out = np.append(x.ravel(), np.array([fill], dtype=object))[index]
        return np.asarray(out, dtype=object)

    return rule


def _pad(eqn: Any) -> Callable:
    config = eqn.params["padding_config"]

    def rule(x: np.ndarray, value: np.ndarray) -> np.ndarray:
        with in_float64():
            index = np.asarray(lax.pad(jnp.arange(x.size).reshape(x.shape), -1, config))
        return np.append(x.ravel(), value.ravel())[index]

    return rule


def _scatter(combine: Callable) -> Callable:
    """`x.at[indices].set` and its kin: each update goes where a one-hot update puts its 1."""

    def factory(eqn: Any) -> Callable:
        numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]

        def rule(x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
            _require_decided(eqn.primitive.name, indices)
            with in_float64():
                ones = jnp.eye(updates.size, dtype=int).reshape(-1, *updates.shape)
                zeros = jnp.zeros(x.shape, int)
                put = jax.vmap(lambda one: lax.scatter_add(zeros, jnp.asarray(indices), one, numbers, mode=mode))
                hits = np.asarray(put(ones)).reshape(updates.size, -1)
            out = x.astype(object).ravel()
            for value, hit in zip(updates.ravel(), hits, strict=True):
                for position in np.flatnonzero(hit):
                    out[position] = combine(out[position], value)
            whole = out.reshape(x.shape)
            return whole if _is_float(eqn.outvars[0]) else _decided(whole)

        return rule

    return factory


def _dynamic_slice(eqn: Any) -> Callable:
    sizes = eqn.params["slice_sizes"]

    def rule(x: np.ndarray, *starts: np.ndarray) -> np.ndarray:
        return x[_window("dynamic_slice", x.shape, starts, sizes)]

    return rule


def _dynamic_update_slice(eqn: Any) -> Callable:
    del eqn

    def rule(x: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> np.ndarray:
        out = x.astype(np.result_type(x.dtype, update.dtype))
        out[_window("dynamic_update_slice", x.shape, starts, update.shape)] = update
        return out

    return rule


def _window(name: str, shape: Sequence[int], starts: Sequence[np.ndarray], sizes: Sequence[int]) -> tuple[slice, ...]:
    _require_decided(name, *starts)
    firsts = [int(np.clip(int(i), 0, n - k)) for i, n, k in zip(starts, shape, sizes, strict=True)]
    return tuple(slice(i, i + k) for i, k in zip(firsts, sizes, strict=True))


def _sort(eqn: Any) -> Callable:
    axis, keys = eqn.params["dimension"], eqn.params["num_keys"]

    def before(a: tuple, b: tuple) -> int:
        for x, y in zip(a[:keys], b[:keys], strict=True):
            less, more = (_lt(x, y), _lt(y, x)) if isinstance(x, arb) else (x < y, y < x)
            if less or more:
                return -1 if less else 1
            if less is None or more is None:
                raise Undecided("function: expected a decided order from the primitive sort, got overlapping balls")
        return 0

    def rule(*operands: np.ndarray) -> list[np.ndarray] | np.ndarray:
        rows = [np.moveaxis(x, axis, -1) for x in operands]
        shape, length = rows[0].shape, operands[0].shape[axis]
        flat = [x.reshape(-1, length).tolist() for x in rows]
        columns = [
            sorted(zip(*together, strict=True), key=functools.cmp_to_key(before)) for together in zip(*flat, strict=True)
        ]
        out = []
        for i, x in enumerate(operands):
            values = np.empty((len(columns), length), dtype=x.dtype)
            for k, row in enumerate(columns):
                values[k] = _array([entry[i] for entry in row], (length,))
            out.append(np.moveaxis(values.reshape(shape), -1, axis))
        return _results(out)

    return rule


def _cond(eqn: Any, choice_of: Branches) -> Callable:
    branches = [_compile(branch) for branch in choice_of.branches]
    floats = [_is_float(x) for x in eqn.outvars]

    def rule(index: np.ndarray, *values: np.ndarray) -> Any:
        choice = index.item()
        if choice is not None:
            out = branches[int(np.clip(choice, 0, len(branches) - 1))].run(values)
        else:
            _joins.append("cond")
            results = zip(*(branch.run(values) for branch in branches), strict=True)
            out = [functools.reduce(np.frompyfunc(_hull, 2, 1), r) for r in results]
            out = [np.asarray(x, dtype=object) if f else _decided(x) for x, f in zip(out, floats, strict=True)]
        return _results(out)

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
        return _results(out)

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
                return _results(state)
            state = body.run([*values[n : n + k], *state])
        raise Unsupported(f"function: expected a while loop of at most {_LONGEST} rounds, got more")

    return rule


def _iota(eqn: Any) -> Callable:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    along_axis = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    values = _floats(np.broadcast_to(along_axis, shape).astype(eqn.outvars[0].aval.dtype))
    return lambda: values


def _broadcast_in_dim(eqn: Any) -> Callable:
    shape, where = eqn.params["shape"], eqn.params["broadcast_dimensions"]

    def rule(x: np.ndarray, *_: np.ndarray) -> np.ndarray:
        ones = [1] * len(shape)
        for axis, size in zip(where, x.shape, strict=True):
            ones[axis] = size
        return np.broadcast_to(x.reshape(ones), shape)

    return rule


def _to_new_shape(eqn: Any) -> Callable:
    shape = eqn.outvars[0].aval.shape
    return lambda x, *_: x.reshape(shape)


def _slice(eqn: Any) -> Callable:
    p = eqn.params
    strides = p["strides"] or [1] * len(p["start_indices"])
    window = tuple(slice(a, b, s) for a, b, s in zip(p["start_indices"], p["limit_indices"], strides, strict=True))
    return lambda x: x[window]


def _split(eqn: Any) -> Callable:
    cuts, axis = np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"]

    return lambda x: _results(np.split(x, cuts, axis))


def _square(eqn: Any) -> Callable:
    del eqn
    return _each(lambda a: _power(a, 2), 1)


def _integer_pow(eqn: Any) -> Callable:
    exponent = eqn.params["y"]
    return _dear(lambda a: _power(a, exponent))


def _clamp(eqn: Any) -> Callable:
    del eqn
    return _each(lambda low, x, high: _min(_max(x, low), high), 3)


def _with(parameter: str, function: Callable, *, together: bool = False) -> Callable:
    """The factory of a rule that hands the operand, or all of them together, and one parameter to a function of NumPy."""

    def factory(eqn: Any) -> Callable:
        value = eqn.params[parameter]
        return (lambda *xs: function(xs, value)) if together else (lambda x: function(x, value))

    return factory


def _always(rule: Callable) -> Callable:
    """The factory of a rule that does not depend on the equation."""
    return lambda eqn: rule


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _unstack(eqn: Any) -> Callable:
    axis = eqn.params["axis"]
    return lambda x: _results([np.asarray(row, dtype=x.dtype) for row in np.moveaxis(x, axis, 0)])


def _native(ufunc: np.ufunc) -> Callable:
    """The factory of a rule that NumPy carries out by the operators of the balls."""
    return _always(lambda *values: np.asarray(ufunc(*values), dtype=object))


def _swapped(rule: Callable) -> Callable:
    return lambda a, b: rule(b, a)


_SHAPES: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _to_new_shape,
    "squeeze": _to_new_shape,
    "expand_dims": _to_new_shape,
    "transpose": _with("permutation", np.transpose),
    "concatenate": _with("dimension", lambda xs, axis: np.concatenate(xs, axis), together=True),
    "stack": _with("axis", lambda xs, axis: np.stack(xs, axis), together=True),
    "unstack": _unstack,
    "tile": _with("reps", np.tile),
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _indices,
    "rev": _with("dimensions", np.flip),
    "iota": _iota,
    "split": _split,
    "select_n": _select,
    "convert_element_type": _convert,
    "reduce_precision": _always(_same),
    "stop_gradient": _always(_same),
    "copy": _always(_same),
    "copy_p": _always(_same),
    "optimization_barrier": _always(lambda *values: _results(values)),
}
"""Operations that do the same to balls, integers and booleans."""

_TRUTHS = {
    "lt": _truth(_lt, 2),
    "le": _truth(_le, 2),
    "gt": _swapped(_truth(_lt, 2)),
    "ge": _swapped(_truth(_le, 2)),
    "eq": _truth(_eq, 2),
    "ne": _truth(lambda a, b: _not(_eq(a, b)), 2),
    "and": _truth(_and, 2),
    "or": _truth(_or, 2),
    "not": _truth(_not, 1),
    "xor": _truth(lambda a, b: None if a is None or b is None else bool(a) != bool(b), 2),
    "is_finite": _truth(_is_finite, 1),
}

_FUNCTIONS = {
    "exp": _dear(arb.exp),
    "exp2": _dear(_exp2),
    "log": _dear(_log),
    "log1p": _dear(_log1p),
    "expm1": _dear(arb.expm1),
    "tanh": _dear(_increasing(arb.tanh)),
    "logistic": _dear(_increasing(_logistic)),
    "sqrt": _dear(arb.sqrt),
    "rsqrt": _dear(arb.rsqrt),
    "sin": _dear(arb.sin),
    "cos": _dear(arb.cos),
    "tan": _dear(arb.tan),
    "asin": _dear(arb.asin),
    "acos": _dear(arb.acos),
    "atan": _dear(_increasing(arb.atan)),
    "sinh": _dear(_increasing(arb.sinh)),
    "cosh": _dear(arb.cosh),
    "asinh": _dear(_increasing(arb.asinh)),
    "acosh": _dear(arb.acosh),
    "atanh": _dear(arb.atanh),
    "erf": _dear(_increasing(arb.erf)),
    "erfc": _dear(arb.erfc),
    "erf_inv": _dear(arb.erfinv),
    "lgamma": _dear(arb.lgamma),
    "digamma": _dear(arb.digamma),
    "abs": _each(_abs, 1),
    "sign": _each(_sign, 1),
    "floor": _dear(_floor),
    "ceil": _dear(lambda a: -_floor(-a)),
    "sub": _each(_sub, 2),
    "max": _each(_max, 2),
    "min": _each(_min, 2),
    "pow": _each(_pow, 2),
}

_RULES: dict[str, Callable] = {
    **_SHAPES,
    **{name: _always(rule) for name, rule in (*_TRUTHS.items(), *_FUNCTIONS.items())},
    "add": _native(np.add),
    "add_any": _native(np.add),
    "mul": _native(np.multiply),
    "div": _native(np.true_divide),
    "neg": _native(np.negative),
    "square": _square,
    "integer_pow": _integer_pow,
    "clamp": _clamp,
    "reduce_sum": _reduction(np.add, _ZERO),
    "reduce_prod": _reduction(np.multiply, _ONE),
    "reduce_max": _reduction(_max, -_INF),
    "reduce_min": _reduction(_min, _INF),
    "reduce_and": _reduction(_and, True, truth=True),
    "reduce_or": _reduction(_or, False, truth=True),
    "cumsum": _cumulative(np.add),
    "cumprod": _cumulative(np.multiply),
    "cummax": _cumulative(_max),
    "cummin": _cumulative(_min),
    "argmax": _arg_extreme(lambda a, b: _lt(b, a)),
    "argmin": _arg_extreme(_lt),
    "dot_general": _dot_general,
    "sort": _sort,
    "scatter": _scatter(lambda old, new: new),
    "scatter-add": _scatter(lambda old, new: old + new),
    "scatter-mul": _scatter(lambda old, new: old * new),
    "scatter-min": _scatter(_min),
    "scatter-max": _scatter(_max),
}

_NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "abs": np.abs,
    "sign": np.sign,
    "rem": np.fmod,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}
"""Operations on integers and booleans that need not be handed to JAX."""

_INTEGER = {"rem", "shift_left", "shift_right_logical", "shift_right_arithmetic", "population_count", "clz", "reduce_xor"}
"""Operations that have a rule on integers only."""

_UNDECIDED = {"and", "or", "not", "xor", "eq", "ne", "reduce_and", "reduce_or"}
"""Operations on booleans that may not know all of their arguments."""

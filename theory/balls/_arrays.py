"""Rules: what each primitive of JAX does to NumPy arrays of balls, of integers and of truth values.

A rule is made from an equation (`rule_of`) and takes the arrays that the equation reads. What only moves data is carried out
on positions by JAX itself, and looked up.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flint import arb
from jax import lax

from theory.balls._numbers import (
    CHEAP,
    DEAR,
    INF,
    ONE,
    TRUTHS,
    ZERO,
    Undecided,
    Unsupported,
    from_truth,
    hull,
    joins,
    less,
    maximum,
    minimum,
    power,
    to_integer,
    to_truth,
)
from ufm.precision import in_float64


def array_of(values: list, shape: tuple[int, ...]) -> np.ndarray:
    """An object array of a shape, from its elements in order."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def exact(array: np.ndarray) -> np.ndarray:
    """Exact balls if the array is one of floats; else the array."""
    if array.dtype.kind != "f" and array.dtype != jnp.bfloat16:
        return array
    return array_of([arb(x) for x in array.astype(float).ravel().tolist()], array.shape)


def is_float(atom: Any) -> bool:
    """Whether a variable of a jaxpr holds floats."""
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def results(values: Sequence[np.ndarray]) -> Any:
    """What a rule returns: the array if there is one, else all of them."""
    return values[0] if len(values) == 1 else values


def decided(x: Any) -> np.ndarray:
    """A NumPy array of booleans or integers if all of them are known; else the object array."""
    array = np.asarray(x, dtype=object)
    values = array.ravel().tolist()
    if None in values:
        return array
    return np.array(values, dtype=int if values and type(values[0]) is int else bool).reshape(array.shape)


def rule_of(eqn: Any) -> Callable:
    """What carries out an equation that neither calls, chooses nor repeats.

    Raises:
        Unsupported: its primitive has no rule.
    """
    name = eqn.primitive.name
    known = _RULES if any(is_float(x) for x in (*eqn.invars, *eqn.outvars)) else {*_RULES, *_INTEGER}
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
    return results([np.asarray(x) for x in result]) if eqn.primitive.multiple_results else np.asarray(result)


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
        return array_of(out, x.shape)

    return rule


def _truth(f: Callable, arity: int) -> Callable:
    """A rule whose results are True, False or None."""
    ufunc = np.frompyfunc(f, arity, 1)
    return lambda *values: decided(ufunc(*values))


def _select(eqn: Any) -> Callable:
    floats = is_float(eqn.outvars[0])

    def rule(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
        if which.dtype != object:
            if len(cases) == 2:
                out = np.where(which, cases[1], cases[0])
            else:
                shape = np.broadcast_shapes(which.shape, *(c.shape for c in cases))
                stacked = np.stack([np.broadcast_to(c, shape) for c in cases])
                index = np.broadcast_to(which, shape)[None].astype(int)
                out = np.take_along_axis(stacked, index, axis=0)[0]
            return out if floats or out.dtype != object else decided(out)

        def pick(i: Any, *options: Any) -> Any:
            return functools.reduce(hull, options) if i is None else options[int(i)]

        joins.append("select_n")
        out = np.asarray(np.frompyfunc(pick, 1 + len(cases), 1)(which, *cases), dtype=object)
        return out if floats else decided(out)

    return rule


def _convert(eqn: Any) -> Callable:
    target = np.dtype(eqn.outvars[0].aval.dtype)
    from_bool, to_bool = eqn.invars[0].aval.dtype.kind == "b", target.kind == "b"
    if not is_float(eqn.invars[0]) and not is_float(eqn.outvars[0]):

        def between(x: np.ndarray) -> np.ndarray:
            if x.dtype != object:
                return x.astype(target)
            change = bool if to_bool else int
            return np.asarray(np.frompyfunc(lambda y: None if y is None else change(y), 1, 1)(x), dtype=object)

        return between
    if is_float(eqn.invars[0]) and is_float(eqn.outvars[0]):
        return lambda x: x
    if is_float(eqn.outvars[0]):
        if from_bool:
            return _each(from_truth, 1)

        def from_integers(x: np.ndarray) -> np.ndarray:
            _require_decided("convert_element_type", x)
            return array_of([arb(y) for y in x.ravel().tolist()], x.shape)

        return from_integers
    return _truth(to_truth if to_bool else to_integer, 1)


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
            return decided(out) if truth else out

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
            positions = [index(list(row)) for row in rows.reshape(-1, rows.shape[-1])]
            if None in positions:
                raise Undecided(f"function: expected a decided index from the primitive {name}, got overlapping balls")
            return np.array(positions, dtype=eqn.outvars[0].aval.dtype).reshape(rows.shape[:-1])

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
        return array_of([z for product in out for row in product for z in row], shape)

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
                value = ZERO
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
        fill = arb("nan" if fill is None else float(fill)) if is_float(eqn.outvars[0]) else None
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
                put = jax.vmap(lambda update: lax.scatter_add(zeros, jnp.asarray(indices), update, numbers, mode=mode))
                hits = np.asarray(put(ones)).reshape(updates.size, -1)
            out = x.astype(object).ravel()
            for value, hit in zip(updates.ravel(), hits, strict=True):
                for position in np.flatnonzero(hit):
                    out[position] = combine(out[position], value)
            whole = out.reshape(x.shape)
            return whole if is_float(eqn.outvars[0]) else decided(whole)

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
            under, over = (less(x, y), less(y, x)) if isinstance(x, arb) else (x < y, y < x)
            if under or over:
                return -1 if under else 1
            if under is None or over is None:
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
                values[k] = array_of([entry[i] for entry in row], (length,))
            out.append(np.moveaxis(values.reshape(shape), -1, axis))
        return results(out)

    return rule


def _iota(eqn: Any) -> Callable:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    along_axis = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    values = exact(np.broadcast_to(along_axis, shape).astype(eqn.outvars[0].aval.dtype))
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

    return lambda x: results(np.split(x, cuts, axis))


def _polynomial(eqn: Any) -> Callable:
    """Horner's rule, from JAX 0.12 on a primitive of its own: of x and the coefficients from the lowest degree up."""
    del eqn

    def rule(x: np.ndarray, *coefficients: np.ndarray) -> np.ndarray:
        value: Any = coefficients[-1]
        for coefficient in reversed(coefficients[:-1]):
            value = np.asarray(np.asarray(value * x, dtype=object) + coefficient, dtype=object)
        return np.broadcast_to(value, np.broadcast_shapes(x.shape, *(c.shape for c in coefficients)))

    return rule


def _integer_pow(eqn: Any) -> Callable:
    exponent = eqn.params["y"]
    return _dear(lambda a: power(a, exponent))


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
    return lambda x: results([np.asarray(row, dtype=x.dtype) for row in np.moveaxis(x, axis, 0)])


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
    "optimization_barrier": _always(lambda *values: results(values)),
}
"""Operations that do the same to balls, integers and booleans."""

_ELEMENTWISE = {
    **{name: _truth(f, arity) for name, (f, arity) in TRUTHS.items()},
    "gt": _swapped(_truth(*TRUTHS["lt"])),
    "ge": _swapped(_truth(*TRUTHS["le"])),
    **{name: _each(f, arity) for name, (f, arity) in CHEAP.items()},
    **{name: _dear(f) for name, f in DEAR.items()},
}

_RULES: dict[str, Callable] = {
    **_SHAPES,
    **{name: _always(rule) for name, rule in _ELEMENTWISE.items()},
    "add": _native(np.add),
    "add_any": _native(np.add),
    "mul": _native(np.multiply),
    "div": _native(np.true_divide),
    "neg": _native(np.negative),
    "integer_pow": _integer_pow,
    "polynomial": _polynomial,
    "reduce_sum": _reduction(np.add, ZERO),
    "reduce_prod": _reduction(np.multiply, ONE),
    "reduce_max": _reduction(maximum, -INF),
    "reduce_min": _reduction(minimum, INF),
    "reduce_and": _reduction(TRUTHS["and"][0], True, truth=True),
    "reduce_or": _reduction(TRUTHS["or"][0], False, truth=True),
    "cumsum": _cumulative(np.add),
    "cumprod": _cumulative(np.multiply),
    "cummax": _cumulative(maximum),
    "cummin": _cumulative(minimum),
    "argmax": _arg_extreme(lambda a, b: less(b, a)),
    "argmin": _arg_extreme(less),
    "dot_general": _dot_general,
    "sort": _sort,
    "scatter": _scatter(lambda old, new: new),
    "scatter-add": _scatter(lambda old, new: old + new),
    "scatter-mul": _scatter(lambda old, new: old * new),
    "scatter-min": _scatter(minimum),
    "scatter-max": _scatter(maximum),
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

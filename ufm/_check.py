"""Checks at the boundary: one way to refuse an argument, by name, before anything is computed.

`checked` reads what an argument has to be off its annotation: numbers where the annotation has numbers, an array of so many
axes, a class of the project. What a number or an array means (a range, a shape that another argument gives) is asked by the
function itself, with `require` and the helpers around it.
"""

import functools
import inspect
import numbers
import operator
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

F = TypeVar("F", bound=Callable)


def require(condition: bool | np.bool_, argument: str, expected: str, got: object) -> None:
    """Raise ``ValueError("argument: expected ..., got ...")`` unless `condition` holds."""
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def shown(value: object) -> str:
    """A value in a message: short, strings in quotes, arrays by their shape."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim > 0:
        return f"an array of {value.dtype} of shape {value.shape}"
    text = str(value) if isinstance(value, numbers.Number | np.ndarray | np.generic | jax.Array) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def real_numbers(argument: str, value: Any, expected: str = "real numbers") -> np.ndarray:
    """`value` as a NumPy array of integers or floats; refuses text, truth values, None, complex numbers, ragged lists."""
    try:
        array = np.asarray(value)
        if array.dtype == object and all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in array.flat):
            array = array.astype(float)  # fractions, integers of more than 64 bits
    except (ValueError, TypeError, OverflowError, RuntimeError):  # ragged lists, keys, 10**400, tensors with gradients
        array = np.asarray(None)
    # JAX knows of the types that NumPy does not, such as bfloat16.
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    require(real and not _truth_among(value), argument, expected, shown(value))
    return array


def finite(argument: str, value: Any) -> np.ndarray:
    """`value` as a NumPy float array; refuses NaN and infinities and says where the first one is."""
    array = real_numbers(argument, value).astype(float)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = f" at index {tuple(int(i) for i in bad[0])}" if array.ndim else ""
        require(False, argument, "finite numbers", f"{array[tuple(bad[0])]}{where}")
    return array


def finite_number(
    argument: str, value: Any, expected: str = "a finite number", fits: Callable[[float], bool] = lambda x: True
) -> float:
    """`value` as a float: one real number, finite, for which `fits` is true."""
    array = real_numbers(argument, value, expected)
    require(array.ndim == 0, argument, expected, shown(array))
    number = float(array)
    require(bool(np.isfinite(number)) and fits(number), argument, expected, shown(value))
    return number


def whole_number(argument: str, value: Any, expected: str, least: float = -np.inf, most: float = np.inf) -> int:
    """`value` as an integer from `least` to `most`; refuses floats and truth values."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    whole = number is not None and not isinstance(value, bool)
    require(whole and least <= operator.index(value) <= most, argument, expected, shown(value))
    return operator.index(value)


def random_key(argument: str, value: Any) -> jax.Array:
    """`value`, if it is one `jax.random.key` (or one of the older form, two numbers of type uint32)."""
    array = isinstance(value, jax.Array)
    new = array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ()
    old = array and value.dtype == jnp.uint32 and value.ndim == 1
    require(new or old, argument, "one jax.random.key", shown(value))
    return value


def float_type(argument: str, value: Any) -> np.dtype:
    """`value` as the type of floating-point numbers that it names."""
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = np.dtype(object)
    require(jnp.issubdtype(dtype, jnp.floating), argument, "a type of floating-point numbers", shown(value))
    return dtype


def indices(argument: str, value: Sequence[int] | np.ndarray, limit: int, *, of: str) -> np.ndarray:
    """`value` as a one-dimensional array of distinct integers in [0, limit), not empty."""
    array = real_numbers(argument, value, f"integers (indices of {of})")
    require(array.ndim == 1 and array.size > 0, argument, f"a non-empty list of {of}", shown(value))
    require(np.issubdtype(array.dtype, np.integer), argument, f"integers (indices of {of})", array.dtype)
    outside = array[(array < 0) | (array >= limit)]
    require(outside.size == 0, argument, f"{of} between 0 and {limit - 1}", outside.tolist())
    unique, counts = np.unique(array, return_counts=True)
    require(unique.size == array.size, argument, f"distinct {of}", f"{unique[counts > 1].tolist()} more than once")
    return array


# --- by annotation ---------------------------------------------------------------------------------------------------


def checked(function: F) -> F:
    """Refuse, by name, arguments that are not what their annotations say; what it cannot read it lets through.

    =============================  ==================================================================================
    annotation                     what is asked of an argument
    =============================  ==================================================================================
    ``int``, ``float``, ``bool``   a whole number, a finite number, a truth value
    ``Float[Array, "n d"]``        real numbers without NaN in two axes; ``Int``, ``Bool`` in kind; lists are made arrays
    ``np.ndarray``                 real numbers
    ``Sequence[int]``              whole numbers; ``float`` and ``str`` in kind
    ``jax.Array``                  a random key
    ``Callable``                   what can be called
    a class or protocol            an instance
    =============================  ==================================================================================

    ``X | None`` takes None too. Values that JAX traces are asked for their axes and type and for nothing else.
    """
    signature = inspect.signature(inspect.unwrap(function))
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = {name: one.annotation for name, one in signature.parameters.items() if one.kind not in several}
    checks = {name: check for name, annotation in single.items() if (check := _check_of(annotation))}

    @functools.wraps(function)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in checks:
                bound.arguments[name] = checks[name](name, value)
        return function(*bound.args, **bound.kwargs)

    return refusing  # type: ignore[return-value]


Check = Callable[[str, Any], Any]
"""From the name of an argument and its value to the value, or one that stands for it."""

MOST_READ = 2**20
"""Arrays of more numbers are not searched for NaN: they may be the weights of a language model, on a device."""


def _check_of(annotation: Any) -> Check | None:
    """What an annotation asks for; None where it asks for nothing that is known here."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if type(None) in parts:
        inner = _check_of_parts([part for part in parts if part is not type(None)])
        return inner and (lambda name, value: None if value is None else inner(name, value))
    return _check_of_parts(list(parts))


def _check_of_parts(parts: list[Any]) -> Check | None:
    for part in parts:
        if inspect.isclass(part) and issubclass(part, AbstractArray):
            return functools.partial(_shaped, part)
    plain = {bool: _truth, int: _whole, float: _number, jax.Array: random_key}
    if len(parts) == 1 and parts[0] in plain:
        return plain[parts[0]]
    for part in parts:
        if get_origin(part) in (Sequence, Iterable, list, tuple) and get_args(part)[:1] in ((int,), (float,), (str,)):
            return functools.partial(_listed, get_args(part)[0])
    if parts == [np.ndarray]:
        return real_numbers
    if len(parts) == 1 and (parts[0] is Callable or get_origin(parts[0]) is Callable):
        return _callable
    if all(inspect.isclass(part) and part not in (object, Any) and not get_args(part) for part in parts):
        return functools.partial(_instance, tuple(parts))
    return None


def _truth(name: str, value: Any) -> Any:
    require(isinstance(value, bool | np.bool_), name, "True or False", shown(value))
    return value


def _whole(name: str, value: Any) -> Any:
    return value if isinstance(value, jax.core.Tracer) else whole_number(name, value, "a whole number")


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, jax.core.Tracer):
        finite_number(name, value)
    return value


def _callable(name: str, value: Any) -> Any:
    require(callable(value), name, "a function", shown(value))
    return value


def _instance(kinds: tuple[type, ...], name: str, value: Any) -> Any:
    words = " or ".join(f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}" for kind in kinds)
    if not isinstance(value, kinds):
        require(False, name, words, shown(value) if isinstance(value, str | numbers.Number) else type(value).__name__)
    return value


def _listed(kind: type, name: str, value: Any) -> Any:
    words = {int: "whole numbers", float: "real numbers", str: "texts"}[kind]
    if kind is str:
        # A text is a sequence of texts to Python, and a mistake here.
        good = isinstance(value, Iterable) and not isinstance(value, str) and all(isinstance(x, str) for x in value)
        require(good, name, f"a list of {words}", shown(value))
        return value
    array = real_numbers(name, value, f"a list of {words}")
    require(array.ndim > 0, name, f"a list of {words}", shown(value))
    if kind is int:
        require(array.size == 0 or np.issubdtype(array.dtype, np.integer), name, f"a list of {words}", shown(value))
    return value


def _shaped(annotation: Any, name: str, value: Any) -> Any:
    """An array of the kind and the number of axes that a jaxtyping annotation has."""
    known = {"Float": "real numbers", "Int": "whole numbers", "Bool": "truth values"}
    words = known.get(annotation.__name__.partition("[")[0], "numbers")
    axes = annotation.dim_str.split()
    if not axes and not hasattr(value, "dtype"):
        return _number(name, value)  # left as it is: a Python number takes on the type of what it meets
    any_axes = any(axis.startswith(("*", "#*", "...")) or "*" in axis for axis in axes)
    wanted = f"an array [{', '.join(axes)}] of {words}" if axes else f"one of {words}"
    array = value
    if not isinstance(value, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct):
        array = np.asarray(value) if words == "truth values" else real_numbers(name, value, wanted)
    fits = any_axes or len(array.shape) == len(axes)
    require(fits, name, wanted, f"shape {tuple(array.shape)}" if hasattr(value, "shape") else shown(value))
    if words == "whole numbers" and array.size == 0:
        array = array.astype(int)
    kinds = {"truth values": (jnp.bool_,), "whole numbers": (jnp.integer,)}.get(words, (jnp.floating, jnp.integer))
    require(any(jnp.issubdtype(array.dtype, kind) for kind in kinds), name, wanted, shown(value))
    concrete = not isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct)
    if concrete and jnp.issubdtype(array.dtype, jnp.floating) and array.size <= MOST_READ:
        if not axes:
            finite_number(name, array)
        bad = np.argwhere(np.isnan(np.asarray(array)))
        require(len(bad) == 0, name, wanted, f"NaN at index {tuple(bad[0].tolist()) if len(bad) else ()}")
    return array


def _truth_among(value: Any) -> bool:
    """Whether a list of numbers has truth values in it, which NumPy would take for 0 and 1."""
    if isinstance(value, list | tuple):
        return any(map(_truth_among, value))
    return isinstance(value, bool | np.bool_)

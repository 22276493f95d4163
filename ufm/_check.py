"""Checks at the boundary: one way to refuse an argument, by name, before anything is computed.

`typed` reads what an argument has to be off its annotation: numbers where the annotation has numbers, an array of so many
axes, a class of the project. What a number or an array means (a range, a shape that another argument gives) is asked by the
function itself, with `require` and the helpers around it.
"""

import functools
import inspect
import numbers
import operator
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
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
    text = str(value) if isinstance(value, numbers.Number | np.ndarray | np.generic | jax.Array) else _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_SHORT = reprlib.Repr()
"""Reads no more of a long list than is shown: messages are often made before it is known whether they are needed."""
for _kind in ("list", "tuple", "set", "frozenset", "dict", "deque", "array"):
    setattr(_SHORT, f"max{_kind}", 20)
for _kind in ("string", "long", "other"):
    setattr(_SHORT, f"max{_kind}", 200)


def real_numbers(argument: str, value: Any, expected: str = "real numbers") -> np.ndarray:
    """`value` as a NumPy array of integers or floats; refuses text, truth values, None, complex numbers, ragged lists.

    Tensors of torch are numbers too, of any type, with a gradient or without, on any device; and so are lists of them.
    """
    require(not np.ma.is_masked(value), argument, f"{expected}, all of them", "an array with some masked")
    try:
        value = _detached(value)
        array = np.asarray(value)
        if array.dtype == object and all(
            isinstance(x, numbers.Real | Decimal) and not isinstance(x, bool) for x in array.flat
        ):
            array = array.astype(float)  # fractions, decimals, integers of more than 64 bits
    except (ValueError, TypeError, OverflowError, RuntimeError):  # ragged lists, keys, 10**400
        array = np.asarray(None)
    # JAX knows of the types that NumPy does not, such as bfloat16.
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    require(real and not _truth_among(value), argument, expected, shown(value))
    return as_jax_takes_it(array)


def as_jax_takes_it(array: Any) -> Any:
    """An array of NumPy in this machine's order of bytes, in floats of 64 bits at most; anything else as it is.

    A program that is compiled already reads the bytes of other orders as if they were its own.
    """
    if not isinstance(array, np.ndarray | np.generic) or array.dtype == object:
        return array
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(float)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _detached(value: Any) -> Any:
    """A tensor of torch as something that NumPy takes: it takes none with a gradient, on another device or of bfloat16."""
    if isinstance(value, list | tuple):
        return [*map(_detached, value)] if any(hasattr(kind, "detach") for kind in set(map(type, value))) else value
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return np.asarray(value.float() if "bfloat16" in str(value.dtype) else value)


def finite(argument: str, value: Any) -> np.ndarray:
    """`value` as a NumPy float array; refuses NaN and infinities and says where the first one is."""
    array = real_numbers(argument, value).astype(float)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = f" at index {tuple(int(i) for i in bad[0])}" if array.ndim else ""
        require(False, argument, "finite numbers", f"{array[tuple(bad[0])]}{where}")
    return array


def held(argument: str, value: Any) -> None:
    """Refuse numbers that the floats of this mode of JAX do not hold: not finite, beyond them, or all lost below them.

    Raises:
        ValueError: such numbers.
    """
    floats = jnp.finfo(jnp.result_type(float))
    largest = np.max(np.abs(finite(argument, value)), initial=0)
    require(largest <= floats.max, argument, f"numbers that {floats.dtype} holds, up to {floats.max:.3g}", f"{largest:.3g}")
    lost = np.ndim(value) > 0 and 0 < largest < floats.tiny
    require(not lost, argument, f"numbers that {floats.dtype} holds, from {floats.tiny:.3g} on", f"{largest:.3g} at most")


def finite_number(
    argument: str, value: Any, expected: str = "a finite number", fits: Callable[[float], bool] = lambda x: True
) -> float:
    """`value` as a float: one real number, finite, for which `fits` is true.

    Args:
        argument: the name of the argument.
        value: a number, or an array of no axes.
        expected: what it has to be, in words.
        fits: whether a number is in the range that the words name.

    Raises:
        ValueError: anything else.
    """
    array = real_numbers(argument, value, expected)
    require(array.ndim == 0, argument, expected, shown(array))
    number = float(array)
    require(bool(np.isfinite(number)) and fits(number), argument, expected, shown(value))
    return number


def within_32_bits(*numbers: Any) -> bool:
    """Whether whole numbers, or arrays of them, fit into 32 bits, to which JAX cuts them off."""
    extremes = [int(extreme) for array in map(np.asarray, numbers) if array.size for extreme in (array.min(), array.max())]
    return all(abs(extreme) < 2**31 for extreme in extremes)


def known_names(argument: str, values: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse names that are not among those that are known, and say which.

    Raises:
        ValueError: such a name.
    """
    names = list(known)
    strangers = [value for value in values if value not in names]
    require(not strangers, argument, f"some of {', '.join(names)}", ", ".join(map(str, strangers)))


def whole_number(argument: str, value: Any, least: int | None = None) -> int:
    """`value` as an integer of at least `least`; refuses floats, truth values, and what does not fit into 64 bits.

    Args:
        argument: the name of the argument.
        value: an integer of Python, NumPy, JAX or torch.
        least: the smallest that will do, if there is one.

    Raises:
        ValueError: anything else.
    """
    try:
        number = operator.index(value)
        fits = not isinstance(value, bool) and abs(number) < 2**63 and (least is None or number >= least)
    except TypeError:
        number, fits = 0, False
    large = isinstance(number, int) and number >= 2**63
    words = "a whole number" if least is None else f"a whole number of at least {least}"
    require(fits, argument, f"{words} below 2**63" if large else words, shown(value))
    return number


def random_seed(argument: str, value: Any) -> int:
    """`value` as a number that a random key can be made of: another of those that fits into 32 bits gives another key.

    Raises:
        ValueError: anything else.
    """
    number = whole_number(argument, value, 0)
    require(number < 2**32, argument, "a whole number from 0 to 4294967295", number)
    return number


def in_range(argument: str, value: Any, expected: str, fits: Callable[[Any], Any]) -> None:
    """Refuse a number for which `fits` is false; one that JAX traces is let through.

    Raises:
        ValueError: another number.
    """
    if not isinstance(value, jax.core.Tracer):
        require(bool(fits(value)), argument, expected, shown(value))


def part_of_the_tokens(argument: str, members: Any) -> None:
    """Refuse sets of tokens, flags ``[..., V]``, of which one is empty or everything; what JAX traces is let through.

    Raises:
        ValueError: such a set.
    """
    if isinstance(members, jax.core.Tracer):
        return
    flags = np.asarray(members)
    require(flags.ndim > 0, argument, "truth values in an axis of tokens", shown(members))
    v, counts = flags.shape[-1], flags.sum(axis=-1)
    wrong = counts[(counts == 0) | (counts == v)]
    require(not wrong.size, argument, f"between 1 and {v - 1} of {v} tokens", "all" if wrong.any() else "none")


def random_key(argument: str, value: Any) -> jax.Array:
    """`value`, if it is one `jax.random.key` (or one of the older form, two numbers of type uint32).

    Raises:
        ValueError: anything else.
    """
    array = isinstance(value, jax.Array)
    new = array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ()
    old = array and value.dtype == jnp.uint32 and value.ndim == 1
    require(new or old, argument, "one jax.random.key", shown(value))
    return value


def text(argument: str, value: Any) -> str:
    """`value` as text that can be encoded.

    Raises:
        ValueError: something else, or half of a character that UTF-16 has in two (a lone surrogate).
    """
    require(isinstance(value, str), argument, "text", shown(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"the lone surrogate {value[error.start]!a} in place {error.start}"
        raise ValueError(f"{argument}: expected text that UTF-8 can hold, got {half}") from error
    return str(value)


def float_type(argument: str, value: Any, among: Sequence[str] = ()) -> np.dtype:
    """`value` as the type of floating-point numbers that it names.

    Args:
        argument: the name of the argument.
        value: a name, or a type of NumPy, JAX or torch.
        among: the names of those that will do; all if left out.

    Raises:
        ValueError: a type of other numbers, another type, or the name of no type.
    """
    try:
        dtype = jnp.dtype(str(value).removeprefix("torch.") if str(value).startswith("torch.") else value)
        got = dtype.name
    except (TypeError, ValueError):
        dtype, got = np.dtype(object), shown(value)
    fits = jnp.issubdtype(dtype, jnp.floating) and (not among or dtype.name in among)
    require(fits, argument, f"one of {', '.join(among)}" if among else "a type of floating-point numbers", got)
    return dtype


def indices(argument: str, value: Sequence[int] | np.ndarray, limit: int, *, of: str) -> np.ndarray:
    """`value` as a one-dimensional array of distinct integers in [0, limit), not empty.

    Args:
        argument: the name of the argument.
        value: the indices.
        limit: how many there are to choose from.
        of: what they are indices of, in words.

    Raises:
        ValueError: anything else.
    """
    array = real_numbers(argument, value, f"integers (indices of {of})")
    require(array.ndim == 1 and array.size > 0, argument, f"a non-empty list of {of}", shown(value))
    require(np.issubdtype(array.dtype, np.integer), argument, f"integers (indices of {of})", array.dtype)
    outside = array[(array < 0) | (array >= limit)]
    require(outside.size == 0, argument, f"{of} between 0 and {limit - 1}", outside.tolist())
    unique, counts = np.unique(array, return_counts=True)
    require(unique.size == array.size, argument, f"distinct {of}", f"{unique[counts > 1].tolist()} more than once")
    return array


# --- by annotation ---------------------------------------------------------------------------------------------------


def typed(function: F) -> F:
    """Refuse, by name, arguments that are not what their annotations say; what it cannot read it lets through.

    =============================  ==================================================================================
    annotation                     what is asked of an argument
    =============================  ==================================================================================
    ``int``, ``float``, ``bool``   a whole number, a finite number, a truth value
    ``Float[Array, "n d"]``        real numbers without NaN in two axes, whole ones as floats; ``Int``, ``Bool`` in kind;
                                   lists become arrays
    ``np.ndarray``                 real numbers
    ``Sequence[int]``              whole numbers; ``float`` in kind; of anything else, a list of what is asked for
    ``DTypeLike``                  a type of floating-point numbers
    ``jax.Array``                  a random key
    ``Callable``                   what can be called
    a class or protocol            an instance
    =============================  ==================================================================================

    ``X | None`` takes None too. Axes of one letter have the same size in all arguments; those of tokens and of widths, V and
    d, are not empty. What JAX traces is asked for its axes and its type and for nothing else.
    """
    signature = inspect.signature(inspect.unwrap(function))
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = {
        name: parameter.annotation for name, parameter in signature.parameters.items() if parameter.kind not in several
    }
    checks = {name: check for name, annotation in single.items() if (check := _check_of(annotation))}

    letters = {name: axes for name in checks if (axes := _letters(single[name]))}

    @functools.wraps(function)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        sizes: dict[str, tuple[int, str]] = {}
        for name, check in checks.items():
            if name in bound.arguments:
                bound.arguments[name] = value = check(name, bound.arguments[name])
                if name in letters and value is not None:
                    _compare_sizes(sizes, letters[name], name, value)
        return function(*bound.args, **bound.kwargs)

    return refusing  # type: ignore[return-value]


def _letters(annotation: Any) -> list[str]:
    """The letters of the axes of an array; none if the annotation has several or no arrays."""
    parts = [annotation] if inspect.isclass(annotation) else get_args(annotation)
    arrays = [part for part in parts if inspect.isclass(part) and issubclass(part, AbstractArray)]
    return arrays[0].dim_str.split() if len(arrays) == 1 else []


def _compare_sizes(sizes: dict[str, tuple[int, str]], letters: list[str], name: str, value: Any) -> None:
    """Axes of one letter have one size, in whichever argument they are; axes before and after "*n" count from the ends."""
    shape = np.shape(value)
    many = next((k for k, letter in enumerate(letters) if "*" in letter or "..." in letter), len(letters))
    pairs = [*zip(letters[:many], shape, strict=False), *zip(letters[:many:-1], shape[::-1], strict=False)]
    for letter, size in pairs:
        filled = size > 0 or letter not in NEVER_EMPTY
        require(filled, name, f"at least one number in its axis {letter}", f"shape {tuple(shape)}")
        if letter.isidentifier() and not letter.startswith("_"):
            wanted, whose = sizes.setdefault(letter, (size, name))
            require(size == wanted, name, f"an axis {letter} of {wanted}, as {whose} has", f"shape {tuple(shape)}")


Check = Callable[[str, Any], Any]
"""A function from an argument's name and value to the value, or one that stands for it."""

NEVER_EMPTY = ("V", "d")
"""The axes of tokens and of a hidden state: there is no model without them, though a batch of none is one."""

MOST_READ = 2**20
"""Arrays of more numbers are not searched for NaN: they may be the weights of a language model, on a device."""


def _check_of(annotation: Any) -> Check | None:
    """The check that an annotation asks for; None where it asks for nothing that is known here."""
    parts = list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    needed = [part for part in parts if part is not type(None)]
    check = _check_of_parts(needed)
    return functools.partial(_optional, check) if check and len(needed) < len(parts) else check


def _check_of_parts(parts: list[Any]) -> Check | None:
    if set(get_args(DTypeLike)) <= set(parts):
        return float_type
    for part in parts:
        if inspect.isclass(part) and issubclass(part, AbstractArray):
            return functools.partial(_shaped, part, part.array_type is jax.Array and np.ndarray not in parts)
    plain = {bool: _truth, int: _whole, float: _number, jax.Array: random_key, np.ndarray: real_numbers}
    if len(parts) == 1 and parts[0] in plain:
        return plain[parts[0]]
    origins = [get_origin(part) for part in parts]
    if origins == [Callable]:
        return _callable
    classes = tuple(
        part
        for part in parts
        if inspect.isclass(part) and part not in (object, Any, inspect.Parameter.empty) and not get_args(part)
    )
    for part, origin in zip(parts, origins, strict=True):
        if origin in (Sequence, Iterable, Mapping, dict):
            return functools.partial(_listed, origin, get_args(part)[0], classes)
    return functools.partial(_instance, classes) if len(classes) == len(parts) else None


def _optional(check: Check, name: str, value: Any) -> Any:
    return None if value is None else check(name, value)


def _truth(name: str, value: Any) -> Any:
    require(isinstance(value, bool | np.bool_), name, "True or False", shown(value))
    return value


def _whole(name: str, value: Any) -> Any:
    return value if isinstance(value, jax.core.Tracer) else whole_number(name, value)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, jax.core.Tracer):
        return value
    number = finite_number(name, value)
    # Small whole numbers are shown as they came; fractions and large ones are for floats alone.
    small = isinstance(value, int) and within_32_bits(value)
    known = isinstance(value, jax.Array | np.ndarray | np.generic) and value.dtype != object
    return as_jax_takes_it(value) if small or known else number


def _callable(name: str, value: Any) -> Any:
    require(callable(value), name, "a function", shown(value))
    return value


def _instance(kinds: tuple[type, ...], name: str, value: Any) -> Any:
    words = " or ".join(f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}" for kind in kinds)
    if not isinstance(value, kinds):
        require(False, name, words, shown(value) if isinstance(value, str | numbers.Number) else type(value).__name__)
    return value


def _listed(origin: type, part: Any, classes: tuple[type, ...], name: str, value: Any) -> Any:
    """A sequence, an iterable or a mapping, or one of the classes that may stand for it."""
    value = _detached(value)
    if isinstance(value, tuple(kind for kind in classes if kind is not np.ndarray)):
        return value
    if part in (int, float) and origin is Sequence:
        words = f"a list of {'whole' if part is int else 'real'} numbers"
        array = real_numbers(name, value, words)
        if array.ndim != 1 or not (part is float or array.size == 0 or np.issubdtype(array.dtype, np.integer)):
            require(False, name, words, shown(value))
        return value
    words = "a mapping" if origin in (Mapping, dict) else "a list"
    # A text is a sequence of texts to Python, and a mistake here.
    kind = Iterable if origin is Sequence and isinstance(value, np.ndarray) else origin
    if isinstance(value, str) or not isinstance(value, kind):  # a list of large things takes long to show
        require(False, name, words, shown(value))
    check = _check_of(part) if origin is Sequence else None
    if check is not None:
        for item in value:
            check(name, item)
    return value


def _shaped(annotation: Any, of_jax: bool, name: str, value: Any) -> Any:
    """An array of the kind and the number of axes that a jaxtyping annotation has; one of JAX, if nothing else will do."""
    axes, kind = annotation.dim_str.split(), annotation.__name__.partition("[")[0]
    words, types_of = _KINDS.get(kind, _KINDS["Float"])
    wanted = f"an array [{', '.join(axes)}] of {words}" if axes else f"one of {words}"
    array = as_jax_takes_it(value)
    made = isinstance(value, np.ndarray | np.generic) and value.dtype != object
    if not made and not isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        array = real_numbers(name, value, wanted) if kind != "Bool" else _truths(name, value, wanted)
        if words == "whole numbers" and array.size == 0:
            array = array.astype(int)
    any_axes = any("*" in axis or "..." in axis for axis in axes)
    fits = any_axes or len(array.shape) == len(axes)
    require(fits, name, wanted, f"shape {tuple(array.shape)}" if hasattr(value, "shape") else shown(value))
    require(any(jnp.issubdtype(array.dtype, dtype) for dtype in types_of), name, wanted, shown(value))
    traced = isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct)
    if not traced and jnp.issubdtype(array.dtype, jnp.floating) and array.size <= MOST_READ:
        bad = np.argwhere(np.isnan(np.asarray(array)))
        require(len(bad) == 0, name, wanted, f"NaN at index {tuple(bad[0].tolist()) if len(bad) else ()}")
        require(bool(axes) or bool(np.isfinite(np.asarray(array))), name, "a finite number", shown(value))
    if kind == "Int" and isinstance(array, np.ndarray | np.generic) and array.size > 0:
        # JAX would keep the last bits of larger ones, and take one index for another.
        most = np.iinfo(jnp.zeros((), int).dtype).max
        furthest = max(int(array.max()), int(array.min()), key=abs)
        require(abs(furthest) <= most, name, f"{wanted}, up to {most}", furthest)
    if isinstance(value, int | float):
        # A Python number takes on the type of what it meets.
        return float(value) if kind == "Float" else value
    if kind == "Float" and jnp.issubdtype(array.dtype, jnp.integer) and not isinstance(array, jax.ShapeDtypeStruct):
        array = array.astype(float)
    return jnp.asarray(array) if of_jax and isinstance(array, np.ndarray) else array


_KINDS = {
    "Float": ("real numbers", (jnp.floating, jnp.integer)),
    "Int": ("whole numbers", (jnp.integer,)),
    "Bool": ("truth values", (jnp.bool_,)),
}
"""Kinds of arrays: in words, and by their types."""


def _truths(name: str, value: Any, wanted: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        require(False, name, wanted, shown(value))
        raise


def _truth_among(value: Any) -> bool:
    """Whether a list of numbers has truth values in it, which NumPy would take for 0 and 1."""
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))
        return bool(kinds & {bool, np.bool_}) or (bool(kinds & {list, tuple}) and any(map(_truth_among, value)))
    return isinstance(value, bool | np.bool_)

"""What people pass in: numbers of other libraries, whole numbers, texts: in the types that are worked with, or refused."""

import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._check import finite, require


def as_numpy(argument: str, value: Any) -> np.ndarray:
    """Numbers as an array of NumPy.

    Args:
        argument: what the value is called in an error.
        value: a number, a list, an array of NumPy or JAX, or a tensor of torch: of any type, with or without a gradient, on
            any device, and a list of such.

    Raises:
        ValueError: something else, such as text or rows of different lengths.
    """
    try:
        array = np.asarray(_untied(value))
    except Exception as error:
        raise ValueError(f"{argument}: expected an array of numbers, got {shown(value)} that makes none") from error
    numeric = array.dtype.kind in "iuf" or jnp.issubdtype(array.dtype, np.floating)
    require(numeric, argument, "an array of numbers", shown(value))
    return array


def _untied(value: Any) -> Any:
    """A tensor of torch as something that NumPy takes: it takes none with a gradient, on another device or of bfloat16."""
    if isinstance(value, list | tuple):
        return [_untied(one) for one in value] if any(hasattr(one, "detach") for one in value) else value
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return np.asarray(value.float() if "bfloat16" in str(value.dtype) else value)


def numbers(argument: str, value: Any) -> Float[np.ndarray, "..."]:
    """Finite numbers, as an array in float64.

    Raises:
        ValueError: as `as_numpy`; NaN or infinity.
    """
    return finite(argument, as_numpy(argument, value))


def whole(argument: str, value: Any, least: int | None = None) -> int:
    """A whole number, of whatever type it is.

    Raises:
        ValueError: something else, or a number below `least`.
    """
    expected = "a whole number" if least is None else f"a whole number of at least {least}"
    try:
        number = operator.index(value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value)
    except TypeError as error:
        raise ValueError(f"{argument}: expected {expected}, got {shown(value)}") from error
    require(not isinstance(value, bool | np.bool_), argument, expected, shown(value))
    require(least is None or number >= least, argument, expected, number)
    return number


def text(argument: str, value: Any) -> str:
    """Text that can be encoded.

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


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, str | bytes | int | float | bool | None):
        return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:56]}..."
    return f"a {type(value).__name__}"

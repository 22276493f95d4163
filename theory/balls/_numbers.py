"""Balls one by one: how numbers become balls, and what is known of a function, a comparison or a choice of them.

Where flint's own enclosure is loose, or does not say what is certain (the sign of a hull, an even power around 0), the one
here is tighter. A truth value is True, False or None: the balls do not decide it.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import flint
import numpy as np
from flint import arb

from ufm._check import require

Number = int | float | Fraction | arb


class Unsupported(ValueError):  # noqa: N818
    """The function uses an operation that has no rule here, or uses one in a way that has none."""


class Undecided(Unsupported):
    """The balls are too wide for a choice that the function has to make: narrower ones, or more precision, may do."""


def number(value: Number) -> arb:
    """The ball of a number: exact for integers, floats and infinities, as narrow as the precision for fractions."""
    if isinstance(value, Fraction):
        return arb(flint.fmpq(value.numerator, value.denominator))
    return value if isinstance(value, arb) else arb(value if isinstance(value, int) else float(value))


def interval(low: Number, high: Number) -> arb:
    """The smallest ball, up to its rounding, that contains both numbers and all between them."""
    return hull(number(low), number(high))


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

joins: list[str] = []
"""Where branches, or the values of a step function, were joined to their hull; guarded by the lock."""

ZERO, ONE, INF = arb(0), arb(1), arb("inf")


def hull(a: Any, b: Any) -> Any:
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
    low, high = minimum(a.lower(), b.lower()), maximum(a.upper(), b.upper())
    error = arb(0, ((high - low) / 2).upper())
    # The middle has to be exact: a rounding error would be added to the radius, which is then rounded up.
    with working(4096):
        return error + (low + error.rad() if a > 0 else high - error.rad())


def _sub(a: arb, b: arb) -> arb:
    return ZERO if a is b and a.is_finite() else a - b


def maximum(a: arb, b: arb) -> arb:
    """The larger one itself, not a copy, so that a maximum is equal to the entry it is taken from."""
    return a if a is b or a >= b else b if b >= a else a.max(b)


def minimum(a: arb, b: arb) -> arb:
    """The smaller one itself, as for `maximum`."""
    return a if a is b or a <= b else b if b <= a else a.min(b)


def _abs(a: arb) -> arb:
    if a >= 0:
        return a
    # flint's own is [-r, r] for a ball around 0.
    return abs(a) if a < 0 or not a.is_finite() else ZERO.union(a.abs_upper())


def _sign(a: arb) -> arb:
    if a > 0 or a < 0 or a.is_zero():
        return ONE if a > 0 else -ONE if a < 0 else ZERO
    joins.append("sign")
    return arb("nan") if a.is_nan() else arb(0, 1)


def power(a: arb, n: int) -> arb:
    """a**n; flint's own is NaN for balls around 0."""
    if n < 0:
        return 1 / power(a, -n)
    if not a.is_finite():
        return functools.reduce(lambda x, y: x * y, [a] * n, ONE)
    if a.rad() > 2**-20 * abs(a.mid()):
        if n % 2 == 0:
            low, high = a.abs_lower(), a.abs_upper()
        else:
            low, high = a.lower(), a.upper()
        return ONE if n == 0 else _product(low, n).union(_product(high, n))
    return _product(a, n)


def _product(a: arb, n: int) -> arb:
    out, square = None, a
    while n:
        if n & 1:
            out = square if out is None else out * square
        n >>= 1
        if n:
            square = square * square
    return ONE if out is None else out


def _pow(a: arb, b: arb | int) -> arb:
    if isinstance(b, int):
        return power(a, b)
    n = b.unique_fmpz() if b.is_exact() and b.is_finite() else None
    return power(a, int(n)) if n is not None and abs(n) < 2**16 else a**b


def _log(a: arb) -> arb:
    return -INF if a.is_zero() else a.log()


def _log1p(a: arb) -> arb:
    return -INF if a.is_exact() and a == -1 else a.log1p()


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


def less(a: Any, b: Any) -> bool | None:
    """Whether a < b; None if the balls do not decide it."""
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


def to_truth(a: arb) -> bool | None:
    """Whether a number is not 0."""
    return _not(_eq(a, ZERO))


def to_integer(a: arb) -> int | None:
    """An integer, rounded towards 0, if that is one integer for all of the ball."""
    if not a.is_finite():
        return None
    low, high = int(a.lower().fmpq()), int(a.upper().fmpq())
    return low if low == high else None


def from_truth(a: bool | None) -> arb:
    """One or zero; the ball of both for what is undecided."""
    if a is None:
        joins.append("convert_element_type")
        return arb(0.5, 0.5)
    return ONE if a else ZERO


def _floor(a: arb) -> arb:
    if not a.is_finite():
        return a
    low, high = a.lower().floor(), a.upper().floor()
    if low == high:
        return low
    joins.append("floor")
    return low.union(high)


TRUTHS: dict[str, tuple[Callable, int]] = {
    "lt": (less, 2),
    "le": (_le, 2),
    "eq": (_eq, 2),
    "ne": (lambda a, b: _not(_eq(a, b)), 2),
    "and": (_and, 2),
    "or": (_or, 2),
    "not": (_not, 1),
    "xor": (lambda a, b: None if a is None or b is None else bool(a) != bool(b), 2),
    "is_finite": (_is_finite, 1),
}
"""Primitives whose results are truth values: the function of elements, and of how many."""

CHEAP: dict[str, tuple[Callable, int]] = {
    "abs": (_abs, 1),
    "sign": (_sign, 1),
    "square": (lambda a: power(a, 2), 1),
    # From JAX 0.12 on, in derivatives of tanh and of inverse functions.
    "one_minus_square": (lambda a: ONE - power(a, 2), 1),
    "sub": (_sub, 2),
    "max": (maximum, 2),
    "min": (minimum, 2),
    "pow": (_pow, 2),
    "clamp": (lambda low, x, high: minimum(maximum(x, low), high), 3),
}
"""Primitives that take no longer than a look-up of the number would: the function of balls, and of how many."""

DEAR: dict[str, Callable] = {
    "exp": arb.exp,
    "exp2": _exp2,
    "log": _log,
    "log1p": _log1p,
    "expm1": arb.expm1,
    "tanh": _increasing(arb.tanh),
    "logistic": _increasing(_logistic),
    "sqrt": arb.sqrt,
    "rsqrt": arb.rsqrt,
    "sin": arb.sin,
    "cos": arb.cos,
    "tan": arb.tan,
    "asin": arb.asin,
    "acos": arb.acos,
    "atan": _increasing(arb.atan),
    "sinh": _increasing(arb.sinh),
    "cosh": arb.cosh,
    "asinh": _increasing(arb.asinh),
    "acosh": arb.acosh,
    "atanh": arb.atanh,
    "erf": _increasing(arb.erf),
    "erfc": arb.erfc,
    "erf_inv": arb.erfinv,
    "lgamma": arb.lgamma,
    "digamma": arb.digamma,
    "floor": _floor,
    "ceil": lambda a: -_floor(-a),
}
"""Primitives of one ball that are worth being computed once for each different number."""

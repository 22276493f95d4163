"""Taylor series in the strength at 0, to any order: derived in SymPy, and compiled for JAX from what was derived.

Steering tilts a distribution p over tokens by log-odds M (S, lemma B.3). Everything follows from the power series of the
partition function, ``Z(alpha) = sum_z p(z) e^{alpha M(z)} = sum_k mu_k alpha^k / k!`` with raw moments
``mu_k = sum_z p(z) M(z)^k``. The cumulants kappa_k are those of its logarithm, ``A(alpha) = sum_k kappa_k alpha^k / k!``.
Logarithms, exponentials and quotients of truncated series, with rational coefficients, do the rest.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jaxtyping import Array, Bool, Float
from sympy import QQ, Expr, Indexed, IndexedBase, Mul, Sum, Symbol, factorial
from sympy.polys.rings import PolyElement, ring
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.printer import Printer
from sympy.printing.str import StrPrinter

from theory import tilting
from ufm._check import finite, part_of_the_tokens, require, typed
from ufm.precision import full

MAX_ORDER = 12
"""The highest power of alpha that `taylor` goes to.

A coefficient has about as many terms as its power has partitions: 22 for 8, 77 for 12, 231 for 16. To derive, print and
compile "probability", the dearest quantity, takes about 1.5 s of a slow core and 85 MiB at order 8, 5 s and 120 MiB at 12,
20 s and 200 MiB at 16; and its text has 9 kB, 55 kB and 250 kB.
"""


@dataclass(frozen=True)
class Expansion:
    """A Taylor series at strength 0, truncated.

    Attributes:
        quantity: a key of `QUANTITIES`.
        order: the highest power of alpha kept, K.
        cumulants: coefficients of 1, alpha, ..., alpha^K (1/k! included) in cumulants.
        sums: the same coefficients as sums over tokens and contexts.

    In `cumulants`, ``kappa_k`` is the k-th cumulant of M under p, ``kappabar_k`` its mean over contexts, ``kappa^C_k`` and
    ``kappa^notC_k`` are the k-th cumulants given that the token is in a concept C and given that it is not, and ``r`` is
    ``logit F_C(0)``. In `sums`, contexts are numbered from 1 to m and tokens from 1 to V, those of C first, from 1 to s.
    """

    quantity: str
    order: int
    cumulants: tuple[Expr, ...]
    sums: tuple[Expr, ...]

    @property
    def tex_cumulants(self) -> tuple[str, ...]:
        """The coefficients in cumulants, in TeX."""
        return tuple(map(_tex, self.cumulants))

    @property
    def tex_sums(self) -> tuple[str, ...]:
        """The coefficients as sums, in TeX."""
        return tuple(map(_tex, self.sums))

    @property
    def tex(self) -> str:
        """The truncated series in cumulants, one equation in TeX."""
        powers = [_tex(Symbol("alpha") ** k) for k in range(self.order + 1)]
        terms = [
            f"{_tex(cumulant, factor=k > 0)} {powers[k]}" if k else _tex(cumulant)
            for k, cumulant in enumerate(self.cumulants)
            if cumulant != 0
        ]
        remainder = rf"O\left({_tex(Symbol('alpha') ** (self.order + 1))}\right)"
        return f"{QUANTITIES[self.quantity].tex} = {' + '.join([*terms, remainder])}"

    @cached_property
    def evaluate(self) -> Callable[..., Float[Array, "..."]]:
        """The coefficients from numbers: a compiled function, generated from the expressions in cumulants.

        Powers of alpha are the first axis of the result, so that ``jnp.polyval(coefficients[::-1], alpha)`` is the
        truncated series. Log-probabilities and log-odds are in nats. Arguments, and the shape of the result:

        - "log-partition": ``(log_p [V], m [V])``, ``[K+1]``;
        - "cross-entropy": ``(log_rows [r V], m [V], weights [r])``, ``[K+1]``;
        - "probability": ``(log_p [V], m [V])``, ``[K+1, V]``, all tokens at once;
        - "concept-log-odds": ``(log_p [V], m [V], members [V])`` with the mask of C, ``[K+1]``.

        It raises a ValueError, outside transformations, for log-probabilities of a distribution that does not sum to 1,
        weights that are negative or do not sum to 1, log-odds that are not finite, and shapes that do not fit.
        """
        function = QUANTITIES[self.quantity].program(self.order, self.cumulants)
        program, names = jax.jit(full(function)), inspect.signature(function).parameters

        @wraps(function)
        def evaluate(*numbers: Any) -> Float[Array, "..."]:
            for name, number in zip(names, numbers, strict=True):
                if not isinstance(number, jax.core.Tracer):
                    _CHECKS[name](name, number)
            return program(*numbers)

        return typed(evaluate)


def _check_log_rows(argument: str, log_rows: Any) -> None:
    """Refuse log-probabilities of rows that do not sum to 1, to the square root of the precision."""
    sums = np.exp(np.asarray(log_rows, float)).sum(axis=-1)
    off = np.abs(np.atleast_1d(sums) - 1)
    worst = int(np.argmax(off)) if off.size else 0
    where = f" in row {worst}" if sums.ndim else ""
    fits = off.size > 0 and off[worst] <= float(jnp.finfo(log_rows.dtype).eps) ** 0.5
    got = f"probabilities with the sum {np.atleast_1d(sums)[worst]:.6g}{where}" if off.size else "none"
    require(fits, argument, "logarithms of probabilities that sum to 1", got)


def _check_weights(argument: str, weights: Any) -> None:
    """Refuse weights that are negative or do not sum to 1, to the square root of the precision."""
    values = np.asarray(weights, float)
    require(bool((values >= 0).all()), argument, "weights of at least 0", values.min(initial=0.0))
    tolerance = float(jnp.finfo(weights.dtype).eps) ** 0.5
    require(bool(abs(values.sum() - 1) <= tolerance), argument, "weights that sum to 1", f"a sum of {values.sum():.6g}")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "log_p": _check_log_rows,
    "log_rows": _check_log_rows,
    "m": finite,
    "weights": _check_weights,
    "members": part_of_the_tokens,
}
"""The checks of the arguments of `Expansion.evaluate`, by name."""


@typed
def taylor(quantity: str, order: int) -> Expansion:
    """The Taylor series of a quantity at strength 0.

    Args:
        quantity: a key of `QUANTITIES`.
        order: the highest power of alpha, from 0 to `MAX_ORDER`.

    Raises:
        ValueError: an unknown quantity (the message lists the near matches); an order out of range.
    """
    near = difflib.get_close_matches(quantity, QUANTITIES, n=3, cutoff=0.4) or list(QUANTITIES)
    require(quantity in QUANTITIES, "quantity", f"a known one such as {', '.join(near)}", repr(quantity))
    require(0 <= order <= MAX_ORDER, "order", f"an integer from 0 to {MAX_ORDER}", order)
    return _derived(quantity, order)


@cache
def _derived(quantity: str, order: int) -> Expansion:
    cumulants, sums = QUANTITIES[quantity].derive(order)
    return Expansion(quantity, order, tuple(map(sympy.sympify, cumulants)), tuple(map(sympy.sympify, sums)))


@typed
def as_text(expansion: Expansion) -> str:
    """Coefficients by power of alpha as plain text: for each a line in cumulants and one of sums."""
    lines = [*QUANTITIES[expansion.quantity].text]
    for k, (cumulants, sums) in enumerate(zip(expansion.cumulants, expansion.sums, strict=True)):
        lines += ["", f"c_{k} = {_text(cumulants)}"]
        lines += [] if sums == cumulants else [" " * len(f"c_{k}") + f" = {_text(sums)}"]
    return "\n".join(lines)


# --- truncated power series: lists of coefficients, polynomials with rational coefficients -----------------------------


def _exp(a: list[PolyElement]) -> list[PolyElement]:
    """b = exp(a), where a has constant term 0, from ``b' = a' b``: complete Bell polynomials over k!."""
    b = [a[0] + 1]
    for n in range(1, len(a)):
        b.append(sum((k * a[k] * b[n - k] for k in range(1, n + 1)), a[0]) * QQ(1, n))
    return b


def _log(b: list[PolyElement]) -> list[PolyElement]:
    """a = log(b), where b has constant term 1, from the same equation."""
    a = [b[0] - 1]
    for n in range(1, len(b)):
        a.append(b[n] - sum((k * a[k] * b[n - k] for k in range(1, n)), a[0]) * QQ(1, n))
    return a


def _quotient(a: list[PolyElement], b: list[PolyElement]) -> list[PolyElement]:
    """a / b, where b has constant term 1."""
    q: list[PolyElement] = []
    for n, term in enumerate(a):
        q.append(term - sum((b[k] * q[n - k] for k in range(1, n + 1)), 0 * term))
    return q


def _polynomials(count: int) -> tuple[PolyElement, list[PolyElement]]:
    """1 and the variables of the ring of polynomials in `count` variables."""
    polynomials = ring([f"x_{k}" for k in range(1, count + 1)], QQ)[0]
    return polynomials.one, list(polynomials.gens)


# --- the four quantities ----------------------------------------------------------------------------------------------

_P, _M, _PI = IndexedBase("p"), IndexedBase("M"), IndexedBase("pi")
_Z, _Y, _J = sympy.symbols("z y j", integer=True)
_V, _S, _m = sympy.symbols("V s m", integer=True, positive=True)
_TOKENS, _OTHERS, _CONTEXTS = (_Z, 1, _V), (_Y, 1, _V), (_J, 1, _m)
_INSIDE, _OUTSIDE = (_Z, 1, _S), (_Z, _S + 1, _V)
_R = Symbol("r")

Coefficients = Sequence[Expr | int]


def _kappas(name: str, order: int) -> list[Symbol]:
    return [Symbol(f"{name}_{k}") for k in range(1, order + 1)]


def _over_factorials(values: Sequence[Any]) -> list[Any]:
    """x_1/1!, x_2/2!, ..."""
    return [value / factorial(k) for k, value in enumerate(values, 1)]


def _log_partition_of(moments: Sequence[Any]) -> list[Expr]:
    """The coefficients of A, kappa_k / k!, from raw moments mu_1, mu_2, ..."""
    unit, x = _polynomials(len(moments))
    return [a.as_expr(*_over_factorials(moments)) for a in _log([unit, *x])]


def _log_partition(order: int) -> tuple[Coefficients, Coefficients]:
    moments = [Sum(_P[_Z] * _M[_Z] ** k, _TOKENS) for k in range(1, order + 1)]
    return [0, *_over_factorials(_kappas("kappa", order))], _log_partition_of(moments)


def _cross_entropy(order: int) -> tuple[Coefficients, Coefficients]:
    """``sum_j pi_j [A_j(alpha) - alpha mu_1(j)]``."""
    kappas = _kappas("kappabar", order)
    moments = [Sum(_P[_J, _Z] * _M[_Z] ** k, _TOKENS) for k in range(1, order + 1)]
    in_cumulants, in_sums = [0, *_over_factorials(kappas)], _log_partition_of(moments)
    if order:
        in_cumulants[1] -= kappas[0]
        in_sums[1] -= moments[0]
    in_contexts = [
        Sum(_PI[_J] * (factorial(k) * coefficient), _CONTEXTS) / factorial(k) if coefficient != 0 else 0
        for k, coefficient in enumerate(in_sums)
    ]
    return in_cumulants, in_contexts


def _probability(order: int) -> tuple[Coefficients, Coefficients]:
    """``p e^{alpha M - A} - p`` in cumulants, ``p e^{alpha M} / Z - p`` as sums."""
    unit, (x0, *x) = _polynomials(order + 1)
    kappas = _over_factorials(_kappas("kappa", order))
    exponent = [_M[_Z] - kappas[0], *(-k for k in kappas[1:])] if order else []
    powers = [x0**k * QQ(1, int(factorial(k))) for k in range(order + 1)]
    moments = [Sum(_P[_Y] * _M[_Y] ** k, _OTHERS) for k in range(1, order + 1)]
    in_cumulants = [coefficient.as_expr(0, *exponent) for coefficient in _exp([0 * unit, *x])]
    in_sums = [q.as_expr(_M[_Z], *_over_factorials(moments)) for q in _quotient(powers, [unit, *x])]

    def increase(series):
        return [0, *(_P[_Z] * (factorial(k) * coefficient) / factorial(k) for k, coefficient in enumerate(series[1:], 1))]

    return increase(in_cumulants), increase(in_sums)


def _concept_log_odds(order: int) -> tuple[Coefficients, Coefficients]:
    """``log sum_C p e^{alpha M} - log sum_{not C} p e^{alpha M}``: two log-partitions, of conditional distributions."""
    kappas = zip(_kappas("kappa^C", order), _kappas("kappa^notC", order), strict=True)
    of_c, of_rest = ([Sum(_P[_Z] * _M[_Z] ** k, where) for k in range(order + 1)] for where in (_INSIDE, _OUTSIDE))
    inside, outside = (_log_partition_of([moment / sums[0] for moment in sums[1:]]) for sums in (of_c, of_rest))
    in_sums = [sympy.log(of_c[0]) - sympy.log(of_rest[0]), *(i - o for i, o in zip(inside[1:], outside[1:], strict=True))]
    return [_R, *_over_factorials([i - o for i, o in kappas])], in_sums


# --- programs from expressions ----------------------------------------------------------------------------------------


def _generated(arguments: Sequence[Expr], coefficients: Sequence[Expr]) -> Callable[..., Float[Array, "..."]]:
    """The coefficients as a function of numbers for the arguments; in the shape and precision of `like`."""
    function = sympy.lambdify([arguments], coefficients, modules="jax", cse=True)
    return lambda like, numbers: jnp.stack([coefficient + jnp.zeros_like(like) for coefficient in function(numbers)])


def _centred(
    log_p: Float[Array, " V"], m: Float[Array, " V"]
) -> tuple[Float[Array, " V"], Float[Array, ""], Float[Array, " V"]]:
    """p, the mean of M under it, and M less the mean; subtracted twice, for the rounding of a mean far from 0."""
    p = jax.nn.softmax(log_p)
    first = jnp.dot(p, m)
    second = jnp.dot(p, m - first)
    return p, first + second, m - first - second


@cache
def _cumulants(order: int) -> Callable[..., list[Float[Array, ""]]]:
    """A function of log-probabilities and log-odds that computes kappa_1, ..., kappa_K."""
    central = [Symbol(f"mu_{k}") for k in range(2, order + 1)]
    log_partition = sympy.lambdify([central], _log_partition_of([0, *central])[2:], modules="jax", cse=True)

    def cumulants(log_p: Float[Array, " V"], m: Float[Array, " V"]) -> list[Float[Array, ""]]:
        # The trap: by raw moments, all digits cancel where M is far from 0. Cumulants but the first ignore a shift.
        p, mean, d = _centred(log_p, m)
        scaled = log_partition([jnp.dot(p, d**k) for k in range(2, order + 1)])
        return [mean, *(float(factorial(k)) * value for k, value in enumerate(scaled, 2))][:order]

    return cumulants


def _log_partition_program(order: int, coefficients: Sequence[Expr]) -> Callable[..., Float[Array, " k"]]:
    series, cumulants = _generated(_kappas("kappa", order), coefficients), _cumulants(order)

    def evaluate(log_p: Float[Array, " V"], m: Float[Array, " V"]) -> Float[Array, " k"]:
        return series(m[0], cumulants(log_p, m))

    return evaluate


def _cross_entropy_program(order: int, coefficients: Sequence[Expr]) -> Callable[..., Float[Array, " k"]]:
    series, cumulants = _generated(_kappas("kappabar", order), coefficients), _cumulants(order)

    def evaluate(log_rows: Float[Array, "r V"], m: Float[Array, " V"], weights: Float[Array, " r"]) -> Float[Array, " k"]:
        return series(m[0], [jnp.dot(weights, kappa) for kappa in jax.vmap(cumulants, (0, None))(log_rows, m)])

    return evaluate


def _probability_program(order: int, coefficients: Sequence[Expr]) -> Callable[..., Float[Array, "k V"]]:
    series, cumulants = _generated([_P[_Z], _M[_Z], *_kappas("kappa", order)], coefficients), _cumulants(order)

    def evaluate(log_p: Float[Array, " V"], m: Float[Array, " V"]) -> Float[Array, "k V"]:
        p, _, d = _centred(log_p, m)
        # M is centred, so the mean that is subtracted from it is 0.
        return series(p, [p, d, *[0] * min(order, 1), *cumulants(log_p, d)[1:]])

    return evaluate


def _concept_log_odds_program(order: int, coefficients: Sequence[Expr]) -> Callable[..., Float[Array, " k"]]:
    series = _generated([_R, *_kappas("kappa^C", order), *_kappas("kappa^notC", order)], coefficients)
    cumulants = _cumulants(order)

    def evaluate(log_p: Float[Array, " V"], m: Float[Array, " V"], members: Bool[Array, " V"]) -> Float[Array, " k"]:
        r = tilting.concept_log_odds(log_p, m, 0.0, members)
        d = _centred(log_p, m)[2]
        inside, outside = (cumulants(jnp.where(mask, log_p, -jnp.inf), d) for mask in (members, ~members))
        return series(r, [r, *inside, *outside])

    return evaluate


class Quantity(NamedTuple):
    """A quantity that can be expanded.

    Attributes:
        text: lines that say what it is, and what the cumulants are.
        tex: its symbol, in TeX.
        derive: from the order, the coefficients in cumulants and as sums.
        program: from the order and the coefficients in cumulants, the function that `Expansion.evaluate` compiles.
    """

    text: tuple[str, str]
    tex: str
    derive: Callable[[int], tuple[Coefficients, Coefficients]]
    program: Callable[[int, Sequence[Expr]], Callable[..., Float[Array, "..."]]]


QUANTITIES = {
    "cross-entropy": Quantity(
        (
            "Increase of the cross-entropy: Delta CE(alpha) is the sum of c_k alpha^k.",
            "kappabar_k is the mean over contexts, with weights pi, of the k-th cumulant of M.",
        ),
        r"\Delta\mathrm{CE}(\alpha)",
        _cross_entropy,
        _cross_entropy_program,
    ),
    "log-partition": Quantity(
        (
            "Log-partition: A(alpha) is the sum of c_k alpha^k.",
            "kappa_k is the k-th cumulant of M.",
        ),
        r"A(\alpha)",
        _log_partition,
        _log_partition_program,
    ),
    "probability": Quantity(
        (
            "Increase of the probability of a token z: Delta p(z) is the sum of c_k alpha^k.",
            "kappa_k is the k-th cumulant of M.",
        ),
        r"\Delta p(z \mid c_j, \alpha)",
        _probability,
        _probability_program,
    ),
    "concept-log-odds": Quantity(
        (
            "Log-odds of a concept C: logit F_C(alpha) is the sum of c_k alpha^k.",
            "kappa^C_k and kappa^notC_k are the k-th cumulants of M given that the token is in C, and that it is not.",
        ),
        r"\operatorname{logit} F_C(\alpha)",
        _concept_log_odds,
        _concept_log_odds_program,
    ),
}
"""The quantities that `taylor` expands, by id."""


# --- printing ---------------------------------------------------------------------------------------------------------

_RANGES = {
    _TOKENS: ("z", "z"),
    _OTHERS: ("y", "y"),
    _CONTEXTS: ("j", "j"),
    _INSIDE: ("{z in C}", r"z \in C"),
    _OUTSIDE: ("{z not in C}", r"z \notin C"),
}


def _shown(expr: Expr) -> Expr:
    """p[j, z] as a symbol called p_j(z), and so on."""

    def name(symbol: Indexed) -> str:
        *contexts, last = map(str, symbol.indices)
        return f"{symbol.base}_{last}" if symbol.base == _PI else f"{'_'.join([str(symbol.base), *contexts])}({last})"

    return expr.xreplace({symbol: Symbol(name(symbol)) for symbol in expr.atoms(Indexed)})


def _factors(total: Sum) -> list[Expr]:
    """The summand, as factors in reading order: probabilities first, sums last."""
    return sorted(
        Mul.make_args(total.function), key=lambda factor: (factor.is_Add, not str(factor).startswith("p"), str(factor))
    )


class _Readable(Printer):
    """Terms in an order that does not begin with a minus sign; high moments before products of low ones, if that does it."""

    def _as_ordered_terms(self, expr: Expr, order: str | None = None) -> list[Expr]:
        orders = []
        for convention in ("rev-lex", "lex"):
            terms = super()._as_ordered_terms(expr, order=convention)
            first = next((i for i, term in enumerate(terms) if term.as_coeff_Mul()[0] > 0), 0)
            orders.append((first, [terms[first], *terms[:first], *terms[first + 1 :]]))
            if first == 0:
                break
        return min(orders, key=lambda candidate: candidate[0])[1]


class _Text(_Readable, StrPrinter):
    def _print_Sum(self, expr: Sum) -> str:
        body = "*".join(self.parenthesize(factor, PRECEDENCE["Mul"]) for factor in _factors(expr))
        return f"sum_{_RANGES[tuple(expr.limits[0])][0]}[{body}]"


class _Tex(_Readable, LatexPrinter):
    def _print_Sum(self, expr: Sum) -> str:
        body = " ".join(self.parenthesize(factor, PRECEDENCE["Mul"]) for factor in _factors(expr))
        return rf"\sum_{{{_RANGES[tuple(expr.limits[0])][1]}}} {body}"

    def _print_Symbol(self, expr: Symbol, style: str = "plain") -> str:
        name = super()._print_Symbol(expr, style)
        return expr.name if "(" in expr.name else name.replace("notC", r"C^{\complement}")

    def _needs_mul_brackets(self, expr: Expr, first: bool = False, last: bool = False) -> bool:
        # A power has brackets of its own.
        return not expr.is_Pow and super()._needs_mul_brackets(expr, first, last)


def _text(expr: Expr) -> str:
    """An expression as text, with 1/k! as a divisor of the whole."""
    content, body = _shown(expr).primitive()
    printed = _Text().doprint(body).replace("**", "^")
    return printed if content == 1 else f"({printed})/{1 / content}" if body.is_Add else f"{printed}/{1 / content}"


def _tex(expr: Expr, *, factor: bool = False) -> str:
    """TeX of an expression, with 1/k! in front; in brackets if it is a sum and is to be a factor."""
    content, body = _shown(expr).primitive()
    printed = _Tex().doprint(body)
    wrapped = rf"\left({printed}\right)" if body.is_Add and (factor or content != 1) else printed
    return wrapped if content == 1 else rf"\frac{{1}}{{{1 / content}}} {wrapped}"

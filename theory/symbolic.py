"""Identities behind the statements, proved for symbolic probabilities and log-odds.

Under steering, ``E_z = p_z e^{alpha M_z}`` has the derivative ``D E_z = M_z E_z``, and alpha has ``D alpha = 1``. What is
built from E, M, p and alpha by arithmetic and logarithms can therefore be differentiated as an expression in symbols
(`derivative`). As functions of p, M and alpha these quantities satisfy no algebraic relation, so that an equation between
rational functions of them is true for all p, M and alpha exactly if both sides are the same rational function of symbols.
That is what `holds` decides.

Vocabularies are small, for the computer's sake: four tokens, two of them the concept, and three contexts. The derivations
use none of these sizes and are the same for any.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from itertools import combinations
from math import comb, factorial, prod
from operator import or_
from typing import Any

import sympy
from sympy import QQ, Expr, Integer, Pow, Rational, Symbol, log, sqrt, symbols
from sympy.polys.rings import PolyElement, ring
from sympy.utilities.iterables import multiset_partitions

from ufm._check import require


@dataclass(frozen=True)
class Identity:
    """Two expressions that are claimed to be one function.

    Attributes:
        name: which part of a statement it is.
        left: made of symbols and square roots of polynomials by arithmetic.
        right: likewise.
    """

    name: str
    left: Expr
    right: Expr


def holds(identity: Identity) -> bool:
    """Whether both sides are the same function: decided, not searched for.

    The difference is brought over a common denominator; its expanded numerator is the polynomial 0 or it is not. A square
    root becomes a variable whose square is the radicand. "Yes" is always right; "no" is right if no product of distinct
    radicands is a square.

    Raises:
        ValueError: a side that is made of something else, such as a logarithm.
    """
    return not _numerator(identity.left - identity.right)


def counterexample(identity: Identity) -> dict[Symbol, Rational] | None:
    """The first of a few rational points at which the sides differ; None if they differ at none of these."""
    difference = identity.left - identity.right
    names = sorted(difference.free_symbols, key=str)
    for shift in range(1, 5):
        # All different, and small enough for three probabilities to leave something for the fourth.
        point = {name: Rational(1, 3 * (k + shift)) for k, name in enumerate(names, 1)}
        if abs(sympy.N(difference.xreplace(point), 30)) > 1e-20:
            return point
    return None


def derivative(expression: Expr, rates: dict[Symbol, Expr] | None = None) -> Expr:
    """d/dalpha of an expression, by the derivatives of its symbols: `RATES`, or those given; 0 for all others."""
    known = RATES if rates is None else rates
    return sympy.Add(*(sympy.diff(expression, symbol) * rate for symbol, rate in known.items() if expression.has(symbol)))


def at_zero(expression: Expr) -> Expr:
    """The value at alpha = 0, where E is p."""
    return expression.xreplace(_START)


def _numerator(expression: Expr) -> PolyElement:
    """The numerator over a common denominator: expanded, and at most linear in each square root.

    Denominators stay products, since most of their factors are shared by many terms.
    """
    roots = sorted({sqrt(term.base) for term in expression.atoms(Pow) if term.exp.is_Rational and term.exp.q == 2}, key=str)
    names = [*sorted(expression.free_symbols, key=str), *roots]
    polynomials = ring([f"x_{k}" for k in range(len(names))], QQ)[0]
    known = dict(zip(names, polynomials.gens, strict=True))

    def product(factors: Counter[PolyElement]) -> PolyElement:
        return prod((factor**k for factor, k in factors.items()), start=polynomials.one)

    @cache
    def fraction(expr: Expr) -> tuple[PolyElement, Counter[PolyElement]]:
        if expr in known:
            return known[expr], Counter()
        if expr.is_Rational:
            return polynomials(QQ(expr.p, expr.q)), Counter()
        if expr.is_Add:
            tops: dict[frozenset[tuple[PolyElement, int]], PolyElement] = {}
            for above, below in map(fraction, expr.args):
                over = frozenset(below.items())
                tops[over] = tops.get(over, polynomials.zero) + above
            common = reduce(or_, (Counter(dict(over)) for over in tops))
            parts = [above * product(common - Counter(dict(over))) for over, above in tops.items()]
            return sum(parts, polynomials.zero), common
        if expr.is_Mul:
            factors = [fraction(factor) for factor in expr.args]
            return prod((above for above, _ in factors), start=polynomials.one), sum((b for _, b in factors), Counter())
        readable = expr.is_Pow and expr.exp.is_Rational and expr.exp.q <= 2
        require(readable, "identity", "symbols and square roots joined by arithmetic", expr)
        top, bottom = fraction(expr.base if expr.exp.q == 1 else sqrt(expr.base))
        if expr.exp.p < 0:
            top, bottom = product(bottom), Counter([top])
        power = abs(int(expr.exp.p))
        return top**power, Counter({factor: k * power for factor, k in bottom.items()})

    numerator, _ = fraction(expression)
    for root in roots:
        index, (radicand, below) = names.index(root), fraction(root.base)
        require(not below, "identity", "square roots of polynomials", root)
        linear = polynomials.zero
        for monomial, coefficient in numerator.terms():
            rest = tuple(k % 2 if i == index else k for i, k in enumerate(monomial))
            linear += radicand ** (monomial[index] // 2) * polynomials({rest: coefficient})
        numerator = linear
    return numerator


# --- symbols ----------------------------------------------------------------------------------------------------------

ALPHA = Symbol("alpha")
"""The strength."""

_TOKENS, _INSIDE, _OUTSIDE, _CONTEXTS = (0, 1, 2, 3), (0, 1), (2, 3), (0, 1, 2)
_PI = symbols("pi_0:3", positive=True)
_M = symbols("M_0:4", real=True)
_E = [symbols(f"E_{j}_0:4", positive=True) for j in _CONTEXTS]
# The last probability of each context is 1 less the others: at alpha = 0, sums are 1 and not a symbol.
_P = [(*p, 1 - sum(p)) for p in (symbols(f"p_{j}_0:3", positive=True) for j in _CONTEXTS)]

RATES: dict[Symbol, Expr] = {ALPHA: Integer(1), **{row[z]: _M[z] * row[z] for row in _E for z in _TOKENS}}
"""D alpha = 1, and D E_z = M_z E_z for every context and token."""

_START = {ALPHA: Integer(0), **{_E[j][z]: _P[j][z] for j in _CONTEXTS for z in _TOKENS}}


def _dot(a: Sequence[Any], b: Sequence[Any]) -> Expr:
    return sympy.Add(*(x * y for x, y in zip(a, b, strict=True)))


def _total(row: Sequence[Expr], tokens: Sequence[int] = _TOKENS) -> Expr:
    return sympy.Add(*(row[z] for z in tokens))


def _share(row: Sequence[Expr], z: int) -> Expr:
    """The probability of a token, from weights that need not sum to 1."""
    return row[z] / _total(row)


def _mean(row: Sequence[Expr], values: Sequence[Expr] = _M, tokens: Sequence[int] = _TOKENS) -> Expr:
    """The mean over some tokens, from weights that need not sum to 1."""
    return sympy.Add(*(row[z] * values[z] for z in tokens)) / _total(row, tokens)


def _variance(row: Sequence[Expr]) -> Expr:
    return _mean(row, [(m - _mean(row)) ** 2 for m in _M])


def _odds(row: Sequence[Expr]) -> Expr:
    """F_C / (1 - F_C)."""
    return _total(row, _INSIDE) / _total(row, _OUTSIDE)


def _slope(row: Sequence[Expr]) -> Expr:
    """mu_C - mu_{C^c}."""
    return _mean(row, tokens=_INSIDE) - _mean(row, tokens=_OUTSIDE)


# --- lemmas of S ------------------------------------------------------------------------------------------------------

_CONTRAST = (Rational(1, 2), Rational(1, 2), *(Rational(-1, 3),) * 3)
"""P is contexts 0 and 1, N is contexts 2, 3 and 4."""

_BY_CONCEPTS = (Rational(1, 2), Rational(1, 2), Rational(-1, 2), Rational(-1, 4), Rational(-1, 4))
"""What a twin takes for it, if 2 is of one concept and 3 and 4 are of another: each concept of N counted once."""

_CONTRASTED = range(len(_CONTRAST))


def _lemma_b2(believed: Sequence[Expr] = _CONTRAST) -> tuple[Identity, ...]:
    """A linear decoder W at ``h_j + alpha v``, with v a difference of means."""
    w, h = [symbols(f"W_{z}_0:2") for z in range(3)], [symbols(f"h_{j}_0:2") for j in _CONTRASTED]
    v = [_dot(_CONTRAST, [h[j][i] for j in _CONTRASTED]) for i in range(2)]
    logits = [[_dot(row, state) for row in w] for state in h]
    return tuple(
        Identity(
            f"logit of token {z} in context {j}",
            _dot(w[z], [h[j][i] + ALPHA * v[i] for i in range(2)]),
            logits[j][z] + ALPHA * _dot(believed, [logits[i][z] for i in _CONTRASTED]),
        )
        for j in _CONTRASTED
        for z in range(3)
    )


def _lemma_b3(believed: Sequence[Expr] = _CONTRAST) -> tuple[Identity, ...]:
    """Logits are log p_j plus a constant k_j of the context; a softmax is given by the logarithms of its ratios."""
    log_p, k = [symbols(f"logp_{j}_0:4", real=True) for j in _CONTRASTED], symbols("k_0:5", real=True)
    shifts = [_dot(_CONTRAST, [log_p[j][z] + k[j] for j in _CONTRASTED]) for z in _TOKENS]
    m = [_dot(believed, [log_p[j][z] for j in _CONTRASTED]) for z in _TOKENS]
    steered = [[log_p[j][z] + k[j] + ALPHA * shifts[z] for z in _TOKENS] for j in _CONTRASTED]
    tilted = [[log_p[j][z] + ALPHA * m[z] for z in _TOKENS] for j in _CONTRASTED]
    # The exponentials of steered logits have a factor in common, which the softmax does not see.
    scaled = [Symbol("c", positive=True) * weight for weight in _E[0]]
    return (
        *(
            Identity(
                f"log-ratio of tokens {z} and 3 in context {j}", steered[j][z] - steered[j][3], tilted[j][z] - tilted[j][3]
            )
            for j in _CONTRASTED
            for z in _TOKENS[:3]
        ),
        *(Identity(f"softmax of token {z}", _share(scaled, z), _share(_E[0], z)) for z in _TOKENS),
    )


def _lemma_b4(*, counted: bool = True) -> tuple[Identity, ...]:
    """Tokens 0 and 1 are the target; 2 and 3 are a concept each, with one and two of the three contexts of N."""
    log_a, log_b = symbols("loga_0:4", real=True), symbols("logb_0:4", real=True)
    concept, positive, negative = (0, 0, 1, 2), (0, 0), (1, 2, 2)

    def mean(contexts: Sequence[int], z: int) -> Expr:
        return sympy.Add(*(log_a[z] if context == concept[z] else log_b[z] for context in contexts)) / len(contexts)

    def factor(z: int) -> Expr:
        share = Rational(negative.count(concept[z]), len(negative)) if counted else Integer(1)
        return Integer(1) if concept[z] == 0 else -share

    return tuple(
        Identity(f"log-odds of token {z}", mean(positive, z) - mean(negative, z), factor(z) * (log_a[z] - log_b[z]))
        for z in _TOKENS
    )


def _log_odds_of(contrast: Sequence[Expr]) -> dict[Symbol, Expr]:
    """The values of M's symbols for a contrast of the logarithms of five contexts."""
    log_p = [symbols(f"logp_{j}_0:4", real=True) for j in _CONTRASTED]
    return {_M[z]: _dot(contrast, [row[z] for row in log_p]) for z in _TOKENS}


def _lemma_b5(believed: Sequence[Expr] = _CONTRAST) -> tuple[Identity, ...]:
    """Identities where M is a contrast of logarithms: the true one, or what is `believed` on the right."""
    true, claimed, row = _log_odds_of(_CONTRAST), _log_odds_of(believed), _E[0]
    return tuple(
        Identity(
            f"slope of token {z}",
            derivative(_share(row, z)).xreplace(true),
            (_share(row, z) * (_M[z] - _mean(row))).xreplace(claimed),
        )
        for z in _TOKENS
    )


# --- theorems of S ----------------------------------------------------------------------------------------------------


def _theorem_36() -> tuple[Identity, ...]:
    """Identities in X = e^x, for which the sigmoid of x is ``X / (1 + X)`` and tanh(x/2) is ``(X - 1) / (X + 1)``."""
    x, r = symbols("X R", positive=True)

    def half_difference(left: Expr, right: Expr) -> Expr:
        return ((left - 1) / (left + 1) - (right - 1) / (right + 1)) / 2

    row, start = _E[0], _P[0]
    increase = sympy.Add(*(_share(row, z) - start[z] for z in _INSIDE)) / len(_INSIDE)
    return (
        Identity("slope of the log-odds", derivative(log(_odds(row))), _slope(row)),
        Identity("tanh by sigmoid", half_difference(x, r), x / (1 + x) - r / (1 + r)),
        Identity("increase of the concept", increase, half_difference(_odds(row), _odds(start)) / len(_INSIDE)),
    )


def _cross_entropy() -> Expr:
    """Delta CE as an expression."""
    return sympy.Add(*(pi * (log(_total(row)) - ALPHA * _mean(start)) for pi, row, start in zip(_PI, _E, _P, strict=True)))


def _theorem_38() -> tuple[Identity, ...]:
    slope = derivative(_cross_entropy())
    return (
        Identity("value at 0", at_zero(_cross_entropy()), Integer(0)),
        Identity("slope at 0", at_zero(slope), Integer(0)),
        Identity("curvature at 0", at_zero(derivative(slope)), _dot(_PI, [_variance(row) for row in _P])),
    )


def _theorem_38_twin() -> tuple[Identity, ...]:
    """Contexts 0 and 1 are of one concept, and pooled."""
    *_, curvature = _theorem_38()
    pooled = [(_PI[0] * x + _PI[1] * y) / (_PI[0] + _PI[1]) for x, y in zip(_P[0], _P[1], strict=True)]
    return (Identity(curvature.name, curvature.left, (_PI[0] + _PI[1]) * _variance(pooled) + _PI[2] * _variance(_P[2])),)


# --- new statements ---------------------------------------------------------------------------------------------------


def _n1() -> tuple[Identity, ...]:
    row = _E[0]
    pairs = [_share(row, y) * _share(row, z) * (_M[y] - _M[z]) ** 2 for y, z in combinations(_TOKENS, 2)]
    curvatures = [derivative(derivative(log(_share(row, z)))) for z in _TOKENS]
    return (
        *(Identity(f"curvature of log sigma {z}", curvatures[z], -_variance(row)) for z in _TOKENS),
        Identity("variance as a sum of squares over pairs", _variance(row), sympy.Add(*pairs)),
    )


def _n1_twin() -> tuple[Identity, ...]:
    """The twin's curvature of log F, for the concept that tokens 0 and 1 make up."""
    share = _total(_E[0], _INSIDE) / _total(_E[0])
    return (Identity("curvature of log F", derivative(derivative(log(share))), -_variance(_E[0])),)


_ORDERS = range(2, 6)
_RAW = [symbols(f"mu_{j}_1:6", real=True) for j in _CONTEXTS]
_MOMENTS = [symbols(f"N_{j}_0:6", positive=True) for j in _CONTEXTS]


def _cumulant(k: int, raw: Sequence[Expr]) -> Expr:
    """The k-th cumulant from raw moments, as a sum over the partitions of a set of k: no series goes into it."""
    return sympy.Add(
        *(
            (-1) ** (len(blocks) - 1) * factorial(len(blocks) - 1) * prod(raw[len(block) - 1] for block in blocks)
            for blocks in multiset_partitions(list(range(k)))
        )
    )


def _central_moment(k: int, raw: Sequence[Expr]) -> Expr:
    return sympy.Add(*(comb(k, i) * (-raw[0]) ** (k - i) * (raw[i - 1] if i else 1) for i in range(k + 1)))


def _derivatives_at_zero(claimed: Callable[[int, Sequence[Expr]], Expr]) -> tuple[Identity, ...]:
    """Derivatives of Delta CE at 0 against the mean over contexts of what is claimed, a function of the raw moments.

    The symbols are ``N_k = sum_z M_z^k E_z``, which have ``D N_k = N_{k+1}``; at 0, N_0 is 1 and the others are moments.
    """
    rates: dict[Symbol, Expr] = {n[k]: n[k + 1] for n in _MOMENTS for k in range(5)}
    start = {n[k]: [Integer(1), *raw][k] for n, raw in zip(_MOMENTS, _RAW, strict=True) for k in range(6)}
    curves = [derivative(_dot(_PI, [log(n[0]) for n in _MOMENTS]), rates) - _dot(_PI, [raw[0] for raw in _RAW])]
    for _ in _ORDERS:
        curves.append(derivative(curves[-1], rates))
    return tuple(
        Identity(f"derivative {k} at 0", curve.xreplace(start), _dot(_PI, [claimed(k, raw) for raw in _RAW]))
        for k, curve in zip(_ORDERS, curves[1:], strict=True)
    )


def _n4_divergence(*, backward: bool = False) -> tuple[Identity, ...]:
    """Delta CE of a context as a divergence, and its curvature for every alpha.

    log p_alpha(z) is log p(z) + alpha M(z) - A, with symbols for the logarithms. `backward`: KL(p_alpha || p), wrongly.
    """
    log_p, a = symbols("logp_0:4", real=True), Symbol("A", real=True)
    gains = [ALPHA * m - a for m in _M]
    steered = [start + gain for start, gain in zip(log_p, gains, strict=True)]
    if backward:
        divergence = _mean(_E[0], [y - x for x, y in zip(log_p, steered, strict=True)])
    else:
        divergence = _mean(_P[0], [x - y for x, y in zip(log_p, steered, strict=True)])
    return (
        Identity("divergence", divergence, a - ALPHA * _mean(_P[0])),
        Identity("curvature", derivative(derivative(_cross_entropy())), _dot(_PI, [_variance(row) for row in _E])),
    )


def _n4_taylor() -> tuple[Identity, ...]:
    """Delta CE at 0, to all of `_ORDERS`."""
    power_sums = [sympy.Add(*(m**k * weight for m, weight in zip(_M, _E[0], strict=True))) for k in range(6)]
    return (
        *(Identity(f"derivative of N_{k}", derivative(power_sums[k]), power_sums[k + 1]) for k in range(5)),
        *_derivatives_at_zero(_cumulant),
    )


def _n5() -> tuple[Identity, ...]:
    """The slope of a target's log-odds; its two means are convex combinations of M on the target and off it."""
    row = _E[0]
    convex = []
    for where, tokens in (("on", _INSIDE), ("off", _OUTSIDE)):
        weights = [row[z] / _total(row, tokens) for z in tokens]
        convex.append(Identity(f"weights {where} the target", sympy.Add(*weights), Integer(1)))
        for z0 in tokens:
            above = _dot(weights, [_M[z] - _M[z0] for z in tokens])
            convex.append(Identity(f"mean {where} the target above M_{z0}", _mean(row, tokens=tokens) - _M[z0], above))
    return (Identity("slope of the log-odds", derivative(log(_odds(row))), _slope(row)), *convex)


def _straight_log_odds() -> tuple[Identity, ...]:
    """The claim of several twins: the slope of a concept's log-odds is the one at 0."""
    slope = derivative(log(_odds(_E[0])))
    return (Identity("slope of the log-odds", slope, at_zero(slope)),)


def _n6_preference() -> tuple[Identity, ...]:
    """The slope and curvature of the preference of token 0 to token 1."""
    preference = derivative(log(_share(_E[0], 0) / _share(_E[0], 1)))
    return (
        Identity("slope of the preference", preference, _M[0] - _M[1]),
        Identity("curvature of the preference", derivative(preference), Integer(0)),
    )


def _n6_preference_twin() -> tuple[Identity, ...]:
    """The slope of the preference with log-odds in which each concept of N counts once."""
    log_p = [symbols(f"logp_{j}_0:2", real=True) for j in _CONTRASTED]
    ahead = [row[0] - row[1] for row in log_p]
    return (Identity("slope of the preference", _dot(_CONTRAST, ahead), _dot(_BY_CONCEPTS, ahead)),)


def _n6_utility(believed: Sequence[Expr] = _CONTRAST) -> tuple[Identity, ...]:
    """The slope of the utility of tokens 0 and 1, with M a contrast of logarithms: the true one, or what is `believed`."""
    true, claimed = _log_odds_of(_CONTRAST), _log_odds_of(believed)
    slope = derivative(log(_odds(_E[0]))).xreplace(true)
    return (Identity("slope of the utility", slope, _slope(_E[0]).xreplace(claimed)),)


_H, _V, _U = (symbols(f"{name}_0:3", real=True) for name in "hvu")
_LENGTH = sqrt(_dot(_V, _V))
_NEAREST = -_dot(_H, _V) / _dot(_V, _V)
"""m0, the strength at which h + alpha v is shortest."""
_AREA = _dot(_H, _H) * _dot(_V, _V) - _dot(_H, _V) ** 2
_WIDTH = sqrt(_AREA) / _dot(_V, _V)
"""sqrt(L)."""


def _moved(alpha: Expr) -> list[Expr]:
    return [h + alpha * v for h, v in zip(_H, _V, strict=True)]


def _n7(width: Expr = _WIDTH) -> tuple[Identity, ...]:
    """``u . RMSNorm(h + alpha v) = (beta + a alpha) / sqrt(1 + (alpha - m0)^2 / L)``, by its square and its sign.

    beta and a are u.h and u.v times ``sqrt(d) / (|v| sqrt(L))``, so that both sides have the sign of ``u . (h + alpha v)``,
    which is linear in alpha. The square holds for any u.h and u.v.
    """
    state, d = _moved(ALPHA), len(_H)
    factor, offset = sqrt(d) / (_LENGTH * width), (ALPHA - _NEAREST) ** 2
    uh, uv = symbols("uh uv", real=True)

    def line(beta: Expr, a: Expr) -> Expr:
        return factor * beta + factor * a * ALPHA

    minors = [(_H[i] * _V[k] - _H[k] * _V[i]) ** 2 for i, k in combinations(range(d), 2)]
    return (
        Identity("length", _dot(state, state), _dot(_V, _V) * (width**2 + offset)),
        Identity("square", d * (uh + ALPHA * uv) ** 2 / _dot(state, state), line(uh, uv) ** 2 / (1 + offset / width**2)),
        Identity("sign", line(_dot(_U, _H), _dot(_U, _V)), factor * _dot(_U, state)),
        Identity("L as a sum of squares", width**2 * _dot(_V, _V) ** 2, sympy.Add(*minors)),
    )


def _n8_arc(centre: Expr = _NEAREST) -> tuple[Identity, ...]:
    """The direction of h + alpha v, at ``alpha = centre + sqrt(L) t`` with t = tan(theta)."""
    t = Symbol("t", real=True)
    cosine = 1 / sqrt(1 + t**2)
    shortest, state = _moved(_NEAREST), _moved(centre + _WIDTH * t)
    e1, e2 = [x / (_LENGTH * _WIDTH) for x in shortest], [v / _LENGTH for v in _V]
    return (
        Identity("length", _dot(state, state), _dot(_V, _V) * _WIDTH**2 * (1 + t**2)),
        Identity("unit length of e1", _dot(e1, e1), Integer(1)),
        Identity("right angle of e1 and e2", _dot(e1, e2), Integer(0)),
        *(
            Identity(
                f"coordinate {i} on the arc",
                state[i] / (_LENGTH * _WIDTH * sqrt(1 + t**2)),
                e1[i] * cosine + e2[i] * t * cosine,
            )
            for i in range(3)
        ),
    )


def _plateau(towards: Sequence[Expr]) -> tuple[Identity, ...]:
    """The coefficient of 1/alpha in the direction, claimed to be `towards` / |v|.

    With s = 1/alpha > 0 the direction is that of ``s h + v``.
    """
    s = Symbol("s", real=True)
    state = [s * h + v for h, v in zip(_H, _V, strict=True)]
    slopes = [sympy.diff(x / sqrt(_dot(state, state)), s).xreplace({s: Integer(0)}) for x in state]
    return tuple(Identity(f"coordinate {i} of the plateau", slopes[i], towards[i] / _LENGTH) for i in range(3))


def _n9(*, centred: bool = True) -> tuple[Identity, ...]:
    """KL from p to the softmax of logits that are curved in alpha: ``D E_z = (s_z + c_z alpha) E_z``."""
    row, p, slopes = _E[0], _P[0], symbols("s_0:4", real=True)
    rise = [s + c * ALPHA for s, c in zip(slopes, symbols("c_0:4", real=True), strict=True)]
    rates = {ALPHA: Integer(1), **{row[z]: rise[z] * row[z] for z in _TOKENS}}
    # KL is the logarithm of the total less the mean, under p, of the logits' increase, and a constant.
    slope = derivative(_total(row), rates) / _total(row) - _mean(p, rise)
    about = _mean(p, slopes) if centred else Integer(0)
    return (
        Identity("slope, as a difference of means", slope, _mean(row, rise) - _mean(p, rise)),
        Identity("slope at 0", at_zero(slope), Integer(0)),
        Identity("curvature at 0", at_zero(derivative(slope, rates)), _mean(p, [(s - about) ** 2 for s in slopes])),
    )


_T, _OF_A, _OF_B = symbols("t A B", real=True)
_COSINE = 1 / sqrt(1 + _T**2)
_BENT = sympy.diff((_OF_A + _OF_B * _T) * _COSINE, _T, 2)
"""L times the second derivative by alpha of a logit on the arc, at t = tan(theta): alpha is m0 and sqrt(L) t."""


def _n12() -> tuple[Identity, ...]:
    """The second derivative of a logit on the arc, what is left from it to its bound, and the update of rank one."""
    sine, x, square = _T * _COSINE, _COSINE**2, _OF_A**2 + _OF_B**2
    a, b = _OF_A * _COSINE + _OF_B * sine, _OF_B * _COSINE - _OF_A * sine
    left = square * (1 - x**3 * (4 - 3 * x)) + x**3 * (2 * sine * a - _COSINE * b) ** 2
    y, slope, n = Symbol("y", real=True), Symbol("s", real=True), symbols("n_0:3", real=True)
    return (
        Identity("second derivative", _BENT, -(a * x + 2 * _COSINE * sine * b) * x),
        Identity("what is left to the bound", square - _BENT**2, left),
        Identity("it is of one sign", 1 - y**3 * (4 - 3 * y), (1 - y) ** 2 * (1 + 2 * y + 3 * y**2)),
        Identity("the update at its input", _dot([slope * component / _dot(n, n) for component in n], n), slope),
    )


def _n12_twin() -> tuple[Identity, ...]:
    """The twin's claim of third order, by which the second derivative vanishes."""
    return (Identity("second derivative", _BENT, Integer(0)),)


# The rows of a corpus that the model has not learned; the last probability is 1 less the others, as in _P.
_CORPUS = [(*r, 1 - sum(r)) for r in (symbols(f"r_{j}_0:3", positive=True) for j in _CONTEXTS)]


def _n13_divergence(*, linear: bool = True) -> tuple[Identity, ...]:
    """The slope of Delta CE less that of the divergence of the model from its steered self, and where it comes from.

    At strength 0 E is what the model says, _P; M is W v. Values at strength 0 are 0.
    """
    w, v = [symbols(f"W_{z}_0:2", real=True) for z in _TOKENS], symbols("v_0:2", real=True)
    h, decay = [symbols(f"h_{j}_0:2", real=True) for j in _CONTEXTS], Symbol("lambda", positive=True)
    increase = _dot(_PI, [log(_total(row)) - ALPHA * _mean(r) for row, r in zip(_E, _CORPUS, strict=True)])
    divergence = _dot(_PI, [log(_total(row)) - ALPHA * _mean(q) for row, q in zip(_E, _P, strict=True)])
    excess = [[q - r for q, r in zip(*rows, strict=True)] for rows in zip(_P, _CORPUS, strict=True)]
    slope = _dot(_PI, [_dot(row, _M) for row in excess]) if linear else Integer(0)
    gradients = [[pi * _dot([w[z][i] for z in _TOKENS], row) for i in range(2)] for pi, row in zip(_PI, excess, strict=True)]
    moved = {_M[z]: _dot(w[z], v) for z in _TOKENS}
    at_rest = _dot([-decay * component for state in h for component in state], [*v] * len(h))
    sums = [sympy.Add(*(state[i] for state in h)) for i in range(2)]
    return (
        Identity("slope, less that of the divergence", derivative(increase) - derivative(divergence), slope),
        Identity(
            "that is the gradient along v",
            _dot(_PI, [_dot(row, _M) for row in excess]).xreplace(moved),
            sympy.Add(*(_dot(gradient, v) for gradient in gradients)),
        ),
        Identity("under weight decay", at_rest, -decay * _dot(sums, v)),
    )


def _n14_values(*, offset: bool = True) -> tuple[Identity, ...]:
    """Tokens 0 and 1 are of one concept, 2 and 3 of one each; contexts are two, one and one, with any weights."""
    log_a, log_b, w = symbols("loga_0:4", real=True), symbols("logb_0:4", real=True), symbols("w_0:4", real=True)
    of_token, of_context = (0, 0, 1, 2), (0, 0, 1, 2)

    def tilt(z: int) -> Expr:
        return _dot(w, [log_a[z] if g == of_token[z] else log_b[z] for g in of_context])

    def total(concept: int) -> Expr:
        return sympy.Add(*(x for x, g in zip(w, of_context, strict=True) if g == concept))

    rest = sympy.Add(*w) if offset else Integer(0)
    return tuple(
        Identity(f"token {z}", tilt(z), total(of_token[z]) * (log_a[z] - log_b[z]) + rest * log_b[z]) for z in _TOKENS
    )


def _n24(*, with_base: bool = True) -> tuple[Identity, ...]:
    """Contexts of a log-linear family: log-ratios of steered probabilities, and of those where steering leads."""
    base, w, partition = symbols("b_0:4", real=True), symbols("w_0:3", real=True), symbols("A_0:3", real=True)
    features = [symbols(f"phi_{k}_0:4", real=True) for k in range(2)]
    coordinates = [symbols(f"lambda_{j}_0:2", real=True) for j in _CONTEXTS]

    def log_p(j: int, z: int) -> Expr:
        return base[z] + _dot(coordinates[j], [row[z] for row in features]) - partition[j]

    def steered(j: int, z: int) -> Expr:
        return log_p(j, z) + ALPHA * _dot(w, [log_p(i, z) for i in _CONTEXTS])

    def led_to(j: int, z: int) -> Expr:
        moved = [coordinates[j][k] + ALPHA * _dot(w, [row[k] for row in coordinates]) for k in range(2)]
        share = 1 + ALPHA * sympy.Add(*w) if with_base else Integer(1)
        return share * base[z] + _dot(moved, [row[z] for row in features])

    return tuple(
        Identity(f"log-ratio of tokens {z} and 3 in context {j}", steered(j, z) - steered(j, 3), led_to(j, z) - led_to(j, 3))
        for j in _CONTEXTS
        for z in _TOKENS[:3]
    )


_M_INSIDE = (_M[0], _M[1], Integer(0), Integer(0))
"""M on the concept, 0 off it."""


def _n15(*, inside: bool = True) -> tuple[Identity, ...]:
    """The chain rule of the divergence for the set of tokens 0 and 1, with symbols for all logarithms.

    `inside`: with the part within the set, as is right.
    """
    p, log_p, log_q = _P[0], symbols("logp_0:4", real=True), symbols("logq_0:4", real=True)
    change, parts = [x - y for x, y in zip(log_p, log_q, strict=True)], []
    for name, tokens, counted in (("T", _INSIDE, inside), ("U", _OUTSIDE, True)):
        before, after = symbols(f"logF_{name} logG_{name}", real=True)
        share = _total(p, tokens)
        within = sympy.Add(*(p[z] / share * ((log_p[z] - before) - (log_q[z] - after)) for z in tokens))
        parts.append(share * (before - after) + (share * within if counted else 0))
    f, slope, variance = _total(p, _INSIDE), _total(p, _INSIDE) * _total(p, _OUTSIDE) * _slope(p), _variance(p)
    within = sympy.Add(*(p[z] * (_M[z] - _mean(p, tokens=tokens)) ** 2 for tokens in (_INSIDE, _OUTSIDE) for z in tokens))
    return (
        Identity("divergence", _dot(p, change), sympy.Add(*parts)),
        Identity("variance between and within", variance, f * (1 - f) * _slope(p) ** 2 + within),
        Identity("covariance with the set", _mean(p, _M_INSIDE) - f * _mean(p), slope),
    )


def _n15_efficiency(*, squared: bool = True) -> tuple[Identity, ...]:
    """Twice the leading coefficients: of kl(F_0 || F_alpha), ``F'^2 / (F (1 - F))``, and of KL, the variance."""
    row, p = _E[0], _P[0]
    f, g = _total(row, _INSIDE) / _total(row), _total(row, _OUTSIDE) / _total(row)
    start = _total(p, _INSIDE)
    share = derivative(derivative(-start * log(f) - (1 - start) * log(g)))
    covariance = _mean(p, _M_INSIDE) - start * _mean(p)
    correlation = covariance**2 / (start * (1 - start) * _variance(p))
    kept = correlation if squared else covariance / _variance(p)
    return (Identity("ratio of curvatures", at_zero(share), kept * at_zero(derivative(derivative(log(_total(row)))))),)


def _n16(*, drift: bool = True) -> tuple[Identity, ...]:
    """Heat equations in y and t: with weights ``e^{t M + y M^2 / 2}``, the log-odds of a set and their slope obey them.

    Not `drift`: without the terms that make them those of a ratio.
    """
    row = _E[0]
    heating: dict[Symbol, Expr] = {row[z]: _M[z] ** 2 / 2 * row[z] for z in _TOKENS}
    odds, both = log(_odds(row)), _mean(row, tokens=_INSIDE) + _mean(row, tokens=_OUTSIDE)
    rate = derivative(odds)
    carried = (both * rate, derivative(both * rate)) if drift else (0, 0)
    return (
        Identity("log-odds", derivative(odds, heating), (derivative(rate) + carried[0]) / 2),
        Identity("slope", derivative(rate, heating), (derivative(derivative(rate)) + carried[1]) / 2),
    )


def _n18(*, right: bool = True) -> tuple[Identity, ...]:
    """The law of two values, and the parabola that touches ``e^{alpha x}`` at one of them and meets it at the other.

    Its mean depends on the variance alone and is the bound. The values are b and ``-s/b``; ``low`` and ``high`` stand for
    the exponentials there. Not `right`: with the weights of the two exchanged.
    """
    b, s, low, high = symbols("b s low high", positive=True)
    foot, q = -s / b, s / (b**2 + s)
    bend = (high - low - ALPHA * low * (b - foot)) / (b - foot) ** 2
    bound = (b**2 * low + s * high) / (b**2 + s) if right else (s * low + b**2 * high) / (b**2 + s)
    return (
        Identity("mean", q * b + (1 - q) * foot, Integer(0)),
        Identity("variance", q * b**2 + (1 - q) * foot**2, s),
        Identity("normaliser of the law", q * high + (1 - q) * low, bound),
        Identity("mean of the parabola", low - ALPHA * low * foot + bend * (s + foot**2), bound),
    )


def _n20_range(*, right: bool = True) -> tuple[Identity, ...]:
    """The distribution of two tokens that attains the bound: the share q of the one that gains r, and ``e^r`` as a symbol.

    Not `right`: even shares.
    """
    r, exp_r = symbols("r e", positive=True)
    q = 1 / r - 1 / (exp_r - 1) if right else Rational(1, 2)
    return (
        Identity("slope by the share", (exp_r - 1) / (1 + q * (exp_r - 1)) - r, Integer(0)),
        Identity("normaliser", 1 + q * (exp_r - 1), (exp_r - 1) / r),
        Identity("mean", q * r, 1 - r / (exp_r - 1)),
    )


def _n20_arc(chord: int = 2) -> tuple[Identity, ...]:
    """The change of a logit when the state turns: at the angles m - x and m + x, by the sines and cosines of m and x."""
    a, b, t, u = symbols("A B t u", real=True)
    (cm, sm), (cx, sx) = (((1 - y**2) / (1 + y**2), 2 * y / (1 + y**2)) for y in (t, u))
    cosines, sines = (cm * cx - sm * sx) - (cm * cx + sm * sx), (sm * cx + cm * sx) - (sm * cx - cm * sx)
    across = b * cm - a * sm
    return (
        Identity("change along a chord", a * cosines + b * sines, chord * sx * across),
        Identity("what is left of the length", a**2 + b**2 - across**2, (a * cm + b * sm) ** 2),
    )


IDENTITIES: dict[str, Callable[[], tuple[Identity, ...]]] = {
    "lemma-B.2": _lemma_b2,
    "lemma-B.3": _lemma_b3,
    "lemma-B.4": _lemma_b4,
    "lemma-B.5": _lemma_b5,
    "theorem-3.6.tanh": _theorem_36,
    "theorem-3.8": _theorem_38,
    "N1": _n1,
    "N4.divergence": _n4_divergence,
    "N4.taylor": _n4_taylor,
    "N5": _n5,
    "N6.preference": _n6_preference,
    "N6.utility": _n6_utility,
    "N7": _n7,
    "N8.arc": _n8_arc,
    "N8.plateau": partial(_plateau, _moved(_NEAREST)),
    "N9": _n9,
    "N12": _n12,
    "N13.divergence": _n13_divergence,
    "N14.values": _n14_values,
    "N24": _n24,
    "N15.split": _n15,
    "N15.efficiency": _n15_efficiency,
    "N16.turns": _n16,
    "N18": _n18,
    "N20.range": _n20_range,
    "N20.arc": _n20_arc,
}
"""By statement: the identities that prove it. All of them hold."""

TWINS: dict[str, Callable[[], tuple[Identity, ...]]] = {
    "lemma-B.2": partial(_lemma_b2, _BY_CONCEPTS),
    "lemma-B.3": partial(_lemma_b3, _BY_CONCEPTS),
    "lemma-B.4": partial(_lemma_b4, counted=False),
    "lemma-B.5": partial(_lemma_b5, _BY_CONCEPTS),
    "theorem-3.6.tanh": _straight_log_odds,
    "theorem-3.8": _theorem_38_twin,
    "N1": _n1_twin,
    "N4.divergence": partial(_n4_divergence, backward=True),
    "N4.taylor": partial(_derivatives_at_zero, _central_moment),
    "N5": _straight_log_odds,
    "N6.preference": _n6_preference_twin,
    "N6.utility": partial(_n6_utility, _BY_CONCEPTS),
    "N7": partial(_n7, sqrt(_dot(_H, _H)) / _LENGTH),
    "N8.arc": partial(_n8_arc, Integer(0)),
    "N8.plateau": partial(_plateau, _H),
    "N9": partial(_n9, centred=False),
    "N12": _n12_twin,
    "N13.divergence": partial(_n13_divergence, linear=False),
    "N14.values": partial(_n14_values, offset=False),
    "N24": partial(_n24, with_base=False),
    "N15.split": partial(_n15, inside=False),
    "N15.efficiency": partial(_n15_efficiency, squared=False),
    "N16.turns": partial(_n16, drift=False),
    "N18": partial(_n18, right=False),
    "N20.range": partial(_n20_range, right=False),
    "N20.arc": partial(_n20_arc, 1),
}
"""By statement: the identities of its false twin. Not all of them hold."""

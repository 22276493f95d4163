"""Exact instances: next-token tables of fractions, so that a proof speaks of one instance and not of its rounding.

`rationalise` makes one from a floating-point `theory.instance.Instance` and keeps its structure: rows that sum to 1, tokens
whose probability does not depend on the context, equal rows, equal log-odds. `to_balls` is the way on to ball arithmetic,
`to_floats` the way back, `as_json` and `from_json` the way to a file.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from flint import arb

from theory import balls
from theory.instance import Instance
from ufm._check import require, typed

AGREE = 1e-12
"""Floating-point probabilities whose ratio is this close to 1 are taken for one number."""


@dataclass(frozen=True)
class RationalInstance:
    """An instance in fractions. The constructor checks nothing: `checked` does.

    Attributes:
        p: p_j(z), positive, rows that sum to 1, ``[m][V]``.
        weights: the probability of each context, positive, ``[m]``.
        concept: the concept of each context, ``[m]``.
        members: which tokens each concept has, ``[G][V]``. Concepts are disjoint or equal.
        contrast: 1/|P| on P, -1/|N| on N, 0 elsewhere, ``[m]``.
        target: the concept that P is taken from.
    """

    p: tuple[tuple[Fraction, ...], ...]
    weights: tuple[Fraction, ...]
    concept: tuple[int, ...]
    members: tuple[tuple[bool, ...], ...]
    contrast: tuple[Fraction, ...]
    target: int


@typed
def rationalise(instance: Instance, digits: int | None = None) -> RationalInstance:
    """Fractions for a floating-point instance.

    If the probability of each token is the same in all contexts of other concepts (to `AGREE`), it becomes one fraction
    there, and the probabilities of the context's own concept are rescaled so that the row sums to 1: equal rows stay equal,
    and so do log-odds that are equal because the probabilities of a concept are proportional in all contexts. Otherwise
    rows are rescaled as a whole.

    Args:
        instance: a single instance, not a batch.
        digits: significant decimal digits to round probabilities and weights to, before rescaling; None keeps all.

    Raises:
        ValueError: for a probability or weight of 0, a contrast that is not 1/|P| and -1/|N|, digits below 1.
    """
    require(digits is None or digits >= 1, "digits", "None or at least 1", digits)
    log_p, weights, contrast = (np.asarray(x, dtype=float) for x in (instance.log_p, instance.weights, instance.contrast))
    members, concept = np.asarray(instance.members, dtype=bool), np.asarray(instance.concept)
    require(log_p.ndim == 2, "instance", "a single instance, log_p of two axes", f"log_p of shape {log_p.shape}")
    require(bool(np.isfinite(log_p).all()), "instance", "positive probabilities", "a probability of 0")
    require(bool((weights > 0).all()), "instance", "positive weights", weights.tolist())
    p = np.exp(log_p)
    rows = _with_common_background(p, members, concept, digits)
    if rows is None:
        rows = [_rescaled(row) for row in _fractions(p, digits).tolist()]
    signs = np.sign(contrast).astype(int)
    sizes = {sign: int((signs == sign).sum()) for sign in (-1, 0, 1)}
    exact = [Fraction(int(sign), sizes[int(sign)]) for sign in signs]
    near = np.allclose(contrast, [float(x) for x in exact], rtol=1e-6, atol=0)
    require(near, "instance", "a contrast of 1/|P| on P and -1/|N| on N", contrast.tolist())
    return checked(
        RationalInstance(
            p=tuple(map(tuple, rows)),
            weights=tuple(_rescaled(_fractions(weights, digits).tolist())),
            concept=tuple(int(c) for c in concept),
            members=tuple(tuple(bool(x) for x in row) for row in members),
            contrast=tuple(exact),
            target=int(instance.target),
        )
    )


@typed
def checked(exact: RationalInstance) -> RationalInstance:
    """The instance itself.

    Raises:
        ValueError: for wrong lengths, probabilities or weights that are not positive or do not sum to 1 exactly, concepts
            that overlap or leave a token out, a contrast that is not 1/|P| on contexts P of the target and -1/|N| on
            contexts N of other concepts.
    """
    m, members, contrast = len(exact.p), exact.members, exact.contrast
    require(m >= 2, "p", "at least two rows", m)
    v = len(exact.p[0])
    for j, row in enumerate(exact.p):
        require(len(row) == v, f"p[{j}]", f"as many tokens as the first row, {v}", len(row))
        _check_shares(f"p[{j}]", row)
    require(len(exact.weights) == m, "weights", f"one for each row of p, {m}", len(exact.weights))
    _check_shares("weights", exact.weights)
    for g, mask in enumerate(members):
        require(len(mask) == v and any(mask), f"members[{g}]", f"a non-empty set of the {v} tokens", f"{sum(mask)} tokens")
        for h, other in enumerate(members[:g]):
            meet = any(a and b for a, b in zip(mask, other, strict=True))
            require(mask == other or not meet, "members", "concepts that are disjoint or equal", f"concepts {h} and {g}")
    left_out = [z for z in range(v) if not any(mask[z] for mask in members)]
    require(not left_out, "members", "concepts that cover all tokens", f"none with the tokens {left_out}")
    require(len(exact.concept) == m, "concept", f"one for each row of p, {m}", len(exact.concept))
    bad = [c for c in (*exact.concept, exact.target) if not 0 <= c < len(members)]
    require(not bad, "concept", f"concepts in 0..{len(members) - 1}, the target too", bad)
    require(len(contrast) == m, "contrast", f"one for each row of p, {m}", len(contrast))
    for sign, name in ((1, "P"), (-1, "N")):
        chosen = [j for j in range(m) if contrast[j] * sign > 0]
        ideal = all(contrast[j] == Fraction(sign, len(chosen)) for j in chosen)
        require(bool(chosen) and ideal, "contrast", f"{sign}/|{name}| on a non-empty {name}", [str(x) for x in contrast])
        target = members[exact.target]
        wrong = [j for j in chosen if (members[exact.concept[j]] == target) != (sign > 0)]
        side = "in" if sign > 0 else "outside"
        require(not wrong, "contrast", f"contexts of {name} {side} the target concept {exact.target}", f"contexts {wrong}")
    return exact


@functools.lru_cache(maxsize=256)
def to_balls(exact: RationalInstance, precision: int = 128) -> Instance:
    """The instance with balls for leaves, its peaks included (`Instance.known_peaks`).

    Equal fractions are one object, so that ball arithmetic knows them to be equal (`theory.balls`). Do not write to it.

    Args:
        exact: the instance.
        precision: bits; the balls are about as narrow.
    """
    with balls.working(precision):
        logs = {x: balls.number(x).log() for row in exact.p for x in row}
        plain = {x: balls.number(x) for x in (*exact.weights, *exact.contrast)}
        return Instance(
            log_p=_objects([[logs[x] for x in row] for row in exact.p]),
            weights=_objects([plain[x] for x in exact.weights]),
            concept=np.array(exact.concept),
            members=np.array(exact.members),
            contrast=_objects([plain[x] for x in exact.contrast]),
            target=np.array(exact.target),
            known_peaks=_peaks(exact, precision),
        )


@typed
def to_floats(exact: RationalInstance) -> Instance:
    """The instance in floating point, in the precision of the scope; peaks are left out."""
    with balls.working(128):
        log_p = [[float(balls.number(x).log()) for x in row] for row in exact.p]
    return Instance(
        log_p=jnp.asarray(log_p),
        weights=jnp.asarray([float(x) for x in exact.weights]),
        concept=jnp.asarray(exact.concept),
        members=jnp.asarray(exact.members),
        contrast=jnp.asarray([float(x) for x in exact.contrast]),
        target=jnp.asarray(exact.target),
    )


@typed
def log_odds_ranks(exact: RationalInstance) -> tuple[int, ...]:
    """The rank of each token's log-odds M(z), from 0 for the lowest; decided exactly, equal ones share a rank."""
    return _ranked(exact, 32)[0]


@typed
def as_json(exact: RationalInstance) -> dict[str, Any]:
    """Lists, numbers and strings: fractions as "3/10", concepts as lists of their tokens."""
    return {
        "p": [[str(x) for x in row] for row in exact.p],
        "weights": [str(x) for x in exact.weights],
        "concept": list(exact.concept),
        "members": [[z for z, inside in enumerate(mask) if inside] for mask in exact.members],
        "contrast": [str(x) for x in exact.contrast],
        "target": exact.target,
    }


def from_json(data: Any) -> RationalInstance:
    """The instance that `as_json` wrote, checked.

    Raises:
        ValueError: for a field that is missing or unknown, what is no fraction, and as `checked`.
    """
    names = list(RationalInstance.__dataclass_fields__)
    fields = sorted(data) if isinstance(data, Mapping) else type(data).__name__
    require(fields == sorted(names), "data", f"the fields {sorted(names)}", fields)
    p = tuple(_read_list(f"p[{j}]", row, _read_fraction) for j, row in enumerate(_read_list("p", data["p"], _read_any)))
    v = len(p[0]) if p else 0
    sets = _read_list("members", data["members"], _read_any)
    tokens = [_read_list(f"members[{g}]", row, _read_index) for g, row in enumerate(sets)]
    outside = [z for row in tokens for z in row if not 0 <= z < v]
    require(not outside, "members", f"tokens in 0..{v - 1}", outside)
    return checked(
        RationalInstance(
            p=p,
            weights=_read_list("weights", data["weights"], _read_fraction),
            concept=_read_list("concept", data["concept"], _read_index),
            members=tuple(tuple(z in row for z in range(v)) for row in tokens),
            contrast=_read_list("contrast", data["contrast"], _read_fraction),
            target=_read_index("target", data["target"]),
        )
    )


# From floats -----------------------------------------------------------------------------------------------------------


def _with_common_background(
    p: np.ndarray, members: np.ndarray, concept: np.ndarray, digits: int | None
) -> list[list[Fraction]] | None:
    """Rows in which a token has one probability in all contexts of other concepts; None if the table is not like that."""
    inside = members[concept]
    outside = np.where(inside, np.nan, p)
    if np.isnan(outside).all(axis=0).any():
        return None
    low, high = np.nanmin(outside, axis=0), np.nanmax(outside, axis=0)
    if (high > low * (1 + AGREE)).any():
        return None
    if np.ptp(np.log(p), axis=0).max() <= AGREE:
        return len(p) * [_rescaled(_fractions(low, digits).tolist())]
    background = _fractions(low, digits)
    # Concepts that are equally likely in contexts of others stay so, or log-odds that are equal would come apart.
    masks = np.unique(members, axis=0)
    for mask, total in zip(masks, _fractions(masks @ low, digits), strict=True):
        background[mask] *= total / sum(background[mask], Fraction(0))
    # By its ratio to the background: concepts in which it is constant have equal log-odds, and are to keep them.
    ratios = np.full(p.shape, Fraction(0), dtype=object)
    ratios[inside] = _fractions((p / low)[inside], digits)
    rows = []
    for j in range(len(p)):
        own = [r * b if i else None for r, b, i in zip(ratios[j], background, inside[j], strict=True)]
        left = 1 - sum((b for b, i in zip(background, inside[j], strict=True) if not i), Fraction(0))
        factor = left / sum((x for x in own if x is not None), Fraction(0))
        # A concept that all but vanishes in its own context would be lost to the rounding of the others.
        if abs(factor - 1) > Fraction(1, 10):
            return None
        rows.append([b if x is None else x * factor for x, b in zip(own, background, strict=True)])
    return rows


def rounded(x: float, digits: int | None) -> Fraction:
    """A number as a fraction: to so many significant decimal digits, or exactly what the float is."""
    return Fraction(float(x)) if digits is None else Fraction(f"{x:.{digits - 1}e}")


def _fractions(values: np.ndarray, digits: int | None) -> np.ndarray:
    """A fraction for each positive number, one and the same for those that agree."""
    flat = values.ravel()
    order = np.argsort(flat)
    out = np.empty(flat.size, dtype=object)
    before, known = -math.inf, Fraction(0)
    for i in order:
        x = float(flat[i])
        if not x <= before * (1 + AGREE):
            known = rounded(x, digits)
        out[i], before = known, x
    return out.reshape(values.shape)


def _rescaled(row: Sequence[Fraction]) -> list[Fraction]:
    total = sum(row, Fraction(0))
    return [x / total for x in row]


# To balls --------------------------------------------------------------------------------------------------------------


def _objects(values: list) -> np.ndarray:
    return np.array(values, dtype=object)


def _ranked(exact: RationalInstance, precision: int) -> tuple[tuple[int, ...], list[arb]]:
    """Ranks of the log-odds, and the log-odds of each rank; their differences are known to `precision` bits."""
    bits = precision + 32
    while True:
        with balls.working(bits):
            logs = {x: balls.number(x).log() for row in exact.p for x in row}
            used = [(balls.number(c), row) for c, row in zip(exact.contrast, exact.p, strict=True) if c]
            m = [sum((c * logs[row[z]] for c, row in used), arb(0)) for z in range(len(exact.p[0]))]
            ranks, apart = [0] * len(m), True
            classes: list[int] = []
            for z in sorted(range(len(m)), key=lambda z: m[z].mid()):
                if classes and m[z].overlaps(m[classes[-1]]):
                    apart &= (tied := _tied(exact, z, classes[-1]))
                    if not tied:
                        classes.append(z)
                else:
                    classes.append(z)
                ranks[z] = len(classes) - 1
            gaps = [m[y] - m[z] for z, y in itertools.pairwise(classes)]
        if apart and all(gap.rel_accuracy_bits() >= precision for gap in gaps):
            return tuple(ranks), [m[z] for z in classes]
        bits *= 2


def _tied(exact: RationalInstance, y: int, z: int) -> bool:
    """Whether M(y) = M(z): whether the product of the powers of the fractions p_j(y) / p_j(z) is 1."""
    ratios = [(c, row[y] / row[z]) for c, row in zip(exact.contrast, exact.p, strict=True) if c and row[y] != row[z]]
    scale = math.lcm(*(c.denominator for c, _ in ratios))
    return math.prod((r ** int(c * scale) for c, r in ratios), start=Fraction(1)) == 1


def _peaks(exact: RationalInstance, precision: int) -> np.ndarray:
    """``alpha_{j,z}`` for every context and token, ``[m, V]``: +inf and -inf for extreme tokens, NaN if M is constant."""
    ranks, m = _ranked(exact, precision + 16)
    last = len(m) - 1
    ends = {0: arb("-inf"), last: arb("inf")} if last else {0: arb("nan")}
    known: dict[tuple, list[arb]] = {}
    for row in exact.p:
        if row not in known:
            masses = [
                sum((x for x, rank in zip(row, ranks, strict=True) if rank == k), Fraction(0)) for k in range(last + 1)
            ]
            with balls.working(precision + 32):
                weights = [balls.number(x) for x in masses]
                known[row] = [
                    ends[k] if k in ends else _root(weights, [x - m[k] if i != k else arb(0) for i, x in enumerate(m)])
                    for k in range(last + 1)
                ]
    return _objects([[known[row][rank] for rank in ranks] for row in exact.p])


def _root(weights: list[arb], d: list[arb]) -> arb:
    """The root x of ``sum of weights d e^{x d}``, which increases with x; some d are negative and some positive."""

    def value(x: arb) -> arb:
        return sum((w * y * (x * y).exp() for w, y in zip(weights, d, strict=True)), arb(0))

    def slope(x: arb) -> arb:
        return sum((w * y**2 * (x * y).exp() for w, y in zip(weights, d, strict=True) if y != 0), arb(0))

    start = arb(_approximate_root(np.array([float(w) for w in weights]), np.array([float(y) for y in d])))
    spread = max(abs(float(y)) for y in d)
    radius = arb(2**-40) * (abs(start) + 1 / arb(spread))
    while not (value((start - radius).mid()) < 0 and value((start + radius).mid()) > 0):
        radius *= 1024
    x = (start - radius).mid().union((start + radius).mid())
    # Newton's method on the whole ball; the root stays inside, since the slope is positive.
    while True:
        middle = x.mid()
        step = value(middle) / slope(x)
        if not step.is_finite():
            half = value(middle)
            new = middle.union(x.upper()) if half < 0 else x.lower().union(middle) if half > 0 else x
        else:
            new = x.intersection(middle - step)
        if not 2 * new.rad() < x.rad():
            return new
        x = new


def _approximate_root(weights: np.ndarray, d: np.ndarray) -> float:
    """The root in floating point, by bisection."""

    def sign(x: float) -> float:
        exponents = x * d
        return float(np.dot(weights * d, np.exp(exponents - exponents.max())))

    side = 1.0 if sign(0.0) < 0 else -1.0
    far = side / np.abs(d).max()
    near = 0.0
    while sign(far) * side < 0:
        near, far = far, 2 * far
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if sign(middle) * side < 0 else (near, middle)
    return (near + far) / 2


def smaller(exact: RationalInstance) -> Iterator[RationalInstance]:
    """The table less a context, or with two tokens of a concept taken for one; the weights of contexts become even."""
    m, v = len(exact.p), len(exact.p[0])
    for j in range(m):
        left = [i for i in range(m) if i != j]
        signs = [(exact.contrast[i] > 0) - (exact.contrast[i] < 0) for i in left]
        if {1, -1} <= set(signs) and {exact.concept[i] for i in left} == set(exact.concept):
            yield replace(
                exact,
                p=tuple(exact.p[i] for i in left),
                concept=tuple(exact.concept[i] for i in left),
                contrast=tuple(Fraction(sign, signs.count(sign)) if sign else Fraction(0) for sign in signs),
                weights=even(m - 1),
            )
    for y in range(v):
        for z in range(y):
            if all(mask[y] == mask[z] for mask in exact.members):
                yield replace(
                    exact,
                    p=tuple((*row[:z], row[z] + row[y], *row[z + 1 : y], *row[y + 1 :]) for row in exact.p),
                    members=tuple((*mask[:y], *mask[y + 1 :]) for mask in exact.members),
                )


def even(m: int) -> tuple[Fraction, ...]:
    """Equal weights of m contexts."""
    return (Fraction(1, m),) * m


# Files -----------------------------------------------------------------------------------------------------------------


def _check_shares(name: str, row: Sequence[Fraction]) -> None:
    bad = {i: str(x) for i, x in enumerate(row) if not x > 0}
    require(not bad, name, "positive fractions", bad)
    total = sum(row, Fraction(0))
    require(total == 1, name, "fractions that sum to 1", f"a sum of {total}")


def _read_list(name: str, value: Any, item: Any) -> tuple:
    require(isinstance(value, list | tuple), name, "a list", type(value).__name__)
    return tuple(item(f"{name}[{i}]", x) for i, x in enumerate(value))


def _read_any(name: str, value: Any) -> Any:
    del name
    return value


def _read_index(name: str, value: Any) -> int:
    require(isinstance(value, int) and not isinstance(value, bool), name, "an integer", value)
    return value


def _read_fraction(name: str, value: Any) -> Fraction:
    expected = 'a fraction as a string, such as "3/10"'
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole or isinstance(value, str), name, expected, value)
    try:
        return Fraction(value)
    except (ValueError, ZeroDivisionError):
        require(False, name, expected, value)
        raise

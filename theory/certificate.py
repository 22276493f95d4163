"""Certificates: proofs that a curve is positive at every strength of an interval, or how often it changes its sign there.

The curve is evaluated in ball arithmetic (`theory.balls`) on an instance in fractions (`theory.rationals`), with the
strength a ball that covers a piece of the interval. A piece on which the result is positive is proved; the others are
split. `certify_count` bounds how often a curve changes its sign, and `confirm` decides the sign of a single number.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flint import arb

from theory import balls
from theory.rationals import RationalInstance, to_balls
from ufm._check import finite_number, require, shown, typed

Verdict = Literal["proved", "refuted", "undecided", "nothing claimed"]

End = Fraction | float | int | np.number | np.ndarray | jax.Array
"""An end of an interval: one number, taken exactly."""

NARROWEST = 2.0**-40
"""Pieces below this share of the interval are not split further."""

HOPELESS = 3
"""An entry is no longer pursued once its sign was out of reach, at full precision, at this many points."""


@dataclass(frozen=True)
class Certificate:
    """The findings about a curve on an interval.

    Attributes:
        verdict: "proved": positive at every strength of the interval, but at 0 if it was said to vanish there. "refuted":
            not positive at `at`. "undecided": neither was found. "nothing claimed": +inf at every strength.
        interval: the strengths it is about, ends included.
        pieces: how many pieces the proved part was cut into, but those on which nothing is claimed.
        evaluations: how often the curve or a derivative was evaluated.
        precision: the highest that was used, bits.
        remaining: total width of what was not proved.
        lower: a lower bound of the curve over the proved pieces, but those where only a derivative was bounded; +inf
            where nothing is claimed. If it is refuted, a number that an entry is no more than at `at`.
        at: the strength of the refutation, or the middle of the first piece that was given up.
    """

    verdict: Verdict
    interval: tuple[Fraction, Fraction]
    pieces: int
    evaluations: int
    precision: int
    remaining: float
    lower: float
    at: float | None


@dataclass(frozen=True)
class Confirmation:
    """The sign of a number.

    Attributes:
        sign: 1, -1, or 0 if it was not decided.
        lower: no more than the number.
        upper: no less than the number.
        digits: the number to as many digits as are known, at most 20.
        precision: bits.
    """

    sign: int
    lower: float
    upper: float
    digits: str
    precision: int


HIGHEST_ORDER = 30
"""The largest order of a zero: each order is one more derivative of the program."""


@typed
def certify(
    curve: Callable[..., Any],
    exact: RationalInstance | Any,
    interval: tuple[End, End] = (-60, 60),
    *,
    zero: int = 0,
    precision: int = 128,
    budget: int = 4000,
) -> Certificate:
    """Whether every entry of ``curve(instance, alpha)`` is positive for every alpha of a closed interval.

    An entry of +inf claims nothing, and if all are, everywhere, that is the verdict: it is no proof. Write curves so that
    alpha occurs in few places: an occurrence that cancels another
    is not seen to do so, and costs more splitting. Where the curve itself does not decide, its mean value form is tried.

    Args:
        curve: a JAX function of a `theory.instance.Instance` and a scalar alpha; returns arrays of floats, of any shape but
            with an entry at least. Derivatives are those that JAX takes of it: do not stop gradients that there are.
        exact: the instance; or any pytree that the curve takes, whose floats are then the exact numbers they are.
        interval: the ends.
        zero: an order k at which entries may vanish at 0: entries for which the value and the first k - 1 derivatives at 0
            cannot be told from 0 are taken to vanish there *exactly*, which is for the caller to know. They are claimed to
            be positive elsewhere, and proved so next to 0 by their k-th derivative. The curve has to be k times
            continuously differentiable on the interval.
        precision: bits to begin with; twice and four times as many are used at points where the sign needs them.
        budget: evaluations after which the rest is given up.

    Raises:
        ValueError: for an interval that is empty or not finite, or with 0 in its interior if `zero` is odd; for a curve
            that returns nothing, or something else than floats.
        Unsupported: if the curve has no rule in ball arithmetic.
    """
    low, high = _checked_ends(interval)
    require(budget >= 1, "budget", "at least one evaluation", budget)
    require(0 <= zero <= HIGHEST_ORDER, "zero", f"an order from 0 to {HIGHEST_ORDER}", zero)
    inside = low < 0 < high
    require(zero % 2 == 0 or not inside, "interval", f"0 at an end or outside, for the odd order zero={zero}", interval)
    search = _Bisection(_Curve(curve, exact, precision), low, high, zero, budget)
    return search.run()


@typed
def certify_count(
    curve: Callable[..., Any],
    exact: RationalInstance | Any,
    interval: tuple[End, End],
    most: Iterable[int],
    *,
    precision: int = 128,
    budget: int = 4000,
) -> Certificate:
    """Whether no entry of ``curve(instance, alpha)`` changes its sign more often than it may, on a closed interval.

    The interval is cut into pieces on which an entry has one sign, or its derivative has: a piece of the second kind has at
    most one zero, and the signs at its ends say whether it has one. An entry of +inf claims nothing. Refuted is what changes
    its sign too often on pieces already done. A zero that only touches 0 is never decided.

    Args:
        curve: a JAX function as `certify` takes it; its entries have to be continuously differentiable on the interval.
        exact: the instance, as `certify` takes it.
        interval: the ends.
        most: for every entry, in order, how many changes of sign are claimed to be the most.
        precision: bits to begin with; twice and four times as many are used at points where the sign needs them.
        budget: evaluations after which the rest is given up.

    Returns:
        a certificate whose `lower` is the least, over entries, of the changes allowed less those found, plus one half.

    Raises:
        ValueError: for an interval that is empty or not finite; a `most` that has not one number for each entry; a curve
            that returns nothing, or something else than floats.
        Unsupported: if the curve has no rule in ball arithmetic.
    """
    low, high = _checked_ends(interval)
    require(budget >= 1, "budget", "at least one evaluation", budget)
    values, allowed = _Curve(curve, exact, precision), np.asarray(list(most), dtype=int)
    require(allowed.size == values.count, "most", f"one number for each of the {values.count} entries", allowed.size)
    return _Counting(values, low, high, allowed, budget).run()


def _checked_ends(interval: Any) -> tuple[Fraction, Fraction]:
    """The ends of an interval, refused if they are not two finite ones in order."""
    pair = isinstance(interval, tuple | list) and len(interval) == 2
    require(pair, "interval", "two ends", shown(interval))
    for end in interval:
        finite_number("interval", end, "two finite ends")
    low, high = (Fraction(*(end.item() if hasattr(end, "item") else end).as_integer_ratio()) for end in interval)
    require(low < high, "interval", "a first end below the second", interval)
    return low, high


@typed
def confirm(
    margin: Callable[..., Any], exact: RationalInstance | Any, *, precision: int = 128, limit: int = 4096
) -> Confirmation:
    """The sign of a scalar margin on an exact instance; precision is doubled until it is decided.

    Args:
        margin: a JAX function of a `theory.instance.Instance`, scalar.
        exact: the instance; or any pytree that the margin takes, whose floats are then the exact numbers they are.
        precision: bits to begin with.
        limit: the most bits; beyond, the sign is 0. A margin that is 0 is never decided unless it is 0 exactly.

    Raises:
        ValueError: for a margin that returns no scalar, or none that is a float.
        Unsupported: if the margin has no rule in ball arithmetic.
    """
    require(precision <= limit, "precision", f"at most limit={limit}", precision)
    results = _floats("margin", "a scalar function", balls.shapes(margin, _with_balls(exact, precision)))
    require(len(results) == 1, "margin", "a scalar function", f"{len(results)} results")
    require(results[0].shape == (), "margin", "a scalar function", f"shape {results[0].shape}")
    while True:
        try:
            (value,) = jax.tree.leaves(balls.evaluate(margin, _with_balls(exact, precision), precision=precision))
            value = value.item()
        except balls.Undecided:
            value = arb("nan")
        sign = 1 if value > 0 else -1 if value < 0 else 0
        if sign or value.is_zero() or 2 * precision > limit:
            return Confirmation(sign, *balls.bounds(value), value.str(20), precision)
        precision *= 2


def _floats(argument: str, expected: str, result: Any) -> list[jax.ShapeDtypeStruct]:
    """The shapes and types of what a function returns; refused if that is nothing, or no floats."""
    leaves = jax.tree.leaves(result)
    require(bool(leaves), argument, expected, f"a function that returns {type(result).__name__}")
    others = [str(leaf.dtype) for leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    require(not others, argument, "a function that returns floats", ", ".join(others))
    return leaves


class _Curve:
    """Values and derivatives of a curve on an instance, at three precisions; counts evaluations."""

    def __init__(self, curve: Callable, exact: Any, precision: int) -> None:
        self.curve, self.exact, self.evaluations, self.used = curve, exact, 0, precision
        self.precisions = (precision, 2 * precision, 4 * precision)
        self.joined = False
        self._prepared: dict[tuple[int, int], balls.Along] = {}

    @property
    def count(self) -> int:
        """How many entries the curve has."""
        expected = "a function that returns numbers"
        leaves = _floats("curve", expected, balls.shapes(self.curve, _with_balls(self.exact, self.precisions[0]), 0.0))
        count = sum(leaf.size for leaf in leaves)
        require(count > 0, "curve", expected, f"none: shape {leaves[0].shape}")
        return count

    def __call__(self, alpha: balls.Number, *, order: int = 0, level: int = 0) -> list[arb] | None:
        """All entries of a derivative in one list; None if a choice the curve makes is not decided."""
        bits = self.precisions[level]
        self.evaluations, self.used = self.evaluations + 1, max(self.used, bits)
        try:
            if (order, level) not in self._prepared:
                function = _derivative(self.curve, order)
                self._prepared[order, level] = balls.along(function, _with_balls(self.exact, bits), precision=bits)
            at = self._prepared[order, level]
            result = at(alpha)
        except balls.Undecided:
            self.joined = True
            return None
        self.joined = at.joined
        return [x for leaf in jax.tree.leaves(result) for x in leaf.ravel().tolist()]


def _with_balls(exact: Any, precision: int) -> Any:
    """The instance that a curve or margin is evaluated on."""
    return to_balls(exact, precision) if isinstance(exact, RationalInstance) else exact


@functools.lru_cache(maxsize=256)
def _derivative(curve: Callable, order: int) -> Callable:
    """The derivative of a curve with respect to alpha."""
    if order == 0:
        return curve
    below = _derivative(curve, order - 1)

    def derivative(instance: Any, alpha: Any) -> Any:
        return jax.jvp(lambda a: below(instance, a), (alpha,), (jnp.ones_like(alpha),))[1]

    return derivative


@dataclass(frozen=True)
class _Piece:
    """A piece of the interval, the entries that are not proved on it, and how precise to be: an index of `precisions`."""

    low: Fraction
    high: Fraction
    open: tuple[int, ...]
    level: int

    @property
    def middle(self) -> Fraction:
        """A point inside; a float, unless they are too far apart."""
        middle = (self.low + self.high) / 2
        rounded = Fraction(float(middle))
        return rounded if self.low < rounded < self.high else middle

    def halves(self) -> tuple["_Piece", "_Piece"]:
        """The pieces left and right of the middle; of 0, if that is inside."""
        cut = Fraction(0) if self.low < 0 < self.high else self.middle
        return _Piece(self.low, cut, self.open, self.level), _Piece(cut, self.high, self.open, self.level)


class _Bisection:
    """Splits an interval, widest pieces first, until all is proved, something is refuted, or the budget is spent."""

    def __init__(self, curve: _Curve, low: Fraction, high: Fraction, zero: int, budget: int) -> None:
        self.curve, self.interval, self.zero, self.budget = curve, (low, high), zero, budget
        self.pieces, self.lower, self.given_up = 0, np.inf, Fraction(0)
        self.at: float | None = None
        self.vanishing: set[int] = set()
        self.misses: dict[int, int] = {}
        self.tries, self.wins, self.width = 0, 0, high - low
        self.silent = False

    def run(self) -> Certificate:
        """Search, and say what was found."""
        low, high = self.interval
        entries = tuple(range(self.curve.count))
        if self.zero and low <= 0 <= high:
            # With all the precision there is: what vanishes is assumed, and should not be assumed too easily.
            orders = [self.curve(0, order=k, level=-1) for k in range(self.zero)]
            self.curve.used = self.curve.precisions[0]
            known = [] if None in orders else [[x.is_finite() and x.contains(0) for x in values or ()] for values in orders]
            self.vanishing = {i for i in entries if known and all(zeros[i] for zeros in known)}
        waiting = deque([_Piece(low, high, entries, 0)])
        while waiting and self.curve.evaluations < self.budget:
            piece = waiting.popleft()
            undone = self._examine(piece)
            if undone is None:
                waiting.appendleft(piece)
                return self._certificate("refuted", waiting)
            if not undone.open:
                self.pieces += not self.silent
            elif all(self.misses.get(i, 0) >= HOPELESS for i in undone.open) or self._narrow(piece):
                self.given_up += piece.high - piece.low
                self.at = float(piece.middle) if self.at is None else self.at
            elif undone.level > piece.level:
                waiting.appendleft(undone)
            else:
                waiting.extend(undone.halves())
        verdict: Verdict = "proved" if self.pieces else "nothing claimed"
        return self._certificate("undecided" if waiting or self.given_up else verdict, waiting)

    def _narrow(self, piece: _Piece) -> bool:
        return piece.high - piece.low <= (self.interval[1] - self.interval[0]) * Fraction(NARROWEST)

    def _certificate(self, verdict: Verdict, waiting: deque[_Piece]) -> Certificate:
        left = self.given_up + sum((piece.high - piece.low for piece in waiting), Fraction(0))
        at = self.at if self.at is not None or not waiting else float(waiting[0].middle)
        return Certificate(
            verdict,
            self.interval,
            self.pieces,
            self.curve.evaluations,
            self.curve.used,
            float(left),
            float(self.lower),
            at,
        )

    def _examine(self, piece: _Piece) -> _Piece | None:
        """The piece with the entries that remain open on it, and perhaps a higher level; None if one is refuted."""
        level = piece.level
        with balls.working(self.curve.precisions[level]):
            alpha = balls.interval(piece.low, piece.high)
        at_zero = piece.low <= 0 <= piece.high
        values = self.curve(alpha, level=level)
        left = self._settle(piece.open, values, bounds=True)
        self.silent = values is not None and all(values[i] == arb("inf") for i in piece.open)
        # The mean value theorem knows nothing of jumps, and a derivative does not show them.
        jumps = self.curve.joined
        if not left:
            return _Piece(piece.low, piece.high, (), level)
        if at_zero and self.vanishing.intersection(left):
            left = self._settle_at_zero(piece, alpha, left)
        middle = piece.middle
        centre = self.curve(middle, level=level)
        higher: int | None = level
        if centre is not None:
            exempt = self.vanishing if middle == 0 else ()
            if self._refutes(middle, centre, [i for i in left if i not in exempt]):
                return None
            if not jumps and not (at_zero and self.vanishing.intersection(left)):
                left = self._settle_by_mean_value(piece, alpha, centre, left)
            unclear = [i for i in left if not centre[i] > 0 and i not in exempt]
            if unclear:
                higher = self._clear(middle, unclear, level)
        return _Piece(piece.low, piece.high, left, higher) if higher is not None else None

    def _settle(self, open_: tuple[int, ...], values: list[arb] | None, *, bounds: bool = False) -> tuple[int, ...]:
        """The entries that the values do not prove positive."""
        if values is None:
            return open_
        left = tuple(i for i in open_ if not values[i] > 0)
        if bounds:
            proved = (balls.bounds(values[i])[0] for i in open_ if values[i] > 0)
            self.lower = min(self.lower, *proved, np.inf)
        return left

    def _settle_at_zero(self, piece: _Piece, alpha: arb, left: tuple[int, ...]) -> tuple[int, ...]:
        """The entries left at a zero of order k, where f(alpha) is alpha^k / k! times f^(k) somewhere in between."""
        values = self.curve(alpha, order=self.zero, level=piece.level)
        if values is None:
            return left
        signed = [-x for x in values] if self.zero % 2 and piece.low < 0 else values
        return tuple(i for i in left if i not in self.vanishing or not signed[i] > 0)

    def _settle_by_mean_value(self, piece: _Piece, alpha: arb, centre: list[arb], left: tuple[int, ...]) -> tuple[int, ...]:
        """The entries left by f(middle) + f'(piece) (piece - middle), a bound that is skipped once it has seldom helped."""
        if piece.high - piece.low < self.width:
            # Of narrower pieces nothing is known yet: what it is out by shrinks with the square of the width.
            self.width, self.tries, self.wins = piece.high - piece.low, 0, 0
        self.tries += 1
        if self.tries > 8 and 4 * self.wins < self.tries and self.tries % 8:
            return left
        slopes = self.curve(alpha, order=1, level=piece.level)
        if slopes is None:
            return left
        with balls.working(self.curve.precisions[piece.level]):
            off = alpha - balls.number(piece.middle)
            values = [c + s * off for c, s in zip(centre, slopes, strict=True)]
        after = self._settle(left, values, bounds=True)
        self.wins += len(after) < len(left)
        return after

    def _refutes(self, middle: Fraction, values: list[arb], claimed: list[int]) -> bool:
        """Whether one of the entries is not positive at a point; notes the point, and how far down they are."""
        wrong = [balls.bounds(values[i])[1] for i in claimed if values[i] <= 0]
        if wrong:
            self.at, self.lower = float(middle), min(wrong)
        return bool(wrong)

    def _clear(self, middle: Fraction, unclear: list[int], level: int) -> int | None:
        """The level at which the signs of entries at a point are seen; the same one, if at none. None if one is negative."""
        for higher in range(level + 1, len(self.curve.precisions)):
            values = self.curve(middle, level=higher)
            if values is not None:
                if self._refutes(middle, values, unclear):
                    return None
                if all(values[i] > 0 for i in unclear):
                    return higher
        for i in unclear:
            self.misses[i] = self.misses.get(i, 0) + 1
        return level


_OFF = Fraction(487, 1000)
"""Where pieces are cut if zeros are counted, as a share of their width: zeros are often in the middle, at strength 0 say."""


class _Counting:
    """Cuts an interval, widest pieces first, until the changes of sign of every entry are known, or too many."""

    def __init__(self, curve: _Curve, low: Fraction, high: Fraction, most: np.ndarray, budget: int) -> None:
        self.curve, self.interval, self.most, self.budget = curve, (low, high), most, budget
        self.found = np.zeros_like(most)
        self.signs: dict[Fraction, tuple[list[int], int]] = {}
        self.misses: dict[int, set[Fraction]] = {}
        self.pieces, self.claims = 0, False

    def run(self) -> Certificate:
        """Search, and say what was found."""
        low, high = self.interval
        waiting = deque([_Piece(low, high, tuple(range(self.most.size)), 0)])
        given_up, at = Fraction(0), None
        while waiting and self.curve.evaluations < self.budget:
            piece = waiting.popleft()
            left = self._count(piece)
            if (self.found > self.most).any():
                waiting.appendleft(piece)
                return self._certificate("refuted", waiting, given_up, float(piece.middle))
            narrow = (piece.high - piece.low) <= (high - low) * Fraction(NARROWEST)
            if not left:
                self.pieces += 1
            elif narrow or all(len(self.misses.get(i, ())) >= HOPELESS for i in left):
                given_up, at = given_up + piece.high - piece.low, float(piece.middle) if at is None else at
            else:
                cut = self._cut(piece)
                waiting.extend((_Piece(piece.low, cut, left, 0), _Piece(cut, piece.high, left, 0)))
        at = float(waiting[0].middle) if at is None and waiting else at
        verdict: Verdict = "proved" if self.claims else "nothing claimed"
        return self._certificate("undecided" if waiting or given_up else verdict, waiting, given_up, at)

    def _certificate(self, verdict: Verdict, waiting: deque[_Piece], given_up: Fraction, at: float | None) -> Certificate:
        left = given_up + sum((piece.high - piece.low for piece in waiting), Fraction(0))
        pieces = self.pieces if self.claims else 0
        lower = float(np.min(self.most - self.found)) + 0.5 if self.claims else np.inf
        return Certificate(verdict, self.interval, pieces, self.curve.evaluations, self.curve.used, float(left), lower, at)

    @staticmethod
    def _cut(piece: _Piece) -> Fraction:
        return Fraction(float(piece.low + (piece.high - piece.low) * _OFF))

    def _count(self, piece: _Piece) -> tuple[int, ...]:
        """Count the changes of sign on a piece, and return the entries that it is too wide for."""
        with balls.working(self.curve.precisions[0]):
            alpha = balls.interval(piece.low, piece.high)
        values = self.curve(alpha)
        # A derivative does not show the jumps of a choice.
        jumps = self.curve.joined
        if values is not None:
            self.claims |= any(values[i] != arb("inf") for i in piece.open)
        left = tuple(i for i in piece.open if values is None or not (values[i] > 0 or values[i] < 0))
        slopes = self.curve(alpha, order=1) if left and not jumps else None
        if slopes is None:
            return left
        steep = tuple(i for i in left if slopes[i] > 0 or slopes[i] < 0)
        before, after = self._signs(piece.low, steep), self._signs(piece.high, steep)
        sure = {i for i in steep if before[i] and after[i]}
        for i in sure:
            self.found[i] += before[i] != after[i]
        left = tuple(i for i in left if i not in sure)
        cut = self._cut(piece)
        centre = self.curve(cut) if left else None
        if centre is None:
            return left
        self.signs.setdefault(cut, ([(x > 0) - (x < 0) for x in centre], 1))
        with balls.working(self.curve.precisions[0]):
            off = alpha - balls.number(cut)
            values = [c + s * off for c, s in zip(centre, slopes, strict=True)]
        left = tuple(i for i in left if not (values[i] > 0 or values[i] < 0))
        # What is 0 everywhere shows no sign at any point, and is soon given up.
        self._signs(cut, left)
        return left

    def _signs(self, alpha: Fraction, needed: tuple[int, ...]) -> list[int]:
        """The signs of all entries at a point, 0 for those not seen; to full precision for those that are needed."""
        known, tried = self.signs.get(alpha, ([0] * self.most.size, 0))
        for level in range(tried, len(self.curve.precisions)):
            if all(known[i] for i in needed):
                break
            values, tried = self.curve(alpha, level=level), level + 1
            if values is not None:
                known = [sign or (x > 0) - (x < 0) for sign, x in zip(known, values, strict=True)]
        for i in needed:
            if not known[i]:
                self.misses.setdefault(i, set()).add(alpha)
        self.signs[alpha] = known, tried
        return known

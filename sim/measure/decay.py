"""Validity decay: W's curves of preference and utility against strength, fitted.

W (arXiv:2602.02343) finds that steering works as long as hidden states stay where the model has learned to read them, and
that this validity D falls with the strength alpha like a rational-quadratic, on each side of 0 with numbers of its own:

    D(alpha) = ((1 + (alpha - alpha_s)^2 / L_s) / (1 + alpha_s^2 / L_s))^(-p_s),      s the sign of alpha,
    preference(alpha) = (slope alpha + beta) D(alpha) + b,      utility(alpha) = beta D(alpha) + b.

Here D(0) = 1 on both sides, so that D is continuous whatever the numbers. W's own pieces lack the denominator, and have to
agree at 0; their common value there is a factor that slope and beta absorb, which makes them a special case. So is N7's law:
one piece for both sides, with exponent 1/2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import minimum_filter
from scipy.optimize import least_squares

from sim.measure.curves import r_squared
from ufm._check import finite, require

REACH_OF_CENTRE, REACH_OF_WIDTH, REACH_OF_EXPONENT = 3.0, (1e-3, 30.0), (0.02, 20.0)
"""Limits of the fitted numbers: centres and widths in units of the largest strength, and exponents."""

_STARTS, _POLISHED = 30, 10
_GRID = (np.linspace(-1.5, 1.5, 13), np.log(np.geomspace(0.03, 10, 7)), np.log([0.05, 0.5, 2.0, 10.0]))
_BETWEEN = 8
_SAME_BOUND = 1e-6


class Side(NamedTuple):
    """D on one side of 0.

    Attributes:
        centre: alpha_s, a strength.
        width: sqrt(L_s), a strength.
        exponent: p_s.
    """

    centre: float
    width: float
    exponent: float


@dataclass(frozen=True)
class Decay:
    """A fitted curve.

    Attributes:
        slope: of the preference, per unit of strength; 0 for utility. W calls it alpha.
        beta, b: what D scales, and what it does not.
        below, above: D at strengths below 0, and at 0 and above; the same if one piece was asked for.
        errors: standard error of each of `parameters`, to first order, from the Jacobian and the residual. NaN where data do
            not determine the number: it was held, it is at a bound, or others make up for it. Where a number is at a
            bound, the errors of those that data would determine without it too are those with it held there.
        r_squared: the share of the variance along the sweep that is explained.
        residual: root mean square of what is left, in the units of the curve.
        points: how many were fitted.
    """

    slope: float
    beta: float
    b: float
    below: Side
    above: Side
    errors: dict[str, float]
    r_squared: float
    residual: float
    points: int

    @property
    def parameters(self) -> dict[str, float]:
        """All numbers by name: ``slope``, ``beta``, ``b``, ``below.centre`` and so on."""
        sides = {f"{name}.{key}": value for name in _SIDES for key, value in getattr(self, name)._asdict().items()}
        return {"slope": self.slope, "beta": self.beta, "b": self.b} | sides

    def validity(self, alphas: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """D at strengths `alphas`, ``[n]``; 1 at 0."""
        numbers = np.asarray([self.below, self.above], float)
        return np.exp(
            _log_validity(alphas, (alphas >= 0).astype(int), numbers[:, 0], np.log(numbers[:, 1]), np.log(numbers[:, 2]))
        )

    def __call__(self, alphas: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The curve at strengths `alphas`, ``[n]``."""
        return (self.slope * alphas + self.beta) * self.validity(alphas) + self.b

    def half(self, sign: int) -> float:
        """The strength of this sign at which D has fallen to 1/2.

        It is ``alpha_s + s sqrt(L_s (2^(1/p_s) (1 + alpha_s^2/L_s) - 1))``. There is one on each side, but it may lie beyond
        the strengths that were fitted, and be inf where D falls so slowly that no number is large enough.

        Raises:
            ValueError: `sign` not 1 or -1.
        """
        require(sign in (1, -1), "sign", "1 or -1", sign)
        centre, width, exponent = self.above if sign > 0 else self.below
        outwards, squared = sign * centre, width**2
        with np.errstate(over="ignore"):
            rest = np.expm1(np.log(2) / exponent)
            far = outwards + np.sqrt((squared + outwards**2) * rest + outwards**2)
        return float(sign * far)


_SIDES = ("below", "above")


def between(alphas: Float[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """Strengths in increasing order, ``[n]``, with others evenly between each and the next, for curves."""
    last = alphas.size - 1
    return np.interp(np.linspace(0, last, _BETWEEN * last + 1), np.arange(alphas.size), alphas)


def fit_preference(
    alphas: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], *, one_piece: bool = False, exponent: float | None = None
) -> Decay:
    """The curve ``(slope alpha + beta) D(alpha) + b`` nearest to points in squares, of those that keep near them.

    Two points and a narrow peak between them fit anything, so a curve may go beyond the points, between any two of them, by
    no more than they lie apart; one that does is taken if no other is found. Many curves are nearer than all that are like
    them: fits start from all such places of a grid.

    Args:
        alphas: strengths, in any order, of both signs unless there is one piece.
        y: preference log-odds, in nats.
        one_piece: the same centre, width and exponent on both sides.
        exponent: held at this value; 0.5 is N7's law.

    Raises:
        ValueError: `alphas` or `y` of other shapes or not finite (points that are dropped are the caller's to tell); fewer
            distinct strengths than numbers to fit; two pieces, and no strength below 0 or none above; a `y` that does not
            change; an exponent that is not positive.
    """
    return _fit(alphas, y, True, one_piece, exponent)


def fit_utility(
    alphas: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], *, one_piece: bool = False, exponent: float | None = None
) -> Decay:
    """The curve ``beta D(alpha) + b`` nearest to points, as in `fit_preference`, whose arguments and errors it has."""
    return _fit(alphas, y, False, one_piece, exponent)


class _Problem(NamedTuple):
    """Points, and how numbers stand for a curve: of each piece the centre and the logarithms of width and exponent.

    Attributes:
        alphas, y: points; strengths of a piece are in units of its largest.
        piece: of each point.
        scale: the unit of the strengths of each piece.
        tilted: whether there is a slope.
        held: the exponent that is not fitted.
    """

    alphas: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    piece: Int[np.ndarray, " n"]
    scale: Float[np.ndarray, " s"]
    tilted: bool
    held: float | None

    @property
    def free(self) -> int:
        """How many numbers of a piece are fitted."""
        return 3 if self.held is None else 2

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest values of the numbers of all pieces."""
        ends = [(-REACH_OF_CENTRE, REACH_OF_CENTRE), tuple(np.log(REACH_OF_WIDTH)), tuple(np.log(REACH_OF_EXPONENT))]
        low, high = np.asarray(ends[: self.free] * self.scale.size).T
        return low, high

    def numbers(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre, log width and log exponent of each piece."""
        rows = q.reshape(self.scale.size, self.free)
        last = rows[:, 2] if self.held is None else np.full(self.scale.size, np.log(self.held))
        return rows[:, 0], rows[:, 1], last

    def functions(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D, and the functions of which the curve is a sum, ``[n, 2 or 3]``."""
        d = np.exp(_log_validity(self.alphas, self.piece, *self.numbers(q)))
        strength = self.alphas * self.scale[self.piece]
        return d, np.stack([*([strength * d] if self.tilted else []), d, np.ones_like(d)], axis=1)

    def solved(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """D and the functions, as `functions` gives them, and the best weights of the functions."""
        d, functions = self.functions(q)
        sizes = np.linalg.norm(functions, axis=0)
        weights = np.linalg.lstsq(functions / sizes, self.y, rcond=None)[0] / sizes
        return d, functions, weights

    def only(self, k: int) -> "_Problem":
        """The problem of piece k alone."""
        mine = self.piece == k
        return _Problem(self.alphas[mine], self.y[mine], self.piece[mine] - k, self.scale[[k]], self.tilted, self.held)

    @property
    def finer(self) -> "_Problem":
        """This problem with additional strengths between its own, and NaN as values."""
        known = self.alphas * self.scale[self.piece]
        knots = np.unique(np.append(known, 0.0) if known.min() < 0 < known.max() else known)
        alphas = between(knots)
        piece = (alphas >= 0).astype(int) if self.scale.size > 1 else np.zeros(alphas.size, int)
        return self._replace(alphas=alphas / self.scale[piece], y=np.full(alphas.size, np.nan), piece=piece)

    def tame(self, q: np.ndarray, finer: "_Problem") -> bool:
        """Whether the curve between points goes no further beyond them than they lie apart."""
        curve = finer.functions(q)[1] @ self.solved(q)[2]
        room = np.ptp(self.y)
        return bool((curve >= self.y.min() - room).all() and (curve <= self.y.max() + room).all())

    def left(self, q: np.ndarray) -> np.ndarray:
        """The residuals of the curve with the best weights."""
        _, functions, weights = self.solved(q)
        return functions @ weights - self.y

    def cost(self, q: np.ndarray) -> float:
        """The sum of the squared residuals."""
        return float(np.sum(self.left(q) ** 2))

    def slopes(self, q: np.ndarray) -> np.ndarray:
        """The derivatives of the curve with respect to q, with the weights held, ``[n, q]``."""
        d, functions, weights = self.solved(q)
        scaled = functions[:, :-1] @ weights[:-1]
        each = np.stack(_slopes(self.alphas, self.piece, *self.numbers(q), np.log(d))[: self.free], axis=1)
        mine = (self.piece[:, None] == np.arange(self.scale.size))[..., None]
        return (mine * (scaled[:, None] * each)[:, None, :]).reshape(self.alphas.size, -1)

    def projected(self, q: np.ndarray) -> np.ndarray:
        """The slopes without the part that the weights compensate (variable projection in Kaufman's approximation)."""
        _, functions, _ = self.solved(q)
        basis = np.linalg.qr(functions / np.linalg.norm(functions, axis=0))[0]
        slopes = self.slopes(q)
        return slopes - basis @ (basis.T @ slopes)


def _log_validity(alphas, piece, centre, log_width, log_exponent) -> np.ndarray:
    width = np.exp(log_width)
    here = np.log1p(((alphas - centre[piece]) / width[piece]) ** 2) - np.log1p((centre / width) ** 2)[piece]
    return -np.exp(log_exponent)[piece] * here


def _slopes(alphas, piece, centre, log_width, log_exponent, log_d) -> tuple[np.ndarray, ...]:
    """Derivatives of log D in centre, log width and log exponent."""
    c, squared, p = centre[piece], np.exp(2 * log_width)[piece], np.exp(log_exponent)[piece]
    away, start = squared + (alphas - c) ** 2, squared + c**2
    of_centre = 2 * p * ((alphas - c) / away + c / start)
    of_width = 2 * p * ((alphas - c) ** 2 / away - c**2 / start)
    return of_centre, of_width, log_d


def _fit(alphas: np.ndarray, y: np.ndarray, tilted: bool, one_piece: bool, exponent: float | None) -> Decay:
    problem = _posed(alphas, y, tilted, one_piece, exponent)
    low, high = problem.bounds
    tight = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "max_nfev": 300}

    def polished(q: np.ndarray) -> np.ndarray:
        return least_squares(problem.left, np.clip(q, low, high), problem.projected, (low, high), **tight).x

    loose = {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-10, "max_nfev": 60}
    fits = [least_squares(problem.left, start, problem.projected, (low, high), **loose) for start in _starts(problem)]
    ends, finer = [fit.x for fit in sorted(fits, key=lambda fit: fit.cost)], problem.finer
    # A polished curve may no longer be tame, so that the starting points count as well.
    starts = [q for q in ends if problem.tame(q, finer)][:_POLISHED] or ends[:_POLISHED]
    every = [*starts, *map(polished, starts)]
    tame = [q for q in every if problem.tame(q, finer)]
    return _described(problem, min(tame or every, key=problem.cost))


def _posed(alphas: np.ndarray, y: np.ndarray, tilted: bool, one_piece: bool, exponent: float | None) -> _Problem:
    alphas, y = finite("alphas", alphas), finite("y", y)
    require(alphas.ndim == 1 and alphas.shape == y.shape, "y", f"one value for each strength, shape {alphas.shape}", y.shape)
    held = exponent is not None
    require(exponent is None or (np.isfinite(exponent) and exponent > 0), "exponent", "a positive number or None", exponent)
    count = (1 if one_piece else 2) * (2 if held else 3) + (3 if tilted else 2)
    distinct = np.unique(alphas).size
    require(distinct >= count, "alphas", f"at least {count} distinct strengths, as many as numbers to fit", distinct)
    require(
        one_piece or (alphas.min() < 0 < alphas.max()),
        "alphas",
        "strengths below 0 and above it",
        (float(alphas.min()), float(alphas.max())),
    )
    require(np.ptp(y) > 0, "y", "a curve that changes", "one value")
    piece = np.zeros(alphas.size, int) if one_piece else (alphas >= 0).astype(int)
    scale = np.asarray([np.abs(alphas[piece == k]).max() for k in range(piece.max() + 1)])
    return _Problem(alphas / scale[piece], y, piece, scale, tilted, exponent)


def _starts(problem: _Problem) -> list[np.ndarray]:
    """Where the cost is least among neighbours on a grid of all numbers, the least first.

    The sums that the best weights follow from are those of one piece plus those of the other, so that a grid of both is as
    cheap as one of each and a small system for every two of their points.
    """
    axes = _GRID[: problem.free]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, problem.free)
    each = [_sums(problem.only(k), points) for k in range(problem.scale.size)]
    sums = each[0] if len(each) == 1 else each[0][:, None] + each[1]
    matrix, vector = sums[..., :-1, :-1], sums[..., :-1, -1:]
    sizes = np.sqrt(np.einsum("...ii->...i", matrix))[..., None] + np.finfo(float).tiny
    vector, ridge = vector / sizes, _SAME_BOUND**2 * np.eye(vector.shape[-2])
    weights = np.linalg.solve(matrix / sizes / np.swapaxes(sizes, -1, -2) + ridge, vector)
    cost = -np.sum(weights * vector, axis=(-2, -1)).reshape([axis.size for axis in axes] * len(each))
    lowest = cost == minimum_filter(cost, size=3, mode="nearest")
    places = np.argwhere(lowest)[np.argsort(cost[lowest], kind="stable")[:_STARTS]]
    return [np.asarray([axes[k % problem.free][at] for k, at in enumerate(place)]) for place in places]


def _sums(problem: _Problem, points: np.ndarray) -> np.ndarray:
    """Products of the functions and the values of a piece, summed over its strengths, at every point of a grid."""
    values = problem.y[:, None]
    parts = [np.concatenate([problem.functions(q)[1], values], axis=1) for q in points]
    return np.stack([part.T @ part for part in parts])


def _described(problem: _Problem, q: np.ndarray) -> Decay:
    _, functions, weights = problem.solved(q)
    low, high = problem.bounds
    inside = (q > low + _SAME_BOUND) & (q < high - _SAME_BOUND)
    jacobian = np.concatenate([functions, problem.slopes(q)], axis=1)
    fitted = np.concatenate([np.ones(weights.size, bool), inside])
    left = functions @ weights - problem.y
    freedom = problem.y.size - weights.size - q.size
    scatter = float(left @ left) / freedom if freedom > 0 else np.nan
    errors = np.full(fitted.size, np.nan)
    errors[fitted] = np.sqrt(scatter) * _spread(jacobian[:, fitted])
    # Of curves that are equally near, rounding decides whether one at a bound is found: it tells no more than the others.
    errors[np.isnan(_spread(jacobian))] = np.nan

    centre, log_width, log_exponent = problem.numbers(q)
    width, exponent = np.exp(log_width) * problem.scale, np.exp(log_exponent)
    of_pieces = errors[weights.size :].reshape(problem.scale.size, problem.free)
    of_exponents = of_pieces[:, 2] * exponent if problem.held is None else np.full(problem.scale.size, np.nan)
    values = np.stack([centre * problem.scale, width, exponent], axis=1)
    uncertain = np.stack([of_pieces[:, 0] * problem.scale, of_pieces[:, 1] * width, of_exponents], axis=1)
    below, above = (Side(*values[k].tolist()) for k in (0, -1))

    names, shown = ("slope", "beta", "b")[3 - weights.size :], errors.tolist()
    named = {"slope": float("nan")} | dict(zip(names, shown[: weights.size], strict=True))
    for side, row in zip(_SIDES, (uncertain[0], uncertain[-1]), strict=True):
        named |= {f"{side}.{key}": value for key, value in zip(Side._fields, row.tolist(), strict=True)}
    slope = float(weights[0]) if problem.tilted else 0.0
    beta, b = weights[-2:].tolist()
    explained = r_squared(problem.y, functions @ weights)
    rms = float(np.sqrt(np.mean(left**2)))
    return Decay(slope, beta, b, below, above, named, explained, rms, problem.y.size)


def _spread(jacobian: np.ndarray) -> np.ndarray:
    """Roots of the diagonal of ``(J^T J)^-1``, NaN for numbers that can change while the curve does not."""
    sizes = np.linalg.norm(jacobian, axis=0)
    used = sizes > 0
    out = np.full(sizes.size, np.nan)
    if not used.any():
        return out
    _, singular, rows = np.linalg.svd(jacobian[:, used] / sizes[used], full_matrices=False)
    clear = singular > np.sqrt(np.finfo(float).eps) * singular[0]
    spread = np.sqrt(np.sum((rows[clear] / singular[clear, None]) ** 2, axis=0)) / sizes[used]
    # What takes no part in such a change has 0 there but for rounding; a part that is small is one.
    lost: Bool[np.ndarray, " k"] = np.sum(rows[~clear] ** 2, axis=0) > 1e-6
    out[used] = np.where(lost, np.nan, spread)
    return out

import threading

import flint
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flint import arb
from jax import lax

from tests import oracles
from theory import balls, tilting

RNG = np.random.default_rng(11)
X = RNG.normal(size=(3, 4))
Y = RNG.normal(size=(3, 4))
POSITIVE = np.exp(RNG.normal(size=(3, 4)))
SMALL = RNG.uniform(-0.9, 0.9, size=(3, 4))
MASK = RNG.random((3, 4)) < 0.5
SOME = MASK | (np.arange(3) == 0)[:, None]
INDEX = np.array([2, 0, 1, 2])

FUNCTIONS = {
    "add": (lambda x, y: x + y, X, Y),
    "sub": (lambda x, y: x - y, X, Y),
    "mul": (lambda x, y: x * y, X, Y),
    "div": (lambda x, y: x / y, X, POSITIVE),
    "neg": (lambda x: -x, X),
    "exp": (jnp.exp, X),
    "exp2": (jnp.exp2, X),
    "log": (jnp.log, POSITIVE),
    "log1p": (jnp.log1p, POSITIVE),
    "expm1": (jnp.expm1, X),
    "tanh": (jnp.tanh, X),
    "logistic": (jax.nn.sigmoid, X),
    "softplus": (jax.nn.softplus, X),
    "log_sigmoid": (jax.nn.log_sigmoid, X),
    "logaddexp": (jnp.logaddexp, X, Y),
    "sqrt": (jnp.sqrt, POSITIVE),
    "rsqrt": (lax.rsqrt, POSITIVE),
    "abs": (jnp.abs, X),
    "sign": (jnp.sign, X),
    "pow": (lambda x, y: x**y, POSITIVE, Y),
    "pow of integers": (lambda x: x[0] ** jnp.arange(x.shape[1]), X),
    "integer_pow": (lambda x: x**3 + x**2 + x**-2 + x**0, X),
    "square": (jnp.square, X),
    "maximum": (jnp.maximum, X, Y),
    "minimum": (jnp.minimum, X, Y),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), X),
    "clamp": (lambda x: lax.clamp(-0.5, x, 0.5), X),
    "sin": (jnp.sin, X),
    "cos": (jnp.cos, X),
    "tan": (jnp.tan, SMALL),
    "asin": (jnp.arcsin, SMALL),
    "acos": (jnp.arccos, SMALL),
    "atan": (jnp.arctan, X),
    "sinh": (jnp.sinh, X),
    "cosh": (jnp.cosh, X),
    "asinh": (jnp.arcsinh, X),
    "acosh": (lambda x: jnp.arccosh(1 + x), POSITIVE),
    "atanh": (jnp.arctanh, SMALL),
    "erf": (jax.scipy.special.erf, X),
    "erfc": (jax.scipy.special.erfc, X),
    "erf_inv": (jax.scipy.special.erfinv, SMALL),
    "lgamma": (jax.scipy.special.gammaln, POSITIVE),
    "digamma": (jax.scipy.special.digamma, POSITIVE),
    "floor": (jnp.floor, X),
    "ceil": (jnp.ceil, X),
    "sum": (lambda x: (x.sum(), x.sum(axis=0), x.sum(axis=(0, 1)), x.sum(axis=1, keepdims=True)), X),
    "max": (lambda x: (x.max(), x.max(axis=0), x.min(axis=1)), X),
    "prod": (lambda x: (x.prod(axis=0), x.prod()), X),
    "mean": (lambda x: (x.mean(axis=1), x.std()), X),
    "argmax": (lambda x: (jnp.argmax(x, axis=1), jnp.argmin(x), x[jnp.argmax(x[:, 0])]), X),
    "cumsum": (lambda x: (jnp.cumsum(x, axis=1), lax.cumsum(x, reverse=True)), X),
    "cumprod": (lambda x: (jnp.cumprod(x, axis=0), lax.cummax(x), lax.cummin(x, axis=1)), X),
    "dot": (lambda x, y: (x @ y.T, jnp.dot(x[0], y[0]), jnp.tensordot(x, y, 2), x @ y[1]), X, Y),
    "einsum": (lambda x, y: (jnp.einsum("ij,ik->ijk", x, y), jnp.einsum("ij,ij->i", x, y), jnp.outer(x, y)), X, Y),
    "batched dot": (lambda x: jax.vmap(lambda a: a @ a.T)(jnp.stack([x, 2 * x])), X),
    "compare": (lambda x, y: (x < y, x <= y, x > y, x >= y, x == y, x != y, x == x, x < x, jnp.isfinite(x)), X, Y),
    "logic": (
        lambda x, y, m: ((x < y) & m, (x < y) | m, ~m, m ^ (x < y), jnp.any(x < y), jnp.all(x < 9, axis=0)),
        X,
        Y,
        MASK,
    ),
    "where": (lambda x, y, m: (jnp.where(m, x, y), jnp.where(x < y, x, -jnp.inf), jnp.where(m, 1, 2)), X, Y, MASK),
    "select": (lambda x, y: (jnp.select([x < 0, y < 0], [x, y], 7.0), lax.select_n(jnp.array(2), x, y, x + y)), X, Y),
    "stack": (
        lambda x: (jnp.stack([x, 2 * x], 1), jnp.unstack(x, axis=1), jnp.tile(x, (2, 3)), jnp.roll(x, 1, 0), jnp.triu(x)),
        X,
    ),
    "reshape": (
        lambda x: (x.reshape(2, 6), x.T, x[:, None], jnp.squeeze(x[:1]), jnp.broadcast_to(x, (2, 3, 4)), x.ravel()),
        X,
    ),
    "join": (
        lambda x, y: (jnp.concatenate([x, y]), jnp.stack([x, y], 1), jnp.pad(x, ((1, 0), (0, 2)), constant_values=3.0)),
        X,
        Y,
    ),
    "slices": (lambda x: (x[1:, ::2], x[::-1], jnp.flip(x), x[1], x[:, -1], jnp.split(x, 2, axis=1)), X),
    "indices": (lambda x, i: (x[i], x[i[0]], jnp.take_along_axis(x, i[:3, None], 1), x.at[i].get(mode="clip")), X, INDEX),
    "out of bounds": (lambda x, i: x.at[i + 2].get(mode="fill", fill_value=-1.0), X, INDEX),
    "dynamic": (
        lambda x, i: (lax.dynamic_slice(x, (i[0], 1), (1, 2)), lax.dynamic_update_slice(x, x[:1], (i[0], 0))),
        X,
        INDEX,
    ),
    "scatter": (lambda x, i: (x.at[i].add(1.5), x.at[0, 1].set(9.0), x.at[i].multiply(2.0), x.at[i].max(0.1)), X, INDEX),
    "sort": (lambda x: (jnp.sort(x, axis=0), jnp.argsort(x, axis=1), jnp.argsort(jnp.argsort(x[0]))), X),
    "convert": (
        lambda x, m, i: (x.astype(int), (10 * x).astype(int), m.astype(float), i.astype(float), x.astype(bool)),
        X,
        MASK,
        INDEX,
    ),
    "integers": (
        lambda i, m: (
            i + 1,
            i * i,
            -i,
            i // 2,
            i % 2,
            i < 2,
            i.sum(),
            i.max(),
            i & 1,
            ~i,
            m.sum(),
            jnp.sort(i),
            i[i],
            i.astype(bool),
        ),
        INDEX,
        MASK,
    ),
    "iota": (lambda x: x * jnp.arange(4.0) + jnp.eye(3, 4) + jnp.linspace(0.0, 1.0, 4), X),
    "jit": (lambda x: jax.jit(lambda y: jax.checkpoint(jnp.sin)(y) + jax.jit(jnp.cos)(y))(x), X),
    "relu": (lambda x: (jax.nn.relu(x), jax.nn.gelu(x), jax.nn.silu(x)), X),
    "scan": (lambda x: lax.scan(lambda c, row: (c + row, c * row), x[0], x, reverse=True), X),
    "fori": (lambda x: lax.fori_loop(0, 5, lambda k, c: c * 0.5 + k, x), X),
    "while": (lambda x: lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1], X),
    "cond": (lambda x: (lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), lax.switch(2, [jnp.sin, jnp.cos, jnp.tanh], x)), X),
    "grad": (jax.grad(lambda x: jax.nn.logsumexp(jnp.sin(x)) + jnp.max(x[0]) + x[1, 2]), X),
    "jvp": (lambda x, y: jax.jvp(lambda a: jax.nn.softmax(jnp.maximum(a, 0.1)), (x,), (y,)), X, Y),
    "stop_gradient": (lambda x: lax.stop_gradient(lax.optimization_barrier(x)), X),
    "logsumexp": (lambda x, m: jax.nn.logsumexp(jnp.where(m, x, -jnp.inf), axis=0), X, SOME),
    "softmax": (
        lambda x, m: (jax.nn.softmax(jnp.where(m, x, -jnp.inf), axis=0, where=None), jax.nn.log_softmax(x)),
        X,
        SOME,
    ),
    "xlogy": (lambda x: jax.scipy.special.xlogy(x, x) + jax.scipy.special.entr(x), POSITIVE),
}

functions = pytest.mark.parametrize("case", FUNCTIONS.values(), ids=FUNCTIONS)


def exact(array):
    """Floats as balls of radius 0; other arrays as they are."""
    return np.frompyfunc(arb, 1, 1)(array) if np.asarray(array).dtype == float else array


def wide(array, radius=0.05):
    return np.frompyfunc(lambda x: arb(x, radius), 1, 1)(array) if array.dtype == float else array


def near(ball, value, tolerance=1e-12):
    if np.isinf(value):
        return ball.is_exact() and float(ball) == value
    return abs(ball - arb(float(value))) < tolerance * (1 + abs(value)) and float(ball.rad()) < 1e-30 * (1 + abs(value))


def pairs(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        yield from zip(a.ravel().tolist(), np.asarray(b).ravel().tolist(), strict=True)


@functions
def test_point_values_agree_with_jax(case):
    function, *arguments = case
    got = balls.evaluate(function, *map(exact, arguments))
    for ball, value in pairs(got, function(*map(jnp.asarray, arguments))):
        if isinstance(value, float):
            assert near(ball, value), (ball, value)
        else:
            assert ball == value


@functions
def test_wide_balls_contain_the_values_inside(case):
    function, *arguments = case
    try:
        enclosure = balls.evaluate(function, *map(wide, arguments))
    except balls.Undecided:
        pytest.skip("depends on comparisons that these balls do not decide")
    rng = np.random.default_rng(0)
    for _ in range(3):
        inside = [x + rng.uniform(-0.05, 0.05, x.shape) if x.dtype == float else x for x in arguments]
        for ball, point in pairs(enclosure, balls.evaluate(function, *map(exact, inside))):
            if isinstance(point, arb):
                assert ball.is_nan() or ball.contains(point) or ball.overlaps(point), (ball, point)
            else:
                assert ball is None or ball == point


ALONE = [jnp.exp, jnp.tanh, jax.nn.sigmoid, jnp.abs, jnp.square, jnp.arctan, jnp.expm1, jnp.sign, jax.scipy.special.erf]


@pytest.mark.parametrize(
    "name", ["tanh", "arcsin", "arccos", "arctan", "arctanh", "arcsinh", "sinh", "log1p", "expm1", "sqrt"]
)
def test_derivatives_have_rules_in_every_release(name):
    """Releases of JAX differ in the primitives that derivatives are made of."""
    function = getattr(jnp, name)
    for order in (1, 2, 3):
        function, x = jax.grad(function), 0.3
        expected = mpmath.diff(getattr(mpmath, MPMATH.get(name, name)), x, order)
        assert float(balls.evaluate(function, balls.interval(x, x)).item().mid()) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("coefficients", [(2.0,), (1.0, -3.0), (0.5, 0.0, -2.0, 7.0)])
def test_polynomials_in_every_release(coefficients):
    rows = jnp.asarray(coefficients)

    def value(x):
        return (
            jnp.polyval(rows, x),
            jax.grad(lambda y: jnp.polyval(rows * y, y).sum())(x),
            rows[:, None] * jnp.polyval(rows, x),
        )

    x = 0.375
    for got, expected in zip(balls.evaluate(value, balls.interval(x, x)), value(jnp.asarray(x)), strict=True):
        points = [float(ball.mid()) for ball in np.asarray(got, dtype=object).ravel()]
        np.testing.assert_allclose(points, np.ravel(expected), rtol=1e-12)


MPMATH = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctanh": "atanh", "arcsinh": "asinh"}


@pytest.mark.parametrize("function", [*ALONE, lambda x: x**3, lambda x: x**4, jax.nn.relu])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (-0.125, 2.0), (0.5, 9.0), (-7.0, -0.25), (-0.5, 0.5)])
def test_enclosures_of_single_functions_are_tight(function, low, high):
    ball = balls.evaluate(function, balls.interval(low, high)).item()
    values = np.asarray(function(jnp.linspace(low, high, 1001)))
    # Only the values: a ball around 0 does not say that a square is not negative, but what it says is no wider.
    bottom, top = balls.bounds(ball)
    slack = 3e-3 * (1 + np.abs(values).max())
    assert bottom <= values.min() + 1e-12
    assert top >= values.max() - 1e-12
    if function is not jnp.sign or low * high > 0:
        assert bottom >= values.min() - slack
        assert top <= values.max() + slack


def test_logsumexp_to_fifty_digits():
    log_p, m = np.log(RNG.dirichlet(np.ones(7))), RNG.normal(size=7)
    for alpha in (0.3, -50.0, 1e6):
        got = balls.evaluate(tilting.log_partition, log_p, m, alpha, precision=300).item()
        expected = oracles.log_partition(log_p, m, alpha)
        assert abs(mpmath.mpf(got.mid().str(60, radius=False)) - expected) < mpmath.mpf(10) ** -42


def test_elementary_functions_to_forty_digits():
    for function, oracle in [
        (jnp.exp, mpmath.exp),
        (jnp.log1p, mpmath.log1p),
        (jnp.tanh, mpmath.tanh),
        (jax.nn.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x))),
        (jnp.exp2, lambda x: mpmath.mpf(2) ** x),
        (lambda x: x**7, lambda x: x**7),
        (jax.scipy.special.erf, mpmath.erf),
    ]:
        for x in (0.37, 2.5, -0.875):
            got = balls.evaluate(function, x, precision=200).item()
            assert abs(mpmath.mpf(got.mid().str(60, radius=False)) - oracle(mpmath.mpf(x))) < mpmath.mpf(10) ** -45
            assert float(got.rad()) < 1e-55


def test_infinities_are_exact():
    inf = np.array([np.inf, -np.inf, 1.0])
    assert [balls.bounds(x) for x in balls.evaluate(jnp.exp, inf)[:2]] == [(np.inf, np.inf), (0, 0)]
    assert balls.evaluate(jnp.isfinite, inf).tolist() == [False, False, True]
    assert balls.evaluate(lambda x: (jnp.min(x), jnp.max(x[1:])), inf)[0].item() == arb("-inf")
    assert balls.evaluate(jnp.log, 0.0).item() == arb("-inf")
    assert balls.evaluate(lambda x: jax.nn.logsumexp(jnp.full(3, -jnp.inf) + x), 0.0).item() == arb("-inf")
    assert balls.evaluate(jnp.sum, np.zeros((0,))).item() == 0
    assert balls.evaluate(lambda x: jnp.max(x, initial=-jnp.inf), np.zeros((0,))).item() == arb("-inf")


def test_undecided_comparisons():
    ball, zero = arb(0, 1), 0.0
    results = balls.evaluate(
        lambda x, y: (x < y, x == y, ~(x < y), (x < y) & (x < 9), (x < y) & (x > 9), (x < y) | (x < 9)), ball, zero
    )
    assert [x.item() for x in results] == [None, None, None, None, False, True]
    either = balls.evaluate(lambda x, y: jnp.where(x < y, 3.0, 5.0), ball, zero).item()
    assert balls.bounds(either) == pytest.approx((3, 5))
    assert balls.evaluate(lambda x, y: jnp.where(x < y, 3, 3), ball, zero).item() == 3
    assert balls.bounds(balls.evaluate(lambda x: (x < 0).astype(float), ball).item()) == pytest.approx((0, 1), abs=1e-8)
    branches = balls.evaluate(lambda x: lax.cond(x < 0, lambda: 3.0, lambda: 5.0), ball).item()
    assert balls.bounds(branches) == pytest.approx((3, 5))
    unknown = balls.evaluate(lambda x: jnp.log(x) <= 9, ball).item()
    assert unknown is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("other", [1.0, 3e-25, 1e20])
def test_hulls_keep_their_sign(sign, other):
    joined = balls.evaluate(
        lambda x, y: jnp.where(x < 0, sign * 1e-20 * y, sign * other * y), arb(0, 1), arb(1, 0.25)
    ).item()
    assert joined > 0 if sign > 0 else joined < 0
    for end in (1e-20 * 0.75, 1e-20 * 1.25, other * 0.75, other * 1.25):
        assert joined.contains(arb(sign * end))
    assert abs(joined) < arb(2 * max(other, 1e-20))


def test_what_cannot_be_decided_is_refused():
    both = np.array([arb(0, 1), arb(0, 1)])
    for function in (jnp.argmax, jnp.sort, lambda x: jnp.arange(3)[x[0].astype(int)]):
        with pytest.raises(balls.Undecided):
            balls.evaluate(function, both)
    with pytest.raises(balls.Undecided, match="while"):
        balls.evaluate(lambda x: lax.while_loop(lambda c: c > 0, lambda c: c - 1, x[0]), both)


def test_unknown_primitives_are_named():
    with pytest.raises(balls.Unsupported, match="triangular_solve"):
        balls.evaluate(lambda x: jax.scipy.linalg.solve_triangular(x @ x.T, x[:, 0]), X)
    # What the result does not depend on does not matter.
    assert balls.evaluate(lambda x: (jax.scipy.linalg.solve_triangular(x @ x.T, x[:, 0]), x)[1], X).shape == X.shape


def test_arguments_that_are_no_numbers():
    with pytest.raises(ValueError, match="arguments: expected object arrays"):
        balls.evaluate(jnp.sin, np.array(["a", None], dtype=object))
    with pytest.raises(ValueError, match="precision: expected"):
        balls.evaluate(jnp.sin, 1.0, precision=0)


def test_one_object_is_one_number():
    x, same_size = arb(0, 1), arb(0, 1)
    assert balls.evaluate(lambda a, b: a - b, x, x).item() == 0
    assert balls.evaluate(lambda a, b: a - b, x, same_size).item().rad() > 1
    assert balls.evaluate(lambda a: a[:, None] <= a, np.array([x, same_size])).tolist() == [[True, None], [None, True]]
    assert balls.evaluate(lambda a: jnp.max(a) == a, np.array([x, arb(5)])).tolist() == [False, True]
    columns = np.array([[x, x], [same_size, same_size]])
    assert balls.evaluate(lambda c, a: (c @ a)[0] - jax.jit(jnp.matmul)(c, a)[1], np.array([1.0, -0.5]), columns).item() == 0


def test_ties_are_seen():
    """Log-odds that agree but for their error bound: 1/3 from a sum and from a quotient."""
    m = balls.evaluate(lambda x: jnp.stack([x / 3, 1 - 2 * (x / 3), 0 * x, x / 4]), 1.0)
    assert m[0].rad() > 0
    highest, lowest, spread = balls.evaluate(tilting.extremes, m)
    assert highest.tolist() == [True, True, False, False]
    assert lowest.tolist() == [False, False, True, False]
    assert near(spread.item(), 1 / 3)


@pytest.mark.parametrize(
    "function",
    [
        tilting.log_probabilities,
        tilting.variance,
        tilting.mean,
        lambda log_p, m, alpha: tilting.concept_log_odds(log_p, m, alpha, jnp.arange(4) % 2 == 0),
        lambda log_p, m, alpha: tilting.conditional_mean(log_p, m, alpha, jnp.arange(4) % 2 == 0),
    ],
    ids=["log_probabilities", "variance", "mean", "concept_log_odds", "conditional_mean"],
)
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.25), (-0.5, 0.25), (40.0, 40.5)])
def test_the_tilted_family_along_strengths(function, low, high):
    log_p, m = np.log(RNG.dirichlet(np.ones(4), size=3)), RNG.normal(size=4)

    def rows(log_p, m, alpha):
        return jax.vmap(lambda row: function(row, m, alpha))(log_p)

    at = balls.along(rows, log_p, m)
    enclosure = at(balls.interval(low, high))
    for alpha in np.linspace(low, high, 5):
        point = at(float(alpha))
        expected = np.asarray(rows(jnp.asarray(log_p), jnp.asarray(m), alpha))
        for ball, value, around in zip(point.ravel(), expected.ravel(), enclosure.ravel(), strict=True):
            assert near(ball, value)
            assert around.overlaps(ball)
            assert around.is_finite()


def test_along_is_evaluate():
    def function(x, alpha):
        return {"sum": jnp.sum(jnp.exp(alpha * x)), "fixed": x > 0}

    got, expected = balls.along(function, X)(0.5), balls.evaluate(function, X, 0.5)
    assert got["fixed"].tolist() == expected["fixed"].tolist()
    assert got["sum"].item().overlaps(expected["sum"].item())


def test_functions_are_traced_once():
    traced = []

    def function(x, alpha):
        traced.append(None)
        return x * alpha

    at = balls.along(function, X)
    for alpha in (0.0, 1.0, arb(0, 1)):
        at(alpha)
    balls.evaluate(function, Y, 3.0)
    assert len(traced) == 1


def test_precision_is_put_back_and_kept_apart_by_threads():
    before = flint.ctx.prec
    narrow = []

    def work(bits):
        for _ in range(20):
            ball = balls.evaluate(lambda x: jnp.exp(jnp.sin(x)), 1.0, precision=bits).item()
            narrow.append(ball.rel_accuracy_bits() > bits - 12)

    threads = [threading.Thread(target=work, args=(bits,)) for bits in (64, 300, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(narrow)
    assert len(narrow) == 60
    assert flint.ctx.prec == before
    with pytest.raises(ValueError, match="inner"), balls.working(500):
        raise ValueError("inner")
    assert flint.ctx.prec == before


def test_bounds_are_bounds():
    third = balls.evaluate(lambda x: x / 3, 1.0).item()
    low, high = balls.bounds(third)
    assert arb(low) < third < arb(high)
    assert balls.bounds(arb(0.5)) == (0.5, 0.5)
    assert balls.bounds(arb("inf")) == (np.inf, np.inf)

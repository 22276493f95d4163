"""Closed forms of N15, N18 and N20 against brute force: 50 digits, direct divergences, and thousands of random tables."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import mpf

from tests import oracles
from theory import budgets
from theory.arc import Arc, arc_of, logits_at

MANY = 10_000
"""Random instances of every inequality."""


def kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def normalised(logits):
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))


@pytest.fixture(scope="module")
def tables():
    """Tables of 6 tokens, from flat to nearly degenerate, their log-odds, sets of tokens, and strengths of both signs."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        log_p = normalised(rng.normal(size=(MANY, 6)) * 10 ** rng.uniform(-1, 1, (MANY, 1)))
    m = rng.normal(size=(MANY, 6)) * 10 ** rng.uniform(-2, 1, (MANY, 1))
    members = rng.random((MANY, 6)) < 0.5
    members[:, 0], members[:, 1] = True, False
    return log_p, m, members, rng.choice([-1, 1], MANY) * 10 ** rng.uniform(-2, 1, MANY)


# --- N15 -------------------------------------------------------------------------------------------------------------

SHARES = [0.0, 1e-300, 1e-12, 0.02, 0.3, 0.3 + 1e-9, 0.5, 0.97, 1 - 1e-12, 1.0]


@mpmath.workdps(350)
def exact_binary(f0, f1):
    total = mpf(0)
    for a, b in ((mpf(f0), mpf(f1)), (1 - mpf(f0), 1 - mpf(f1))):
        total += 0 if a == 0 else mpmath.inf if b == 0 else a * mpmath.log(a / b)
    return total


def test_the_binary_divergence_to_50_digits():
    for f0 in SHARES:
        for f1 in SHARES:
            got, expected = float(budgets.binary_divergence(f0, f1)), exact_binary(f0, f1)
            assert got == expected or oracles.close(got, expected, 1e-14, 1e-15 * abs(f0 - f1)), (f0, f1)


def test_the_three_parts_of_a_cost_add_up(tables):
    log_p, m, members, alphas = tables
    log_q = normalised(log_p + alphas[:, None] * m)
    cost = budgets.split_cost(log_p, log_q, members)
    total = kl(log_p, log_q)
    assert (np.abs(cost.total - total) <= 1e-12 * (1 + total)).all()
    assert min(part.min() for part in cost) > -1e-14
    for i in range(40):
        p, q, inside = np.exp(log_p[i]), np.exp(log_q[i]), members[i]
        shares = [(x[inside].sum(), x[~inside].sum()) for x in (p, q)]
        within = [share * kl(np.log(p[s] / share), np.log(q[s] / other)) for s, share, other in
                  zip((inside, ~inside), *shares, strict=True)]  # fmt: skip
        between = float(exact_binary(shares[0][0], shares[1][0]))
        np.testing.assert_allclose([between, *within], [part[i] for part in cost], rtol=1e-9, atol=1e-13)


def test_no_intervention_raises_a_share_for_less(tables):
    """Any two distributions, of any origin; and the one that scales the set as a whole attains the cost."""
    log_p, _, members, _ = tables
    log_q = np.roll(log_p, 1, axis=0)
    f0, f1 = (np.sum(np.exp(x) * members, axis=-1) for x in (log_p, log_q))
    up = (f1 > f0 + 1e-9) & (f1 < 1)
    cost = np.asarray(budgets.cost_of_share(f0[up], f1[up]))
    assert up.sum() > MANY / 4
    assert (kl(log_p, log_q)[up] >= cost * (1 - 1e-11) - 1e-13).all()
    factor = np.where(members, (f1 / f0)[:, None], ((1 - f1) / (1 - f0))[:, None])
    cheapest = log_p + np.log(factor)
    np.testing.assert_allclose(kl(log_p, cheapest)[up], cost, rtol=1e-9, atol=1e-13)


def test_the_largest_share_within_a_budget_inverts_its_cost():
    f0, budget = np.meshgrid([1e-12, 0.01, 0.5, 0.9], [1e-9, 0.01, 0.1, 1.0])
    tau = budgets.share_within(f0, budget)
    assert (tau > f0).all()
    np.testing.assert_allclose(budgets.cost_of_share(f0, tau), budget, rtol=1e-6)
    np.testing.assert_allclose(budgets.share_within(0.5, 0.1), 0.5 + np.sqrt(1 - np.exp(-0.2)) / 2, rtol=1e-14)


def test_the_efficiency_is_the_limit_of_share_cost_by_cost(tables):
    log_p, m, members, _ = (array[:200] for array in tables)
    rho2 = np.asarray(budgets.efficiency(log_p, m, members))
    for i in range(200):
        p = [mpmath.exp(mpf(float(x))) for x in log_p[i]]
        p = [x / mpmath.fsum(p) for x in p]
        values, inside = [mpf(float(x)) for x in m[i]], [mpf(int(x)) for x in members[i]]

        def mean(x, p=p):
            return mpmath.fsum(a * b for a, b in zip(p, x, strict=True))

        def covariance(x, y, mean=mean):
            return mean([(a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)])

        expected = covariance(values, inside) ** 2 / (covariance(values, values) * covariance(inside, inside))
        assert oracles.close(rho2[i], expected, 1e-10)
        # The limit itself.
        q, _ = oracles.tilted(log_p[i], m[i], mpf(10) ** -15)
        total = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))
        share = exact_binary(mean(inside), mpmath.fsum(a * b for a, b in zip(q, inside, strict=True)))
        assert oracles.close(rho2[i], share / total, 1e-8, 1e-12)


def test_the_efficiency_is_1_where_only_the_set_is_told_apart():
    log_p, members = normalised([0.3, -1.0, 2.0, 0.1]), np.array([True, False, True, False])
    np.testing.assert_allclose(budgets.efficiency(log_p, np.where(members, 1.5, -0.5), members), 1, rtol=1e-15)
    assert budgets.efficiency(log_p, np.array([1.5, -0.5, 1.4, -0.5]), members) < 1


# --- N18 -------------------------------------------------------------------------------------------------------------


def budget_of(log_p, m, alphas):
    spread = budgets.spread_of(log_p, m)
    end = np.where(alphas > 0, spread.above, spread.below)
    return spread, np.asarray(budgets.budget_bound(spread.variance, end, alphas))


def test_the_budget_bound_is_never_below_the_cost(tables):
    log_p, m, _, alphas = tables
    _, bound = budget_of(log_p, m, alphas)
    cost = kl(log_p, normalised(log_p + alphas[:, None] * m))
    assert (bound >= cost * (1 - 1e-12) - 1e-13).all()


def test_the_budget_bound_to_50_digits():
    for variance in (1e-8, 1.0, 300.0):
        for above in (1e-4, 1.0, 30.0):
            for alpha in (-1e-6, 0.02, 1.5, 50.0):
                s, b, a = mpf(variance), mpf(above), abs(mpf(alpha))
                expected = mpmath.log((b**2 * mpmath.exp(-a * s / b) + s * mpmath.exp(a * b)) / (b**2 + s))
                assert oracles.close(budgets.budget_bound(variance, above, alpha), expected, 1e-13), (variance, above, alpha)


def test_two_values_attain_the_budget_bound():
    for rare in (0.01, 0.3, 0.9):
        for alpha in (0.01, 1.0, 20.0):
            log_p, m = np.log([rare, 1 - rare]), np.array([2.0, -1.0])
            _, bound = budget_of(log_p, m, alpha)
            np.testing.assert_allclose(bound, kl(log_p, normalised(log_p + alpha * m)), rtol=1e-11, atol=1e-15)


def test_the_safe_strength_is_solved_to_rounding():
    rng = np.random.default_rng(1)
    variance, above = 10 ** rng.uniform(-4, 4, 2000), 10 ** rng.uniform(-2, 2, 2000)
    budget = 10 ** rng.uniform(-8, 1, 2000)
    strength = budgets.safe_strength(variance, above, budget)
    np.testing.assert_allclose(budgets.budget_bound(variance, above, strength), budget, rtol=1e-13)


def largest_within(bound, budget):
    """The largest of a fine grid of strengths at which a bound that grows with the strength is within the budget."""
    strengths = np.arange(1, 400_000) * 1e-6
    return strengths[bound(strengths) <= budget][-1]


def test_a_wide_but_rare_end_allows_a_little_more_than_n4_and_far_more_than_hoeffding():
    """Variance 1, the end 30 above the mean, R = 40 and a budget of 0.1 nats."""
    variance, end, width, budget = 1.0, 30.0, 40.0, 0.1

    def bennett(alpha):
        two = end**2 * np.exp(-alpha * variance / end) + variance * np.exp(alpha * end)
        return np.log(two / (end**2 + variance))

    def of_variance(alpha):
        x = width * alpha
        return variance * (np.exp(x) - x - 1) / width**2

    def hoeffding(alpha):
        return (width * alpha) ** 2 / 8

    def n4(alpha):
        return np.minimum(of_variance(alpha), hoeffding(alpha))

    allowed = [largest_within(bound, budget) for bound in (bennett, n4, hoeffding)]
    np.testing.assert_allclose(allowed, [0.154, 0.128, 0.022], atol=5e-4)
    np.testing.assert_allclose(budgets.safe_strength(variance, end, budget), allowed[0], atol=2e-6)
    # N4 allows what the better of its two bounds does.
    assert allowed[1] == max(largest_within(bound, budget) for bound in (of_variance, hoeffding))


def test_the_bounds_of_n4_are_never_smaller(tables):
    """Both follow from N18: `Var (e^x - x - 1)/R^2` and `x^2 / 8`, x = R |alpha|. How much larger depends on x."""
    log_p, m, _, alphas = tables
    width = np.ptp(m, axis=-1)
    medians = []
    for x in (0.25, 1.0, 4.0, np.abs(alphas) * width):
        spread, bound = budget_of(log_p, m, np.sign(alphas) * x / width)
        ratio = np.minimum(spread.variance * (np.expm1(x) - x) / width**2, x**2 / 8) / bound
        assert ratio.min() > 1 - 1e-9
        medians.append(np.median(ratio))
    assert 1.02 < medians[0] < 1.1 < medians[1] < 1.4 < medians[2]
    assert ratio.max() > 79


def test_one_safe_strength_for_the_mean_over_contexts():
    rng = np.random.default_rng(2)
    variance, above = 10 ** rng.uniform(-2, 2, (50, 5)), 10 ** rng.uniform(-1, 1, (50, 5))
    weights = jnp.asarray(rng.dirichlet(np.ones(5)))
    strength = budgets.safe_strength(variance, above, 0.1, weights)
    assert strength.shape == (50,)
    np.testing.assert_allclose(budgets.budget_bound(variance, above, strength[:, None]) @ weights, 0.1, rtol=1e-13)
    alone = budgets.safe_strength(variance, above, 0.1)
    assert ((strength >= alone.min(axis=1)) & (strength <= alone.max(axis=1) / weights.min())).all()
    still = budgets.safe_strength([1.0, 0.0], [1.0, 1.0], 0.1, jnp.asarray([0.25, 0.75]))
    np.testing.assert_allclose(still, budgets.safe_strength(1.0, 1.0, 0.4), rtol=1e-12)
    assert budgets.safe_strength([0.0, 0.0], [1.0, 1.0], 0.1, jnp.asarray([0.25, 0.75])) == np.inf


def test_safe_strengths_have_derivatives():
    for function in (lambda x: budgets.safe_strength(x, 30.0, 0.1), lambda x: budgets.safe_strength(1.0, 2.0, x),
                     budgets.range_within, lambda x: budgets.share_within(0.3, x)):  # fmt: skip
        at, step = 0.3, 1e-5
        difference = (function(at + step) - function(at - step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(function)(at), difference, rtol=1e-7)
        np.testing.assert_allclose(jax.jit(function)(at), function(at), rtol=1e-15)


# --- N20 -------------------------------------------------------------------------------------------------------------


def test_the_range_bound_is_never_below_the_cost(tables):
    """Changes of any kind, both directions of the divergence; and Hoeffding's bound is never smaller."""
    log_p, m, _, alphas = tables
    change = alphas[:, None] * m
    log_q = normalised(log_p + change)
    bound = np.asarray(budgets.range_bound(change))
    for cost in (kl(log_p, log_q), kl(log_q, log_p)):
        assert (bound >= cost * (1 - 1e-12) - 1e-13).all()
    assert (bound <= np.ptp(change, axis=-1) ** 2 / 8 * (1 + 1e-14)).all()


def test_the_divergence_of_a_range_to_50_digits_and_attained():
    for width in (1e-9, 1e-3, 0.5, 0.6, 0.7, 5.0, 40.0, 2000.0):
        y = mpf(width) / 2
        expected = mpmath.log(mpmath.sinh(y) / y) + y * mpmath.coth(y) - 1
        assert oracles.close(budgets.divergence_of_range(width), expected, 1e-13), width
        # Two tokens attain it.
        q = 1 / mpf(width) - 1 / mpmath.expm1(width)
        assert mpmath.almosteq(mpmath.log(1 + q * mpmath.expm1(width)) - q * width, expected, 1e-20)
    assert budgets.divergence_of_range(0.0) == 0


def test_the_range_within_a_budget_is_solved_to_rounding():
    budget = 10 ** np.linspace(-12, 3, 200)
    width = budgets.range_within(budget)
    assert (width >= np.sqrt(8 * budget) * (1 - 1e-15)).all()
    np.testing.assert_allclose(budgets.divergence_of_range(width), budget, rtol=1e-13)


def random_arcs(n):
    """Arcs of random decoders, with the logits at some strengths, computed by the norm itself."""
    rng = np.random.default_rng(3)
    W, h, v = rng.normal(size=(n, 7, 4)), rng.normal(size=(n, 4)), rng.normal(size=(n, 4))
    W *= 10 ** rng.uniform(-1, 1, (n, 1, 1))
    alphas = rng.normal(size=n) * 10 ** rng.uniform(-2, 2, n)

    def logits(alpha):
        x = h + alpha[:, None] * v
        return np.einsum("nvd,nd->nv", W, 2 * x / np.linalg.norm(x, axis=-1, keepdims=True))

    arcs = jax.vmap(lambda W, h, v: arc_of(W, jnp.ones(4), None, h, v))(W, h, v)
    return arcs, alphas, normalised(logits(np.zeros(n))), normalised(logits(alphas))


def test_the_arc_bound_is_never_below_the_cost():
    arcs, alphas, before, after = random_arcs(MANY)
    across = budgets.diameter(arcs, directions=64)
    bound = np.asarray(budgets.arc_bound(arcs, alphas, across))
    cost = kl(before, after)
    assert (bound >= cost * (1 - 1e-11) - 1e-12).all()
    assert (bound <= (alphas * across / arcs.width) ** 2 / 8 * (1 + 1e-12)).all()
    assert (cost / bound).max() > 0.8


def test_the_diameter_is_that_of_the_pairs():
    arcs, *_ = random_arcs(200)
    pairs = np.hypot(arcs.A[:, :, None] - arcs.A[:, None, :], arcs.B[:, :, None] - arcs.B[:, None, :]).max(axis=(1, 2))
    got = np.asarray(budgets.diameter(arcs))
    assert (got >= pairs * (1 - 1e-15)).all()
    assert (got <= pairs * (1 + 3.1e-7)).all()


def test_safe_angles_and_intervals_spend_the_budget():
    arcs, *_ = random_arcs(300)
    across = budgets.diameter(arcs)
    low, high = budgets.safe_interval(arcs, 0.1, across)
    assert ((low < 0) & (high > 0)).all()
    for end in (low, high):
        inner = np.isfinite(end)
        bound = budgets.arc_bound(arcs, np.where(inner, end, np.sign(end) * 1e9), across)
        np.testing.assert_allclose(bound[inner], 0.1, rtol=1e-6)
        assert (bound[~inner] <= 0.1).all()
    assert (np.abs(low) >= np.sqrt(0.8) * arcs.width / across * (1 - 1e-12)).all()
    assert budgets.safe_angle(1e-3, 0.1) == np.pi
    one = Arc(*(part[0] for part in arcs))
    change = logits_at(one, high[0]) - logits_at(one, 0.0)
    assert budgets.range_bound(change) <= 0.1


# --- bad input -------------------------------------------------------------------------------------------------------

LOG_P = np.log([0.5, 0.3, 0.2])
BAD = {
    "tau: expected thresholds above the unsteered share": lambda: budgets.cost_of_share(0.5, 0.4),
    "tau: .* got 1.0 for a share of 0.2 at index": lambda: budgets.cost_of_share([0.5, 0.2], [0.6, 1.0]),
    "f0: expected shares between 0 and 1": lambda: budgets.cost_of_share(-0.1, 0.4),
    "f1: expected shares": lambda: budgets.binary_divergence(0.5, 1.5),
    "f0: expected shares between 0 and 1, ends left out": lambda: budgets.share_within(0.0, 0.1),
    "budget: expected budgets above 0": lambda: budgets.safe_strength(1.0, 1.0, 0.0),
    "budget: .* got -0.1": lambda: budgets.range_within(-0.1),
    "budget: .* got inf": lambda: budgets.safe_strength(1.0, 1.0, [0.1, np.inf]),
    "members: expected between 1 and 2 of 3 tokens, got none": lambda: budgets.efficiency(
        LOG_P, np.arange(3.0), np.zeros(3, bool)
    ),
    "members: .* got all": lambda: budgets.split_cost(LOG_P, LOG_P, np.ones(3, bool)),
    "m: expected log-odds that are not constant": lambda: budgets.efficiency(LOG_P, np.ones(3), np.arange(3) < 1),
    "m: .* on the tokens of positive": lambda: budgets.efficiency(
        np.array([0.0, -1e4, -1e4]), np.arange(3.0), np.arange(3) < 1
    ),
    "variance: expected variances of at least 0": lambda: budgets.budget_bound(-1.0, 1.0, 1.0),
    "above: expected a distance above 0": lambda: budgets.budget_bound(1.0, 0.0, 1.0),
    "weights: .* add up to 1": lambda: budgets.safe_strength([1.0, 1.0], 1.0, 0.1, jnp.asarray([0.4, 0.4])),
    "width: expected ranges": lambda: budgets.divergence_of_range(-1.0),
    "across: expected diameters": lambda: budgets.safe_angle(0.0, 0.1),
    "directions: expected at least 2": lambda: budgets.diameter(Arc(*np.zeros((3, 4)), np.zeros(()), np.ones(())), 1),
    "directions: expected directions that fit in memory": lambda: budgets.diameter(
        Arc(*np.zeros((3, 4)), np.zeros(()), np.ones(())), 2**40
    ),
    "change: expected at least one number in its axis V": lambda: budgets.range_bound(np.zeros(0)),
    "log_p: expected at least one number in its axis V": lambda: budgets.spread_of(np.zeros((2, 0)), np.zeros((2, 0))),
}


@pytest.mark.parametrize(("message", "call"), BAD.items(), ids=BAD)
def test_bad_values_are_refused_by_name(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_whole_numbers_and_mixed_types_are_numbers_like_others():
    for function, arguments in (
        (budgets.share_within, (0.3, 1)),
        (budgets.safe_strength, (1, 30, 1)),
        (budgets.range_within, (1,)),
        (budgets.divergence_of_range, (3,)),
    ):
        got = function(*arguments)
        assert got.dtype == jnp.float64
        assert got == function(*map(float, arguments))
    narrow = budgets.share_within(jnp.asarray([0.3]), jnp.asarray([0.125], jnp.float32))
    assert narrow == budgets.share_within(jnp.asarray([0.3]), jnp.asarray([0.125]))
    mean = budgets.safe_strength(np.ones(2, np.float32), np.full(2, 3.0), 0.125, jnp.asarray([0.5, 0.5]))
    assert mean == pytest.approx(float(budgets.safe_strength(1.0, 3.0, 0.125)), rel=1e-12)


def test_what_cannot_be_undone_costs_everything():
    p, members = np.log([0.5, 0.3, 0.2]), np.arange(3) < 1
    for q in ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.5, 0.0]):
        cost = budgets.split_cost(p, jnp.log(jnp.asarray(q)), members)
        assert np.isposinf(cost.total), q
        assert not np.isnan(np.asarray(cost)).any()
    assert np.isposinf(budgets.range_bound(np.array([0.0, np.inf])))


@pytest.mark.parametrize("size", [1e20, 1e150, 1e160, 1e300, 1e308])
def test_budgets_and_ranges_of_any_size(size):
    """Far out a range costs itself, but for a logarithm, and a share is 1."""
    with jax.enable_x64(True):
        assert float(budgets.divergence_of_range(size)) == pytest.approx(size, rel=1e-15)
        assert float(budgets.range_within(size)) == pytest.approx(size, rel=1e-15)
        assert float(budgets.share_within(0.3, size)) == float(budgets.share_within(1e-300, size)) == 1
        assert float(budgets.safe_strength(1.0, 2.0, size)) == pytest.approx(size / 2, rel=1e-15)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-150, 1e150, 1e160, 1e300, 1e308])
def test_the_efficiency_does_not_depend_on_the_size_of_the_log_odds(size):
    with jax.enable_x64(True):
        log_p, m = jnp.log(jnp.asarray([0.2, 0.3, 0.5])), jnp.asarray([1.0, 0.2, -0.5])
        members = jnp.asarray([True, False, False])
        expected = 0.2 * 0.8 * (1 - (0.3 * 0.2 - 0.5 * 0.5) / 0.8) ** 2
        expected /= expected + 0.3 * 0.5 / 0.8 * 0.7**2
        assert float(budgets.efficiency(log_p, size * m, members)) == pytest.approx(expected, rel=1e-14)


# --- numbers that need not be of ordinary size -------------------------------------------------------------------------

TYPES = pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])


@mpmath.workdps(400)
def exact_bound(variance, above, alpha):
    """N18 to hundreds of digits; where the larger exponential is far out only its logarithm is formed."""
    s, b, a = (mpf(x) if isinstance(x, mpf) else mpf(float(x)) for x in (variance, above, alpha))
    q, up, down = s / (b * b + s), a * b, a * s / b
    largest = mpmath.log(q) + up
    if largest > 200:
        return largest
    return mpmath.log((0 if down > 10**4 else (1 - q) * mpmath.exp(-down)) + q * mpmath.exp(up))


@mpmath.workdps(60)
def exact_strength(variance, above, budget):
    """The root of it, by bisection of its logarithm."""
    s, b, budget = mpf(float(variance)), mpf(float(above)), mpf(float(budget))
    low, high = mpmath.log(budget / b), mpmath.log((budget + mpmath.log(1 + b * b / s)) / b)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_bound(s, b, mpmath.exp(middle)) < budget else (low, middle)
    return mpmath.exp(low)


@pytest.mark.parametrize("alpha", [60.0, 80.0, 88.0, 90.0, 100.0, 200.0, 299.0, 300.0, 1000.0])
@TYPES
def test_the_exponential_of_a_strength_need_not_be_a_float(alpha, double):
    with jax.enable_x64(double):
        precision = 1e-13 if double else 1e-5
        for variance in (1.0, 1e-30, 20.0):
            assert oracles.close(budgets.budget_bound(variance, 1.0, alpha), exact_bound(variance, 1, alpha), precision)
            expected = exact_strength(variance, 1, alpha)
            assert oracles.close(budgets.safe_strength(variance, 1.0, alpha), expected, precision)
        for share in (0.1, 0.9):
            assert budgets.share_within(share, alpha) == 1
        mean = budgets.safe_strength([1.0, 2.0], [1.0, 1.0], alpha, jnp.asarray([0.5, 0.5]))
        each = [float(budgets.budget_bound(s, 1.0, float(mean))) for s in (1.0, 2.0)]
        assert sum(each) / 2 == pytest.approx(alpha, rel=precision)


def test_a_rare_share_within_a_budget_that_a_short_float_has():
    """``kl(f0 || tau)`` is -log(1 - tau) there, to rounding."""
    with jax.enable_x64(False):
        assert float(budgets.share_within(1e-30, 60.0)) == 1
        assert float(budgets.share_within(1e-30, 0.1)) == pytest.approx(-np.expm1(-0.1), rel=2e-5)


@pytest.mark.parametrize(
    ("variance", "above", "budget", "double"),
    [
        (1e-8, 1e-8, 1e-8, False),
        (1e-8, 1e-8, 1e-20, False),
        (1.0, 1e-3, 1e-12, False),
        (1.0, 1e-8, 1e-100, True),
        (1e-4, 1e-8, 1e-9, True),
    ],
)
def test_safe_strengths_where_the_lower_value_is_the_rare_one(variance, above, budget, double):
    with jax.enable_x64(double):
        got = budgets.safe_strength(variance, above, budget)
        assert oracles.close(got, exact_strength(variance, above, budget), 1e-13 if double else 2e-6)


SIZES = [
    (1.0, 1e20, 1e-19, False),
    (1.0, 1e20, 1e-18, False),
    (1e-30, 1e8, 1e-6, False),
    (1.0, 1e-20, 1.0, False),
    (1e36, 1.0, 1e8, False),
    (1e-36, 1e30, 3e-28, False),
    (1e36, 1e-30, 1e29, False),
    (1e-300, 1e8, 1.0, True),
    (1e300, 1e-8, 1.0, True),
    (1e300, 1e-8, 1e-150, True),
    (1e-300, 1e250, 3e-247, True),
]


@pytest.mark.parametrize(("variance", "above", "alpha", "double"), SIZES)
def test_the_budget_bound_of_numbers_of_any_size(variance, above, alpha, double):
    with jax.enable_x64(double):
        got = budgets.budget_bound(variance, above, alpha)
        assert oracles.close(got, exact_bound(variance, above, alpha), 1e-12 if double else 2e-4)
        slopes = jax.grad(budgets.budget_bound, argnums=(0, 1, 2))(variance, above, alpha)
        assert np.isfinite(np.asarray(slopes)).all()


@pytest.mark.parametrize(("variance", "above", "double"), sorted({(s, b, double) for s, b, _, double in SIZES}))
@pytest.mark.parametrize("budget", [1e-20, 0.1, 50.0])
def test_safe_strengths_of_numbers_of_any_size(variance, above, budget, double):
    with jax.enable_x64(double):
        expected = exact_strength(variance, above, budget)
        if expected < float(jnp.finfo(float).tiny) or expected > float(jnp.finfo(float).max):
            pytest.skip("the strength itself is no float of this type")
        assert oracles.close(budgets.safe_strength(variance, above, budget), expected, 1e-12 if double else 2e-5)


def turned(centre, width=1.0):
    """An arc of two tokens, and its diameter."""
    path = Arc(jnp.asarray([5.0, -5.0]), jnp.asarray([1.0, 2.0]), jnp.zeros(2), jnp.asarray(centre), jnp.asarray(width))
    return path, float(budgets.diameter(path))


@mpmath.workdps(60)
def exact_arc_bound(path, alpha, across):
    """From the difference of the angles, to 60 digits."""
    centre, width = (mpf(float(x)) for x in (path.centre, path.width))
    turn = mpmath.atan((mpf(float(alpha)) - centre) / width) - mpmath.atan(-centre / width)
    y = abs(mpmath.sin(turn / 2)) * mpf(across)
    if y < mpf(10) ** -10:
        return y**2 / 2
    return mpmath.log(mpmath.sinh(y) / y) + y * mpmath.coth(y) - 1


@TYPES
def test_the_arc_bound_keeps_its_digits_where_angles_are_close(double):
    with jax.enable_x64(double):
        precision = 1e-14 if double else 4e-6
        for centre in (0.5, -100.0, 100.0, 1e6):
            path, across = turned(centre)
            for alpha in (1e-12, 1e-8, -1e-3, 0.01, 50.0, 99.0, 100.0, -1e5, 3e6):
                got = budgets.arc_bound(path, alpha, across)
                expected = exact_arc_bound(path, alpha, across)
                assert oracles.close(got, expected, precision, float(jnp.finfo(got.dtype).tiny)), (centre, alpha)
        path, across = turned(3.0)
        assert budgets.arc_bound(path, 0.0, across) == 0
        assert jax.grad(budgets.arc_bound, argnums=1)(path, 0.0, across) == 0


@TYPES
def test_the_arc_bound_does_not_depend_on_the_unit_of_strengths(double):
    with jax.enable_x64(double):
        expected = budgets.arc_bound(turned(0.5)[0], 2.0, 10.0)
        for power in (1000, -1000) if double else (124, -120):
            unit = 2.0**power
            assert budgets.arc_bound(turned(0.5 * unit, unit)[0], 2.0 * unit, 10.0) == expected
            ends = budgets.safe_interval(turned(0.5 * unit, unit)[0], 0.1, 10.0)
            usual = budgets.safe_interval(turned(0.5)[0], 0.1, 10.0)
            np.testing.assert_allclose(np.asarray(ends) / unit, np.asarray(usual), rtol=1e-6)


@mpmath.workdps(60)
def exact_interval(path, budget, across):
    centre, width = (mpf(float(x)) for x in (path.centre, path.width))

    def least(width):
        low, high = mpf(0), 10 * mpmath.sqrt(budget) + budget
        for _ in range(150):
            y = (low + high) / 2
            value = y**2 / 2 if y < mpf(10) ** -10 else mpmath.log(mpmath.sinh(y) / y) + y * mpmath.coth(y) - 1
            low, high = (y, high) if value < budget else (low, y)
        return low

    half = least(width) / mpf(across)
    turn, start = 2 * mpmath.asin(min(half, 1)), mpmath.atan(-centre / width)
    ends = [start + sign * turn for sign in (-1, 1)]
    return [sign * mpmath.inf if abs(x) >= mpmath.pi / 2 else centre + width * mpmath.tan(x)
            for sign, x in zip((-1, 1), ends, strict=True)]  # fmt: skip


@TYPES
@pytest.mark.parametrize("centre", [0.5, 100.0, -100.0, 1e4])
def test_the_safe_interval_keeps_its_digits(centre, double):
    with jax.enable_x64(double):
        path, across = turned(centre)
        for budget in (1e-20, 1e-12, 1e-7, 0.1, 5.0, 100.0):
            got = [float(x) for x in budgets.safe_interval(path, budget, across)]
            for end, expected in zip(got, exact_interval(path, mpf(budget), across), strict=True):
                # A state that far from the centre comes to its plateau within a rounding of the angle.
                precision = (1e-14 if double else 5e-6) * max(1, abs(float(expected / centre)))
                fits = end == expected if np.isinf(float(expected)) else oracles.close(end, expected, precision)
                assert fits, (budget, end, float(expected))


def test_where_any_angle_is_safe_its_derivative_is_0():
    assert jax.grad(lambda x: budgets.safe_angle(x, 10.0))(1.0) == 0
    path, _ = turned(0.5)
    slope = jax.grad(lambda x: jnp.where(jnp.isinf(budgets.safe_interval(path, 10.0, x)[1]), 0, x))(1.0)
    assert slope == 0

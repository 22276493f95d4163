import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tests import oracles
from theory import tilting
from ufm import exact, from_table, steer


def ordinary():
    rng = np.random.default_rng(1)
    return np.log(rng.dirichlet(np.ones(7))), rng.normal(size=7)


def tiny():
    p = np.array([1e-300, 1e-300, 1e-250, 1e-20, 0.3, 0.5, 0.2])
    return np.log(p / p.sum()), np.array([600.0, 1.0, 250.0, -30.0, 0.5, -0.25, -400.0])


def tied():
    log_p, _ = ordinary()
    return log_p, np.array([2.0, -1.0, 0.5, 2.0, 0.5, -1.0, 0.25])


def close_together():
    """A range of 1e-6, so that the peaks are at millions."""
    log_p, m = ordinary()
    return log_p, 1e-6 * m


FAMILIES = {"ordinary": ordinary, "tiny": tiny, "tied": tied, "close": close_together}
ALPHAS = [0.0, 0.3, -2.7, 50.0, -1e6, 1e6]
MEMBERS = np.array([True, False, True, False, False, True, False])

# As programs: operation by operation, each would be compiled by itself.
peaks, strength_of_mean = jax.jit(tilting.peaks), jax.jit(tilting.strength_of_mean)

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
strengths = pytest.mark.parametrize("alpha", ALPHAS)


@families
@strengths
def test_log_partition_and_probabilities(family, alpha):
    log_p, m = family()
    q, log_z = oracles.tilted(log_p, m, alpha)
    scale = 1 + abs(alpha) * np.abs(m).max() + np.abs(log_p).max()
    assert abs(float(tilting.log_partition(jnp.asarray(log_p), jnp.asarray(m), alpha)) - float(log_z)) < 1e-15 * scale
    got = np.asarray(tilting.log_probabilities(jnp.asarray(log_p), jnp.asarray(m), alpha))
    np.testing.assert_allclose(got, [float(mpmath.log(x)) for x in q], atol=1e-15 * scale)


@families
@strengths
def test_mean_and_variance(family, alpha):
    log_p, m = family()
    # Rounding of the exponents, of size alpha M, is what limits the precision of probabilities.
    rtol = 1e-14 * (1 + abs(alpha) * np.ptp(m) + np.abs(log_p).max())
    mean = tilting.mean(jnp.asarray(log_p), jnp.asarray(m), alpha)
    assert oracles.close(mean, oracles.mean(log_p, m, alpha), rtol=0, atol=rtol * np.abs(m).max())
    variance = float(tilting.variance(jnp.asarray(log_p), jnp.asarray(m), alpha))
    assert variance >= 0
    # What is below the smallest double is 0.
    assert oracles.close(variance, oracles.variance(log_p, m, alpha), rtol=10 * rtol, atol=1e-30 * np.ptp(m) ** 2)


@families
@strengths
def test_concepts(family, alpha):
    log_p, m = family()
    arguments = jnp.asarray(log_p), jnp.asarray(m), alpha, jnp.asarray(MEMBERS)
    scale = 1 + abs(alpha) * np.ptp(m) + np.abs(log_p).max()
    expected = oracles.concept_log_odds(log_p, m, alpha, MEMBERS)
    assert oracles.close(tilting.concept_log_odds(*arguments), expected, rtol=0, atol=1e-14 * scale)
    inside = oracles.conditional_mean(log_p, m, alpha, MEMBERS)
    outside = oracles.conditional_mean(log_p, m, alpha, ~MEMBERS)
    atol = 1e-14 * scale * np.abs(m).max()
    assert oracles.close(tilting.conditional_mean(*arguments), inside, rtol=0, atol=atol)
    assert oracles.close(tilting.concept_slope(*arguments), inside - outside, rtol=0, atol=2 * atol)


def test_rare_concepts_keep_their_precision():
    """F_C = 1e-300, and 1 - F_C = 1e-300: the log-odds are +-690.8 to every digit."""
    log_p = jnp.log(jnp.asarray([1e-300, 1.0]))
    m, rare = jnp.asarray([1.0, -1.0]), jnp.asarray([True, False])
    for members, sign in ((rare, 1), (~rare, -1)):
        got = float(tilting.concept_log_odds(log_p, m, 0.5, members))
        assert got == pytest.approx(sign * (np.log(1e-300) + 1.0), rel=1e-15)


def test_derivatives_form_a_chain():
    """A' = E[M], A'' = Var[M], (logit F_C)' = mu_C - mu_{C^c}; and lemma B.5 for the probabilities."""
    args, members = tuple(map(jnp.asarray, ordinary())), jnp.asarray(MEMBERS)
    first = jax.jit(jax.grad(lambda a: tilting.log_partition(*args, a)))
    second = jax.jit(jax.grad(first))
    of_concept = jax.jit(jax.grad(lambda a: tilting.concept_log_odds(*args, a, members)))
    of_tokens = jax.jit(jax.jacfwd(lambda a: jnp.exp(tilting.log_probabilities(*args, a))))
    for alpha in (-3.0, 0.0, 1.3):
        np.testing.assert_allclose(first(alpha), tilting.mean(*args, alpha), rtol=1e-13)
        np.testing.assert_allclose(second(alpha), tilting.variance(*args, alpha), rtol=1e-12)
        np.testing.assert_allclose(of_concept(alpha), tilting.concept_slope(*args, alpha, members), rtol=1e-12)
        expected = jnp.exp(tilting.log_probabilities(*args, alpha)) * (args[1] - tilting.mean(*args, alpha))
        np.testing.assert_allclose(of_tokens(alpha), expected, atol=1e-15)


def test_tilting_is_what_steering_does():
    """S, lemma B.3, through a model with random contrast weights."""
    rng = np.random.default_rng(3)
    corpus = from_table(rng.dirichlet(np.ones(4), size=3), [[0, 1], [2, 3]], [0, 1, 1])
    model, weights = exact(corpus), jnp.asarray([1.0, -0.25, -0.75])
    m = weights @ corpus.log_p
    logits = steer(model, jnp.arange(3), weights @ model.embed(jnp.arange(3)), 2.5)
    for j in range(3):
        got = tilting.log_probabilities(corpus.log_p[j], m, 2.5)
        np.testing.assert_allclose(got, jax.nn.log_softmax(logits[j]), atol=1e-13)


@families
def test_peaks_are_the_roots(family):
    log_p, m = family()
    got = np.asarray(peaks(jnp.asarray(log_p), jnp.asarray(m)))
    for z in range(7):
        if m[z] == m.max():
            assert got[z] == np.inf
        elif m[z] == m.min():
            assert got[z] == -np.inf
        else:
            expected = oracles.peak(log_p, m, z)
            assert got[z] == pytest.approx(expected, rel=1e-11, abs=1e-13 / np.ptp(m))


def test_peaks_are_where_each_probability_is_largest():
    log_p, m = ordinary()
    grid = np.linspace(-40, 40, 80001)
    best = grid[np.argmax(oracles.softmax(log_p + grid[:, None] * m), axis=0)]
    inner = (m < m.max()) & (m > m.min())
    result = np.asarray(peaks(jnp.asarray(log_p), jnp.asarray(m)))
    assert (np.abs(result[inner]) < 40).all()
    np.testing.assert_allclose(result[inner], best[inner], atol=1e-3)


def test_peaks_of_two_tokens_and_of_a_constant():
    np.testing.assert_array_equal(
        tilting.peaks(jnp.log(jnp.asarray([0.1, 0.9])), jnp.asarray([0.1, 0.0])), [np.inf, -np.inf]
    )
    assert np.isnan(tilting.peaks(jnp.log(jnp.asarray([0.1, 0.9])), jnp.asarray([0.7, 0.7]))).all()


def test_peaks_are_differentiable():
    log_p, m = ordinary()
    inner = np.array([z for z in range(7) if m.min() < m[z] < m.max()])

    @jax.jit
    def finite(point):
        return tilting.peaks(point[0], point[1])[inner]

    point, step = np.asarray([log_p, m]), 1e-5
    moves = step * np.eye(14).reshape(14, 2, 7)
    differences = [np.asarray(finite(point + move) - finite(point - move)) / (2 * step) for move in moves]
    expected = np.stack(differences, axis=-1).reshape(-1, 2, 7)
    np.testing.assert_allclose(jax.jit(jax.jacrev(finite))(point), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(finite))(point), expected, rtol=1e-6, atol=1e-6)


def test_peaks_in_float32():
    log_p, m = ordinary()
    with jax.enable_x64(False):
        got = np.asarray(peaks(jnp.asarray(log_p, jnp.float32), jnp.asarray(m, jnp.float32)))
    np.testing.assert_allclose(got, peaks(jnp.asarray(log_p), jnp.asarray(m)), rtol=1e-4)


@families
@pytest.mark.parametrize("sign", [1, -1])
def test_limit(family, sign):
    log_p, m = family()
    p = np.exp(log_p)
    extreme = (m == m.max()) if sign > 0 else (m == m.min())
    got = tilting.limit(jnp.asarray(log_p), jnp.asarray(m), sign)
    np.testing.assert_allclose(got, np.where(extreme, p / p[extreme].sum(), 0), rtol=1e-13)
    far = sign * 1e4 / np.ptp(m)
    np.testing.assert_allclose(got, [float(q) for q in oracles.tilted(log_p, m, far)[0]], atol=1e-12)


@families
@pytest.mark.parametrize("sign", [1, -1])
def test_saturation_is_far_enough_and_not_much_farther(family, sign):
    log_p, m = family()
    alpha = float(tilting.saturation(jnp.asarray(log_p), jnp.asarray(m), sign, 1e-9))
    assert np.sign(alpha) == sign
    limit = np.asarray(tilting.limit(jnp.asarray(log_p), jnp.asarray(m), sign))

    def error(a):
        return max(abs(float(q) - x) for q, x in zip(oracles.tilted(log_p, m, a)[0], limit, strict=True))

    assert error(alpha) <= 1e-9
    assert error(3 * alpha) <= 1e-9
    assert alpha * sign <= 1 / 1e-7 or error(alpha / 100) > 1e-9


def test_extremes():
    highest, lowest, spread = tilting.extremes(jnp.asarray([3.0, 1.0, 3.0 - 1e-12, 2.0, 1.0 + 1e-3]))
    assert highest.tolist() == [True, False, True, False, False]
    assert lowest.tolist() == [False, True, False, False, False]
    assert float(spread) == 2.0
    highest, lowest, spread = tilting.extremes(jnp.full(3, 0.5))
    assert highest.all()
    assert lowest.all()
    assert float(spread) == 0


def test_is_constant():
    log_p = jnp.asarray([[-1.0, -2.0], [-50.0, -np.inf]])
    assert tilting.is_constant(log_p, jnp.asarray([0.3, 0.3]))
    assert tilting.is_constant(log_p, jnp.asarray([0.3, 0.3 + 50 * 2e-16]))
    assert not tilting.is_constant(log_p, jnp.asarray([0.3, 0.3 + 1e-9]))


def test_the_strength_of_a_mean_is_the_inverse_of_the_mean():
    rng = np.random.default_rng(11)
    log_p, m = jax.nn.log_softmax(jnp.asarray(rng.normal(size=7))), jnp.asarray(rng.normal(size=7))
    for alpha in (-4.0, -0.3, 0.0, 2.0):
        value = float(np.exp(tilting.log_probabilities(log_p, m, alpha)) @ np.asarray(m))
        assert float(strength_of_mean(log_p, m, value)) == pytest.approx(alpha, abs=1e-9)


# --- log-odds whose range is no float ---------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_log_odds_whose_range_is_beyond_the_largest_float(double):
    """As for a fraction of them, at a strength that is larger by as much."""
    with jax.enable_x64(double):
        unit = 2.0 ** (1022 if double else 126)
        m = jnp.asarray([3.5, -3.5, 0.25, 1.0])
        wide = unit * m
        log_p = jax.nn.log_softmax(jnp.asarray([-30.0, 0.0, -60.0, -60.0]))
        for got, expected in zip(tilting.extremes(wide)[:2], tilting.extremes(m)[:2], strict=True):
            np.testing.assert_array_equal(got, expected)
        for sign in (1, -1):
            np.testing.assert_array_equal(tilting.limit(log_p, wide, sign), tilting.limit(log_p, m, sign))
            for values, others in ((wide, m), (wide[:2], m[:2])):
                got = tilting.saturation(log_p[: values.size], values, sign, 1e-300)
                expected = tilting.saturation(log_p[: values.size], others, sign, 1e-300)
                assert float(got) * unit == pytest.approx(float(expected), rel=1e-5)
        np.testing.assert_allclose(tilting.peaks(log_p, wide) * unit, tilting.peaks(log_p, m), rtol=1e-5)
        got = tilting.strength_of_mean(log_p, wide, 0.5 * unit)
        assert float(got) * unit == pytest.approx(float(tilting.strength_of_mean(log_p, m, 0.5)), rel=1e-5)
        for alpha in (0.0, 4.25):
            got = tilting.mean(log_p, wide, alpha / unit)
            assert float(got) / unit == pytest.approx(float(tilting.mean(log_p, m, alpha)), rel=1e-5)


def test_a_tolerance_that_a_short_float_does_not_have():
    with jax.enable_x64(False):
        log_p, m = jnp.log(jnp.asarray([0.2, 0.3, 0.5])), jnp.arange(3.0)
        assert float(tilting.saturation(log_p, m, 1, 1e-50)) == pytest.approx(-np.log(1e-50), rel=1e-6)


def test_infinite_log_odds_and_concepts_without_a_mean_are_refused_by_name():
    log_p, m = jnp.log(jnp.asarray([0.2, 0.3, 0.5])), jnp.asarray([jnp.inf, 0.0, 0.0])
    for call in (lambda: tilting.mean(log_p, m, 0.0), lambda: tilting.extremes(m), lambda: tilting.peaks(log_p, -m),
                 lambda: tilting.is_constant(log_p, m), lambda: tilting.strength_of_mean(log_p, m, 0.0)):  # fmt: skip
        with pytest.raises(ValueError, match=r"^m: expected finite log-odds, got an infinite one at index \[0\]"):
            call()
    none, every, m = np.zeros(3, bool), np.ones(3, bool), jnp.arange(3.0)
    for call in (lambda: tilting.conditional_mean(log_p, m, 1.0, none), lambda: tilting.concept_slope(log_p, m, 1.0, none),
                 lambda: tilting.concept_slope(log_p, m, 1.0, every)):  # fmt: skip
        with pytest.raises(ValueError, match=r"^members: expected "):
            call()
    assert float(tilting.conditional_mean(log_p, m, 0.0, every)) == pytest.approx(1.3)

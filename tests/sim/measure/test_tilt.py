"""How near steering is to a tilt: one in the UFM, the normed one where a norm sees states of one size, else as counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import ufm
from sim.measure import tilt
from sim.measure.tilt import TILTS, distances, reach, slopes

ALPHAS = np.asarray([-3.0, -0.5, 0.7, 4.0])


@pytest.fixture(autouse=True)
def float64():
    """What is exact is compared exactly, whatever the precision of the tests beside this one."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def contrast():
    return ufm.contrast(5, [0, 1], [2, 3, 4])


def normalised(sizes):
    """A model with a norm, with states of these sizes."""
    rng = np.random.default_rng(3)
    h = rng.normal(size=(4, 5))
    h *= np.asarray(sizes) / np.linalg.norm(h, axis=0)
    return ufm.NormalisedUFM(jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(h), jnp.asarray(rng.uniform(0.5, 2, 4)))


def direction(model, contrast):
    """The steering vector, the log-odds, and D at all strengths."""
    h = np.asarray(model.embed(jnp.arange(5)))
    v = np.asarray(contrast) @ h
    log_p = log_softmax(np.asarray(model.decode(jnp.asarray(h))), axis=-1)
    moved = np.linalg.norm(h[:, None] + ALPHAS[:, None] * v, axis=-1)
    return v, np.asarray(contrast) @ log_p, np.linalg.norm(h, axis=-1)[:, None] / moved


def kl(log_p, log_q):
    return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def test_steering_the_ufm_is_a_tilt(small_corpus, contrast):
    model = ufm.exact(small_corpus)
    v, m = ufm.difference_of_means(model, jnp.arange(5), contrast), ufm.log_odds(small_corpus, contrast)
    slope = slopes(model, range(5), v, m)
    assert slope.scale == pytest.approx(1, abs=1e-12)
    assert slope.r_squared() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(slope.correlations, 1, atol=1e-12)
    tilts = distances(model, range(5), v, m, ALPHAS, slope.scale)
    assert tilts.kl[0].min() > 1e-3
    assert np.abs(tilts.kl[1:]).max() < 1e-9
    np.testing.assert_allclose(tilts.closest, np.broadcast_to(ALPHAS, (5, 4)), rtol=1e-3)
    np.testing.assert_allclose(tilts.explained[1:], 1, atol=1e-8)
    np.testing.assert_array_equal(tilts.explained[0], 0)


def test_before_a_norm_it_is_the_normed_tilt_where_states_have_one_size(contrast):
    model = normalised([2.0] * 5)
    v, m, d = direction(model, contrast)
    tilts = distances(model, range(5), jnp.asarray(v), m, ALPHAS, 1.0, shrinkage=d)
    assert np.abs(tilts.kl[TILTS.index("normed")]).max() < 1e-12
    assert tilts.kl[TILTS.index("theory")].max() > 0.1
    assert tilts.kl[TILTS.index("closest")].max() > 0.01


def test_distances_are_those_of_distributions_computed_one_by_one(contrast):
    model = normalised([1.0, 2.0, 0.5, 3.0, 1.5])
    v, m, d = direction(model, contrast)
    tilts = distances(model, range(5), jnp.asarray(v), m, ALPHAS, 0.6, shrinkage=d)
    for i, h in enumerate(np.asarray(model.H.T)):
        log_p = log_softmax(np.asarray(model.decode(jnp.asarray(h))))
        for k, alpha in enumerate(ALPHAS):
            steered = log_softmax(np.asarray(model.decode(jnp.asarray(h + alpha * v))))

            def off(t, steered=steered, log_p=log_p):
                return kl(steered, log_softmax(log_p + t * m))

            best = minimize_scalar(off, bounds=(-50, 50), method="bounded", options={"xatol": 1e-9})
            normed = kl(steered, log_softmax(d[i, k] * (log_p + alpha * m)))
            expected = [off(0.0), off(alpha), off(0.6 * alpha), best.fun, normed]
            np.testing.assert_allclose(tilts.kl[:, i, k], expected, rtol=1e-6, atol=1e-10)
            assert tilts.closest[i, k] == pytest.approx(best.x, abs=1e-4)
    shares = 1 - tilts.kl.sum(axis=1) / tilts.kl[0].sum(axis=0)
    np.testing.assert_allclose(tilts.explained, shares)


def test_slopes_are_a_regression_with_the_probabilities_as_weights(contrast):
    model = normalised([1.0, 2.0, 0.5, 3.0, 1.5])
    v, m, _ = direction(model, contrast)
    moments, step = slopes(model, range(5), jnp.asarray(v), m), 1e-5
    tables, left = [], 0.0
    for h in np.asarray(model.H.T):
        ends = [np.asarray(model.decode(jnp.asarray(h + side * step * v))) for side in (-1, 1)]
        p = np.exp(log_softmax(np.asarray(model.decode(jnp.asarray(h)))))
        tables.append(np.cov((ends[1] - ends[0]) / (2 * step), m, ddof=0, aweights=p))
    np.testing.assert_allclose(moments.of_slope, [table[0, 0] for table in tables], rtol=1e-7)
    np.testing.assert_allclose(moments.of_log_odds, [table[1, 1] for table in tables], rtol=1e-7)
    np.testing.assert_allclose(moments.shared, [table[0, 1] for table in tables], rtol=1e-7)
    total = np.sum(tables, axis=0)
    assert moments.scale == pytest.approx(total[0, 1] / total[1, 1], rel=1e-7)
    assert moments.r_squared() == pytest.approx(total[0, 1] ** 2 / total[0, 0] / total[1, 1], rel=1e-7)
    left = sum(table[0, 0] - 2 * table[0, 1] + table[1, 1] for table in tables)
    assert moments.r_squared(1.0) == pytest.approx(1 - left / total[0, 0], rel=1e-6)


def test_the_share_explained_near_0_is_that_of_the_slope(contrast):
    model = normalised([1.0, 2.0, 0.5, 3.0, 1.5])
    v, m, _ = direction(model, contrast)
    slope = slopes(model, range(5), jnp.asarray(v), m)
    tilts = distances(model, range(5), jnp.asarray(v), m, [1e-3], slope.scale)
    shares = dict(zip(TILTS, tilts.explained[:, 0], strict=True))
    assert shares["scaled"] == pytest.approx(slope.r_squared(), abs=5e-3)
    assert shares["theory"] == pytest.approx(slope.r_squared(1.0), abs=5e-3)


def test_what_is_not_steered_has_no_share(small_corpus, contrast):
    model, m = ufm.exact(small_corpus), ufm.log_odds(small_corpus, contrast)
    v = ufm.difference_of_means(model, jnp.arange(5), contrast)
    assert np.isnan(distances(model, range(5), v, m, [0.0], 1.0).explained).all()


def test_a_mean_at_an_extreme_of_the_log_odds_has_a_closest_tilt_all_the_same(small_corpus, contrast):
    model, m = ufm.exact(small_corpus), ufm.log_odds(small_corpus, contrast)
    v = ufm.difference_of_means(model, jnp.arange(5), contrast)
    tilts = distances(model, range(5), v, m, [-1e4, 1e4], 1.0)
    assert np.isfinite(tilts.kl).all()
    assert np.isfinite(tilts.closest).all()


def test_reach_is_the_last_strength_with_that_share():
    alphas = np.asarray([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    explained = np.asarray([0.99, 0.99, np.nan, 0.95, 0.91, 0.5])
    assert reach(alphas, explained) == 2
    assert reach(alphas, explained, 0.97) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_odds": np.zeros(3)}, r"log_odds: expected 4 log-odds, got shape \(3,\)"),
        ({"log_odds": np.asarray([0, 1, np.nan, 2])}, "log_odds: expected finite numbers"),
        ({"log_odds": np.ones(4)}, "log_odds: expected log-odds that are not all the same"),
        ({"steering": jnp.ones(9)}, "steering: expected an intervention"),
        ({"contexts": [7]}, "contexts: expected indices from 0 to 4"),
        ({"alphas": [np.inf]}, "alphas: expected finite numbers"),
        ({"shrinkage": np.nan}, "shrinkage: expected finite numbers"),
    ],
)
def test_bad_input(small_corpus, contrast, change, message):
    model = ufm.exact(small_corpus)
    arguments = {
        "contexts": [0],
        "steering": jnp.ones(4),
        "log_odds": np.arange(4.0),
        "alphas": [1.0],
        "scale": 1.0,
    } | change
    with pytest.raises(ValueError, match=message):
        tilt.distances(model, **arguments)


def test_it_works_in_float32(small_corpus, contrast):
    wide, m = ufm.exact(small_corpus), np.asarray(ufm.log_odds(small_corpus, contrast))
    v = np.asarray(ufm.difference_of_means(wide, jnp.arange(5), contrast))
    W, H = np.asarray(wide.W), np.asarray(wide.H)
    with jax.enable_x64(False):
        model = ufm.UFM(jnp.asarray(W, jnp.float32), jnp.asarray(H, jnp.float32))
        tilts = distances(model, range(5), jnp.asarray(v, jnp.float32), m, ALPHAS, 1.0)
    assert tilts.explained[1:].min() > 0.999

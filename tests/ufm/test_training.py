import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import theory
from ufm import (
    OPTIMIZERS,
    UFM,
    contrast,
    contrastive,
    cross_entropy,
    difference_of_means,
    entropy,
    fit,
    gap,
    init,
    log_odds,
    logits,
    probability_increase,
    uniform,
)

# Trainings that are stopped early on purpose; what warns is tested below, by `pytest.warns`.
pytestmark = pytest.mark.filterwarnings("ignore:fit. the gap:UserWarning")


@pytest.fixture(scope="module")
def default_corpus():
    with jax.enable_x64(True):
        return uniform()


@pytest.mark.parametrize(("optimizer", "tolerance"), [("lbfgs", 1e-10), ("adam", 1e-10), ("gradient-descent", 1e-6)])
def test_every_optimizer_reaches_the_bottom(default_corpus, optimizer, tolerance):
    result = fit(default_corpus, optimizer=optimizer, tolerance=tolerance)
    assert result.converged
    assert result.gap <= tolerance
    assert result.gaps.shape == (result.steps + 1,)
    assert (result.gaps >= 0).all()
    assert (result.gaps[:-1] > tolerance).all()
    assert result.gap == pytest.approx(float(gap(result.model, default_corpus)), rel=1e-6)
    assert result.loss[-1] == pytest.approx(float(cross_entropy(result.model, default_corpus)), rel=1e-12)
    np.testing.assert_allclose(jax.nn.softmax(logits(result.model)), jnp.exp(default_corpus.log_p), atol=3 * tolerance**0.5)


def test_every_named_optimizer_is_tested():
    assert set(OPTIMIZERS) == {"lbfgs", "adam", "gradient-descent"}


def test_training_until_rounding_gives_the_predicted_probabilities(default_corpus):
    model = fit(default_corpus, tolerance=0.0).model
    weights = contrast(default_corpus.n_contexts, *contrastive(default_corpus, 0, 1))
    v = difference_of_means(model, jnp.arange(default_corpus.n_contexts), weights)
    contexts, alphas = [0, 30, 80], np.linspace(-60, 60, 241)
    measured = probability_increase(model, contexts, v, alphas)
    predicted = theory.predicted.probability_increase(default_corpus, contexts, log_odds(default_corpus, weights), alphas)
    assert np.abs(np.asarray(measured - predicted)).max() < 1e-10


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_float32(optimizer):
    with jax.enable_x64(False):
        corpus = uniform((2, 3), 0.1, length=2)
        result = fit(corpus, d=4, optimizer=optimizer, tolerance=1e-8)
        assert result.model.W.dtype == result.model.H.dtype == jnp.float32
        assert result.converged
        np.testing.assert_allclose(jax.nn.softmax(logits(result.model)), jnp.exp(corpus.log_p), atol=3e-4)


SMALL = {"d": 3, "max_steps": 50}


def test_curve_starts_before_the_first_step(small_corpus):
    start = init(jax.random.key(5), small_corpus, 3)
    by_key, from_start = fit(small_corpus, key=jax.random.key(5), **SMALL), fit(small_corpus, start=start, **SMALL)
    np.testing.assert_array_equal(by_key.gaps, from_start.gaps)
    assert by_key.gaps[0] == pytest.approx(float(gap(start, small_corpus)), rel=1e-12)
    assert by_key.entropy == pytest.approx(float(entropy(small_corpus)), rel=1e-14)
    assert fit(small_corpus, **SMALL).gaps[0] != by_key.gaps[0]


def test_a_start_that_is_good_enough_is_kept(small_corpus):
    start = init(jax.random.key(0), small_corpus, 3)
    result = fit(small_corpus, start=start, tolerance=1e3, **SMALL)
    assert (result.steps, result.converged) == (0, True)
    np.testing.assert_array_equal(result.model.W, start.W)


def test_not_converging_is_reported(small_corpus):
    result = fit(small_corpus, optimizer=optax.sgd(1e-3), max_steps=5)
    assert (result.steps, result.converged) == (5, False)
    assert (np.diff(result.gaps) < 0).all()


def test_any_optax_transformation_takes_its_own_steps(small_corpus):
    start = init(jax.random.key(1), small_corpus, 3)
    result = fit(small_corpus, optimizer=optax.sgd(0.1), start=start, max_steps=1)
    slope = jax.grad(lambda model: gap(model, small_corpus))(start)
    np.testing.assert_allclose(result.model.W, start.W - 0.1 * slope.W, rtol=1e-12)
    np.testing.assert_allclose(result.model.H, start.H - 0.1 * slope.H, rtol=1e-12)


def test_patience(small_corpus):
    result = fit(small_corpus, optimizer=optax.sgd(0.0), patience=7, d=3)
    assert (result.steps, result.converged) == (7, False)


def test_a_diverging_run_stops(small_corpus):
    result = fit(small_corpus, optimizer=optax.sgd(1e200), d=3, max_steps=50)
    assert not result.converged
    assert result.steps < 50
    assert not np.isfinite(result.gaps[-1])


def test_the_model_is_that_of_the_lowest_gap(small_corpus):
    """Here the step size grows at some point, and the gap with it."""
    optimizer = optax.sgd(lambda step: jnp.where(step < 20, 0.5, 1e3))
    result = fit(small_corpus, optimizer=optimizer, d=3, max_steps=25)
    assert result.gap == result.gaps.min() < 1e-3 * result.gaps[-1]
    assert float(gap(result.model, small_corpus)) == pytest.approx(result.gap, rel=1e-12)


def test_with_weight_decay_training_ends_where_the_loss_and_the_penalty_are_at_rest(small_corpus):
    for decay, (of_w, of_h) in {1e-2: (1e-2, 1e-2), (1e-2, 3e-2): (1e-2, 3e-2)}.items():
        result = fit(small_corpus, d=3, decay=decay)
        lost = jax.grad(lambda model: gap(model, small_corpus))(result.model)
        np.testing.assert_allclose(lost.W, -of_w * result.model.W, atol=1e-8)
        np.testing.assert_allclose(lost.H, -of_h * result.model.H, atol=1e-8)
        assert result.converged
        assert float(gap(result.model, small_corpus)) == pytest.approx(result.gap, rel=1e-9)
        assert result.gap > 1e-3


def test_without_weight_decay_nothing_changes(small_corpus):
    plain, none = fit(small_corpus, d=3, max_steps=20), fit(small_corpus, d=3, max_steps=20, decay=(0.0, 0.0))
    assert (plain.gaps == none.gaps).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_start_of_a_half_type_is_trained_in_a_wider_one(dtype):
    with jax.enable_x64(False):
        corpus = uniform()
        result = fit(corpus, start=init(jax.random.key(0), corpus, 8, dtype=dtype), tolerance=1e-5)
        assert result.model.W.dtype == jnp.float32
        assert result.converged


def test_weight_decay_in_float32():
    with jax.enable_x64(False):
        result = fit(uniform(), decay=1e-3)
        assert result.model.W.dtype == jnp.float32
        assert result.gap < 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": -1.0}, "decay: expected a number of at least 0, or two of them for W and H, got -1.0"),
        ({"optimizer": "sgd"}, r"optimizer: expected one of \['adam', 'gradient-descent', 'lbfgs'\], got 'sgd'"),
        ({"d": 0}, "d: expected an embedding width of at least 1, got 0"),
        ({"d": 10**10}, "d: expected widths that fit in memory, at most 16777216, got 10000000000"),
        ({"tolerance": -1e-9}, "tolerance: expected a gap in nats of at least 0, got -1e-09"),
        ({"tolerance": float("nan")}, "tolerance: expected .*, got nan"),
        ({"max_steps": 0}, "max_steps: expected at least one step, got 0"),
        ({"max_steps": 2**62}, "max_steps: expected steps that fit in memory, at most 16777216"),
        ({"max_steps": 10**30}, r"max_steps: expected a whole number below 2\*\*63, got 1000"),
        ({"patience": 0}, "patience: expected at least one step, got 0"),
    ],
)
def test_refuses(small_corpus, arguments, message):
    with pytest.raises(ValueError, match=r"^" + message):
        fit(small_corpus, **arguments)


def test_a_width_below_the_rank_is_named():
    with pytest.warns(UserWarning, match=r"gap is 0\.\d+ nats .*d = 1 .*rank of the corpus, 2"):
        result = fit(uniform(), d=1)
    assert not result.converged


def test_a_tolerance_that_is_not_reached_is_named():
    with pytest.warns(UserWarning, match="after 2 steps; tolerance 1e-10"):
        fit(uniform(), max_steps=2)


def test_refuses_a_start(small_corpus):
    start = init(jax.random.key(0), small_corpus, 3)
    for wrong, message in (
        (UFM(start.W[:3], start.H), r"W \[4, d\] and H \[d, 5\] .* got W \(3, 3\) and H \(3, 5\)"),
        (UFM(start.W[:, :2], start.H), "arrays .* of one width d"),
        (UFM(start.W.at[0, 0].set(jnp.nan), start.H), "finite parameters, got NaN or infinities among them"),
        (UFM(1e200 * start.W, 1e200 * start.H), "a finite loss before some step, got a gap of nan"),
    ):
        with pytest.raises(ValueError, match="^start: expected " + message):
            fit(small_corpus, start=wrong, max_steps=1)


def test_refuses_a_decay_of_which_no_loss_is_finite(small_corpus):
    with pytest.raises(ValueError, match=r"^decay: expected a finite loss .*, got a gap of nan"):
        fit(small_corpus, decay=1e308, max_steps=1)

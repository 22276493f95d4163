import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from theory._compilation import compiled_quickly
from ufm import Answers, NormalisedUFM, NullOut, Steering, init_update, preference_odds, steer, utility_odds
from ufm.interventions import FORMS
from ufm.preference import reps, sft, split

RNG = np.random.default_rng(0)
POSITIVE, NEGATIVE = -3 * RNG.random(8) - 0.1, -3 * RNG.random(8) - 0.1
LONG, SHORT = np.arange(1.0, 9.0), np.arange(8.0, 0.0, -1)


def answers(scale=1.0):
    """Eight questions."""
    return Answers(*(jnp.asarray(x) for x in (scale * POSITIVE, scale * NEGATIVE, LONG, SHORT)))


# --- preference and utility -----------------------------------------------------------------------------------------


def test_losses_are_means_over_tokens():
    chosen = answers()
    for i in range(8):
        assert float(chosen.loss_positive[i]) == pytest.approx(-POSITIVE[i] / (i + 1), rel=1e-15)
        assert float(chosen.loss_negative[i]) == pytest.approx(-NEGATIVE[i] / (8 - i), rel=1e-15)
    np.testing.assert_array_equal(chosen.swapped.loss_positive, chosen.loss_negative)
    np.testing.assert_array_equal(chosen.swapped.loss_negative, chosen.loss_positive)
    expected = -NEGATIVE / SHORT + POSITIVE / LONG
    np.testing.assert_allclose(preference_odds(chosen.loss_positive, chosen.loss_negative), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("p", "n"),
    [(0.1, 5.0), (2.0, 0.5), (3.0, 3.0), (1e-9, 30.0), (700.0, 2.0), (800.0, 900.0), (np.log(2) + 1e-6, np.log(2) + 1e-6)],
)
def test_utility_odds_to_50_digits(p, n):
    total = mp.exp(-mpf(float(p))) + mp.exp(-mpf(float(n)))
    expected = mp.log(total / (1 - total))
    got = mpf(float(utility_odds(jnp.asarray(p), jnp.asarray(n))))
    # The sum of the two is known to a rounding of 1.
    assert abs(got - expected) <= 4e-16 * (abs(expected) + 1 / (1 - total))


def test_utility_odds_at_the_edge():
    """Defined as long as the sum is below 1, and NaN from there on: two mean losses are not those of one event."""
    half = np.log(2)
    losses = jnp.asarray([half + 1e-12, half + 1e-3, half - 1e-12, half - 1e-3, 0.1, 0.0])
    got = np.asarray(utility_odds(losses, losses))
    assert np.isnan(got).tolist() == [False, False, True, True, True, True]
    total = 2 * mp.exp(-mpf(float(losses[0])))
    assert float(got[0]) == pytest.approx(float(mp.log(total / (1 - total))), abs=1e-3)
    # Sums of 1 + 2e-22, and of 1 in float64.
    assert np.isnan(utility_odds(jnp.zeros(2), jnp.asarray([50.0, 800.0]))).all()


def test_what_is_undefined_spoils_no_gradient():
    """Sums above 1, of 1 in float64, and below."""
    losses = jnp.asarray([0.1, 0.0, 2.0])
    gradient = jax.grad(lambda x: jnp.nansum(utility_odds(x, jnp.asarray([0.1, 800.0, 2.0]))))(losses)
    np.testing.assert_array_equal(gradient[:2], [0, 0])
    # With both losses L, d/dL log(2 e^-L / (1 - 2 e^-L)) is -1 / (1 - 2 e^-L); half of it is of one of them.
    assert float(gradient[2]) == pytest.approx(-0.5 / (1 - 2 * np.exp(-2)), rel=1e-12)


@pytest.mark.parametrize("odds", [preference_odds, utility_odds])
@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([np.inf], [1.0], "loss_positive: expected finite losses of at least 0"),
        ([1.0, 2.0], [1.0, -1.0], "loss_negative: expected finite losses of at least 0"),
    ],
)
def test_odds_refuse_losses(odds, positive, negative, message):
    with pytest.raises(ValueError, match="^" + message):
        odds(positive, negative)


def test_odds_refuse_losses_of_two_shapes():
    """Without the checks of annotations that tests have."""
    for odds in (preference_odds, utility_odds):
        with pytest.raises(ValueError, match=r"^loss_negative: expected shape \(2,\), as loss_positive has, got \(1,\)"):
            inspect.unwrap(odds)(jnp.ones(2), jnp.ones(1))


def test_odds_of_half_types_are_in_float32():
    losses = jnp.asarray([2.0]), jnp.asarray([3.0])
    for odds in (preference_odds, utility_odds):
        for dtype in ("float16", "bfloat16"):
            got = odds(*(loss.astype(dtype) for loss in losses))
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, odds(*losses), rtol=1e-6)


# --- objectives -----------------------------------------------------------------------------------------------------


def test_objectives_by_hand():
    chosen, reference = answers(), answers(-2.0)
    p, n = -POSITIVE / LONG, -NEGATIVE / SHORT
    np.testing.assert_allclose(sft(chosen), p, rtol=1e-14)
    hinge = np.maximum(0.4 - (n - p), 0)
    got = split(chosen, weight_positive=0.7, weight_negative=0.2, gamma=5.0, theta=0.4)
    np.testing.assert_allclose(got, 0.7 * p + 0.2 * n + 5 * hinge, rtol=1e-13)
    np.testing.assert_allclose(split(chosen), p + 0.5 * n + 8 * np.maximum(0.3 - (n - p), 0), rtol=1e-13)
    weight = np.maximum(1.5 * (-2 * NEGATIVE + 2 * POSITIVE), 1.0)
    assert 0 < (weight == 1).sum() < 8
    argument = weight / LONG * POSITIVE - NEGATIVE / SHORT
    np.testing.assert_allclose(reps(chosen, reference, scale=1.5), -np.log(1 / (1 + np.exp(-argument))), rtol=1e-12)


def test_reps_refuses_scale():
    with pytest.raises(ValueError, match=r"^scale: .*got 0.0"):
        reps(answers(), answers(), scale=0.0)


def test_reps_of_hopeless_answers_is_finite():
    far = Answers(jnp.asarray(-5e4), jnp.asarray(-1.0), jnp.asarray(10.0), jnp.asarray(10.0))
    value, gradient = jax.value_and_grad(reps)(far, far)
    assert np.isfinite(value)
    assert float(gradient.positive) < -1e2


def test_the_hinge_of_split_asks_for_preference_and_no_more():
    """Below theta the gradient is that of the losses and gamma; above, of the losses alone."""

    def at(p, n):
        return split(Answers(jnp.asarray(-p), jnp.asarray(-n), jnp.asarray(1.0), jnp.asarray(1.0)))

    for p, n, expected in ((1.0, 1.2, (1 + 8, 0.5 - 8)), (1.0, 1.4, (1, 0.5)), (2.0, 1.0, (9, -7.5))):
        np.testing.assert_allclose(jax.grad(at, argnums=(0, 1))(p, n), expected, rtol=1e-12)


def test_the_weight_of_reps_is_a_constant():
    """It depends on the reference, and no gradient flows to it: nor to the answers, where they are their own reference."""
    chosen, reference = answers(), answers(-2.0)
    assert np.abs(reps(chosen, reference) - reps(chosen, answers())).max() > 0.1
    to_reference = jax.grad(lambda r: jnp.sum(reps(chosen, r)))(reference)
    np.testing.assert_array_equal(to_reference.positive, np.zeros(8))
    np.testing.assert_array_equal(to_reference.negative, np.zeros(8))
    own = jax.grad(lambda x: jnp.sum(reps(x, x)))(reference)
    other = jax.grad(lambda x: jnp.sum(reps(x, reference)))(reference)
    np.testing.assert_allclose(own.positive, other.positive, rtol=1e-13)


# --- through a model ------------------------------------------------------------------------------------------------

V, D, M = 5, 4, 3


def model():
    rng = np.random.default_rng(3)
    arrays = (jnp.asarray(rng.normal(size=shape)) for shape in ((V, D), (D, M), (D,), (D,)))
    return NormalisedUFM(*arrays, "rms", 1e-3)


def draw(form, inputs, outputs):
    """An update that is not 0."""
    update = init_update(jax.random.key(1), form, inputs, outputs, rank=2, dtype=jnp.float64)
    leaves, structure = jax.tree.flatten(update)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(structure, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def paired(logits):
    """Two questions: after context 0, tokens 1 and (after context 2) 3, against 4; after context 1, 0 against 2 and 2."""
    log_q = jax.nn.log_softmax(logits)
    positive = jnp.stack([log_q[0, 1] + log_q[2, 3], log_q[1, 0]])
    negative = jnp.stack([log_q[0, 4], log_q[1, 2] + log_q[2, 2]])
    return Answers(positive, negative, jnp.asarray([2.0, 1.0]), jnp.asarray([1.0, 2.0]))


def added(update, site, m):
    return paired(steer(model(), jnp.arange(M), Steering(update, site=site), m))


def nulled(update, site):
    return paired(steer(model(), jnp.arange(M), Steering(NullOut(update), site=site), 0.0))


def unsteered():
    return paired(model().decode(model().H.T))


OBJECTIVES = {
    "sft": lambda update, site: sft(added(update, site, 0.7)),
    "split": lambda update, site: split(added(update, site, 0.7)),
    "split, no hinge": lambda update, site: split(added(update, site, 0.7), theta=-100.0),
    "reps": lambda update, site: reps(added(update, site, 0.7), unsteered()),
    "reps, negative": lambda update, site: reps(nulled(update, site).swapped, unsteered().swapped),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("site", ["residual", "decoder"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_differences(form, site, objective):
    update = draw(form, *model().sites[site])

    def total(update):
        return jnp.sum(objective(update, site))

    # Not the same for all tokens: a softmax would not see it.
    step = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(1.0, leaf.size + 1)).reshape(leaf.shape), update)
    value, gradient = compiled_quickly(jax.value_and_grad(total))(update)
    along = sum(jnp.sum(s * g) for s, g in zip(jax.tree.leaves(step), jax.tree.leaves(gradient), strict=True))
    assert float(value) == pytest.approx(float(total(update)), rel=1e-12)
    ahead, behind = (jax.tree.map(lambda x, s, sign=sign: x + sign * 1e-5 * s, update, step) for sign in (1, -1))
    assert abs(along) > 1e-3
    assert float(along) == pytest.approx(float(total(ahead) - total(behind)) / 2e-5, rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_the_negative_side_is_without_the_concept(form):
    """Answers swapped, and the component along the update, where positive, taken out of the state, one context at a time."""
    free, update = model(), draw(form, D, D)
    W, H, gamma, bias = (np.asarray(x) for x in (free.W, free.H, free.gamma, free.bias))
    logits = []
    for h in H.T:
        u = np.asarray(update.added(jnp.asarray(h)))
        h = h - max(h @ u, 0) / (u @ u) * u
        logits.append(W @ (gamma * h / np.sqrt(np.mean(h**2) + free.eps) + bias))
    without = paired(jnp.asarray(np.stack(logits)))
    weight = np.maximum(np.asarray(unsteered().positive - unsteered().negative), 1)
    argument = weight * np.asarray(without.negative) / [1, 2] - np.asarray(without.positive) / [2, 1]
    got = OBJECTIVES["reps, negative"](update, "residual")
    np.testing.assert_allclose(got, np.log1p(np.exp(-argument)), rtol=1e-11)
    assert np.abs(got - reps(unsteered().swapped, unsteered().swapped)).max() > 1e-3

"""What steering does to predictions, against the model itself: logits of whole texts, differences, one text at a time."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import sim
from sim.bridge.generation import Sampling
from sim.choosing import rollouts
from sim.choosing.rollouts import FixedText, Writer, prompts_alone

RNG = np.random.default_rng(3)
PROMPTS = ((5, 6, 7, 8), (9, 10), (11, 12, 13, 14, 15, 16))
V = RNG.normal(size=32)
MEMBERS = np.zeros(61, bool)
MEMBERS[[1, 20, 50]] = True


@pytest.fixture
def lm(small):
    return small("llama")


def writer(lm, horizon=5):
    return Writer(lm, PROMPTS, horizon, Sampling(temperature=1.0), 0)


def predictions(lm, row, steering=None, alpha=0.0, horizon=5):
    """Log-probabilities of the last tokens of a text, from its own logits."""
    split = lm.split([row], 1, last_only=False)
    logits = split.decode(split.embed(jnp.arange(1)))
    if steering is not None:
        resolved, parts = split.resolve(steering)
        logits = resolved.steered(resolved.embed(jnp.arange(1)), parts, alpha)
    return log_softmax(np.asarray(logits, float)[0], axis=-1)[-horizon - 1 : -1]


@pytest.mark.parametrize("most", [0, 2**28])
def test_effects_are_those_of_whole_texts(lm, most, monkeypatch):
    monkeypatch.setattr(rollouts, "KEPT", most)
    steering = sim.Steering({1: sim.Add(V)})
    written = writer(lm)(steering, 0.7)
    text = FixedText.of(lm, written, steering)
    effects = text.effects(0.7, jnp.asarray(MEMBERS))
    assert effects.is_finite
    assert (text.log_p is None) == (most == 0)
    for j, row in enumerate(written.rows):
        own = written.counted[j]
        log_p, log_q = predictions(lm, row), predictions(lm, row, steering, 0.7)
        p, q = np.exp(log_p), np.exp(log_q)
        expected = {
            "kl": np.sum(p * (log_p - log_q), axis=1),
            "reverse_kl": np.sum(q * (log_q - log_p), axis=1),
            "loss": -np.sum(q * log_p, axis=1),
            "share": q[:, MEMBERS].sum(axis=1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(effects, name)[j][own], values[own], rtol=2e-4, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(text.shares(jnp.asarray(MEMBERS))[j][own], p[:, MEMBERS].sum(axis=1)[own], rtol=1e-4)
        np.testing.assert_allclose(text.entropy[j], -np.sum(p * log_p, axis=1), rtol=1e-4)


def test_slopes_of_logits_that_are_kept_give_the_same_tilt(lm, monkeypatch):
    text = FixedText.of(lm, prompts_alone(PROMPTS), sim.Steering({1: sim.Add(V)}), skip=False)
    members, slopes = jnp.asarray(MEMBERS), text.logit_slopes()
    assert slopes.shape == text.log_p.shape
    got, expected = text.tilt(members, slopes), text.tilt(members)
    for mine, other in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(rollouts, "KEPT", 2 * text.log_p.size - 1)
    assert text.logit_slopes() is None


def test_the_tilt_is_the_derivative(lm):
    steering = sim.Steering({1: sim.Add(V)})
    alone = prompts_alone(PROMPTS)
    assert alone.counted.sum(axis=1).tolist() == [3, 1, 5]
    text = FixedText.of(lm, alone, steering, skip=False)
    tilt, promotion = text.tilt(jnp.asarray(MEMBERS))
    step, gains = 1e-2, []
    for j, prompt in enumerate(PROMPTS):
        horizon = len(prompt) - 1
        up, down = (predictions(lm, list(prompt), steering, sign * step, horizon) for sign in (1, -1))
        p = np.exp(predictions(lm, list(prompt), horizon=horizon))
        off = (up - down) / (2 * step)
        off -= np.sum(p * off, axis=1, keepdims=True)
        own = slice(0, horizon)
        np.testing.assert_allclose(tilt.variance[j][own], np.sum(p * off**2, axis=1), rtol=2e-2)
        np.testing.assert_allclose(tilt.above[j][own], off.max(axis=1), rtol=2e-2)
        np.testing.assert_allclose(tilt.below[j][own], -off.min(axis=1), rtol=2e-2)
        np.testing.assert_allclose(tilt.covariance[j][own], (p * off)[:, MEMBERS].sum(axis=1), atol=2e-3)
        gains.append(p * off)
        assert np.isnan(tilt.variance[j][horizon:]).all()
    np.testing.assert_allclose(promotion.gain, np.concatenate(gains).mean(axis=0), atol=2e-4)


def test_the_slope_of_the_share(lm):
    steering = sim.Steering({1: sim.Add(V)})
    text = FixedText.of(lm, writer(lm)(), steering)
    members, step = jnp.asarray(MEMBERS), 0.02
    up, down = (text.effects(0.5 + sign * step, members).share for sign in (1, -1))
    slope = text.effects(0.5, members, slope=True).share_slope
    np.testing.assert_allclose(slope, (up - down) / (2 * step), atol=2e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3, scaled", "gemma2"])
@pytest.mark.parametrize("tokens", [sim.All(), sim.Last()], ids=["all", "last"])
def test_after_the_last_block_no_prediction_is_unembedded_again(small, name, tokens):
    lm = small(name)
    steering = sim.Steering({lm.config.num_layers - 1: sim.Add(V)}, tokens=tokens)
    text = FixedText.of(lm, writer(lm)(steering, 2.0), steering)
    # Where logits are capped, log-probabilities do not tell them.
    assert (text.last_step is None) == (name == "gemma2")
    assert FixedText.of(lm, text.rollouts, sim.Steering({0: sim.Add(V)})).last_step is None
    members, plain = jnp.asarray(MEMBERS), replace(text, log_p=None)
    assert plain.last_step is None
    for alpha in (0.0, -0.3, 2.0, 40.0):
        got, expected = (which.effects(alpha, members, slope=True) for which in (text, plain))
        for ours, whole, field in zip(got, expected, got._fields, strict=True):
            np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=2e-6, err_msg=f"{field} at {alpha}")


def test_a_steering_of_the_last_token_acts_on_texts_as_while_they_are_written(lm):
    steering = sim.Steering({1: sim.Add(V)}, tokens=sim.Last())
    written = Writer(lm, PROMPTS, 5, Sampling(), 0)(steering, 3.0)
    text = FixedText.of(lm, written, steering)
    log_q = [
        np.asarray(text.split.decoder.logits(text.split.before_norm(one, text.steering, 3.0)))[-6:-1]
        for one in (text.split.embed(jnp.asarray(j)) for j in range(3))
    ]
    assert np.argmax(log_q, axis=-1).tolist() == written.tokens.tolist()
    assert written.tokens.tolist() != Writer(lm, PROMPTS, 5, Sampling(), 0)().tokens.tolist()


def test_texts_are_written_with_the_same_randomness(lm):
    first, second = (writer(lm, horizon=8)() for _ in range(2))
    np.testing.assert_array_equal(first.tokens, second.tokens)


def test_masks_are_refused(lm):
    steering = sim.Steering({1: sim.Add(V)}, tokens=sim.Where(np.ones(11, bool)))
    with pytest.raises(ValueError, match=r"tokens: expected All"):
        FixedText.of(lm, writer(lm)(), steering)


def test_predictions_that_are_decided_are_left_out_at_the_beginning(lm, monkeypatch):
    steering, written = sim.Steering({1: sim.Add(V)}), writer(lm)()
    entropy = FixedText.of(lm, written, steering).entropy
    monkeypatch.setattr(rollouts, "DETERMINISTIC", float(np.sort(entropy[:, 0])[1]))
    counted = FixedText.of(lm, written, steering).rollouts.counted
    assert 1 <= (~counted[:, 0]).sum() < 3
    for row, kept in zip(entropy, counted, strict=True):
        begun = np.flatnonzero(row > rollouts.DETERMINISTIC)
        np.testing.assert_array_equal(np.flatnonzero(kept), np.arange(begun[0], 5) if begun.size else [])


def test_prompts_of_one_token_say_nothing(lm):
    with pytest.raises(ValueError, match="two tokens"):
        prompts_alone([[3], [4]])


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_one_pass_gives_the_states_of_all_layers(lm, kind):
    lm = lm.with_dtype(kind)
    alone, members = prompts_alone(PROMPTS), jnp.asarray(MEMBERS)
    steerings = {layer: sim.Steering({layer: sim.Add((layer + 1) * V)}) for layer in (0, 2)}
    texts = FixedText.of_layers(lm, alone, steerings)
    assert sorted(texts) == [0, 2]
    for layer, text in texts.items():
        expected = FixedText.of(lm, alone, steerings[layer], skip=False)
        for ours, own in zip(
            (*text.tilt(members)[0], text.entropy), (*expected.tilt(members)[0], expected.entropy), strict=True
        ):
            np.testing.assert_allclose(ours, own, rtol=1e-4 if kind == "float32" else 0.1, atol=1e-5)
        ours, own = (each.effects(0.7, members).kl for each in (text, expected))
        np.testing.assert_allclose(ours, own, rtol=1e-4 if kind == "float32" else 0.1, atol=1e-5)

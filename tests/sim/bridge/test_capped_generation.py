"""Generation within a budget of KL for each token, against the same strengths at the same tokens of whole texts."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import sim
import ufm
from sim.bridge.generation import Sampling
from ufm.distributions import kl

RNG = np.random.default_rng(2)
PROMPTS = [RNG.integers(3, 60, size=n).tolist() for n in (6, 9, 4, 7)]
V, W = RNG.normal(size=(2, 32))
NEW, ALPHA = 7, 4.0


@pytest.fixture
def lm(small):
    return small("llama")


STEERING = sim.Steering({0: sim.Add(V)})


def held(lm, budget, *, interventions=None, alpha=ALPHA, **options):
    steering = sim.Steering(interventions or {0: sim.Add(V)}, budget=budget)
    sampling = Sampling(temperature=1.0)
    return lm.generate(PROMPTS, max_new_tokens=NEW, sampling=sampling, steering=steering, alpha=alpha, stop=False, **options)


def recomputed(lm, prompt, tokens, factors):
    """KL of each prediction of a text from whole passes, each token steered by its own strength."""
    text = [*prompt, *tokens[:-1]]
    places = [np.arange(len(text)) < len(prompt)] + [np.arange(len(text)) == len(prompt) + k for k in range(len(tokens) - 1)]
    parts = [sim.Steering({0: sim.Add(V)}, tokens=sim.Where(jnp.asarray(place))) for place in places]
    whole = sum(parts[1:], parts[0])
    split, own = lm.split([text], last_only=False).resolve(whole)
    state = split.embed(jnp.arange(1))
    log_q = log_softmax(np.asarray(split.steered(state, own, ALPHA * jnp.asarray(factors)), float)[0], axis=-1)
    log_p = log_softmax(np.asarray(split.decode(state), float)[0], axis=-1)
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)[len(prompt) - 1 :]


@pytest.mark.parametrize("budget", [0.003, 0.1])
def test_costs_are_those_of_whole_texts_and_stay_near_the_budget(lm, budget):
    generated = held(lm, budget)
    costs, factors = np.asarray(generated.costs), np.asarray(generated.factors)
    assert costs.shape == factors.shape == (4, NEW)
    for row, prompt in enumerate(PROMPTS):
        expected = recomputed(lm, prompt, generated.tokens[row], factors[row])
        np.testing.assert_allclose(costs[row], expected, rtol=2e-3, atol=2e-6)
    acting = factors > 0
    assert acting.mean() > 0.6
    assert (costs[acting] <= budget * 1.001).all()
    assert np.median(costs[acting & (factors < 1)]) > 0.85 * budget
    assert 0 < factors[acting].min() < factors[acting].max() <= 1


def test_a_budget_of_almost_nothing_leaves_the_text_as_it_is(lm):
    plain = lm.generate(PROMPTS, max_new_tokens=NEW, sampling=Sampling(temperature=1.0), stop=False)
    assert held(lm, 1e-9).tokens == plain.tokens


def test_a_budget_that_is_never_spent_leaves_the_strength_as_it_is(lm):
    plain = lm.generate(
        PROMPTS, max_new_tokens=NEW, sampling=Sampling(temperature=1.0), stop=False, steering=STEERING, alpha=ALPHA
    )
    generated = held(lm, 1e3)
    assert generated.tokens == plain.tokens
    assert set(np.ravel(generated.factors)) == {1.0}
    assert plain.factors == plain.costs == ()


def test_strengths_of_prompts_and_parts_are_lowered_alike(lm):
    both = {0: sim.Add(V), 2: sim.Add(W)}
    alpha = np.array([[1.0, 0.0], [-2.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    generated = held(lm, 0.05, interventions=both, alpha=alpha)
    again = held(lm, 0.05, alpha=alpha[:, 0])
    assert generated.tokens == again.tokens
    np.testing.assert_allclose(generated.factors, again.factors, rtol=1e-3)
    assert generated.factors[3] == (1.0,) * NEW


def test_the_same_seed_gives_the_same_and_copies_differ(lm):
    first, second = held(lm, 0.05), held(lm, 0.05)
    assert first == second
    copies = held(lm, 0.05, num_return_sequences=2)
    assert len(copies.tokens) == len(copies.costs) == 8
    assert copies.costs[0][0] == copies.costs[1][0]
    assert copies.tokens[0] != copies.tokens[1]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_sweep_keeps_to_the_budget_as_the_prompt_of_a_text_does(lm, layer):
    steering = sim.Steering({layer: sim.Add(V)}, budget=0.05)
    split, alphas = lm.split(PROMPTS), np.array([-40.0, -4.0, 0.0, 0.01, 4.0])
    nats = np.asarray(ufm.divergence(split, np.arange(4), steering, alphas))
    plain = np.asarray(ufm.divergence(split, np.arange(4), sim.Steering({layer: sim.Add(V)}), alphas))
    assert plain.max() > 0.5
    assert nats.max() <= 0.05 * 1.001
    assert nats[:, 2].max() < 1e-11
    within = plain < 0.045
    np.testing.assert_allclose(nats[within], plain[within], rtol=1e-3, atol=1e-7)
    generated = lm.generate(PROMPTS, max_new_tokens=1, steering=steering, alpha=4.0, stop=False)
    np.testing.assert_allclose(nats[:, 4], np.ravel(generated.costs), rtol=2e-3)
    logits = np.asarray(ufm.steer(split, np.arange(4), steering, 4.0))
    base = np.stack([rows[-1] for rows in lm.logits(PROMPTS)])
    np.testing.assert_allclose(kl(jnp.asarray(base), jnp.asarray(logits)), nats[:, 4], rtol=2e-3)


def test_where_a_budget_cannot_be_kept_it_is_refused(lm, tmp_path):
    capped = sim.Steering({0: sim.Add(V)}, budget=0.05)
    message = r"^steering: expected one without a budget, for .*, got Steering\(0: Add, budget=0.05\)$"
    for work in (
        lambda: lm.split(PROMPTS, last_only=False).resolve(capped),
        lambda: sim.choose(lm, capped, PROMPTS, horizon=2, tokens=[3]),
        lambda: sim.write_adapter(capped, tmp_path / "adapter", lm),
    ):
        with pytest.raises(ValueError, match=message):
            work()
    assert list(tmp_path.iterdir()) == []

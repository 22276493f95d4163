"""Choosing a strength: against bisection on the same text, against definitions, and where there is no answer."""

import json
import re
from dataclasses import replace
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import sim
from sim.bridge.generation import Sampling
from sim.choosing import rollouts, search
from sim.choosing.criteria import Ceiling, KLBudget, LossRise, NormRatio, Rising, ShareAtLeast, statistic
from sim.choosing.interval import interval_of
from sim.choosing.page import summary
from sim.choosing.rollouts import FixedText, Writer, prompts_alone
from sim.choosing.search import choose, promoted
from theory import budgets

RNG = np.random.default_rng(5)
PROMPTS = RNG.integers(3, 60, size=(6, 9)).tolist()
V = RNG.normal(size=32)
TOKENS = [4, 9, 33]


@pytest.fixture
def lm(small):
    return small("llama")


def steering(layer=1):
    return sim.Steering({layer: sim.Add(V)})


def choice_of(lm, layer=1, **options):
    return choose(lm, steering(layer), PROMPTS, horizon=6, tokens=TOKENS, **options)


def text_at(lm, alpha, layer=1):
    written = Writer(lm, tuple(map(tuple, PROMPTS)), 6, Sampling(temperature=1.0), 0)(steering(layer), alpha)
    return FixedText.of(lm, written, steering(layer))


MEMBERS = jnp.zeros(61, bool).at[jnp.asarray(TOKENS)].set(True)


def bisected(excess):
    low, high = 1e-4, 1e4
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize("of", ["p95", "mean", "max"])
def test_the_strength_is_that_of_bisection_on_the_same_text(lm, of):
    choice = choice_of(lm, budget=0.05, of=of)
    text = text_at(lm, choice.points[-1].on)
    expected = bisected(lambda alpha: np.log(statistic(text.effects(alpha, MEMBERS).kl, of) / 0.05))
    assert choice.alpha == pytest.approx(expected, rel=0.012)
    assert getattr(choice.cost, of) == pytest.approx(0.05, rel=0.03)
    assert choice.stopped_by == "budget"
    assert "still moves" not in choice.reason
    assert choice.layer == 1
    assert choice.interval[0] <= choice.alpha <= choice.interval[1]


def test_the_first_text_is_short_and_counts_as_such(lm, monkeypatch):
    lengths = []
    write = Writer.__call__
    monkeypatch.setattr(Writer, "__call__", lambda self, *args: lengths.append(self.horizon) or write(self, *args))
    choice = choose(lm, steering(), PROMPTS, horizon=8, tokens=TOKENS, budget=0.05, completions=0)
    assert lengths[:2] == [4, 8]
    assert set(lengths[2:]) <= {8}
    # Texts of 9 + 8 tokens written and read, 2 of 3 blocks and the logits at every strength.
    few = 2 * sum(lengths) / 8
    assert few * 0.5 < choice.passes < few + len(choice.points) + 3


def test_a_share_that_short_texts_do_not_reach_is_sought_on_long_ones(lm, monkeypatch):
    plain = choose(lm, steering(), PROMPTS, horizon=8, tokens=RISING, share=0.065, completions=0)
    solve = search._Search._solve

    def no_luck(self, text, *args):
        if text.rollouts.horizon < 8:
            raise search._NoStrengthError("too short")
        return solve(self, text, *args)

    monkeypatch.setattr(search._Search, "_solve", no_luck)
    choice = choose(lm, steering(), PROMPTS, horizon=8, tokens=RISING, share=0.065, completions=0)
    assert choice.alpha == pytest.approx(plain.alpha, rel=0.1)
    assert choice.share[1] == pytest.approx(0.065, rel=0.05)


def test_the_text_is_written_at_the_strength(lm):
    choice = choice_of(lm, budget=0.05)
    final = choice.points[-1].on
    assert choice.alpha == pytest.approx(final, rel=0.041)
    effects = text_at(lm, final).effects(choice.alpha, MEMBERS)
    assert choice.cost.mean == pytest.approx(np.nanmean(effects.kl), rel=1e-4)
    assert choice.cost.max == pytest.approx(np.nanmax(effects.kl), rel=1e-4)
    assert choice.cost.cumulative == pytest.approx(np.nansum(effects.kl, axis=1).mean(), rel=1e-4)
    assert choice.share[1] == pytest.approx(np.nanmean(effects.share), rel=1e-4)
    before = text_at(lm, final).shares(MEMBERS)
    assert choice.share[0] == pytest.approx(np.nanmean(before), rel=1e-4)
    f, g = (float(np.mean(share[effects.counted], dtype=float)) for share in (before, effects.share))
    least = f * np.log(f / g) + (1 - f) * np.log((1 - f) / (1 - g))
    assert choice.least_cost == pytest.approx(least, rel=1e-3)
    assert choice.efficiency == pytest.approx(least / choice.cost.mean, rel=1e-3)
    assert 0 < choice.efficiency < 1


def test_predictions_that_are_not_counted_have_no_say(lm, monkeypatch):
    entropy = text_at(lm, 0.0).entropy
    monkeypatch.setattr(rollouts, "DETERMINISTIC", float(np.quantile(entropy, 0.6)))
    choice = choice_of(lm, budget=0.05)
    text = text_at(lm, choice.points[-1].on)
    own = text.rollouts.counted
    assert 0 < (~own).sum() < own.size
    kl = text.effects(choice.alpha, MEMBERS).kl
    assert choice.cost.mean == pytest.approx(kl[own].mean(), rel=1e-4)
    assert 0 < choice.efficiency < 1


def test_the_first_guess_is_one_derivative(lm):
    choice = choice_of(lm, budget=1e-6, of="mean")
    text = FixedText.of(lm, prompts_alone(PROMPTS), steering(), skip=False)
    tiny = 1e-3
    curvature = np.nanmean(text.effects(tiny, MEMBERS).kl) / tiny**2
    assert choice.guess == pytest.approx(np.sqrt(1e-6 / curvature), rel=0.02)


def test_the_other_way(lm):
    forward, back = choice_of(lm, budget=0.05), choice_of(lm, budget=0.05, sign=-1)
    assert forward.alpha > 0 > back.alpha
    assert back.guess < 0
    assert back.interval[0] <= back.alpha <= back.interval[1] < 0
    mirrored = choose(lm, sim.Steering({1: sim.Add(-V)}), PROMPTS, horizon=6, tokens=TOKENS, budget=0.05)
    assert mirrored.alpha == pytest.approx(-back.alpha, rel=1e-5)


RISING = [43]
"""What steering promotes."""


def test_the_least_strength_for_a_share(lm):
    options = {"horizon": 6, "tokens": RISING, "completions": 0}
    plain = choose(lm, steering(), PROMPTS, budget=0.2, **options)
    wanted = float(np.mean(plain.share))
    choice = choose(lm, steering(), PROMPTS, share=wanted, **options)
    assert choice.share[1] == pytest.approx(wanted, rel=0.03)
    assert choice.alpha < plain.alpha
    assert choice.stopped_by == "share"
    assert choice.passes < 40
    assert choose(lm, steering(), PROMPTS, share=wanted, budget=30.0, **options).alpha == pytest.approx(
        choice.alpha, rel=1e-6
    )


def test_a_share_is_found_below_its_peak_wherever_the_search_begins(lm, monkeypatch):
    text, alphas = text_at(lm, 0.0), np.geomspace(0.1, 100.0, 16)
    one_hot = [jnp.zeros(61, bool).at[token].set(True) for token in range(61)]
    shares = np.array([[np.nanmean(text.effects(alpha, one).share) for alpha in alphas] for one in one_hot])
    # Of tokens with a peak inside, the one whose share falls farthest behind it.
    token = int(np.argmax(np.where(np.argmax(shares, axis=1) > 3, shares.max(axis=1) / shares[:, -1], 0)))
    wanted = float(np.sqrt(np.nanmean(text.shares(one_hot[token])) * shares[token].max()))
    assert shares[token, -1] < wanted
    monkeypatch.setattr(search._Search, "_least_guess", lambda *_: 100.0)
    choice = choose(lm, steering(), PROMPTS, horizon=6, tokens=[token], share=wanted, completions=0)
    assert choice.alpha is not None, choice.reason
    assert choice.alpha < alphas[shares[token].argmax()]
    assert choice.share[1] == pytest.approx(wanted, rel=0.08)


def test_a_share_that_the_unsteered_model_reaches_on_its_own_text_is_named(lm):
    """In the prompts it is less."""
    choice = choice_of(lm, share=0.06)
    assert choice.share[0] < 0.06
    assert choice.alpha is None
    share = float(np.nanmean(text_at(lm, 0.0).shares(MEMBERS)))
    expected = f"reached without steering already: it is {share:.3g} on the text that the unsteered model writes"
    assert choice.reason == f"the share 0.06 is {expected}"


def test_a_share_that_costs_too_much(lm):
    choice = choose(lm, steering(), PROMPTS, horizon=6, tokens=RISING, share=0.03, budget=1e-4)
    assert choice.alpha is None
    assert "nats" in choice.reason
    assert "budget" in choice.reason
    assert choice.interval is None
    assert choice.cost is None


def test_a_share_that_is_not_reached_says_the_ceiling(lm):
    choice = choice_of(lm, share=0.9999)
    assert choice.alpha is None
    assert choice.reason.startswith("no strength that was tried (")
    assert "reaches the share 0.9999 on the text " in choice.reason
    most, without = map(float, re.search(r"at most it is (\S+), at .*, and (\S+) without steering", choice.reason).groups())
    assert without < most < 0.9999
    assert choice.passes < 40


def test_a_share_that_is_there_already(lm):
    choice = choice_of(lm, share=1e-4)
    assert choice.alpha is None
    assert "without steering" in choice.reason


def test_a_budget_that_no_strength_spends(lm):
    choice = choice_of(lm, layer=2, budget=40.0)
    assert choice.alpha is None
    assert "no limit is reached" in choice.reason
    assert choice.as_json()["alpha"] is None


def test_other_limits(lm):
    ratio = choice_of(lm, criteria=[NormRatio(0.3)])
    text = text_at(lm, ratio.points[-1].on)
    lengths = np.linalg.norm(np.asarray(text.states.stream), axis=-1)[np.asarray(text.states.mask)]
    assert ratio.alpha == pytest.approx(0.3 * np.median(lengths) / np.linalg.norm(V), rel=0.011)
    assert ratio.stopped_by == "norm"
    rise = choice_of(lm, criteria=[LossRise(0.05)])
    base = FixedText.of(lm, Writer(lm, tuple(map(tuple, PROMPTS)), 6, Sampling(temperature=1.0), 0)(), steering())
    own = np.mean(base.entropy[base.rollouts.counted])
    effects = text_at(lm, rise.points[-1].on).effects(rise.alpha, MEMBERS)
    assert np.nanmean(effects.loss) == pytest.approx(1.05 * own, rel=0.02)
    assert rise.stopped_by == "log-probability"


class AtMost(Ceiling):
    """A strength within another: rounding has no part in where that is."""

    name = "strength"

    def __init__(self, most):
        self.most = most

    def excess(self, situation):
        return float(np.log(situation.alpha / self.most))


@pytest.mark.parametrize("steps", [1.0, 0.5, 2.0])
def test_a_strength_that_meets_its_limit_to_the_last_digit_is_the_answer(lm, steps):
    most = steps * choice_of(lm, criteria=[AtMost(1.0)]).guess
    choice = choice_of(lm, criteria=[AtMost(most)])
    assert choice.alpha == pytest.approx(most, rel=0.011)
    assert choice.stopped_by == "strength"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("layer", [0, 2])
def test_a_limit_that_is_flat_in_the_strength_is_solved_as_well(lm, layer, seed):
    """A loss grows slowly: that it is near its limit says little of how near the strength is."""
    v = np.random.default_rng(seed).normal(size=32)
    choice = choose(lm, sim.Steering({layer: sim.Add(v)}), PROMPTS, horizon=8, tokens=TOKENS, criteria=[LossRise(0.1)])
    write = Writer(lm, tuple(map(tuple, PROMPTS)), 8, Sampling(temperature=1.0), 0)
    base = FixedText.of(lm, write(), steering())
    own = np.mean(base.entropy[base.rollouts.counted])
    text = FixedText.of(lm, write(sim.Steering({layer: sim.Add(v)}), choice.written_at), sim.Steering({layer: sim.Add(v)}))
    excess = [np.log(np.nanmean(text.effects(f * choice.alpha, MEMBERS).loss) / (1.1 * own)) for f in (0.985, 1.015)]
    assert excess[0] < 0 < excess[1]


def test_a_share_that_falls_from_the_start_has_no_strength_before_its_peak(lm):
    text, single = text_at(lm, 0.0), [jnp.zeros(61, bool).at[token].set(True) for token in range(61)]
    rises = [np.nanmean(text.effects(0.1, one).share) / np.nanmean(text.shares(one)) for one in single]
    tokens = [int(np.argmin(rises))]
    choice = choose(lm, steering(), PROMPTS, horizon=6, tokens=tokens, criteria=[Rising()])
    assert choice.alpha is None
    assert choice.reason.endswith("is too much already for peak (the concept's share does not rise there)")
    assert choice.passes < 40


def test_texts_that_lead_to_each_other_have_one_between_them(lm, monkeypatch):
    """On text written below the answer a strength above it is solved, and the other way round."""
    written = []

    def solve(self, text, alpha, tolerance):
        written.append(alpha)
        found = 3.0 if alpha < 2 else 1.4
        return found, {found: text.effects(found, self.members), 2.0: text.effects(2.0, self.members)}

    monkeypatch.setattr(search._Search, "_solve", solve)
    choice = choice_of(lm, budget=0.05)
    assert written[:4] == pytest.approx([written[0], written[1], 4.4 - written[1], np.sqrt(3.0 * 1.4)], rel=1e-6)
    assert "still moves" in choice.reason


def test_the_first_of_several_limits_stops(lm):
    budget = choice_of(lm, budget=0.05)
    both = choice_of(lm, budget=0.05, criteria=[NormRatio(10.0)])
    assert both.alpha == pytest.approx(budget.alpha, rel=1e-6)
    assert both.stopped_by == "budget"
    assert choice_of(lm, budget=50.0, criteria=[NormRatio(0.01)]).stopped_by == "norm"


def test_rising_stops_at_the_peak_of_the_share(lm):
    text, alphas = text_at(lm, 0.0), np.geomspace(1e-3, 1.0, 13)
    tokens = [jnp.zeros(61, bool).at[token].set(True) for token in range(61)]
    shares = np.array([[np.nanmean(text.effects(alpha, one).share) for alpha in alphas] for one in tokens[:8]])
    top = shares.argmax(axis=1)
    token = next(k for k in range(8) if 2 < top[k] < 11 and (np.diff(shares[k, : top[k]]) > 0).all())
    choice = choose(lm, steering(), PROMPTS, horizon=6, tokens=[token], criteria=[Rising()])
    assert choice.reason == ""
    text = text_at(lm, choice.points[-1].on)
    around = [np.nanmean(text.effects(choice.alpha * factor, tokens[token]).share) for factor in (0.9, 1.0, 1.1)]
    assert around[1] >= max(around[0], around[2])
    assert choice.stopped_by == "peak"


def test_each_prompt_has_a_strength_of_its_own(lm):
    choice = choice_of(lm, budget=0.05)
    text = FixedText.of(lm, prompts_alone(PROMPTS), steering(), skip=False)
    tilt, _ = text.tilt(MEMBERS)
    gain, price = np.nanmean(tilt.covariance, axis=1), np.nanmean(tilt.variance, axis=1)
    own = np.array([prompt.own_alpha for prompt in choice.per_prompt])
    rule = gain / price
    np.testing.assert_allclose(own / np.abs(own).max(), rule / np.abs(rule).max(), rtol=1e-3, atol=1e-6)
    assert price @ own**2 == pytest.approx(price.sum() * choice.alpha**2, rel=1e-4)
    assert np.mean([prompt.cost for prompt in choice.per_prompt]) == pytest.approx(choice.cost.mean, rel=1e-5)


def test_bounds_are_bounds(lm):
    choice = choice_of(lm, layer=2, budget=0.05, of="max")
    text = FixedText.of(lm, prompts_alone(PROMPTS), steering(2), skip=False)
    safe = choice.safe_alpha["N20"]
    assert safe.is_theorem
    assert np.nanmax(text.effects(safe.alpha, MEMBERS).kl) <= 0.05
    assert np.nanmax(text.effects(1.1 * safe.alpha, MEMBERS).kl) > 0.05 / 100
    inner = choice_of(lm, budget=0.05, of="max").safe_alpha
    assert not inner["N20"].is_theorem
    down = sim.Steering({2: sim.Add(V)}, site="mlp_down")
    # What is added to a down-projection may pass a norm before it is in the stream.
    assert not choose(lm, down, PROMPTS, horizon=2, tokens=TOKENS, budget=0.05).safe_alpha["N20"].is_theorem
    assert inner["N20"].alpha < inner["N18"].alpha
    tilt, _ = FixedText.of(lm, prompts_alone(PROMPTS), steering(), skip=False).tilt(MEMBERS)
    own = ~np.isnan(tilt.variance)
    expected = budgets.safe_strength(jnp.asarray(tilt.variance[own]), jnp.asarray(tilt.above[own]), 0.05)
    assert inner["N18"].alpha == pytest.approx(float(expected.min()), rel=1e-3)


def test_json_has_fixed_names(lm):
    result = choice_of(lm, budget=0.05).as_json()
    assert {"alpha", "layer", "interval", "per_prompt", "cost", "share", "efficiency", "safe_alpha", "guess"} <= set(result)
    assert {"stopped_by", "passes", "reason"} <= set(result)
    assert set(result["cost"]) == {"mean", "p95", "max", "cumulative"}
    assert set(result["share"]) == {"before", "after"}
    assert set(result["safe_alpha"]) == {"N18", "N20"}
    assert set(result["guarantees"]) == {"theorems", "under_assumptions", "measured"}
    assert len(result["per_prompt"]) == len(PROMPTS)


@pytest.mark.usefixtures("as_users_have_it")
def test_the_kind_of_a_number_does_not_matter(lm):
    """Fractions, and numbers of NumPy, which JSON does not know."""
    plain = choose(lm, V, PROMPTS, layer=1, budget=0.25, share=0.125, horizon=3, seed=1, tokens=TOKENS)
    numbers = {"layer": np.int64(1), "budget": Fraction(1, 4), "share": Fraction(1, 8), "horizon": np.int32(3)}
    choice = choose(lm, V, PROMPTS, **numbers, seed=np.int64(1), tokens=np.asarray(TOKENS))
    assert json.dumps(choice.as_json()) == json.dumps(plain.as_json())


def test_a_bound_that_allows_everything_is_null(lm):
    choice = choice_of(lm, budget=0.05)
    free = replace(choice, safe_alpha={name: replace(bound, alpha=np.inf) for name, bound in choice.safe_alpha.items()})
    result = json.loads(json.dumps(free.as_json(), allow_nan=False))
    assert [bound["alpha"] for bound in result["safe_alpha"].values()] == [None, None]
    assert all("at every strength" in sentence for sentence in result["guarantees"]["under_assumptions"])


def test_bounds_say_nothing_of_a_budget_that_nobody_asked_for(lm):
    options = {"horizon": 6, "tokens": RISING, "share": 0.03}
    choice = choose(lm, steering(), PROMPTS, **options)
    assert choice.guarantees["under_assumptions"] == []
    assert not any("budget" in sentence for sentences in choice.guarantees.values() for sentence in sentences)
    assert len(choose(lm, steering(), PROMPTS, budget=30.0, **options).guarantees["under_assumptions"]) == 2


def test_the_interval_of_a_law_is_known():
    choice_effects = {}
    kl = np.array([[1.0], [4.0]])
    for alpha in (0.5, 1.0, 2.0):
        values = [kl * alpha**2] + [kl] * 4
        choice_effects[alpha] = text_effects(values)
    low, high = interval_of(lambda a, effects: np.log(effects.kl.mean()), choice_effects, 0.6, 0)
    assert low == pytest.approx(0.5, rel=1e-3)
    assert high == pytest.approx(1.0, rel=1e-3)


def test_an_interval_that_no_sample_tells_is_all_that_was_looked_at():
    effects = {alpha: text_effects([np.ones((2, 1))] * 5) for alpha in (0.5, 1.0, 2.0)}
    assert interval_of(lambda *_: 0.3, effects, 0.6, 0) == pytest.approx((0.5, 2.0))
    assert interval_of(lambda *_: np.nan, effects, 4.0, 0) == pytest.approx((0.5, 4.0))


def test_what_is_steered_after_the_prompts_alone_has_a_strength(lm):
    later = sim.Steering({1: sim.Add(V)}, tokens=sim.After(9))
    choice = choose(lm, later, PROMPTS, horizon=6, tokens=TOKENS, budget=0.05)
    written = Writer(lm, tuple(map(tuple, PROMPTS)), 6, Sampling(temperature=1.0), 0)(later, choice.points[-1].on)
    text = FixedText.of(lm, written, later)
    expected = bisected(lambda alpha: np.log(statistic(text.effects(alpha, MEMBERS).kl, "p95") / 0.05))
    assert choice.alpha == pytest.approx(expected, rel=0.012)


def test_a_strength_that_costs_nothing_has_no_efficiency(lm):
    choice = choice_of(lm, criteria=[NormRatio(1e-12)])
    assert choice.cost.mean == 0
    assert choice.efficiency is None
    assert "moves the concept's mean share" in str(choice)
    json.dumps(choice.as_json(), allow_nan=False)


def text_effects(values):
    from sim.choosing.rollouts import Effects

    return Effects(*values, np.ones(values[0].shape, bool), np.full(len(values[0]), np.nan))


def test_promoted_tokens_are_the_fewest_that_gain_half():
    from sim.choosing.rollouts import Promotion

    promotion = Promotion(np.array([5.0, 3.0, -9.0, 2.0, 1.0, 0.5]), np.array([0.0, 3.0, -4.0, 3.0, 3.0, 3.0]))
    assert np.flatnonzero(promoted(promotion, 1)).tolist() == [1, 3]
    assert np.flatnonzero(promoted(promotion, -1)).tolist() == [2]


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"prompts": []}, "prompts"),
        ({"budget": 0.0}, "budget"),
        ({"share": 1.5}, "share"),
        ({"of": "p50"}, "of: expected one of p95, mean, max, got 'p50'"),
        ({"seed": 2**32}, "seed: expected a whole number from 0 to 4294967295, got 4294967296"),
        ({"sign": 2}, "sign"),
        ({"sign": -1, "share": 0.1}, "share: expected none for negative strengths and named tokens"),
        ({"horizon": 0}, "horizon"),
        ({"completions": -1}, "completions"),
        ({"tokens": [99]}, "tokens"),
        ({"tokens": list(range(61))}, "tokens"),
        ({"criteria": ["ratio"]}, "criteria"),
        ({"criteria": [ShareAtLeast(0.1)]}, "criteria: expected limits such as .* a floor is share="),
        ({"steering": V}, "steering"),
        ({"steering": np.zeros(32), "layer": 1}, "steering: .*a zero vector"),
        ({"steering": 1e-30 * V, "layer": 1}, "steering: .*a vector of length [0-9.]*e-30, which is too short"),
        ({"steering": 1e30 * V, "layer": 1}, "steering: expected one whose effect float32 can hold, got .*e.30: scale it"),
        ({"steering": sim.SteeringVector({0: 0 * V, 1: 0 * V}), "layer": "auto"}, "steering: .*a zero vector"),
        ({"steering": sim.Steering({7: sim.Add(V)})}, "layer"),
        ({"steering": sim.Steering({1: sim.Add(V[:5])})}, "steering"),
        ({"steering": sim.Steering(sim.Add(V))}, "layer"),
    ],
)
def test_bad_input_is_named(lm, change, argument):
    options = {"steering": steering(), "prompts": PROMPTS, "tokens": TOKENS, "horizon": 6} | change
    with pytest.raises(ValueError, match=f"^{argument}"):
        choose(lm, options.pop("steering"), options.pop("prompts"), **options)


@pytest.mark.usefixtures("as_users_have_it")
def test_arguments_of_other_types_are_refused(lm):
    with pytest.raises(ValueError, match=r"^criteria: expected a list of limits such as .*, got 1"):
        choose(lm, steering(), PROMPTS, criteria=1)
    with pytest.raises(ValueError, match=r"^completions: expected a whole number of at least 0, got 1.5"):
        choose(lm, steering(), PROMPTS, completions=1.5)
    with pytest.raises(ValueError, match=r"^lm: expected a language model of sim.load, got 'a model'"):
        choose("a model", steering(), PROMPTS)


def test_one_prompt_gives_no_interval(lm):
    choice = choose(lm, steering(), PROMPTS[:1], horizon=6, tokens=TOKENS, budget=0.05, completions=0)
    assert choice.alpha > 0
    assert choice.interval is None
    assert choice.as_json()["interval"] is None
    assert "over prompts" not in str(choice)
    assert "bootstrap" not in str(choice)
    assert "after 1 prompt\n" in str(choice)
    said = summary(lm, choice, choice.tokens)
    assert "after 1 prompt. By a theorem" in said
    assert "samples" not in said


def test_a_budget_that_float32_does_not_resolve_is_spoken_of(lm):
    choice = choose(lm, steering(), PROMPTS, horizon=6, tokens=TOKENS, budget=1e-12, completions=0)
    assert "cannot be told from rounding in float32" in choice.reason


def test_a_vector_of_several_blocks_needs_a_layer(lm):
    vector = sim.SteeringVector({0: V, 1: V})
    with pytest.raises(ValueError, match=r"^layer: .*2 blocks"):
        choose(lm, vector, PROMPTS, horizon=6)
    other = replace(vector, model=sim.SteeringVector({0: V}, model=None).model)
    assert choose(lm, other, PROMPTS, horizon=6, layer=1, tokens=TOKENS, budget=0.05).layer == 1


def test_kl_budgets_may_be_reversed(lm):
    choice = choice_of(lm, criteria=[KLBudget(0.05, "mean", reverse=True)])
    effects = text_at(lm, choice.points[-1].on).effects(choice.alpha, MEMBERS)
    assert np.nanmean(effects.reverse_kl) == pytest.approx(0.05, rel=0.03)


def parts_of(lm):
    """Numbers of parameters: of all blocks, and of the unembedding."""
    blocks = sum(values.size for name, values in lm.parameters.items() if name.startswith("blocks."))
    return blocks, 32 * 61


def test_a_limit_that_leaves_little_room_is_spoken_of(lm):
    choice = choose(lm, steering(), PROMPTS, horizon=6, tokens=TOKENS, budget=1e-6)
    assert choice.share[1] > choice.share[0]
    assert "the concept's mean share hardly rises, from " in choice.reason


def test_the_layer_is_the_best_of_the_most_efficient(lm, caplog):
    vector = sim.SteeringVector({0: V, 1: 3 * V, 2: -V})
    with caplog.at_level("INFO", logger="sim"):
        choice = choose(lm, vector, PROMPTS, layer="auto", horizon=6, tokens=TOKENS, budget=0.05)
    done = [line for line in caplog.messages if "is done" in line]
    assert [line.split(": ")[0].split(", ")[1] for line in done] == ["1 of 3", "2 of 3", "3 of 3"]
    every = {one.layer: f"strength {one.alpha:.4g}" for one in (choice, *choice.others)}
    assert all(every[int(line.split()[1])] in line for line in done)
    assert sum("s are left" in line for line in caplog.messages) == 2
    assert [point.layer for point in choice.frontier] == [0, 1, 2]
    alone = [choose(lm, vector, PROMPTS, layer=layer, horizon=6, tokens=TOKENS, budget=0.05) for layer in range(3)]
    gains = [one.share[1] - one.share[0] for one in alone]
    assert choice.layer == int(np.argmax(gains))
    assert choice.alpha == pytest.approx(alone[choice.layer].alpha, rel=1e-5)
    # To look at all layers costs one pass over the prompts, a derivative behind each layer and two products with the head.
    blocks, head = parts_of(lm)
    whole = 15 * blocks + 6 * head
    looked = 9 * (1 + 2 * (2 / 3 + 1 / 3)) * blocks + 8 * (1 + 3 * 2) * head
    chosen = choice.passes - sum(c.passes for c in alone)
    assert chosen == pytest.approx(looked / whole, rel=1e-6)
    text = FixedText.of(lm, prompts_alone(PROMPTS), vector.steering(1), skip=False)
    step = 1e-2 / 3
    effects, before = text.effects(step, MEMBERS), text.shares(MEMBERS)
    f, g = (float(np.mean(share[effects.counted], dtype=float)) for share in (before, effects.share))
    least = f * np.log(f / g) + (1 - f) * np.log((1 - f) / (1 - g))
    assert abs(choice.frontier[1].rho_squared) == pytest.approx(least / np.nanmean(effects.kl), rel=0.05)
    with pytest.raises(ValueError, match=r'^layer: .*"auto" for a SteeringVector'):
        choose(lm, steering(), PROMPTS, layer="auto", horizon=6)
    with pytest.raises(ValueError, match=r'^layer: .*number, or "auto"'):
        choose(lm, vector, PROMPTS, layer="middle", horizon=6)


def test_a_choice_says_when_the_share_falls_and_when_prompts_are_few(lm):
    # The concept that steering the other way promotes.
    falling = choose(lm, steering(), PROMPTS, budget=0.05, horizon=6, tokens=choose_tokens(lm, sign=-1))
    assert falling.share[1] < falling.share[0]
    assert falling.reason.startswith("the concept's mean share does not rise: ")
    assert f"note: {falling.reason}" in str(falling)
    few = choose(lm, steering(), PROMPTS[:1], budget=0.05, horizon=6, tokens=choose_tokens(lm, sign=1))
    assert few.reason == "1 prompt says little of others; 8 or more are better"


def choose_tokens(lm, sign):
    """The tokens that steering one way promotes."""
    return list(choose(lm, steering(), PROMPTS, budget=0.05, horizon=6, sign=sign).tokens)


def test_a_prompt_of_one_token_has_no_strength_of_its_own(lm):
    choice = choose(lm, steering(), [[5], *PROMPTS], horizon=6, tokens=TOKENS, budget=0.05)
    first, *others = choice.per_prompt
    assert first.own_alpha is None
    assert first.cost > 0
    tilt, _ = FixedText.of(lm, prompts_alone(PROMPTS), steering(), skip=False).tilt(MEMBERS)
    price, own = tilt.variance.mean(axis=1), np.array([prompt.own_alpha for prompt in others])
    assert price @ own**2 == pytest.approx(price.sum() * choice.alpha**2, rel=1e-4)
    assert json.loads(json.dumps(choice.as_json(), allow_nan=False))["per_prompt"][0]["own_alpha"] is None
    assert [line.split()[2] for line in choice.table().splitlines()[2:4]] == ["-", f"{own[0]:.4g}"]


def beyond(monkeypatch, limit, *, reading=True):
    """Logits are not finite at larger strengths, where the model writes, and where it reads."""
    write, effects = Writer.__call__, FixedText.effects

    def written(self, steering=None, alpha=0.0):
        if abs(alpha) > limit:
            raise ValueError("logits: expected finite numbers")
        return write(self, steering, alpha)

    def measured(self, alpha, *args, **options):
        found = effects(self, alpha, *args, **options)
        return found._replace(kl=np.nan * found.kl, share=np.nan * found.share) if abs(alpha) > limit else found

    monkeypatch.setattr(Writer, "__call__", written)
    if reading:
        monkeypatch.setattr(FixedText, "effects", measured)


def test_smaller_strengths_are_tried_where_logits_are_not_finite(lm, monkeypatch):
    free = choice_of(lm, budget=0.05)
    beyond(monkeypatch, 0.9 * free.alpha)
    choice = choice_of(lm, budget=0.05)
    assert 0.88 * free.alpha < choice.alpha <= 0.9 * free.alpha
    assert choice.interval[0] <= choice.alpha <= choice.interval[1]
    assert choice.stopped_by == "finite logits"
    assert choice.reason.startswith("at strength ")
    assert "logits are not finite" in choice.reason
    assert choice.cost.p95 < 0.05
    share = choice_of(lm, share=2 * free.share[1])
    assert share.alpha is None
    assert share.reason.startswith("no strength that was tried (")
    beyond(monkeypatch, 1e-4 * free.alpha)
    assert "logits are not finite" in choice_of(lm, budget=0.05).reason


def test_the_last_text_that_is_written_is_kept(lm, monkeypatch):
    # Too few tokens for a short text first; the text at the guess gives a larger strength.
    options = {"horizon": 3, "tokens": TOKENS, "budget": 1.0}
    free = choose(lm, steering(), PROMPTS, **options)
    assert free.alpha > 1.1 * free.guess
    beyond(monkeypatch, 1.05 * free.guess, reading=False)
    choice = choose(lm, steering(), PROMPTS, **options)
    assert choice.alpha == choice.written_at == free.guess
    assert f"logits are not finite: the text written at {free.guess:.4g} is kept" in choice.reason
    assert choice.cost.p95 < 1.0


def test_blocks_without_a_direction_are_left_out(lm):
    choice = choose(lm, sim.SteeringVector({0: V, 1: 0 * V, 2: V}), PROMPTS, layer="auto", horizon=6, budget=0.05)
    assert [point.layer for point in choice.frontier] == [0, 2]
    json.dumps(choice.as_json(), allow_nan=False)


def test_away_from_named_tokens_their_share_falls(lm):
    vector = sim.SteeringVector({0: -V, 1: V})
    tokens = choose_tokens(lm, sign=1)
    choice = choose(lm, vector, PROMPTS, layer="auto", horizon=6, budget=0.05, sign=-1, tokens=tokens)
    won = {one.layer: one.share[0] - one.share[1] for one in (choice, *choice.others)}
    assert choice.layer == max(won, key=won.get) == 1
    assert won[1] > 0
    assert "does not" not in choice.reason
    assert choice.frontier[1].rho_squared > max(0, choice.frontier[0].rho_squared)
    assert "-: share rises" in choice.frontier_table()
    towards = choose(lm, vector, PROMPTS, layer=0, horizon=6, budget=0.05, sign=-1, tokens=tokens)
    assert towards.reason.startswith("the concept's mean share does not fall: ")
    assert sum(prompt.own_alpha < 0 for prompt in choice.per_prompt) > len(PROMPTS) / 2


def test_the_other_way_the_share_of_what_negative_strengths_promote_may_rise(lm):
    options = {"horizon": 6, "criteria": [Rising()]}
    back = choose(lm, steering(), PROMPTS, sign=-1, **options)
    mirrored = choose(lm, sim.Steering({1: sim.Add(-V)}), PROMPTS, **options)
    assert back.stopped_by == mirrored.stopped_by == "peak"
    assert back.alpha == pytest.approx(-mirrored.alpha, rel=1e-3)


def test_texts_that_repeat_themselves_are_spoken_of(lm):
    """The likeliest tokens of a small model go round in a circle; drawn ones do not."""
    options = {"horizon": 24, "tokens": TOKENS, "budget": 0.05, "completions": 0}
    greedy = choose(lm, steering(), PROMPTS, sampling=Sampling(0.0), **options)
    assert re.search(r"\d of 6 texts written at it repeat themselves: ", greedy.reason)
    assert "repeat" not in choose(lm, steering(), PROMPTS, **options).reason

"""What claims rest on: fits, shapes, orders and verdicts, each against something independent or known beforehand."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sim.experiments.strength import paper_claims
from sim.experiments.strength.paper_claims import MEASURES, PaperClaim


@pytest.mark.parametrize(
    ("value", "half", "least", "most", "verdict"),
    [
        (0.6, 0.08, 0.5, None, "holds"),
        (0.6, 0.12, 0.5, None, "open"),
        (0.4, 0.08, 0.5, None, "fails"),
        (0.4, 0.12, 0.5, None, "open"),
        (1.0, 0.08, 0.9, 1.1, "holds"),
        (1.3, 0.08, 0.9, 1.1, "fails"),
        (1.0, 0.4, 0.9, 1.1, "open"),
        (0.6, float("nan"), 0.5, None, "open"),
        (float("nan"), 0.1, 0.5, None, "open"),
        (0.6, 0.1, None, None, "reported"),
    ],
)
def test_verdicts_take_the_whole_interval(value, half, least, most, verdict):
    ends = (value, value - half, value + half)
    claim = PaperClaim("S", "says", "about", "what", *ends, least, most)
    assert claim.verdict == verdict
    assert claim.as_json()["value"] == (value if np.isfinite(value) else None)
    blind = PaperClaim("S", "says", "about", "what", *ends, least, most, blind="too few")
    assert blind.verdict == ("reported" if verdict == "reported" else "open")
    assert blind.reason == ("" if verdict == "reported" else "too few" if np.isfinite(value) else "there is no number")
    assert bool(claim.reason) == (verdict == "open")


def test_a_claim_about_a_limit_does_not_fail_while_the_curve_moves():
    below = PaperClaim("S", "says", "about", "what", 0.3, 0.2, 0.4, 0.9, 1.1)
    assert below.verdict == "fails"
    assert paper_claims._of_limit(below, 0.05, 0.3).verdict == "fails"
    # A curve that has hardly begun to move: half of what it has behind it is little, too.
    for last, whole in ((0.2, 0.9), (1e-3, 2e-3), (1e-30, 3e-30)):
        moving = paper_claims._of_limit(below, last, whole)
        assert (moving.verdict, moving.reason) == ("open", "the curve still moves at the end of the sweep")
    there = PaperClaim("S", "says", "about", "what", 1.0, 0.95, 1.05, 0.9, 1.1)
    assert paper_claims._of_limit(there, 0.2, 0.9).verdict == "holds"
    blind = PaperClaim("S", "says", "about", "what", 0.3, 0.2, 0.4, 0.9, 1.1, blind="weak")
    assert paper_claims._of_limit(blind, 0.0, 0.3).reason == "weak"


OF_SWEEPS = {
    "most tokens show one bump",
    "bumps tend to come in the order of the log-odds",
    "tokens that dominate need not have extreme log-odds",
    "tokens that dominate have extreme log-odds",
    "strong steering forgets the prompt",
    "steering always costs",
    "cross-entropy has a plateau, that of the limit",
    "strong steering makes answers worse",
    *(f"{says} ({measure})" for says in ("concept probability is a sigmoid", "steering raises it") for measure in MEASURES),
}
"""The claims that say nothing of a run whose strengths are all weak."""


def test_weak_sweeps_decide_nothing(done, monkeypatch):
    """A thousandth of a state's length moves nothing: that no token then has a bump does not say that none would."""
    lengths = np.abs(done.settings.mmlu.alphas).max() * np.linalg.norm(done.vector("joy", 2)) / done.state_length("joy", 2)
    assert paper_claims._weak(done, done.settings.mmlu.alphas * 0.26 / lengths, "joy", 2) == ""
    assert "0.24 lengths" in paper_claims._weak(done, done.settings.mmlu.alphas * 0.24 / lengths, "joy", 2)
    vector = type(done).vector
    monkeypatch.setattr(type(done), "vector", lambda *place: 1e-3 * vector(*place) / np.linalg.norm(vector(*place)))
    monkeypatch.setattr(type(done), "state_length", lambda *_: 1e3)
    claims = paper_claims.claims(done).claims
    assert {claim.says for claim in claims} >= OF_SWEEPS
    for claim in claims:
        assert claim.says not in OF_SWEEPS or claim.verdict == "open"
    reasons = {claim.says: claim.blind for claim in claims if claim.says in OF_SWEEPS}
    assert sum("lengths of the hidden state" in reason for reason in reasons.values()) >= 8


def test_a_quadratic_term_is_looked_for_near_0_and_above_rounding():
    for cost, dtype, word in ((1e-3, "float32", ""), (0.2, "float32", "not near 0"), (1e-12, "float32", "rounding")):
        assert word in paper_claims._out_of_sight(cost, dtype)
        assert bool(word) == bool(paper_claims._out_of_sight(cost, dtype))
    assert "rounding" in paper_claims._out_of_sight(1e-3, "bfloat16")
    assert paper_claims._out_of_sight(1e-12, "float64") == ""


def test_the_change_at_an_end_is_that_of_the_tokens_that_are_kept():
    alphas = np.array([-8.0, -4.0, 0.0, 4.0, 8.0])
    p = np.array([[0.1, 0.7], [0.3, 0.5], [0.5, 0.3], [0.6, 0.2], [0.9, 0.05]])
    sweeps = xr.Dataset(
        {
            "log_p": (("context", "strength", "slot"), np.log(p[None, :, [0, 1, 0]])),
            "token": (("context", "slot"), [[7, 3, 7]]),
            "alpha": ("strength", alphas),
        }
    )
    np.testing.assert_allclose(paper_claims._changes(sweeps, 0), [[(0.2 + 0.2) / 2], [(0.4 + 0.4) / 2]])
    np.testing.assert_allclose(paper_claims._changes(sweeps, 1), [[(0.3 + 0.15) / 2], [(0.4 + 0.25) / 2]])


def test_the_order_is_that_within_the_tokens_of_one_end():
    """Tokens that are likely at the high end have high log-odds and late bumps, which is no order among them."""
    n, rng = 40, np.random.default_rng(0)
    high = np.arange(2 * n) >= n
    peak, odds = (rng.permuted(np.arange(2.0 * n)) + 1000 * high for _ in range(2))
    dims = ("variant", "concept", "layer", "context", "slot")

    def of(peak, odds, contexts=1):
        arrays = {
            name: (dims, np.tile(values, (1, 1, 1, contexts, 1))) for name, values in (("peak", peak), ("log_odds", odds))
        }
        data = xr.Dataset(arrays, {"variant": ["random"], "concept": ["joy"], "layer": [3]})
        return paper_claims.order(data, "random", "joy", 3)

    expected = np.mean([stats.kendalltau(peak[part], odds[part]).statistic for part in (~high, high)])
    tau, low, upper = of(peak, odds)
    assert tau == pytest.approx(expected)
    assert stats.kendalltau(peak, odds).statistic > 0.4
    assert low < 0 < upper
    # As wide as without any order: twice n tokens, pairs within the halves alone.
    assert upper - tau == pytest.approx(1.96 * np.sqrt(2 * n * (n - 1) * (2 * n + 5) / 18) / (n * (n - 1)), rel=1e-3)
    assert of(peak, odds, contexts=9) == pytest.approx((tau, low, upper))
    ordered = of(odds, odds)
    assert ordered.value == ordered.high == 1
    assert of(peak[:2], odds[:2]).value != of(peak[:2], odds[:2]).value  # one token at each end: nothing to order


def test_nothing_is_said_of_slopes_that_few_values_could_not_show():
    def verdict(slope, error, count=None):
        return paper_claims._no_slope("S", "says", "about", slope, error, 4.0, count, basis="blocks").verdict

    # A strength that costs one nat is 1 / 2: a slope of 1 moves the loss by half a nat there.
    assert verdict(0.01, 0.1) == "holds"
    assert verdict(0.01, 0.5) == "open"
    assert verdict(0.5, 0.1) == "fails"
    # Two blocks that happen to agree: three estimated errors from 0 are nothing.
    assert verdict(0.4, 0.1, 2) == "open"
    assert verdict(0.4, 0.1, 400) == "fails"
    assert verdict(0.2, 0.1, 400) == "holds"


def curves(places, odds, alphas):
    """Probabilities of tokens along a sweep: a bump at each place, or rising throughout where it is infinite."""
    log_p = np.stack([-((alphas - place) ** 2) / 50 if np.isfinite(place) else alphas / 40 for place in places], axis=-1) - 2
    dims, n = ("variant", "concept", "layer", "context"), len(places)
    return xr.Dataset(
        {
            "token": ((*dims, "slot"), np.arange(n).reshape(1, 1, 1, 1, n)),
            "log_p": ((*dims, "strength", "slot"), log_p[None, None, None, None]),
            "log_odds": ((*dims, "slot"), np.reshape(odds, (1, 1, 1, 1, n))),
            "alpha": (("variant", "strength"), alphas[None]),
            "scale": (dims, np.full((1, 1, 1, 1), 2.0)),
        },
        {"variant": ["random"], "concept": ["joy"], "layer": [3], "context": [0]},
    )


def test_shapes_count_bumps_and_know_their_order():
    alphas = np.linspace(-20, 20, 401)
    data = curves([-6.0, 2.0, 8.0, np.inf, 5.0], [-1.0, 0.5, 3.0, 9.0, 1.0], alphas)
    summary = paper_claims.shapes(data)
    np.testing.assert_allclose(summary["share"].values.ravel(), [0.8, 0.2, 0.0])
    np.testing.assert_allclose(summary["peak"].values.ravel(), [-3.0, 1.0, 4.0, np.nan, 2.5], atol=0.06)
    assert paper_claims.order(summary, "random", "joy", 3)[0] == pytest.approx(1.0)
    swapped = paper_claims.shapes(curves([8.0, 2.0, -6.0, np.inf], [-1.0, 0.5, 3.0, 9.0], alphas))
    assert paper_claims.order(swapped, "random", "joy", 3)[0] == pytest.approx(-1.0)


def test_a_token_at_both_ends_counts_once():
    data = curves([-6.0, 2.0, 2.0], [-1.0, 0.5, 0.5], np.linspace(-20, 20, 401))
    data["token"][..., 2] = 1
    assert np.isfinite(paper_claims.shapes(data)["peak"]).sum() == 2


def test_fits_are_of_the_curve_and_nothing_is_fitted_to_a_flat_one():
    dims, rng = ("measure", "concept", "layer", "strength", "prompt", "completion"), np.random.default_rng(3)
    alphas = np.linspace(-20, 20, 41)
    rising = (rng.random((1, 1, 1, 41, 1, 400)) < (0.4 + 0.3 * np.tanh(alphas / 5))[:, None, None]).astype(float)
    shown = xr.Dataset(
        {"shown": (dims, np.concatenate([rising, np.ones_like(rising)])), "alpha": ("strength", alphas)},
        {"measure": ["answer", "ratio"], "concept": ["joy"], "layer": [3]},
    )
    fits = paper_claims.sigmoids(shown, 0, samples=3).squeeze(["concept", "layer"], drop=True)
    for name, value in {"level": 0.4, "height": 0.3, "rate": 0.2, "centre": 0.0}.items():
        assert fits[name].values[0] == pytest.approx(value, abs=0.05 if name != "centre" else 1)
        assert np.isnan(fits[name].values[1])
    assert fits["r_squared"].values[0] > 0.98
    assert 0 < fits["high"].values[0] - fits["low"].values[0] < 0.04
    assert np.isnan(fits["r_squared"].values[1])
    assert fits["rise"].values[1] == 0
    assert fits["rise_low"].values[1] < 0 < fits["rise_high"].values[1]


def test_presence_leaves_out_what_has_no_answer():
    dims = ("concept", "layer", "strength", "prompt", "completion")
    shape = (1, 1, 2, 1, 3)
    shown = xr.Dataset(
        {
            "answer": (dims, np.reshape([1, 0, 2, 1, -1, 0], shape)),
            "in_lexicon": (dims, np.reshape([0, 2, 1, -1, 0, 0], shape)),
            "ratio": (dims, np.reshape([0.5, -0.5, np.nan, 0.0, 1.0, -1.0], shape)),
            "alpha": ("strength", [-1.0, 1.0]),
        }
    )
    shares = paper_claims.presence(shown)["shown"].values.reshape(3, 6)
    np.testing.assert_array_equal(shares[0], [1, 0, np.nan, 1, np.nan, 0])
    np.testing.assert_array_equal(shares[1], [0, 1, 1, np.nan, 0, 0])
    np.testing.assert_array_equal(shares[2], [1, 0, np.nan, 0, 1, 0])

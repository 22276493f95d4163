"""The curves of a choice, against the model itself and against what the choice says; and where strengths end early."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy.special import log_softmax

import sim
from sim.bridge.generation import Sampling
from sim.choosing.criteria import statistic
from sim.choosing.curves import APART, STEPS, anchor, curves
from sim.choosing.rollouts import FixedText, Writer, least_cost
from sim.choosing.search import choose
from sim.figures import CHOOSING_FIGURES
from sim.output import write_data
from tests.sim.bridge.test_model import letters

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(3, 60, size=size).tolist() for size in (9, 4, 7, 9)]
V = RNG.normal(size=32)
TOKENS = [4, 9, 33]


@pytest.fixture
def lm(small):
    return small("llama")


KEPT = {}
"""Choices and curves that several tests look at."""


def choice_of(lm, selection=None, **options):
    key = repr((selection, options))
    if key not in KEPT:
        steering = sim.Steering({1: sim.Add(V)}, **({} if selection is None else {"tokens": selection}))
        KEPT[key] = choose(lm, steering, PROMPTS, horizon=6, tokens=TOKENS, **options)
    return KEPT[key]


def curves_of(lm, *selection, **options):
    key = repr(("curves", selection, options))
    if key not in KEPT:
        KEPT[key] = curves(lm, choice_of(lm, *selection, **options), PROMPTS, shown=3)
    return KEPT[key]


def text_of(lm, choice):
    written = Writer(lm, tuple(map(tuple, PROMPTS)), 6, Sampling(temperature=1.0), 0)(choice.steering, choice.points[-1].on)
    return FixedText.of(lm, written, choice.steering)


MEMBERS = jnp.zeros(61, bool).at[jnp.asarray(TOKENS)].set(True)


def test_at_the_chosen_strength_curves_say_what_the_choice_says(lm):
    choice, data = choice_of(lm, budget=0.3), curves_of(lm, budget=0.3)
    alphas = data["alpha"].values
    assert alphas[0] == 0
    assert alphas[STEPS] == pytest.approx(choice.alpha)
    assert alphas[-1] == pytest.approx(2.5 * choice.alpha)
    here = data.isel(strength=STEPS)
    for name in ("mean", "p95", "max"):
        assert float(here["cost"].sel(statistic=name)) == pytest.approx(getattr(choice.cost, name), rel=1e-5)
    assert float(here["share"]) == pytest.approx(choice.share[1], rel=1e-5)
    assert float(here["least_cost"]) == pytest.approx(choice.least_cost, rel=1e-4)
    start = data.isel(strength=0)
    assert float(np.abs(start["cost"]).max()) < 1e-6
    assert float(start["share"]) == pytest.approx(choice.share[0], rel=1e-5)
    assert (data.attrs["alpha"], data.attrs["budget"], data.attrs["statistic"]) == (choice.alpha, 0.3, "p95")
    assert data.attrs["N18"] == choice.safe_alpha["N18"].alpha


def test_between_the_strengths_that_are_looked_at_curves_are_those_of_the_text(lm):
    choice, data = choice_of(lm, budget=0.3), curves_of(lm, budget=0.3)
    text = text_of(lm, choice)
    before = text.shares(MEMBERS)
    for k in (2, 3, STEPS + 2, 2 * STEPS + 3):
        assert k % APART
        effects = text.effects(float(data["alpha"][k]), MEMBERS)
        for name in ("mean", "p95", "max"):
            expected = statistic(effects.kl, name)
            assert float(data["cost"].sel(statistic=name)[k]) == pytest.approx(expected, rel=0.01, abs=5e-4), (k, name)
        assert float(data["share"][k]) == pytest.approx(np.nanmean(effects.share), rel=1e-3)
        assert float(data["least_cost"][k]) == pytest.approx(least_cost(before, effects.share), rel=0.02, abs=1e-6)


@pytest.mark.parametrize(
    "selection", [pytest.param((), id="all"), pytest.param((sim.Last(),), id="last", marks=pytest.mark.slow)]
)
def test_next_tokens_are_those_of_the_steered_model(lm, selection):
    choice, data = choice_of(lm, *selection, budget=0.3), curves_of(lm, *selection, budget=0.3)
    assert dict(data.sizes) == {"strength": 51, "statistic": 3, "prompt": 3, "rank": 12}
    for j, k in ((0, 0), (1, 20), (2, 37)):
        split = lm.split([PROMPTS[j]])
        resolved, parts = split.resolve(choice.steering)
        state = resolved.embed(jnp.arange(1))
        log_p, log_q = (
            log_softmax(np.asarray(resolved.steered(state, parts, alpha), float)[0])
            for alpha in (0.0, float(data["alpha"][k]))
        )
        of_prompt = data.isel(prompt=j)
        np.testing.assert_allclose(of_prompt["probability"][:, k], np.exp(log_q)[of_prompt["token"]], rtol=1e-4)
        assert float(of_prompt["next_cost"][k]) == pytest.approx(np.sum(np.exp(log_p) * (log_p - log_q)), abs=1e-5)
        assert float(of_prompt["next_share"][k]) == pytest.approx(np.exp(log_q)[TOKENS].sum(), rel=1e-4)
    for j in range(3):
        token, member = data["token"][j].values, data["member"][j].values
        assert len(set(token)) == 12
        assert set(TOKENS) <= set(token)
        assert token[member].tolist() == [z for z in token if z in TOKENS]
        most = data["probability"][j].max("strength").values
        assert (np.diff(most) <= 0).all()


def test_the_tokens_that_are_kept_are_the_likeliest_and_the_concepts(lm):
    choice, data = choice_of(lm, budget=0.3), curves_of(lm, budget=0.3)
    split, parts = lm.split([PROMPTS[0]]).resolve(choice.steering)
    state = split.embed(jnp.arange(1))
    most = np.max([log_softmax(np.asarray(split.steered(state, parts, a), float)[0]) for a in data["alpha"].values], axis=0)
    others = [z for z in np.argsort(-most) if z not in TOKENS]
    assert set(data["token"].values[0]) == {*TOKENS, *others[:9]}


def test_straight_lines_are_as_near_as_is_said(lm):
    choice, data = choice_of(lm, budget=0.3), curves_of(lm, budget=0.3)
    split, parts = lm.split([PROMPTS[1]]).resolve(choice.steering)
    state, token, off = split.embed(jnp.arange(1)), data["token"].values[1], []
    for k in range(0, 50, 7):
        alpha = float(data["alpha"][k : k + 2].mean())
        p = np.exp(log_softmax(np.asarray(split.steered(state, parts, alpha), float)[0]))[token]
        off.append(np.abs(p - data["probability"][1, :, k : k + 2].mean("strength")).max())
    assert 0 < max(off) <= 1.3 * data.attrs["interpolation_error"]
    assert data.attrs["interpolation_error"] < 0.01


def test_completions_are_what_the_model_writes(lm):
    choice, lm = choice_of(lm, budget=0.3, sign=-1), replace(lm, tokenizer=letters())
    data = curves(lm, choice, PROMPTS, shown=2)
    assert data["multiple"].values.tolist() == [0, 1, 2]
    for k, multiple in enumerate((0, 1, 2)):
        written = Writer(lm, tuple(map(tuple, PROMPTS[:2])), 6, Sampling(temperature=1.0), 0)
        texts = written.texts(written(choice.steering, multiple * choice.alpha))
        assert data["completion"][k].values.tolist() == list(texts)
    assert (data["alpha"].values <= 0).all()
    assert data.attrs["N20"] == -choice.safe_alpha["N20"].alpha


def test_without_a_strength_there_are_curves_all_the_same(lm):
    unreached = choice_of(lm, share=0.9999)
    assert unreached.alpha is None
    best = max(unreached.points, key=lambda point: point.share)
    assert anchor(unreached) == best.alpha
    data = curves_of(lm, share=0.9999)
    assert np.isnan(data.attrs["alpha"])
    assert data.attrs["wanted"] == 0.9999
    assert data.attrs["reason"] == unreached.reason
    there_already = choice_of(lm, share=1e-4)
    assert anchor(there_already) == there_already.guess
    assert curves(lm, there_already, PROMPTS).sizes["strength"] == 51


def test_curves_end_where_there_are_no_numbers(lm, monkeypatch):
    choice = choice_of(lm, budget=0.3)
    effects = FixedText.effects

    def broken(self, alpha, *arguments, **options):
        result = effects(self, alpha, *arguments, **options)
        return result if alpha < 1.6 * choice.alpha else result._replace(kl=result.kl * np.nan)

    monkeypatch.setattr(FixedText, "effects", broken)
    data = curves(lm, choice, PROMPTS)
    assert data.sizes["strength"] == 31
    assert np.isfinite(data["cost"]).all()
    assert float(data["alpha"][-1]) == pytest.approx(1.5 * choice.alpha)


def test_other_prompts_are_refused(lm):
    with pytest.raises(ValueError, match=r"prompts: .*got 3"):
        curves(lm, choice_of(lm, budget=0.3), PROMPTS[:3])


def test_what_is_not_counted_has_no_least_cost():
    before, after = np.array([[0.1, np.nan], [0.3, 0.2]]), np.array([[0.2, np.nan], [0.3, 1.0]])
    f, g = 0.2, 0.5
    expected = f * np.log(f / g) + (1 - f) * np.log((1 - f) / (1 - g))
    # To tilt all predictions by one factor costs less than what each of them pays to change as it did.
    assert expected < np.mean(
        [0.1 * np.log(0.5) + 0.9 * np.log(0.9 / 0.8), 0, 0.2 * np.log(0.2) + 0.8 * np.log(0.8 / 1e-12)]
    )
    assert least_cost(before, after) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [{"budget": 0.3}, {"budget": 0.3, "of": "max", "sign": -1}, {"share": 0.9999}], ids=str)
def test_the_figure_shows_what_there_is(lm, options, tmp_path):
    choice, data = choice_of(lm, **options), curves_of(lm, **options)
    figure = CHOOSING_FIGURES["choice"].draw(data)
    top, bottom = figure.axes
    lines = [line.get_ydata() for line in bottom.lines]
    for name in ("mean", "max" if "of" in options else "p95"):
        assert any(np.array_equal(line, data["cost"].sel(statistic=name)) for line in lines)
    assert any(np.array_equal(line, data["least_cost"]) for line in lines)
    assert np.array_equal(top.lines[0].get_ydata(), data["share"])
    upright = [line.get_xdata()[0] for line in top.lines if len(set(line.get_xdata())) == 1]
    level = [float(line.get_ydata()[0]) for axes in (top, bottom) for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    assert upright == ([] if choice.alpha is None else [choice.alpha])
    assert level == [0.9999 if choice.alpha is None else 0.3]
    assert (choice.reason if choice.alpha is None else f"{choice.alpha:.3g}") in top.get_title(loc="left").replace("\n", " ")
    path = write_data(tmp_path / "choice.nc", xr.DataTree(children={"block-1": xr.DataTree(data)}), {"seed": 0})
    with xr.open_dataset(path, group="block-1", engine="h5netcdf") as kept:
        xr.testing.assert_allclose(kept["cost"].reset_coords(drop=True), data["cost"].reset_coords(drop=True))
        assert kept.attrs["layer"] == 1

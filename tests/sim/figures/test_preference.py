"""The figures of preference and utility: drawn from plausible data, from parts of them, and of what the data says."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.figures import PREFERENCE_FIGURES
from sim.figures.panels import NothingToDrawError
from sim.figures.preference import METHODS, curves, layers, toy, tradeoff
from sim.figures.style import INK, save
from sim.measure import tradeoff as averages
from sim.measure.decay import Decay, Side

METHOD_NAMES, CONCEPTS = ("difference", "sft", "reps", "split"), ["joy", "evil"]
UPDATES = [*(f"{method} vector" for method in METHOD_NAMES), "sft lora", "split lora", "split weight"]
_REACH = {"vector": 20.0, "lora": 2.0, "weight": 2.0}


def preference_data() -> xr.Dataset:
    """Seven updates: validity decay with noise, forms of different reach, methods of different cost; two concepts alike."""
    rng, dims = np.random.default_rng(0), ("concept", "update", "strength")
    alpha = np.stack([np.linspace(-1, 1, 21) * _REACH[update.split()[1]] for update in UPDATES])
    arrays = {name: np.zeros((1, len(UPDATES), 21)) for name in ("preference", "utility")}
    for k, update in enumerate(UPDATES):
        method, form = update.split()
        reach, rank = _REACH[form], METHOD_NAMES.index(method)
        sides = [Side(sign * 0.05 * reach, reach * (0.35 + 0.1 * rank), p) for sign, p in ((-1, 0.6), (1, 0.8))]
        preference = Decay((3.0 + rank) / reach, 0.4, 0.3, *sides, {}, 1.0, 0.0, 21)
        utility = Decay(0.0, 5 - 0.4 * rank, -6.5 + 0.4 * rank, *sides, {}, 1.0, 0.0, 21)
        arrays["preference"][0, k] = preference(alpha[k]) + rng.normal(0, 0.06, 21)
        arrays["utility"][0, k] = utility(alpha[k]) + rng.normal(0, 0.05, 21)
        # Without steering all updates are the same.
        arrays["preference"][0, k, 10], arrays["utility"][0, k, 10] = 0.7, -1.5
    errors = {f"{name}_error": (dims, np.full(values.shape, 0.15)) for name, values in arrays.items()}
    counts = {name: (dims[:2], np.full((1, len(UPDATES)), 40)) for name in ("pairs", "pairs_used")}
    # A pair without utility makes the two preferences differ.
    arrays["preference_used"] = arrays["preference"] + 0.05
    arrays["preference_used"][0, :, 10] = 0.7
    measured = {name: (dims, values) for name, values in arrays.items()}
    coords = {"concept": CONCEPTS[:1], "update": UPDATES}
    joy = averages.with_fits(xr.Dataset(measured | errors | counts | {"alpha": (dims[1:], alpha)}, coords))
    evil = joy.assign({name: joy[name] - 1 for name in ("preference", "preference_used", "preference_fit")})
    return xr.concat([joy, evil.assign_coords(concept=CONCEPTS[1:])], "concept", data_vars="minimal")


def layers_data() -> xr.Dataset:
    rng, size = np.random.default_rng(1), (12, 30)
    off = 0.6 * (11 - np.arange(12))[:, None] / 11
    centre, width = rng.normal(-2, 1, size), rng.uniform(3, 9, size)
    values = {
        "exponent": 0.5 + off * rng.normal(0.8, 0.4, size),
        "centre": centre * (1 + off * rng.normal(0.5, 1, size)),
        "width": width * np.exp(off * rng.normal(0.8, 0.5, size)),
        "centre_law": centre,
        "width_law": width,
    }
    return xr.Dataset({name: (("layer", "pair"), array) for name, array in values.items()}, {"layer": np.arange(12)})


def toy_data() -> xr.Dataset:
    m = np.linspace(-30, 30, 241)
    side = Side(1.0, 6.0, 0.5)
    normed = Decay(0.6, 0.5, 0.0, side, side, {}, 1.0, 0.0, 241)(m)
    both = [np.log(np.exp(a) / (1 + np.exp(a))) - 0.02 * np.abs(m) for a in (0.25 * m, normed / 2)]
    dims = ("model", "strength")
    return xr.Dataset(
        {
            "preference": (dims, np.stack([0.6 * m + 0.5, normed])),
            "utility": (dims, np.stack(both)),
            "fit": (dims, np.stack([np.full(m.size, np.nan), normed])),
        },
        {"model": ["UFM", "normalised UFM"], "strength": m},
    )


@pytest.fixture(scope="module")
def run() -> dict[str, xr.Dataset]:
    return {"preference": preference_data(), "preference-layers": layers_data(), "preference-toy": toy_data()}


def panel(figure: Figure, title: str) -> Axes:
    (axes_of_title,) = (axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))
    return axes_of_title


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", PREFERENCE_FIGURES)
def test_every_figure_is_drawn_and_saved(name, run, tmp_path):
    drawing = PREFERENCE_FIGURES[name]
    data = run[drawing.dataset]
    data = data.sel(concept=["joy"], update=UPDATES[2:6]) if "update" in data.dims else data
    paths = save(drawing.draw(data), tmp_path, name)
    assert all(path.stat().st_size > 5000 for path in paths.values())
    assert drawing.caption.endswith(".")


@pytest.mark.parametrize("name", PREFERENCE_FIGURES)
def test_what_is_not_computed_is_not_drawn(name, run):
    drawing = PREFERENCE_FIGURES[name]
    data = run[drawing.dataset]
    nothing = data.assign({key: values.where(False) for key, values in data.data_vars.items() if "alpha" not in key})
    with pytest.raises(NothingToDrawError):
        drawing.draw(nothing)


def test_paths_run_through_the_averages(run):
    data = run["preference"]
    axes = panel(tradeoff(data), "evil")
    averages_of_update = data.sel(concept="evil", update="reps vector")
    lines = [line for line in axes.get_lines() if line.get_color() == METHODS["reps"][1] and line.get_linestyle() == "-"]
    below, above = lines
    assert below.get_xdata() == pytest.approx(averages_of_update["utility"].values[:11])
    assert above.get_xdata() == pytest.approx(averages_of_update["utility"].values[10:])
    assert above.get_ydata() == pytest.approx(averages_of_update["preference_used"].values[10:])
    assert below.get_linewidth() < above.get_linewidth()


def test_marks_are_where_the_budget_is_spent_and_at_0(run):
    data = run["preference"].sel(update=["sft lora"])
    axes = panel(tradeoff(data), "joy")
    fit = data.sel(concept="joy", update="sft lora")
    (square,) = (line for line in axes.get_lines() if line.get_marker() == "s")
    assert square.get_xdata() == pytest.approx(float(fit["utility"][10]) - 2)
    (start,) = (line for line in axes.get_lines() if line.get_marker() == "o" and line.get_color() == INK)
    assert (start.get_xdata()[0], start.get_ydata()[0]) == pytest.approx((-1.5, 0.7))
    unspent = tradeoff(data.assign(spent=data["spent"].where(False)))
    assert not [line for line in panel(unspent, "joy").get_lines() if line.get_marker() == "s"]


def test_the_legend_leaves_room_for_one_panel(run):
    figure = tradeoff(run["preference"].sel(concept=["joy"]))
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().height > 0.7
    assert figure.axes[0].get_position().width > 0.5


def test_the_legend_names_what_is_drawn(run):
    figure = tradeoff(run["preference"].sel(update=["split vector", "sft lora"]))
    assert legend_of(figure)[:4] == ["SPLIT", "SFT", "vector", "LoRA"]
    assert "2 nats of utility lost" in legend_of(figure)


def test_rows_are_concepts_and_quantities_and_columns_forms(run):
    figure = curves(run["preference"])
    assert titles(figure) == 4 * ["vector", "LoRA", "local weight"]
    assert len(figure.axes) == 12
    rows = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert rows == [f"{concept}\n{odds} log-odds" for concept in CONCEPTS for odds in ("preference", "utility")]
    assert [axes.get_xlim()[1] for axes in figure.axes[:3]] == pytest.approx([21.2, 2.12, 2.12])
    assert legend_of(figure) == [METHODS[name][0] for name in METHOD_NAMES]


def test_fits_and_their_r_squared_are_drawn(run):
    data = run["preference"]
    axes = curves(data).axes[4]
    (line,) = (
        candidate
        for candidate in axes.get_lines()
        if len(candidate.get_xdata()) == 161 and candidate.get_color() == METHODS["sft"][1]
    )
    fit = data.sel(concept="joy", update="sft lora")
    assert line.get_ydata() == pytest.approx(fit["utility_fit"].values)
    assert line.get_xdata() == pytest.approx(fit["fine_alpha"].values)
    shown = {text.get_text(): text.get_color() for text in axes.texts}
    assert shown[f"{float(fit['utility_r_squared']):.3f}".removeprefix("0")] == METHODS["sft"][1]
    assert len(axes.texts) == 3


def test_a_low_r_squared_is_shown_as_it_is(run):
    data = run["preference"].sel(update=["sft lora"])
    scored = data.assign(preference_r_squared=data["preference_r_squared"] * 0 - 0.25)
    assert "\N{MINUS SIGN}.250" in [text.get_text() for text in curves(scored).axes[0].texts]
    unknown = data.assign(preference_r_squared=data["preference_r_squared"].where(False))
    assert "\N{EN DASH}" in [text.get_text() for text in curves(unknown).axes[0].texts]


def test_missing_methods_forms_concepts_and_curves(run):
    data = run["preference"]
    for part in (
        data.sel(concept=["evil"]),
        data.sel(update=[update for update in UPDATES if not update.startswith("split")]),
        data.sel(update=[update for update in UPDATES if not update.endswith("lora")]),
        data.sel(update=["difference vector"]),
        data.assign_coords(update=[f"new {update}" if k % 2 else update for k, update in enumerate(UPDATES)]),
        data.where((data["update"] != "split vector") | (data["concept"] != "joy")).assign(alpha=data["alpha"]),
    ):
        for draw in (tradeoff, curves):
            assert draw(part).axes
    gone = data.assign(utility=data["utility"].where(data["concept"] != "joy"))
    assert titles(tradeoff(gone)) == ["evil"]
    assert len(curves(gone).axes) == 9


def test_medians_and_quartiles_by_layer(run):
    data = run["preference-layers"]
    figure = layers(data)
    middle = panel(figure, "exponent").get_lines()[1]
    assert middle.get_ydata() == pytest.approx(data["exponent"].median("pair").values)
    ratio = panel(figure, "width").get_lines()[1]
    assert ratio.get_ydata() == pytest.approx((data["width"] / data["width_law"]).median("pair").values)
    assert [axes.get_lines()[0].get_ydata()[0] for axes in figure.axes] == [0.5, 0, 1]
    off = panel(figure, "centre").get_lines()[1]
    expected = (data["centre"] - data["centre_law"]) / data["width_law"]
    assert off.get_ydata() == pytest.approx(expected.median("pair").values)
    part = data.assign(exponent=data["exponent"].where(data["layer"] > 3), centre=data["centre"].where(False))
    figure = layers(part)
    assert len(figure.axes) == 2
    assert panel(figure, "exponent").get_lines()[1].get_xdata().tolist() == list(range(4, 12))
    layers(data.isel(layer=[11], pair=[0])).draw_without_rendering()


def test_the_toy_has_a_line_for_each_model_and_circles_for_the_fit(run):
    data = run["preference-toy"]
    figure = toy(data)
    axes = panel(figure, "preference")
    straight, circles = (line for line in axes.get_lines() if line.get_marker() == "o" or line.get_ydata()[-1] == 18.5)
    assert straight.get_ydata() == pytest.approx(data["preference"].values[0])
    assert np.isin(circles.get_ydata(), data["fit"].values[1]).all()
    assert legend_of(figure) == ["UFM", "normalised UFM", "fitted decay"]
    assert "fitted decay" not in legend_of(toy(data.isel(model=[0])))

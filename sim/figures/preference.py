"""Figures of W: what steering gains in preference and costs in utility, and how validity decays with the strength.

Updates are labelled by how they were made and by their form, as in "split vector"; a colour is a method, a dash a form. What
has not been computed is left out; a figure of which there is nothing raises `NothingToDrawError`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sim.figures.panels import Panel, labels, legend_below, strength_axis, table, wrapped
from sim.figures.style import DOTS, INK, OFF_TARGET, TARGET, THIRD, Drawing, style

METHODS = {
    "difference": ("difference of means", "#7A7A7A"),
    "sft": ("SFT", OFF_TARGET),
    "reps": ("RePS", THIRD),
    "split": ("SPLIT", TARGET),
}
"""Names and colours of methods."""

FORMS = {
    "vector": ("vector", "-"),
    "lora": ("LoRA", (0, (5, 2))),
    "weight": ("local weight", (0, (1, 1.3))),
}
"""Names and dashes of forms."""

_MORE_COLOURS = ("#CC79A7", "#D55E00", "#56B4E9", INK)
_ODDS = {"preference": "preference log-odds", "utility": "utility log-odds"}
_SHADE = 0.18
_DOTTED = {key: value for key, value in DOTS.items() if key != "linestyle"}


def tradeoff(data: xr.Dataset) -> Figure:
    """Preference against utility, a path for each update; strengths below 0 are thin.

    `data` is what `sim.measure.tradeoff.with_fits` gives; a square is where the area of the frontier stops.
    """
    updates = labels(data, "update")
    looks = _looks(updates)

    def find(name: str) -> list[str] | None:
        paths = data.sel(concept=name)
        return [update for update in updates if _there(paths.sel(update=update)).sum() > 1] or None

    with style():
        figure, panels = wrapped(
            labels(data, "concept"), find, size=(3.6, 3.3), x=_ODDS["utility"], y=_ODDS["preference"], most=3
        )
        for name, _, drawn, axes in panels:
            for update in drawn:
                colour, dashes = looks[update]
                path = data.sel(concept=name, update=update)
                defined, alpha = _there(path), path["alpha"].values
                x, y = path["utility"].values, path["preference_used"].values
                for side, width in ((alpha <= 0, 0.7), (alpha >= 0, 1.5)):
                    axes.plot(x[defined & side], y[defined & side], color=colour, linestyle=dashes, linewidth=width)
                at = np.array([float(path["spent"])])
                if np.isfinite(at).all():
                    place = [np.interp(at, alpha[defined], values[defined]) for values in (x, y)]
                    axes.plot(*place, color=colour, **(DOTS | {"marker": "s", "markersize": 4}))
                start = defined & (alpha == 0)
                axes.plot(x[start], y[start], linestyle="none", marker="o", markersize=4.5, color=INK, zorder=4)
            axes.set_title(name)
            axes.margins(0.05)
        marks = [
            Line2D([], [], linestyle="none", marker="o", markersize=4.5, color=INK, label="strength 0"),
            Line2D([], [], color="#555555", label=_lost(data), **(DOTS | {"marker": "s", "markersize": 4})),
            Line2D([], [], color="#555555", linewidth=0.7, label="strengths below 0"),
        ]
        shown = _shown(updates, panels)
        # Beside the panels: below a single one so many lines would leave it no room.
        figure.set_figwidth(figure.get_figwidth() + 1.8)
        figure.legend(handles=[*_legend(shown, looks), *marks], loc="outside right upper")
    return figure


def _lost(data: xr.Dataset) -> str:
    return f"{data.attrs['budget']:g} nats of utility lost" if "budget" in data.attrs else "utility spent"


def curves(data: xr.Dataset) -> Figure:
    """Preference and utility against strength, with fitted curves; rows are concepts, columns forms.

    `data` is what `sim.measure.tradeoff.with_fits` gives. Over a panel are R², in the colours of the methods.
    """
    updates = labels(data, "update")
    looks = _looks(updates)
    forms = list(dict.fromkeys(_form(update) for update in updates))
    rows = [(concept, quantity) for concept in labels(data, "concept") for quantity in _ODDS]

    def find(row: tuple[str, str], form: str) -> list[str] | None:
        values = data[row[1]].sel(concept=row[0])
        mine = [update for update in updates if _form(update) == form]
        return [update for update in mine if np.isfinite(values.sel(update=update)).any()] or None

    with style():
        figure, panels = table(rows, forms, find, size=(3.3, 2.1))
        for (concept, quantity), form, drawn, axes in panels:
            for update in drawn:
                colour, _ = looks[update]
                curve = data.sel(concept=concept, update=update)
                _bars(axes, curve["alpha"].values, curve[quantity].values, curve[f"{quantity}_error"].values, colour)
                axes.plot(curve["fine_alpha"], curve[f"{quantity}_fit"], color=colour, linewidth=1.2)
            alphas = data["alpha"].sel(update=drawn).transpose("update", "strength").values
            strength_axis(axes, alphas[0], float(alphas.min()), float(alphas.max()), margin=0.03)
            axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(_named(FORMS, form))
            scores = data[f"{quantity}_r_squared"].sel(concept=concept)
            _scores(axes, [(float(scores.sel(update=update)), looks[update][0]) for update in drawn])
            if form == _first_form(panels, (concept, quantity)):
                axes.set_ylabel(f"{concept}\n{_ODDS[quantity]}")
        figure.align_ylabels()
        shown = dict.fromkeys(map(_method, _shown(updates, panels)))
        colours = {_method(update): look[0] for update, look in looks.items()}
        handles = [
            Line2D([], [], color=colours[method], linewidth=1.2, label=_named(METHODS, method), **_DOTTED)
            for method in shown
        ]
        legend_below(figure, handles)
    return figure


def _first_form(panels: Iterable[Panel], row: tuple[str, str]) -> str:
    return next(panel.column for panel in panels if panel.row == row)


def _bars(axes: Axes, alphas: np.ndarray, y: np.ndarray, error: np.ndarray, colour: str) -> None:
    """Circles with error bars."""
    kept = np.isfinite(y)
    bars = np.where(np.isfinite(error), error, 0)[kept]
    axes.errorbar(alphas[kept], y[kept], yerr=bars, color=colour, elinewidth=0.7, **(DOTS | {"markersize": 2.8}))


def _scores(axes: Axes, scores: Sequence[tuple[float, str]]) -> None:
    """R² above the right end of a panel, in colours."""
    shown = [(_score(value), colour) for value, colour in scores]
    for k, (text, colour) in enumerate([*reversed(shown), ("$R^2$", INK)]):
        axes.annotate(
            text,
            (1, 1),
            xycoords="axes fraction",
            xytext=(-26 * k, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=colour,
        )


def _score(value: float) -> str:
    """An R², as low or negative as it is; a dash for none."""
    return "\N{EN DASH}" if np.isnan(value) else f"{value:.3f}".replace("-", "\N{MINUS SIGN}").replace("0.", ".", 1)


def layers(data: xr.Dataset) -> Figure:
    """N7's law by layer: fitted exponents against 1/2, fitted centres and widths against those that the law predicts.

    Args:
        data: over layer and pair `exponent`, `centre`, `width`, fitted, and `centre_law` and `width_law`, N7's.
    """
    columns = {
        "exponent": ("exponent", lambda: data["exponent"], 0.5),
        "centre": (
            "centre less predicted, in widths",
            lambda: (data["centre"] - data["centre_law"]) / data["width_law"],
            0.0,
        ),
        "width": ("width, fitted over predicted", lambda: data["width"] / data["width_law"], 1.0),
    }
    numbers = np.asarray(labels(data, "layer"))

    def find(name: str) -> np.ndarray | None:
        values = columns[name][1]().transpose("layer", "pair").values.astype(float)
        values = np.where(np.isfinite(values), values, np.nan)
        return values if np.isfinite(values).any() else None

    with style():
        figure, panels = wrapped(columns, find, size=(3.0, 2.5), x="block", most=3)
        for name, _, values, axes in panels:
            label, _, wanted = columns[name]
            kept = np.isfinite(values).any(axis=1)
            low, middle, high = np.nanquantile(values[kept], (0.25, 0.5, 0.75), axis=1)
            axes.axhline(wanted, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
            axes.fill_between(numbers[kept], low, high, color=TARGET, alpha=_SHADE, linewidth=0)
            axes.plot(numbers[kept], middle, color=TARGET, **_DOTTED)
            axes.set_title(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
            if name == "width" and low.min() > 0 and max(high.max(), wanted) / min(low.min(), wanted) > 10:
                axes.set_yscale("log")
        handles = [
            Line2D([], [], color=TARGET, label="median over pairs", **_DOTTED),
            Line2D([], [], color=TARGET, alpha=_SHADE, linewidth=8, label="quartiles"),
            Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (4, 2)), label="the law"),
        ]
        legend_below(figure, handles)
    return figure


def toy(data: xr.Dataset) -> Figure:
    """N6 and N7: preference and utility of unconstrained features models without and with a norm.

    Args:
        data: over model and strength `preference` and `utility`, in nats, and `fit`, the curve fitted to the preference (NaN
            for a model that has none); coordinate `strength`.
    """
    colours = dict(zip(labels(data, "model"), (OFF_TARGET, TARGET, THIRD, *_MORE_COLOURS), strict=False))

    def find(quantity: str) -> list[str] | None:
        return [model for model in colours if np.isfinite(data[quantity].sel(model=model)).sum() > 1] or None

    with style():
        figure, panels = wrapped(_ODDS, find, size=(3.5, 2.8))
        strengths = data["strength"].values
        every = max(1, strengths.size // 24)
        for quantity, _, models, axes in panels:
            for model in models:
                curve = data.sel(model=model)
                axes.plot(strengths, curve[quantity], color=colours[model])
                if quantity == "preference" and np.isfinite(curve["fit"]).any():
                    dots = slice(strengths.size // 2 % every, None, every)
                    axes.plot(strengths[dots], curve["fit"].values[dots], color=colours[model], **DOTS)
            axes.set_xlim(float(strengths[0]), float(strengths[-1]))
            axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
            axes.set_title(_ODDS[quantity])
        shown = [model for model in colours if any(model in panel.content for panel in panels)]
        handles = [Line2D([], [], color=colours[model], label=model) for model in shown]
        fit = [Line2D([], [], color="#555555", label="fitted decay", **DOTS)] if np.isfinite(data["fit"]).any() else []
        legend_below(figure, [*handles, *fit])
    return figure


def _shown(updates: Iterable[str], panels: Sequence[Panel]) -> list[str]:
    """Updates that are in some panel, in their order."""
    return [update for update in updates if any(update in panel.content for panel in panels)]


def _there(path: xr.Dataset) -> np.ndarray:
    return np.isfinite(path["utility"].values) & np.isfinite(path["preference_used"].values)


def _method(update: str) -> str:
    return update.rpartition(" ")[0] or update


def _form(update: str) -> str:
    method, _, form = update.rpartition(" ")
    return form if method else "vector"


def _named(names: dict[str, tuple[str, Any]], key: str) -> str:
    return names[key][0] if key in names else key


def spelt(update: str) -> str:
    """An update in words, as in "vector, SFT"."""
    return f"{_named(FORMS, _form(update))}, {_named(METHODS, _method(update))}"


def _looks(updates: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each update; the same in every figure for methods and forms that are known."""
    updates = list(updates)
    strange = [method for method in dict.fromkeys(map(_method, updates)) if method not in METHODS]
    colours = {key: colour for key, (_, colour) in METHODS.items()}
    colours |= {method: _MORE_COLOURS[k % len(_MORE_COLOURS)] for k, method in enumerate(strange)}
    dashes = {key: dash for key, (_, dash) in FORMS.items()}
    return {update: (colours[_method(update)], dashes.get(_form(update), "-.")) for update in updates}


def _legend(updates: Sequence[str], looks: dict[str, tuple[str, Any]]) -> list[Line2D]:
    """Methods as colours, then forms as dashes."""
    colours = {_method(update): looks[update][0] for update in updates}
    dashes = {_form(update): looks[update][1] for update in updates}
    methods = [Line2D([], [], color=colour, label=_named(METHODS, method)) for method, colour in colours.items()]
    look: dict[str, Any] = {"color": INK, "linewidth": 1.2}
    return methods + [Line2D([], [], linestyle=dash, label=_named(FORMS, form), **look) for form, dash in dashes.items()]


PREFERENCE_FIGURES: dict[str, Drawing] = {
    "preference-tradeoff": Drawing(
        "preference",
        tradeoff,
        "W, preference and utility",
        "What steering gains and what it costs: the preference for answers that match a concept against utility, the "
        "log-odds of giving either answer, along sweeps of the strength (thick: above 0). An update is the better, the "
        "higher its path is before the square, where the utility that may be lost has been spent.",
    ),
    "preference-curves": Drawing(
        "preference",
        curves,
        "W, validity decay",
        "Preference and utility against strength, means over pairs with standard errors, and the curves of validity decay "
        "fitted to them. Each form has strengths of its own scale.",
    ),
    "preference-layers": Drawing(
        "preference-layers",
        layers,
        "W and N7",
        "Steering before the last norm the exponent of the decay is 1/2 and its centre and width are known in closed form. "
        "Below, blocks lie between steering and norm: how far the law still holds, by block.",
    ),
    "preference-toy": Drawing(
        "preference-toy",
        toy,
        "N6 and N7",
        "In the unconstrained features model preference is a straight line for ever. With a norm before the decoder it "
        "bends and saturates as W finds in language models, along the curve of validity decay (circles: fitted).",
    ),
}
"""Figures of W's preference and utility, by the name of their files."""

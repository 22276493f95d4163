"""The figure of a choice of strength: what steering buys and what it costs, on one axis of strengths, with the choice in it.

Its data are the datasets of `sim.choosing.curves`.
"""

from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.figures.panels import STRENGTH, legend_below
from sim.figures.style import INK, TARGET, Drawing, style

COST = "#D55E00"
"""Vermilion of the Okabe-Ito palette."""

_DASHES: dict[str, Any] = {"mean": "-", "p95": (0, (5, 2)), "max": (0, (1, 1.2))}
_WORDS = {"mean": "KL, mean", "p95": "KL, 95th percentile", "max": "KL, largest"}
_LEAST = (0, (3, 1.5, 1, 1.5))
_BOUNDS = ("N18", "N20")
_HALO: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}


def choice(data: xr.Dataset) -> Figure:
    """Two panels over one axis of strengths: the concept's share, and KL per token.

    Args:
        data: of one choice, as `sim.choosing.curves.curves` gives it; without a strength, the reason is the title.
    """
    about, alphas = data.attrs, data["alpha"].values
    with style():
        figure = Figure(figsize=(6.4, 5.0))
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.5))
        top.plot(alphas, data["share"], color=TARGET)
        top.set(ylabel="concept's share", ylim=(0, 1.08 * max(float(data["share"].max()), _number(about["wanted"]))))
        shown = [name for name in ("mean", "p95", "max") if name in ("mean", "p95", about["statistic"])]
        for name in shown:
            bottom.plot(alphas, data["cost"].sel(statistic=name), color=COST, linestyle=_DASHES[name])
        bottom.plot(alphas, data["least_cost"], color=TARGET, linestyle=_LEAST, linewidth=1.2)
        bottom.set(ylabel="nats per token", xlabel=STRENGTH, ylim=(0, _height(data, shown)))
        bottom.set_xlim(*sorted((alphas[0], alphas[-1])))
        for axes, level in ((bottom, about["budget"]), (top, about["wanted"])):
            if np.isfinite(level):
                axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        for axes in (top, bottom):
            _chosen(axes, about)
        bounds = _bounds(bottom, data)
        top.set_title(_title(about), fontsize=9.5)
        figure.align_ylabels()
        legend_below(figure, _handles(shown, about, bounds))
    return figure


def _number(value: float) -> float:
    return float(value) if np.isfinite(value) else 0.0


def _height(data: xr.Dataset, shown: list[str]) -> float:
    """The largest cost on the axis, and room for the budget."""
    return 1.08 * max(float(data["cost"].sel(statistic=shown).max()), 1.1 * _number(data.attrs["budget"]))


def _title(about: dict) -> str:
    if np.isnan(about["alpha"]):
        return fill(f"No strength after block {about['layer']}: {about['reason']}".replace("$", "\\$"), 84)
    low, high = (f"{about[end]:.3g}" for end in ("low", "high"))
    over = f" ({low} to {high} over prompts)" if np.isfinite(about["low"]) else ""
    return f"$\\alpha$ = {about['alpha']:.3g} after block {about['layer']}{over}"


def _chosen(axes: Axes, about: dict) -> None:
    """The strength, and its interval over prompts."""
    if np.isfinite(about["alpha"]):
        if np.isfinite(about["low"]):
            axes.axvspan(about["low"], about["high"], color=INK, alpha=0.12, linewidth=0)
        axes.axvline(about["alpha"], color=INK, linewidth=1.1)


def _bounds(axes: Axes, data: xr.Dataset) -> list[str]:
    """Triangles at the strengths that bounds allow, where they are on the axis; their names."""
    alphas, names = data["alpha"].values, [name for name in _BOUNDS if name in data.attrs]
    inside = [name for name in names if abs(data.attrs[name]) <= abs(alphas[-1])]
    for place, name in enumerate(sorted(inside, key=lambda name: abs(data.attrs[name]))):
        here = data.attrs[name]
        near = place > 0 and np.ptp([data.attrs[other] for other in inside]) < 0.07 * abs(alphas[-1])
        axes.plot(here, 0, marker="^", markersize=7, markerfacecolor="white", color=INK, clip_on=False, zorder=5)
        axes.annotate(
            name,
            (here, 0),
            xytext=(0, 19 if near else 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
            bbox=_HALO,
        )
    return inside


def _handles(shown: list[str], about: dict, bounds: list[str]) -> list[Line2D]:
    handles: list[Line2D] = [Line2D([], [], color=COST, linestyle=_DASHES[name], label=_WORDS[name]) for name in shown]
    handles.append(Line2D([], [], color=TARGET, linestyle=_LEAST, linewidth=1.2, label="least for this share (N15)"))
    dashed: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (2, 2))}
    if np.isfinite(about["budget"]):
        handles.append(Line2D([], [], label="budget", **dashed))
    if np.isfinite(about["wanted"]):
        handles.append(Line2D([], [], label="share asked for", **dashed))
    if np.isfinite(about["alpha"]):
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="chosen strength"))
        handles.append(Line2D([], [], color=INK, alpha=0.12, linewidth=7, label="90 % of prompt samples"))
    if bounds:
        handles.append(Line2D([], [], label="safe by a bound", linestyle="none", marker="^", color=INK, markerfacecolor="w"))
    return handles


CHOOSING_FIGURES: dict[str, Drawing] = {
    "choice": Drawing(
        "choice",
        choice,
        "N15, N18 and N20",
        "What a strength buys and what it costs, on text that the model wrote at the chosen one. Above: the mean "
        "probability of the concept's tokens. Below: KL per token from the unsteered to the steered prediction, and the "
        "least that any intervention pays for the same share. Triangles: strengths at which bounds keep the prompts within "
        "the budget.",
    ),
}
"""Figures of a choice, by the name of their files."""

"""Figures of what steering costs and buys in the toy: shares, directions, budgets, texts, and turns.

Lines are predicted, circles measured on trained models.
"""

from collections.abc import Sequence

import matplotlib.ticker
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.figures.style import DOTS, INK, OFF_TARGET, SPREAD, TARGET, THIRD, Drawing, style

DIRECTIONS = (OFF_TARGET, TARGET, THIRD)
"""Colours of directions."""

NOWHERE = "#EEEEEE"
"""The grey of what no intervention reaches."""

LEAST = Line2D([], [], color=INK, linewidth=1.0, linestyle="--", label="the least possible (N15)")

COST = "cost: $\\mathrm{KL}(p \\,\\Vert\\, p_\\alpha)$ [nats]"

EFFICIENCY = "efficiency $\\rho^2$ at $\\alpha = 0$"


def share_costs(data: xr.Dataset) -> Figure:
    """KL against the share of the target, with the least that any intervention pays (N15)."""
    with style():
        figure = Figure(figsize=(4.6, 3.3))
        axes = figure.subplots()
        axes.fill_between(data["reached"], 0, data["least"], color=NOWHERE, zorder=0)
        cost_of_shares(axes, data, DIRECTIONS)
        names = [str(name) for name in data["direction"].values]
        labels = [f"{name} ($\\rho^2$ = {rho:.3f})" for name, rho in zip(names, data["efficiency"].values, strict=True)]
        axes.text(0.97, 0.06, "no intervention gets here", ha="right", transform=axes.transAxes, fontsize=8.5)
        axes.set(
            xlabel="share of the target",
            ylabel=COST,
            xlim=(data.attrs["before"], float(data["reached"][-1])),
            ylim=(0, float(data["cost"].max()) * 1.02),
        )
        handles = [Line2D([], [], color=colour, label=label) for colour, label in zip(DIRECTIONS, labels, strict=False)]
        figure.legend(handles=[LEAST, *handles], loc="outside upper left", ncols=1)
    return figure


def cost_of_shares(axes: Axes, data: xr.Dataset, colours: Sequence[str], dots: int = 16) -> None:
    """Cost against share as the strength grows, a line for each direction, and the least cost.

    Args:
        axes: where.
        data: "share" and "cost", predicted, "measured_share" and "measured_cost", by "direction" and "strength"; "least" by
            "reached".
        colours: of the directions.
        dots: circles of a direction.
    """
    every = max(1, data.sizes["strength"] // dots)
    axes.plot(data["reached"], data["least"], color=INK, linewidth=1.0, linestyle="--")
    for k, colour in zip(range(data.sizes["direction"]), colours, strict=False):
        way = data.isel(direction=k)
        axes.plot(way["share"], way["cost"], color=colour)
        axes.plot(way["measured_share"][::every], way["measured_cost"][::every], color=colour, **DOTS)


def efficiencies(data: xr.Dataset) -> Figure:
    """The part of a small cost that the share of the target needs, by direction and context (N15)."""
    with style():
        figure = Figure(figsize=(4.6, 2.9))
        axes = figure.subplots()
        width, places = 0.25, np.arange(data.sizes["context"])
        for k, (colour, name) in enumerate(zip(DIRECTIONS, data["direction"].values, strict=False)):
            way, at = data.sel(direction=name), places + (k - 1) * width
            axes.bar(at, way["predicted"], width=width * 0.9, color=colour, alpha=0.55, label=str(name))
            axes.plot(at, way["measured"], color=colour, **DOTS)
        axes.set(xticks=places, ylim=(0, 1.05), xlabel="concept of the context", ylabel=EFFICIENCY)
        axes.set_xticklabels([str(name) for name in data["context"].values])
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=3, columnspacing=0.9, handlelength=1.2)
    return figure


def safe_strengths(data: xr.Dataset) -> Figure:
    """The largest strength within a budget: what bounds allow, and what is measured."""
    with style():
        figure = Figure(figsize=(4.6, 3.2))
        axes = figure.subplots()
        strengths_of_budgets(axes, data, "exact")
        axes.set(xlabel="budget [nats]", ylabel="largest strength $\\alpha$")
        axes.legend(loc="upper left")
    return figure


def strengths_of_budgets(axes: Axes, data: xr.Dataset, exact: str) -> None:
    """The largest strength by budget: of the tilt, measured, and by the bounds.

    Args:
        axes: where.
        data: "exact" (of the tilt), "measured", "N4", "N18" and "N20", by "budget".
        exact: what the strengths of the tilt are called.
    """
    budget = data["budget"]
    axes.plot(budget, data["exact"], color=INK, label=exact)
    axes.plot(budget, data["measured"], color=INK, label="measured", **DOTS)
    for colour, name in ((TARGET, "N18"), (OFF_TARGET, "N4"), (THIRD, "N20")):
        axes.plot(budget, data[name], color=colour, label=f"safe by {name}")
    axes.set(xscale="log", yscale="log", xlim=(float(budget[0]), float(budget[-1])))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))


def texts(data: xr.Dataset) -> Figure:
    """The share of the target in the last token of a text, by its length (N21)."""
    with style():
        figure = Figure(figsize=(4.6, 3.2))
        axes = figure.subplots()
        every, colours = max(1, data.sizes["alpha"] // 24), SPREAD[1:]
        for colour, length in zip(colours, data["length"].values, strict=False):
            curve = data.sel(length=length)
            name = f"token {length}: {float(curve['slope']):.3g} times as steep"
            axes.plot(curve["alpha"], curve["predicted"], color=colour, label=name)
            axes.plot(curve["alpha"][::every], curve["measured"][::every], color=colour, **DOTS)
        axes.set(
            xlabel="steering strength $\\alpha$",
            ylabel="share of the target",
            xlim=(float(data["alpha"][0]), float(data["alpha"][-1])),
            ylim=(0, 1),
        )
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.0, handlelength=1.3)
    return figure


def turns(data: xr.Dataset) -> Figure:
    """The shares of sets of tokens whose membership changes once to five times along the order of M (N16)."""
    with style():
        count = data.sizes["set"]
        figure = Figure(figsize=(4.6, 1.05 * count + 0.5))
        rows = figure.subplots(count, 1, sharex=True)
        every = max(1, data.sizes["alpha"] // 40)
        for axes, k in zip(np.atleast_1d(rows), range(count), strict=True):
            curve = data.isel(set=k)
            axes.plot(curve["alpha"], curve["predicted"], color=TARGET)
            axes.plot(curve["alpha"][::every], curve["measured"][::every], color=TARGET, **DOTS)
            changes, turned = int(curve["changes"]), int(curve["turns"])
            axes.set_title(f"set of {curve['set'].item()}: s = {changes}, turning points: {turned}", fontsize=8.5)
            axes.set(ylim=(-0.05, 1.05), yticks=[0, 0.5, 1], xlim=(float(data["alpha"][0]), float(data["alpha"][-1])))
        rows[-1].set_xlabel("steering strength $\\alpha$")
        figure.supylabel("share of the set", fontsize=10)
    return figure


COSTS_FIGURES: dict[str, Drawing] = {
    "share-cost": Drawing(
        "share-costs",
        share_costs,
        "N15",
        "What the share of the target costs after one context, along three directions. No intervention of any kind gets "
        "below the dashed line; a direction that moves other concepts apart, too, pays for it.",
    ),
    "efficiency": Drawing(
        "efficiencies",
        efficiencies,
        "N15",
        "The part of a small cost that the share of the target needs, by direction and context: bars from the corpus, "
        "circles from the trained model. Away from all other concepts nearly nothing is wasted.",
    ),
    "safe-strengths": Drawing(
        "safe-strengths",
        safe_strengths,
        "N4, N18 and N20",
        "The largest strength for a budget of KL after one context. The bounds are certain and so lie below what is "
        "measured; the one from a variance and an end (N18) comes closest.",
    ),
    "texts": Drawing(
        "texts",
        texts,
        "N21",
        "When each token is the next context, the response adds up: the longer the text, the steeper the share of the "
        "target in its last token. Circles are of the chain that a trained model writes.",
    ),
    "turns": Drawing(
        "turns",
        turns,
        "N16",
        "The share of a set of tokens turns at most once less than membership changes along the order of the log-odds, "
        "and can turn as often: here it does.",
    ),
}
"""Figures of costs, by the name of their files."""

"""Figures of the theory on a real language model, drawn from the datasets of `sim.checks.validation`."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.figures.costs import COST, DIRECTIONS, EFFICIENCY, LEAST, NOWHERE, cost_of_shares, strengths_of_budgets
from sim.figures.style import DOTS, INK, KINDS, LAYERS, OFF_TARGET, SPREAD, TARGET, Drawing, style, word_label


def law(data: xr.Dataset) -> Figure:
    """N7 and N8: logits of a few tokens against strength after the last block, a panel for each concept."""
    with style():
        figure = Figure(figsize=(4.9 * data.sizes["concept"], 3.3))
        for axes, (name, group) in zip(
            np.ravel(figure.subplots(1, data.sizes["concept"])), data.groupby("concept"), strict=True
        ):
            _law(axes, group.squeeze("concept"))
            axes.set_title(str(name))
    return figure


def _law(axes: Axes, sweep: xr.Dataset) -> None:
    centre, width, reach = float(sweep["centre"]), float(sweep["width"]), 9.0
    fine, few = ((sweep[name].values - centre) / width for name in ("alpha", "strengths"))
    near, measured = np.abs(fine) <= reach, np.flatnonzero(np.abs(few) <= reach)[::5]
    for slot in range(sweep.sizes["slot"]):
        colour, word = SPREAD[slot], word_label(sweep["word"].values[slot])
        axes.plot(centre + width * fine[near], sweep["predicted"].values[near, slot], color=colour, label=word)
        axes.plot(sweep["strengths"].values[measured], sweep["measured"].values[measured, slot], color=colour, **DOTS)
        for side, plateau in ((-1, "plateau_low"), (1, "plateau_high")):
            level, ends = float(sweep[plateau].values[slot]), centre + width * side * np.array([0.62, 1.0]) * reach
            axes.plot(ends, [level, level], color=colour, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set(xlabel="steering strength $\\alpha$", ylabel="logit", xlim=(centre - reach * width, centre + reach * width))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1.0, handlelength=1.2)


def plateaus(data: xr.Dataset) -> Figure:
    """Proposition 4.1 with its rate: the distance of the logits to their limit, a panel for each concept."""
    with style():
        count = data.sizes["concept"]
        figure = Figure(figsize=(4.4 * count, 3.1))
        panels = np.ravel(figure.subplots(1, count, sharey=True))
        for axes, name in zip(panels, data["concept"].values, strict=True):
            for colour, layer in zip(LAYERS, data["layer"].values, strict=False):
                sweep = data.sel(concept=name, layer=layer)
                alphas, plus = sweep["strengths"].values, sweep.sel(sign=1)
                axes.plot(alphas, plus["distance"], color=colour, **DOTS)
                late = alphas > alphas[0] * 30
                axes.plot(
                    alphas[late], float(plus["leading"]) / alphas[late], color=colour, linewidth=1.1, label=f"block {layer}"
                )
                axes.plot(alphas, plus["bound"], color=colour, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.set(xscale="log", yscale="log", xlabel="steering strength $\\alpha$")
            axes.set_title(str(name))
        panels[0].set_ylabel("largest $|\\mathrm{logit} - \\mathrm{limit}|$")
        more = [
            Line2D([], [], color=INK, label="measured", **DOTS),
            Line2D([], [], color=INK, linewidth=1.1, label="$C / \\alpha$"),
            Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (2, 2)), label="bound"),
        ]
        handles = [*panels[0].get_legend_handles_labels()[0], *more]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.0, handlelength=1.4)
    return figure


def cross_entropy(data: xr.Dataset) -> Figure:
    """N9: the increase of cross-entropy on own and foreign text against the parabola of one JVP."""
    with style():
        figure, panels = _by_concept_and_layer(data, (3.2, 2.5), "nats per token")
        for axes, _, sweep in panels:
            alphas, own, foreign = sweep["strengths"].values, sweep.sel(text="own"), sweep.sel(text="foreign")
            fine = np.linspace(alphas[0], alphas[-1], 101)
            axes.plot(fine, float(own["curvature"]) * fine**2, color=INK, linewidth=1.2)
            slope = float(foreign["slope"])
            axes.plot(fine, slope * fine, color=OFF_TARGET, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.plot(alphas, own["divergence"], color=INK, **DOTS)
            axes.plot(alphas, own["cross_entropy"], color=TARGET, **(DOTS | {"marker": "s"}))
            axes.plot(alphas, foreign["cross_entropy"], color=OFF_TARGET, **(DOTS | {"marker": "^", "markersize": 3.8}))
        figure.legend(
            handles=[
                Line2D([], [], color=INK, linewidth=1.2, label="parabola, one JVP"),
                Line2D([], [], color=INK, label="KL, own text", **DOTS),
                Line2D([], [], color=TARGET, label="$\\Delta$CE, own text", **(DOTS | {"marker": "s"})),
                Line2D([], [], color=OFF_TARGET, label="$\\Delta$CE, foreign text", **(DOTS | {"marker": "^"})),
                Line2D([], [], color=OFF_TARGET, linewidth=0.9, linestyle=(0, (2, 2)), label="its linear term"),
            ],
            loc="outside lower center",
            ncols=5,
            columnspacing=1.0,
            handlelength=1.4,
        )
    return figure


def next_tokens(data: xr.Dataset) -> Figure:
    """S, figure 6: the increase of the eight tokens that are likeliest under strong steering, by concept and layer."""
    with style():
        figure, panels = _by_concept_and_layer(data, (3.5, 3.2), "$\\Delta p(z \\mid c, \\alpha)$")
        for axes, row, sweep in panels:
            _increases(axes, sweep, below=-0.22 if row == data.sizes["concept"] - 1 else -0.12)
    return figure


def _by_concept_and_layer(
    data: xr.Dataset, size: tuple[float, float], y: str
) -> tuple[Figure, list[tuple[Axes, int, xr.Dataset]]]:
    """A panel for each concept (rows) and layer (columns): its axes, its row, and its data."""
    concepts, layers = data["concept"].values, data["layer"].values
    figure = Figure(figsize=(size[0] * len(layers), size[1] * len(concepts)))
    grid, panels = figure.subplots(len(concepts), len(layers), squeeze=False), []
    for (row, column), axes in np.ndenumerate(grid):
        sweep = data.isel(concept=row, layer=column)
        axes.set_title(f"{concepts[row]}, block {layers[column]}")
        panels.append((axes, row, sweep))
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
    for axes in grid[-1]:
        axes.set_xlabel("steering strength $\\alpha$")
    return figure, panels


def _increases(axes: Axes, sweep: xr.Dataset, *, below: float) -> None:
    alphas = sweep["strengths"].values
    shown = alphas >= 0
    for rank in range(sweep.sizes["rank"]):
        word = word_label(sweep["word"].values[rank])
        axes.plot(alphas[shown], sweep["increase"].values[shown, rank], color=SPREAD[rank], linewidth=1.3, label=word)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_xlim(0, alphas[-1])
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, below),
        ncols=4,
        fontsize=7.5,
        handlelength=1.0,
        handletextpad=0.4,
        labelspacing=0.25,
        columnspacing=0.8,
    )


def bump_shares(data: xr.Dataset) -> Figure:
    """Theorem 3.3 on a real model: the shares of tokens with one bump, none and several, and where single bumps are."""
    with style():
        figure = Figure(figsize=(8.6, 2.7))
        shares, places = figure.subplots(1, 2, width_ratios=(1.1, 1), sharey=True)
        labels, ticks = [], []
        for row, name in enumerate(data["concept"].values):
            for k, layer in enumerate(data["layer"].values):
                counts, y = data.sel(concept=name, layer=layer), -(row * (data.sizes["layer"] + 0.7) + k)
                parts, left = counts["count"].values / counts["count"].values.sum(), 0.0
                for part, colour in zip(parts, KINDS, strict=True):
                    shares.barh(y, part, left=left, color=colour, height=0.75)
                    left += part
                low, middle, high = counts["peak"].values
                places.plot([low, high], [y, y], color=TARGET, linewidth=2.2, solid_capstyle="butt")
                places.plot(middle, y, "o", color=TARGET, markersize=4.5, markerfacecolor="white")
                labels.append(f"{name}, block {layer}")
                ticks.append(y)
        shares.set(xlim=(0, 1), xlabel="share of the likeliest tokens", yticks=ticks)
        shares.set_yticklabels(labels)
        shares.grid(axis="y", visible=False)
        places.set(xlabel="strength of the bump, $\\alpha \\|v\\| / \\|h\\|$")
        places.axvline(0, color=INK, linewidth=0.6)
        handles = [Patch(color=colour, label=str(kind)) for colour, kind in zip(KINDS, data["kind"].values, strict=True)]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


_OF_SHARES = {
    "tilted_share": "share",
    "tilted_cost": "cost",
    "measured_share": "measured_share",
    "measured_cost": "measured_cost",
}


def share_costs(data: xr.Dataset) -> Figure:
    """N15: KL against the share of two sets of tokens after one context, a line for each layer, and the least cost."""
    with style():
        concepts, sets, most = data["concept"].values, data["set"].values, float(data["budget"][-1])
        figure = Figure(figsize=(7.6, 5.8))
        grid = figure.subplots(len(concepts), len(sets), squeeze=False, sharey=True)
        for (row, column), axes in np.ndenumerate(grid):
            panel = data.isel(concept=row, set=column)[[*_OF_SHARES, "reached", "least"]]
            panel = panel.rename(_OF_SHARES | {"layer": "direction", "fine": "strength"})
            floor = 1e-4
            axes.fill_between(panel["reached"], floor, panel["least"].clip(floor), color=NOWHERE, zorder=0)
            cost_of_shares(axes, panel, LAYERS, dots=24)
            axes.set(yscale="log", ylim=(floor, most), title=f"{concepts[row]}: {sets[column]}")
            axes.set_xlim(float(panel["reached"][0]), float(panel["reached"][-1]))
        for axes in grid[:, 0]:
            axes.set_ylabel(COST)
        for axes in grid[-1]:
            axes.set_xlabel("share of the tokens")
        handles = [LEAST, *_of_layers(data), Line2D([], [], color=INK, label="measured", **DOTS)]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.0, handlelength=1.4)
    return figure


def _of_layers(data: xr.Dataset) -> list[Line2D]:
    """The legend of layers."""
    blocks = data["layer"].values
    return [Line2D([], [], color=colour, label=f"block {block}") for colour, block in zip(LAYERS, blocks, strict=False)]


def efficiencies(data: xr.Dataset) -> Figure:
    """N15: the part of a small cost that the shares of two sets of tokens need, by block and direction."""
    with style():
        concepts, sets, blocks = data["concept"].values, data["set"].values, data["block"].values
        figure = Figure(figsize=(7.6, 5.2))
        grid = figure.subplots(len(concepts), len(sets), squeeze=False)
        for (row, column), axes in np.ndenumerate(grid):
            for colour, way in zip(DIRECTIONS, data["direction"].values, strict=True):
                line = data["by_block"].isel(concept=row, set=column).sel(direction=way)
                axes.plot(blocks, line, color=colour, linewidth=1.3, label=str(way))
            if column == 0:
                measured = data["limit"].isel(concept=row).mean("context")
                axes.plot(data["layer"], measured, color=DIRECTIONS[0], label="measured", **DOTS)
            axes.set(title=f"{concepts[row]}: {sets[column]}", ylim=(0, None))
        for axes in grid[:, 0]:
            axes.set_ylabel(EFFICIENCY)
        for axes in grid[-1]:
            axes.set_xlabel("steered after block")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, columnspacing=1.0, handlelength=1.4)
    return figure


def safe_strengths(data: xr.Dataset) -> Figure:
    """N4, N18 and N20 from one JVP beside the measured strength, by budget, concept and layer."""
    with style():
        figure, panels = _by_concept_and_layer(data, (2.9, 2.5), "largest strength $\\alpha$")
        for axes, row, panel in panels:
            strengths_of_budgets(axes, panel, "tilt by the slopes")
            axes.set_xlabel("budget [nats]" if row == data.sizes["concept"] - 1 else "")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5, columnspacing=1.0, handlelength=1.4)
    return figure


VALIDATION_FIGURES: dict[str, Drawing] = {
    "language-next-tokens": Drawing(
        "next_tokens",
        next_tokens,
        "S, figure 6",
        "Next-token probabilities of one context as steering grows, for the eight tokens that are likeliest at its end, "
        "where alpha v is eight times as long as the hidden state; the likeliest is named first.",
    ),
    "language-bumps": Drawing(
        "next_tokens",
        bump_shares,
        "S, theorem 3.3",
        "What is left of the single bump. Left: among the likeliest tokens at both ends of a sweep, how many have one bump, "
        "rise or fall throughout, or have several. Right: where single bumps are; median and quartiles.",
    ),
    "language-law": Drawing(
        "last_block",
        law,
        "N7 and N8",
        "After the last block. Lines: the law from two unembeddings; circles: the model's own logits at the same strengths, "
        "in float64. Dotted: the plateaus, which do not depend on the prompt.",
    ),
    "language-plateaus": Drawing(
        "plateaus",
        plateaus,
        "S, proposition 4.1",
        "The prompt is forgotten like C / alpha. Circles: the largest distance of any logit from the limit, over all "
        "contexts; lines: the leading coefficient C from one derivative at v; dotted: the bound.",
    ),
    "language-cross-entropy": Drawing(
        "curvatures",
        cross_entropy,
        "N9 and S, theorem 3.8",
        "The cost of steering. The parabola is known from one Jacobian-vector product; on text that the model wrote itself "
        "there is no linear term, on other text there may be.",
    ),
    "language-share-cost": Drawing(
        "costs",
        share_costs,
        "N15",
        "What the shares of two sets of tokens cost after one context, as the strength grows: those of the concept's texts, "
        "and those that its vector lifts most after the last block. Circles: measured; lines: the tilt by the slopes of the "
        "logits at strength 0, from one JVP. No intervention of any kind gets into the grey.",
    ),
    "language-efficiency": Drawing(
        "costs",
        efficiencies,
        "N15",
        "The part of a small cost that the shares of two sets of tokens need; the rest moves other tokens. Lines: from one "
        "JVP after each block, mean over contexts; circles: measured at small strengths.",
    ),
    "language-safe-strengths": Drawing(
        "costs",
        safe_strengths,
        "N4, N18 and N20",
        "The largest strength for a budget of KL after one context. The bounds take two or three numbers from one JVP; they "
        "are certain for the tilt by the slopes (black line), and for the model as far as its logits are straight lines.",
    ),
}
"""Figures of a language model, by the name of their files."""

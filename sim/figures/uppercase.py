"""Figures of the 1-layer GPT that is steered from lower to upper case, from the datasets of `sim.experiments.gpt.uppercase`.

Lines are predictions and circles measurements, but in figure A.4, whose lines S measured: there the dots are predicted.
"""

from itertools import product

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.figures.style import DOTS, INK, OFF_TARGET, SPREAD, TARGET, THIRD, Drawing, style, word_label

_CASES = {"upper": TARGET, "lower": OFF_TARGET, "none": "#8C8C8C"}
"""Colours of cases."""

_TILTS = {
    "theory": ("theory, $p\\,e^{\\alpha M}$", OFF_TARGET, "-"),
    "closest": ("the closest tilt, $p\\,e^{tM}$", THIRD, (0, (4, 2))),
    "normed": ("with the norm, $(p\\,e^{\\alpha M})^D$", TARGET, "-"),
}
"""The curves that steering is compared with: label, colour and dashes."""

_VECTORS = {"all positions": "all positions", "last position": "last positions"}

_RELATIVE = "steering strength, $\\alpha \\|v\\| / \\|h\\|$"


def next_tokens(data: xr.Dataset) -> Figure:
    """S, figure A.4: increases of the eight likeliest tokens, to S's 50 and near 0; a row for each layer and range.

    The row near 0 is steered along the last positions' vector, and has the prediction.
    """
    layers, rows, count = data["layer"].values, [("S", "all positions"), ("near", "last position")], data.sizes["context"]
    with style():
        figure = Figure(figsize=(3.3 * count, 2.75 * len(layers) * len(rows)))
        grid = figure.subplots(len(layers) * len(rows), count, squeeze=False)
        for row, (layer, (span, vector)) in zip(grid, product(layers, rows), strict=True):
            sweep = data.sel(layer=layer, vector=vector, range=span)
            for k, axes in enumerate(row):
                _increases(axes, sweep.isel(context=k), predicted=span == "near")
                name = f"block {layer}, " if len(layers) > 1 else ""
                axes.set_title(f"{name}\u201c\u2026{_end_of(data['text'].values[..., k].flat[0])}\u201d", fontsize=9)
            row[0].set_ylabel("$\\Delta p(z \\mid c, \\alpha)$")
        for axes in grid[-1]:
            axes.set_xlabel("steering strength $\\alpha$")
    return figure


def _end_of(text: object) -> str:
    """The end of a context, on one line."""
    return " ".join(str(text).split())[-28:].replace("$", "\\$")


def _increases(axes: Axes, sweep: xr.Dataset, *, predicted: bool) -> None:
    alphas = sweep["alpha"].values
    for rank in range(sweep.sizes["rank"]):
        colour, text = SPREAD[rank], word_label(sweep["word"].values[rank])
        axes.plot(alphas, sweep["increase"].values[:, rank], color=colour, linewidth=1.3, label=text)
        if predicted:
            few = slice(2 + rank, None, 9)
            axes.plot(alphas[few], sweep["predicted"].values[few, rank], color=colour, **(DOTS | {"markersize": 2.6}))
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_xlim(0, alphas[-1])
    # Room for the legend above all curves.
    axes.set_ylim(top=1.42 * max(sweep["increase"].values.max(), sweep["predicted"].values.max()))
    axes.legend(
        loc="upper center", ncols=4, fontsize=7.5, handlelength=0.9, handletextpad=0.4, labelspacing=0.2, columnspacing=0.8
    )


def tilts(data: xr.Dataset) -> Figure:
    """Lemma B.3: the share of what steering does that tilts explain, a row for each layer and a panel for each vector."""
    layers, vectors = data["layer"].values, data["vector"].values
    with style():
        figure = Figure(figsize=(3.7 * len(vectors), 2.5 * len(layers)))
        grid = figure.subplots(len(layers), len(vectors), squeeze=False, sharex=True, sharey=True)
        for row, layer in zip(grid, layers, strict=True):
            for axes, vector in zip(row, vectors, strict=True):
                sweep = data.sel(layer=layer, vector=vector)
                for name, (label, colour, dashes) in _TILTS.items():
                    shares = sweep["explained"].sel(tilt=name)
                    axes.plot(sweep["relative"], shares, color=colour, linestyle=dashes, label=label, linewidth=1.5)
                axes.axhline(0.9, color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
                axes.set(ylim=(-0.25, 1.04), xlim=(float(sweep["relative"][0]), float(sweep["relative"][-1])))
                axes.set_title(f"{f'block {layer}, ' if len(layers) > 1 else ''}$v$ from {_VECTORS[str(vector)]}")
            row[0].set_ylabel("share explained")
        for axes in grid[-1]:
            axes.set_xlabel(_RELATIVE)
        handles = grid[0, 0].get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)
    return figure


def concepts(data: xr.Dataset) -> Figure:
    """Theorem 3.6: the probability of each case against strength, a panel for each layer."""
    layers = data["layer"].values
    with style():
        figure = Figure(figsize=(4.4 * len(layers), 3.0))
        grid = np.ravel(figure.subplots(1, len(layers), sharey=True))
        for axes, layer in zip(grid, layers, strict=True):
            sweep = data.sel(layer=layer, vector="last position")
            relative, every_fourth = sweep["relative"].values, slice(None, None, 4)
            for name, colour in _CASES.items():
                values = sweep["probability"].sel(case=name)
                axes.plot(relative, values.sel(kind="theory"), color=colour, linewidth=1.0, linestyle=(0, (4, 2)))
                axes.plot(relative, values.sel(kind="normed"), color=colour, linewidth=1.5)
                axes.plot(relative[every_fourth], values.sel(kind="measured")[every_fourth], color=colour, **DOTS)
            axes.set(xlabel=_RELATIVE, xlim=(-4, 4))
            if len(layers) > 1:
                axes.set_title(f"block {layer}")
        grid[0].set_ylabel("probability")
        words = {"upper": "upper case", "lower": "lower case", "none": "no letters"}
        handles = [Line2D([], [], color=colour, label=words[name]) for name, colour in _CASES.items()]
        handles += [
            Line2D([], [], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="theory"),
            Line2D([], [], color=INK, linewidth=1.5, label="with the norm"),
            Line2D([], [], color=INK, label="measured", **DOTS),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)
    return figure


def peaks(data: xr.Dataset) -> Figure:
    """Theorem 3.3: where the single bumps are, measured against predicted; rows of layers."""
    layers = data["layer"].values
    with style():
        figure = Figure(figsize=(6.8, 3.1 * len(layers)))
        grid = figure.subplots(len(layers), 2, squeeze=False, sharey=True)
        for row, layer in zip(grid, layers, strict=True):
            sweep = data.sel(layer=layer, vector="last position")
            measured = sweep.sel(kind="measured")
            for axes, kind in zip(row, ("theory", "normed"), strict=True):
                both = (measured["bumps"].values == 1) & (sweep["bumps"].sel(kind=kind).values == 1)
                x, y = sweep["place"].sel(kind=kind).values[both], measured["place"].values[both]
                z = sweep["log_odds"].values[both]
                points = axes.scatter(x, y, c=z, s=5, cmap="cividis", linewidths=0, alpha=0.7, rasterized=True)
                span = [min(x.min(), y.min()), max(x.max(), y.max())] if both.any() else [-1, 1]
                axes.plot(span, span, color=INK, linewidth=0.6)
                axes.set_xlabel(f"predicted place, {'theory' if kind == 'theory' else 'with the norm'}")
                if len(layers) > 1:
                    axes.set_title(f"block {layer}")
            row[0].set_ylabel("measured place of the peak")
            figure.colorbar(points, ax=row, label="log-odds $M(z)$", fraction=0.05)
    return figure


def cross_entropy(data: xr.Dataset) -> Figure:
    """Theorem 3.8 and N9: the increase of the cross-entropy on three texts against the parabolas; a panel for each text."""
    layers, texts = data["layer"].values, data["text"].values
    with style():
        figure = Figure(figsize=(3.0 * len(texts), 2.6 * len(layers)))
        grid = figure.subplots(len(layers), len(texts), squeeze=False, sharey=True)
        for row, layer in zip(grid, layers, strict=True):
            for axes, text in zip(row, texts, strict=True):
                sweep = data.sel(layer=layer, text=text, vector="last position")
                alphas = sweep["alpha"].values
                fine = np.linspace(alphas[0], alphas[-1], 101)
                axes.plot(fine, float(sweep["curvature"]) * fine**2, color=INK, linewidth=1.2)
                axes.plot(fine, float(sweep["half_variance"]) * fine**2, color=OFF_TARGET, linewidth=1.2)
                axes.plot(alphas, sweep["cross_entropy"], color=TARGET, **(DOTS | {"markersize": 4}))
                axes.set_title(f"{f'block {layer}, ' if len(layers) > 1 else ''}text {_TEXTS[str(text)]}")
            row[0].set_ylabel("$\\Delta$CE, nats per token")
        for axes in grid[-1]:
            axes.set_xlabel("steering strength $\\alpha$")
        handles = [
            Line2D([], [], color=TARGET, label="measured", **(DOTS | {"markersize": 4})),
            Line2D([], [], color=INK, linewidth=1.2, label="curvature by one JVP"),
            Line2D([], [], color=OFF_TARGET, linewidth=1.2, label="half the variance of $M$"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)
    return figure


_TEXTS = {"written": "it wrote", "held out": "held out", "training": "trained on"}

UPPERCASE_FIGURES: dict[str, Drawing] = {
    "case-next-tokens": Drawing(
        "next-tokens",
        next_tokens,
        "S, figure A.4",
        "Contexts in lower case, steered to upper case: the increase of the eight tokens that are likeliest at the largest "
        "strength. Above: along the vector of all positions, to S's 50. Below: along that of the last positions, near 0; "
        "circles are what the theory says with the norm put in, nothing fitted.",
    ),
    "case-tilts": Drawing(
        "tilts",
        tilts,
        "S, lemma B.3",
        "The share of KL(steered || unsteered) that a tilt by the log-odds explains, over all contexts. Dotted: 90 %.",
    ),
    "case-concepts": Drawing(
        "concepts",
        concepts,
        "S, theorem 3.6",
        "The probability that the next token is in upper case, in lower case or without letters, mean over contexts.",
    ),
    "case-peaks": Drawing(
        "peaks",
        peaks,
        "S, theorem 3.3",
        "The place of the peak of every token with one bump, in lengths of the hidden state: measured against predicted.",
    ),
    "case-cross-entropy": Drawing(
        "cross-entropy",
        cross_entropy,
        "S, theorem 3.8, and N9",
        "The increase of the cross-entropy on three texts, and two parabolas that need no sweep.",
    ),
}
"""Figures of the 1-layer GPT, by the name of their files."""

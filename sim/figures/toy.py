"""The toy figures of the steering-strength paper, drawn from the datasets of `sim.toy.curves`.

Lines are the theory's prediction; circles, where there are any, are what the trained model did at the same strengths.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.figures.style import DOTS, INK, OFF_TARGET, SPREAD, TARGET, THIRD, Drawing, style

_CONCEPTS = (TARGET, OFF_TARGET, THIRD, *SPREAD[5:])
"""Colours of concepts, and again from the first."""

_PREDICTED = Line2D([], [], color=INK, label="predicted")
_MEASURED = Line2D([], [], color=INK, label="measured", **DOTS)


def next_token_table(data: xr.Dataset) -> Figure:
    """S, figure 2: next-token probabilities after two contexts of different concepts."""
    with style():
        figure = Figure(figsize=(4.6, 2.5))
        axes = figure.subplots()
        concepts = data["concept_of_token"].values
        colours = np.array(_CONCEPTS)[concepts % len(_CONCEPTS)]
        positions = np.arange(data.sizes["token"])
        solid, faint = data["probability"].values
        axes.bar(positions, faint, color=colours, alpha=0.3, width=0.8)
        axes.bar(positions, solid, color=colours, width=0.45)
        first, second = (str(name) for name in data["context"].values)
        grey = "#555555"
        axes.legend(
            handles=[
                Patch(color=grey, label=f"$c$ = {first}"),
                Patch(color=grey, alpha=0.3, label=f"$c$ = {second}"),
            ],
            loc="upper right",
        )
        highest = float(data["probability"].max())
        top = 0.42 if highest < 0.36 else 1.4 * highest  # the legend is above the bars
        axes.set(xticks=positions, xlabel="next token $z$", ylabel="$p(z \\mid c)$", ylim=(0, top))
        axes.set_xticklabels(data["token"].values)
        axes.grid(axis="x", visible=False)
        # A token of the first context's concept, and one of the second's.
        of_contexts = data["concept_of_context"].values.tolist()
        for label, position in (
            ("$a_z$", _place(concepts, of_contexts[0], 0)),
            ("$b_z$", _place(concepts, of_contexts[1], 1)),
        ):
            axes.annotate(label, (position, solid[position]), xytext=(0, 3), textcoords="offset points", ha="center")
    return figure


def _place(concepts: np.ndarray, concept: int, k: int) -> int:
    """The k-th token of a concept, or its last."""
    tokens = np.flatnonzero(concepts == concept)
    return int(tokens[min(k, len(tokens) - 1)])


def next_token_curves(data: xr.Dataset, low: float, high: float, *, named: bool = False) -> Figure:
    """S, figures 3 and B.1: Delta p of every token of one context on [low, high], peaks marked; by name, if wanted."""
    shown = data.sel(alpha=slice(low, high))
    with style():
        figure = Figure(figsize=(4.6, 3.0))
        axes = figure.subplots()
        every = max(1, shown.sizes["alpha"] // 24)
        # Target tokens are drawn last, so that they stay visible where curves meet.
        for z in np.argsort(shown["in_target"].values, kind="stable"):
            token = shown.isel(token=z)
            colour = TARGET if token["in_target"] else OFF_TARGET
            axes.plot(token["alpha"], token["predicted"], color=colour)
            axes.plot(token["alpha"][::every], token["measured"][::every], color=colour, **DOTS)
        _mark_peaks(axes, shown, float(np.asarray(shown["predicted"].values).min()) if named else 0.0, named=named)
        axes.set(xlabel="steering strength $\\alpha$", ylabel="$\\Delta p(z \\mid c_j, \\alpha)$", xlim=(low, high))
        axes.set_title(data.attrs.get("steered", ""), fontsize=9)
        axes.axhline(0, color=INK, linewidth=0.6)
        handles = [
            Line2D([], [], color=TARGET, label="target tokens"),
            Line2D([], [], color=OFF_TARGET, label="off-target tokens"),
            _PREDICTED,
            _MEASURED,
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=0.9, handlelength=1.3)
    return figure


def _mark_peaks(axes: Axes, shown: xr.Dataset, below: float, *, named: bool) -> None:
    """A dotted line and the closed-form strength for every peak one can see; labels below a height, where no curve is."""
    low, high = float(shown["alpha"][0]), float(shown["alpha"][-1])
    inside = shown.isel(token=np.flatnonzero((shown["peak"] > low) & (shown["peak"] < high)))
    heights = [
        float(inside["predicted"].isel(token=k).sel(alpha=inside["peak"][k], method="nearest"))
        for k in range(inside.token.size)
    ]
    visible = [k for k in np.argsort(-np.abs(inside["peak"].values)) if abs(heights[k]) > 0.02]
    for rank, k in enumerate(visible):
        peak, foot = float(inside["peak"][k]), below - 0.08 - 0.09 * rank
        colour = TARGET if inside["in_target"][k] else OFF_TARGET
        axes.plot([peak, peak], [foot, heights[k]], color=colour, linewidth=0.9, linestyle=":", zorder=1)
        axes.plot(peak, heights[k], color=colour, marker="D", markersize=4)
        axes.annotate(
            f"{inside['token'].values[k]}: {peak:.2f}" if named else f"$\\alpha_{{j,z}} = {peak:.1f}$",
            (peak, foot),
            xytext=(3 if peak > 0 else -3, 0),
            textcoords="offset points",
            ha="left" if peak > 0 else "right",
            va="center",
            fontsize=8,
            color=colour,
        )


def concept_curves(data: xr.Dataset) -> Figure:
    """S, figure 4: Delta p of every concept, one for each behaviour of theorem 3.6."""
    behaviours = {
        "target": (TARGET, "target: rises"),
        "vanishing": (THIRD, "no extreme log-odds: one limit at both ends"),
        "decreasing": (OFF_TARGET, "lowest log-odds: falls"),
        "none": ("#999999", "none of the three"),
    }
    with style():
        figure = Figure(figsize=(4.6, 3.2))
        axes = figure.subplots()
        every = max(1, data.sizes["alpha"] // 32)
        handles: list[Line2D] = []
        for k in range(data.sizes["concept"]):
            concept = data.isel(concept=k)
            colour, label = behaviours[str(concept["behaviour"].values)]
            axes.plot(concept["alpha"], concept["predicted"], color=colour)
            axes.plot(concept["alpha"][::every], concept["measured"][::every], color=colour, **DOTS)
            handles.append(Line2D([], [], color=colour, label=f"{concept['concept'].item()} ({label})"))
            if concept["behaviour"] == "vanishing":
                axes.axhline(float(concept["limit"]), color=colour, linewidth=0.9, linestyle=":")
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(
            xlabel="steering strength $\\alpha$",
            ylabel="$\\Delta p(C \\mid c_j, \\alpha)$",
            xlim=(float(data["alpha"][0]), float(data["alpha"][-1])),
        )
        axes.set_title(data.attrs.get("steered", ""), fontsize=9)
        figure.legend(handles=[*handles, _PREDICTED, _MEASURED], loc="outside upper left", ncols=1)
    return figure


def cross_entropy(data: xr.Dataset) -> Figure:
    """S, figure 5: Delta CE and the quadratic of theorem 3.8."""
    with style():
        figure = Figure(figsize=(4.6, 3.0))
        axes = figure.subplots()
        every = max(1, data.sizes["alpha"] // 32)
        axes.plot(data["alpha"], data["quadratic"], color=INK, linestyle="--", linewidth=1.2)
        axes.plot(data["alpha"], data["predicted"], color=TARGET)
        axes.plot(data["alpha"][::every], data["measured"][::every], color=TARGET, **DOTS)
        coefficient = data.attrs["coefficient"]
        axes.legend(
            handles=[
                Line2D([], [], color=TARGET, label="$\\Delta\\mathrm{CE}(\\alpha)$, predicted"),
                Line2D([], [], color=TARGET, label="measured", **DOTS),
                Line2D(
                    [],
                    [],
                    color=INK,
                    linestyle="--",
                    linewidth=1.2,
                    label=f"theorem 3.8: ${coefficient:.3f}\\,\\alpha^2$",
                ),
            ],
            loc="upper center",
        )
        axes.set(
            xlabel="steering strength $\\alpha$",
            ylabel="$\\Delta\\mathrm{CE}(\\alpha)$ [nats]",
            xlim=(float(data["alpha"][0]), float(data["alpha"][-1])),
            ylim=(0, None),
        )
    return figure


def training(data: xr.Dataset) -> Figure:
    """S, appendix B.1: the loss falls onto the entropy of the corpus; the gap between them on a logarithmic scale."""
    names = {"gradient-descent": "gradient descent", "lbfgs": "L-BFGS", "adam": "Adam"}
    with style():
        figure = Figure(figsize=(6.6, 2.8))
        left, right = figure.subplots(1, 2)
        for colour, name in zip((TARGET, OFF_TARGET, THIRD), data["optimizer"].values, strict=False):
            run = data.sel(optimizer=name).dropna("step")
            label = names.get(str(name), str(name))
            left.plot(run["step"] + 1, run["loss"], color=colour, label=label)
            right.plot(run["step"] + 1, run["gap"], color=colour, label=label)
        entropy = data.attrs["entropy"]
        left.axhline(entropy, color=INK, linestyle="--", linewidth=1.0, label=f"entropy {entropy:.4f}")
        left.set(xscale="log", xlabel="step", ylabel="cross-entropy [nats]")
        right.set(xscale="log", yscale="log", xlabel="step", ylabel="gap to the entropy [nats]")
        left.legend()
    return figure


TOY_FIGURES: dict[str, Drawing] = {
    "figure-2": Drawing(
        "next-token-table",
        next_token_table,
        "S, figure 2",
        "Next-token probabilities after a lowercase context (solid) and an uppercase one (faint). "
        "A token is likelier after contexts of its own concept.",
    ),
    "figure-3": Drawing(
        "next-token-curves",
        lambda data: next_token_curves(data, 0.0, 60.0),
        "S, figure 3",
        "Probability increases for one context. Most tokens rise to a single peak, marked at the closed-form strength, and "
        "fall; the token of the highest log-odds rises for ever.",
    ),
    "figure-B.1": Drawing(
        "next-token-curves",
        lambda data: next_token_curves(data, -60.0, 0.0),
        "S, figure B.1",
        "The same context at negative strengths: off-target tokens peak, one of them keeps rising as the strength goes to "
        "minus infinity, and target tokens fade.",
    ),
    "figure-4": Drawing(
        "concept-curves",
        concept_curves,
        "S, figure 4",
        "Probability increases of whole concepts, for a context of the third. The target rises, the concept of the "
        "negatives falls, and the concept between the extremes loses all its probability at both ends (dotted: the limit).",
    ),
    "figure-5": Drawing(
        "cross-entropy",
        cross_entropy,
        "S, figure 5",
        "The cross-entropy increase is quadratic near 0, with the coefficient of theorem 3.8, and at most linear far out.",
    ),
    "training": Drawing(
        "training",
        training,
        "S, appendix B.1",
        "Training on the default corpus: the loss reaches the entropy of the corpus, its lower bound, and the gap goes on "
        "falling to the tolerance.",
    ),
}
"""Every toy figure, by the name of its files."""

CORPUS_FIGURES: dict[str, Drawing] = {
    "next-token-table": TOY_FIGURES["figure-2"],
    "next-token-curves": Drawing(
        "next-token-curves",
        lambda data: next_token_curves(data, 0.0, float(data["alpha"][-1]), named=True),
        "S, figure 3",
        "Probability increases for one context, with a single peak, or none, for every token.",
    ),
    "next-token-curves-below-0": Drawing(
        "next-token-curves",
        lambda data: next_token_curves(data, float(data["alpha"][0]), 0.0, named=True),
        "S, figure B.1",
        "The same context at negative strengths.",
    ),
    "concept-curves": TOY_FIGURES["figure-4"],
    "cross-entropy": TOY_FIGURES["figure-5"],
    "training": TOY_FIGURES["training"],
}
"""The toy figures of any corpus, by the name of their files."""

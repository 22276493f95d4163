"""The arc that a sweep traces behind a norm (N7, N8), drawn from the dataset of `sim.toy.arc`."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.figures.style import INK, Drawing, style

_COLOURS = ("#222222", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00")
"""Token 0 in ink, the others from blue to red along the arc."""


def arc(data: xr.Dataset) -> Figure:
    """Three panels: the half circle in the plane of h and v, logits by strength, probabilities by angle."""
    with style():
        figure = Figure(figsize=(10.2, 3.1))
        circle, logits, probabilities = figure.subplots(1, 3, width_ratios=(0.8, 1.1, 1.1))
        _plane(circle, data)
        _logits(logits, data)
        _probabilities(probabilities, data)
    return figure


def _plane(axes: Axes, data: xr.Dataset) -> None:
    theta = data["theta"].values
    axes.plot(np.cos(theta), np.sin(theta), color=INK, linewidth=1.2)
    axes.plot([1, 1], [-1.75, 1.75], color="#999999", linewidth=0.9)
    for t in np.linspace(-1.5, 1.5, 7):
        direction = np.array([1, t]) / np.hypot(1, t)
        axes.plot([0, 1], [0, t], color="#C8C8C8", linewidth=0.6, zorder=1)
        axes.plot(1, t, "o", color="#999999", markersize=2.5)
        axes.plot(*direction, "o", color=INK, markersize=3)
    for z, (x, y) in enumerate(zip(data["towards"].values, data["along"].values, strict=True)):
        axes.plot(1.3 * x, 1.3 * y, "D", color=_COLOURS[z % len(_COLOURS)], markersize=4.5)
        axes.annotate(f"$w_{z}$", (1.3 * x, 1.3 * y), xytext=(5, -2), textcoords="offset points", fontsize=8.5)
    axes.annotate(
        "$h + \\alpha v$", (1, 1.6), xytext=(-5, 0), textcoords="offset points", ha="right", va="center", color="#777777"
    )
    axes.set(aspect="equal", xlim=(-0.2, 1.65), ylim=(-1.85, 1.85), xlabel="across $v$", ylabel="along $v$")
    axes.set(xticks=[0, 1], yticks=[-1, 0, 1])
    axes.set_title("a  the plane of $h$ and $v$")


def _logits(axes: Axes, data: xr.Dataset) -> None:
    centre, width = data.attrs["centre"], data.attrs["width"]
    reach = 8.0
    alpha = (data["alpha"].values - centre) / width
    near = np.abs(alpha) < reach
    strengths = (data["strength"].values - centre) / width
    shown = np.abs(strengths) < reach
    for z in range(data.sizes["token"]):
        colour = _COLOURS[z % len(_COLOURS)]
        axes.plot(alpha[near], data["predicted"].values[near, z], color=colour)
        axes.plot(
            strengths[shown],
            data["measured"].values[shown, z],
            linestyle="none",
            marker="o",
            markersize=3,
            markerfacecolor="white",
            markeredgewidth=0.8,
            color=colour,
        )
        for side, plateau in ((-1, "plateau_low"), (1, "plateau_high")):
            level = float(data[plateau].values[z])
            axes.plot([side * 5.2, side * reach], [level, level], color=colour, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set(xlabel="$(\\alpha - m_0) / \\sqrt{L}$", ylabel="logit", xlim=(-reach, reach))
    axes.set_title("b  the law and its plateaus")


def _probabilities(axes: Axes, data: xr.Dataset) -> None:
    for z in range(data.sizes["token"]):
        colour, count = _COLOURS[z % len(_COLOURS)], int(data["bumps"].values[z])
        label = f"{z}: {count} bump{'s' if count != 1 else ''}"
        axes.plot(data["theta"].values, data["probability"].values[:, z], color=colour, label=label)
    axes.set(xlabel="angle $\\theta$", ylabel="probability", xlim=(-np.pi / 2, np.pi / 2), yscale="log", ylim=(1e-19, 10))
    axes.set_xticks([-np.pi / 2, -np.pi / 4, 0, np.pi / 4, np.pi / 2])
    axes.set_xticklabels(["$-\\pi/2$", "$-\\pi/4$", "$0$", "$\\pi/4$", "$\\pi/2$"])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1.0, handlelength=1.2)
    axes.set_title("c  next-token probabilities")


ARC_FIGURES: dict[str, Drawing] = {
    "arc": Drawing(
        "arc",
        arc,
        "N7 and N8",
        "Steering before a norm. Along a straight line of hidden states the norm sees directions on half a circle; logits "
        "follow a rational-quadratic law (circles: measured) to plateaus (dotted) that the direction of v alone decides. "
        "Token 0 loses to each of the others in turn, and gains a little where two of them are even: it has four bumps.",
    ),
}
"""The figures of `sim.toy.arc`, by the name of their files."""

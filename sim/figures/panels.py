"""What figures of a run share: panels for the data at hand, an axis of strengths, means and shares with error bars."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.figures.style import LAYERS
from sim.measure.intervals import wilson

MARK: dict[str, Any] = {"markersize": 3.2, "markerfacecolor": "white", "markeredgewidth": 0.8}
"""Points with error bars."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STRENGTH = "steering strength $\\alpha$"
"""The name of an axis of factors of the vector."""


def strength_of(data: xr.Dataset) -> str:
    """The name of the axis of the strengths of a dataset, with their unit if that is not the vector itself."""
    unit = data["alpha"].attrs.get("units", "")
    return f"strength, {unit}" if unit.startswith("lengths") else STRENGTH


class NothingToDrawError(ValueError):
    """Nothing of what a figure shows has been computed."""


class Panel(NamedTuple):
    """A panel of a figure.

    Attributes:
        row, column: what it is about.
        content: what is drawn.
        axes: where.
    """

    row: Any
    column: Any
    content: Any
    axes: Axes


def labels(data: xr.Dataset, dim: str) -> list[Any]:
    """The labels along a dimension."""
    return data[dim].values.tolist()


def table(
    rows: Iterable[Any],
    columns: Iterable[Any],
    find: Callable[[Any, Any], Any],
    *,
    size: tuple[float, float],
    x: str = STRENGTH,
    y: str = "",
) -> tuple[Figure, list[Panel]]:
    """A figure with a panel wherever there is something to draw.

    Args:
        rows, columns: what they are about; those without a panel are left out.
        find: from these to what is drawn, or None.
        size: of a panel, in inches.
        x, y: labels of the outer axes.

    Raises:
        NothingToDrawError: no panel.
    """
    rows, columns = list(rows), list(columns)
    contents = {(row, column): content for row in rows for column in columns if (content := find(row, column)) is not None}
    kept = [
        [label for label in labels if any(key[k] == label for key in contents)] for k, labels in enumerate((rows, columns))
    ]
    places = [(kept[0].index(row), kept[1].index(column)) for row, column in contents]
    figure, axes = _placed(places, size, x, y)
    return figure, [
        Panel(*key, content, panel_axes) for (key, content), panel_axes in zip(contents.items(), axes, strict=True)
    ]


def wrapped(
    names: Iterable[Any],
    find: Callable[[Any], Any],
    *,
    size: tuple[float, float],
    x: str = STRENGTH,
    y: str = "",
    most: int = 4,
) -> tuple[Figure, list[Panel]]:
    """A figure with one panel for each name, at most `most` side by side.

    Args:
        names: what the panels are about; those without content are left out.
        find: from a name to what is drawn, or None.
        size: of a panel, in inches.
        x, y: labels of the outer axes.
        most: panels side by side.

    Raises:
        NothingToDrawError: no panel.
    """
    contents = {name: content for name in names if (content := find(name)) is not None}
    across = -(-len(contents) // max(1, -(-len(contents) // most)))
    figure, axes = _placed([divmod(k, across) for k in range(len(contents))], size, x, y)
    return figure, [
        Panel(name, None, content, panel_axes) for (name, content), panel_axes in zip(contents.items(), axes, strict=True)
    ]


def _placed(places: list[tuple[int, int]], size: tuple[float, float], x: str, y: str) -> tuple[Figure, list[Axes]]:
    if not places:
        raise NothingToDrawError("data must hold something that the figure shows, got nothing that has been computed")
    height, width = (1 + max(place[k] for place in places) for k in (0, 1))
    figure = Figure(figsize=(size[0] * width, size[1] * height))
    cells = figure.add_gridspec(height, width)
    axes = [figure.add_subplot(cells[place]) for place in places]
    for (row, column), panel_axes in zip(places, axes, strict=True):
        if row == max(r for r, c in places if c == column):
            panel_axes.set_xlabel(x)
        if column == min(c for r, c in places if r == row):
            panel_axes.set_ylabel(y)
    figure.align_ylabels()
    return figure, axes


def layer_colours(layers: Iterable[Any]) -> dict[int, str]:
    """A colour for each layer, from early to last."""
    numbers = [int(layer) for layer in layers]
    count = len(numbers)
    shades = LAYERS if count <= 3 else [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.9, count))]
    return dict(zip(numbers, shades, strict=False))


def linear_width(alphas: Float[np.ndarray, " K"]) -> float:
    """The strength up to which steps are about even, so that they are even on an asinh axis; inf if all are.

    Strengths are ``w sinh(t), w sinh(2 t), ...``, or all steps are the same.
    """
    above = alphas[alphas > 0]
    if above.size < 2:
        return np.inf
    ratio = above[1] / (2 * above[0])
    return float(above[0] / np.sqrt(ratio**2 - 1)) if ratio > 1 + 1e-6 else np.inf


def strength_axis(
    axes: Axes, alphas: Float[np.ndarray, " K"], low: float, high: float, *, margin: float = 0.0, room: float = 0.1
) -> None:
    """The x axis for strengths: on it the steps are even, whether they are of the same size or grow.

    Args:
        axes: to change.
        alphas: the strengths of the run.
        low, high: what the axis reaches to.
        margin: beyond either of them, as a share of the axis.
        room: between ticks, at least, as a share of the axis.
    """
    low, high = widened(linear_width(alphas), low, high, margin)
    stretch(axes, "x", linear_width(alphas), low, high, room)


def stretch(axes: Axes, which: Literal["x", "y"], width: float, low: float, high: float, room: float) -> None:
    """Make an axis an asinh axis with round ticks, unless its width is inf, and set its ends.

    Args:
        axes: of a panel.
        which: axis.
        width: the value up to which the axis is about linear, or inf.
        low, high: its ends.
        room: share of the axis between two ticks, at least.
    """
    if np.isfinite(width):
        ticks = nice_ticks(width, low, high, room)
        {"x": axes.set_xscale, "y": axes.set_yscale}[which]("asinh", linear_width=width)
        axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
        axis.set_ticks(ticks, labels=[tick_label(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    getattr(axes, f"set_{which}lim")(low, high)


def widened(width: float, low: float, high: float, margin: float) -> tuple[float, float]:
    """Ends of an asinh axis (of a linear one if its width is inf), moved outwards by a share of it."""
    if not np.isfinite(width):
        return low - margin * (high - low), high + margin * (high - low)
    ends = np.arcsinh(np.array([low, high]) / width)
    moved = width * np.sinh(ends + margin * (ends[1] - ends[0]) * np.array([-1, 1]))
    return float(moved[0]), float(moved[1])


def nice_ticks(width: float, low: float, high: float, room: float) -> list[float]:
    """Round numbers from low to high, 0 among them, that are `room` of an asinh axis apart."""
    far, apart = max(abs(low), abs(high)) * (1 + 1e-9), room * (np.arcsinh(high / width) - np.arcsinh(low / width))
    decades = 10.0 ** np.arange(np.floor(np.log10(width)), np.ceil(np.log10(far)) + 1)
    ticks = [0.0]
    for steps in ((1, 2, 5), (1, 3), (1,)):
        above = [0.0, *(step * decade for decade in decades for step in steps if 0.8 * width <= step * decade <= far)]
        if steps == (1,):
            above = _thinned(above, width, apart)
        both = [*(-value for value in above[:0:-1]), *above]
        ticks = [tick for tick in both if low * (1 + 1e-9) <= tick <= high * (1 + 1e-9)]
        if (np.diff(np.arcsinh(np.array(ticks) / width)) >= apart).all():
            break
    return ticks


def _thinned(values: list[float], width: float, apart: float) -> list[float]:
    kept = values[:1]
    for value in values[1:]:
        if np.arcsinh(value / width) - np.arcsinh(kept[-1] / width) >= apart:
            kept.append(value)
    return kept


def tick_label(value: float) -> str:
    """A number as a label of a tick."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def even_between(alphas: Float[np.ndarray, " K"], low: float, high: float, count: int = 201) -> Float[np.ndarray, " n"]:
    """Strengths that are even on the axis of a run."""
    width = linear_width(alphas)
    if not np.isfinite(width):
        return np.linspace(low, high, count)
    return width * np.sinh(np.linspace(np.arcsinh(low / width), np.arcsinh(high / width), count))


class ErrorBars(NamedTuple):
    """Values along a sweep, NaN where there are none, and how far error bars go down and up.

    Attributes:
        value, below, above: of every strength.
    """

    value: Float[np.ndarray, " K"]
    below: Float[np.ndarray, " K"]
    above: Float[np.ndarray, " K"]


def mean(values: Float[np.ndarray, "K n"]) -> ErrorBars:
    """Means of what is not NaN, and their standard errors; no error bar for one value."""
    finite = np.isfinite(values)
    n = finite.sum(axis=1)
    average = np.where(n > 0, np.where(finite, values, 0).sum(axis=1) / np.maximum(n, 1), np.nan)
    squares = np.where(finite, (values - average[:, None]) ** 2, 0).sum(axis=1)
    error = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1)), 0.0)
    return ErrorBars(average, error, error)


def share(hits: Bool[np.ndarray, "K n"], asked: Bool[np.ndarray, "K n"]) -> ErrorBars:
    """Shares of hits among those asked, with intervals of Wilson that have the weight of one standard error."""
    n, right = asked.sum(axis=1), (hits & asked).sum(axis=1)
    value = np.where(n > 0, right / np.maximum(n, 1), np.nan)
    low, high = wilson(right, n, 1.0)
    return ErrorBars(value, *(np.where(n > 0, bar, 0.0) for bar in (value - low, high - value)))


def points(axes: Axes, alphas: Float[np.ndarray, " K"], estimate: ErrorBars, **look: Any) -> None:
    """Points with error bars; of a long sweep, some of them."""
    every = max(1, alphas.size // 40)
    bars = np.stack([estimate.below, estimate.above])
    kept = np.isfinite(estimate.value)
    kept[np.arange(alphas.size) % every != (alphas.size // 2) % every] = False
    axes.errorbar(alphas[kept], estimate.value[kept], yerr=bars[:, kept], elinewidth=0.7, linestyle="none", **look)


def layer_looks(layers: Iterable[Any]) -> dict[int, dict[str, Any]]:
    """Colour and marker of each layer."""
    shades = layer_colours(layers)
    return {
        layer: MARK | {"color": shade, "marker": _MARKERS[k % len(_MARKERS)]}
        for k, (layer, shade) in enumerate(shades.items())
    }


def layer_legend(figure: Figure, layers: Iterable[Any], more: Iterable[Line2D] = ()) -> None:
    """A legend of layers, and of what else there is."""
    looks = layer_looks(layers)
    handles = [Line2D([], [], linestyle="none", label=f"block {layer}", **look) for layer, look in looks.items()]
    legend_below(figure, [*handles, *more])


def legend_below(figure: Figure, handles: list[Line2D]) -> None:
    """A legend under all panels, in as many columns as there is room for."""
    inches = 0.55 + 0.068 * max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.0, handlelength=1.4)

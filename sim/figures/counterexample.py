"""The figure of a counterexample: what steering does in some contexts of the table, and the table in fractions."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from sim.figures.style import INK, OFF_TARGET, TARGET, style

_SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#8FA9BD"])

_BROKEN = "#D55E00"
"""Vermilion of the palette: where a claim fails."""

_LONGEST = 7
"""Fractions of more characters than this are shown as decimals."""

_DECIMALS = 6
"""How many decimals are shown of a number that has many: rows add up to 1 as closely."""


def counterexample(data: xr.Dataset) -> Figure:
    """Left, next-token probabilities along the strength in the contexts that matter; right, the table.

    Strengths at which an inequality of the claim fails are shaded; where none are, the title says why. Entries that the
    margin depends on most are framed.

    Args:
        data: from `sim.checks.counterexample.describe`.
    """
    shown = data.isel(context=np.flatnonzero(data["shown"]))
    count = shown.sizes["context"]
    with style():
        figure = Figure(figsize=(7.2, 1.9 + max(1.2 * count, 0.42 * (2 + data.sizes["context"]))))
        figure.suptitle(_title(data), x=0.01, ha="left", fontsize=10)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15))[0]
        panels = left.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        for axes, k in zip(panels, range(count), strict=True):
            _curves(axes, shown.isel(context=k), failing(data))
        in_units = ", in units of $1/R$" if data["alpha"].attrs["units"] == "1/R" else ""
        panels[-1].set_xlabel(f"steering strength $\\alpha${in_units}")
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=TARGET, label="target tokens"),
            Line2D([], [], color=OFF_TARGET, label="off-target tokens"),
            Patch(facecolor="none", edgecolor=_BROKEN, label="margin depends most on"),
        ]
        if data["fails"].any():
            handles.append(Patch(facecolor=_BROKEN, alpha=0.18, label="claim fails"))
        figure.legend(handles=handles, loc="outside lower left", ncols=4, columnspacing=1.2, handlelength=1.3)
        _table(right.subplots(), data)
    return figure


def failing(data: xr.Dataset) -> list[tuple[float, float]]:
    """The ranges of strengths at which an inequality of the claim fails, from the least to the largest of each."""
    edges = np.diff(data["fails"].values.astype(int), prepend=0, append=0)
    alphas = data["alpha"].values
    return [
        (float(alphas[first]), float(alphas[end - 1]))
        for first, end in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True)
    ]


def shown_numbers(data: xr.Dataset) -> list[list[str]]:
    """The probabilities as fractions, or as decimals where one of the fractions is long, ``[context][token]``.

    A decimal is exact if it is short, and otherwise so close that rows add up to 1 to `_DECIMALS` decimals.
    """
    fractions = data["fraction"].values
    if max(len(text) for text in fractions.ravel()) <= _LONGEST:
        return fractions.tolist()
    return [[_shortened(text) for text in row] for row in fractions]


def _shortened(text: str) -> str:
    """A fraction as an exact decimal, if that is short, or as it is, if that is; otherwise rounded, but never to 0 or 1."""
    exact = Fraction(text)
    decimal = f"{Decimal(exact.numerator) / Decimal(exact.denominator):f}"
    if len(decimal) <= _DECIMALS + 2 and Fraction(decimal) == exact:
        return decimal
    if len(text) <= _LONGEST:
        return text
    rest = 1 - exact
    if rest < Fraction(1, 10**_DECIMALS):
        return f"1-{float(rest):.1e}"
    return f"{float(exact):.{_DECIMALS}f}" if exact >= Fraction(1, 10**4) else f"{float(exact):.1e}"


def _title(data: xr.Dataset) -> str:
    value = f"{data.attrs['margin']:+.4g}".replace("-", "\N{MINUS SIGN}")
    required = f"A margin above 0 is required; here it is {value}."
    return "\n".join(filter(None, [f"Counterexample to {data.attrs['name']}", required, data.attrs["unmarked"]]))


def _curves(axes: Axes, context: xr.Dataset, fails: list[tuple[float, float]]) -> None:
    alphas, curves = context["alpha"].values, context["curve"].values
    # Target tokens are drawn last, and dashed where they share a curve with others, so that both stay visible.
    for z in np.argsort(context["in_target"].values, kind="stable").tolist():
        mixed = context["in_target"][z] and len({_colour(context, y) for y in _sharing(curves, z)}) > 1
        axes.plot(alphas, curves[:, z], color=_colour(context, z), linewidth=1.4, dashes=(4, 4) if mixed else ())
    axes.axvline(0, color=INK, linewidth=0.6)
    step = float(alphas[1] - alphas[0])
    for low, high in fails:
        axes.axvspan(low - step / 2, high + step / 2, color=_BROKEN, alpha=0.18, linewidth=0)
    axes.set(
        xlim=(alphas[0], alphas[-1]),
        xticks=np.linspace(alphas[0], alphas[-1], 5),
        ylim=(-0.03, 1.2),
        yticks=(0, 0.5, 1),
        ylabel="$\\sigma_z(\\alpha)$",
    )
    axes.set_title(_name(context), fontsize=9, pad=3)
    _name_curves(axes, context)


def _name_curves(axes: Axes, context: xr.Dataset) -> None:
    """A label at the top of every curve that one can see; tokens of one curve share it."""
    alphas, curves = context["alpha"].values, context["curve"].values
    edge = 0.93 * alphas[-1]
    for z in range(curves.shape[1]):
        same = _sharing(curves, z)
        top = np.abs(alphas - np.clip(alphas[curves[:, z].argmax()], -edge, edge)).argmin()
        height = curves[top, z]
        above = np.delete(curves[top], same) - height
        crowded = ((above > -0.02) & (above < 0.2)).any()
        colours = {_colour(context, y) for y in same}
        side = "left" if alphas[top] < -edge / 2 else "right" if alphas[top] > edge / 2 else "center"
        if z == same[0] and height > 0.08 and not crowded:
            axes.annotate(
                f"${','.join(map(str, same))}$",
                (alphas[top], height),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha=side,
                va="bottom",
                fontsize=7.5,
                color=colours.pop() if len(colours) == 1 else INK,
            )


def _sharing(curves: np.ndarray, z: int) -> list[int]:
    """The tokens whose curves one cannot tell from that of z, z among them."""
    return [y for y in range(curves.shape[1]) if np.allclose(curves[:, y], curves[:, z], atol=1e-3)]


def _table(axes: Axes, data: xr.Dataset) -> None:
    """Probabilities as shaded cells, one row for each context, and the log-odds below."""
    p, log_odds = data["probability"].values, data["log_odds"].values
    rows, columns = p.shape
    axes.imshow(np.vstack([p, np.zeros(columns)]), cmap=_SHADES, vmin=0, vmax=max(0.5, p.max()), aspect="auto")
    for (j, z), text in np.ndenumerate(np.vstack([shown_numbers(data), [[f"${x:+.2f}$" for x in log_odds]]])):
        axes.text(z, j, str(text), ha="center", va="center", fontsize=7 if columns > 4 else 9, color=INK)
    for j, z in np.argwhere(data["weighs"].values > 0.5):
        axes.add_patch(Rectangle((z - 0.46, j - 0.46), 0.92, 0.92, fill=False, edgecolor=_BROKEN, linewidth=1.2))
    axes.axhline(rows - 0.5, color=INK, linewidth=0.7)
    axes.set_yticks(range(rows + 1), [*(_name(data.isel(context=k)) for k in range(rows)), "$M(z)$"])
    concepts = data["concept_of_token"].values
    axes.set_xticks(
        range(columns),
        [f"${z}$\nconcept {concepts[z]}" if columns <= 4 else f"${z}$\n{concepts[z]}" for z in range(columns)],
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for z, tick in enumerate(axes.xaxis.get_major_ticks()):
        tick.label2.set_color(_colour(data, z))
    axes.set_title("$p_j(z)$ of token $z$" + (", and its concept" if columns > 4 else ""), pad=4)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _colour(data: xr.Dataset, z: int) -> str:
    return TARGET if data["in_target"][z] else OFF_TARGET


def _name(context: xr.Dataset) -> str:
    """The contexts of a row, their concept, and whether they are of P or N."""
    contexts = ", ".join(f"$c_{j}$" for j in context["context"].item().split(", "))
    role = context["role"].item()
    return f"{contexts}, concept {context['concept'].item()}{f', ${role}$' if role else ''}"

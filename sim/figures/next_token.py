"""Next-token curves of a run (S, figures 6, A.1 to A.3, A.5 and A.7 to A.10), and what the theory says of them.

A dataset is the group "next-token" of a run's store with one more variable: `word`, the texts of `token`. What has not
been computed is left out, and so are panels with nothing in them.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.figures.panels import (
    Panel,
    labels,
    layer_colours,
    legend_below,
    linear_width,
    strength_axis,
    strength_of,
    stretch,
    table,
    widened,
    wrapped,
)
from sim.figures.style import DOTS, INK, KINDS, SPREAD, TARGET, style, word_labels
from sim.measure.curves import shapes

SHOWN = len(SPREAD)
"""Tokens in a panel."""

ASKED = ("#AA3377", "#882255", "#CC6677", "#661100")
"""Colours of tokens that were asked for, none of which `SPREAD` has."""

_SIZE = (3.5, 2.1)
_INCREASE = "$\\Delta p(z \\mid c, \\alpha)$"
_VARIANTS = ("normalised", "last-token", "contrastive")
"""The order of S, figures A.1, A.2 and A.5."""


class Curves(NamedTuple):
    """Increases of a few tokens along a sweep, the likeliest first.

    Attributes:
        alphas: strengths.
        words: of the tokens.
        increase: of their probabilities.
        spread: standard deviation of the increase, if it is a mean.
        asked: how many of the tokens, the last ones, were asked for; the others are the likeliest.
    """

    alphas: Float[np.ndarray, " K"]
    words: list[str]
    increase: Float[np.ndarray, "K n"]
    spread: Float[np.ndarray, "K n"] | None = None
    asked: int = 0


class Bumps(NamedTuple):
    """The tokens with a single bump, after one context.

    Attributes:
        log_odds: of each.
        place: the strength of its bump, in units of `scale`.
    """

    log_odds: Float[np.ndarray, " n"]
    place: Float[np.ndarray, " n"]


def next_tokens(data: xr.Dataset) -> Figure:
    """S, figures 6 and A.7 to A.9: increases of the likeliest tokens at the largest strength, by concept and layer."""
    return _by_layer(data, -1)


def next_tokens_below(data: xr.Dataset) -> Figure:
    """S, figure A.10: increases, at strengths below 0, of the likeliest tokens at the lowest strength."""
    return _by_layer(data, 0)


def _by_layer(data: xr.Dataset, end: int) -> Figure:
    main = labels(data, "variant")[0]
    with style():
        figure, panels = table(
            labels(data, "concept"),
            labels(data, "layer"),
            lambda name, layer: curves(data.sel(variant=main, concept=name, layer=layer), end),
            size=_SIZE,
            x=strength_of(data),
            y=_INCREASE,
        )
        for panel in panels:
            _draw(panel, f"{panel.row}, block {panel.column}", end)
    return figure


def variants(data: xr.Dataset) -> Figure:
    """S, figures A.1, A.2 and A.5: increases of the likeliest tokens under other ways to steer, at the middle layer."""
    names = [name for name in labels(data, "variant")[1:] if not _is_resample(name)]
    order = sorted(names, key=lambda name: _VARIANTS.index(name) if name in _VARIANTS else len(_VARIANTS))

    def find(name: str, variant: str) -> tuple[int, Curves] | None:
        sweeps = data.sel(concept=name, variant=variant)
        layer = _only_layer(sweeps)
        lines = None if layer is None else curves(sweeps.sel(layer=layer), -1)
        return None if layer is None or lines is None else (layer, lines)

    with style():
        figure, panels = table(labels(data, "concept"), order, find, size=_SIZE, x="strength", y=_INCREASE)
        for panel in panels:
            layer, lines = panel.content
            _draw(panel._replace(content=lines), f"{panel.row}, {panel.column}, block {layer}", -1)
    return figure


def resamples(data: xr.Dataset) -> Figure:
    """S, figure A.3: mean and standard deviation over vectors from bootstrap samples, at the middle layer."""
    names = [name for name in labels(data, "variant") if _is_resample(name)]

    def find(name: str) -> tuple[int, Curves] | None:
        sweeps = data.sel(concept=name, variant=names)
        layer = _only_layer(sweeps) if names else None
        lines = None if layer is None else over_resamples(sweeps.sel(layer=layer))
        return None if layer is None or lines is None else (layer, lines)

    with style():
        figure, panels = wrapped(labels(data, "concept"), find, size=_SIZE, x=strength_of(data), y=_INCREASE)
        for panel in panels:
            layer, lines = panel.content
            _draw(panel._replace(content=lines), f"{panel.row}, block {layer}", -1)
    return figure


def curves(sweeps: xr.Dataset, end: int, count: int = SHOWN) -> Curves | None:
    """The increases of the tokens that are likeliest at one end of a sweep, and of those asked for, after the first context.

    Args:
        sweeps: of one variant, concept and layer.
        end: -1 for the largest strength, 0 for the lowest.
        count: of the likeliest tokens, at most.

    Returns:
        None where nothing has been computed.
    """
    first = sweeps.isel(context=0)
    log_p, tokens = first["log_p"].values.astype(float), first["token"].values
    if not np.isfinite(log_p).all():
        return None
    order = np.argsort(-log_p[end], kind="stable")
    # A token may be among the likeliest at both ends.
    top = order[np.sort(np.unique(tokens[order], return_index=True)[1])][:count]
    increase = np.exp(log_p[:, top]) - np.exp(first["start"].values.astype(float)[top])
    words = list(first["word"].values[top])
    if "asked" in first.dims:
        own = [k for k, word in enumerate(first["asked"].values) if word not in words]
        rows, start = (first[name].values.astype(float)[..., own] for name in ("asked_log_p", "asked_start"))
        increase = np.concatenate([increase, np.exp(rows) - np.exp(start)], axis=1)
        words += list(first["asked"].values[own])
    return Curves(first["alpha"].values, word_labels(words), increase, asked=len(words) - len(top))


def over_resamples(data: xr.Dataset, count: int = SHOWN) -> Curves | None:
    """Mean and standard deviation over variants; of a token, over those that have kept it, which are at least two.

    Args:
        data: of one concept and layer; its variants are the bootstrap samples.
        count: tokens, at most.

    Returns:
        None where fewer than two have been computed.
    """
    increases: dict[int, list[Float[np.ndarray, " K"]]] = {}
    ends: dict[int, list[float]] = {}
    words: dict[int, str] = {}
    first = data.isel(context=0)
    for k in range(data.sizes["variant"]):
        sweep = first.isel(variant=k)
        p, start = np.exp(sweep["log_p"].values.astype(float)), np.exp(sweep["start"].values.astype(float))
        if not np.isfinite(p).all():
            continue
        for token, slot in zip(*np.unique(sweep["token"].values, return_index=True), strict=True):
            increases.setdefault(int(token), []).append(p[:, slot] - start[slot])
            ends.setdefault(int(token), []).append(float(p[-1, slot]))
            words[int(token)] = str(sweep["word"].values[slot])
    several = [token for token, rows in increases.items() if len(rows) > 1]
    if not several:
        return None
    top = sorted(several, key=lambda token: -np.mean(ends[token]))[:count]
    rows = [np.stack(increases[token]) for token in top]
    return Curves(
        first["alpha"].values[0],
        word_labels(words[token] for token in top),
        np.stack([row.mean(axis=0) for row in rows], axis=1),
        np.stack([row.std(axis=0, ddof=1) for row in rows], axis=1),
    )


def _draw(panel: Panel, title: str, end: int) -> None:
    axes, lines = panel.axes, panel.content
    shown = lines.alphas >= 0 if end else lines.alphas <= 0
    alphas = lines.alphas[shown]
    likeliest = len(lines.words) - lines.asked
    for rank, word in enumerate(lines.words):
        line = lines.increase[shown, rank]
        colour = SPREAD[rank % len(SPREAD)] if rank < likeliest else ASKED[(rank - likeliest) % len(ASKED)]
        if lines.spread is not None:
            around = lines.spread[shown, rank]
            axes.fill_between(alphas, line - around, line + around, color=colour, alpha=0.2, linewidth=0)
        axes.plot(alphas, line, color=colour, linewidth=1.3, linestyle="-" if rank < likeliest else "--", label=word)
    axes.axhline(0, color=INK, linewidth=0.6)
    strength_axis(axes, lines.alphas, *((0.0, alphas[-1]) if end else (alphas[0], 0.0)), room=0.12)
    axes.set_title(title)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5, handlelength=1.0, handletextpad=0.4, labelspacing=0.3
    )


def _is_resample(name: object) -> bool:
    return str(name).startswith("resampled")


def _only_layer(sweeps: xr.Dataset) -> int | None:
    """The first layer with computed values. All variants but the first have values at the middle layer alone."""
    computed = np.isfinite(sweeps["log_p"].transpose("layer", ...).values)
    layers = sweeps["layer"].values[computed.reshape(len(computed), -1).any(axis=1)]
    return int(layers[0]) if layers.size else None


def bump_shares(data: xr.Dataset) -> Figure:
    """S, theorem 3.3 on a real model: which share of the likeliest tokens has one bump, none, several.

    `data` has `share` over variant, concept, layer and kind, NaN where nothing has been computed.
    """
    shares, main = data["share"], labels(data, "variant")[0]
    bars: list[tuple[int, str, xr.DataArray]] = [
        (0, f"block {layer}", shares.sel(layer=layer, variant=main)) for layer in labels(data, "layer")
    ]
    others: dict[str, list[str]] = {}
    for name in labels(data, "variant")[1:]:
        others.setdefault("resampled" if _is_resample(name) else str(name), []).append(name)
    for label, names in others.items():
        for layer in labels(data, "layer"):
            bars.append((1, f"block {layer}, {label}", shares.sel(layer=layer, variant=names).mean("variant")))
    bars = [bar for bar in bars if np.isfinite(bar[2]).any()]
    heights = [-k - 0.5 * group for k, (group, _, _) in enumerate(bars)]
    with style():
        figure, panels = wrapped(
            labels(data, "concept"),
            lambda name: shares.sel(concept=name) if np.isfinite(shares.sel(concept=name)).any() else None,
            size=(3.4, 0.8 + 0.2 * len(bars)),
            x="share of the likeliest tokens",
        )
        for name, _, _, axes in panels:
            for y, (_, _, values) in zip(heights, bars, strict=True):
                parts = values.sel(concept=name).values
                if np.isfinite(parts).all():
                    axes.barh(y, parts, left=np.cumsum(parts) - parts, color=KINDS, height=0.75)
            axes.set(xlim=(0, 1), ylim=(heights[-1] - 0.6, 0.6), title=str(name))
            place = axes.get_subplotspec()
            leftmost = place is None or place.colspan.start == 0
            axes.set_yticks(heights, [label if leftmost else "" for _, label, _ in bars])
            axes.grid(axis="y", visible=False)
        handles = [Patch(color=colour, label=str(kind)) for colour, kind in zip(KINDS, labels(data, "kind"), strict=True)]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def peak_places(data: xr.Dataset) -> Figure:
    """S, theorem 3.3: where the only bump of a token is, against its log-odds; first variant, all contexts.

    Strengths are in units of `scale`, lengths of the hidden state.
    """
    main = data.sel(variant=labels(data, "variant")[0])
    width = linear_width(main["alpha"].values)
    with style():
        figure, panels = table(
            labels(data, "concept"),
            labels(data, "layer"),
            lambda name, layer: single_bumps(main.sel(concept=name, layer=layer)) or None,
            size=(3.0, 2.5),
            x="log-odds of the token",
            y="place of the bump, $\\alpha \\|v\\| / \\|h\\|$",
        )
        for name, layer, bumps, axes in panels:
            for odds, places in bumps:
                axes.plot(odds, places, color=TARGET, **(DOTS | {"alpha": 0.8}))
            axes.axhline(0, color=INK, linewidth=0.6)
            axes.axvline(0, color=INK, linewidth=0.6)
            scale = float(np.nanmedian(main["scale"].sel(concept=name, layer=layer)))
            every = np.concatenate([[0.0], *(places for _, places in bumps)])
            low, high = widened(width / scale, float(every.min()), float(every.max()), 0.07)
            if low < high:
                stretch(axes, "y", width / scale, low, high, 0.08)
            axes.set_title(f"{name}, block {layer}")
    return figure


def single_bumps(sweeps: xr.Dataset) -> list[Bumps]:
    """Log-odds and places, in units of `scale`, of the tokens with one bump; for every context that has some.

    Args:
        sweeps: of one variant, concept and layer.
    """
    alphas, bumps = sweeps["alpha"].values, []
    for k in range(sweeps.sizes["context"]):
        after = sweeps.isel(context=k)
        p = np.exp(after["log_p"].values.astype(float))
        if not np.isfinite(p).all():
            continue
        slots = np.unique(after["token"].values, return_index=True)[1]
        shaped = shapes(p[:, slots].T)
        if shaped.single.any():
            odds = after["log_odds"].values.astype(float)[slots[shaped.single]]
            bumps.append(Bumps(odds, alphas[shaped.place[shaped.single]] / float(after["scale"])))
    return bumps


def dominant_log_odds(data: xr.Dataset) -> Figure:
    """The percentiles of the log-odds of the tokens that are likeliest at the largest strength, by concept and layer.

    `data` has `percentile` from 0 to 100 over concept, layer and rank (the likeliest token first); NaN for none.
    """
    values = data["percentile"]
    colours = layer_colours(labels(data, "layer"))
    with style():
        figure, panels = wrapped(
            labels(data, "concept"),
            lambda name: ranks if np.isfinite(ranks := values.sel(concept=name).values).any() else None,
            size=(2.6, 2.8),
            x="steered after block",
            y="percentile of log-odds",
        )
        for name, _, percentiles, axes in panels:
            for at, (layer, ranks) in enumerate(zip(labels(data, "layer"), percentiles, strict=True)):
                across = at + np.linspace(-0.3, 0.3, ranks.size) if ranks.size > 1 else np.array([at])
                look = DOTS | {"color": colours[int(layer)]}
                axes.plot(across, ranks, **look)
                axes.plot(across[:1], ranks[:1], **(look | {"markerfacecolor": colours[int(layer)]}))
                if np.isfinite(ranks).any():
                    axes.plot([at - 0.4, at + 0.4], [np.nanmedian(ranks)] * 2, color=INK, linewidth=1.0)
            axes.set(xlim=(-0.6, len(percentiles) - 0.4), ylim=(-3, 103), title=str(name))
            axes.set_xticks(range(len(percentiles)), [str(layer) for layer in labels(data, "layer")])
            axes.grid(axis="x", visible=False)
        handles = [
            Line2D([], [], color=INK, label="likeliest token", **(DOTS | {"markerfacecolor": INK})),
            Line2D([], [], color=INK, label="the next ones", **DOTS),
            Line2D([], [], color=INK, linewidth=1.0, label="median"),
        ]
        legend_below(figure, handles)
    return figure

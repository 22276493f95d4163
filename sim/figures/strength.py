"""The figures of S on real models, each from one dataset of `sim.experiments.strength.page.datasets`.

What has not been computed is left out; a figure of which there is nothing raises `NothingToDrawError`.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.figures import next_token
from sim.figures.panels import (
    MARK,
    ErrorBars,
    even_between,
    labels,
    layer_legend,
    layer_looks,
    legend_below,
    mean,
    points,
    share,
    strength_axis,
    strength_of,
    table,
    wrapped,
)
from sim.figures.style import DOTS, INK, OFF_TARGET, TARGET, Drawing, style
from sim.measure.curves import Sigmoid

MEASURES = {"answer": "as judged", "lexicon": "by its words", "ratio": "likelier once announced"}
"""Measures of concept probability, and their names."""

_DOTTED = (0, (1, 1.5))


def concept_probability(data: xr.Dataset, fits: xr.Dataset | None = None) -> Figure:
    """S, figures 7 (top), A.11 and A.12: three measures of concept probability against strength, a colour for each layer.

    Args:
        data: `shown` over measure, concept, layer, strength, prompt and completion, as
            `sim.experiments.strength.paper_claims.presence` has it.
        fits: `level`, `height`, `rate` and `centre` over concept, layer and measure (`MEASURES`), of which
            ``level + height tanh(rate (alpha - centre))`` is drawn; if left out, they may be in `data`.
    """
    layers, alphas = labels(data, "layer"), data["alpha"].values
    fits = data if fits is None and "level" in data else fits

    def find(name: str, measure: str) -> dict[int, ErrorBars] | None:
        estimates = {int(layer): measured(data.sel(concept=name, layer=layer), measure) for layer in layers}
        return {layer: estimate for layer, estimate in estimates.items() if np.isfinite(estimate.value).any()} or None

    with style():
        figure, panels = table(
            labels(data, "concept"), list(MEASURES), find, size=(3.1, 2.3), x=strength_of(data), y="concept probability"
        )
        for name, measure, estimates, axes in panels:
            for layer, look in layer_looks(layers).items():
                if layer not in estimates:
                    continue
                points(axes, alphas, estimates[layer], **look)
                fine, line = alphas, estimates[layer].value
                if fits is not None:
                    fine = even_between(alphas, alphas[0], alphas[-1])
                    line = _fitted(fits, name, layer, measure, fine)
                kept = np.isfinite(line)
                axes.plot(fine[kept], line[kept], color=look["color"], linewidth=1.2 if fits is not None else 0.6)
            strength_axis(axes, alphas, alphas[0], alphas[-1], margin=0.03)
            axes.set(ylim=(-0.04, 1.04), title=f"{name}, {MEASURES[measure]}")
        layer_legend(figure, layers)
    return figure


def measured(sweep: xr.Dataset, measure: str) -> ErrorBars:
    """The share of completions that show the concept, at every strength.

    Args:
        sweep: `shown` of one concept and layer (`sim.experiments.strength.paper_claims.presence`).
        measure: by which of `MEASURES`.
    """
    flat = sweep["shown"].sel(measure=measure).stack(text_of=("prompt", "completion"), create_index=False)
    values = flat.transpose("strength", "text_of").values
    return share(values == 1, np.isfinite(values))


def _fitted(
    fits: xr.Dataset, name: str, layer: int, measure: str, alphas: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The curve of a fit, NaN if there is none."""
    here = [name in fits["concept"], layer in fits["layer"], measure in fits["measure"]]
    if not all(here):
        return np.full(alphas.size, np.nan)
    parameters = fits[["level", "height", "rate", "centre"]].sel(concept=name, layer=layer, measure=measure)
    return Sigmoid(*(float(value) for value in parameters.values()))(alphas)


def cross_entropy(data: xr.Dataset) -> Figure:
    """S, figures 7 (bottom) and A.13: increase of cross-entropy, mean over blocks of text, with its plateaus.

    `data` is the group "cross-entropy".
    """
    layers, alphas = labels(data, "layer"), data["alpha"].values

    def find(name: str) -> dict[tuple[int, str], ErrorBars] | None:
        increases = data["increase"].sel(concept=name).transpose("layer", "text", "strength", "block")
        every = {
            (int(layer), str(kind)): mean(increases.sel(layer=layer, text=kind).values)
            for layer in layers
            for kind in _KINDS
        }
        return {key: estimate for key, estimate in every.items() if np.isfinite(estimate.value).any()} or None

    with style():
        figure, panels = wrapped(
            labels(data, "concept"),
            find,
            size=(4.3, 3.0),
            x=strength_of(data),
            y="$\\Delta\\mathrm{CE}$, nats per token",
            most=3,
        )
        for name, _, estimates, axes in panels:
            for layer, look in layer_looks(layers).items():
                colour = look["color"]
                for kind in _KINDS:
                    if (layer, kind) not in estimates:
                        continue
                    estimate = estimates[layer, kind]
                    points(axes, alphas, estimate, **(look | {"markerfacecolor": colour if kind == "foreign" else "white"}))
                    kept = np.isfinite(estimate.value)
                    axes.plot(alphas[kept], estimate.value[kept], color=colour, linewidth=0.6)
                    _plateaus(axes, data["plateau"].sel(concept=name, layer=layer, text=kind), colour)
            axes.axhline(0, color=INK, linewidth=0.6)
            strength_axis(axes, alphas, alphas[0], alphas[-1], margin=0.08, room=0.085)
            axes.set_title(str(name))
        more = [
            Line2D([], [], color=INK, label="text of others", **(DOTS | {"markerfacecolor": INK})),
            Line2D([], [], color=INK, label="its own text", **DOTS),
            Line2D([], [], color=INK, linewidth=1.2, linestyle=_DOTTED, label="plateaus"),
        ]
        layer_legend(figure, layers, more)
    return figure


_KINDS = ("foreign", "own")


def _plateaus(axes: Axes, plateau: xr.DataArray, colour: str) -> None:
    """Dotted lines at the ends of the axis."""
    for side, ends in (("low", (0.0, 0.08)), ("high", (0.92, 1.0))):
        values = plateau.sel(side=side).values
        if np.isfinite(values).any():
            level = float(np.nanmean(values))
            axes.plot(
                ends, [level] * 2, color=colour, linewidth=1.2, linestyle=_DOTTED, transform=axes.get_yaxis_transform()
            )


def cross_entropy_near_zero(data: xr.Dataset) -> Figure:
    """S, theorem 3.8 and N9: small strengths, with the parabola of one JVP on own text and the linear term on foreign.

    `data` is the group "cross-entropy". A panel reaches to where the parabola is 1 nat, and has three strengths at least
    where there are enough.
    """
    alphas = data["alpha"].values

    def find(name: str, layer: int) -> xr.Dataset | None:
        sweep = data.sel(concept=name, layer=layer)
        return sweep if np.isfinite(sweep["increase"]).any() else None

    with style():
        figure, panels = table(
            labels(data, "concept"), labels(data, "layer"), find, size=(3.2, 2.5), x=strength_of(data), y="nats per token"
        )
        for name, layer, sweep, axes in panels:
            own, foreign = ({key: _over_blocks(sweep[key].sel(text=kind)) for key in _SMALL} for kind in ("own", "foreign"))
            curvature = float(own["curvature"].value[0])
            reach = _near_zero(alphas, curvature)
            near = np.abs(alphas) <= reach * (1 + 1e-9)
            fine = np.linspace(-reach, reach, 101)
            heights = []
            for estimate, look in (
                (own["increase"], {"color": TARGET, "marker": "s"}),
                (foreign["increase"], {"color": OFF_TARGET, "marker": "^"}),
                (own["divergence"], _FILLED),
            ):
                points(axes, alphas[near], ErrorBars(*(values[near] for values in estimate)), **(MARK | look))
                heights.append(estimate.value[near])
            top, bottom = (end(np.concatenate(heights)) for end in (np.nanmax, np.nanmin))
            axes.set_ylim(min(bottom, 0) - 0.12 * (top - min(bottom, 0)), max(top, 0) + 0.15 * (top - min(bottom, 0)))
            if np.isfinite(curvature):
                axes.plot(fine, curvature * fine**2, color=INK, linewidth=1.2)
            axes.plot(fine, float(foreign["slope"].value[0]) * fine, color=OFF_TARGET, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.set(xlim=(-1.05 * reach, 1.05 * reach), title=f"{name}, block {layer}")
        handles = [
            Line2D([], [], color=INK, linewidth=1.2, label="parabola, one JVP"),
            Line2D([], [], label="KL, own text", **(DOTS | _FILLED)),
            Line2D([], [], color=TARGET, label="$\\Delta$CE, own text", **(DOTS | {"marker": "s"})),
            Line2D([], [], color=OFF_TARGET, label="$\\Delta$CE, text of others", **(DOTS | {"marker": "^"})),
            Line2D([], [], color=OFF_TARGET, linewidth=0.9, linestyle=(0, (2, 2)), label="its linear term"),
        ]
        legend_below(figure, handles)
    return figure


_SMALL = ("increase", "divergence", "slope", "curvature")
_FILLED = {"color": INK, "marker": "o", "markersize": 2.2, "markerfacecolor": INK}


def _over_blocks(values: xr.DataArray) -> ErrorBars:
    rows = values.transpose(..., "block").values.astype(float)
    return mean(rows.reshape(-1, rows.shape[-1]))


def _near_zero(alphas: Float[np.ndarray, " K"], curvature: float) -> float:
    above = alphas[alphas > 0]
    least = above[min(2, (above.size - 1) // 2)]
    one_nat = above[above <= 1 / np.sqrt(curvature)] if curvature > 0 else above[:0]
    return float(max(least, one_nat.max(initial=0.0)))


def accuracy(data: xr.Dataset) -> Figure:
    """S, figure A.6: the share of questions that are answered rightly against strength, and that of guessing.

    `data` is the group "mmlu".
    """
    layers, alphas = labels(data, "layer"), data["alpha"].values

    def find(name: str) -> dict[int, ErrorBars] | None:
        estimates = {int(layer): answered(data.sel(concept=name, layer=layer)) for layer in layers}
        return {layer: estimate for layer, estimate in estimates.items() if np.isfinite(estimate.value).any()} or None

    with style():
        figure, panels = wrapped(
            labels(data, "concept"), find, size=(3.1, 2.4), x=strength_of(data), y="share of right answers"
        )
        top = max(np.nanmax(estimate.value + estimate.above) for panel in panels for estimate in panel.content.values())
        for name, _, estimates, axes in panels:
            for layer, look in layer_looks(layers).items():
                if layer in estimates:
                    points(axes, alphas, estimates[layer], **look)
                    axes.plot(alphas, estimates[layer].value, color=look["color"], linewidth=0.6)
            axes.axhline(1 / data.sizes["letter"], color=INK, linewidth=1.0, linestyle=_DOTTED)
            strength_axis(axes, alphas, alphas[0], alphas[-1], margin=0.03)
            axes.set(ylim=(0, min(1.04, 1.1 * max(top, 0.4))), title=str(name))
        layer_legend(figure, layers, [Line2D([], [], color=INK, linewidth=1.0, linestyle=_DOTTED, label="guessing")])
    return figure


def answered(sweep: xr.Dataset) -> ErrorBars:
    """The share of questions whose likeliest letter is right, at every strength.

    Args:
        sweep: the group "mmlu", of one concept and layer.
    """
    log_p = sweep["log_p"].transpose("strength", "question", "letter").values
    finite = np.isfinite(log_p).all(axis=-1)
    return share(log_p.argmax(axis=-1) == sweep["answer"].values, finite)


_TOKENS = (
    "Steps between strengths are even on the axis; the token that is likeliest at the end of the sweep is named first. "
    "Dashed are tokens that were asked for; the page has their numbers in a table."
)

STRENGTH_FIGURES: dict[str, Drawing] = {
    "figure-6": Drawing(
        "next-token",
        next_token.next_tokens,
        "S, figures 6, A.7, A.8 and A.9",
        "Next-token probabilities of one context as steering grows: what is added to those of the unsteered model, for the "
        f"tokens that are likeliest at the largest strength. Columns are layers. {_TOKENS}",
    ),
    "figure-A10": Drawing(
        "next-token",
        next_token.next_tokens_below,
        "S, figure A.10",
        "Steering away from the concept: the same context at strengths below 0, and the tokens that are likeliest at the "
        f"lowest. {_TOKENS}",
    ),
    "figure-A1-A2-A5": Drawing(
        "next-token",
        next_token.variants,
        "S, figures A.1, A.2 and A.5",
        "Other ways to steer that the run has, at the middle layer: normalised, with a vector of length 1, whose strengths "
        "are on a scale of their own; last-token, at the last position only; contrastive, with a vector that contrasts the "
        "concept with its opposite.",
    ),
    "figure-A3": Drawing(
        "next-token",
        next_token.resamples,
        "S, figure A.3",
        "How far the curves depend on the texts that the vector was made from: mean (lines) and standard deviation (bands) "
        "over vectors from bootstrap samples of them, at the middle layer.",
    ),
    "figure-7-concept": Drawing(
        "concept",
        concept_probability,
        "S, figures 7, A.11 and A.12",
        "How often completions of a steered model show the concept, by three measures: what a model that judges them "
        "answers, whether one of the words of the highest log-odds occurs, and whether they are likelier to the judge "
        "once the concept is announced than once its opposite is. Bars: about one standard error. Lines: a fitted tanh, or "
        "through the points.",
    ),
    "figure-7-cross-entropy": Drawing(
        "cross-entropy",
        cross_entropy,
        "S, figures 7 and A.13",
        "What steering costs, on text of others (filled) and on text that the model wrote itself (open); mean over blocks "
        "of text with standard error. Dotted at both ends: the values at infinite strength, where the prompt is forgotten.",
    ),
    "figure-7-cross-entropy-near-0": Drawing(
        "cross-entropy",
        cross_entropy_near_zero,
        "S, theorem 3.8, and N9",
        "The increase at small strengths. The parabola is known from one Jacobian-vector product. On text that the model "
        "wrote itself there is no linear term; on text of others there may be one (dotted), and where the increase is below "
        "0, steering helps.",
    ),
    "figure-A6": Drawing(
        "mmlu",
        accuracy,
        "S, figure A.6",
        "Right answers to questions with four choices, steered at all positions. Bars: about one standard error; dotted: "
        "guessing, which is what is left once steering has made a model useless.",
    ),
    "bump-shares": Drawing(
        "bump-shares",
        next_token.bump_shares,
        "S, theorem 3.3",
        "What is left of the single bump on a real model: among the tokens that are likeliest at either end of the sweep, "
        "how many have one bump, rise or fall throughout, or have several; by layer, and by way to steer.",
    ),
    "bump-places": Drawing(
        "next-token",
        next_token.peak_places,
        "S, theorem 3.3",
        "Where single bumps are, in units of the length of the hidden state, against the log-odds of the token. In the "
        "unconstrained features model the order is the same on both axes. That tokens likely at one end have log-odds of "
        "its sign is no order among them: the table compares tokens of one end.",
    ),
    "dominant-log-odds": Drawing(
        "dominant-log-odds",
        next_token.dominant_log_odds,
        "S, theorem 3.3",
        "Whether strong steering ends with the tokens of the highest log-odds, as in the unconstrained features model: "
        "percentiles of the log-odds of the tokens that are likeliest at the largest strength, from the likeliest on.",
    ),
}
"""Figures of a run, by the name of their files; `Drawing.dataset` is a group of its store, or what is derived from one."""

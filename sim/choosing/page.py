"""The page of a choice: one file that needs nothing else, with a slider along the curves of `sim.choosing.curves`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sim import output, pages
from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.choosing.bounds import Bound
from sim.choosing.choice import Choice, prompts_in_words
from sim.choosing.curves import APART, REACH, STEPS, curves, word_of
from sim.figures.choosing import CHOOSING_FIGURES
from sim.figures.style import save
from sim.output import finite_or_none
from ufm._check import require

STEPS_BETWEEN = 5
"""Steps of the slider between two strengths of the curves."""

PROMPTS, PANES = 8, 96
"""Prompts with next tokens and completions: so many at most, and fewer where prompts times blocks are more than that."""

_STATISTICS = {"mean": "mean", "p95": "95th percentile", "max": "largest"}


def write_page(
    lm: LanguageModel,
    choices: Choice | Sequence[Choice],
    prompts: Any,
    out: str | Path,
    *,
    chat: bool = False,
    sampling: Sampling | None = None,
) -> Path:
    """Write ``index.html``, ``choice.nc`` and ``figures/`` about a choice, or about one for each of several blocks.

    Args:
        lm: the model.
        choices: by `sim.choose`, with a strength or without; of several, the first is the one that the page opens with.
        prompts: the prompts they were chosen on.
        out: the folder, made if need be. Nothing is written in it before everything is computed.
        chat: whether prompts are what a user says.
        sampling: how continuations were written, as for `sim.choose`.

    Returns:
        The path of the page.

    Raises:
        ValueError: no choice, several for one block, a folder that cannot be written; as `sim.choosing.curves.curves`.
    """
    choices = [choices] if isinstance(choices, Choice) else list(choices)
    layers = [choice.layer for choice in choices]
    require(len(layers) > 0, "choices", "at least one", "none")
    require(len(set(layers)) == len(layers), "choices", "one for each block", f"blocks {', '.join(map(str, layers))}")
    folder, shown = output.prepare_folder(out), max(1, min(PROMPTS, PANES // len(choices)))
    data = [curves(lm, choice, prompts, chat=chat, sampling=sampling, shown=shown) for choice in choices]
    drawing, place = CHOOSING_FIGURES["choice"], output.prepare_folder(folder / "figures")
    names = [f"choice-{layer}" for layer in layers]
    files = {name: save(drawing.draw(part), place, name) for name, part in zip(names, data, strict=True)}
    # What an earlier choice left here would stand beside this one unmarked.
    for left in set(place.glob("choice-*")) - {path for kinds in files.values() for path in kinds.values()}:
        left.unlink()
    settings = output.settings(**{"model": lm.name, **choices[0].settings})
    tree = xr.DataTree(children={f"block-{layer}": xr.DataTree(part) for layer, part in zip(layers, data, strict=True)})
    output.write_data(folder / "choice.nc", tree, settings)
    views = [view(lm, choice, part) for choice, part in zip(choices, data, strict=True)]
    for entry, name in zip(views, names, strict=True):
        entry["figure"] = name
    return pages.write_page(
        folder / "index.html",
        "choice.html",
        model=lm.name,
        views=views,
        first=views[0],
        data=_as_script(views),
        picture=pages.pictures({names[0]: files[names[0]]})[names[0]],
        caption=drawing.caption,
        settings={key: value for key, value in settings.items() if value not in (None, [], "")},
        points=data[0].sizes["strength"],
        looked_at=(data[0].sizes["strength"] - 1) // APART + 1,
        frontier=choices[0].frontier,
        per_step=f"{100 / (REACH * STEPS * STEPS_BETWEEN):g} %",
        steps_between=STEPS_BETWEEN,
    )


def view(lm: LanguageModel, choice: Choice, data: xr.Dataset) -> dict[str, Any]:
    """What the page shows of a choice: the numbers of its curves, rounded to what can be seen, and words about it."""
    about = data.attrs
    shown = ["mean", about["statistic"] if about["statistic"] in ("p95", "max") else "p95"]
    return {
        "layer": choice.layer,
        "alpha": choice.alpha,
        "unit": about["unit"],
        "interval": choice.interval,
        "budget": finite_or_none(about["budget"]),
        "wanted": finite_or_none(about["wanted"]),
        "statistic": about["statistic"],
        "statistic_words": _STATISTICS[about["statistic"]],
        "statistics": shown,
        "verdict": verdict(choice),
        "summary": summary(lm, choice, about["leading"]),
        "guarantees": choice.guarantees,
        "bounds": _bounds(choice),
        "error": about["interpolation_error"],
        "alphas": _rounded(data["alpha"], 6),
        "share": _rounded(data["share"]),
        "least": _rounded(data["least_cost"], 6),
        "cost": {name: _rounded(data["cost"].sel(statistic=name), 6) for name in shown},
        "multiples": data["multiple"].values.tolist() if "multiple" in data else [],
        "prompts": [_prompt(data.isel(prompt=j)) for j in range(data.sizes["prompt"])],
    }


def verdict(choice: Choice) -> str:
    """The answer in a few words."""
    return "no strength" if choice.alpha is None else f"α = {choice.alpha:.3g}"


def summary(lm: LanguageModel, choice: Choice, leading: Sequence[int]) -> str:
    """What was found, in plain words: strength, cost and use, and what of it is a theorem, assumed or measured.

    Args:
        lm: the model.
        choice: of a strength.
        leading: tokens of the concept that are named.
    """
    before, after = (f"{100 * share:.2g} %" for share in choice.share)
    concept = _concept(lm, choice, leading)
    bounds = " ".join(_in_words(name, bound, choice) for name, bound in choice.bounds.items())
    if choice.alpha is None or choice.cost is None:
        return (
            f"No strength was chosen for {lm.name} after block {choice.layer}: {choice.reason}. In the prompts, "
            f"without steering, the mean probability of the concept ({concept}) is {before}. {bounds}".strip()
        )
    samples = ""
    if choice.interval is not None:
        low, high = choice.interval
        samples = f"; 90 % of samples of these prompts give a strength from {low:.4g} to {high:.4g}"
    return (
        f"Steer {lm.name} after block {choice.layer} with strength {choice.alpha:.3g}. The benefit: the mean probability of "
        f"the concept ({concept}) goes from {before} to {after}. The cost: {choice.cost.mean:.2g} nats of KL per token in "
        f"the mean, {choice.cost.p95:.2g} at the 95th percentile. {_stopped(choice)} Both are measured, on text that the "
        f"model steered at {choice.written_at:.3g} wrote after {prompts_in_words(len(choice.per_prompt))}{samples}. "
        f"By a theorem, any intervention pays at least "
        f"{choice.least_cost:.2g} nats for this change of the mean (N15). {bounds}".strip()
    )


def _concept(lm: LanguageModel, choice: Choice, leading: Sequence[int]) -> str:
    """The concept's tokens in words; that they were taken for it, if nobody named them."""
    taken = choice.settings.get("tokens") == "promoted"
    words = _tokens(lm, len(choice.tokens), leading)
    return f"taken to be {words}, as steering promotes them most" if taken else words


def _tokens(lm: LanguageModel, count: int, leading: Sequence[int]) -> str:
    words = ", ".join(f"“{word_of(lm, token).strip()}”" for token in leading)
    if count > len(leading):
        return f"{count} tokens, {words} among them"
    return f"the {'token' if count == 1 else 'tokens'} {words}"


def _stopped(choice: Choice) -> str:
    if choice.stopped_by == "share":
        return "A smaller strength misses the share that was asked for."
    nats, of = choice.settings.get("budget"), choice.settings["statistic"]
    if choice.stopped_by != "budget" or nats is None:
        return f"A larger strength breaks the limit of {choice.stopped_by}."
    where = {"mean": "in the mean", "p95": "at the 95th percentile", "max": "at the most"}[of]
    return f"A larger strength breaks the budget of {nats:g} nat{'s' if nats != 1 else ''} {where}."


def _in_words(name: str, bound: Bound, choice: Choice) -> str:
    strength = f"{choice.settings.get('sign', 1) * bound.alpha:.3g}"
    every = "all strengths" if np.isinf(bound.alpha) else f"strengths up to {strength}"
    reason = "By a theorem" if bound.is_theorem else "Under an assumption"
    return f"{reason}, {every} keep to the budget in the prompts ({name})."


def _bounds(choice: Choice) -> list[dict[str, Any]]:
    """Bounds that are a strength on some axis."""
    sign = choice.settings.get("sign", 1)
    return [
        {
            "name": name,
            "alpha": sign * bound.alpha,
            "short": "safe by theorem" if bound.is_theorem else "safe under an assumption",
            "words": f"{name}: keeps to the budget in the prompts up to {sign * bound.alpha:.3g}. Assumes {bound.assumes}.",
        }
        for name, bound in choice.bounds.items()
        if np.isfinite(bound.alpha)
    ]


def _prompt(data: xr.Dataset) -> dict[str, Any]:
    return {
        "text": str(data["text"].values),
        "kl": _rounded(data["next_cost"]),
        "share": _rounded(data["next_share"]),
        "tokens": [
            {"word": str(word), "member": bool(member), "p": np.round(p, 6).tolist()}
            for word, member, p in zip(data["word"].values, data["member"].values, data["probability"].values, strict=True)
        ],
        "completions": data["completion"].values.tolist() if "completion" in data else [],
    }


def _rounded(values: xr.DataArray, digits: int = 4) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values.values]


def _as_script(views: list[dict[str, Any]]) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(views, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

"""A choice of strength along the axis of strengths: cost and share on its text, the next tokens of its prompts, completions.

The text is the one that the strength was solved on, written again with the same randomness, so that what curves say at the
chosen strength is what the choice says. Strengths are even, with the chosen one and twice it among them.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.interpolate import CubicSpline

from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.choosing.choice import Choice
from sim.choosing.criteria import STATISTICS, statistic
from sim.choosing.rollouts import Effects, FixedText, Writer, least_cost, members_of
from ufm._check import require, whole_number
from ufm.distributions import kl
from ufm.precision import wide
from ufm.steerable import strengths, sweep

STEPS, APART = 20, 5
"""Strengths from 0 to the chosen one; of these, every fifth is looked at on the text."""

REACH = 2.5
"""The largest strength in units of the chosen one."""

_STRICT: Any = {"compat": "no_conflicts", "combine_attrs": "drop"}

LIKELIEST, OF_CONCEPT = 12, 4
"""Tokens of each prompt: those that are likeliest anywhere on the axis, and so also those that move most; and, whatever
they are, so many of the concept's."""


def curves(
    lm: LanguageModel,
    choice: Choice,
    prompts: Any,
    *,
    chat: bool = False,
    sampling: Sampling | None = None,
    shown: int = 8,
) -> xr.Dataset:
    """What a strength costs and buys, from 0 to 2.5 times the chosen one.

    Without a chosen strength, the axis is measured by the one of the largest share that was looked at, if a share was asked
    for, or by the first guess.

    Args:
        lm: the model.
        choice: of one strength, by `sim.choose`.
        prompts: the prompts it was chosen on.
        chat: whether prompts are what a user says.
        sampling: how its continuations were written, as for `sim.choose`.
        shown: of so many prompts, the first, next tokens and completions are kept.

    Returns:
        Over strength, of which `alpha` is the value: `cost`, KL per token in nats, by statistic; `share`, the mean
        probability of the concept's tokens; `least_cost`, what such a change costs at least (N15). By prompt: `text`, its
        end; `next_cost` and `next_share`, KL and the concept's share of the next token; `probability` of the likeliest
        tokens, which `token`, `word` and `member` (whether it is one of the concept's) describe. `completion` by prompt, at
        0, 1 and 2 times the strength that measures the axis, its coordinate `multiple`. Attributes say what was chosen,
        which tokens of the concept gain most in the prompts (`leading`), and by how much straight lines between strengths
        differ from a probability at most (`interpolation_error`). Strengths at which the model gives no finite numbers are
        left out, and all that are larger.

        Next tokens are computed at all strengths. On the text every fifth strength is computed, and joined to the next by a
        cubic spline of every prediction's KL and share, of which the statistics are taken.

    Raises:
        ValueError: as `sim.choose`; prompts other than those of the choice, as far as their number tells.
    """
    horizon, seed = choice.settings["horizon"], choice.settings["seed"]
    writer = Writer.of(lm, prompts, horizon, sampling=sampling, seed=seed, chat=chat)
    count = len(writer.prompts)
    if choice.per_prompt:
        require(count == len(choice.per_prompt), "prompts", f"the {len(choice.per_prompt)} of the choice", count)
    unit, members = anchor(choice), members_of(choice.tokens, lm.config.vocab_size)
    alphas = unit * np.linspace(0, REACH, round(REACH * STEPS) + 1)
    written = choice.points[-1].on if choice.written_at is None and choice.points else choice.written_at or 0.0
    text = FixedText.of(lm, writer(choice.steering, written), choice.steering)
    few = replace(writer, prompts=writer.prompts[: whole_number("shown", shown, 1)])
    parts = [_on_text(text, alphas, members), _next_tokens(lm, choice, few.prompts, alphas, members)]
    kept = slice(min(part.sizes["strength"] for part in parts))
    data = xr.merge([*(part.isel(strength=kept) for part in parts), _completions(few, choice, unit)], **_STRICT)
    leading = sorted(choice.tokens, key=lambda z: -abs(parts[1].attrs["gain"][z]))[:OF_CONCEPT]
    about = _described(choice, unit) | {"leading": leading, "interpolation_error": _interpolation_error(data)}
    return data.assign_attrs(about)


def anchor(choice: Choice) -> float:
    """The strength that an axis for a choice is measured by."""
    if choice.alpha is not None:
        return choice.alpha
    if choice.settings.get("share") is not None and choice.points:
        return max(choice.points, key=lambda point: point.share).alpha
    return choice.guess


def _on_text(text: FixedText, alphas: np.ndarray, members: np.ndarray) -> xr.Dataset:
    """Cost and share on a text, at strengths up to the first without finite numbers."""
    concept, own = jnp.asarray(members), text.rollouts.counted
    looked_at = list(_finite(text, alphas[::APART], concept))
    cost = _joined([effects.kl[own] for effects in looked_at], flat=True).clip(0)
    share = _joined([effects.share[own] for effects in looked_at], flat=False).clip(0, 1)
    before = text.shares(concept)[own]
    return xr.Dataset(
        {
            "cost": (("statistic", "strength"), np.array([[statistic(row, of) for row in cost] for of in STATISTICS])),
            "share": ("strength", share.mean(axis=1)),
            "least_cost": ("strength", np.array([least_cost(before, after) for after in share])),
        },
        {"statistic": list(STATISTICS), "alpha": ("strength", alphas[: len(cost)])},
    )


def _finite(text: FixedText, alphas: np.ndarray, concept: Any) -> Iterator[Effects]:
    for alpha in alphas:
        effects = text.effects(float(alpha), concept)
        if not effects.is_finite:
            return
        yield effects


def _joined(rows: list[np.ndarray], *, flat: bool) -> np.ndarray:
    """Rows of values at every fifth strength from 0 on, and those of a cubic spline at the strengths between.

    Args:
        rows: the values.
        flat: whether the derivative at 0 is known to be 0, as that of KL is.
    """
    values = np.array(rows, float)
    if len(values) == 1:
        return values
    places = APART * np.arange(len(values))
    ends: Any = ((1, np.zeros(values.shape[1:])), "not-a-knot") if flat else "not-a-knot"
    return CubicSpline(places, values, axis=0, bc_type=ends)(np.arange(places[-1] + 1))


def _next_tokens(
    lm: LanguageModel, choice: Choice, prompts: tuple[tuple[int, ...], ...], alphas: np.ndarray, members: np.ndarray
) -> xr.Dataset:
    """The distribution of the token after each prompt: its likeliest tokens, its cost, its share.

    Its attribute `gain` is what each token of the model gains at the chosen strength, the mean over prompts.
    """
    split, parts = lm.split(list(prompts)).resolve(choice.steering)
    concept, counts = jnp.asarray(members), (min(LIKELIEST, len(members)), min(OF_CONCEPT, int(members.sum())))
    # One prompt at a time: all probabilities of all strengths are held.
    each = [
        _next_token(split, parts, strengths(alphas), jnp.asarray([j]), concept, counts=counts) for j in range(len(prompts))
    ]
    token, probability, cost, share, gain = (np.stack(list(map(np.asarray, arrays))) for arrays in zip(*each, strict=True))
    kept = int(np.logical_and.accumulate(np.isfinite(cost).all(axis=0)).sum())
    return xr.Dataset(
        {
            "probability": (("prompt", "rank", "strength"), probability[..., :kept].astype(float)),
            "next_cost": (("prompt", "strength"), cost[:, :kept].astype(float)),
            "next_share": (("prompt", "strength"), share[:, :kept].astype(float)),
            "token": (("prompt", "rank"), token),
            "word": (("prompt", "rank"), [[word_of(lm, z) for z in row] for row in token.tolist()]),
            "member": (("prompt", "rank"), members[token]),
            "text": ("prompt", [_end_of(lm, row) for row in prompts]),
        },
        {"alpha": ("strength", alphas[:kept])},
        {"gain": np.nan_to_num(gain).mean(axis=0)},
    )


@partial(jax.jit, static_argnames="counts")
def _next_token(split, steering, alphas, context, members, *, counts):
    def log_probabilities(logits, _):
        return jax.nn.log_softmax(wide(logits))

    log_p = sweep(split, context, steering, alphas, log_probabilities)[0]
    p, (count, of_concept) = jnp.exp(log_p), counts
    most = jnp.nan_to_num(p).max(axis=0)
    kept = jax.lax.top_k(jnp.where(members, most, -1), of_concept)[1]
    token = jax.lax.top_k(most.at[kept].add(1), count)[1]
    token = token[jnp.argsort(-most[token])]
    share = jnp.where(members, p, 0).sum(axis=-1)
    return token, p[:, token].T, kl(log_p[:1], log_p), share, p[STEPS] - p[0]


def _completions(writer: Writer, choice: Choice, unit: float) -> xr.Dataset:
    """What the model writes after each prompt, as far as there are finite logits."""
    texts = {}
    for multiple in (0.0, 1.0, 2.0):
        try:
            rollouts = writer(choice.steering, multiple * unit)
        except ValueError as error:
            if "finite" not in str(error):
                raise
            break
        texts[multiple] = [_printable(text) for text in writer.texts(rollouts)]
    if writer.lm.tokenizer is None:
        return xr.Dataset()
    return xr.Dataset({"completion": (("multiple", "prompt"), list(texts.values()))}, {"multiple": list(texts)})


def word_of(lm: LanguageModel, token: int) -> str:
    """A token as text; its number where there is no tokenizer."""
    return str(token) if lm.tokenizer is None else _printable(lm.tokenizer.decode([int(token)], special=True))


def _end_of(lm: LanguageModel, row: tuple[int, ...], length: int = 200) -> str:
    text = " ".join(map(str, row)) if lm.tokenizer is None else _printable(lm.tokenizer.decode(row))
    return text if len(text) <= length else f"\N{HORIZONTAL ELLIPSIS}{text[1 - length :]}"


def _printable(text: str) -> str:
    """Text without the character that no netCDF file can hold."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _described(choice: Choice, unit: float) -> dict[str, Any]:
    """What was chosen, as attributes; NaN where there is nothing."""
    low, high = choice.interval or (np.nan, np.nan)
    budget, share = (choice.settings.get(name) for name in ("budget", "share"))
    sign = choice.settings.get("sign", 1)
    return {
        "layer": choice.layer,
        "unit": unit,
        "alpha": np.nan if choice.alpha is None else choice.alpha,
        "low": low,
        "high": high,
        "budget": np.nan if budget is None else budget,
        "statistic": choice.settings["statistic"],
        "wanted": np.nan if share is None else share,
        **{name: sign * bound.alpha for name, bound in choice.bounds.items()},
        "reason": choice.reason,
    }


def _interpolation_error(data: xr.Dataset) -> float:
    """How far straight lines are from a curve of probabilities at most, from second differences."""
    curvatures = [np.abs(np.diff(data[name].values, 2, axis=-1)) for name in ("probability", "share", "next_share")]
    return max((float(curvature.max()) / 8 for curvature in curvatures if curvature.size), default=0.0)

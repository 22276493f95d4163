"""Where to steer: the efficiency of every layer to first order (N15), and the best few of them chosen for in full."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from sim.choosing.choice import Choice, aim_of
from sim.choosing.compute_cost import Work
from sim.choosing.rollouts import (
    FixedText,
    Promotion,
    Tilt,
    Writer,
    members_of,
    moves,
    promoted,
    prompts_alone,
    require_moving,
)
from sim.directions.vector import length_of
from ufm._check import require, shown

LOG = logging.getLogger(__name__)

TRIED = 3
"""Layers that a strength is chosen for in full: those of the greatest efficiency."""


@dataclass(frozen=True)
class LayerPoint:
    """What a layer is good for.

    Attributes:
        layer: its number.
        rho_squared: the efficiency of steering after it near strength 0, on the prompts: the part of the cost that the
            change of the concept's share has to cost (N15); negative where the share moves the other way than it should.
        alpha, cost, share: the strength that was chosen there, its mean KL and the share it reaches; None where only the
            first order was looked at, or where there is no strength.
    """

    layer: int
    rho_squared: float
    alpha: float | None = None
    cost: float | None = None
    share: float | None = None


def efficiency_of(tilt: Tilt, way: int) -> float:
    """The least cost of what near 0 happens to the concept's mean share, in units of what it costs (N15).

    With the mean covariance c of the concept and M, the mean share F and the mean variance of M it is
    ``c^2 / (F (1 - F) Var)``.

    Args:
        tilt: the moments; of a steering that changes predictions.
        way: 1 if positive strengths are to raise the share or negative ones to lower it, -1 otherwise: if they do the
            opposite, the efficiency is negative.
    """
    covariance, mean = np.nanmean(tilt.covariance), np.nanmean(tilt.share)
    inside = max(mean * (1 - mean), np.finfo(float).tiny)
    return float(np.copysign(covariance**2 / inside / np.nanmean(tilt.variance), way * covariance))


def promoted_by_all(tilts: Sequence[tuple[Tilt, Promotion]], sign: int) -> np.ndarray:
    """The tokens that steering after several blocks stands for, each at the same cost, ``[V]``.

    Raises:
        ValueError: a steering that changes nothing at any of them.
    """
    scales = [np.sqrt(np.nanmean(moments.variance)) for moments, _ in tilts]
    require(max(scales) > 0, "steering", "one that changes predictions", "one that changes none at any of the blocks")
    gains = [promotion.gain / scale for (_, promotion), scale in zip(tilts, scales, strict=True) if scale > 0]
    lifts = [promotion.lift for (_, promotion), scale in zip(tilts, scales, strict=True) if scale > 0]
    return promoted(Promotion(np.mean(gains, axis=0), np.mean(lifts, axis=0)), sign)


def over_layers(
    writer: Writer,
    vector: Any,
    sign: int,
    tokens: Sequence[int] | None,
    choose_at: Callable[[int, Sequence[int]], Choice],
) -> Choice:
    """The choice at the layer that serves best, with what all layers are good for as its `frontier`, and the other choices.

    Args:
        writer: of texts after the prompts.
        vector: a `sim.SteeringVector`.
        sign: of the strength.
        tokens: the concept's; those that the layers promote, at the same cost, if left out.
        choose_at: makes the choice at a layer, for these tokens.

    Raises:
        ValueError: something else than a vector of several layers; one that changes nothing at any of them.
    """
    several = hasattr(vector, "layers") and len(vector.layers) > 1
    require(several, "layer", 'a number, or "auto" for a SteeringVector of several layers', shown(vector))
    work = Work.of(writer.lm.config, writer)
    frontier, members = _frontier(writer, vector, sign, tokens, work)
    best = sorted(frontier.values(), key=lambda point: -point.rho_squared)[:TRIED]
    numbers = ", ".join(str(point.layer) for point in best)
    LOG.info("%d blocks compared to first order; a strength is chosen after %s", len(frontier), numbers)
    choices, started = [], time.monotonic()
    for done, point in enumerate(best, 1):
        choices.append(choose_at(point.layer, np.flatnonzero(members).tolist()))
        LOG.info("block %d is done, %d of %d: %s", point.layer, done, len(best), _in_brief(choices[-1]))
        if done < len(best):
            LOG.info("about %.0f s are left", (time.monotonic() - started) / done * (len(best) - done))
    for choice in choices:
        if choice.alpha is not None and choice.cost is not None:
            known = replace(frontier[choice.layer], alpha=choice.alpha, cost=choice.cost.mean, share=choice.share[1])
            frontier[choice.layer] = known
    taken = max(choices, key=_worth)
    passes = work.passes + sum(choice.passes for choice in choices)
    others = tuple(choice for choice in choices if choice is not taken)
    return replace(taken, frontier=tuple(frontier.values()), others=others, passes=passes)


def _frontier(
    writer: Writer, vector: Any, sign: int, tokens: Sequence[int] | None, work: Work
) -> tuple[dict[int, LayerPoint], np.ndarray]:
    """What each layer is good for to first order, those left out where the vector changes nothing; and the concept's tokens.

    Raises:
        ValueError: a vector that changes nothing at any of them.
    """
    lm, rollouts = writer.lm, prompts_alone(writer.prompts)
    texts = FixedText.of_layers(lm, rollouts, {layer: vector.steering(layer) for layer in vector.layers})
    work.read(rollouts)
    for layer in texts:
        work.derived(rollouts, layer)

    def tilt(text: FixedText, members: Any) -> tuple[Tilt, Promotion]:
        work.tilted(rollouts)
        return text.tilt(jnp.asarray(members))

    v = lm.config.vocab_size
    members = np.zeros(v, bool) if tokens is None else members_of(tokens, v)
    tilts = {layer: tilt(text, members) for layer, text in texts.items()}
    variances = {layer: tilts[layer][0].variance[rollouts.counted] for layer in texts}
    kept = [layer for layer in texts if moves(variances[layer], vector[layer])]
    if not kept:
        longest = max(vector.layers, key=lambda layer: length_of(vector[layer]))
        require_moving(variances[longest], vector[longest])
    if tokens is None:
        members = promoted_by_all([tilts[layer] for layer in kept], sign)
        require(bool(members.any()), "tokens", "some that all layers promote; name the concept's", "none")
        tilts = {layer: tilt(texts[layer], members) for layer in kept}
    way = sign if tokens is None else 1
    return {layer: LayerPoint(layer, efficiency_of(tilts[layer][0], way)) for layer in kept}, members


def _in_brief(choice: Choice) -> str:
    """What was chosen, for who does not wait for the other blocks."""
    if choice.alpha is None or choice.cost is None:
        return f"no strength, for {choice.reason}"
    share, cost = choice.share[1], choice.cost
    return f"strength {choice.alpha:.4g}, share {share:.3g}, {cost.mean:.3g} nats a token (p95 {cost.p95:.3g})"


def _worth(choice: Choice) -> tuple[bool, float]:
    """The higher the better: a strength at all; then less cost for a share, or the more of it that is won for a budget."""
    if choice.alpha is None or choice.cost is None:
        return False, 0.0
    won = aim_of(choice.settings) * (choice.share[1] - choice.share[0])
    return True, -choice.cost.mean if choice.stopped_by == "share" else won

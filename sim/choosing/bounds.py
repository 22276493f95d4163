"""Strengths that bounds allow for a budget, on the prompts, with what each bound assumes (N18, N20)."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sim.bridge.model import LanguageModel
from sim.bridge.readout import Readout, readout
from sim.choosing.criteria import KLBudget, statistic
from sim.choosing.crossing import crossing
from sim.choosing.rollouts import FixedText, Tilt, added_vector
from theory import arc, budgets
from ufm.steering import RESIDUAL

DIRECTIONS = 64
"""Directions in which the diameter of an arc is measured: the bound is 0.03 % larger than with all of them."""

_TILT = "log-probabilities that move in proportion to the strength, as they do in the unconstrained features model"


@dataclass(frozen=True)
class Bound:
    """A strength that a bound allows.

    Attributes:
        alpha: the largest one of the sign that was asked for, without it; +inf if all are allowed.
        assumes: what has to hold, beside the predictions in the prompts being like those to come.
        is_theorem: whether that is nothing for this model and this steering.
    """

    alpha: float
    assumes: str
    is_theorem: bool


def bounds_of(lm: LanguageModel, text: FixedText, tilt: Tilt, limit: KLBudget, sign: int) -> dict[str, Bound]:
    """The strengths at which bounds on KL keep to a budget in the prompts.

    Args:
        lm: the model.
        text: the prompts.
        tilt: how predictions in them move at strength 0.
        limit: the budget, and its statistic.
        sign: of the strength.
    """
    counted = ~np.isnan(tilt.variance)
    variance = tilt.variance[counted]
    ahead, behind = (side[counted] for side in (tilt.above, tilt.below)[::sign])
    width = ahead + behind
    moving = variance > 0

    def tilted(alpha: float) -> np.ndarray:
        nats = budgets.budget_bound(jnp.asarray(variance), jnp.where(moving, ahead, 1.0), alpha)
        return np.where(moving, np.asarray(nats), 0.0)

    guess = float(np.sqrt(8 * limit.nats) / width.max())
    bennett = Bound(_largest(tilted, limit, guess), _TILT, is_theorem=False)
    if _at_the_end(lm, text):
        nats, low = _on_the_arc(lm, text, sign), guess
        ranged = Bound(_largest(nats, limit, low), "nothing: after the last block it is a theorem", is_theorem=True)
    else:
        ranged = Bound(
            _largest(lambda alpha: np.asarray(budgets.divergence_of_range(jnp.asarray(alpha * width))), limit, guess),
            _TILT,
            is_theorem=False,
        )
    return {"N18": bennett, "N20": ranged}


def _largest(nats: Callable[[float], np.ndarray], limit: KLBudget, guess: float) -> float:
    """The strength at which the statistic of a bound is the budget."""

    def excess(alpha: float) -> float:
        value = statistic(np.asarray(nats(alpha)), limit.of)
        return float(np.log(value / limit.nats)) if value > 0 else -np.inf

    # Rounded down, so that the bound holds.
    result = crossing(excess, guess, tolerance=1e-4, most=1e6 * guess)
    return float("inf") if result.alpha is None else result.alpha * (1 - 2e-4)


def _at_the_end(lm: LanguageModel, text: FixedText) -> bool:
    """Whether one vector is added to the stream after the last block, before a norm without a cap on the logits."""
    last = int(text.split.layer) == lm.config.num_layers - 1 and text.split.site == RESIDUAL
    return last and added_vector(text.steering) is not None and lm.config.final_softcap is None


def _on_the_arc(lm: LanguageModel, text: FixedText, sign: int) -> Callable[[float], np.ndarray]:
    """KL at most at a strength, for every counted prediction of a text steered after the last block."""
    h = jnp.asarray(np.asarray(text.streams)[text.rollouts.counted], float)
    v = jnp.asarray(added_vector(text.steering), float)
    centre, width, across = _arcs(readout(lm), h, v)

    def nats(alpha: float) -> np.ndarray:
        turn = np.arctan((sign * alpha - centre) / width) - np.arctan(-centre / width)
        return np.asarray(budgets.divergence_of_range(jnp.asarray(2 * np.sin(np.abs(turn) / 2) * across)))

    return nats


@jax.jit
def _arcs(read: Readout, h, v):
    """The centre, the width and the diameter of the arc of every state."""

    def of(state):
        path = arc.arc_of(read.W, read.gamma, read.bias, state, v, kind=read.kind, eps=read.eps)
        return path.centre, path.width, budgets.diameter(path, DIRECTIONS)

    return jax.lax.map(of, h)

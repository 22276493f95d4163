"""Training unconstrained features models to the bottom: any optax optimiser in one compiled loop.

The loop minimises the gap (`ufm.model.gap`), which differs from the cross-entropy by a constant and keeps its precision
all the way down, and weight decay on top of it if asked for; it returns the whole curve of the gap.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from ufm._check import finite, require, typed
from ufm.concepts import check_count
from ufm.corpus import Corpus, entropy
from ufm.model import UFM, FreeFeatures, check_sizes, gap, init
from ufm.precision import wide

# A zoom search compiles for longer than backtracking, but from random starts it gets to the bottom in a fifth of the steps,
# and from all of them: backtracking left one start in six above 1e-8, and rounding decided which.
OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "lbfgs": optax.lbfgs(20),
    "adam": optax.adam(0.02),
    "gradient-descent": optax.sgd(2.0),
}
"""The optimisers known by name, with step sizes that suit small corpora. `fit` takes any other optax transformation."""


@dataclass(frozen=True)
class Fit:
    """A trained model and how it got there.

    Attributes:
        model: the parameters of the lowest gap, of the type of those before the first step; with weight decay, those of
            the lowest sum of both. Where rounding is all that is left, or a step size is too large, later ones can be far
            worse.
        gaps: the gap to the corpus entropy before the first step and after each, ``[steps + 1]`` nats.
        entropy: the lower bound of the cross-entropy, nats.
        converged: whether the gap reached the tolerance; with weight decay, whether training came to rest.
        best: the step after which the model is taken.
    """

    model: Any
    gaps: Float[np.ndarray, " steps_plus_1"]
    entropy: float
    converged: bool
    best: int

    @property
    def loss(self) -> Float[np.ndarray, " steps_plus_1"]:
        """The cross-entropy before the first step and after each, nats."""
        return self.entropy + self.gaps

    @property
    def gap(self) -> float:
        """The gap of the model, nats."""
        return float(self.gaps[self.best])

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return self.gaps.size - 1


@typed
def fit(
    corpus: Corpus,
    *,
    d: int = 16,
    optimizer: str | optax.GradientTransformation = "lbfgs",
    tolerance: float = 1e-10,
    max_steps: int = 20_000,
    patience: int = 200,
    decay: float | tuple[float, float] = 0.0,
    key: jax.Array | None = None,
    start: FreeFeatures | None = None,
) -> Fit:
    """Train a UFM, or whatever `start` is, on a corpus until its gap is at most `tolerance`.

    With weight decay it minimises ``gap + decay_W/2 ||W||^2 + decay_H/2 ||H||^2``, whose minimum has a gap above 0: the loop
    then runs until `patience` steps bring nothing lower. What that does to directions is `theory.span`.

    Args:
        corpus: what to fit; its precision (float32 or float64) is the training's.
        d: embedding width.
        optimizer: a name from `OPTIMIZERS` or an optax transformation.
        tolerance: stop at this gap, nats. With 0 the loop runs until `patience` steps bring no lower gap, which in
            float64 is near 1e-26 with "lbfgs": log-probabilities right to about 1e-12.
        max_steps: stop after this many steps in any case.
        patience: stop after this many steps without a new lowest gap (or sum of gap and decay).
        decay: the weight decay of W and of H: one number for both, or two.
        key: for the initial parameters; `jax.random.key(0)` if left out.
        start: initial parameters, instead of a random UFM; any model with free features, such as a `NormalisedUFM`.

    Returns:
        A `Fit`. Not reaching the tolerance is not an error: look at `converged`. A warning says so, with the reason if d is
        below the rank of the centred log-probabilities. A tolerance of 0 is never reached, and gives that warning only.

    Raises:
        ValueError: an unknown optimiser name, d < 1, a negative or NaN tolerance, no steps, a decay that is negative or
            not finite, a start that is not finite or does not fit the corpus, no step with a finite loss.
    """
    if isinstance(optimizer, str):
        require(optimizer in OPTIMIZERS, "optimizer", f"one of {sorted(OPTIMIZERS)}", repr(optimizer))
        optimizer = OPTIMIZERS[optimizer]
    require(bool(tolerance >= 0), "tolerance", "a gap in nats of at least 0", tolerance)
    require(max_steps >= 1, "max_steps", "at least one step", max_steps)
    check_count("max_steps", "steps", max_steps)
    require(patience >= 1, "patience", "at least one step", patience)
    decays = _decays(decay)
    if start is None:
        start = init(jax.random.key(0) if key is None else key, corpus, d)
    _check_start(start, corpus)
    start = jax.tree.map(wide, start)  # half types have too few digits for any tolerance
    transformation = optax.with_extra_args_support(optimizer)
    model, gaps, steps, best, bound = _train(start, corpus, tolerance, max_steps, patience, transformation, decays)
    curve, best = np.asarray(gaps)[: int(steps) + 1], int(best)
    blamed = "start" if decays is None else "decay"
    require(bool(np.isfinite(curve[best])), blamed, "a finite loss before some step", f"a gap of {curve[best]}")
    converged = bool(curve[best] <= tolerance) if decays is None else bool(steps < max_steps and np.isfinite(curve[-1]))
    result = Fit(model=model, gaps=curve, entropy=float(bound), converged=converged, best=best)
    if decays is None:
        _warn_of_gap(result, corpus, tolerance)
    return result


def _check_start(start: FreeFeatures, corpus: Corpus) -> None:
    check_sizes("start", start, corpus)
    good = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(start))
    require(good, "start", "finite parameters", "NaN or infinities among them")


def _decays(decay: float | tuple[float, float]) -> Float[Array, " 2"] | None:
    """The decays of W and H; None without any, so that the program of plain training has none in it."""
    array = finite("decay", decay)
    good = array.shape in ((), (2,)) and bool((array >= 0).all())
    require(good, "decay", "a number of at least 0, or two of them for W and H", decay)
    return jnp.asarray(np.broadcast_to(array, 2), float) if array.any() else None


def _warn_of_gap(result: Fit, corpus: Corpus, tolerance: float) -> None:
    """Say that the gap is not what was asked for, or cannot be: logits of rank d do not reach a table of a higher one."""
    if result.converged:
        return
    table = np.asarray(corpus.log_rows, float)
    rank = _rank(table) if np.isfinite(table).all() else 0
    d = result.model.W.shape[1] if isinstance(result.model, UFM) else rank
    narrow = d < rank
    if not (narrow or tolerance > 0):
        return
    why = f"d = {d} is below the rank of the corpus, {rank}" if narrow else f"tolerance {tolerance:g} was asked for"
    warnings.warn(f"fit: the gap is {result.gap:.2g} nats after {result.steps} steps; {why}", stacklevel=4)


def _rank(log_rows: np.ndarray) -> int:
    """The rank of log-probabilities up to a constant in each row, which no softmax sees."""
    centred = log_rows - log_rows.mean(axis=1, keepdims=True)
    return int(np.linalg.matrix_rank(centred, rtol=1e-6))


@partial(jax.jit, static_argnames=("max_steps", "patience", "optimizer"))
def _train(
    start: FreeFeatures,
    corpus: Corpus,
    tolerance: Float[Array, ""] | float,
    max_steps: int,
    patience: int,
    optimizer: optax.GradientTransformationExtraArgs,
    decays: Float[Array, " 2"] | None = None,
):
    def penalty(model: FreeFeatures):
        assert decays is not None
        of_w, of_h = decays.astype(model.H.dtype)
        return (of_w * jnp.sum(model.W**2) + of_h * jnp.sum(model.H**2)) / 2

    def objective(model: FreeFeatures):
        return gap(model, corpus) if decays is None else gap(model, corpus) + penalty(model)

    value_and_grad = jax.value_and_grad(objective)

    def unfinished(carry):
        _, _, value, step, _, _, _, best_step = carry
        # The gap is never negative, so NaN (a diverged run) is the only value for which the first comparison fails.
        far = (value > tolerance) if decays is None else ~jnp.isnan(value)
        return far & (step <= max_steps) & (step - best_step <= patience)

    def advance(carry):
        """Evaluate the model, then step away from it: one evaluation in the program, which is most of what compiles."""
        model, state, _, step, curve, best, best_model, best_step = carry
        value, grad = value_and_grad(model)
        updates, state = optimizer.update(grad, state, model, value=value, grad=grad, value_fn=objective)
        better = value < best
        best, best_step = jnp.where(better, value, best), jnp.where(better, step, best_step)
        best_model = jax.tree.map(lambda old, new: jnp.where(better, new, old), best_model, model)
        curve = curve.at[step].set(value if decays is None else value - penalty(model))
        model = optax.apply_updates(model, updates)
        return model, state, value, step + 1, curve, best, best_model, best_step

    infinite = jnp.full((), jnp.inf, start.H.dtype)
    curve = jnp.full(max_steps + 1, jnp.nan, start.H.dtype)
    zero = jnp.asarray(0)
    carry = (start, optimizer.init(start), infinite, zero, curve, infinite, start, zero)
    _, _, _, evaluations, curve, _, model, best_step = lax.while_loop(unfinished, advance, carry)
    return model, curve, evaluations - 1, best_step, entropy(corpus)

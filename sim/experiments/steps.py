"""Training in steps that may be interrupted: from the last checkpoint on, with a bar, stopped when a loss is not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sim.progress import bar

Step = Callable[[int, Any], tuple[Any, Any]]
"""A training step: it maps the number of the step and a state to the next state and the loss of the old state."""


class Steps(NamedTuple):
    """The result of training in steps.

    Attributes:
        state: after the last step; if it was stopped, the last state whose loss was a number.
        losses: of every step, NaN after a stop.
        stopped: the step at which a loss, or the state that it led to, was not finite, or None.
    """

    state: Any
    losses: Float[np.ndarray, " steps"]
    stopped: int | None


def run_steps(
    folder: str | Path, state: Any, step: Step, total: int, *, every: int, name: str = "train", progress: bool | None = None
) -> Steps:
    """Train, or continue a training that was interrupted. Both give the same numbers.

    Args:
        folder: gets checkpoints, of which the last two are kept. A checkpoint holds a state whose loss was finite.
        state: parameters and the optimiser's state: a pytree of arrays.
        step: a pure function of the step's number and the state.
        total: how many steps.
        every: steps between checkpoints.
        name: the label of the progress bar.
        progress: whether to show the bar.
    """
    import orbax.checkpoint as ocp

    leaves, structure = jax.tree.flatten(state)
    losses, stopped = np.full(total, np.nan), None
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(Path(folder).absolute(), options=options) as manager:
        first = manager.latest_step() or 0
        if first:
            kept = manager.restore(first, args=ocp.args.StandardRestore({"leaves": leaves, "losses": losses}))
            # Orbax brings them to one device; the model may be on others.
            restored = [jnp.asarray(np.asarray(leaf)) for leaf in kept["leaves"]]
            state, losses = jax.tree.unflatten(structure, restored), np.array(kept["losses"])
        before = state
        numbers = bar(range(first, total), shown=progress, desc=name, initial=first, total=total, leave=False)
        for k in numbers:
            after, loss = step(k, state)
            if not np.isfinite(float(loss)):
                state, stopped = before, k
                break
            if k > first and k % every == 0:
                manager.save(k, args=ocp.args.StandardSave({"leaves": jax.tree.leaves(state), "losses": losses}))
            losses[k] = float(loss)
            numbers.set_postfix_str(f"{losses[k]:.3f}")
            if not _finite(jax.tree.leaves(after)):
                stopped = k
                break
            before, state = state, after
    return Steps(state, losses, stopped)


@jax.jit
def _finite(leaves: list[Array]) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))

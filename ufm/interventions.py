"""What an intervention is, and those that can be trained: what is added at a site ``y = A x + b`` (W, arXiv:2602.02343).

    Add      y + alpha v                  a steering vector
    LoRA     y + alpha up down x          a matrix of low rank
    Weight   y + alpha (dA x + db)        a matrix and a bias
    NullOut  y less what points along one of these

One law covers the first three: ``y + alpha added(x)``. At a hidden state, which is where vectors act, x and y are the same.
`ufm.directional_interventions` has what else is done along a vector. `ufm.steering.Steering` says where an intervention
acts, and everything that steers takes it from there.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ufm._check import held, require, typed
from ufm._numerics import power_for_squares
from ufm._pytree import Leaf, pytree
from ufm.precision import full, wide


class Intervention:
    """An intervention on the output of a site; derive from it, and register the class with `ufm.pytree`.

    A class that adds something in proportion to the strength defines `added`, any other one `apply`.
    """

    def added(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """What a unit of strength adds, for an input of the site.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError

    def apply(
        self, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Float[Array, "..."] | float
    ) -> Float[Array, "*n o"]:
        """The output of the site under the intervention, in float32 at least.

        Args:
            x: input of the site.
            y: output of the site; a half type would swallow small strengths and round large ones.
            alpha: strength, a number or an array that broadcasts against y.
        """
        y = wide(y)
        return y + (alpha * wide(self.added(x))).astype(y.dtype)

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError

    def check(self, name: str = "steering") -> None:
        """Refuse numbers that no site can take; what JAX traces is let through.

        Args:
            name: of the intervention, in messages.

        Raises:
            ValueError: numbers that are not finite, or that floats do not hold.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(self):
            if not isinstance(leaf, jax.core.Tracer):
                held(f"{name}{jax.tree_util.keystr(path)}", leaf)

    @property
    def described(self) -> str:
        """Its name, for messages."""
        return type(self).__name__


@pytree
@dataclass(frozen=True)
class Add(Intervention):
    """Adds the same vector, whatever the input.

    Attributes:
        v: steering vector, ``[o]``.
    """

    v: Float[Array, " o"] | Leaf

    def added(self, x: Float[Array, "*n i"]) -> Float[Array, " o"]:
        """What a unit of strength adds."""
        return jnp.asarray(self.v)

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return np.shape(self.v) == (outputs,)


@pytree
@dataclass(frozen=True)
class LoRA(Intervention):
    """Adds a matrix of low rank to the weights of the site.

    Attributes:
        down: to r numbers, ``[r, i]``.
        up: from them, ``[o, r]``; dA is ``up down``.
    """

    down: Float[Array, "r i"] | Leaf
    up: Float[Array, "o r"] | Leaf

    @full
    def added(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """What a unit of strength adds."""
        return (x @ self.down.T) @ self.up.T

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        down, up = np.shape(self.down), np.shape(self.up)
        return down[1:] == (inputs,) and up[:1] == (outputs,) and up[1:] == down[:1] and min(down) > 0


@pytree
@dataclass(frozen=True)
class Weight(Intervention):
    """Adds a matrix and a bias to those of the site.

    Attributes:
        A: dA, ``[o, i]``.
        b: db, ``[o]``.
    """

    A: Float[Array, "o i"] | Leaf
    b: Float[Array, " o"] | Leaf

    @full
    def added(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """What a unit of strength adds."""
        return x @ self.A.T + self.b

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return np.shape(self.A) == (outputs, inputs) and np.shape(self.b) == (outputs,)


@pytree
@dataclass(frozen=True)
class NullOut(Intervention):
    """Takes out of the output what points along an update: ``y - relu(y . u) u / ||u||^2``, at every strength.

    u is what the update adds at that input; nothing is taken out where u is 0. RePS trains the answer without the concept
    under it.

    Attributes:
        update: an `Add`, `LoRA` or `Weight`.
    """

    update: Add | LoRA | Weight | Leaf

    def apply(
        self, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Float[Array, "..."] | float
    ) -> Float[Array, "*n o"]:
        """The output of the site under the intervention."""
        u = wide(self.update.added(x))
        # The length of u plays no part, but its square has to be a number.
        u = (u * power_for_squares(u)).astype(y.dtype)
        size = jnp.sum(u * u, axis=-1, keepdims=True)
        along = jnp.maximum(jnp.sum(y * u, axis=-1, keepdims=True), 0)
        return y - jnp.where(size > 0, along / jnp.where(size > 0, size, 1), 0) * u

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return self.update.fits(inputs, outputs)

    def check(self, name: str = "steering") -> None:
        """Refuse what adds nothing in proportion to the strength, and numbers that are not finite."""
        known = isinstance(self.update, Update)
        require(known, f"{name}.update", "an Add, a LoRA or a Weight", type(self.update).__name__)
        super().check(name)


Update = Add | LoRA | Weight
"""The interventions that training finds (W): each adds something in proportion to the strength."""

FORMS: dict[str, type[Update]] = {"vector": Add, "lora": LoRA, "weight": Weight}
"""The forms of updates by the names that W gives them."""


@typed
def init_update(
    key: jax.Array, form: str, inputs: int, outputs: int, *, rank: int = 4, dtype: DTypeLike | None = None
) -> Update:
    """An update to start training from: it adds nothing yet, and its first gradient is not 0.

    Args:
        key: a `jax.random.key`; only the lower matrix of "lora" is random, of entries with variance ``1/i``.
        form: one of `FORMS`.
        inputs, outputs: i and o of the site.
        rank: of "lora".
        dtype: of its numbers.

    Raises:
        ValueError: an unknown form, a rank below 1 or above the widths.
    """
    require(form in FORMS, "form", f"one of {', '.join(FORMS)}", repr(form))
    for name, width in (("inputs", inputs), ("outputs", outputs)):
        require(width >= 1, name, "a width of at least 1", width)
    if form == "vector":
        return Add(jnp.zeros(outputs, dtype))
    if form == "weight":
        return Weight(jnp.zeros((outputs, inputs), dtype), jnp.zeros(outputs, dtype))
    widest = min(inputs, outputs)
    require(1 <= rank <= widest, "rank", f"a number from 1 to {widest}, the smaller width of the site", rank)
    down = jax.random.normal(key, (rank, inputs), dtype) / jnp.sqrt(inputs).astype(dtype)
    return LoRA(down, jnp.zeros((outputs, rank), dtype))


def checked(intervention: Intervention, site: str, inputs: int, outputs: int) -> None:
    """Refuse an intervention that is made for another site.

    Raises:
        ValueError: other widths; outside transformations, numbers that it cannot have (`Intervention.check`).
    """
    intervention.check()
    leaves = jax.tree_util.tree_leaves_with_path(intervention)
    shapes = ", ".join(f"{jax.tree_util.keystr(path).lstrip('.')} {tuple(np.shape(leaf))}" for path, leaf in leaves)
    wanted = f"an intervention for the site {site}, from {inputs} to {outputs} numbers"
    require(
        intervention.fits(inputs, outputs), "steering", wanted, f"{intervention.described} with {shapes or 'no numbers'}"
    )

"""One law for steering with vectors, LoRA and weights (W, arXiv:2602.02343): what a strength adds at a linear site.

    y = A x + b    ->    y + m (dA x + db)          vector: dA = 0,    LoRA: dA = up down, db = 0,    weight: both

An update is a value. `updated` puts its strength beside the hidden state, as one more coordinate of it,

    embed(contexts) -> (h, 0),        decode((h, m)) = the logits with the update at strength m,

so that every update is steered with like a vector: along the unit vector of that coordinate, `Updated.direction`. Whatever
is written against the split (sweeps, increases of probability and cross-entropy, curvature) then serves all three forms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ufm._check import finite, require, typed
from ufm._pytree import Leaf
from ufm.precision import full, wide
from ufm.steerable import DEFAULT_BUDGET, Change, Steerable


@runtime_checkable
class Sited(Steerable, Protocol):
    """A split model with linear sites behind the place where it is cut."""

    @property
    def sites(self) -> Mapping[str, tuple[int, int]]:
        """How many numbers each site takes and gives; "state" is the hidden state itself, which gives what it takes."""
        ...

    def decode_through(
        self, h: Float[Array, "*n d"], site: str, change: Change, m: Float[Array, "*n"]
    ) -> Float[Array, "*n V"]:
        """Logits from hidden states, with the output of a site changed."""
        ...


@partial(jax.tree_util.register_dataclass, data_fields=["b"], meta_fields=[])
@dataclass(frozen=True)
class Vector:
    """What adds the same, whatever the input.

    Attributes:
        b: db, ``[o]``.
    """

    b: Float[Array, " o"] | Leaf

    def added(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """What it adds for a unit of strength."""
        return jnp.broadcast_to(self.b, (*x.shape[:-1], self.b.shape[-1]))

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return jnp.shape(self.b) == (outputs,)


@partial(jax.tree_util.register_dataclass, data_fields=["down", "up"], meta_fields=[])
@dataclass(frozen=True)
class LoRA:
    """A matrix of low rank.

    Attributes:
        down: to r numbers, ``[r, i]``.
        up: from them, ``[o, r]``; dA is ``up down``.
    """

    down: Float[Array, "r i"] | Leaf
    up: Float[Array, "o r"] | Leaf

    @full
    def added(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """What it adds for a unit of strength."""
        return (x @ self.down.T) @ self.up.T

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        down, up = jnp.shape(self.down), jnp.shape(self.up)
        return down[1:] == (inputs,) and up[:1] == (outputs,) and up[1:] == down[:1] and min(down) > 0


@partial(jax.tree_util.register_dataclass, data_fields=["A", "b"], meta_fields=[])
@dataclass(frozen=True)
class Weight:
    """A matrix and a bias.

    Attributes:
        A: dA, ``[o, i]``.
        b: db, ``[o]``.
    """

    A: Float[Array, "o i"] | Leaf
    b: Float[Array, " o"] | Leaf

    @full
    def added(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """What it adds for a unit of strength."""
        return x @ self.A.T + self.b

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return jnp.shape(self.A) == (outputs, inputs) and jnp.shape(self.b) == (outputs,)


Update = Vector | LoRA | Weight

FORMS: dict[str, type[Update]] = {"vector": Vector, "lora": LoRA, "weight": Weight}
"""The forms of updates by name."""


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
        return Vector(jnp.zeros(outputs, dtype))
    if form == "weight":
        return Weight(jnp.zeros((outputs, inputs), dtype), jnp.zeros(outputs, dtype))
    widest = min(inputs, outputs)
    require(1 <= rank <= widest, "rank", f"a number from 1 to {widest}, the smaller width of the site", rank)
    down = jax.random.normal(key, (rank, inputs), dtype) / jnp.sqrt(inputs).astype(dtype)
    return LoRA(down, jnp.zeros((outputs, rank), dtype))


@typed
def add(update: Update) -> Change:
    """The change that an update makes: ``y + m added(x)``."""
    return lambda x, y, m: wide(y) + (m * update.added(x)).astype(wide(y).dtype)


@typed
def null_out(update: Update) -> Change:
    """The change that takes out of the output what points along the update: ``y - relu(y . u) u / ||u||^2``.

    u is what the update adds at that input; nothing is taken out where that is 0. It knows no strength. RePS uses it for
    the answer without the concept.
    """

    def change(x, y, m):
        del m
        u = update.added(x).astype(y.dtype)
        size = jnp.sum(u * u, axis=-1, keepdims=True)
        along = jnp.maximum(jnp.sum(y * u, axis=-1, keepdims=True), 0)
        return y - jnp.where(size > 0, along / jnp.where(size > 0, size, 1), 0) * u

    return change


@partial(jax.tree_util.register_dataclass, data_fields=["model", "update"], meta_fields=["site"])
@dataclass(frozen=True)
class Updated:
    """A split model whose steering strength is a coordinate of its hidden state; `updated` makes it.

    Attributes:
        model: what is updated, unchanged.
        update: with which.
        site: where.
    """

    model: Any
    update: Update | Leaf
    site: str = "state"

    @property
    def n_contexts(self) -> int | None:
        """Those of the model, where it says so."""
        return getattr(self.model, "n_contexts", None)

    @property
    def held(self) -> int | None:
        """Numbers held while one hidden state is decoded, where the model says so."""
        return getattr(self.model, "held", None)

    @property
    def budget(self) -> int:
        """Numbers that a sweep holds at once, unless told otherwise."""
        return getattr(self.model, "budget", DEFAULT_BUDGET)

    @property
    def direction(self) -> Float[Array, " s"]:
        """The steering vector: one unit of strength, ``[d + 1]``."""
        h = jax.eval_shape(self.embed, jax.ShapeDtypeStruct((1,), jnp.int32))
        return (jnp.arange(h.shape[-1]) == h.shape[-1] - 1).astype(h.dtype)

    def embed(self, contexts: Int[Array, "*n"]) -> Float[Array, "*n s"]:
        """Hidden states with strength 0 beside them, ``[*n, d + 1]``."""
        h = wide(self.model.embed(contexts))
        return jnp.concatenate([h, jnp.zeros((*h.shape[:-1], 1), h.dtype)], axis=-1)

    def decode(self, h: Float[Array, "*n s"]) -> Float[Array, "*n V"]:
        """Logits with the update at the strength that is beside the hidden state."""
        return self.model.decode_through(h[..., :-1], self.site, add(self.update), h[..., -1])


@typed
def updated(model: Sited, update: Update, *, site: str = "state") -> Updated:
    """A model that an update steers; it shares the parameters of `model`.

    Args:
        model: a split model.
        update: made for the site.
        site: one of ``model.sites``.

    Raises:
        ValueError: a model without sites, an unknown site, an update of other widths, one that is not finite.
    """
    require(isinstance(model, Sited), "model", "a split model with sites", type(model).__name__)
    require(site in model.sites, "site", f"one of {', '.join(model.sites)}", repr(site))
    inputs, outputs = model.sites[site]
    for name, leaf in vars(update).items():
        if not isinstance(leaf, jax.core.Tracer):
            finite(f"update.{name}", leaf)
    shapes = {name: jnp.shape(leaf) for name, leaf in vars(update).items()}
    wanted = f"one for the site {site}, from {inputs} to {outputs} numbers"
    require(update.fits(inputs, outputs), "update", wanted, f"{type(update).__name__} with {shapes}")
    return Updated(model, update, site)

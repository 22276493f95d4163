"""A steering: which interventions act, at which layers, sites and tokens. One value that everything which steers takes.

    Steering(Add(v))                                    where the model is split
    Steering({20: Add(v)})                              after block 20 of a language model
    Steering({20: Add(v), 25: Add(w)})                  at two layers, each with a strength of its own if alpha is [2]
    Steering({20: lora}, site="mlp_down")               at the down-projection of an MLP
    Steering({20: Add(v)}, tokens=Last())               at the last token only
    Steering({20: Add(v)}) + Steering({4: Add(w)})      both
    Steering({20: Add(v)}, budget=0.1)                  no harder than a prediction may cost, in nats

The strength alpha is not part of it: it is swept, differentiated and mapped over.
"""

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ufm._check import finite_number, real_numbers, require, shown, whole_number, within_32_bits
from ufm._pytree import Leaf, pytree, static
from ufm.interventions import Add, Intervention, checked

RESIDUAL = "residual"
"""The site that every model has: its hidden state where it is split, the residual stream after a block."""


@pytree
@dataclass(frozen=True)
class State:
    """The hidden state of a model that reads tokens, where it is split; that of a UFM is h alone, an array.

    Attributes:
        stream: the residual stream of the last t of T positions, ``[*n, t, d]``: of those that steering reaches.
        mask: which of all positions are tokens and not padding, ``[*n, T]``.
        context: which context of the model it is, ``[*n]``.
        keys, values: of the T - t positions before them, at every block; None if there are none.
    """

    stream: Float[Array, "*n t d"] | Leaf
    mask: Bool[Array, "*n T"] | Leaf
    context: Int[Array, "*n"] | Leaf
    keys: Float[Array, "*n L k S h"] | Leaf = None
    values: Float[Array, "*n L k S h"] | Leaf = None


# --- tokens ------------------------------------------------------------------------------------------------------------


def positions_of(mask: Bool[Array, "n T"]) -> Int[Array, "n T"]:
    """The position of every token, padding not counted; 0 for padding before them."""
    counted = lax.cumsum(lax.convert_element_type(mask, jnp.int32), axis=1)
    return lax.max(counted - 1, jnp.zeros(mask.shape, jnp.int32))


def last_of(mask: Bool[Array, "n T"]) -> Int[Array, " n"]:
    """The last position of every context that is not padding."""
    t = mask.shape[1]
    return t - 1 - lax.argmax(lax.rev(lax.convert_element_type(mask, jnp.int32), (1,)), 1, jnp.int32)


class Tokens:
    """Which tokens of a context an intervention acts at; derive from it, and register the class with `ufm.pytree`."""

    def check(self) -> None:
        """Refuse numbers that no context can take; what JAX traces is let through.

        Raises:
            ValueError: such numbers, in the classes that have any.
        """
        return

    def contexts(self) -> int | None:
        """For how many contexts a selection has an entry each; None for one that is the same for all."""
        return None

    def chosen(self, mask: Bool[Array, "n T"], context: Int[Array, " n"]) -> Bool[Array, "n T"] | None:
        """Which positions, of contexts by number; None for all.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError

    def chosen_new(self, position: Int[Array, " n"], context: Int[Array, " n"]) -> Bool[Array, " n"] | None:
        """Whether a token that is generated is among them, by its position; None for every one.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError

    def first_column(self, mask: Bool[Array, "m T"]) -> int | None:
        """The first column in which a token of any context is chosen; None if only a compiled program knows.

        Raises:
            ValueError: a context of which no token is chosen.
        """
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((self, mask))):
            return None
        chosen = self.chosen(jnp.asarray(mask), jnp.arange(len(mask)))
        columns = np.asarray(mask) if chosen is None else np.asarray(mask) & np.asarray(chosen)
        empty = np.flatnonzero(~columns.any(axis=1))
        none = f"none of context {empty[0]}: {self!r}" if empty.size else ""
        require(empty.size == 0, "tokens", "at least one token of every context", none)
        return int(columns.argmax(axis=1).min())


@jax.tree_util.register_static
@dataclass(frozen=True)
class All(Tokens):
    """Every token of a context is chosen."""

    def chosen(self, mask: Bool[Array, "n T"], context: Int[Array, " n"]) -> None:
        """Every position is chosen."""
        return

    def chosen_new(self, position: Int[Array, " n"], context: Int[Array, " n"]) -> None:
        """Every new token is chosen."""
        return

    def first_column(self, mask: Bool[Array, "m T"]) -> int:
        """The first there is."""
        return 0


@jax.tree_util.register_static
@dataclass(frozen=True)
class Last(Tokens):
    """The last token of a context: in generation, of the prompt, and each new token, which is last when it is read."""

    def chosen(self, mask: Bool[Array, "n T"], context: Int[Array, " n"]) -> Bool[Array, "n T"]:
        """The last position that is not padding."""
        return jnp.arange(mask.shape[1]) == last_of(mask)[:, None]

    def chosen_new(self, position: Int[Array, " n"], context: Int[Array, " n"]) -> None:
        """Every new token is chosen."""
        return

    def first_column(self, mask: Bool[Array, "m T"]) -> int:
        """The last there is, of contexts that are padded on the left."""
        return mask.shape[1] - 1


@pytree
@dataclass(frozen=True)
class After(Tokens):
    """The tokens after the first ``length`` of a context, those of a prompt for instance, and whatever is generated.

    Attributes:
        length: a number of tokens, or one for each context, ``[m]``.
    """

    length: Int[Array, "..."] | int | Leaf

    def check(self) -> None:
        """Refuse what is no number of tokens."""
        if not isinstance(self.length, jax.core.Tracer):
            words = "After(length) with whole numbers of at least 0"
            lengths = real_numbers("tokens", self.length, words)
            fits = lengths.ndim < 2 and np.issubdtype(lengths.dtype, np.integer) and bool((lengths >= 0).all())
            require(fits, "tokens", words, repr(self))
            require(within_32_bits(lengths), "tokens", f"{words}, and less than 2**31", repr(self))

    def contexts(self) -> int | None:
        """How many there is a length for; None where all have the same."""
        length = jnp.asarray(self.length)
        return length.shape[0] if length.ndim else None

    def _beyond(self, position: Int[Array, "n ..."], context: Int[Array, " n"]) -> Bool[Array, "n ..."]:
        length = jnp.asarray(self.length)
        length = length[context] if length.ndim else jnp.broadcast_to(length, context.shape)
        return position >= length.reshape(length.shape + (1,) * (position.ndim - 1))

    def chosen(self, mask: Bool[Array, "n T"], context: Int[Array, " n"]) -> Bool[Array, "n T"]:
        """The positions from ``length`` on, padding not counted."""
        return self._beyond(positions_of(mask), context) & mask

    def chosen_new(self, position: Int[Array, " n"], context: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Whether a token's position is beyond them."""
        return self._beyond(position, context)


@pytree
@dataclass(frozen=True)
class Where(Tokens):
    """The tokens that a mask says; no token that is generated.

    Attributes:
        mask: of the positions of all contexts as they are padded, ``[T]``, or ``[m, T]``.
    """

    mask: Bool[Array, "..."] | Leaf

    def check(self) -> None:
        """Refuse what is no mask."""
        if not isinstance(self.mask, jax.core.Tracer):
            flags = np.asarray(self.mask)
            fits = flags.ndim in (1, 2) and flags.dtype.kind in "biu" and bool(np.isin(flags, (0, 1)).all())
            require(fits, "tokens", "Where(mask) with truth values in an axis of positions", shown(self.mask))

    def contexts(self) -> int | None:
        """How many there is a row for; None where all have the same."""
        mask = jnp.asarray(self.mask)
        return mask.shape[0] if mask.ndim == 2 else None

    def chosen(self, mask: Bool[Array, "n T"], context: Int[Array, " n"]) -> Bool[Array, "n T"]:
        """The positions of the mask that are not padding.

        Raises:
            ValueError: a mask of another length.
        """
        own = jnp.asarray(self.mask)
        require(own.shape[-1] == mask.shape[-1], "tokens", f"a mask of {mask.shape[-1]} positions", own.shape)
        return (own[context] if own.ndim == 2 else own) & mask

    def chosen_new(self, position: Int[Array, " n"], context: Int[Array, " n"]) -> Bool[Array, " n"]:
        """None of them."""
        return jnp.zeros(position.shape, bool)


# --- steering ----------------------------------------------------------------------------------------------------------


@pytree
@dataclass(frozen=True)
class Part:
    """One intervention of a steering.

    Attributes:
        intervention: what is done.
        layer: at which block; None where the model is split.
        tokens: at which tokens.
        site: at which site of the block.
        order: how many others of the steering come before it at the same layer and site.
    """

    intervention: Intervention | Leaf
    layer: Int[Array, ""] | int | Leaf
    tokens: Tokens | Leaf
    site: str = static()
    order: int = static()

    def apply(
        self,
        x: Float[Array, "n t i"],
        y: Float[Array, "n t o"],
        alpha: Float[Array, "..."],
        chosen: Bool[Array, "n t"] | None,
    ) -> Float[Array, "n t o"]:
        """The output of its site, where tokens are chosen (None: everywhere)."""
        out = self.intervention.apply(x, y, alpha)
        return out if chosen is None else jnp.where(chosen[..., None], out, y)


@jax.tree_util.register_pytree_node_class
class Steering:
    """Interventions, and where they act.

    Attributes:
        parts: the interventions in order, each with its layer, site and tokens. A strength alpha is one number for all, or
            one for each of them, ``[k]``.
        budget: what it may cost a prediction, nats of KL from the unsteered model: where it would cost more, its strengths
            are lowered by one factor (`ufm.kl_cap`), so that alpha is the most that is used. None: they are not.
    """

    parts: tuple[Part, ...]
    budget: Any

    def __init__(self, what: Any, *, site: Any = RESIDUAL, tokens: Any = None, budget: Any = None) -> None:
        """The intervention at one site and selection of tokens.

        Args:
            what: an intervention, where the model is split; or interventions by layer, counted from 0: one for a layer, or a
                list of them.
            site: "residual", the hidden state; or another of the model's `sites`.
            tokens: at which tokens: `All` if left out, `Last`, `After`, `Where`.
            budget: nats that each prediction may cost; no limit if left out.

        Raises:
            ValueError: something else; no intervention; a layer that is not a number of a block; tokens that are no numbers
                of them, or no mask; a budget that is not above 0.
        """
        require(isinstance(site, str), "site", "the name of a site", shown(site))
        chosen = All() if tokens is None else tokens
        require(isinstance(chosen, Tokens), "tokens", "a selection of tokens: All, Last, After, Where", shown(chosen))
        chosen.check()
        placed: Mapping[Any, Any] = what if isinstance(what, Mapping) else {None: what}
        parts = []
        for layer, group in placed.items():
            if layer is not None and not isinstance(layer, jax.core.Tracer):
                layer = _block(layer)
            for order, intervention in enumerate(group if isinstance(group, list | tuple) else [group]):
                known = isinstance(intervention, Intervention)
                require(known, "steering", "interventions, such as Add(v)", shown(intervention))
                parts.append(Part(_with_arrays(intervention), layer, chosen, site, order))
        require(len(parts) > 0, "steering", "at least one intervention", "none")
        self.parts = tuple(parts)
        self.budget = _nats(budget)

    @classmethod
    def of(cls, parts: Sequence[Part], budget: Any = None) -> "Steering":
        """A steering of these parts, within a budget if there is one."""
        made = object.__new__(cls)
        made.parts, made.budget = tuple(parts), budget
        return made

    def __add__(self, other: Any) -> "Steering":
        """Both: the strengths of the other one come after those of this one."""
        require(isinstance(other, Steering), "steering", "a Steering to add", shown(other))
        both = f"{self.budget} and {other.budget}"
        require(_is_same_budget(self.budget, other.budget), "budget", "one for both steerings, or none for either", both)
        parts: list[Part] = []
        for part in (*self.parts, *other.parts):
            # Layers that are traced may be the same.
            before = [p for p in parts if p.site == part.site and not _apart(p.layer, part.layer)]
            parts.append(replace(part, order=len(before)))
        return Steering.of(parts, self.budget)

    def __repr__(self) -> str:
        limit = "" if self.budget is None else f", budget={self.budget}"
        return f"Steering({', '.join(_described(part) for part in self.parts)}{limit})"

    def tree_flatten(self) -> tuple[tuple[tuple[Part, ...], Any], None]:
        """The parts and the budget, as JAX asks for them."""
        return (self.parts, self.budget), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[tuple[Part, ...], Any]) -> "Steering":
        """A steering from its parts and its budget, as JAX gives them."""
        return cls.of(*children)

    def within(self, budget: Any) -> "Steering":
        """This steering within a budget, nats for each prediction; None for no limit.

        Raises:
            ValueError: a budget that is not above 0.
        """
        return Steering.of(self.parts, _nats(budget))

    # --- for models --------------------------------------------------------------------------------------------------

    def strengths(self, alpha: Any) -> Float[Array, "*n k"]:
        """A strength for each part, from one for all, ``[]``, or one for each, ``[*n, k]``."""
        alpha = jnp.asarray(alpha)
        return jnp.broadcast_to(alpha, (len(self.parts),)) if alpha.ndim == 0 else alpha

    def parts_at_split(self, site: str) -> list[tuple[int, Part]]:
        """The parts that act at a site where the model is split, with their numbers."""
        return [(k, part) for k, part in enumerate(self.parts) if part.layer is None and part.site == site]

    def apply(self, site: str, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Any) -> Float[Array, "*n o"]:
        """The output of a site of a model that has one place to steer and no selection of tokens.

        Args:
            site: its name.
            x: input of the site.
            y: output of the site.
            alpha: the strength, one for all, or one for each part, ``[k]``.
        """
        for k, part in self.parts_at_split(site):
            y = part.intervention.apply(x, y, alpha if jnp.ndim(alpha) == 0 else alpha[k])
        return y

    def with_layers(self, layers: Sequence[Any]) -> "Steering":
        """This steering with other layers."""
        return Steering.of([replace(part, layer=layer) for part, layer in zip(self.parts, layers, strict=True)], self.budget)


def _block(layer: Any) -> int:
    """The number of a block.

    Raises:
        ValueError: anything else.
    """
    try:
        return whole_number("layer", layer, 0)
    except ValueError as error:
        raise ValueError(f"layer: expected a block, counted from 0, got {shown(layer)}") from error


def _with_arrays(intervention: Intervention, name: str = "steering") -> Intervention:
    """An intervention whose lists, tensors of other libraries, fractions and large whole numbers are arrays and floats.

    Args:
        intervention: as it was given.
        name: its own, in messages.
    """
    changed: dict[str, Any] = {}
    for field, value in vars(intervention).items():
        if isinstance(value, Intervention):
            changed[field] = _with_arrays(value, f"{name}.{field}")
        elif isinstance(value, list | tuple) or hasattr(value, "detach"):
            changed[field] = jnp.asarray(_floats(real_numbers(f"{name}.{field}", value)))
        elif isinstance(value, np.ndarray | np.longdouble):
            changed[field] = _floats(real_numbers(f"{name}.{field}", value))
        elif isinstance(value, numbers.Real) and not isinstance(value, bool | float | np.floating):
            array = _floats(real_numbers(f"{name}.{field}", value))
            changed[field] = float(array) if np.issubdtype(array.dtype, np.floating) else value
    return replace(intervention, **changed) if changed else intervention  # type: ignore[type-var]


def _floats(array: np.ndarray) -> np.ndarray:
    """An array whose whole numbers are floats if they need more than 32 bits, which JAX would cut off."""
    return array.astype(float) if np.issubdtype(array.dtype, np.integer) and not within_32_bits(array) else array


def _apart(layer: Any, other: Any) -> bool:
    """Whether two layers are known to be different ones."""
    known = all(number is None or isinstance(number, int) for number in (layer, other))
    return known and layer != other


def _nats(budget: Any) -> Any:
    """A budget as it is, if it is a number above 0, or none.

    Raises:
        ValueError: anything else.
    """
    if budget is None or isinstance(budget, jax.core.Tracer):
        return budget
    return finite_number("budget", budget, "a number of nats above 0", lambda x: x > 0)


def _is_same_budget(budget: Any, other: Any) -> bool:
    """Whether two budgets may be one: they are the same, or only a compiled program knows."""
    if budget is None or other is None:
        return budget is other
    return any(isinstance(nats, jax.core.Tracer) for nats in (budget, other)) or bool(budget == other)


def without_budget(steering: Steering, where: str) -> Steering:
    """A steering as it is, if it has no budget (a boundary check).

    Args:
        steering: what to look at.
        where: what cannot keep to a budget, for the message.

    Raises:
        ValueError: it has one.
    """
    require(steering.budget is None, "steering", f"one without a budget, for {where}", repr(steering))
    return steering


def _described(part: Part) -> str:
    where = "" if part.layer is None else f"{part.layer}: "
    site = "" if part.site == RESIDUAL else f" at {part.site}"
    return f"{where}{part.intervention.described}{site}{'' if isinstance(part.tokens, All) else f', {part.tokens}'}"


def as_steering(value: Any) -> Steering:
    """A steering as it is; a vector, ``[d]``, as one that adds it where the model is split.

    Raises:
        ValueError: something else.
    """
    if isinstance(value, Steering):
        return value
    if isinstance(value, Intervention):
        return Steering(value)
    array = value if isinstance(value, jax.Array) else real_numbers("steering", value, "a Steering, or a vector")
    require(array.ndim == 1, "steering", "a Steering, or a vector [d]", f"shape {array.shape}")
    return Steering(Add(array if isinstance(array, jax.Array) else jnp.asarray(_floats(array))))


def require_contexts(steering: Steering, count: int) -> None:
    """Refuse selections of tokens that are for fewer contexts than there are.

    Args:
        steering: whose parts are looked at.
        count: how many contexts are steered.

    Raises:
        ValueError: a selection with an entry for each context, and too few of them.
    """
    for part in steering.parts:
        own = part.tokens.contexts()
        require(own is None or own >= count, "tokens", f"one number, or one for each of {count} contexts", f"{own} of them")


def require_sites(steering: Steering, sites: Mapping[str, tuple[int, int]], *, layers: int | None = None) -> None:
    """Refuse a steering that is made for another model.

    Args:
        steering: whose parts are looked at.
        sites: how many numbers each site of the model takes and gives.
        layers: how many blocks it has; None for a model with one place to steer.

    Raises:
        ValueError: a site or a layer that the model does not have, an intervention of other widths or with numbers that are
            not finite.
    """
    for part in steering.parts:
        require(part.site in sites, "site", f"one of {', '.join(sites)}", repr(part.site))
        checked(part.intervention, part.site, *sites[part.site])
        if layers is None:
            require(part.layer is None, "layer", "none, for a model with one place to steer", part.layer)
            require(isinstance(part.tokens, All), "tokens", "All(), for a model without tokens", repr(part.tokens))
        elif isinstance(part.layer, int):
            require(part.layer < layers, "layer", f"a block from 0 to {layers - 1}", part.layer)


# --- interventions at several layers, inside one loop over blocks -------------------------------------------------------


class Stack(NamedTuple):
    """Parts of one structure, stacked: what a loop over blocks can look up by the number of a block.

    Attributes:
        site: of all of them.
        layers: of each, ``[g]``; no two are the same.
        numbers: which strength is whose, ``[g]``.
        parts: with a leading axis, ``[g]``.
    """

    site: str
    layers: Any
    numbers: Any
    parts: Part


def stacks(steering: Steering) -> list[Stack]:
    """The parts of a steering that have a layer, as few stacks as they make: for one program, whatever the layers are."""
    groups: dict[Any, list[tuple[int, Part]]] = {}
    for k, part in enumerate(steering.parts):
        if part.layer is not None:
            content = (part.intervention, part.tokens)
            kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(content))
            groups.setdefault((part.site, jax.tree.structure(content), kinds, part.order), []).append((k, part))
    result = []
    # At a block, what comes first in the steering acts first, whichever stack it is in.
    for (site, *_), members in sorted(groups.items(), key=lambda group: group[0][-1]):
        layers = [part.layer for _, part in members]
        static = all(isinstance(layer, int) for layer in layers)
        bare = [replace(part, layer=None) for _, part in members]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *bare)
        layers_of = np.asarray(layers) if static else jnp.stack(list(map(jnp.asarray, layers)))
        result.append(Stack(site, layers_of, np.asarray([k for k, _ in members]), stacked))
    return result


Chosen = Callable[[Tokens], Bool[Array, "n t"] | None]
"""A function from a selection of tokens to a mask of the positions at hand."""


def at_block(
    groups: Sequence[Stack],
    site: str,
    i: Any,
    x: Float[Array, "n t i"],
    y: Float[Array, "n t o"],
    alpha: Float[Array, "*n k"],
    chosen: Chosen,
) -> Float[Array, "n t o"]:
    """The output of a site of block i under the parts that act there, in the type that it has.

    Args:
        groups: the stacks of a steering.
        site: its name.
        i: number of the block.
        x, y: input and output of the site.
        alpha: strength of each part of the steering, ``[k]``, or ``[n, k]``.
        chosen: tells which positions a selection of tokens means.
    """
    for stack in groups:
        if stack.site != site:
            continue
        is_here = stack.layers == i

        def act(number: Any, y: Array = y, stack: Stack = stack) -> Array:
            part = jax.tree.map(lambda leaf: leaf[number], stack.parts)
            strength = alpha[..., jnp.asarray(stack.numbers)[number]]
            out = part.apply(x, y, strength.reshape(*strength.shape, *[1] * (2 * (strength.ndim > 0))), chosen(part.tokens))
            return out.astype(y.dtype)

        if isinstance(is_here, np.ndarray):
            y = act(int(np.argmax(is_here))) if is_here.any() else y
        else:
            y = lax.cond(jnp.any(is_here), lambda act=act, here=is_here: act(jnp.argmax(here)), lambda y=y: y)
    return y

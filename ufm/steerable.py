"""The split: a model cut where it is steered, and everything that follows from the cut alone.

    embed(contexts) -> state        decode(state) -> logits        steered: decode(intervene(state, alpha))

The unconstrained features model is the smallest such split, a transformer cut after one of its blocks the largest.
Sweeps over steering strengths are written here once for both: the prefix is computed once per context, only the suffix
sees alpha, and memory is bounded by a budget of numbers, not by contexts x strengths x vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ufm._batches import map_in_batches, parts_of
from ufm._check import MOST_READ, finite, require, typed
from ufm._compiled import compiled
from ufm.kl_cap import within_budget
from ufm.precision import wide
from ufm.steering import RESIDUAL, Steering, as_steering, require_sites

DEFAULT_BUDGET = 2**20
"""Numbers a sweep holds at once, unless told otherwise: 8 MiB of float64, about what a core's cache serves."""


class Steerable:
    """A model split where it is steered. Derive from it, and register the class with `ufm.pytree`, for `jax.jit`.

    A model defines `embed` and `decode`; what else it can tell has defaults. A state is a pytree whose leaves lead with the
    axes of the contexts: h alone, or a `ufm.steering.State`.

    Attributes:
        n_contexts: how many contexts it has, which are then known by their index; None if it does not say.
        activation_size: numbers that it holds while it decodes one state; None for its logits alone.
        prefix_size: numbers that it holds for one context while it embeds it, and afterwards; None for few.
        budget: numbers that a sweep of it holds at once, unless told otherwise; on each device, where it is spread.
        batch_sharding: how contexts or strengths are spread over devices, along one axis of their mesh; None for one device.
    """

    n_contexts: Any = None
    activation_size: Any = None
    prefix_size: Any = None
    budget: Any = DEFAULT_BUDGET
    batch_sharding: Any = None

    def embed(self, contexts: Int[Array, "*n"]) -> Any:
        """States of contexts, at the place where they are steered.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError

    def decode(self, state: Any) -> Float[Array, "*n V"]:
        """Logits from states.

        Raises:
            NotImplementedError: in a class that does not define it.
        """
        raise NotImplementedError

    @property
    def sites(self) -> Mapping[str, tuple[int, int]]:
        """How many numbers each site takes and gives; "residual" is the hidden state, which gives what it takes."""
        width = jax.eval_shape(self.embed, jax.ShapeDtypeStruct((1,), jnp.int32)).shape[-1]
        return {RESIDUAL: (width, width)}

    def steered(self, state: Any, steering: Steering, alpha: Float[Array, "..."] | float) -> Float[Array, "*n V"]:
        """Logits from states under a steering: `decode` of the steered hidden state, for a model with this site alone.

        Whatever the steering's budget is: `steered_logits` keeps to it.
        """
        return self.decode(steering.apply(RESIDUAL, state, state, alpha))

    def resolve(self, steering: Steering) -> tuple["Steerable", Steering]:
        """The model split where a steering first acts, and the steering as that model takes it.

        Raises:
            ValueError: a steering that is made for another model.
        """
        self.check(steering)
        return self, steering

    def check(self, steering: Steering) -> None:
        """Refuse a steering that cannot act on the states of this model.

        Raises:
            ValueError: a site, a layer or tokens that it does not have; an intervention of other widths; outside
                transformations, numbers that are not finite.
        """
        require_sites(steering, self.sites)

    @property
    def described(self) -> str:
        """The type and the place, for messages."""
        types = [leaf.dtype for leaf in jax.tree.leaves(self) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
        return f"{type(self).__name__}, {types[0] if types else 'no floats'}"


@typed
def steer(
    model: Steerable,
    contexts: Int[Array, "*n"] | np.ndarray | Sequence[int],
    steering: Any,
    alpha: Any,
) -> Float[Array, "..."]:
    """Logits of the steered model; of a vector v, ``f_alpha(c_j) = decode(h_j + alpha v)`` (S, section 3.1).

    Args:
        model: a split model.
        contexts: indices.
        steering: a `Steering`, or a vector ``[d]`` that is added where the model is split.
        alpha: steering strength, a number; or one for each part of the steering, ``[k]``.

    Raises:
        ValueError: contexts that the model does not have, a steering that is made for another model; outside
            transformations, numbers that are not finite, and a strength at which logits are not.
    """
    contexts, steering = known(model, contexts), as_steering(steering)
    alpha = one_strength(steering, alpha)
    at_place, parts = model.resolve(steering)
    return finite_at(at_place, alpha, _steered(at_place, contexts, parts, alpha))


@compiled
def _steered(model: Steerable, contexts: Int[Array, "*n"], steering: Steering, alpha: Any) -> Float[Array, "..."]:
    return steered_logits(model, model.embed(contexts), steering, alpha)


def steered_logits(model: Steerable, states: Any, steering: Steering, alpha: Any) -> Float[Array, "*n V"]:
    """`Steerable.steered`, each prediction within the budget of the steering if it has one.

    Args:
        model: a split model.
        states: as `embed` gives them.
        steering: as the model takes it.
        alpha: strength, one for all parts or one for each, ``[k]``: with a budget, the most that is used.
    """
    if steering.budget is None:
        return model.steered(states, steering, alpha)

    def capped(state: Any) -> Float[Array, "*n V"]:
        return within_budget(lambda lowered: model.steered(state, steering, lowered), alpha, steering.budget)

    for _ in jax.eval_shape(model.decode, states).shape[:-1]:
        capped = jax.vmap(capped)
    return capped(states)


def one_strength(steering: Steering, alpha: Any) -> Any:
    """A strength, or one for each part of a steering, as it is (a boundary check).

    Raises:
        ValueError: another number of strengths; outside transformations, one that is not finite, as it is or in the
            precision of the scope.
    """
    value = number("alpha", alpha)
    if not isinstance(value, jax.core.Tracer):
        _require_in_range("alpha", np.asarray(value, float))
    parts = len(steering.parts)
    fits = np.ndim(value) == 0 or np.shape(value) == (parts,)
    require(fits, "alpha", f"a number, or one for each of the {parts} interventions", f"shape {np.shape(value)}")
    if np.ndim(value) > 0:
        return jnp.asarray(value if isinstance(value, jax.Array) else np.asarray(value, float))
    # A whole number or a fraction of any size; another float keeps its type.
    return value if isinstance(value, jax.Array | np.floating) else float(value)


def number(name: str, value: Any) -> Any:
    """A number, or an array of them, as it is (a boundary check, outside transformations).

    Raises:
        ValueError: one that is not finite.
    """
    if not isinstance(value, jax.core.Tracer):
        finite(name, value)
    return value


def finite_at(model: Steerable, alphas: Any, values: Any, axis: int = 0) -> Any:
    """What was measured at strengths, as it is, if it is finite (a boundary check, outside transformations).

    Args:
        model: the model that was steered.
        alphas: the strengths, ``[K]`` or ``[K, k]``, or one.
        values: an array, with the strengths along `axis` if there are several.
        axis: of the strengths.

    Raises:
        ValueError: a value that is not finite. The message names the strength, and the type and place as the model tells
            them; where the strength is at most 1 in size, it asks for another steering.
    """
    tracing = isinstance(values, jax.core.Tracer) or isinstance(alphas, jax.core.Tracer)
    if tracing or not values.is_fully_addressable or bool(jnp.isfinite(values).all()):
        return values
    strength = np.atleast_1d(np.asarray(alphas, float))
    bad = ~np.isfinite(np.asarray(values))
    if bad.ndim and bad.shape[axis] == len(strength) > 1:
        strength = strength[bad.any(axis=tuple(k for k in range(bad.ndim) if k != axis))]
    least = strength[np.argmin(np.abs(strength).reshape(len(strength), -1).max(axis=1))]
    shown = ", ".join(f"{value:.6g}" for value in np.atleast_1d(least))
    moderate = bool(np.abs(least).max() <= 1)
    wanted = f"one under which logits, and what is made of them, are finite ({model.described})"
    require(not moderate, "steering", wanted, f"one under which they are not, at strength {shown}")
    require(False, "alphas", f"strengths at which logits are finite ({model.described})", shown)


def known(model: Steerable, contexts: Any) -> Int[Array, "*n"]:
    """`contexts` as an array of indices (a boundary check, outside `jax.jit`, of models that say their `n_contexts`).

    Raises:
        ValueError: no context; a context that the model does not have, which would be taken for another.
    """
    array, count = jnp.asarray(contexts), model.n_contexts
    require(array.size > 0, "contexts", "at least one", "none")
    if count is not None and not isinstance(array, jax.core.Tracer):
        indices = np.asarray(array)
        outside = indices[(indices < 0) | (indices >= count)]
        require(outside.size == 0, "contexts", f"indices from 0 to {count - 1}", outside.ravel()[:3].tolist())
    return array


@typed
def sweep(
    model: Steerable,
    contexts: Int[Array, " n"],
    steering: Any,
    alphas: Float[Array, "K *k"],
    measure: Callable[[Float[Array, " V"], Int[Array, ""]], Any],
    *,
    budget: int | None = None,
) -> Any:
    """`measure` of the steered logits at every pair of a context and a strength.

    Outside `jax.jit` it is traced and compiled at every call. What is called again, put into a function that is compiled, as
    the measures of `ufm.measures` are.

    Args:
        model: a split model.
        contexts: ``[n]``.
        steering: a `Steering`, or a vector ``[d]`` that is added where the model is split.
        alphas: steering strengths, ``[K]``, finite; or one for each part of the steering, ``[K, k]``.
        measure: from the logits ``[V]`` of one context at one strength, in float32 at least, and the position of that
            context in `contexts`, to a pytree of arrays. It is vectorised; what it returns is all that is kept.
        budget: numbers held at once, which bounds memory whatever n and K are (`at_once`).

    Returns:
        The pytree of `measure`, each leaf with leading axes ``[n, K]``.

    Raises:
        ValueError: no context, a steering that is made for another model; outside transformations, a context that the model
            does not have, and a strength at which logits are not finite. Inside, `measure` is given NaN there for all.
    """
    contexts = known(model, contexts)
    model, steering = model.resolve(as_steering(steering))
    return _sweep(model, contexts.shape[0], lambda i: model.embed(contexts[i]), steering, alphas, measure, budget)


@typed
def sweep_states(
    model: Steerable,
    states: Any,
    steering: Any,
    alphas: Float[Array, "K *k"],
    measure: Callable[[Float[Array, " V"], Int[Array, ""]], Any],
    *,
    budget: int | None = None,
) -> Any:
    """`sweep` from states that are known already: those of a pass that several sweeps share.

    Args:
        model: a split model, split where the steering first acts (`Steerable.resolve`).
        states: of n contexts: leaves lead with ``[n]``.
        steering, alphas, measure, budget: as for `sweep`.

    Returns:
        The pytree of `measure`, each leaf with leading axes ``[n, K]``.
    """
    steering = as_steering(steering)
    model.check(steering)
    states, count = _known_states(model, states)
    return _sweep(model, count, lambda i: one_of(states, i), steering, alphas, measure, budget)


def _known_states(model: Steerable, states: Any) -> tuple[Any, int]:
    """States as arrays, and how many there are.

    Raises:
        ValueError: what `embed` of the model does not give; outside transformations, NaN.
    """
    leaves = [np.asarray(leaf) if isinstance(leaf, list) else leaf for leaf in jax.tree.leaves(states)]
    count = next((np.shape(leaf)[0] for leaf in leaves if np.ndim(leaf)), 0)
    expected = jax.eval_shape(model.embed, jax.ShapeDtypeStruct((count,), jnp.int32))
    shapes, actual = ([np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (expected, states))
    require(shapes == actual, "states", f"those that embed gives, of shapes {shapes}", actual)
    for leaf in leaves:
        if not isinstance(leaf, jax.core.Tracer) and np.size(leaf) <= MOST_READ and jnp.issubdtype(leaf.dtype, jnp.inexact):
            require(not bool(jnp.isnan(leaf).any()), "states", "numbers", "NaN")
    return jax.tree.map(jnp.asarray, states), count


def one_of(states: Any, i: Any) -> Any:
    """The state of one context, from those of several."""
    return jax.tree.map(lambda leaf: leaf[i], states)


def _sweep(
    model: Steerable,
    n: int,
    state_of: Callable[[Int[Array, ""]], Any],
    steering: Steering,
    alphas: Float[Array, "K *k"],
    measure: Callable[[Float[Array, " V"], Int[Array, ""]], Any],
    budget: int | None,
) -> Any:
    parts = len(steering.parts)
    fits = alphas.ndim == 1 or alphas.shape[1:] == (parts,)
    require(fits, "alphas", f"strengths [K], or one for each of the {parts} interventions, [K, {parts}]", alphas.shape)

    def at(pair, alpha):
        i, state = pair
        logits = wide(steered_logits(model, state, steering, alpha))
        good = jnp.isfinite(logits).all()
        # One logit that is not a number makes no distribution: nothing that is made of the others may pass for one.
        return measure(jnp.where(good, logits, jnp.nan), i), jnp.where(good, 0.0, jnp.nan)

    chunk = at_once(model, jax.eval_shape(state_of, jax.ShapeDtypeStruct((), jnp.int32)), budget)
    together = max(1, (budget or model.budget) // (model.prefix_size or 1))
    values, marks = pairs(at, n, alphas, chunk, lambda i: (i, state_of(i)), together=together, sharding=model.batch_sharding)
    finite_at(model, alphas, marks, axis=1)
    return values


def at_once(model: Steerable, state: Any, budget: int | None = None) -> int:
    """How many states a sweep decodes at a time within a budget of numbers: at least one.

    Args:
        model: tells how many numbers it holds for one of them (`activation_size`), and which budget suits it.
        state: one of them, or its shapes.
        budget: that of the model if left out.

    Raises:
        ValueError: a budget below 1.
    """
    require(budget is None or budget >= 1, "budget", "at least one number at a time", budget)
    size = model.activation_size or jax.eval_shape(model.decode, state).shape[-1]
    return max(1, (budget or model.budget) // size)


def in_batches(model: Steerable, function: Callable[[Any], Any], xs: Any) -> Any:
    """`function` of each of xs, as many at a time as the model's budget allows.

    Args:
        model: says how many numbers it holds for one of them, and how a batch is spread.
        function: of one of them.
        xs: a pytree of arrays that share their leading axis.
    """
    return map_in_batches(function, xs, at_once(model, None), sharding=model.batch_sharding)


def pairs(
    function: Callable[[Any, Any], Any],
    n: int,
    alphas: Array,
    chunk: int,
    prefix: Callable[[Int[Array, ""]], Any] = lambda i: i,
    *,
    together: int | None = None,
    sharding: NamedSharding | None = None,
) -> Any:
    """``function(prefix(i), alphas[k])`` for all i < n and k; leaves come back as ``[n, K, ...]``.

    Args:
        function: from what belongs to a context, and a strength.
        n: number of contexts.
        alphas: strengths.
        chunk: pairs at a time, at most. All are of one context, unless all strengths of several fit.
        prefix: what belongs to context i, and is the same for all strengths.
        together: contexts at a time, at most; as many as the pairs allow if left out.
        sharding: how contexts are spread over devices if they come out even, and strengths otherwise; what is at a time is
            then on each.

    Raises:
        ValueError: a chunk below 1, no context, no strength.
    """
    require(chunk >= 1, "chunk", "at least one pair at a time", chunk)
    k = alphas.shape[0]
    require(n >= 1, "contexts", "at least one", "none")
    require(k >= 1, "alphas", "at least one strength", "none")
    at_a_time = max(1, min(chunk // k, n if together is None else together))
    of_contexts, of_strengths = (None, sharding) if n % parts_of(sharding) else (sharding, None)

    def of_context(i):
        own = prefix(i)
        return map_in_batches(lambda alpha: function(own, alpha), alphas, chunk, sharding=of_strengths)

    return map_in_batches(of_context, jnp.arange(n), at_a_time, sharding=of_contexts)


def strengths(alphas: Any) -> Float[Array, "K *k"]:
    """`alphas` as an array of finite strengths, ``[K]`` or ``[K, k]`` (a boundary check, outside `jax.jit`).

    Raises:
        ValueError: an empty list, or a strength that is not finite, as it is or in the precision of the scope.
    """
    if isinstance(alphas, jax.core.Tracer):
        return jnp.atleast_1d(alphas)
    array = np.atleast_1d(finite("alphas", alphas))
    require(array.ndim in (1, 2) and array.size > 0, "alphas", "a list of strengths", f"shape {array.shape}")
    _require_in_range("alphas", array)
    return jnp.asarray(array)


def _require_in_range(argument: str, array: np.ndarray) -> None:
    kind = jnp.zeros(()).dtype
    most = float(jnp.finfo(kind).max)
    require(bool((np.abs(array) <= most).all()), argument, f"strengths up to {most:.3g}, in {kind}", np.abs(array).max())

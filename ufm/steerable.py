"""The split: a model cut where it is steered, and everything that follows from the cut alone.

    embed(contexts) -> h          decode(h) -> logits          steered: decode(h + alpha v)

The unconstrained features model is the smallest such split, a transformer cut after one of its blocks the largest.
Sweeps over steering strengths are written here once for both: the prefix is computed once per context, only the suffix
sees alpha, and memory is bounded by a budget of numbers, not by contexts x strengths x vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ufm._check import finite, require, typed
from ufm.precision import wide

DEFAULT_BUDGET = 2**20
"""Numbers a sweep holds at once, unless told otherwise: 8 MiB of float64, about what a core's cache serves."""


Change = Callable[[Float[Array, "*n i"], Float[Array, "*n o"], Float[Array, "*#n 1"]], Float[Array, "*n o"]]
"""From the input, the output and the strength at a linear site of a model to its changed output (`ufm.updates`)."""


@runtime_checkable
class Steerable(Protocol):
    """A model split where it is steered; a pytree, so that it passes through `jax.jit`."""

    def embed(self, contexts: Int[Array, "*n"]) -> Float[Array, "*n d"]:
        """Hidden states of contexts, at the place where they are steered."""
        ...

    def decode(self, h: Float[Array, "*n d"]) -> Float[Array, "*n V"]:
        """Logits from hidden states."""
        ...


@typed
def steer(
    model: Steerable,
    contexts: Int[Array, "*n"] | np.ndarray | Sequence[int],
    v: Float[Array, " d"],
    alpha: Float[Array, ""] | float,
) -> Float[Array, "*n V"]:
    """Logits of the steered model, ``f_alpha(c_j) = decode(h_j + alpha v)`` (S, section 3.1).

    Args:
        model: a split model.
        contexts: what `model.embed` takes; for the UFM, indices.
        v: steering vector, ``[d]``.
        alpha: steering strength, in units of v.

    Raises:
        ValueError: a context that the model does not have, a v of another width than its hidden states; outside
            transformations, a v or a strength that is not finite, and one at which logits are not.
    """
    contexts, v, alpha = known(model, contexts), number("v", v), number("alpha", alpha)
    h = model.embed(contexts)
    return finite_at(model, alpha, model.decode(moved(h, fitting(v, h), alpha)))


def moved(h: Float[Array, "*n d"], v: Float[Array, " d"], alpha: Float[Array, ""] | float) -> Float[Array, "*n d"]:
    """``h + alpha v``, in float32 at least: hidden states of a half type would swallow small strengths, and round large."""
    return wide(h) + alpha * wide(v)


def number(name: str, value: Any) -> Any:
    """A number, or an array of them, as it is (a boundary check, outside transformations).

    Raises:
        ValueError: one that is not finite.
    """
    if not isinstance(value, jax.core.Tracer):
        finite(name, value)
    return value


def finite_at(model: Any, alphas: Any, values: Any, axis: int = 0) -> Any:
    """What was measured at strengths, as it is, if it is finite (a boundary check, outside transformations).

    Args:
        model: the model that was steered.
        alphas: the strengths, ``[K]``, or one.
        values: an array, with the strengths along `axis` if there are several.
        axis: of the strengths.

    Raises:
        ValueError: a value that is not finite. The message names the strength, and the type and place as the model tells
            them: its `described`, if it has one.
    """
    tracing = isinstance(values, jax.core.Tracer) or isinstance(alphas, jax.core.Tracer)
    if tracing or not values.is_fully_addressable or bool(jnp.isfinite(values).all()):
        return values
    strength = np.atleast_1d(np.asarray(alphas, float))
    bad = ~np.isfinite(np.asarray(values))
    if strength.size > 1:
        strength = strength[bad.any(axis=tuple(k for k in range(bad.ndim) if k != axis))]
    least = strength[np.argmin(np.abs(strength))]
    require(False, "alphas", f"strengths at which logits are finite ({description(model)})", f"{least:.6g}")


def description(model: Any) -> str:
    """The type and the place of a model that is steered, for messages."""
    told = getattr(model, "described", None)
    types = [leaf.dtype for leaf in jax.tree.leaves(model) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return told or f"{type(model).__name__}, {types[0] if types else 'no floats'}"


def known(model: Steerable, contexts: Any) -> Int[Array, "*n"]:
    """`contexts` as an array of indices (a boundary check, outside `jax.jit`, of models that say their `n_contexts`).

    Raises:
        ValueError: a context that the model does not have; it would be taken for another.
    """
    array, count = jnp.asarray(contexts), getattr(model, "n_contexts", None)
    if count is not None and not isinstance(array, jax.core.Tracer):
        indices = np.asarray(array)
        outside = indices[(indices < 0) | (indices >= count)]
        require(outside.size == 0, "contexts", f"indices from 0 to {count - 1}", outside.ravel()[:3].tolist())
    return array


def fitting(v: Float[Array, "..."], h: Float[Array, "*n d"]) -> Float[Array, " d"]:
    """A steering vector that is as wide as hidden states.

    Raises:
        ValueError: another shape.
    """
    wanted = f"shape ({h.shape[-1]},), that of one hidden state (for a language model: split.everywhere(v))"
    require(jnp.shape(v) == h.shape[-1:], "v", wanted, jnp.shape(v))
    return v


@typed
def sweep(
    model: Steerable,
    contexts: Int[Array, " n"],
    v: Float[Array, " d"],
    alphas: Float[Array, " K"],
    measure: Callable[[Float[Array, " V"], Int[Array, ""]], Any],
    *,
    budget: int | None = None,
) -> Any:
    """`measure` of the steered logits at every pair of a context and a strength.

    Args:
        model: a split model.
        contexts: ``[n]``.
        v: steering vector, ``[d]``.
        alphas: steering strengths, ``[K]``, finite.
        measure: from the logits ``[V]`` of one context at one strength, in float32 at least, and the position of that
            context in `contexts`, to a pytree of arrays. It is vectorised; what it returns is all that is kept.
        budget: numbers held at once, which bounds memory whatever n and K are (`at_once`).

    Returns:
        The pytree of `measure`, each leaf with leading axes ``[n, K]``.

    Raises:
        ValueError: a v of another width than the hidden states; outside transformations, a strength at which logits are not
            finite. Inside, `measure` is given NaN there for all of them.
    """
    return sweep_states(model, model.embed(contexts), v, alphas, measure, budget=budget)


@typed
def sweep_states(
    model: Steerable,
    h: Float[Array, "n d"],
    v: Float[Array, " _"],
    alphas: Float[Array, " K"],
    measure: Callable[[Float[Array, " V"], Int[Array, ""]], Any],
    *,
    budget: int | None = None,
) -> Any:
    """`sweep` from hidden states that are known already: those of a pass that several sweeps share.

    Args:
        model: a split model.
        h: hidden states, ``[n, d]``.
        v, alphas, measure, budget: as for `sweep`.

    Returns:
        The pytree of `measure`, each leaf with leading axes ``[n, K]``.
    """
    v = fitting(v, h)

    def one(position, alpha):
        logits = wide(model.decode(moved(h[position], v, alpha)))
        good = jnp.isfinite(logits).all()
        # One logit that is not a number makes no distribution: nothing that is made of the others may pass for one.
        return measure(jnp.where(good, logits, jnp.nan), position), jnp.where(good, 0.0, jnp.nan)

    values, marks = pairs(one, h.shape[0], alphas, at_once(model, h, budget))
    finite_at(model, alphas, marks, axis=1)
    return values


def at_once(model: Steerable, h: Float[Array, "*n d"], budget: int | None = None) -> int:
    """How many hidden states like `h` a sweep decodes at a time within a budget of numbers: at least one.

    A model may say how many numbers it `held` for one of them while it decodes, and which `budget` suits it; otherwise
    these are the V logits, and `DEFAULT_BUDGET`.

    Raises:
        ValueError: a budget below 1.
    """
    require(budget is None or budget >= 1, "budget", "at least one number at a time", budget)
    held = getattr(model, "held", None) or jax.eval_shape(model.decode, h).shape[-1]
    return max(1, (budget or getattr(model, "budget", DEFAULT_BUDGET)) // held)


def pairs(
    function: Callable[[Int[Array, ""], Float[Array, ""]], Any], n: int, alphas: Float[Array, " K"], chunk: int
) -> Any:
    """``function(i, alphas[k])`` for all i < n and k, `chunk` pairs at a time; leaves come back as ``[n, K, ...]``.

    Raises:
        ValueError: a chunk below 1.
    """
    require(chunk >= 1, "chunk", "at least one pair at a time", chunk)
    k = alphas.shape[0]
    require(n >= 1, "contexts", "at least one", "none")
    require(k >= 1, "alphas", "at least one strength", "none")
    # Positions by division: repeated ones would be a constant of n k numbers, which the compiler folds for seconds.
    out = lax.map(lambda at: function(at // k, alphas[at % k]), jnp.arange(n * k), batch_size=min(chunk, n * k))
    return jax.tree.map(lambda leaf: leaf.reshape(n, k, *leaf.shape[1:]), out)


def strengths(alphas: Any) -> Float[Array, " K"]:
    """`alphas` as a one-dimensional array of finite strengths (a boundary check, outside `jax.jit`).

    Raises:
        ValueError: an empty list, or a strength that is not finite, as it is or in the precision of the scope.
    """
    if isinstance(alphas, jax.core.Tracer):
        return jnp.atleast_1d(alphas)
    array, kind = np.atleast_1d(finite("alphas", alphas)), jnp.zeros(()).dtype
    require(array.ndim == 1 and array.size > 0, "alphas", "a list of strengths", f"shape {array.shape}")
    most = float(jnp.finfo(kind).max)
    require(bool((np.abs(array) <= most).all()), "alphas", f"strengths up to {most:.3g}, in {kind}", np.abs(array).max())
    return jnp.asarray(array)

"""Instances of statements about blocks: a small random transformer, its prompts, a steering vector; and sweeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from theory import arc
from theory.statement import Domain
from ufm import sweep
from ufm._pytree import Leaf, pytree
from ufm.normalised import KINDS, as_seen
from ufm.transformer import Transformer, added, init_transformer

PROMPTS, LENGTH, VOCABULARY, WIDTH = 2, 3, 6, 8
"""The size of random instances: prompts, their tokens, and of the transformer."""


@pytree
@dataclass(frozen=True)
class SteeredTransformer:
    """A transformer with alpha v added to its residual stream.

    Attributes:
        model: the transformer; its contexts are the prompts.
        v: steering vector, ``[d]``.
        where: the positions at which it is added, ``[T]``; every one if None. The last has to be one of them.
    """

    model: Transformer
    v: Float[Array, " d"] | Leaf
    where: Bool[Array, " T"] | Leaf | None = field(default=None)

    @property
    def states(self) -> Float[Array, "m T d"]:
        """The stream of every prompt at the cut, before steering."""
        return self.model.embed(jnp.arange(self.model.tokens.shape[0]))

    @property
    def seen(self) -> Float[Array, " d"]:
        """v as a norm sees it: less its mean for "layer"."""
        return as_seen(self.v, self.model.kind)

    @property
    def reach(self) -> Float[Array, ""]:
        """The most that the last norm is given beside alpha v: the state at the last position, and what blocks add."""
        last = self.states[:, -1]
        return jnp.max(jnp.linalg.norm(last, axis=-1)) + added(self.model)

    @property
    def scale(self) -> Float[Array, ""]:
        """The strength at which alpha v is as long as that, with eps as one more coordinate."""
        return jnp.hypot(self.reach, jnp.sqrt(self.v.size * self.model.eps)) / jnp.linalg.norm(self.seen)

    def decode(self, alpha: Float[Array, ""]) -> Float[Array, "m V"]:
        """Steered logits of every prompt."""
        added = self.v if self.where is None else jnp.where(self.where[:, None], self.v, 0)
        return self.model.decode(self.states + alpha * added)

    def limit(self, sign: int) -> Float[Array, " V"]:
        """The logits as alpha goes to +inf (`sign` 1) or -inf (-1), from v alone (`theory.arc.limit`)."""
        model = self.model
        return arc.limit(model.W, model.gamma, model.bias, self.v, sign, kind=model.kind, softcap=model.softcap)

    def bound(self, alpha: Float[Array, ""]) -> Float[Array, " V"]:
        """How far steered logits are from it at most (`theory.arc.limit_bound`)."""
        model = self.model
        return arc.limit_bound(model.W, model.gamma, self.v, alpha, self.reach, kind=model.kind, eps=model.eps)


def kinds(instance: SteeredTransformer) -> tuple[SteeredTransformer, ...]:
    """The arrays of an instance under each kind of norm."""
    return tuple(replace(instance, model=replace(instance.model, kind=kind)) for kind in KINDS)


def on_both_sides(error: Callable[[SteeredTransformer], Float[Array, ""]], instance: SteeredTransformer) -> Float[Array, ""]:
    """The larger of what `error` says of an instance steered along v and along -v: one program for both."""
    return jnp.max(jax.vmap(lambda sign: error(replace(instance, v=sign * instance.v)))(jnp.asarray([1.0, -1.0])))


def sample(key: jax.Array, families: Sequence[str] = ()) -> tuple[Int[Array, "m T"], SteeredTransformer]:
    """Random prompts and parameters: from faint to loud blocks, from flat to sharp unembeddings, v short or long."""
    del families
    of_tokens, of_model, of_v, of_levels = jax.random.split(key, 4)
    tokens = jax.random.randint(of_tokens, (PROMPTS, LENGTH), 0, VOCABULARY)
    model = init_transformer(of_model, tokens, VOCABULARY, WIDTH, biased=True)
    of_blocks, of_w, of_length, of_mean = jax.random.uniform(of_levels, (4,))
    loud = 10 ** (-1 + 1.5 * of_blocks)
    layers = model.layers._replace(out=loud * model.layers.out, down=loud * model.layers.down)
    v = 10 ** (-1 + 2 * of_length) * (jax.random.normal(of_v, (WIDTH,)) + 4 * (of_mean - 0.5))
    return tokens, SteeredTransformer(replace(model, tokens=None, layers=layers, W=10 ** (-1 + 1.7 * of_w) * model.W), v)


def assemble(design: Int[Array, "m T"], parameters: SteeredTransformer) -> SteeredTransformer:
    """The transformer of these prompts."""
    return replace(parameters, model=replace(parameters.model, tokens=design))


@dataclass(frozen=True)
class MeasuredTransformer:
    """A sweep of a transformer over large strengths of both signs.

    Attributes:
        instance: the transformer and the steering vector.
        alphas: strengths, ``[K]``.
        logits: measured, ``[m, K, V]``.
    """

    instance: SteeredTransformer
    alphas: Float[np.ndarray, " K"]
    logits: Float[np.ndarray, "m K V"]


def measured(seed: int = 0) -> list[MeasuredTransformer]:
    """Sweeps of larger transformers than `sample` gives, of either norm, one with a softcap, one with loud blocks.

    Nothing is trained.
    """
    of_model, of_v, of_tokens = jax.random.split(jax.random.key(seed), 3)
    tokens = jax.random.randint(of_tokens, (4, 5), 0, 11)
    v = jax.random.normal(of_v, (16,))
    sizes = np.geomspace(1, 1e6, 13)
    alphas = np.concatenate([-sizes[::-1], sizes])
    sweeps = []
    for kind, softcap, loud in zip(KINDS, (1.5, None), (1, 3), strict=True):
        model = init_transformer(of_model, tokens, 11, blocks=3, heads=4, kind=kind, biased=True, softcap=softcap)
        layers = model.layers._replace(out=loud * model.layers.out, down=loud * model.layers.down)
        model = replace(model, layers=layers)
        logits = sweep(model, jnp.arange(4), v, jnp.asarray(alphas), lambda logits, _: logits)
        sweeps.append(MeasuredTransformer(SteeredTransformer(model, v), alphas, np.asarray(logits)))
    return sweeps


TRANSFORMERS = Domain("transformers", sample, assemble, measured=measured, kind=SteeredTransformer)
"""Transformers steered in their residual stream (`SteeredTransformer`)."""

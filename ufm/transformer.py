"""A small random transformer, cut after one of its blocks: what proposition 4.1 of S is about.

    x <- x + attention(norm(x)),   x <- x + mlp(norm(x)),   ...,   logits = W (gamma * norm(x_last) + bias)

Steering acts on the residual stream at every position, ``[T, d]``. `placement` says where the norms of the blocks stand,
which decides whether what blocks add stays bounded while the stream grows:

    "pre"      x + f(norm(x))       as above: bounded, for the block sees a direction only
    "branch"   x + norm(f(x))       bounded, for the norm comes last
    "stream"   norm(x + f(x))       not bounded; the stream forgets how long alpha v was, and the limit is another
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ufm._check import in_range, require, typed
from ufm._pytree import Leaf, pytree, static
from ufm.normalised import KINDS, norm
from ufm.precision import full
from ufm.steerable import Steerable
from ufm.steering import RESIDUAL

PLACEMENTS = ("pre", "branch", "stream")
"""The places where the norms of a block may stand."""


class Layers(NamedTuple):
    """The parameters of all blocks, stacked; the two norms of a block are those of its attention and its MLP.

    Attributes:
        gamma: gains of the norms, ``[L, 2, d]``.
        bias: biases of the norms, ``[L, 2, d]``.
        qkv: queries, keys and values, ``[L, 3, d, d]``.
        out: of the attention, ``[L, d, d]``.
        up, down: of the MLP, ``[L, d, 4d]`` and ``[L, 4d, d]``.
    """

    gamma: Float[Array, "L 2 d"] | Leaf
    bias: Float[Array, "L 2 d"] | Leaf
    qkv: Float[Array, "L 3 d d"] | Leaf
    out: Float[Array, "L d d"] | Leaf
    up: Float[Array, "L d w"] | Leaf
    down: Float[Array, "L w d"] | Leaf


_STATIC = ["cut", "heads", "kind", "eps", "softcap", "placement"]


@pytree
@dataclass(frozen=True)
class Transformer(Steerable):
    """Parameters of a decoder-only transformer; `init_transformer` draws them.

    Attributes:
        tokens: the contexts, ``[m, T]``.
        embedding: of tokens, ``[V, d]``.
        positions: added to them, ``[T, d]``.
        layers: the blocks.
        gamma: gain of the last norm, ``[d]``.
        bias: bias of the last norm, ``[d]``.
        W: unembedding, ``[V, d]``.
        cut: blocks before the place of steering.
        heads: of each attention.
        kind: of all norms, "rms" or "layer".
        eps: of all norms.
        softcap: logits are ``softcap * tanh(logits / softcap)``, if given.
        placement: one of `PLACEMENTS`.
    """

    tokens: Int[Array, "m T"] | Leaf
    embedding: Float[Array, "V d"] | Leaf
    positions: Float[Array, "T d"] | Leaf
    layers: Layers
    gamma: Float[Array, " d"] | Leaf
    bias: Float[Array, " d"] | Leaf
    W: Float[Array, "V d"] | Leaf
    cut: int = static()
    heads: int = static()
    kind: str = static()
    eps: float = static()
    softcap: float | None = static(default=None)
    placement: str = static(default="pre")

    @property
    def n_contexts(self) -> int:
        """m, the number of contexts."""
        return self.tokens.shape[0]

    def embed(self, contexts: Int[Array, "*n"]) -> Float[Array, "*n T d"]:
        """The residual stream after `cut` blocks."""
        return self._through(self.embedding[self.tokens[contexts]] + self.positions, slice(None, self.cut))

    def decode(self, h: Float[Array, "*n T d"]) -> Float[Array, "*n V"]:
        """Logits at the last position."""
        return self.unembed(self._through(h, slice(self.cut, None))[..., -1, :])

    @full
    def unembed(self, x: Float[Array, "*n d"]) -> Float[Array, "*n V"]:
        """Logits from what the last norm is given."""
        logits = norm(x, self.gamma, self.bias, kind=self.kind, eps=self.eps) @ self.W.T
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)

    @property
    def sites(self) -> dict[str, tuple[int, int]]:
        """The residual stream."""
        return {RESIDUAL: (self.W.shape[1],) * 2}

    def _through(self, x: Float[Array, "*n T d"], blocks: slice) -> Float[Array, "*n T d"]:
        layers = jax.tree.map(lambda leaf: leaf[blocks], self.layers)
        return _run(x, layers, self.heads, self.kind, self.eps, self.placement)


# Compiled even where nothing else is: a scan outside `jax.jit` compiles again at every call.
@partial(jax.jit, static_argnums=(2, 3, 4, 5))
@full
def _run(
    x: Float[Array, "*n T d"], layers: Layers, heads: int, kind: str, eps: float, placement: str
) -> Float[Array, "*n T d"]:
    """The stream after the blocks of `layers`."""

    def block(x, layer):
        for k, f in enumerate((partial(_attention, layer, heads), partial(_mlp, layer))):
            normed = partial(norm, gamma=layer.gamma[k], bias=layer.bias[k], kind=kind, eps=eps)
            if placement == "pre":
                x = x + f(normed(x))
            elif placement == "branch":
                x = x + normed(f(x))
            else:
                x = normed(x + f(x))
        return x, None

    return lax.scan(block, x, layers)[0]


def _attention(layer: Layers, heads: int, x: Float[Array, "*n T d"]) -> Float[Array, "*n T d"]:
    """Causal attention: each position takes a mean of the values at it and before it."""
    q, k, v = (jnp.moveaxis((x @ w).reshape(*x.shape[:-1], heads, -1), -2, -3) for w in layer.qkv)
    scores = q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(jnp.tri(x.shape[-2], dtype=bool), scores, -jnp.inf))
    return jnp.moveaxis(weights @ v, -3, -2).reshape(x.shape) @ layer.out


def _mlp(layer: Layers, x: Float[Array, "*n T d"]) -> Float[Array, "*n T d"]:
    return jax.nn.gelu(x @ layer.up) @ layer.down


@typed
def added(model: Transformer) -> Float[Array, ""]:
    """How much the blocks after the cut add to the stream at most, at any position: a Euclidean norm, inf for "stream".

    A norm returns at most ``rho = sqrt(d) max|gamma| + ||bias||``. A head averages values, ``|gelu(x)| <= |x|``: with
    Frobenius norms, ``rho ||V|| ||O||`` and ``rho ||U|| ||D||`` for "pre", rho for "branch". (Spectral norms do not
    bound all heads together, and need a decomposition.)
    """
    if model.placement == "stream":
        return jnp.asarray(jnp.inf, model.W.dtype)
    after = jax.tree.map(lambda leaf: leaf[model.cut :], model.layers)
    d = model.W.shape[-1]
    rho = jnp.sqrt(d) * jnp.max(jnp.abs(after.gamma), axis=-1) + jnp.linalg.norm(after.bias, axis=-1)
    if model.placement == "branch":
        return jnp.sum(rho)
    size = partial(jnp.linalg.norm, axis=(-2, -1))
    attention, mlp = size(after.qkv[:, 2]) * size(after.out), size(after.up) * size(after.down)
    return jnp.sum(rho * jnp.stack([attention, mlp], axis=-1))


@typed
@full
def added_in_the_limit(model: Transformer, v: Float[Array, " d"]) -> Float[Array, " d"]:
    """What the blocks after the cut add to the stream once it is alpha v and nothing else, alpha to infinity (N11).

    For "pre" only: every norm is then given the direction of v, so that each attention and MLP adds what it makes of that,
    and an attention passes its values on.

    Raises:
        ValueError: another placement than "pre".
    """
    require(model.placement == "pre", "placement", "'pre'", repr(model.placement))
    wanted = model.positions.shape[-1:]
    require(v.shape == wanted, "v", f"shape {wanted}, that of the stream at one position", f"shape {v.shape}")
    after = jax.tree.map(lambda leaf: leaf[model.cut :], model.layers)

    def block(layer: Layers) -> Float[Array, " d"]:
        normed = [norm(v[None], layer.gamma[k], layer.bias[k], kind=model.kind) for k in range(2)]
        return (_attention(layer, model.heads, normed[0]) + _mlp(layer, normed[1]))[0]

    return jnp.sum(jax.vmap(block)(after), axis=0)


@typed
def init_transformer(
    key: jax.Array,
    tokens: Int[Array, "m T"],
    vocabulary_size: int,
    d: int = 16,
    *,
    blocks: int = 2,
    cut: int = 1,
    heads: int = 2,
    kind: str = "rms",
    eps: float = 1e-5,
    biased: bool = False,
    softcap: float | None = None,
    placement: str = "pre",
    dtype: DTypeLike | None = None,
) -> Transformer:
    """Random parameters: normal entries that keep the size of what they act on, gains near 1.

    Args:
        key: a `jax.random.key`.
        tokens: the contexts, ``[m, T]``.
        vocabulary_size: V.
        d: width, a multiple of `heads`.
        blocks: L.
        cut: how many of them come before the place of steering, 0 to L.
        heads: of each attention.
        kind, eps, softcap, placement: see `Transformer`.
        biased: whether norms have (random) biases, or 0.
        dtype: of the parameters; the default of JAX if left out.

    Raises:
        ValueError: an unknown kind or placement; sizes that do not fit; outside transformations, tokens that are not
            in the vocabulary.
    """
    require(kind in KINDS, "kind", f"one of {KINDS}", repr(kind))
    require(placement in PLACEMENTS, "placement", f"one of {PLACEMENTS}", repr(placement))
    in_range("eps", eps, "a number of at least 0", lambda x: x >= 0)
    require(softcap is None or softcap > 0, "softcap", "None or a number above 0", softcap)
    require(blocks >= 0, "blocks", "a number of blocks of at least 0", blocks)
    require(heads >= 1, "heads", "at least one head", heads)
    require(vocabulary_size >= 1, "vocabulary_size", "at least one token", vocabulary_size)
    require(d >= 1 and d % heads == 0, "d", f"a multiple of the {heads} heads", d)
    require(0 <= cut <= blocks, "cut", f"a number of blocks between 0 and {blocks}", cut)
    require(tokens.size > 0, "tokens", "contexts of at least one token", f"shape {tokens.shape}")
    inside = isinstance(tokens, jax.core.Tracer) or bool(((tokens >= 0) & (tokens < vocabulary_size)).all())
    require(inside, "tokens", f"tokens between 0 and {vocabulary_size - 1}", "others")
    shapes = (
        *((blocks, 2, d), (blocks, 2, d), (blocks, 3, d, d), (blocks, d, d), (blocks, d, 4 * d), (blocks, 4 * d, d)),
        *((vocabulary_size, d), (tokens.shape[1], d), (d,), (d,), (vocabulary_size, d)),
    )
    gains, biases, qkv, out, up, down, embedding, positions, gain, bias, W = _normals(key, shapes, dtype)
    size, shift = d**-0.5, 0.3 if biased else 0.0
    layers = Layers(1 + 0.2 * gains, shift * biases, size * qkv, size * out, size * up, size / 2 * down)
    last = 1 + 0.2 * gain, shift * bias, size * W
    return Transformer(tokens, embedding, 0.5 * positions, layers, *last, cut, heads, kind, eps, softcap, placement)


@partial(jax.jit, static_argnums=(1, 2))
def _normals(key: jax.Array, shapes: tuple[tuple[int, ...], ...], dtype: DTypeLike | None) -> list[Array]:
    """Normal numbers in these shapes, all from one draw: compiling a draw for each shape would take seconds."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = jnp.split(jax.random.normal(key, (sum(sizes),), dtype), list(accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)]

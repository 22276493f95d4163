"""The unconstrained features model: logits ``W h_j``, with free decoder W and free context embeddings H (S, definition 2.2).

It is the smallest model that can be split where it is steered (`ufm.steerable`): `embed` looks up a column of H, `decode`
multiplies by W. The cross-entropy is written as the corpus entropy plus a *gap* whose terms are never negative, so that a
trained model's distance from perfect is known to full relative precision, far below the rounding of the loss itself.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ufm._check import in_range, require, shown, typed
from ufm._numerics import exp_minus_tangent
from ufm._pytree import Leaf, pytree
from ufm.concepts import check_count
from ufm.corpus import Corpus, entropy
from ufm.precision import full, wide
from ufm.steerable import Steerable
from ufm.steering import RESIDUAL, Steering

DECODER = "decoder"
"""The site of these models behind their hidden state: the matrix W."""


class FreeFeatures(Steerable):
    """A split model whose hidden states are free parameters, one for each context.

    Attributes:
        W: decoder, ``[V, d]``.
        H: context embeddings, ``[d, m]``; column j is h_j.
    """

    W: Float[Array, "V d"] | Leaf
    H: Float[Array, "d m"] | Leaf

    @property
    def n_contexts(self) -> int:
        """m, the number of contexts."""
        return self.H.shape[1]

    def embed(self, contexts: Int[Array, "*n"]) -> Float[Array, "*n d"]:
        """h_j for each context index."""
        return jnp.moveaxis(_in_floats(self.H), -1, 0)[contexts]

    def read(self, h: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The decoder's input: the hidden state as it is."""
        return h

    @full
    def decode(self, h: Float[Array, "*n d"]) -> Float[Array, "*n V"]:
        """Logits: W times what it is given."""
        return self.read(_in_floats(h)) @ _in_floats(self.W).T

    @property
    def sites(self) -> dict[str, tuple[int, int]]:
        """The hidden state, and the decoder W."""
        return {RESIDUAL: (self.W.shape[1], self.W.shape[1]), DECODER: (self.W.shape[1], self.W.shape[0])}

    @full
    def steered(self, state: Float[Array, "*n d"], steering: Steering, alpha: Any) -> Float[Array, "*n V"]:
        """Logits from hidden states under a steering."""
        x = self.read(steering.apply(RESIDUAL, state, state, alpha))
        return steering.apply(DECODER, x, x @ _in_floats(self.W).T, alpha)


def _in_floats(parameters: Array) -> Array:
    """Parameters as they are, if they are floats: products of whole numbers of few bits would be cut off."""
    return parameters if jnp.issubdtype(parameters.dtype, jnp.inexact) else parameters.astype(float)


@pytree
@dataclass(frozen=True)
class UFM(FreeFeatures):
    """Parameters (W, H) of an unconstrained features model: logits ``W h``.

    Attributes:
        W: decoder, ``[V, d]``.
        H: context embeddings, ``[d, m]``; column j is h_j.
    """

    W: Float[Array, "V d"] | Leaf
    H: Float[Array, "d m"] | Leaf


@typed
def init(key: jax.Array, corpus: Corpus, d: int, *, scale: float = 0.3, dtype: DTypeLike | None = None) -> UFM:
    """Random parameters for a corpus: independent normal entries of standard deviation `scale`.

    Args:
        key: a `jax.random.key`.
        corpus: gives V and m.
        d: embedding width. A corpus is fitted exactly if d is at least the rank of its centred log-probability table
            (G - 1 or G under assumption 1).
        scale: standard deviation; from 0.3 small corpora are trained to the bottom from every start that was tried.
        dtype: of the parameters; that of the corpus if left out.

    Raises:
        ValueError: if d < 1, or does not fit in memory; outside transformations, a scale that is negative, or so large that
            parameters overflow.
    """
    require(d >= 1, "d", "an embedding width of at least 1", d)
    check_count("d", "widths", d)
    dtype = jnp.dtype(corpus.log_rows.dtype if dtype is None else dtype)
    most = float(jnp.finfo(dtype).max) / 16  # normal numbers are drawn within nine standard deviations
    in_range("scale", scale, f"a standard deviation from 0 to {most:.3g}", lambda x: 0 <= x <= most)
    return _init(key, scale, corpus.vocabulary_size, d, corpus.n_contexts, dtype)


@partial(jax.jit, static_argnames=("v", "d", "m", "dtype"))
def _init(key, scale, v, d, m, dtype):
    of_w, of_h = jax.random.split(key)
    return UFM(
        W=scale * jax.random.normal(of_w, (v, d), dtype),
        H=scale * jax.random.normal(of_h, (d, m), dtype),
    )


@typed
def exact(corpus: Corpus) -> UFM:
    """A model that satisfies assumption 2 of S up to rounding: ``softmax(W h_j) = p(. | c_j)``, with d = V.

    The decoder is a fixed orthogonal matrix rather than the identity, so that hidden states are not log-probabilities
    in disguise and a mistake in the split would show.

    Raises:
        ValueError: outside transformations, if a probability is 0, which no softmax reaches.
    """
    if not isinstance(corpus.log_rows, jax.core.Tracer):
        require(bool(jnp.isfinite(corpus.log_rows).all()), "corpus", "positive probabilities", "a probability of 0")
    return representing(corpus.log_p)


@typed
@full
def representing(log_p: Float[Array, "m V"]) -> UFM:
    """A model of a table of log-probabilities, as `exact`, for use inside transformations."""
    v = log_p.shape[-1]
    # A constant of the program: drawing and factorising it there would take longer to compile than all the rest.
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(v, v)))[0].astype(log_p.dtype)
    centred = log_p - jnp.mean(log_p, axis=-1, keepdims=True)
    return UFM(W=jnp.asarray(rotation), H=rotation.T @ centred.T)


def check_sizes(argument: str, model: FreeFeatures, corpus: Corpus | None = None) -> None:
    """Refuse a model whose W ``[V, d]`` and H ``[d, m]`` do not fit each other, or the V and m of a corpus.

    Args:
        argument: what the model is called where it was given.
        model: one model, not a batch of them.
        corpus: what it should be a model of, if anything.

    Raises:
        ValueError: such a model.
    """
    w, h = np.shape(model.W), np.shape(model.H)
    got = f"W {w} and H {h}" if w and h else f"{shown(model.W)} and {shown(model.H)}"
    require(len(w) == len(h) == 2 and w[1] == h[0], argument, "arrays W [V, d] and H [d, m] of one width d", got)
    if corpus is not None:
        v, m = corpus.vocabulary_size, corpus.n_contexts
        wanted = f"W [{v}, d] and H [d, {m}] for the {v} tokens and {m} contexts of the corpus"
        require((w[0], h[1]) == (v, m), argument, wanted, got)


@typed
def logits(model: FreeFeatures) -> Float[Array, "m V"]:
    """The logits of every context, ``[m, V]``.

    Raises:
        ValueError: W and H that do not fit each other; outside transformations, logits that are not finite.
    """
    check_sizes("model", model)
    values = model.decode(model.H.T)
    if not isinstance(values, jax.core.Tracer):
        whole = bool(jnp.isfinite(values).all())
        require(whole, "model", f"one whose logits are finite ({model.described})", "one whose logits are not")
    return values


@typed
@full
def gap(model: FreeFeatures, corpus: Corpus) -> Float[Array, ""]:
    """``CE(f) - sum_j pi_j H(p_j) = sum_j pi_j KL(p_j || softmax(f(c_j)))`` in nats; assumption 2 of S is a gap of 0.

    With ``delta = log softmax(f) - log p``, rows that sum to 1 give ``KL = sum_z p (e^delta - 1 - delta)``: a sum of
    terms that are never negative, so that a gap of 1e-25 is still right to most of its digits, where the difference of
    the cross-entropy and the entropy would be rounding noise from 1e-16 on.

    Raises:
        ValueError: a model of other numbers of tokens or contexts than the corpus has.
    """
    check_sizes("model", model, corpus)
    log_p = corpus.log_p
    p = jnp.exp(log_p)
    log_q = jax.nn.log_softmax(wide(logits(model)))
    delta = log_q - jnp.where(p > 0, log_p, 0)
    terms = jnp.where(p > 0, p * exp_minus_tangent(jnp.where(p > 0, delta, 0)), jnp.exp(log_q))
    return jnp.dot(corpus.weights, jnp.sum(terms, axis=-1))


@typed
def cross_entropy(model: FreeFeatures, corpus: Corpus) -> Float[Array, ""]:
    """``CE(f) = - sum_j pi_j sum_z p_j(z) log softmax_z(f(c_j))`` in nats (S, section 2.2).

    Raises:
        ValueError: as `gap`.
    """
    return entropy(corpus) + gap(model, corpus)

"""Instances of statements about models that are not trained perfectly: a corpus, a model with its gap, a direction.

Random ones are made backwards: first the model, then a corpus for which it is at rest. With the singular value decomposition
``W H = U S V'``, tokens centred, and balanced factors, the gradient of the cross-entropy by the logits has to be

    pi_j (q_j(z) - p_j(z)) = -lambda (U V')_{zj} + E_{zj},      U' E = 0,  E V = 0,  sum_z E = 0,

for the model to be a stationary point under weight decay lambda, and any E of this kind will do: it is what a model of
width d below the rank of the corpus cannot learn. So p is q less that, divided by pi. No optimiser takes part.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from theory.statement import Domain
from ufm import UFM, Corpus, fit, from_table, init, sweep
from ufm._numerics import exp_minus_tangent
from ufm._pytree import Leaf, pytree
from ufm.precision import full

VOCABULARY, CONTEXTS, WIDTH = 6, 5, 3
"""The size of random models; their widths are 1 to 3."""

KINDS = ("decay", "rest", "along v", "anything", "extremal")
"""How a random model is related to its corpus: at rest under weight decay; at rest without; at rest only along v, as a sum
over contexts; not at all; and one whose slope is nearly all that its gap allows."""


@pytree
@dataclass(frozen=True)
class Imperfect:
    """A corpus and a model of it that need not be perfect.

    Attributes:
        log_p: log p_j(z), of the corpus, ``[m, V]`` nats.
        weights: pi, the probability of each context, ``[m]``.
        W: decoder, ``[V, d]``.
        H: hidden states, ``[d, m]``.
        v: a direction, ``[d]``.
        combination: w, weights of contexts: another direction is ``H w``, ``[m]``.
        decay: the weight decay of W and of H, under which the model was trained, ``[2]``.
    """

    log_p: Float[Array, "m V"] | Leaf
    weights: Float[Array, " m"] | Leaf
    W: Float[Array, "V d"] | Leaf
    H: Float[Array, "d m"] | Leaf
    v: Float[Array, " d"] | Leaf
    combination: Float[Array, " m"] | Leaf
    decay: Float[Array, " 2"] | Leaf

    @property
    def network(self) -> UFM:
        """W and H as a model that can be steered."""
        return UFM(self.W, self.H)

    @property
    @full
    def log_q(self) -> Float[Array, "m V"]:
        """log q_j(z): what the model says, unsteered, ``[m, V]`` nats."""
        return jax.nn.log_softmax((self.W @ self.H).T)

    @property
    @full
    def tilts(self) -> Float[Array, " V"]:
        """W v: what the direction adds to the logits for each unit of strength, ``[V]`` nats."""
        return self.W @ self.v

    @property
    @full
    def gradient(self) -> Float[Array, "d m"]:
        """The gradient of the cross-entropy by each hidden state, ``pi_j W' (q_j - p_j)``, in closed form, ``[d, m]``."""
        return self.W.T @ ((jnp.exp(self.log_q) - jnp.exp(self.log_p)).T * self.weights)

    @property
    @full
    def gap(self) -> Float[Array, ""]:
        """``sum_j pi_j KL(p_j || q_j)`` to full relative precision (`ufm.model.gap`), nats."""
        terms = jnp.exp(self.log_p) * exp_minus_tangent(self.log_q - self.log_p)
        return jnp.dot(self.weights, jnp.sum(terms, axis=-1))


def cross_entropy(instance: Imperfect, log_q: Float[Array, "m V"]) -> Float[Array, ""]:
    """The cross-entropy of log-probabilities on the instance's corpus, nats."""
    return -jnp.dot(instance.weights, jnp.sum(jnp.exp(instance.log_p) * log_q, axis=-1))


class TrainingParameters(NamedTuple):
    """The smooth part of a random instance: any real numbers give one.

    Attributes:
        left, right: what U and V are the orthonormal bases of, ``[V, d]`` and ``[m, d]``.
        values: log of the singular values of the logits, ``[d]``.
        ratio: log of the ratio of the two decays, which is 1 in half of the designs.
        residual: what E is the projection of, ``[V, m]``.
        size: logit of how far the corpus is from the model, as a share of what keeps probabilities positive.
        share: logit of the part of that which decay accounts for.
        weights, v, combination: logits of pi, and the directions.
    """

    left: Any
    right: Any
    values: Any
    ratio: Any
    residual: Any
    size: Any
    share: Any
    weights: Any
    v: Any
    combination: Any


class TrainingDesign(NamedTuple):
    """The discrete part of a random instance.

    Attributes:
        kind: index into `KINDS`.
        width: how many coordinates are used.
        equal: 1 if the two decays are equal.
        contrast: 1 if the combination sums to 0.
    """

    kind: Int[Array, ""]
    width: Int[Array, ""]
    equal: Int[Array, ""]
    contrast: Int[Array, ""]


def sample(key: jax.Array, families: Sequence[str] = ()) -> tuple[TrainingDesign, TrainingParameters]:
    """A random design and its parameters; use under `jax.vmap`."""
    del families
    v, m, d = VOCABULARY, CONTEXTS, WIDTH
    lengths = [4, v * d, m * d, d, 1, v * m, 1, 1, m, d, m]
    u = jax.random.uniform(key, (sum(lengths),), minval=jnp.finfo(float).tiny)
    levels, *parts = jnp.split(u, np.cumsum(lengths)[:-1])
    left, right, values, ratio, residual, size, share, weights, direction, combination = map(ndtri, parts)
    options = (len(KINDS), d, 2, 2)
    kind, width, equal, balance = (jnp.floor(level * n).astype(int) for level, n in zip(levels, options, strict=True))
    return TrainingDesign(kind, 1 + width, equal, balance), TrainingParameters(
        left=left.reshape(v, d),
        right=right.reshape(m, d),
        values=values,
        ratio=ratio[0],
        residual=residual.reshape(v, m),
        size=2 * size[0],
        share=2 * share[0],
        weights=weights,
        v=direction,
        combination=combination,
    )


@full
def assemble(design: TrainingDesign, parameters: TrainingParameters) -> Imperfect:
    """The instance: smooth in the parameters; use under `jax.vmap`."""
    live = jnp.arange(WIDTH) < design.width
    extremal = design.kind == KINDS.index("extremal")
    # Half of the tokens up and half of them down, from even odds: nearly all the slope that a gap allows.
    columns = jnp.where(extremal, jnp.eye(VOCABULARY)[:, :WIDTH].at[:, 0].set(_HALVES), parameters.left)
    left = jnp.linalg.qr(jnp.concatenate([jnp.ones((VOCABULARY, 1)), columns], axis=1))[0][:, 1:] * live
    right = jnp.linalg.qr(parameters.right)[0] * live
    factor = jnp.exp(parameters.values / 2)
    lean = jnp.where(design.equal == 1, 1.0, jnp.exp(parameters.ratio / 4))
    W, H = left * factor * lean, jnp.where(extremal, 0.0, (right * factor / lean).T)
    v = jnp.where(extremal, jnp.eye(WIDTH)[0], parameters.v)
    weights = jax.nn.softmax(parameters.weights)
    q = jax.nn.softmax((W @ H).T)

    share = jax.nn.sigmoid(parameters.share)
    change = _change(design, parameters.residual, left, right, share, W @ v) / weights[:, None]
    change = jnp.where(extremal, _HALVES * jnp.sign(parameters.v[0]), change)
    falls = change < 0
    room = jnp.min(jnp.where(falls, q / jnp.where(falls, -change, 1), jnp.inf))
    step = jax.nn.sigmoid(parameters.size) * room * jnp.where(extremal, 1e-2, 0.98)
    decay = jnp.where(design.kind == KINDS.index("decay"), share * step, 0.0)
    return Imperfect(
        log_p=jnp.log(q + step * change),
        weights=weights,
        W=W,
        H=H,
        v=v,
        combination=parameters.combination - jnp.where(design.contrast == 1, jnp.mean(parameters.combination), 0.0),
        decay=decay * jnp.stack([1 / lean**2, lean**2]),
    )


_HALVES = np.where(np.arange(VOCABULARY) % 2 == 0, 1.0, -1.0)


def _change(design: TrainingDesign, residual, left, right, share, tilts) -> Float[Array, "m V"]:
    """``pi_j (p_j - q_j)`` up to a factor, as the kind of the design has it; rows sum to 0."""
    free = residual - jnp.mean(residual, axis=0)
    outside = free - left @ (left.T @ free)
    rest = outside - (outside @ right) @ right.T
    centred = tilts - jnp.mean(tilts)
    excess = jnp.sum(centred @ free) / jnp.dot(centred, centred)
    balanced = free - jnp.outer(centred, jnp.full(CONTEXTS, excess / CONTEXTS))
    options = (share * left @ right.T + (1 - share) * rest, rest, balanced, free, free)
    return jnp.select([design.kind == k for k in range(len(KINDS))], options).T


# --- trained ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredImperfect:
    """A trained model, swept along its v.

    Attributes:
        corpus: what it was trained on.
        instance: the model, its corpus, its directions.
        alphas: strengths, ``[K]``.
        log_probabilities: measured log softmax of the logits steered by v, ``[m, K, V]`` nats.
        combined: the same, steered by ``H w``.
    """

    corpus: Corpus
    instance: Imperfect
    alphas: Float[np.ndarray, " K"]
    log_probabilities: Float[np.ndarray, "m K V"]
    combined: Float[np.ndarray, "m K V"]


ALPHAS = np.linspace(-4, 4, 33)
"""The strengths of the sweeps."""


def corpus_of_any_rows() -> Corpus:
    """Nine contexts and nine tokens without structure: tables of rank 8, far above the widths that are trained."""
    rows = np.random.default_rng(0).dirichlet(np.full(9, 2.0), size=9)
    return from_table(rows, [[0, 1, 2], [3, 4, 5], [6, 7, 8]], [0, 0, 0, 1, 1, 1, 2, 2, 2], np.arange(3.0, 12.0))


def measured(seed: int = 0) -> list[MeasuredImperfect]:
    """Models of widths 1 to 9 of a corpus of rank 8, with and without weight decay, and one that is not trained."""
    corpus, sweeps = corpus_of_any_rows(), []
    for d, decay in ((1, 0.0), (2, 0.0), (3, 0.0), (2, 1e-3), (2, (1e-3, 3e-3)), (3, 1e-4), (9, 1e-3), (9, (1e-3, 3e-3))):
        with warnings.catch_warnings():
            # That the gap is not 0 is what they are for.
            warnings.filterwarnings("ignore", "fit: the gap is")
            model = fit(corpus, start=narrow(init(jax.random.key(seed), corpus, 9), d), tolerance=0.0, decay=decay).model
        v = np.random.default_rng(seed).normal(size=9) * (np.arange(9) < d)
        sweeps.append(_measure(corpus, model, v, decay if isinstance(decay, tuple) else (decay, decay), seed))
    return [*sweeps, _measure(*_frequencies_only(corpus), (0.0, 0.0), seed)]


def narrow(model: UFM, d: int) -> UFM:
    """The model with all but d coordinates set to 0, where they stay in training: models of all widths are one program."""
    live = jnp.arange(model.W.shape[1]) < d
    return UFM(model.W * live, model.H * live[:, None])


def _frequencies_only(corpus: Corpus) -> tuple[Corpus, UFM, Float[np.ndarray, " d"]]:
    """A corpus with a model that knows how frequent tokens are up to a small shift, and the direction of that shift."""
    tokens, contexts = corpus.vocabulary_size, corpus.n_contexts
    halves = np.where(np.arange(tokens) % 2 == 0, 1.0, -1.0)
    q = 0.5 / np.where(halves > 0, np.sum(halves > 0), np.sum(halves < 0))
    shifted = np.broadcast_to(q * (1 + 0.02 * halves), (contexts, tokens))
    columns, state = np.zeros((tokens, 9)), np.zeros(9)
    columns[:, 0], columns[:, 1], state[1] = halves, np.log(q), 1.0
    model = UFM(jnp.asarray(columns), jnp.asarray(np.repeat(state[:, None], contexts, axis=1)))
    return from_table(shifted, corpus.concepts, np.asarray(corpus.concept)), model, np.eye(9)[0]


def _measure(
    corpus: Corpus, model: UFM, v: Float[np.ndarray, " d"], decay: tuple[float, float], seed: int
) -> MeasuredImperfect:
    contexts = jnp.arange(corpus.n_contexts)
    combination = jnp.asarray(np.random.default_rng(seed).normal(size=corpus.n_contexts))
    instance = Imperfect(corpus.log_p, corpus.weights, model.W, model.H, jnp.asarray(v), combination, jnp.asarray(decay))
    along, combined = (
        np.asarray(sweep(model, contexts, direction, jnp.asarray(ALPHAS), lambda logits, _: jax.nn.log_softmax(logits)))
        for direction in (instance.v, model.H @ combination)
    )
    return MeasuredImperfect(corpus, instance, ALPHAS, along, combined)


IMPERFECT = Domain("imperfect models", sample, assemble, measured=measured, kind=Imperfect)
"""Models with a gap, and corpora they were trained on or not (`Imperfect`)."""

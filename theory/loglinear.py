"""Instances of statements about overlapping concepts: log-linear families, in which a context has any number of attributes.

    log p(z | lambda) = base(z) + sum_k lambda_k phi_k(z) - A(lambda)

Features phi are properties of tokens, as many as one likes and overlapping (animal, plural, French); a context has a
coordinate for each. Disjoint concepts are the features that are 1 on a concept and 0 off it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from theory.statement import Domain
from ufm import Corpus, Steerable, difference_of_means, fit, log_linear, sweep
from ufm._pytree import Leaf, pytree
from ufm.precision import full

VOCABULARY, CONTEXTS, FEATURES = 7, 6, 3
"""The size of random families."""


@pytree
@dataclass(frozen=True)
class LogLinear:
    """Contexts of a log-linear family, and weights of theirs that make a direction ``v = sum_j w_j h_j``.

    Attributes:
        base: what tokens have without any feature, ``[V]`` nats.
        features: phi_k(z), ``[K, V]``.
        coordinates: lambda_j, how much of each feature a context has, ``[m, K]``.
        combination: w, ``[m]``.
    """

    base: Float[Array, " V"] | Leaf
    features: Float[Array, "K V"] | Leaf
    coordinates: Float[Array, "m K"] | Leaf
    combination: Float[Array, " m"] | Leaf

    @full
    def log_p(self, coordinates: Float[Array, "*n K"], share: Float[Array, ""] | float = 1.0) -> Float[Array, "*n V"]:
        """log p(z | lambda), with so much of the base, nats."""
        return jax.nn.log_softmax(share * self.base + coordinates @ self.features)

    @property
    @full
    def shift(self) -> Float[Array, " K"]:
        """``sum_j w_j lambda_j``: for a difference of means, the mean coordinates of P less those of N."""
        return self.combination @ self.coordinates


class FeatureDesign(NamedTuple):
    """The discrete part of a random instance.

    Attributes:
        contrast: 1 if the weights sum to 0.
        binary: 1 if features are 0 or 1.
    """

    contrast: Int[Array, ""]
    binary: Int[Array, ""]


def sample(key: jax.Array, families: Sequence[str] = ()) -> tuple[FeatureDesign, LogLinear]:
    """Random features, coordinates and weights, from slight to strong; two thirds of the weights sum to 0."""
    del families
    v, m, k = VOCABULARY, CONTEXTS, FEATURES
    lengths = [4, v, k * v, m * k, m]
    u = jax.random.uniform(key, (sum(lengths),), minval=jnp.finfo(float).tiny)
    levels, *normal = jnp.split(u, np.cumsum(lengths)[:-1])
    base, features, coordinates, combination = map(ndtri, normal)
    return FeatureDesign((levels[0] < 2 / 3).astype(int), (levels[1] < 0.5).astype(int)), LogLinear(
        base=10 ** (-1 + 1.5 * levels[2]) * base,
        features=features.reshape(k, v),
        coordinates=10 ** (-1 + 1.5 * levels[3]) * coordinates.reshape(m, k),
        combination=combination,
    )


def assemble(design: FeatureDesign, parameters: LogLinear) -> LogLinear:
    """The family: smooth in the parameters; use under `jax.vmap`."""
    features, weights = parameters.features, parameters.combination
    return LogLinear(
        base=parameters.base,
        features=jnp.where(design.binary == 1, (features > 0).astype(features.dtype), features),
        coordinates=parameters.coordinates,
        combination=weights - jnp.where(design.contrast == 1, jnp.mean(weights), 0.0),
    )


# --- trained ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredLogLinear:
    """A trained model of a log-linear corpus, swept.

    Attributes:
        instance: the family and the weights.
        alphas: strengths, ``[K]``.
        log_probabilities: measured log softmax of the steered logits, ``[m, K, V]`` nats.
    """

    instance: LogLinear
    alphas: Float[np.ndarray, " K"]
    log_probabilities: Float[np.ndarray, "m K V"]


ALPHAS = np.linspace(-4, 4, 33)
"""The strengths of the sweeps."""


def overlapping() -> tuple[LogLinear, Corpus]:
    """Three concepts that overlap, of nine tokens, and nine contexts with more or less of each; and the corpus."""
    rng = np.random.default_rng(0)
    features = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1, 0, 1, 0]], float)
    base, coordinates = rng.normal(size=9) / 2, rng.normal(size=(9, 3))
    family = LogLinear(*map(jnp.asarray, (base, features, coordinates, np.repeat([1 / 3, 0, -1 / 3], 3))))
    return family, log_linear(base, features, coordinates, [[0, 1, 2, 3], [4, 5], [6, 7, 8]])


def measured(seed: int = 0) -> list[MeasuredLogLinear]:
    """A trained model, steered along a difference of means and along a combination whose weights do not sum to 0."""
    family, corpus = overlapping()
    model = fit(corpus, tolerance=0.0, key=jax.random.key(seed)).model
    other = LogLinear(family.base, family.features, family.coordinates, jnp.asarray(np.repeat([0.3, 0.1, -0.1], 3)))
    return [measure(instance, model) for instance in (family, other)]


def measure(instance: LogLinear, model: Steerable) -> MeasuredLogLinear:
    """The sweep of a model of the family's contexts along ``sum_j w_j h_j``."""
    contexts = jnp.arange(instance.coordinates.shape[0])
    v = difference_of_means(model, contexts, instance.combination)
    curves = sweep(model, contexts, v, jnp.asarray(ALPHAS), lambda logits, _: jax.nn.log_softmax(logits))
    return MeasuredLogLinear(instance, ALPHAS, np.asarray(curves))


LOG_LINEAR = Domain("log-linear families", sample, assemble, measured=measured, kind=LogLinear)
"""Contexts of log-linear families, with weights that make a direction (`LogLinear`)."""

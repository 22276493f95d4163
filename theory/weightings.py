"""Instances of statements about any direction in the span of hidden states: tables with any weights of their contexts.

A difference of means weighs the contexts of P by 1/|P| and those of N by -1/|N|. Principal components, probes, atoms of a
sparse code and sets P and N that overlap or mix concepts are other weights w, and the same `theory.instance.Instance` holds
them: only what a statement may take for granted differs, and so they are a domain of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from theory import examples, random_instances
from theory.instance import Instance, Measured, with_peaks
from theory.statement import Domain
from ufm import Corpus, fit, uniform, weighted
from ufm._pytree import Leaf, pytree

KINDS = ("overlapping", "any that sum to 0", "any", "for the target", "for two concepts")
"""Kinds of weights: +1/|P| and -1/|N| with any P and N; real numbers that sum to 0; real numbers; positive ones on the
target's contexts and negative ones on others, that sum to 1 and -1; the same, but for a concept that is raised nearly as far
as the target, where there are three."""

FAMILIES = ("uniform", "weighted", "tied")
"""The families of tables: those of assumption 1."""


@pytree
@dataclass(frozen=True)
class Weighting(Instance):
    """A next-token table with any weights of its contexts as the `contrast`: ``v = sum_j w_j h_j``."""


def weighting(instance: Instance, weights: Float[Array, " m"]) -> Weighting:
    """The instance with other weights of its contexts, its peaks left out."""
    kept = {attribute.name: getattr(instance, attribute.name) for attribute in fields(Instance)}
    return Weighting(**(kept | {"contrast": weights, "known_peaks": None}))


class WeightingDesign(NamedTuple):
    """The discrete part of a random instance.

    Attributes:
        table: the design of the table.
        kind: index into `KINDS`.
        positive, negative: sets P and N that know of no concepts and may overlap, ``[m]``.
    """

    table: random_instances.Design
    kind: Int[Array, ""]
    positive: Bool[Array, " m"]
    negative: Bool[Array, " m"]


class WeightingParameters(NamedTuple):
    """The smooth part of a random instance.

    Attributes:
        table: the parameters of the table.
        weights: a number for each context, ``[m]``.
    """

    table: random_instances.Parameters
    weights: Float[Array, " m"] | Leaf


def sample(key: jax.Array, families: Sequence[str] = FAMILIES) -> tuple[WeightingDesign, WeightingParameters]:
    """A random design of a table with weights, and its parameters; use under `jax.vmap`."""
    of_table, of_weights = jax.random.split(key)
    design, parameters = random_instances.sample(of_table, families)
    m = random_instances.CONTEXTS
    u = jax.random.uniform(of_weights, (1 + 3 * m,), minval=jnp.finfo(float).tiny)
    sets = u[1 : 1 + 2 * m].reshape(2, m)
    # The least of each is a member, so that no set is empty.
    positive, negative = (sets < 0.4) | (sets == jnp.min(sets, axis=1, keepdims=True))
    kind = jnp.floor(u[0] * len(KINDS)).astype(int)
    return WeightingDesign(design, kind, positive, negative), WeightingParameters(parameters, ndtri(u[1 + 2 * m :]))


def assemble(design: WeightingDesign, parameters: WeightingParameters) -> Weighting:
    """The table with its weights: smooth in the parameters; use under `jax.vmap`."""
    table, free = random_instances.assemble(design.table, parameters.table), parameters.weights
    positive, negative = design.positive.astype(free.dtype), design.negative.astype(free.dtype)
    own, size = table.concept == table.target, jnp.abs(free) + 1e-3
    towards, away = jnp.where(own, size, 0), jnp.where(own, 0, size)
    other = jnp.where(design.table.count > 2, (table.target + 1) % design.table.count, table.target)
    raised, lowered = jnp.where(~own & (table.concept == other), size, 0), jnp.where(own | (table.concept == other), 0, size)
    share = jnp.where(design.table.count > 2, jax.nn.sigmoid(2 + free[0]), 0.0)
    for_two = towards / towards.sum() + share * raised / jnp.where(raised.sum() > 0, raised.sum(), 1)
    options = (
        positive / positive.sum() - negative / negative.sum(),
        free - jnp.mean(free),
        free,
        towards / towards.sum() - away / away.sum(),
        for_two - (1 + share) * lowered / lowered.sum(),
    )
    return weighting(table, jnp.select([design.kind == k for k in range(len(KINDS))], options))


# --- trained ---------------------------------------------------------------------------------------------------------


def corpus_of_unequal_ratios() -> Corpus:
    """Three concepts whose tokens differ in log(a/b) by up to 1.8 nats, three contexts each."""
    gamma = [0.5, 0.3, 0.2, 0.5, 0.3, 0.2, 0.4, 0.35, 0.25]
    omega = [0.2, 0.3, 0.5, 0.2, 0.3, 0.5, 0.3, 0.35, 0.35]
    return weighted((3, 3, 3), gamma, omega, 0.2, length=None, contexts_per_concept=3)


def _weights(states: Float[np.ndarray, "m d"]) -> tuple[np.ndarray, ...]:
    """Weights of nine contexts, three of each concept: of the first principal component, and of four kinds of sets."""
    centred = states - states.mean(axis=0)
    component = np.linalg.svd(centred, full_matrices=False)[0][:, 0]
    return (
        component - component.mean(),
        np.array([1, 1, 1, 1, 0, 0, 0, 0, 0]) / 4 - np.array([0, 0, 1, 1, 1, 1, 1, 1, 0]) / 6,
        NEGATIVES_OF_TWO_CONCEPTS,
        np.array([1, 1, 1, 0.9, 0.9, 0.9, -1.9, -1.9, -1.9]) / 3,
        np.array([1, 1, 1, 0, 0, 0, 0, 0, 0]) / 3,
    )


NEGATIVES_OF_TWO_CONCEPTS = np.array([1, 1, 1, -1, -1, 0, -1, 0, 0]) / 3
"""Weights of nine contexts: P is all of the first concept, N two contexts of the second and one of the third."""


def measured(seed: int = 0) -> list[Measured]:
    """A trained model, steered along directions that are made in five ways, and one of the uniform family."""
    sweeps: list[Measured] = []
    for corpus in (corpus_of_unequal_ratios(), uniform(length=None, contexts_per_concept=3)):
        model = fit(corpus, tolerance=0.0, key=jax.random.key(seed)).model
        table = examples.instance_of(corpus, target=0)
        ways = _weights(np.asarray(model.H.T)) if not sweeps else (NEGATIVES_OF_TWO_CONCEPTS,)
        for weights in ways:
            sweeps.append(examples.measure(examples.Case(corpus, weighting(table, jnp.asarray(weights))), model))
    return sweeps


WEIGHTINGS = Domain("weightings", sample, assemble, FAMILIES, complete=with_peaks, measured=measured, kind=Weighting)
"""Next-token tables of assumption 1 with any weights of their contexts (`Weighting`)."""

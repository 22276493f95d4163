"""Families of corpora: uniform, weighted, per-context (all inside S's theory), mixed and log-linear (outside it on purpose).

All families but the last two are the weighted family of S, remark 3.4, with more or less structure:
``a_z = (1 - eps) gamma_z`` inside the context's concept and ``b_z = eps / (G - 1) omega_z`` outside it, with gamma and
omega summing to 1 over each concept.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from ufm._check import finite, require, typed
from ufm.concepts import LARGEST, Concepts, check_count
from ufm.corpus import Corpus, from_table


@typed
def all_words(concepts: Concepts, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every context of ``length`` tokens from a single concept, as ``[m, length]`` tokens and ``[m]`` concepts.

    Raises:
        ValueError: a length below 1, or one of more contexts than fit in memory.
    """
    require(length >= 1, "length", "contexts of at least one token", length)
    # Concepts of two tokens have more than `LARGEST` words from 25 tokens on.
    count = sum(int(size) ** min(length, 25) for size in concepts.sizes)
    fits = max(count, length) <= LARGEST
    require(
        fits,
        "length",
        f"contexts that fit in memory, at most {LARGEST}",
        f"those of {length} tokens of {concepts.sizes.max()}",
    )
    words = [w for k in range(concepts.count) for w in product(concepts.members(k), repeat=length)]
    array = np.array(words)
    return array, concepts.of_token[array[:, 0]]


@typed
def uniform(
    sizes: Sequence[int] = (3, 3, 3),
    epsilon: float = 0.05,
    *,
    length: int | None = 3,
    contexts_per_concept: int | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Corpus:
    """The uniform family of S, appendix B.1: ``a = (1 - eps) / s``, ``b = eps / ((G - 1) s)``.

    The default is the corpus the project's numbers refer to: V=9, G=3, all 81 contexts of T - 1 = 3 tokens of one
    concept, eps=0.05, with an entropy of 1.3317848910419796 nats. Concepts of unequal sizes divide their share evenly.

    Args:
        sizes: tokens per concept; at least two concepts.
        epsilon: probability that the next token leaves the context's concept, in (0, (G-1)/G).
        length: contexts are all words of this many tokens of one concept.
        contexts_per_concept: instead of words, this many anonymous contexts per concept.
        weights: pi, ``[m]``; uniform if left out.

    Raises:
        ValueError: fewer than two concepts, epsilon outside its range, or more tokens or contexts than fit in memory.
    """
    concepts = Concepts.from_sizes(sizes)
    share = 1 / concepts.sizes[concepts.of_token]
    return weighted(sizes, share, share, epsilon, length=length, contexts_per_concept=contexts_per_concept, weights=weights)


@typed
def weighted(
    sizes: Sequence[int],
    gamma: Sequence[float] | np.ndarray,
    omega: Sequence[float] | np.ndarray,
    epsilon: float,
    *,
    length: int | None = 3,
    contexts_per_concept: int | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Corpus:
    """The weighted family of S, remark 3.4: ``a_z = (1 - eps) gamma_z``, ``b_z = eps / (G - 1) omega_z``.

    Args:
        sizes, epsilon, length, contexts_per_concept, weights: as for `uniform`.
        gamma: share of each token within its concept when the context is of that concept, ``[V]``, positive, summing
            to 1 over each concept.
        omega: the same when the context is of another concept, ``[V]``.

    Assumption 1 also asks a_z > b_z; `ufm.corpus.assumption_1` reports it.
    """
    concepts = Concepts.from_sizes(sizes)
    epsilon = _check_epsilon(epsilon, concepts.count)
    gamma = _check_shares("gamma", gamma, concepts)
    omega = _check_shares("omega", omega, concepts)
    rows = _rows(np.broadcast_to(gamma, (concepts.count, gamma.size)), omega, epsilon, np.arange(concepts.count), concepts)
    words, owner = _contexts(concepts, length, contexts_per_concept)
    return from_table(rows, concepts, owner, weights, row=owner, words=words)


@typed
def per_context(
    sizes: Sequence[int],
    gamma: np.ndarray,
    omega: Sequence[float] | np.ndarray,
    epsilon: float,
    concept_of_context: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Corpus:
    """S, appendix B.1: a depends on the context, ``a_{j,z} = (1 - eps) gamma_{j,z}``, b does not.

    Args:
        sizes, omega, epsilon, weights: as for `weighted`.
        gamma: ``[m, V]``; row j is used on the tokens of context j's concept only, and sums to 1 there.
        concept_of_context: g(j), ``[m]``.

    Raises:
        ValueError: as `weighted`; a concept that does not exist, shares of another shape.
    """
    concepts = Concepts.from_sizes(sizes)
    epsilon = _check_epsilon(epsilon, concepts.count)
    omega = _check_shares("omega", omega, concepts)
    owner = np.asarray(concept_of_context)
    unknown = owner[~np.isin(owner, np.arange(concepts.count))]
    require(unknown.size == 0, "concept_of_context", f"concepts in 0..{concepts.count - 1}", unknown[:1].tolist())
    gamma = finite("gamma", gamma)
    require(
        gamma.shape == (owner.size, concepts.vocabulary_size),
        "gamma",
        f"shape ({owner.size}, {concepts.vocabulary_size}), one row per context",
        f"shape {gamma.shape}",
    )
    inside = concepts.of_token == owner[:, None]
    require(bool((gamma[inside] > 0).all()), "gamma", "positive shares", gamma[inside].min())
    sums = np.where(inside, gamma, 0).sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    require(
        abs(sums[worst] - 1) < 1e-9,
        "gamma",
        "shares that sum to 1 over each context's concept",
        f"{sums[worst]} in row {worst}",
    )
    return from_table(_rows(gamma, omega, epsilon, owner, concepts), concepts, owner, weights)


@typed
def mixed(
    mixture: np.ndarray,
    q: np.ndarray,
    concepts: Concepts | Sequence[Sequence[int]],
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Corpus:
    """Contexts that mix concepts, ``p_j = sum_k lambda_{jk} q_k``: outside assumption 1 on purpose.

    Args:
        mixture: lambda, ``[m, G]``, rows on the simplex. A context counts as of the concept it has most of.
        q: next-token distribution of each pure concept, ``[G, V]``.
        concepts: the partition of the vocabulary.
        weights: pi, ``[m]``; uniform if left out.

    Raises:
        ValueError: arrays whose shapes do not fit, a mixture whose rows are not on the simplex; as `ufm.from_table`.
    """
    mixture, q = finite("mixture", mixture), finite("q", q)
    require(q.ndim == 2 and q.size > 0, "q", "shape [concepts, tokens]", f"shape {q.shape}")
    require(
        mixture.ndim == 2 and mixture.size > 0 and mixture.shape[1] == q.shape[0],
        "mixture",
        f"shape [contexts, {q.shape[0]}], a column per row of q",
        f"shape {mixture.shape}",
    )
    require(bool((mixture >= 0).all()), "mixture", "weights of at least 0", mixture.min())
    sums = mixture.sum(axis=1)
    require(bool(np.allclose(sums, 1, atol=1e-9)), "mixture", "rows that sum to 1", f"{sums[np.argmax(abs(sums - 1))]}")
    return from_table(mixture @ q, concepts, mixture.argmax(axis=1), weights)


@typed
def log_linear(
    base: Sequence[float] | np.ndarray,
    features: np.ndarray,
    coordinates: np.ndarray,
    concepts: Concepts | Sequence[Sequence[int]],
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Corpus:
    """Contexts with several attributes, ``log p_j(z) = base(z) + sum_k lambda_{jk} phi_k(z) - A_j``: concepts may overlap.

    It is what steering leads to from any table: such families are closed under it (N24), as mixtures are not.

    Args:
        base: what tokens have without any attribute, ``[V]`` nats, up to a constant.
        features: phi, how far each token has each attribute, ``[K, V]``: 0 and 1, or any numbers.
        coordinates: lambda, how much of each attribute a context has, ``[m, K]``.
        concepts: a partition of the vocabulary, for what is measured. A context counts as of the concept it has most of.
        weights: pi, ``[m]``; uniform if left out.

    Raises:
        ValueError: arrays whose shapes do not fit; as `ufm.from_table`.
    """
    from scipy.special import softmax  # here, since it takes a while to import

    base, features, coordinates = finite("base", base), finite("features", features), finite("coordinates", coordinates)
    require(base.ndim == 1 and base.size > 0, "base", "one number for each token", f"shape {base.shape}")
    fits = features.ndim == 2 and features.shape[1] == base.size
    require(fits, "features", f"shape [attributes, {base.size}], a column per token", f"shape {features.shape}")
    fits = coordinates.ndim == 2 and coordinates.size > 0 and coordinates.shape[1] == features.shape[0]
    wanted = f"shape [contexts, {features.shape[0]}], a column per attribute"
    require(fits, "coordinates", wanted, f"shape {coordinates.shape}")
    concepts = concepts if isinstance(concepts, Concepts) else Concepts.from_lists(concepts, base.size)
    rows = softmax(base + coordinates @ features, axis=1)
    shares = np.stack([rows[:, concepts.members(k)].sum(axis=1) for k in range(concepts.count)], axis=1)
    return from_table(rows, concepts, shares.argmax(axis=1), weights)


def _check_epsilon(epsilon: float, n_concepts: int) -> float:
    require(n_concepts >= 2, "sizes", "at least two concepts, so that a next token can leave its context's", n_concepts)
    limit = (n_concepts - 1) / n_concepts
    require(bool(0 < epsilon < limit), "epsilon", f"a probability in (0, (G-1)/G) = (0, {limit:.6g})", epsilon)
    return float(epsilon)


def _check_shares(argument: str, shares: Sequence[float] | np.ndarray, concepts: Concepts) -> np.ndarray:
    array = finite(argument, shares)
    require(
        array.shape == (concepts.vocabulary_size,),
        argument,
        f"one share for each of {concepts.vocabulary_size} tokens",
        f"shape {array.shape}",
    )
    require(bool((array > 0).all()), argument, "positive shares", array.min())
    sums = np.bincount(concepts.of_token, weights=array)
    worst = int(np.argmax(np.abs(sums - 1)))
    require(
        abs(sums[worst] - 1) < 1e-9,
        argument,
        "shares that sum to 1 over each concept",
        f"{sums[worst]} over concept {worst}",
    )
    return array


def _contexts(concepts: Concepts, length: int | None, per_concept: int | None) -> tuple[np.ndarray | None, np.ndarray]:
    if per_concept is not None:
        require(per_concept >= 1, "contexts_per_concept", "at least one context per concept", per_concept)
        check_count("contexts_per_concept", "contexts", concepts.count * int(per_concept))
        return None, np.repeat(np.arange(concepts.count), per_concept)
    require(length is not None, "length", "a context length, or contexts_per_concept", None)
    assert length is not None
    return all_words(concepts, length)


def _rows(gamma: np.ndarray, omega: np.ndarray, epsilon: float, owner: np.ndarray, concepts: Concepts) -> np.ndarray:
    inside = concepts.of_token == owner[:, None]
    return np.where(inside, (1 - epsilon) * gamma, epsilon / (concepts.count - 1) * omega)

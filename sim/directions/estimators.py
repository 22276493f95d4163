"""Estimators of a direction: from the states of two sets to a weight for each text. The direction is the weighted sum.

Every direction here is ``v = sum_j w_j h_j``. So what it does is known where the softmax comes last: it moves the logits by
``M_v(z) = sum_j w_j log p_j(z)`` (N14), whatever the way. Weights sum to 0, but for those of normalised states. They are
scaled so that a strength of 1 means the same for all ways: it moves a state along v as far as the means of the sets are
apart.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm._check import finite, require

Matrix = Float[np.ndarray, "n d"]
Other = Float[np.ndarray, "m d"]
Weights = Float[np.ndarray, " texts"]


def difference_of_means(positive: Matrix, negative: Other) -> Weights:
    """1/n on the positive set, -1/m on the negative one (S, equation 3)."""
    n, m = len(positive), len(negative)
    return np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])


def difference_of_normalized_means(positive: Matrix, negative: Other) -> Weights:
    """The difference of means of states of length 1: before a norm without bias, its effect has a closed form (N19).

    Raises:
        ValueError: a state of length 0.
    """
    lengths = [np.linalg.norm(states, axis=1) for states in (positive, negative)]
    for name, values in zip(("positive", "negative"), lengths, strict=True):
        require(bool((values > 0).all()), name, "states that are not 0", "one that is")
    return np.concatenate([1 / lengths[0] / len(positive), -1 / lengths[1] / len(negative)])


def pca_of_differences(positive: Matrix, negative: Other) -> Weights:
    """The first principal component of the differences of pairs, in both signs: what most differences have in common.

    Raises:
        ValueError: sets of different sizes.
    """
    _require_pairs(positive, negative)
    u = _first_component(np.asarray(positive, float) - negative)
    return np.concatenate([u, -u])


def pca_of_states(positive: Matrix, negative: Other) -> Weights:
    """The first principal component of all states around their mean: where texts differ most, for whatever reason."""
    states = np.concatenate([np.asarray(positive, float), negative])
    u = _first_component(states - states.mean(axis=0))
    return u - u.mean()


def linear_probe(positive: Matrix, negative: Other) -> Weights:
    """The normal of a logistic regression that tells the sets apart (scikit-learn's, with an L2 penalty).

    States are scaled by one number, their root mean square around the mean, and the sets weigh alike.
    """
    from sklearn.linear_model import LogisticRegression

    span = _Span(np.concatenate([positive, negative]))
    labels = np.arange(len(span.coordinates)) < len(positive)
    # The penalty is the same in any orthonormal basis, and the optimum is in the span of the states.
    probe = LogisticRegression(class_weight="balanced", solver="newton-cholesky", tol=1e-10).fit(span.coordinates, labels)
    return span.weights(probe.coef_[0])


def sparse_coding(positive: Matrix, negative: Other) -> Weights:
    """The atom that tells the sets apart best, of a dictionary in which states have sparse codes (scikit-learn's).

    ``min 1/2 ||h - D a||^2 + lambda ||a||_1`` over atoms of length 1 and codes, of states around their mean and scaled to a
    root mean square length of 1; lambda is 0.1.
    """
    from sklearn.decomposition import DictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    span, n = _Span(np.concatenate([positive, negative])), len(positive)
    scaled = span.coordinates / np.sqrt(np.mean(np.sum(span.coordinates**2, axis=1)))
    atoms = max(2, min(len(scaled) // 2, scaled.shape[1]))
    learner = DictionaryLearning(atoms, alpha=0.1, random_state=0, max_iter=200, fit_algorithm="cd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        codes = learner.fit_transform(scaled)
    spread = codes.std(axis=0)
    apart = np.abs(codes[:n].mean(axis=0) - codes[n:].mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    return span.weights(learner.components_[int(np.argmax(apart))])


Way = Callable[[Matrix, Other], Weights]

WAYS: Mapping[str, Way] = {
    "difference-of-means": difference_of_means,
    "difference-of-normalized-means": difference_of_normalized_means,
    "pca-of-differences": pca_of_differences,
    "pca-of-states": pca_of_states,
    "linear-probe": linear_probe,
    "sparse-coding": sparse_coding,
}
"""All ways by name."""


def weights_of(way: Any, positive: Matrix, negative: Other) -> Weights:
    """The weights of one way, scaled so that the sets are as far apart along the direction as their means are along it.

    With ``u = v / ||v||`` and the difference of means D, ``v = <u, D> u``; the sign is that of D.

    Args:
        way: one of `WAYS`.
        positive, negative: the states of each text of the two sets, ``[n, d]`` and ``[m, d]``.

    Raises:
        ValueError: an unknown way, states that are not finite, sets that a way cannot use, a direction of length 0.
    """
    require(isinstance(way, str) and way in WAYS, "way", f"one of {', '.join(WAYS)}", repr(way))
    sets = {name: finite(name, states) for name, states in (("positive", positive), ("negative", negative))}
    for name, states in sets.items():
        require(states.ndim == 2 and len(states) > 0, name, "states [n, d] of at least one text", f"shape {states.shape}")
    widths = [states.shape[1] for states in sets.values()]
    require(widths[0] == widths[1], "negative", f"states of the width of the positive ones, {widths[0]}", widths[1])
    states = np.concatenate([np.asarray(array, float) for array in sets.values()])
    means = difference_of_means(*sets.values()) @ states
    weights = WAYS[way](*sets.values())
    v = weights @ states
    square, along = float(v @ v), float(v @ means)
    largest = np.max(np.sum(states**2, axis=1))
    # What a direction is a difference of: a length far below these is rounding.
    parts = np.max(weights**2 * np.sum(states**2, axis=1))
    apart = square > 1e-20 * parts and float(means @ means) > 1e-20 * largest
    require(apart, "texts", "two sets whose states differ", "equal ones: the direction is 0")
    turned = along**2 > 1e-20 * largest * square
    require(turned, "texts", f"sets whose means differ along the direction of {way}", "equal ones: the direction is 0")
    return weights * (along / square)


def _require_pairs(positive: Matrix, negative: Other) -> None:
    pairs = len(positive) == len(negative)
    require(pairs, "texts", "pairs, as many positive as negative ones", f"{len(positive)} and {len(negative)}")


def _first_component(rows: Matrix) -> Float[np.ndarray, " n"]:
    """What combination of rows the first right singular vector is, up to its length."""
    return np.linalg.svd(rows, full_matrices=False)[0][:, 0]


class _Span:
    """States around their mean, in an orthonormal basis of what they span: a handful of coordinates in place of d.

    Attributes:
        coordinates: of each state, scaled to a root mean square of 1 over the d coordinates it had, ``[n, r]``.
    """

    def __init__(self, states: Matrix) -> None:
        centred = states - states.mean(axis=0)
        scale = np.sqrt(np.mean(centred**2))
        require(bool(scale > 0), "texts", "states that differ", "equal ones")
        self._left, sizes, _ = np.linalg.svd(centred / scale, full_matrices=False)
        rank = int(np.sum(sizes > 1e-9 * sizes[0]))
        self._left, self._sizes = self._left[:, :rank], sizes[:rank]
        self.coordinates = self._left * self._sizes

    def weights(self, v: Float[np.ndarray, " r"]) -> Weights:
        """The weights whose combination of states is along v, which is given in the basis; they sum to 0."""
        weights = self._left @ (v / self._sizes)
        return weights - weights.mean()

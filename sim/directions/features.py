"""Directions from features of a sparse autoencoder: the atom of one, or of the one that tells two sets of texts apart best.

A feature tells sets apart as far as its activation correlates with the set that a text is from. Its atom u gives the
direction ``v = <u, D> u``, where D is the difference of the sets' means, as for the other directions
(`sim.directions.estimators`).
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sim.bridge.model import LanguageModel
from sim.directions.extraction import Sets, facts_of, sets_of, vector_of, without
from sim.directions.sae_lens import require_fits
from sim.directions.sparse_autoencoder import SparseAutoencoder, encoded, train_sparse_autoencoder
from sim.directions.states import TokenStates, text_states, token_states
from sim.directions.vector import ModelTag, SteeringVector
from ufm._check import require, shown, typed, whole_number


class Feature(NamedTuple):
    """A feature, and how it tells two sets of states apart.

    Attributes:
        number: which of the autoencoder's it is.
        correlation: of its activation with the set, 1 for the positive one and 0 for the other, sets weighted alike.
        positive, negative: mean activation on each set.
    """

    number: int
    correlation: float
    positive: float
    negative: float


@typed
def feature_vector(
    sae: SparseAutoencoder, feature: int, layer: int | None = None, lm: LanguageModel | None = None, *, name: str = ""
) -> SteeringVector:
    """The direction of one feature: its atom, as long as the feature is in the mean where it is active.

    Where that is not known, as of a folder of SAELens, the atom is as it is in the decoder: of an autoencoder that sets the
    spread or the norm of every state, in units of these.

    Args:
        sae: the autoencoder.
        feature: the number of the feature.
        layer: the block to steer after; the one that the autoencoder is for if left out.
        lm: the model to steer, to check that the autoencoder fits it and to note it in the vector.
        name: of what it steers towards; the number of the feature if left out.

    Raises:
        ValueError: a feature that the autoencoder does not have or that was never active, no layer, an autoencoder
            that does not fit the model.
    """
    index = whole_number("feature", feature, 0)
    require(index < sae.features, "feature", f"a number from 0 to {sae.features - 1}", index)
    block = _block(sae, layer)
    if lm is not None:
        require_fits(sae, lm)
    length = 1.0 if sae.typical is None else float(np.asarray(sae.typical[...])[index])
    atom = np.asarray(sae.decoder[...][index])
    require(length > 0 and bool(atom.any()), "feature", "one that was active in training", f"{index}, a dead one")
    facts = {"way": "feature", "feature": index, "of": sae.source}
    tag = None if lm is None else ModelTag.of(lm)
    return SteeringVector({block: length * atom}, name or f"feature {index}", tag, extraction=facts)


@typed
def best_features(
    sae: SparseAutoencoder, positive: Float[np.ndarray, "n d"], negative: Float[np.ndarray, "m d"], k: int = 10
) -> list[Feature]:
    """The features whose activation tells two sets of states apart best, the best first.

    Args:
        sae: the autoencoder.
        positive, negative: the states of each set, of tokens.
        k: how many features; less are returned if there are less.

    Raises:
        ValueError: states that are not finite or of another width, k below 1.
    """
    number = whole_number("k", k, 1)
    return _best(_Moments.of(encoded(sae, positive)), _Moments.of(encoded(sae, negative)), number)


def sae_vector(
    lm: LanguageModel,
    positive: Any = None,
    negative: Any = None,
    layer: int | None = None,
    *,
    pairs: Any = None,
    sae: SparseAutoencoder | None = None,
    training: Mapping[str, Any] | None = None,
    questions: Any = None,
    chat: bool = False,
    key: jax.Array | None = None,
    name: str = "",
    budget: int | None = None,
    progress: bool | None = False,
) -> SteeringVector:
    """The way "sparse-autoencoder": the feature that tells two sets of texts apart best gives the direction.

    Tokens are those that ``tokens="content"`` means in `sim.make_vector`. The activation of a feature
    in a text is its mean over them, each weighted as there. Half of the texts choose their own feature for the diagnosis; an
    autoencoder that is trained here has seen the states of all of them, but not which set they are from.

    Args:
        lm: the model.
        positive, negative: texts that show what to steer towards, and texts that do not.
        layer: the block; the one that the autoencoder is for if left out.
        pairs: in place of the texts, pairs of texts or of answers.
        sae: the autoencoder; one that is trained on the states of the tokens of both sets if left out.
        training: what `train_sparse_autoencoder` is told; 4 features for each text, at most as many as tokens, if left out.
        questions, chat, budget, progress: as in `sim.directions.states.text_states`.
        key: for the training.
        name: of what it steers towards.

    Raises:
        ValueError: no layer, one that the model does not have, an autoencoder for another block or width, settings of a
            training beside one, sets whose states are the same, no feature that is active; as `text_states`.
    """
    positive, negative, questions = sets_of(positive, negative, pairs, questions)
    block = _block(sae, layer)
    _require_right_sae(lm, sae, block, training, key)
    shared: dict[str, Any] = {"chat": chat, "budget": budget, "progress": progress}
    states = text_states(lm, positive, negative, questions=questions, **shared)
    asked = None if questions is None else [*questions, *questions]
    batches = token_states(lm, [*positive, *negative], block, questions=asked, places=states.places, **shared)
    tokens = TokenStates(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
    if sae is None:
        settings = {"features": min(4 * len(states.tokens), len(tokens.states)), "key": key} | dict(training or {})
        sae = train_sparse_autoencoder(tokens.states, layer=block, **settings)
    sets = Sets.at(states, block, without_sinks=True)
    facts = facts_of("sparse-autoencoder", states, "content", questions is not None, chat)
    made = _Made(sets, _text_means(sae, tokens), without(np.asarray(sae.decoder[...], float), sets.sink))
    feature = made.feature(slice(None))
    require(feature.correlation != 0, "texts", "two sets that a feature tells apart", "sets on which all features are alike")
    facts |= {"feature": feature.number, "correlation": feature.correlation} | _facts_of_sae(sae)
    return vector_of(lm, {block: made.direction}, {block: sets}, name, facts)


class _Made(NamedTuple):
    """The way at work: of some of the texts, the direction of the feature that tells them apart best.

    Attributes:
        sets: the states of the texts.
        activations: of every feature in every text, positive ones first, ``[n + m, f]``.
        atoms: ``[f, d]``.
    """

    sets: Sets
    activations: Float[np.ndarray, "texts f"]
    atoms: Float[np.ndarray, "f d"]

    def feature(self, rows: slice) -> Feature:
        """The feature that tells these texts of either set apart best."""
        positive, negative = np.split(self.activations, [len(self.sets.positive)])
        return _best(_Moments.of([positive[rows]]), _Moments.of([negative[rows]]), 1)[0]

    def direction(self, rows: slice) -> Float[np.ndarray, " d"]:
        """The direction of its atom."""
        apart = self.sets.positive[rows].mean(axis=0) - self.sets.negative[rows].mean(axis=0)
        return _along(self.atoms[self.feature(rows).number], apart)


def _require_right_sae(lm: LanguageModel, sae: SparseAutoencoder | None, block: int, training: Any, key: Any) -> None:
    """Refuse an autoencoder for something else, and settings of a training that are unknown or not needed."""
    require(block < lm.config.num_layers, "layer", f"a block from 0 to {lm.config.num_layers - 1}", block)
    if sae is not None:
        require(training is None and key is None, "training", "none beside an autoencoder", "settings")
        require(sae.layer in (None, block), "sae", f"one for block {block}", f"block {sae.layer}")
        require_fits(sae, lm)
    known = [*inspect.signature(train_sparse_autoencoder).parameters][1:-2]
    unknown = [setting for setting in training or {} if setting not in known]
    require(not unknown, "training", f"settings among {', '.join(known)}", f"{', '.join(map(shown, unknown))}")


def _block(sae: SparseAutoencoder | None, layer: int | None) -> int:
    block = sae.layer if layer is None and sae is not None else layer
    require(block is not None, "layer", "a block", "none, and the autoencoder does not say" if sae else "none")
    return whole_number("layer", block, 0)


class _Moments(NamedTuple):
    """Mean and mean square of activations, ``[f]`` each, in float64."""

    mean: Float[np.ndarray, " f"]
    square: Float[np.ndarray, " f"]

    @classmethod
    def of(cls, parts: Iterable[Float[np.ndarray, "n f"]]) -> "_Moments":
        """The moments of the rows of arrays that come one after the other."""
        count, total, squares = 0, np.zeros(()), np.zeros(())
        for values in parts:
            count += len(values)
            total = total + values.sum(axis=0, dtype=np.float64)
            squares = squares + np.einsum("nf,nf->f", values, values, dtype=np.float64)
        return cls(total / count, squares / count)


def _best(positive: _Moments, negative: _Moments, k: int) -> list[Feature]:
    apart, middle = positive.mean - negative.mean, (positive.mean + negative.mean) / 2
    square = (positive.square + negative.square) / 2
    variance = np.maximum(square - middle**2, 0)
    # What rounding leaves of the variance of a feature that is always the same tells nothing apart.
    varies = variance > 1e-10 * square
    correlation = np.where(varies, apart / np.where(varies, 2 * np.sqrt(variance), 1), 0)
    order = np.argsort(-np.abs(correlation), kind="stable")[:k]
    columns = (array[order].tolist() for array in (correlation, positive.mean, negative.mean))
    return [Feature(*row) for row in zip(order.tolist(), *columns, strict=True)]


def _along(atom: Float[np.ndarray, " d"], means: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The direction of an atom, as far as the means of the sets are apart along it."""
    square = float(atom @ atom)
    require(square > 0, "sae", "atoms that are not 0 beside the attention sinks", "one that is")
    v = (atom @ means) / square * atom
    require(bool(v.any()), "texts", "two sets whose states differ", "equal ones: the direction is 0")
    return v


def _text_means(sae: SparseAutoencoder, tokens: TokenStates) -> Float[np.ndarray, "n f"]:
    """The weighted mean activation of every feature in every text, from the states of its tokens."""
    total = np.zeros((int(tokens.texts.max()) + 1, sae.features))
    done = 0
    for values in encoded(sae, tokens.states):
        rows = slice(done, done + len(values))
        np.add.at(total, tokens.texts[rows], tokens.weights[rows, None] * values)
        done += len(values)
    return total / np.bincount(tokens.texts, tokens.weights)[:, None]


def _facts_of_sae(sae: SparseAutoencoder) -> dict[str, Any]:
    about: dict[str, Any] = {"autoencoder": sae.source, "features": sae.features}
    if sae.report is not None:
        report = sae.report
        about |= {
            "active_features": report.l0,
            "explained_variance": report.explained_variance,
            "dead_features": report.dead,
        }
    return about

"""A direction from a sparse autoencoder as a user asks for it: from texts, a folder of SAELens, or one of its features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sim.bridge.model import LanguageModel
from sim.directions.features import feature_vector, sae_vector
from sim.directions.sae_lens import read_sparse_autoencoder
from sim.directions.sources import Source, source
from sim.directions.sparse_autoencoder import SparseAutoencoder
from sim.directions.vector import SteeringVector
from ufm._check import require

WAY, DEFAULT = "sparse-autoencoder", "difference-of-means"
"""The way that has an autoencoder, and the one that stands for no choice."""


class FeatureRequest(NamedTuple):
    """What is asked for.

    Attributes:
        texts: two sets that a feature is to tell apart; None where the feature is named.
        sae: of a folder of SAELens; None for one that is trained on the texts.
        feature: its number; None for the one that tells the texts apart best.
        layer: the block; None for that of the folder.
    """

    texts: Source | None
    sae: SparseAutoencoder | None
    feature: int | None
    layer: int | None

    def make(self, lm: LanguageModel, *, chat: bool = False, progress: bool | None = None) -> SteeringVector:
        """The direction for a model; `chat` and `progress` as in `sim.sae_vector`.

        Raises:
            ValueError: `chat` beside a feature; as `feature_vector` and `sae_vector`.
        """
        sae = self.sae
        if self.texts is None:
            assert sae is not None
            assert self.feature is not None
            require(not chat, "chat", "none beside a feature", "chat")
            return feature_vector(sae, self.feature, self.layer, lm)
        name, positive, negative, questions = self.texts
        more: dict[str, Any] = {"questions": questions, "chat": chat, "name": name, "progress": progress}
        return sae_vector(lm, positive, negative, self.layer, sae=sae, **more)


def feature_request(
    *,
    way: str,
    sae: Path | None,
    feature: int | None,
    texts: Mapping[str, Any],
    tokens: str,
    blocks: Sequence[int] | None,
) -> FeatureRequest | None:
    """What a user asks for; None where it has nothing to do with autoencoders.

    Args:
        way: of `sim.directions.estimators.WAYS`, or `WAY`.
        sae: a folder of SAELens.
        feature: one of its features.
        texts: the arguments of `sim.directions.sources.source`.
        tokens: which of them are averaged.
        blocks: that are asked for.

    Raises:
        ValueError: arguments that do not go together; as `source` and `read_sparse_autoencoder`.
    """
    if sae is None and feature is None and way != WAY:
        return None
    require(way in (WAY, DEFAULT), "way", f"{WAY}, with --sae", way)
    require(feature is None or sae is not None, "feature", "a folder (--sae) that it is of", "none")
    require(tokens == "content", "tokens", f"content, with {WAY}", tokens)
    at_one_block = blocks is None or len(blocks) == 1
    require(at_one_block, "only", "one block, of an autoencoder", ", ".join(map(str, blocks or ())))
    require(blocks is not None or sae is not None, "only", "the block to train an autoencoder at", "none")
    layer = None if blocks is None else blocks[0]
    named = [name for name, value in texts.items() if value is not None]
    require(feature is None or not named, "texts", "none beside a feature", ", ".join(named))
    asked = None if feature is not None else source(**texts)
    autoencoder = None if sae is None else read_sparse_autoencoder(sae)
    if autoencoder is not None and autoencoder.layer is not None and layer is not None:
        require(layer == autoencoder.layer, "only", f"block {autoencoder.layer}, which the autoencoder is for", layer)
    return FeatureRequest(asked, autoencoder, feature, layer)

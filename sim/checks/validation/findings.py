"""The inputs and results of a check of the theory on a language model: texts, vectors, sizes, findings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from sim.bridge.model import LanguageModel, Prompts
from sim.bridge.split import end_states
from sim.checks.concept_texts import BEGINNINGS, CONCEPTS, OPENINGS, Concept
from sim.directions.extraction import make_vector

STEP = 1e-3
"""Range of the change of the logits at a small strength: relative changes are small, however certain a prediction is."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        strengths: of a next-token sweep.
        reach: the largest of them, in lengths of the hidden state.
        angles: of a sweep after the last block.
        far: strengths on each side on which the plateau is approached.
        written: tokens that the model writes after each beginning.
        steps: strengths of a cross-entropy sweep on each side of 0.
        likeliest: tokens at each end of a sweep whose curves are looked at.
        costs: strengths of a sweep of costs on each side of 0.
        drawn: positive strengths of a curve of costs that is drawn.
        copies: texts that are written after each beginning under steering.
        blocks: after how many blocks vectors are added: the last, the middle one, and that at a quarter of the depth.
    """

    strengths: int = 161
    reach: float = 8.0
    angles: int = 121
    far: int = 11
    written: int = 24
    steps: int = 2
    likeliest: int = 100
    costs: int = 4
    drawn: int = 64
    copies: int = 4
    blocks: int = 3


SMOKE = Size(strengths=33, angles=31, far=8, written=8, steps=2, likeliest=10, costs=2, drawn=12, copies=2, blocks=2)
"""Little of everything."""


class Material(NamedTuple):
    """The texts that a model is tried on.

    Attributes:
        concepts: to steer towards.
        openings: contexts whose next token is looked at.
        beginnings: what the model goes on from by itself.
        foreign: text that it has not written, as one string or as tokens.
    """

    concepts: Sequence[Concept]
    openings: Prompts
    beginnings: Prompts
    foreign: Any


def material() -> Material:
    """English texts: the project's concepts and contexts, and Python's own manual as foreign text."""
    from pydoc_data.topics import topics

    return Material(CONCEPTS, OPENINGS, BEGINNINGS, "\n".join(topics[name] for name in ("assignment", "class", "with")))


@dataclass(frozen=True)
class Finding:
    """The finding of one comparison.

    Attributes:
        statement: its id.
        about: the concept and the layer.
        what: what was compared.
        value: an error; or, where there is nothing to compare with, what was measured.
        tolerance: the largest error with which the statement holds; None for what is only reported.
    """

    statement: str
    about: str
    what: str
    value: float
    tolerance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; True for what is only reported."""
        return self.tolerance is None or self.value <= self.tolerance


class Run:
    """A model with what several checks need of it."""

    def __init__(self, lm: LanguageModel, size: Size, texts: Material, seed: int) -> None:
        self.lm, self.size, self.texts, self.seed = lm, size, texts, seed
        count = lm.config.num_layers
        self.layers = sorted({count // 4, count // 2, count - 1})[-size.blocks :]
        self.names = [concept.name for concept in texts.concepts]
        with jax.enable_x64(False):
            self.vectors = {
                concept.name: make_vector(lm, concept.positive, concept.negative, name=concept.name)
                for concept in texts.concepts
            }
            self.openings = lm.split(texts.openings, self.layers[0])

    def v(self, concept: str, layer: int) -> Float[np.ndarray, " d"]:
        """The steering vector of a concept after a layer."""
        return self.vectors[concept][layer]

    def members(self, concept: str) -> Bool[np.ndarray, " V"]:
        """The tokens of a concept: those of the texts that show it and not of the texts that show its opposite."""
        texts = self.texts.concepts[self.names.index(concept)]
        members = np.zeros(self.lm.config.vocab_size, bool)
        for side, belongs in ((texts.positive, True), (texts.negative, False)):
            ids, mask = self.lm.contexts(side)
            members[ids[mask]] = belongs
        return members

    def pairs(self) -> Iterable[tuple[str, int]]:
        """Every concept with every layer."""
        return ((name, layer) for name in self.names for layer in self.layers)

    def ends(self, layer: int, dtype: Any = jnp.float32) -> Float[np.ndarray, "n d"]:
        """The stream of the openings after a layer, at the last position."""
        return np.asarray(end_states(self.openings.at(layer)), dtype)

    def words(self, token: int) -> str:
        """A token as a reader sees it."""
        words = self.lm.tokenizer
        return str(token) if words is None else words.decode([token])


def about_of(concept: str, layer: int) -> str:
    """A concept and a layer, as findings name them."""
    return f"{concept}, block {layer}"


def by_pair(run: Run, parts: list[xr.Dataset]) -> xr.Dataset:
    """Datasets of every concept and layer as one."""
    rows = [xr.concat(parts[k : k + len(run.layers)], "layer") for k in range(0, len(parts), len(run.layers))]
    return xr.concat(rows, "concept").assign_coords(concept=run.names, layer=run.layers)

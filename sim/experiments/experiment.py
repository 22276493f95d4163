"""A run of the experiments: a model, settings, texts and the store that results go to, and what several stages need."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from sim import output
from sim.bridge.model import LanguageModel
from sim.bridge.tokenizer import Tokenizer
from sim.directions.extraction import without
from sim.experiments.inputs import Inputs
from sim.experiments.settings import ExperimentSettings, Variant
from sim.experiments.store import Store, open_store
from ufm._check import require

RANDOM = "random"
"""The name of the set of texts that a model writes from nothing."""


@dataclass(frozen=True)
class Experiment:
    """A run: a folder, its settings, and the models and texts that its stages take.

    Attributes:
        lm: the model that is steered; it has a tokenizer.
        judge: the model that says whether texts show a concept.
        settings: with layers as numbers.
        inputs: texts.
        store: where results are.
        progress: whether to show bars.
        others: the two models on other groups of devices (`LanguageModel.groups`).
    """

    lm: LanguageModel
    judge: LanguageModel
    settings: ExperimentSettings
    inputs: Inputs
    store: Store
    progress: bool | None = None
    others: tuple[tuple[LanguageModel, LanguageModel], ...] = ()

    @property
    def on_every_group(self) -> list["Experiment"]:
        """This run on each group of devices: they fill one store side by side. The first of them shows bars."""
        alone = replace(self, others=())
        return [alone, *(replace(alone, lm=lm, judge=judge, progress=False) for lm, judge in self.others)]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        assert self.lm.tokenizer is not None
        return self.lm.tokenizer

    @property
    def sets(self) -> list[str]:
        """The sets of texts that steering vectors are made from: concepts, and what they are contrasted with."""
        kinds = {variant.negatives for variant in self.settings.steered}
        opposites = [opposite(concept) for concept in self.settings.concepts] if "contrastive" in kinds else []
        return [*self.settings.concepts, *opposites, *([RANDOM] if RANDOM in kinds else [])]

    def seed(self, *parts: str | int) -> int:
        """A seed for one piece of work. It depends on the seed of the run and on `parts`, not on the process or the time."""
        names = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
        return int(np.random.SeedSequence([self.settings.seed, *names]).generate_state(1)[0] >> 1)

    def start(self) -> list[int]:
        """The empty prompt: the token that begins a text, or the one that ends a text if no token begins it.

        Raises:
            ValueError: the tokenizer has neither token.
        """
        first = self.tokenizer.bos if self.tokenizer.bos is not None else self.tokenizer.eos
        require(first is not None, "tokenizer", "a token that begins or ends a text", "none")
        assert first is not None
        return [first]

    def rows(self, name: str) -> list[list[int]]:
        """The tokens of the texts of a set that are not empty, as the model reads them.

        Raises:
            ValueError: a set without texts.
        """
        texts = self.store.data("prompts").sel(set=name)["tokens"].values
        rows = [[*self.tokenizer.opening, *row[row >= 0].tolist()] for row in texts if (row >= 0).any()]
        require(len(rows) > 0, "prompts", f"at least one text of the set {name!r}", "none that is not empty")
        return rows

    @cached_property
    def document_tokens(self) -> Int[np.ndarray, " N"]:
        """The tokens of all documents, one after the other. They are made once, when they are first needed."""
        documents = self.inputs.documents
        return np.fromiter((z for text in documents for z in self.tokenizer.encode(text, special=False)), np.int32)

    @cached_property
    def means(self) -> xr.DataArray:
        """The mean state of every set of texts and its bootstrap samples, at all layers."""
        return self.store.data("vectors")["mean"]

    def vector(self, concept: str, layer: int, variant: Variant | None = None) -> Float[np.ndarray, " d"]:
        """The addition of strength 1 after a layer: the steering vector of a concept in the unit that the settings name."""
        steered = variant or self.settings.main
        v = self.difference(concept, layer, steered)
        return v / np.linalg.norm(v) if steered.normalised else v * self.unit(concept, layer, steered)

    def difference(self, concept: str, layer: int, variant: Variant | None = None) -> Float[np.ndarray, " d"]:
        """The difference of means of a concept after a layer (S, equation 3).

        It is made orthogonal to the mean state of the attention sinks, if these were left out of the means.
        """
        steered = variant or self.settings.main
        sets = [concept, against(concept, steered)]
        positive, negative = self.means.sel(layer=layer, resample=steered.resample, set=sets).values
        v = positive - negative
        if self.settings.vectors.averaged == "content":
            v = without(v, self.store.data("vectors")["sink"].sel(layer=layer, set=sets).values.mean(axis=0))
        return v

    def unit(self, concept: str, layer: int, variant: Variant | None = None) -> float:
        """How many times the difference of means strength 1 adds; the same for all bootstrap samples of it.

        Raises:
            ValueError: there is no difference.
        """
        if self.settings.vectors.unit == "vector":
            return 1.0
        steered = (variant or self.settings.main)._replace(resample=0)
        length = float(np.linalg.norm(self.difference(concept, layer, steered)))
        require(
            length > 0, "prompts", f"texts of {concept} that differ from the others", f"a difference of 0 at layer {layer}"
        )
        return self.state_length(concept, layer, steered) / length

    def state_length(self, concept: str, layer: int, variant: Variant | None = None) -> float:
        """A typical length of the states that are steered: the mean over both sets of texts of the median."""
        sets = [concept, against(concept, variant or self.settings.main)]
        return float(self.store.data("vectors")["length"].sel(layer=layer, set=sets).mean())

    def lengths_added(self, concept: str, layer: int, variant: Variant | None = None) -> float:
        """How much strength 1 adds, in typical lengths of the states that are steered."""
        return float(np.linalg.norm(self.vector(concept, layer, variant))) / self.state_length(concept, layer, variant)

    @cached_property
    def last_log_p(self) -> xr.DataArray:
        """Mean log-probabilities of the token after the texts of every set."""
        return self.store.data("log-odds")["log_p"]

    def log_odds(self, concept: str, variant: Variant | None = None) -> Float[np.ndarray, " V"]:
        """The log-odds of every token: mean over the concept's texts less mean over the others (S, definition 3.2)."""
        both = self.last_log_p
        return both.sel(set=concept).values - both.sel(set=against(concept, variant or self.settings.main)).values

    def words_of(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """The text of each token."""
        return np.asarray([self.tokenizer.decode([int(z)]) for z in tokens])


def opposite(concept: str) -> str:
    """The name of the set that shows the opposite of a concept."""
    return f"not {concept}"


def against(concept: str, variant: Variant) -> str:
    """The name of the set that a concept is contrasted with."""
    return RANDOM if variant.negatives == RANDOM else opposite(concept)


def begin(
    folder: str | Path,
    lm: LanguageModel,
    settings: ExperimentSettings,
    inputs: Inputs,
    *,
    judge: LanguageModel | None = None,
    files: Mapping[str, Path] | None = None,
    progress: bool | None = None,
    check: Callable[[Experiment], object] = lambda experiment: None,
) -> Experiment:
    """Begin a run in a folder, or continue the run that the folder holds.

    Args:
        folder: of the run.
        lm: the model that is steered. On a mesh, groups of devices fill the store side by side.
        settings: what is computed.
        inputs: texts.
        judge: the model that judges texts, on the same devices; `lm` if left out.
        files: the files that inputs were read from; the store records them.
        progress: whether to show bars.
        check: called with the run before anything is written to the folder; what it raises leaves the folder as it was.

    Raises:
        ValueError: a model without a tokenizer, layers that it does not have, a folder of another run.
    """
    require(lm.tokenizer is not None, "model", "one with a tokenizer", repr(lm.name))
    chosen, judging = settings.for_model(lm.config), judge or lm
    groups = list(zip(lm.groups, judging.groups, strict=True))
    require(judging.tokenizer is not None, "judge", "a model with a tokenizer", repr(judging.name))
    # Pairs of concepts for which nothing is trained change no result.
    pairs = {name: inputs.pairs[name] for name in chosen.updates.concepts if name in inputs.pairs}
    about = output.settings(
        chosen.seed,
        model={"name": lm.name, "fingerprint": lm.fingerprint},
        judge={"name": judging.name, "fingerprint": judging.fingerprint},
        settings=chosen.as_json(),
        inputs=replace(inputs, pairs=pairs).about,
        files={name: str(path.absolute()) for name, path in (files or {}).items()},
        dtype=str(lm.decoder.dtype),
        **({"precision": "fast"} if lm.decoder.fast else {}),
        begun=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    (first, first_judge), *others = groups
    experiment = Experiment(
        first, first_judge, chosen, inputs, Store(Path(folder), about), progress=progress, others=tuple(others)
    )
    check(experiment)
    return replace(experiment, store=open_store(folder, about))

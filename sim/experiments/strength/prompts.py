"""The texts that steering vectors are made from: written by the model for a concept, its opposite, or nothing; or given.

S writes them with a larger model; here the model that is steered writes its own, unless there is a file.
"""

from collections.abc import Mapping

import numpy as np

from sim.experiments.experiment import RANDOM, Experiment
from sim.experiments.prompt_texts import DEFINITIONS, plain_request, request
from sim.experiments.store import Cell, Layout
from ufm._check import require


def prompts(experiment: Experiment) -> None:
    """Fill the group "prompts": the tokens of every text of every set, ``[set, text, position]``.

    Raises:
        ValueError: a concept that is neither defined nor among the given texts.
    """
    known(experiment)
    texts_given, settings = experiment.inputs.prompts, experiment.settings.prompts
    texts = settings.texts if texts_given is None else max(len(texts_given[name]) for name in experiment.sets)
    # Sets are written together as far as a batch holds them, the texts of a set in as few parts as there need be.
    layout = Layout(
        {"set": experiment.sets, "text": np.arange(texts), "position": np.arange(settings.new)},
        {"tokens": (("set", "text", "position"), "int32")},
        {"set": max(1, settings.batch // texts), "text": min(texts, settings.batch)},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        names, numbers = layout.labels(cell).values()
        rows = (
            _written(experiment, names, cell, len(numbers))
            if texts_given is None
            else _given(experiment, [texts_given[name] for name in names], numbers)
        )
        tokens = np.full((len(rows), settings.new), -1, np.int32)
        for k, row in enumerate(rows):
            tokens[k, : len(row)] = row
        return {"tokens": tokens}

    experiment.store.fill("prompts", layout, compute, progress=experiment.progress)


def known(experiment: Experiment) -> None:
    """Raise an error if a concept has no texts.

    Raises:
        ValueError: a concept that is neither defined nor among the given texts.
    """
    texts_given = experiment.inputs.prompts
    if texts_given is not None:
        missing = [name for name in experiment.sets if not texts_given.get(name)]
        require(not missing, "prompts", f"texts of {', '.join(experiment.sets)}", f"none of {', '.join(missing)}")
    else:
        unknown = [concept for concept in experiment.settings.concepts if concept not in DEFINITIONS]
        defined = f"some of {', '.join(DEFINITIONS)}, or a file of prompts"
        require(not unknown, "concepts", defined, ", ".join(unknown))


def _written(experiment: Experiment, names: list[str], cell: Cell, each: int) -> list[list[int]]:
    """Texts that the model writes, set by set."""
    settings = experiment.settings.prompts
    made = experiment.lm.generate(
        [opening(experiment, name) for name in names],
        num_return_sequences=each,
        max_new_tokens=settings.new,
        sampling=settings.sampling,
        seed=experiment.seed("prompts", *cell),
        length=max(len(opening(experiment, name)) for name in experiment.sets),
    )
    return [list(row) for row in made.tokens]


def opening(experiment: Experiment, name: str) -> list[int]:
    """The prompt for a text of a set: a request in the chat template, or the beginning of a text if there is no template."""
    if name == RANDOM:
        return experiment.start()
    concept = name.removeprefix("not ")
    definition = DEFINITIONS[concept]
    means = definition.means if name == concept else definition.opposite
    if experiment.tokenizer.template is None:
        return experiment.tokenizer.encode(plain_request(means))
    return experiment.tokenizer.encode(
        experiment.tokenizer.chat([{"role": "user", "content": request(means)}]), special=False
    )


def _given(experiment: Experiment, sets: list[tuple[str, ...]], numbers: list[int]) -> list[list[int]]:
    """The user's texts as tokens, cut to a length; a set with fewer texts than others is filled with empty ones."""
    chosen = [texts[k] if k < len(texts) else "" for texts in sets for k in numbers]
    return [experiment.tokenizer.encode(text, special=False)[: experiment.settings.prompts.new] for text in chosen]

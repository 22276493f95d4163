"""The texts that steering vectors are made from: written by the model for a concept, its opposite, or nothing; or given.

S writes them with a larger model; here the model that is steered writes its own, unless there is a file.
"""

from collections.abc import Mapping

import numpy as np

from sim.experiments.experiment import RANDOM, Experiment
from sim.experiments.prompt_texts import DEFINITIONS, plain_request, request
from sim.experiments.store import Cell, Layout
from ufm._check import require


def prompts(e: Experiment) -> None:
    """Fill the group "prompts": the tokens of every text of every set, ``[set, text, position]``.

    Raises:
        ValueError: a concept that is neither defined nor among the given texts.
    """
    known(e)
    given, settings = e.inputs.prompts, e.settings.prompts
    texts = settings.texts if given is None else max(len(given[name]) for name in e.sets)
    # Sets are written together as far as a batch holds them, the texts of a set in as few parts as there need be.
    layout = Layout(
        {"set": e.sets, "text": np.arange(texts), "position": np.arange(settings.new)},
        {"tokens": (("set", "text", "position"), "int32")},
        {"set": max(1, settings.batch // texts), "text": min(texts, settings.batch)},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        names, numbers = layout.labels(cell).values()
        rows = (
            _written(e, names, cell, len(numbers)) if given is None else _given(e, [given[name] for name in names], numbers)
        )
        tokens = np.full((len(rows), settings.new), -1, np.int32)
        for k, row in enumerate(rows):
            tokens[k, : len(row)] = row
        return {"tokens": tokens}

    e.store.fill("prompts", layout, compute, progress=e.progress)


def known(e: Experiment) -> None:
    """Refuse concepts of which there are no texts.

    Raises:
        ValueError: a concept that is neither defined nor among the given texts.
    """
    given = e.inputs.prompts
    if given is not None:
        missing = [name for name in e.sets if not given.get(name)]
        require(not missing, "prompts", f"texts of {', '.join(e.sets)}", f"none of {', '.join(missing)}")
    else:
        unknown = [concept for concept in e.settings.concepts if concept not in DEFINITIONS]
        defined = f"some of {', '.join(DEFINITIONS)}, or a file of prompts"
        require(not unknown, "concepts", defined, ", ".join(unknown))


def _written(e: Experiment, names: list[str], cell: Cell, each: int) -> list[list[int]]:
    """Texts that the model writes, set by set."""
    settings = e.settings.prompts
    made = e.lm.generate(
        [opening(e, name) for name in names],
        num_return_sequences=each,
        max_new_tokens=settings.new,
        sampling=settings.sampling,
        seed=e.seed("prompts", *cell),
        length=max(len(opening(e, name)) for name in e.sets),
    )
    return [list(row) for row in made.tokens]


def opening(e: Experiment, name: str) -> list[int]:
    """What the model goes on from to write a text of a set: a request in its chat template, or a beginning without one."""
    if name == RANDOM:
        return e.start()
    concept = name.removeprefix("not ")
    one = DEFINITIONS[concept]
    means = one.means if name == concept else one.opposite
    if e.words.template is None:
        return e.words.encode(plain_request(means))
    return e.words.encode(e.words.chat([{"role": "user", "content": request(means)}]), special=False)


def _given(e: Experiment, sets: list[tuple[str, ...]], numbers: list[int]) -> list[list[int]]:
    """Texts of the user, cut to the length of the others; nothing where there are fewer than in other sets."""
    chosen = [texts[k] if k < len(texts) else "" for texts in sets for k in numbers]
    return [e.words.encode(text, special=False)[: e.settings.prompts.new] for text in chosen]

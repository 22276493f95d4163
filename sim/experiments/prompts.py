"""The texts that steering vectors are made from: written by the model for a concept, its opposite, or nothing; or given.

S writes them with a larger model; here the model that is steered writes its own, unless there is a file.
"""

from collections.abc import Mapping

import numpy as np

from sim.experiments.experiment import RANDOM, Experiment
from sim.experiments.material import DEFINITIONS, plain_request, request
from sim.experiments.store import Cell, Layout
from ufm._check import require


def prompts(e: Experiment) -> None:
    """Fill the group "prompts": the tokens of every text of every set, ``[set, text, position]``.

    Raises:
        ValueError: a concept that is neither defined nor among the given texts.
    """
    given, settings = e.inputs.prompts, e.settings.prompts
    texts = settings.texts
    if given is not None:
        missing = [name for name in e.sets if not given.get(name)]
        require(not missing, "prompts", f"texts of {', '.join(e.sets)}", f"none of {', '.join(missing)}")
        texts = max(len(given[name]) for name in e.sets)
    else:
        unknown = [concept for concept in e.settings.concepts if concept not in DEFINITIONS]
        known = f"some of {', '.join(DEFINITIONS)}, or a file of prompts"
        require(not unknown, "concepts", known, ", ".join(unknown))
    layout = Layout(
        {"set": e.sets, "text": np.arange(texts), "position": np.arange(settings.new)},
        {"tokens": (("set", "text", "position"), "int32")},
        {"set": 1, "text": settings.batch},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        labels = layout.labels(cell)
        (name,), numbers = labels["set"], labels["text"]
        rows = _written(e, name, cell, len(numbers)) if given is None else _given(e, given[name], numbers)
        tokens = np.full((len(numbers), settings.new), -1, np.int32)
        for k, row in enumerate(rows):
            tokens[k, : len(row)] = row
        return {"tokens": tokens}

    e.store.fill("prompts", layout, compute, progress=e.progress)


def _written(e: Experiment, name: str, cell: Cell, count: int) -> list[list[int]]:
    """Texts that the model writes."""
    settings = e.settings.prompts
    seed = e.seed("prompts", name, cell[-1])
    length = max(len(opening(e, one)) for one in e.sets)
    made = e.lm.generate([opening(e, name)] * count, new=settings.new, sampling=settings.sampling, seed=seed, length=length)
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


def _given(e: Experiment, texts: tuple[str, ...], numbers: list[int]) -> list[list[int]]:
    """Texts of the user, cut to the length of the others; nothing where there are fewer than in other sets."""
    chosen = [texts[k] if k < len(texts) else "" for k in numbers]
    return [e.words.encode(text, special=False)[: e.settings.prompts.new] for text in chosen]

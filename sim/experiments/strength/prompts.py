"""The texts that steering vectors are made from: written by the model for a concept, its opposite, or nothing; or given.

S writes them with a larger model; here the model that is steered writes its own, unless there is a file.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sim.directions.prompt_texts import DEFINITIONS, plain_request, request
from sim.experiments.experiment import RANDOM, Experiment
from sim.experiments.store import Cell, Layout
from ufm._check import require


def prompts(experiment: Experiment) -> None:
    """Fill the group "prompts": the tokens of every text of every set, ``[set, text, position]``, and the texts.

    Of sets that the user gives no texts of, the model writes them: as many as the largest given set has.

    Raises:
        ValueError: a concept that is neither defined nor among the given texts.
    """
    known(experiment)
    own, settings = own_texts(experiment), experiment.settings.prompts
    texts = max(map(len, own.values()), default=settings.texts)
    # Sets are written together as far as a batch holds them, the texts of a set in as few parts as there need be.
    layout = Layout(
        {"set": experiment.sets, "text": np.arange(texts), "position": np.arange(settings.max_new_tokens)},
        {"tokens": (("set", "text", "position"), "int32"), "written": (("set", "text"), "U")},
        {"set": max(1, settings.batch // texts), "text": min(texts, settings.batch)},
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        names, numbers = layout.labels(cell).values()
        asked = [name for name in names if name not in own]
        written = iter(_written(experiment, asked, cell, len(numbers)) if asked else [])
        tokens, texts_of_rows = np.full((len(names) * len(numbers), settings.max_new_tokens), -1, np.int32), []
        for k, name in enumerate(name for name in names for _ in numbers):
            row = _tokens(experiment, own[name], numbers[k % len(numbers)]) if name in own else next(written)
            tokens[k, : len(row)] = row
            texts_of_rows.append(experiment.tokenizer.decode(row))
        return {"tokens": tokens, "written": np.asarray(texts_of_rows)}

    experiment.store.fill("prompts", layout, compute, progress=experiment.progress)


def own_texts(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """The sets of the run that the user gives texts of."""
    return {name: texts for name, texts in (experiment.inputs.prompts or {}).items() if texts and name in experiment.sets}


def missing(experiment: Experiment) -> list[str]:
    """The sets of the run that the model writes the texts of."""
    own = own_texts(experiment)
    return [name for name in experiment.sets if name not in own]


def known(experiment: Experiment) -> None:
    """Raise an error if a set has no texts, and the model cannot be asked for any.

    Raises:
        ValueError: a concept that is neither defined nor among the given texts; given texts of none of the sets; no room in
            the model for new texts.
    """
    named = [name for name in missing(experiment) if name != RANDOM]
    unknown = [name for name in named if name.removeprefix("not ") not in DEFINITIONS]
    if experiment.inputs.prompts is not None:
        need = f"texts of the sets {', '.join(repr(name) for name in experiment.sets if name != RANDOM)}"
        sets = ", ".join(map(repr, experiment.inputs.prompts)) or "none"
        require(not unknown, "prompts", need, f"sets {sets}, without {', '.join(map(repr, unknown))}")
    defined = f"some of {', '.join(DEFINITIONS)}, or a file of prompts"
    require(not unknown, "concepts", defined, ", ".join(dict.fromkeys(name.removeprefix("not ") for name in unknown)))
    names = [name for name, texts in (experiment.inputs.prompts or {}).items() if texts]
    got = f"{quoted(names)}{in_other_case(names, experiment.sets)}"
    require(not names or bool(own_texts(experiment)), "prompts", f"texts of some of the sets {quoted(experiment.sets)}", got)
    openings = [opening(experiment, name) for name in missing(experiment)]
    if openings:
        experiment.lm.contexts(openings, room=experiment.settings.prompts.max_new_tokens)


def quoted(names: Iterable[str]) -> str:
    """Names as a sentence has them, each in quotation marks."""
    return ", ".join(map(repr, names))


def in_other_case(names: Sequence[str], known: Sequence[str]) -> str:
    """The end of a sentence on names that are not known, which says how those that differ by case alone are written."""
    spelt = {name.strip().casefold(): name for name in known}
    pairs = [(name, spelt[name.strip().casefold()]) for name in names if name.strip().casefold() in spelt]
    return "".join(f"; {name!r} is written {right!r} there" for name, right in pairs)


def _written(experiment: Experiment, names: list[str], cell: Cell, num_return_sequences: int) -> list[list[int]]:
    """Texts that the model writes, set by set."""
    settings = experiment.settings.prompts
    made = experiment.lm.generate(
        [opening(experiment, name) for name in names],
        num_return_sequences=num_return_sequences,
        max_new_tokens=settings.max_new_tokens,
        sampling=settings.sampling,
        seed=experiment.seed("prompts", *cell),
        length=max(len(opening(experiment, name)) for name in missing(experiment)),
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


def _tokens(experiment: Experiment, texts: tuple[str, ...], k: int) -> list[int]:
    """A text of the user as tokens, cut to a length; empty where a set has fewer texts than others."""
    text = texts[k] if k < len(texts) else ""
    return experiment.tokenizer.encode(text, special=False)[: experiment.settings.prompts.max_new_tokens]

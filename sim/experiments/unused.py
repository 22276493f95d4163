"""Sentences on the user's own texts that a run leaves out or cuts: nothing is dropped without a word."""

from collections.abc import Iterable, Iterator, Sequence

from sim.experiments.experiment import Experiment, against
from sim.experiments.strength.cross_entropy import blocks_of_text
from sim.experiments.strength.prompts import in_other_case, own_texts, quoted


def unused(experiment: Experiment, stages: Sequence[str]) -> list[str]:
    """A sentence for everything in the user's files that some stages do not use, with the setting that would change it.

    Args:
        experiment: the run; what comes with the project is not spoken of.
        stages: their names.
    """
    said = [line for stage, lines in _LINES.items() if stage in stages for line in lines(experiment)]
    return list(dict.fromkeys(said))


def unread(files: Iterable[str], stages: Sequence[str]) -> list[str]:
    """A sentence for every file that a command is given and none of its stages reads.

    Args:
        files: the arguments of `read_inputs` that name them.
        stages: of the command, with those that they need.
    """
    return [
        f"{name}: not used by this command, but by ufm lm {READERS[name]} in the same folder"
        for name in files
        if READERS[name] not in stages
    ]


def _of_prompts(experiment: Experiment) -> Iterator[str]:
    others = [name for name in experiment.inputs.prompts or {} if name not in experiment.sets]
    if others:
        sets = f"the sets of this run are {quoted(experiment.sets)} (--concepts, --variants)"
        yield f"prompts of {_named(others)}: not used; {sets}{in_other_case(others, experiment.sets)}"
    most = experiment.settings.prompts.max_new_tokens
    for name, texts in own_texts(experiment).items():
        lengths = _lengths(experiment, texts, opening=False)
        yield from _cut(f"prompts of {name}", lengths, most, "prompts.max_new_tokens")
    few = {name: len(texts) for name, texts in own_texts(experiment).items() if len(texts) < FEW}
    if few:
        counts = ", ".join(f"{name} {count}" for name, count in few.items())
        yield f"prompts: a vector of so few texts is theirs as much as a concept's ({counts}; {FEW} or more are better)"


def _of_vectors(experiment: Experiment) -> Iterator[str]:
    for name, texts in own_texts(experiment).items():
        lengths = _lengths(experiment, texts, opening=True)
        what = f"prompts of {name}, for vectors and log-odds"
        yield from _cut(what, lengths, experiment.settings.vectors.tokens, "vectors.tokens")


def _of_next_token(experiment: Experiment) -> Iterator[str]:
    settings, contexts = experiment.settings.next_token, experiment.inputs.contexts
    if "contexts" in experiment.store.about["files"]:
        yield from _left_out("contexts", len(contexts), settings.contexts, "next_token.contexts")
        lengths = [len(experiment.tokenizer.encode(text)) for text in contexts[: settings.contexts]]
        yield from _cut("contexts", lengths, settings.context, "next_token.context")


def _of_concept(experiment: Experiment) -> Iterator[str]:
    settings, concepts = experiment.settings, experiment.settings.concepts
    judged = {*concepts, *(against(name, settings.main) for name in concepts)}
    for name, texts in own_texts(experiment).items():
        lengths = _lengths(experiment, texts, opening=True) if name in judged else []
        what = f"prompts of {name}, on which the three opinions are tried"
        yield from _cut(what, lengths, settings.concept.max_new_tokens, "concept.max_new_tokens")
    if "starts" in experiment.store.about["files"]:
        yield from _left_out("starts", len(experiment.inputs.starts), settings.concept.prompts, "concept.prompts")


def _of_blocks(experiment: Experiment) -> Iterator[str]:
    if "text" in experiment.store.about["files"]:
        settings, count = experiment.settings.cross_entropy, len(blocks_of_text(experiment))
        what = f"text, in blocks of {settings.tokens} tokens"
        yield from _left_out(what, count, settings.blocks, "cross_entropy.blocks")


def _of_mmlu(experiment: Experiment) -> Iterator[str]:
    if "questions" in experiment.store.about["files"]:
        settings = experiment.settings.mmlu
        asked = len(experiment.inputs.questions) - settings.shots
        yield from _left_out("questions", asked, settings.questions, "mmlu.questions")


def _of_pairs(experiment: Experiment) -> Iterator[str]:
    if "pairs" not in experiment.store.about["files"]:
        return
    settings, pairs_of = experiment.settings.updates, experiment.inputs.pairs
    others = [name for name in pairs_of if name not in settings.concepts]
    if others:
        yield f"pairs of {_named(others)}: not used; updates.concepts are {quoted(settings.concepts)}"
    for name in settings.concepts:
        count, more = len(pairs_of.get(name, ())), settings.trained
        yield from _left_out(f"pairs of {name}", count, more + settings.held_out, "updates.held_out", besides=more)


FEW = 8
"""Texts of a set below which a vector is noticeably that of these texts."""

NAMED = 8
"""Names in a sentence, at most."""

READERS = {
    "prompts": "prompts",
    "contexts": "next-token",
    "starts": "concept",
    "text": "cross-entropy",
    "questions": "mmlu",
    "pairs": "train-update",
}
"""The stage that reads a file, by the argument of `read_inputs`."""

_LINES = {
    "prompts": _of_prompts,
    "vectors": _of_vectors,
    "log-odds": _of_vectors,
    "next-token": _of_next_token,
    "concept": _of_concept,
    "blocks": _of_blocks,
    "mmlu": _of_mmlu,
    "train-update": _of_pairs,
}


def _named(names: Sequence[str]) -> str:
    """The first few of some names, and how many there are beside them."""
    rest = len(names) - NAMED
    return f"{quoted(names[:NAMED])}{f' and {rest} more' if rest > 0 else ''}"


def _left_out(what: str, count: int, used: int, setting: str, *, besides: int = 0) -> Iterator[str]:
    """A sentence if not all are used.

    Args:
        what: of which there are several.
        count: how many there are.
        used: how many of them are used.
        setting: the number that would have to be larger.
        besides: how many are used whatever that setting is.
    """
    if count > used:
        yield f"{what}: {used} of {count} are used; --set {setting}={count - besides} uses all"


def _lengths(experiment: Experiment, texts: Sequence[str], *, opening: bool) -> list[int]:
    """How many tokens texts of a set have, with or without what the tokenizer puts before a text."""
    before = len(experiment.tokenizer.opening) if opening else 0
    return [before + len(experiment.tokenizer.encode(text, special=False)) for text in texts]


def _cut(what: str, lengths: Sequence[int], most: int, setting: str) -> Iterator[str]:
    longer = sum(length > most for length in lengths)
    if longer:
        yield f"{what}: {longer} of {len(lengths)} are cut to {most} tokens; --set {setting}={max(lengths)} keeps them whole"

"""Sentences on the user's own texts that a run leaves out or cuts: nothing is dropped without a word."""

from collections.abc import Iterator, Sequence

from sim.experiments.experiment import Experiment
from sim.experiments.strength.prompts import given


def unused(experiment: Experiment, stages: Sequence[str]) -> list[str]:
    """A sentence for everything in the user's files that some stages do not use, with the setting that would change it.

    Args:
        experiment: the run; what comes with the project is not spoken of.
        stages: their names.
    """
    return [line for stage, lines in _LINES.items() if stage in stages for line in lines(experiment)]


def _of_prompts(experiment: Experiment) -> Iterator[str]:
    most = experiment.settings.prompts.max_new_tokens
    for name, texts in given(experiment).items():
        yield from _cut(experiment, f"prompts of {name}", texts, most, "prompts.max_new_tokens", special=False)
    few = {name: len(texts) for name, texts in given(experiment).items() if len(texts) < FEW}
    if few:
        counts = ", ".join(f"{name} {count}" for name, count in few.items())
        yield f"prompts: a vector of so few texts is theirs as much as a concept's ({counts}; {FEW} or more are better)"


def _of_vectors(experiment: Experiment) -> Iterator[str]:
    most = experiment.settings.vectors.tokens
    if most < experiment.settings.prompts.max_new_tokens:
        for name, texts in given(experiment).items():
            yield from _cut(experiment, f"prompts of {name}, for vectors", texts, most, "vectors.tokens", special=False)


def _of_next_token(experiment: Experiment) -> Iterator[str]:
    settings, contexts = experiment.settings.next_token, experiment.inputs.contexts
    if "contexts" in experiment.store.about["files"]:
        yield from _left_out("contexts", len(contexts), settings.contexts, "next_token.contexts")
        used = contexts[: settings.contexts]
        yield from _cut(experiment, "contexts", used, settings.context, "next_token.context")


def _of_concept(experiment: Experiment) -> Iterator[str]:
    if "starts" in experiment.store.about["files"]:
        count = experiment.settings.concept.prompts
        yield from _left_out("starts", len(experiment.inputs.starts), count, "concept.prompts")


def _of_mmlu(experiment: Experiment) -> Iterator[str]:
    if "questions" in experiment.store.about["files"]:
        settings = experiment.settings.mmlu
        asked = len(experiment.inputs.questions) - settings.shots
        yield from _left_out("questions", asked, settings.questions, "mmlu.questions")


FEW = 8
"""Texts of a set below which a vector is noticeably that of these texts."""

_LINES = {
    "prompts": _of_prompts,
    "vectors": _of_vectors,
    "next-token": _of_next_token,
    "concept": _of_concept,
    "mmlu": _of_mmlu,
}


def _left_out(what: str, count: int, used: int, setting: str) -> Iterator[str]:
    if count > used:
        yield f"{what}: {used} of {count} are used; --set {setting}={count} uses all"


def _cut(
    experiment: Experiment, what: str, texts: Sequence[str], most: int, setting: str, *, special: bool = True
) -> Iterator[str]:
    lengths = [len(experiment.tokenizer.encode(text, special=special)) for text in texts]
    longer = sum(length > most for length in lengths)
    if longer:
        yield f"{what}: {longer} of {len(texts)} are cut to {most} tokens; --set {setting}={max(lengths)} keeps them whole"

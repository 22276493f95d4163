"""Questions with four answers under steering, scored by the log-probabilities of the letters (S, figure A.6)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import ufm
from sim.bridge.split import Split
from sim.experiments.experiment import Experiment
from sim.experiments.inputs import LETTERS, Question
from sim.experiments.store import Cell, Layout
from ufm._check import require
from ufm.steerable import finite_at


def mmlu(experiment: Experiment) -> None:
    """Fill the group "mmlu": `log_p` of the four letters, ``[concept, layer, strength, question, letter]``.

    All positions are steered, after the middle layer. The first questions are worked examples before each of the others.

    Raises:
        ValueError: those of `rows_of`.
    """
    settings = experiment.settings.mmlu
    asked, rows = experiment.inputs.questions[settings.shots :][: settings.questions], rows_of(experiment)
    # One length, so that one program serves all parts.
    length = max(map(len, rows))
    letters = [experiment.tokenizer.encode(f" {letter}", special=False)[-1] for letter in LETTERS]
    coords: dict[str, Any] = {
        "concept": list(experiment.settings.concepts),
        "layer": [experiment.settings.middle],
        "strength": np.arange(settings.strengths),
        "question": np.arange(len(asked)),
        "letter": list(LETTERS),
    }
    layout = Layout(
        coords,
        {"log_p": (("concept", "layer", "strength", "question", "letter"), "float32")},
        {"concept": 1, "layer": 1, "question": settings.part},
        fixed={
            "alpha": (("strength",), settings.alphas),
            "answer": (("question",), np.asarray([question.answer for question in asked])),
            "text": (("question",), [question.text for question in asked]),
        },
    )

    def compute(cell: Cell) -> Mapping[str, np.ndarray]:
        (name,), (layer,), numbers = layout.labels(cell).values()
        part = [rows[k] for k in numbers]
        split = experiment.lm.split([*part, *part[:1] * (settings.part - len(part))], layer, length=length)
        v = jnp.asarray(experiment.vector(name, layer))
        log_p = _letters(split, v, jnp.asarray(settings.alphas, jnp.float32), jnp.asarray(letters))
        finite_at(split, settings.alphas, log_p, axis=1)
        return {"log_p": np.swapaxes(np.asarray(log_p)[: len(part)], 0, 1)}

    experiment.store.fill("mmlu", layout, compute, progress=experiment.progress)


def rows_of(experiment: Experiment) -> list[list[int]]:
    """The questions after worked examples, as tokens.

    Raises:
        ValueError: too few questions; one that is too long for the model.
    """
    settings, every = experiment.settings.mmlu, experiment.inputs.questions
    require(len(every) > settings.shots, "questions", f"more than {settings.shots} (mmlu.shots)", len(every))
    shots, asked = every[: settings.shots], every[settings.shots :][: settings.questions]
    rows = [experiment.tokenizer.encode(as_text(question, shots)) for question in asked]
    longest, most = max(map(len, rows)), experiment.lm.config.max_seq_len
    with_shots = f"at most {most} tokens with {settings.shots} worked examples (mmlu.shots)"
    require(longest <= most, "questions", with_shots, longest)
    return rows


def as_text(question: Question, shots: Sequence[Question]) -> str:
    """A question after worked examples, up to where the letter of its answer comes."""
    worked = [f"{_alone(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots]
    return f"Questions with four answers, of which one is right.\n\n{''.join(worked)}{_alone(question)}"


def _alone(question: Question) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.text}\n{choices}\nAnswer:"


@jax.jit
def _letters(split: Split, v: Array, alphas: Array, letters: Array) -> Float[Array, "n K 4"]:
    """Log-probabilities of the letters after every context of a split, at every strength."""
    contexts = jnp.arange(split.tokens.shape[0])
    return ufm.sweep(split, contexts, v, alphas, lambda logits, _: jax.nn.log_softmax(logits)[letters])

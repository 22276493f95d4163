"""A run that is small in every way: a random GPT-2 of 3 blocks and width 32, with a tokenizer of 400 tokens.

As a program, ``python tiny.py FOLDER`` runs all stages in a folder, and then again in the folder "goes" beside it, with
cells in the opposite order and an interruption at every ninth. Files beside them say which cell was computed and done.
"""

import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sim.bridge.architectures import from_config
from sim.bridge.decoder import Decoder
from sim.bridge.model import LanguageModel
from sim.bridge.parameters import init_parameters
from sim.directions import prompt_texts
from sim.directions.texts import Pair
from sim.experiments import corpora
from sim.experiments.experiment import Experiment, begin
from sim.experiments.inputs import Inputs, Question
from sim.experiments.run import run
from sim.experiments.settings import PRESETS, ExperimentSettings
from sim.experiments.store import Layout, Store

ANIMALS = ("cat", "dog", "fox", "owl", "hen", "pig")

INPUTS = Inputs(
    contexts=("The cat sat", "A new family has moved into the flat above ours, and the dog is theirs", "Not used"),
    starts=("It was a Tuesday and", "Here is what", "Not used"),
    documents=tuple(f"The {animal} sat on the mat. It said nothing to the other animals. " * 3 for animal in ANIMALS),
    questions=tuple(
        Question(f"Is it a {animal}?", ("Yes.", "No.", f"A {animal}.", "Who?"), k % 4) for k, animal in enumerate(ANIMALS)
    ),
    pairs={
        "optimistic": tuple(
            Pair(
                f"How is the {animal}?",
                f"The {animal} will be well soon, I know.",
                f"So ill. The {animal} will not live, no.",
            )
            for animal in ANIMALS
        )
    },
)


CHANGES: dict[str, Any] = {
    "concepts": ["joy", "evil"],
    "layers": [0, "last"],
    "variants": ["random", "contrastive", "normalised", "last-token", "resampled"],
    "prompts.texts": 4,
    "prompts.batch": 2,
    "vectors.resamples": 1,
    "vectors.tokens": 10,
    "vectors.unit": "vector",
    "next_token.reach": 200.0,
    "next_token.strengths": 9,
    "next_token.kept": 6,
    "next_token.context": 12,
    "next_token.contexts": 2,
    "next_token.tokens": [" sat", " animals"],
    "concept.reach": 40.0,
    "concept.strengths": 3,
    "concept.completions": 2,
    "concept.judged_together": 8,
    "concept.max_new_tokens": 6,
    "concept.batch": 8,
    "concept.lexicon": 5,
    "cross_entropy.reach": 100.0,
    "cross_entropy.strengths": 5,
    "cross_entropy.blocks": 4,
    "cross_entropy.tokens": 12,
    "mmlu.reach": 10.0,
    "mmlu.questions": 3,
    "mmlu.shots": 1,
    "mmlu.part": 2,
    "updates.forms": ["vector", "lora", "weight"],
    "updates.methods": ["difference", "reps", "split"],
    "updates.trained": 4,
    "updates.epochs": 2,
    "updates.batch": 3,
    "updates.every": 2,
    "updates.strengths": 7,
    "updates.part": 4,
    "updates.law_pairs": 3,
    "updates.law_layers": 3,
}
"""Settings that differ from the preset smoke."""


def settings() -> ExperimentSettings:
    """Every variant, two concepts, two layers; last cells that are smaller than the others where that compiles nothing."""
    return PRESETS["smoke"].changed(CHANGES)


@cache
def words():
    """A tokenizer made for the texts of the experiments."""
    texts = [prompt_texts.request(definition.means) for definition in prompt_texts.DEFINITIONS.values()]
    return corpora.train_tokenizer([*texts, *prompt_texts.CONTEXTS, *INPUTS.documents], 400)


def model(seed: int, *, digits: float = 1.0) -> LanguageModel:
    """A random model; the tokens 0 and 1 have embeddings that are longer by a factor, so that it says them more often."""
    tokenizer = words()
    a = from_config(
        {
            "model_type": "gpt2",
            "vocab_size": tokenizer.size,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 256,
        }
    )
    parameters = init_parameters(jax.random.key(seed), a)
    rng = np.random.default_rng(seed)
    # Gains and biases of norms that are not 1 and 0.
    for name in [name for name in parameters if "norm" in name]:
        parameters[name] = parameters[name] + 0.2 * rng.normal(size=parameters[name].shape).astype(np.float32)
    # Attention that matters.
    for name, factor in (("query", 2.0), ("key", 2.0), ("out", 4.0)):
        parameters[f"blocks.{name}"] = factor * parameters[f"blocks.{name}"]
    chosen = np.asarray([tokenizer.encode(digit)[0] for digit in "01"])
    parameters["embedding"] = parameters["embedding"].at[chosen].multiply(digits)
    return LanguageModel(Decoder(a, parameters), tokenizer, f"tiny {seed}", f"fingerprint {seed} {digits}")


def judging() -> LanguageModel:
    """A judge that often says 0 or 1."""
    return model(2, digits=5.0)


def start(folder: Path, lm: LanguageModel, judge: LanguageModel, *, of: ExperimentSettings | None = None) -> Experiment:
    """A run of the tiny settings, or of others."""
    return begin(folder, lm, of or settings(), INPUTS, judge=judge, progress=False)


def main(folder: Path) -> None:
    lm, judge, write, in_order = model(0), judging(), Store._write, Layout.all_cells

    def note(into: Path, word: str, path: object, cell: tuple[int, ...]) -> None:
        with into.with_suffix(".cells").open("a") as lines:
            lines.write(f"{word} {Path(str(path)).name} {'-'.join(map(str, cell))}\n")

    def noted(self, arrays, layout, cell, values):
        note(self.path, "computed", arrays.store_path.store.root, cell)
        write(self, arrays, layout, cell, values)
        note(self.path, "done", arrays.store_path.store.root, cell)

    def interrupted(self, *arguments):
        nonlocal count
        count += 1
        if count % 9 == 0:
            raise KeyboardInterrupt
        noted(self, *arguments)

    Store._write = noted
    run(start(folder, lm, judge))
    count, over, Store._write = 0, False, interrupted
    Layout.all_cells = property(lambda layout: in_order.fget(layout)[::-1])
    while not over:
        with suppress(KeyboardInterrupt):
            run(start(folder.with_name("goes"), lm, judge))
            over = True


def started(folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    """This program in a process of its own, with types checked as in tests, and compiled programs kept for the next."""
    root = Path(__file__).parents[3]
    code = (
        "import runpy, sys; from tests import compilation; from jaxtyping import install_import_hook as hook\n"
        "compilation.install()\n"
        "with hook(['ufm', 'theory', 'sim'], 'beartype.beartype'): runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    more = {
        "PYTHONPATH": str(root),
        # Most of what it costs is compilation.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen([sys.executable, "-c", code, __file__, str(folder)], cwd=root, env=os.environ | more)


if __name__ == "__main__":
    main(Path(sys.argv[-1]))

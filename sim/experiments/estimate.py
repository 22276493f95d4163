"""What a run will take, before anything of it is computed: cells, operations, memory and time of every stage.

Operations are counted from the settings and the shapes of the model. How fast they go is measured on the model itself: a
sweep of one context, and the writing of a few tokens by one sequence and by many. What compiling takes is measured with
them. A text may end early and a request may be shorter than the longest, so the counts are upper bounds.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ufm
from sim.bridge.config import Config
from sim.bridge.decoder import Decoder
from sim.bridge.devices import in_words
from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.bridge.parameters import init_parameters, is_block_matrix, parameter_bytes, shapes
from sim.bridge.sharding import ONE_DEVICE, bytes_on_each
from sim.bridge.tokenizer import Tokenizer
from sim.directions.prompt_texts import DEFINITIONS, judge_request, plain_request
from sim.experiments.experiment import Experiment
from sim.experiments.inputs import Inputs
from sim.experiments.preference.updates import steps_of, tasks
from sim.experiments.settings import ExperimentSettings
from sim.experiments.store import Store
from sim.experiments.strength.mmlu import rows_of
from sim.experiments.strength.prompts import missing, opening, own_texts

SLOPES = 3
"""Passes that a derivative along the strength costs."""

BACKWARD = 3
"""Passes that a step of training costs, of the blocks behind the update; one more where blocks are computed again."""


class StageCost(NamedTuple):
    """What a stage, or a part of one, takes.

    Attributes:
        cells: pieces of the store.
        operations: multiplications and additions of reading: every pass over tokens that are known.
        writes: how often tokens are written one after the other: (steps, sequences at a time), for each time.
        programs: that are compiled.
    """

    cells: int
    operations: float
    writes: tuple[tuple[int, int], ...] = ()
    programs: int = 1

    def of_one(self, groups: int) -> "StageCost":
        """The share of it that the busiest of several groups has."""
        part = _parts(self.cells, groups) / max(1, self.cells)
        return self._replace(operations=self.operations * part, writes=self.writes[: _parts(len(self.writes), groups)])


class Rates(NamedTuple):
    """How fast a model is on its device.

    Attributes:
        operations: of reading, in a second.
        step: seconds in which one sequence, and in which `together` sequences, get one token each.
        together: see `step`.
        program: seconds of compiling a program.
    """

    operations: float
    step: tuple[float, float]
    together: int
    program: float

    def seconds(self, work: StageCost) -> float:
        """The seconds that a work takes."""
        alone, many = self.step
        each = (many - alone) / (self.together - 1)
        writing = sum(steps * (alone + each * (count - 1)) for steps, count in work.writes)
        return work.operations / self.operations + writing + work.programs * self.program


@dataclass(frozen=True)
class Shape:
    """The operations of a model's parts, multiplications and additions."""

    config: Config

    @property
    def block(self) -> int:
        """The operations of the matrices of a block, for each token."""
        a = self.config
        return 2 * sum(math.prod(shape[1:]) for name, shape in shapes(a).items() if is_block_matrix(a, name))

    def read(self, rows: int, length: int, blocks: int | float) -> float:
        """The operations of passing rows of tokens through blocks."""
        a = self.config
        return float(rows) * length * blocks * (self.block + 4 * length * a.num_heads * a.head_dim)

    def logits(self, positions: int) -> float:
        """The operations of the logits of positions."""
        return 2.0 * positions * self.config.vocab_size * self.config.d_model

    def suffix(self, layer: int, length: int) -> float:
        """The operations from a state after a layer to the logits of its last position: the last block has one query."""
        blocks = self.config.num_layers - 1 - layer
        return self.read(1, length, max(0.0, blocks - 0.8)) + self.logits(1)


def _parts(count: int, size: int) -> int:
    return -(-count // size)


def count(experiment: Experiment) -> dict[str, StageCost]:
    """The work of every stage, from its beginning."""
    return {name: work(experiment) for name, work in STAGES.items()}


def _prompts(experiment: Experiment) -> StageCost:
    settings, asked, texts = experiment.settings.prompts, missing(experiment), _texts(experiment)
    sets, part = max(1, settings.batch // texts), min(texts, settings.batch)
    groups = [experiment.sets[k : k + sets] for k in range(0, len(experiment.sets), sets)]
    lengths = [len(opening(experiment, name)) for name in asked]
    cells = len(groups) * _parts(texts, part)
    written = [sum(name in asked for name in group) for group in groups for _ in range(_parts(texts, part))]
    operations = Shape(experiment.lm.config).read(len(asked), max(lengths, default=0), experiment.lm.config.num_layers)
    return StageCost(
        cells, operations, tuple((settings.max_new_tokens, sets * part) for sets in written if sets), 1 if asked else 0
    )


def _texts(experiment: Experiment) -> int:
    return max(map(len, own_texts(experiment).values()), default=experiment.settings.prompts.texts)


def _vectors(experiment: Experiment) -> StageCost:
    a, length = experiment.lm.config, min(experiment.settings.vectors.tokens, experiment.settings.prompts.max_new_tokens)
    return StageCost(len(experiment.sets), Shape(a).read(len(experiment.sets) * _texts(experiment), length, a.num_layers))


def _log_odds(experiment: Experiment) -> StageCost:
    a, settings, sets = experiment.lm.config, experiment.settings.vectors, len(experiment.sets)
    rows = sets * _parts(_texts(experiment), settings.batch) * settings.batch
    shape = Shape(a)
    return StageCost(sets, shape.read(rows, settings.tokens, a.num_layers) + shape.logits(rows))


def _next_token(experiment: Experiment) -> StageCost:
    settings, whole = experiment.settings.next_token, experiment.settings
    texts = experiment.inputs.contexts[: settings.contexts]
    rows = [experiment.tokenizer.encode(text)[: settings.context] for text in texts]
    length, shape, cells, total = max(map(len, rows)), Shape(experiment.lm.config), 0, 0.0
    for k, variant in enumerate(whole.steered):
        for layer in whole.layers if k == 0 else (whole.middle,):
            steered = 1 if variant.last_only else length
            passes = settings.strengths + SLOPES
            # Where the last token is steered alone, what is before it goes on to the end once.
            prefix = shape.read(1, length, experiment.lm.config.num_layers if variant.last_only else int(layer) + 1)
            pieces = len(whole.concepts) * len(rows)
            cells, total = cells + pieces, total + pieces * (prefix + passes * shape.suffix(int(layer), steered))
    kinds = {variant.last_only for variant in whole.steered}
    return StageCost(cells, total, programs=2 * len(kinds))


def _judged(experiment: Experiment, texts: int, max_new_tokens: int) -> float:
    """Operations of what is thought of texts: a judge's answer, and two ratios of likelihoods."""
    a, tokenizer, settings = experiment.judge.config, experiment.judge.tokenizer, experiment.settings.concept
    assert tokenizer is not None
    shape, rows = Shape(a), _parts(texts, settings.judged_together) * settings.judged_together
    concepts = [name for name in experiment.settings.concepts if name in DEFINITIONS]
    request = max(len(tokenizer.encode(judge_request("", name))) for name in experiment.settings.concepts)
    total = shape.read(rows, request + max_new_tokens, a.num_layers) + shape.logits(rows)
    if concepts:
        before = max(len(tokenizer.encode(plain_request(DEFINITIONS[name].means))) for name in concepts)
        total += 2 * (
            shape.read(rows, before + max_new_tokens, a.num_layers) + shape.logits(rows * (before + max_new_tokens))
        )
    return total


def _concept(experiment: Experiment) -> StageCost:
    settings, whole = experiment.settings.concept, experiment.settings
    starts = [experiment.tokenizer.encode(text) for text in experiment.inputs.starts[: settings.prompts]]
    each = len(starts) * settings.completions
    together = max(1, settings.batch // each)
    cells = len(whole.concepts) * len(whole.layers) * _parts(settings.strengths, together)
    read = Shape(experiment.lm.config).read(len(starts) * together, max(map(len, starts)), experiment.lm.config.num_layers)
    completions = len(whole.concepts) * len(whole.layers) * settings.strengths * each
    judged = _judged(experiment, completions, settings.max_new_tokens)
    calibration = _judged(experiment, 2 * len(whole.concepts) * _texts(experiment), settings.max_new_tokens)
    return StageCost(cells, cells * read + judged + calibration, ((settings.max_new_tokens, together * each),) * cells, 4)


def _blocks(experiment: Experiment) -> StageCost:
    settings = experiment.settings.cross_entropy
    cells = _parts(settings.blocks, settings.part)
    return StageCost(2 * cells, 0.0, ((settings.tokens - 1, settings.part),) * cells)


def _cross_entropy(experiment: Experiment) -> StageCost:
    settings, whole, a = experiment.settings.cross_entropy, experiment.settings, experiment.lm.config
    shape, total = Shape(a), 0.0
    for layer in map(int, whole.layers):
        before = shape.read(settings.blocks, settings.tokens, layer + 1)
        after = shape.read(settings.blocks, settings.tokens, a.num_layers - 1 - layer)
        after += shape.logits(settings.blocks * settings.tokens)
        # Three programs embed the text; the curves have every strength but 0, and 0 once.
        total += 3 * before + (settings.strengths + SLOPES + 1) * after
    pieces = 2 * len(whole.concepts)
    return StageCost(pieces * len(whole.layers) * _parts(settings.blocks, settings.part), pieces * total, programs=3)


def _mmlu(experiment: Experiment) -> StageCost:
    settings, whole = experiment.settings.mmlu, experiment.settings
    rows = rows_of(experiment)
    parts, length, shape = _parts(len(rows), settings.part), max(map(len, rows)), Shape(experiment.lm.config)
    each = shape.read(1, length, whole.middle + 1) + settings.strengths * shape.suffix(whole.middle, length)
    return StageCost(len(whole.concepts) * parts, len(whole.concepts) * parts * settings.part * each)


def _train_update(experiment: Experiment) -> StageCost:
    settings, a, every = experiment.settings.updates, experiment.lm.config, tasks(experiment)
    shape, cells, total, programs = Shape(a), 0, 0.0, 0
    for form in settings.forms:
        methods = [method for method in settings.methods_of(form) if method != "difference"]
        cells += len(settings.concepts) * len(settings.methods_of(form))
        programs += len(methods)
        for task in every.values():
            states = shape.read(2 * task.training.pairs, task.length, int(settings.layer) + 1)
            row = shape.read(1, task.length, a.num_layers - 1 - int(settings.layer)) + shape.logits(task.answer)
            passes = sum(2 if method == "reps" else 1 for method in methods)
            backward = BACKWARD + task.rematerialises
            total += len(methods) * states + passes * backward * steps_of(settings) * 2 * settings.batch * row
    return StageCost(cells, total, programs=programs)


def _preference_utility(experiment: Experiment) -> StageCost:
    settings, a, every = experiment.settings.updates, experiment.lm.config, tasks(experiment)
    layers = np.unique(np.linspace(0, a.num_layers - 1, settings.law_layers).round().astype(int))
    shape, cells, total = Shape(a), len(settings.concepts) * len(layers), 0.0
    for task in every.values():
        row = shape.read(1, task.length, a.num_layers - 1 - int(settings.layer)) + shape.logits(task.answer)
        for form in settings.forms:
            parts, methods = _parts(settings.alphas(form).size, settings.part), settings.methods_of(form)
            cells += parts * len(methods)
            total += shape.read(2 * task.held_out.pairs, task.length, int(settings.layer) + 1)
            total += parts * settings.part * len(methods) * 2 * task.held_out.pairs * row
        for layer in layers:
            total += settings.law_pairs * settings.law_strengths * shape.suffix(int(layer), task.length)
    return StageCost(cells, total, programs=2 + len(settings.forms))


STAGES: dict[str, Callable[[Experiment], StageCost]] = {
    "prompts": _prompts,
    "vectors": _vectors,
    "log-odds": _log_odds,
    "next-token": _next_token,
    "concept": _concept,
    "blocks": _blocks,
    "cross-entropy": _cross_entropy,
    "mmlu": _mmlu,
    "train-update": _train_update,
    "preference-utility": _preference_utility,
}
"""Functions that count the work of each stage."""


WORTH = 1.5
"""How many times the work of the trials of a model's speed there has to be, for these to be worth their time."""


TRIAL_STEPS = 8
"""Tokens that each sequence writes in a trial."""


class Trials(NamedTuple):
    """What the speed of a model is measured on: a sweep of one context, and tokens written by one sequence and by many.

    Attributes:
        length: of the context.
        strengths: of the sweep.
        prompt: tokens before those that are written.
        together: sequences that are written at a time.
        steps: tokens that each of them gets.
        times: how often all of it is done.
    """

    length: int
    strengths: int
    prompt: int
    together: int
    steps: int = TRIAL_STEPS
    times: int = 4

    def sweep(self, shape: Shape) -> float:
        """The operations of a sweep."""
        return shape.read(1, self.length, 1) + (self.strengths + 1) * shape.suffix(0, self.length)

    def cost(self, shape: Shape) -> StageCost:
        """The work of all of them."""
        reading = self.sweep(shape) + 2 * shape.read(1, self.prompt, shape.config.num_layers)
        writing = ((self.steps, 1), (self.steps, self.together))
        return StageCost(0, self.times * reading, self.times * writing, programs=3)


def trials_of(lm: LanguageModel, works: Iterable[StageCost]) -> Trials:
    """The trials of a model's speed, before some work."""
    longest = lm.config.max_seq_len
    together = max((count for work in works for _, count in work.writes), default=2)
    # Where blocks come from the host, what that costs is shared by all that pass through them.
    strengths = 64 if lm.decoder.offloaded else 8
    return Trials(min(96, longest), strengths, min(64, longest - TRIAL_STEPS), max(2, together))


def is_worth_measuring(experiment: Experiment, stages: Sequence[str]) -> bool:
    """Whether what is left of stages is `WORTH` times as much work as measuring how fast the model is.

    Args:
        experiment: the run.
        stages: names, and those that they need.
    """
    works = [STAGES[name](experiment) for name in stages if not is_finished(experiment, name)]
    shape = Shape(experiment.lm.config)
    token = shape.read(1, 1, shape.config.num_layers) + shape.logits(1)

    def operations(work: StageCost) -> float:
        return work.operations + token * sum(steps * count for steps, count in work.writes)

    return sum(map(operations, works)) >= WORTH * operations(trials_of(experiment.lm, works).cost(shape))


def measure_rates(lm: LanguageModel, trials: Trials) -> Rates:
    """How fast a model is here: a sweep over strengths of one context, and a few tokens written by one and many sequences.

    Args:
        lm: the model.
        trials: how much of these.
    """
    ids = np.random.default_rng(0).integers(0, lm.config.vocab_size, trials.length).tolist()
    split = lm.split([ids], 0)
    v, alphas = jnp.ones(lm.config.d_model), jnp.linspace(-1e-3, 1e-3, trials.strengths)
    swept = _timed(lambda: np.asarray(ufm.divergence(split, [0], v, alphas)), trials.times)
    shape = Shape(lm.config)
    operations = trials.sweep(shape)

    # As in the stages: after a prompt, and drawn from the likeliest tokens.
    prompt, draw, steps = ids[: trials.prompt], Sampling(temperature=0.9, top_k=50, top_p=0.95), trials.steps
    before = shape.read(1, len(prompt), lm.config.num_layers) * swept[1] / operations

    def write(sequences: int) -> tuple[float, float]:
        compiling, writing = _timed(
            lambda: lm.generate([prompt], max_new_tokens=steps, num_return_sequences=sequences, sampling=draw, stop=False),
            trials.times,
        )
        return compiling, max(writing - before, writing / 2) / steps

    alone, together = write(1), write(trials.together)
    return Rates(operations / swept[1], (alone[1], together[1]), trials.together, (swept[0] + alone[0] + together[0]) / 3)


def _timed(work: Callable[[], object], times: int) -> tuple[float, float]:
    """Seconds of compiling, which is done the first time, and of working: the median of the other times."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    working = float(np.median(seconds[1:]))
    return max(0.0, seconds[0] - working), working


class RunCost(NamedTuple):
    """An estimate of what a run will take.

    Attributes:
        stages: names.
        work: of each.
        seconds: of each.
        memory: bytes, of parameters and of the numbers that sweeps hold at once, for each device.
        groups: of devices, which share the cells.
    """

    stages: tuple[str, ...]
    work: tuple[StageCost, ...]
    seconds: tuple[float, ...]
    memory: int
    groups: int

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds, 0.0)

    def __str__(self) -> str:
        lines = [f"{'stage':<20}{'cells':>7}{'operations':>12}{'tokens written':>16}{'time':>10}"]
        for name, work, seconds in zip(self.stages, self.work, self.seconds, strict=True):
            written = sum(steps * count for steps, count in work.writes)
            lines.append(f"{name:<20}{work.cells:>7}{work.operations:>12.2g}{written:>16,}{_words(seconds):>10}")
        sharing = f", shared by {self.groups} groups of devices" if self.groups > 1 else ""
        lines.append(
            f"about {_words(self.total)}{sharing}; {in_words(self.memory)} on each device, and what JAX needs beside it"
        )
        return "\n".join(lines)


def _words(seconds: float) -> str:
    return (
        f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
    )


def is_finished(experiment: Experiment, stage: str) -> bool:
    """Whether all groups of arrays of a stage are."""
    settings = experiment.settings.updates
    forms = [form for form in settings.forms if settings.methods_of(form)]
    groups = {
        "train-update": [f"update-{form}" for form in forms],
        "preference-utility": [*(f"preference-{form}" for form in forms), "preference-layers"],
    }.get(stage, [stage])
    return all(experiment.store.finished(group) for group in groups)


def estimate(experiment: Experiment, stages: Sequence[str], rates: Rates | None = None, *, hosts: int = 1) -> RunCost:
    """An estimate of what stages of a run will take here, without those that are finished.

    Args:
        experiment: the run.
        stages: names, and those that they need.
        rates: how fast the model is; measured if left out.
        hosts: how many have as many groups of devices each.
    """
    left = [name for name in stages if not is_finished(experiment, name)]
    works = {name: STAGES[name](experiment) for name in left}
    trials = trials_of(experiment.lm, works.values())
    known = rates or (measure_rates(experiment.lm, trials) if left else Rates(math.inf, (0.0, 0.0), 2, 0.0))
    groups = hosts * len(experiment.on_every_group)
    lm = experiment.lm
    sizes = ONE_DEVICE if lm.mesh is None else lm.mesh.shape
    split = lm.split([[0]], 0)
    models = {each.fingerprint: each for each in (lm, experiment.judge)}.values()
    memory = 4 * split.budget + sum(
        bytes_on_each(each.config, each.decoder.embedding[...].dtype, sizes, offload=each.decoder.offloaded)
        for each in models
    )
    seconds = tuple(known.seconds(work.of_one(groups)) for work in works.values())
    return RunCost(tuple(left), tuple(works[name] for name in left), seconds, memory, groups)


class Card(NamedTuple):
    """The work that a kind of device does in a second, as measured on that of the stages.

    Attributes:
        reading: operations of sweeps and of passes over texts.
        writing: operations for each further sequence that is written at a time.
        bandwidth: bytes of parameters that pass by while one token is written.
        link: bytes between the devices of a group.
    """

    reading: float
    writing: float
    bandwidth: float
    link: float


class FromHost(NamedTuple):
    """The cost of reading blocks from the memory of the host.

    Attributes:
        bandwidth: bytes in a second, to each device.
        tokens: that pass through a block together in a sweep or in reading; the more, the less it costs.
    """

    bandwidth: float
    tokens: int


def rates_on(
    card: Card,
    config: Config,
    *,
    model: int = 1,
    together: int = 32,
    number: int = 2,
    offload: FromHost | None = None,
) -> Rates:
    """How fast a model is on a group of devices that is not at hand.

    Each block sums its two outputs over the devices of a group: for each, ``2 (m - 1) / m`` streams go over a link. Where
    blocks are on the host, all of them come to the device once for every pass, and nothing is computed meanwhile.

    Args:
        card: one of the devices.
        config: of the model.
        model: devices of a group.
        together: sequences that are written at a time.
        number: bytes of a number.
        offload: where the blocks are on the host.
    """
    shape, layers = Shape(config), config.num_layers
    each = shape.block * layers
    across = 2 * layers * config.d_model * number * 2 * (model - 1) / model / card.link
    alone = parameter_bytes(config, jnp.bfloat16 if number == 2 else jnp.float32) / (card.bandwidth * model) + across
    further = (each + shape.logits(1)) / (card.writing * model) + across
    coming = 0.0 if offload is None else each / 2 * number / (offload.bandwidth * model)
    alone += coming
    reading = each / (each / (card.reading * model) + across + (coming / offload.tokens if offload else 0.0))
    return Rates(reading, (alone, alone + (together - 1) * further), together, 0.0)


def count_for(config: Config, tokenizer: Tokenizer, settings: ExperimentSettings, inputs: Inputs) -> dict[str, StageCost]:
    """The work of every stage on a model whose weights are not at hand.

    Args:
        config: of the model.
        tokenizer: gives the lengths of texts.
        settings: what is computed.
        inputs: texts.
    """
    decoder = nnx.eval_shape(lambda: Decoder(config, init_parameters(jax.random.key(0), config)))
    lm = LanguageModel(decoder, tokenizer, "planned")
    return count(Experiment(lm, lm, settings.for_model(config), inputs, Store(Path(), {})))

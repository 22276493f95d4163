"""Updates trained on paired answers of a frozen model (W, arXiv:2602.02343); only what is behind the site is computed.

The states of all pairs where the model is split are computed once. A step takes some pairs, draws a strength for each, and
differentiates the objective through the blocks behind the split with respect to the update alone.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import ufm
from sim.bridge import devices
from sim.bridge.split import MLP_DOWN, Split, block_activation_size
from sim.experiments.experiment import Experiment
from sim.experiments.preference import pairs
from sim.experiments.preference.pairs import Asked, Encoded
from sim.experiments.settings import Recipe, Updates
from sim.experiments.steps import Steps, run_steps
from sim.experiments.store import Cell, Layout
from ufm import Add, Answers, Intervention, NullOut, State, Steering, init_update, preference
from ufm._check import require
from ufm.interventions import FORMS, Update
from ufm.steerable import one_of
from ufm.steering import RESIDUAL

SITES = {"vector": RESIDUAL, "lora": MLP_DOWN, "weight": MLP_DOWN}
"""Where updates of each form act: the stream after a block, or the down-projection of its MLP (W)."""

ARRAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "vector": {"v": ("d_model",)},
    "lora": {"down": ("rank", "d_mlp"), "up": ("d_model", "rank")},
    "weight": {"A": ("d_model", "d_mlp"), "b": ("d_model",)},
}
"""The fields of updates of each form, in the order of their class, and the axes of each."""

TOGETHER = 16
"""Rows whose states are computed in one pass."""


@dataclass(frozen=True, eq=False)
class Task:
    """The pairs of a concept before a run's model.

    Attributes:
        experiment: the run.
        concept: its name.
        training, held_out: pairs that updates are trained on, and that they are measured on.
        numbers: of the pairs held out, in the order of the file.
        length, answer: tokens of a row and of an answer that all are padded to.
    """

    experiment: Experiment
    concept: str
    training: Encoded
    held_out: Encoded
    numbers: Int[np.ndarray, " n"]
    length: int
    answer: int

    def asked(self, encoded: Encoded, form: str) -> Asked:
        """The pairs, with the model split where updates of a form act."""
        layer = int(self.experiment.settings.updates.layer)
        asked = pairs.ask(self.experiment.lm, encoded, layer, site=SITES[form], length=self.length, answer=self.answer)
        return asked._replace(split=replace(asked.split, rematerialised=self.rematerialises))

    @property
    def rematerialises(self) -> bool:
        """Whether a step of training computes blocks again, since there is no room for what is inside all of them.

        There is none where it is more than the numbers that the user allows (`LanguageModel.memory_budget`), or takes more
        than half of what is free on the device. Blocks that come from the host are computed again in any case.
        """
        lm, settings = self.experiment.lm, self.experiment.settings.updates
        rows, blocks = 2 * settings.batch, lm.config.num_layers - 1 - int(settings.layer)
        kept = rows * blocks * block_activation_size(lm.config, self.length, self.length)
        if lm.decoder.offloaded:
            return True
        if lm.memory_budget is not None:
            return kept > lm.memory_budget
        free = devices.free(lm.device)
        return free is not None and kept * lm.decoder.dtype.itemsize > free / 2

    @cached_property
    def difference(self) -> Add:
        """The difference of means at the layer of the run, scaled so that strengths are comparable (W's untrained baseline).

        At the largest strength that vectors are trained at it is as long as the states are, in the median.
        """
        v, size = self._means(int(self.experiment.settings.updates.layer))
        return Add(jnp.asarray(v * size / (np.linalg.norm(v) * self.experiment.settings.updates.vector.reach), jnp.float32))

    def difference_at(self, layer: int) -> Float[np.ndarray, " d"]:
        """The difference of the means of the states at the tokens of the answers, after a layer."""
        return self._means(layer)[0]

    def _means(self, layer: int) -> tuple[Float[np.ndarray, " d"], float]:
        """The difference of means of a layer, and the median of the lengths of the states."""
        asked = pairs.ask(self.experiment.lm, self.training, layer, site=RESIDUAL, length=self.length, answer=self.answer)
        x, counted = np.asarray(states(asked).stream[:, -self.answer :], float), np.asarray(asked.counted)
        means = (x * counted[..., None]).sum(axis=1) / counted.sum(axis=1)[:, None]
        v = means[::2].mean(axis=0) - means[1::2].mean(axis=0)
        return v, float(np.median(np.linalg.norm(x[counted], axis=-1)))


def tasks(experiment: Experiment) -> dict[str, Task]:
    """The tasks of a run by concept.

    Raises:
        ValueError: a concept without pairs, or with too few.
    """
    settings, pairs_of = experiment.settings.updates, experiment.inputs.pairs
    missing = [name for name in settings.concepts if name not in pairs_of]
    require(not missing, "updates.concepts", f"some of {', '.join(pairs_of)}, which have pairs", ", ".join(missing))
    every = {name: pairs.encode(experiment.lm, pairs_of[name], chat=settings.chat) for name in settings.concepts}
    length = max(len(row) for encoded in every.values() for row in encoded.rows)
    answer = max(count for encoded in every.values() for count in encoded.counts)
    by_concept = {}
    for name, encoded in every.items():
        require(
            encoded.pairs > settings.trained,
            "pairs",
            f"more than {settings.trained} (updates.trained) of {name}",
            encoded.pairs,
        )
        order = np.random.default_rng(experiment.seed("pairs", name)).permutation(encoded.pairs)
        held_out = order[settings.trained :][: settings.held_out]
        training = encoded.subset(order[: settings.trained])
        by_concept[name] = Task(experiment, name, training, encoded.subset(held_out), held_out, length, answer)
    return by_concept


def states(asked: Asked) -> State:
    """The states of all rows where the model is split. They are computed in batches of `TOGETHER` rows."""
    n = asked.split.n_contexts
    # The last pass repeats rows, so that one program serves all.
    places = [np.minimum(np.arange(k, k + TOGETHER), n - 1) for k in range(0, n, TOGETHER)]
    split = asked.split.at(jnp.asarray(asked.split.layer))
    parts = [_embedded(split, jnp.asarray(rows)) for rows in places]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:n], *parts)


@jax.jit
def _embedded(split: Split, contexts: Array) -> State:
    return split.embed(contexts)


def objective(
    method: str,
    settings: Updates,
    recipe: Recipe,
    asked: Asked,
    states: State,
    reference: Answers,
    update: Update,
    alpha: Float[Array, " n"],
    which: Int[Array, " n"],
) -> Float[Array, ""]:
    """The mean objective of some pairs.

    Args:
        method: "sft", "reps" or "split".
        settings, recipe: its numbers.
        asked: the pairs.
        states: states of all their rows.
        reference: of all pairs, unsteered; used by "reps".
        update: that is trained.
        alpha: strength of each.
        which: numbers of pairs.
    """
    rows = (2 * which[:, None] + jnp.arange(2)).ravel()
    strengths = jnp.repeat(alpha, 2).astype(states.stream.dtype)

    def under(intervention: Intervention) -> Answers:
        steering = Steering(intervention, site=asked.split.site)
        return pairs.answers(asked, one_of(states, rows), steering, strengths, rows)

    under_update = under(update)
    if method == "sft":
        return jnp.mean(preference.sft(under_update))
    if method == "split":
        weights = {"weight_positive": settings.weight_positive, "weight_negative": settings.weight_negative}
        return jnp.mean(preference.split(under_update, **weights, gamma=recipe.gamma, theta=recipe.theta))
    unsteered = Answers(*(values[which] for values in reference))
    # With the concept taken out, the other answer is the one to prefer.
    without = preference.reps(under(NullOut(update)).swapped, unsteered.swapped, scale=settings.scale)
    return jnp.mean(preference.reps(under_update, unsteered, scale=settings.scale) + without)


@partial(jax.jit, static_argnames=("method", "settings", "recipe", "layer", "total"))
def _step(method, settings, recipe, layer, total, asked, states, reference, update, inner, alpha, which):
    asked = asked._replace(split=asked.split.at(layer))  # a constant of the program, as reverse mode needs it
    loss, gradient = jax.value_and_grad(
        lambda update: objective(method, settings, recipe, asked, states, reference, update, alpha, which)
    )(update)
    more, inner = _optimizer(settings, recipe, total).update(gradient, inner, update)
    return optax.apply_updates(update, more), inner, loss


def _optimizer(settings: Updates, recipe: Recipe, total: int) -> optax.GradientTransformation:
    """AdamW without decay of the weights, clipped gradients, a rate that falls linearly to 0 (W)."""
    rate = optax.linear_schedule(recipe.rate, 0.0, total)
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.adamw(rate, weight_decay=0.0))


class Batch(NamedTuple):
    """The pairs of a step, and the strength of each."""

    which: Int[np.ndarray, " n"]
    alpha: Float[np.ndarray, " n"]


def batch(settings: Updates, recipe: Recipe, count: int, step: int, seed: int) -> Batch:
    """The pairs of a step and their strengths. In each epoch every pair comes once, in an order of its own.

    If the pairs do not fill the last batch of an epoch, the first pairs of the epoch fill it up.

    Args:
        settings: those of updates.
        recipe: of the form.
        count: how many pairs are trained on.
        step: from 0 on.
        seed: of the training.
    """
    size = min(settings.batch, count)
    each = -(-count // size)
    order = np.random.default_rng((seed, step // each)).permutation(count)
    which = np.resize(order, each * size)[step % each * size :][:size]
    return Batch(which, np.random.default_rng((seed, step, 1)).choice(recipe.strengths, size))


def steps_of(settings: Updates) -> int:
    """How many steps a training has."""
    return settings.epochs * -(-settings.trained // min(settings.batch, settings.trained))


def train(
    task: Task, form: str, method: str, folder: str | Path, *, seed: int, progress: bool | None = None
) -> tuple[Update, Steps]:
    """Train an update, or go on with a training that was interrupted.

    Args:
        task: the pairs.
        form: one of `ufm.interventions.FORMS`.
        method: "sft", "reps" or "split".
        folder: for checkpoints.
        seed: of pairs, strengths and the first update.
        progress: whether to show a bar.
    """
    settings = task.experiment.settings.updates
    recipe, asked, total = settings.recipe(form), task.asked(task.training, form), steps_of(settings)
    embedded, layer = states(asked), int(settings.layer)
    widths, dtype = asked.split.sites[SITES[form]], embedded.stream.dtype
    first = init_update(jax.random.key(seed), form, *widths, rank=settings.rank, dtype=dtype)
    count = task.training.pairs
    reference = unsteered(asked, embedded, layer) if method == "reps" else Answers(*[jnp.zeros(count, dtype)] * 4)

    def step(k: int, state: Any) -> tuple[Any, Any]:
        minibatch = batch(settings, recipe, count, k, seed)
        arrays = (asked, embedded, reference, *state, jnp.asarray(minibatch.alpha), jnp.asarray(minibatch.which))
        update, inner, loss = _step(method, settings, recipe, layer, total, *arrays)
        return (update, inner), loss

    inner = _optimizer(settings, recipe, total).init(first)
    name = f"{task.concept}, {method} {form}"
    done = run_steps(folder, (first, inner), step, total, every=settings.every, name=name, progress=progress)
    return done.state[0], done


def unsteered(asked: Asked, states: State, layer: int) -> Answers:
    """How likely the answers of all pairs are without an update."""
    dtype = states.stream.dtype
    nothing = Add(jnp.zeros(asked.split.sites[asked.split.site][1], dtype))
    answers_by_strength = likelihoods(layer, asked, states, nothing, jnp.zeros(1, dtype), 8)
    return Answers(*(values[:, 0] for values in answers_by_strength))


@partial(jax.jit, static_argnames=("layer", "together"))
def likelihoods(
    layer: int, asked: Asked, states: State, update: Update, alphas: Float[Array, " K"], together: int
) -> Answers:
    """How likely the answers of all pairs are under an update, ``[n, K]``, some pairs at a time.

    Args:
        layer: where the update is.
        asked: the pairs.
        states: states of their rows, two for each pair.
        update: of the model.
        alphas: its strengths, ``[K]``.
        together: pairs at a time.
    """
    asked = asked._replace(split=asked.split.at(layer))
    steering = Steering(update, site=asked.split.site)

    def of_pair(k: Array, alpha: Array) -> Answers:
        rows = 2 * k + jnp.arange(2)
        answered = pairs.answers(asked, one_of(states, rows), steering, jnp.full(2, alpha), rows)
        return Answers(*(value[0] for value in answered))

    return ufm.steerable.pairs(of_pair, states.mask.shape[0] // 2, alphas, together)


def train_updates(experiment: Experiment) -> None:
    """Fill the groups "update-vector", "update-lora" and "update-weight": updates by concept and method.

    Beside their arrays: `loss` of every step, and `stopped`, the step at which a training diverged and was stopped, or -1;
    the update is then the last whose loss was a number.

    Raises:
        ValueError: a concept without pairs, or with too few.
    """
    settings = experiment.settings.updates
    every = tasks(experiment)
    for form in settings.forms:
        layout = _layout(experiment, form)

        def compute(cell: Cell, form: str = form, layout: Layout = layout) -> Mapping[str, Any]:
            (name,), (method,) = layout.labels(cell).values()
            if method == "difference":
                return {"v": every[name].difference.v, "loss": np.full(steps_of(settings), np.nan), "stopped": -1}
            folder = experiment.store.path / ".training" / f"{form}-{name}-{method}"
            seed = experiment.seed("update", form, name, method)
            update, done = train(every[name], form, method, folder, seed=seed, progress=experiment.progress)
            stopped = -1 if done.stopped is None else done.stopped
            if stopped >= 0:
                kept = "the last update whose loss was a number is kept"
                warnings.warn(f"{method} {form} of {name}: diverged at step {stopped}; {kept}", stacklevel=2)
            return {**vars(update), "loss": done.losses, "stopped": stopped}

        methods = settings.methods_of(form)
        wanted = [cell for cell in layout.all_cells if layout.labels(cell)["objective"][0] in methods]
        if wanted:
            experiment.store.fill(f"update-{form}", layout, compute, wanted=wanted, progress=experiment.progress)


def _layout(experiment: Experiment, form: str) -> Layout:
    a, settings = experiment.lm.config, experiment.settings.updates
    dims = ("concept", "objective")
    arrays = ARRAYS[form]
    sizes = {"d_model": a.d_model, "d_mlp": a.d_mlp, "rank": settings.rank}
    used = {
        name: np.arange(sizes[name])
        for name in dict.fromkeys(dim for dims_of_array in arrays.values() for dim in dims_of_array)
    }
    coords: dict[str, Any] = {"concept": list(settings.concepts), "objective": list(settings.methods)}
    return Layout(
        coords | used | {"step": np.arange(steps_of(settings))},
        {name: ((*dims, *dims_of_array), "float32") for name, dims_of_array in arrays.items()}
        | {"loss": ((*dims, "step"), "float32"), "stopped": (dims, "int32")},
        {"concept": 1, "objective": 1},
    )


def trained(experiment: Experiment, form: str, concept: str, method: str) -> Update:
    """An update of a run.

    Raises:
        ValueError: the update has not been trained.
    """
    stored = experiment.store.data(f"update-{form}").sel(concept=concept, objective=method)
    arrays = [jnp.asarray(stored[name].values) for name in ARRAYS[form]]
    kinds: dict[str, Any] = FORMS
    whole = all(bool(jnp.isfinite(array).all()) for array in arrays)
    require(whole, "update", f"a trained one ({method} {form}, {concept})", "none")
    return kinds[form](*arrays)

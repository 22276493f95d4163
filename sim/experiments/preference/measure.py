"""Preference and utility under updates (W, arXiv:2602.02343), and one-token preference beside the law of the norm (N7).

How likely each answer of the pairs held out is at every strength of every update; and, layer by layer, the preference for
the first token of one answer over that of the other, which behind the last block follows N7 exactly.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import ufm
from sim.bridge.decoder import Decoder, softcapped
from sim.bridge.readout import Readout, readout
from sim.bridge.split import Split, end_states
from sim.experiments.experiment import Experiment
from sim.experiments.preference.pairs import Asked
from sim.experiments.preference.updates import Task, likelihoods, states, tasks, trained
from sim.experiments.settings import grid
from sim.experiments.store import Cell, Layout
from sim.measure.tradeoff import SIDES
from theory import arc
from ufm import State
from ufm._check import require
from ufm.interventions import Update
from ufm.steerable import finite_at

PAIRS_TOGETHER = 8
"""Pairs whose logits are held at once."""


def preference_utility(experiment: Experiment) -> None:
    """Fill the groups "preference-vector", "preference-lora", "preference-weight" and "preference-layers".

    Of each form: `loss`, nats per token of an answer, ``[concept, objective, strength, pair, side]``. Layers: see `_layers`.
    """
    settings, every = experiment.settings.updates, tasks(experiment)

    @cache
    def before(name: str, form: str) -> tuple[Asked, State]:
        """The pairs of a concept with the model split, and their states, which all strengths and methods share."""
        asked = every[name].asked(every[name].held_out, form)
        return asked, states(asked)

    for form in settings.forms:
        alphas = settings.alphas(form)
        layout = Layout(
            {
                "concept": list(settings.concepts),
                "objective": list(settings.methods),
                "strength": np.arange(alphas.size),
                "pair": np.arange(max(task.held_out.pairs for task in every.values())),
                "side": list(SIDES),
            },
            {"loss": (("concept", "objective", "strength", "pair", "side"), "float32")},
            {"concept": 1, "objective": 1, "strength": settings.part},
            fixed={"alpha": (("strength",), alphas)},
        )

        def compute(cell: Cell, form: str = form, layout: Layout = layout) -> Mapping[str, Any]:
            (name,), (method,), numbers = layout.labels(cell).values()
            # The last part is filled up with strengths of 0, so that one program serves all.
            strengths = np.zeros(settings.part)
            strengths[: len(numbers)] = layout.fixed["alpha"][1][numbers]
            losses = _losses(int(settings.layer), *before(name, form), trained(experiment, form, name, method), strengths)
            losses = losses[: len(numbers)]
            missing = len(layout.coords["pair"]) - losses.shape[1]
            return {"loss": np.pad(losses, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)}

        methods = settings.methods_of(form)
        wanted = [cell for cell in layout.all_cells if layout.labels(cell)["objective"][0] in methods]
        if wanted:
            experiment.store.fill(f"preference-{form}", layout, compute, wanted=wanted, progress=experiment.progress)
    _layers(experiment, every)


def _losses(layer: int, asked: Asked, states: State, update: Update, strengths: np.ndarray) -> Float[np.ndarray, "K n 2"]:
    answers = likelihoods(layer, asked, states, update, jnp.asarray(strengths, states.stream.dtype), PAIRS_TOGETHER)
    for loss in (answers.loss_positive, answers.loss_negative):
        finite_at(asked.split, strengths, loss)
    return np.stack([np.asarray(answers.loss_positive, float).T, np.asarray(answers.loss_negative, float).T], axis=-1)


# --- the preference for one token over another, layer by layer ---------------------------------------------------------


def _layers(experiment: Experiment, every: Mapping[str, Task]) -> None:
    """Fill the group "preference-layers", of steering along the difference of means of each layer.

    At the end of a question, of the first token of the one answer over that of the other: `preference`, nats, at strengths
    `alpha`, which are those of `sweep` times the median of the lengths of the states by that of the vector; `centre_law` and
    `width_law`, which N7 has for a norm right behind the layer; and `law_error`, the largest distance of the law from the
    model's own norm and unembedding in float64, NaN where there are blocks between.
    """
    settings, a = experiment.settings.updates, experiment.lm.config
    layers = np.unique(np.linspace(0, a.num_layers - 1, settings.law_layers).round().astype(int))
    dims = ("concept", "layer", "pair")
    # Dense near 0, where preference bends.
    sweep = grid(settings.law_strengths, settings.law_reach, 3.0)
    layout = Layout(
        {
            "concept": list(settings.concepts),
            "layer": layers.tolist(),
            "pair": np.arange(settings.law_pairs),
            "strength": np.arange(sweep.size),
        },
        {
            "preference": ((*dims, "strength"), "float64"),
            "alpha": (("concept", "layer", "strength"), "float64"),
            "centre_law": (dims, "float64"),
            "width_law": (dims, "float64"),
            "law_error": (dims, "float64"),
        },
        {"concept": 1, "layer": 1},
        fixed={"sweep": (("strength",), sweep)},
    )

    def compute(cell: Cell) -> Mapping[str, Any]:
        (name,), (layer,) = layout.labels(cell).values()
        return _one_layer(experiment, every[name], layer, sweep)

    experiment.store.fill("preference-layers", layout, compute, progress=experiment.progress)


def _one_layer(experiment: Experiment, task: Task, layer: int, sweep: np.ndarray) -> dict[str, Any]:
    count, pairs = experiment.settings.updates.law_pairs, task.training
    # Pairs whose answers begin with different tokens.
    chosen = pairs.subset(np.flatnonzero(pairs.first[:, 0] != pairs.first[:, 1])[:count])
    require(chosen.pairs > 0, "pairs", f"answers of {task.concept} that begin differently", "none")
    v, split = task.difference_at(layer), experiment.lm.split(chosen.questions, layer)
    h, tokens = np.asarray(end_states(split), float), jnp.asarray(chosen.first)
    alphas = sweep * float(np.median(np.linalg.norm(h, axis=-1)) / np.linalg.norm(v))
    data = _behind_norm(experiment, h, v, alphas, tokens)
    if layer < experiment.lm.config.num_layers - 1:
        strengths = jnp.asarray(alphas, jnp.float32)
        data |= {"preference": np.asarray(_preferences(split, jnp.asarray(v), strengths, tokens), float)}
        data["law_error"] = np.full(chosen.pairs, np.nan)
    missing = count - chosen.pairs
    padded = {
        name: np.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)], constant_values=np.nan)
        for name, values in data.items()
    }
    return padded | {"alpha": alphas}


@jax.jit
def _preferences(split: Split, v: Array, alphas: Array, tokens: Array) -> Float[Array, "n K"]:
    contexts = jnp.arange(split.n_contexts)
    return ufm.sweep(split, contexts, v, alphas, lambda logits, j: logits[tokens[j, 0]] - logits[tokens[j, 1]])


def _behind_norm(
    experiment: Experiment, h: np.ndarray, v: np.ndarray, alphas: np.ndarray, tokens: Array
) -> dict[str, np.ndarray]:
    """The preference through the last norm alone, as the model's own code has it in float64, and how far off the law is.

    States of the model in float32 go through norm and unembedding in float64, so that nothing is left but rounding.
    """
    with jax.enable_x64(True):
        decoder = experiment.lm.with_dtype(jnp.float64).decoder
        every = _beside_law(
            readout(experiment.lm), decoder, *(jnp.asarray(array, float) for array in (h, v, alphas)), tokens
        )
        names = ("preference", "law_error", "centre_law", "width_law")
        return {name: np.asarray(value) for name, value in zip(names, every, strict=True)}


@jax.jit
def _beside_law(out: Readout, decoder: Decoder, h: Array, v: Array, alphas: Array, tokens: Array) -> tuple[Array, ...]:
    def of_pair(pair: tuple[Array, Array]) -> tuple[Array, ...]:
        h, two = pair
        law = arc.law(out.W[two], out.gamma, out.bias, h, v, kind=out.kind, eps=out.eps)
        measured = decoder.logits(h + alphas[:, None] * v)[:, two]
        closed = softcapped(jax.vmap(partial(arc.law_logits, law))(alphas), out.softcap)
        measured, closed = (logits[:, 0] - logits[:, 1] for logits in (measured, closed))
        return measured, jnp.max(jnp.abs(measured - closed)), law.centre, law.width

    return jax.lax.map(of_pair, (h, tokens))

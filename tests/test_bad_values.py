"""What a caller may get wrong, tried on every public function: the error is ours and names the argument."""

import dataclasses
import inspect
import re

import jax
import numpy as np
import pytest

import theory
import ufm
from theory import arc, budgets, certificate, predicted, random_instances, rationals, refute, routes, tilting
from ufm.transformer import added, added_in_the_limit, init_transformer

pytestmark = pytest.mark.usefixtures("as_users_have_it")

JUNK = {
    "text": "one",
    "complex": 1j,
    "None": None,
    "object": object(),
    "mapping": {"a": 1},
    "ragged list": [[1, 2], [3]],
    "array of text": np.array(["a"]),
    "NaN": float("nan"),
    "truth value": True,
    "integer too large": 10**400,
}
"""Right for no argument of no function, but None where it is the default and a truth value where one is asked for."""


def good():
    """Every public function with arguments that it takes."""
    key, alphas = jax.random.key(0), np.array([-1.0, 1.0])
    corpus = ufm.uniform((2, 2), 0.1, length=1)
    concepts, m, v = corpus.concepts, np.array([1.0, 0.5, -0.5, -1.0]), np.ones(3)
    model = ufm.init(key, corpus, 3)
    normed = ufm.init_normalised(key, corpus, 3)
    transformer = init_transformer(key, corpus.words, 4, 4)
    contexts, weights = np.arange(4), ufm.contrast(4, [0, 1], [2, 3])
    answers = ufm.Answers(*np.full((4, 2), -1.0))
    instance = theory.make_instance(corpus, [0, 1], [2, 3], 0)
    exact = rationals.rationalise(instance)
    claimed = theory.REGISTRY["theorem-3.6.target"]
    log_p = np.asarray(corpus.log_rows)[0]
    turned = arc.arc_of(normed.W, normed.gamma, None, normed.H[:, 0], v)
    decoder = {"W": normed.W, "gamma": normed.gamma, "v": v, "kind": "rms"}
    with_h = {**decoder, "h": normed.H[:, 0]}
    tilted = {"log_p": log_p, "m": m, "alpha": 1.0}
    members = np.array([True, True, False, False])
    law = arc.law(normed.W, normed.gamma, None, normed.H[:, 0], v)
    attacked = refute.Attack(1.0, instance, 1, 0.0, claimed.claim.instances, ())
    swept = {"steering": v, "alphas": alphas, "budget": 10}
    predictions = {"corpus": corpus, "m": m, "alphas": alphas, "budget": 10}
    return {
        ufm.Concepts: {"of_token": [0, 1]},
        ufm.Concepts.from_sizes: {"sizes": [2, 2]},
        ufm.Concepts.from_lists: {"members": [[0], [1]], "vocabulary_size": 2},
        concepts.members: {"concept": 0},
        corpus.contexts_of: {"concept": 0},
        ufm.concept_log_probabilities: {"log_probabilities": log_p, "concepts": concepts},
        ufm.from_table: {
            "p": np.full((2, 2), 0.5),
            "concepts": [[0], [1]],
            "concept_of_context": [0, 1],
            "weights": [1, 1],
            "row": [0, 1],
            "words": [[0], [1]],
        },
        ufm.pytree: {"kind": dataclasses.make_dataclass("Kind", ["x"])},
        ufm.entropy: {"corpus": corpus},
        ufm.assumption_1: {"corpus": corpus},
        ufm.count_documents: {"documents": [[[0, 1]]], "concepts": concepts, "smoothing": 0.0},
        ufm.sample_documents: {"key": key, "corpus": corpus, "n": 3},
        ufm.contrast: {"n_contexts": 4, "positive": [0], "negative": [1]},
        ufm.contrastive: {"corpus": corpus, "target": 0, "opposite": 1, "size": 1, "key": key},
        ufm.random_negatives: {"corpus": corpus, "target": 0, "size": 1, "key": key},
        ufm.difference_of_means: {"model": model, "contexts": contexts, "weights": weights},
        ufm.log_odds: {"corpus": corpus, "weights": weights},
        ufm.uniform: {"sizes": [2, 2], "epsilon": 0.1, "length": 1, "contexts_per_concept": 1, "weights": [1, 1]},
        ufm.families.all_words: {"concepts": concepts, "length": 1},
        ufm.weighted: {
            "sizes": [1, 1],
            "gamma": [1, 1],
            "omega": [1, 1],
            "epsilon": 0.1,
            "length": 1,
            "contexts_per_concept": 1,
            "weights": [1, 1],
        },
        ufm.per_context: {
            "sizes": [1, 1],
            "gamma": np.eye(2),
            "omega": [1, 1],
            "epsilon": 0.1,
            "concept_of_context": [0, 1],
            "weights": [1, 1],
        },
        ufm.log_linear: {
            "base": [0.0, 1.0],
            "features": np.eye(2),
            "coordinates": np.eye(2),
            "concepts": [[0], [1]],
            "weights": [1, 1],
        },
        ufm.mixed: {"mixture": np.eye(2), "q": np.full((2, 2), 0.5), "concepts": [[0], [1]], "weights": [1, 1]},
        ufm.probability_increase: {"model": model, "contexts": contexts, **swept, "tokens": [0]},
        ufm.concept_increase: {"model": model, "contexts": contexts, **swept, "concepts": concepts},
        ufm.cross_entropy_increase: {"model": model, "corpus": corpus, **swept},
        ufm.curvature: {"model": model, "contexts": contexts, "steering": v, "alpha": 1.0},
        ufm.divergence: {"model": model, "contexts": contexts, **swept},
        ufm.init: {"key": key, "corpus": corpus, "d": 2, "scale": 1.0, "dtype": np.float32},
        ufm.exact: {"corpus": corpus},
        ufm.logits: {"model": model},
        ufm.gap: {"model": model, "corpus": corpus},
        ufm.cross_entropy: {"model": model, "corpus": corpus},
        ufm.norm: {"h": v, "gamma": v, "bias": v, "kind": "rms", "eps": 0.0},
        ufm.init_normalised: {
            "key": key,
            "corpus": corpus,
            "d": 3,
            "kind": "rms",
            "eps": 0.0,
            "biased": True,
            "scale": 1.0,
            "dtype": np.float32,
        },
        ufm.preference_odds: {"loss_positive": v, "loss_negative": v},
        ufm.utility_odds: {"loss_positive": v, "loss_negative": v},
        ufm.preference.sft: {"answers": answers},
        ufm.preference.split: {
            "answers": answers,
            "weight_positive": 1.0,
            "weight_negative": 1.0,
            "gamma": 1.0,
            "theta": 1.0,
        },
        ufm.preference.reps: {"answers": answers, "reference": answers, "scale": 1.0},
        ufm.steer: {"model": model, "contexts": contexts, "steering": v, "alpha": 1.0},
        ufm.sweep: {"model": model, "contexts": contexts, **swept, "measure": lambda logits, i: logits},
        ufm.sweep_states: {"model": model, "states": np.ones((2, 3)), **swept, "measure": lambda logits, i: logits},
        ufm.fit: {
            "corpus": corpus,
            "d": 3,
            "optimizer": "adam",
            "tolerance": 1.0,
            "max_steps": 1,
            "patience": 1,
            "decay": 0.0,
            "key": key,
            "start": model,
        },
        added: {"model": transformer},
        added_in_the_limit: {"model": transformer, "v": np.ones(4)},
        init_transformer: {
            "key": key,
            "tokens": corpus.words,
            "vocabulary_size": 4,
            "d": 4,
            "blocks": 2,
            "cut": 1,
            "heads": 2,
            "kind": "rms",
            "eps": 1e-5,
            "biased": False,
            "softcap": 1.0,
            "placement": "pre",
            "dtype": np.float32,
        },
        ufm.init_update: {"key": key, "form": "lora", "inputs": 3, "outputs": 3, "rank": 1, "dtype": np.float32},
        predicted.probability_increase: {**predictions, "contexts": contexts, "tokens": [0]},
        predicted.concept_increase: {**predictions, "contexts": contexts, "concepts": concepts},
        predicted.cross_entropy_increase: predictions,
        theory.make_instance: {"corpus": corpus, "positive": [0], "negative": [2], "target": 0},
        theory.find: {"statement_id": "theorem-3.6.target", "registry": theory.REGISTRY},
        theory.find_all: {"statement_id": "theorem-3.6", "registry": theory.REGISTRY},
        theory.check: {"statement": claimed, "instance": instance},
        theory.taylor: {"quantity": "probability", "order": 2},
        certificate.certify: {
            "curve": lambda instance, alpha: alpha,
            "exact": exact,
            "interval": (0, 1),
            "zero": 0,
            "precision": 64,
            "budget": 10,
        },
        certificate.confirm: {
            "margin": lambda instance: instance.log_p[0, 0],
            "exact": exact,
            "precision": 64,
            "limit": 128,
        },
        theory.attack: {
            "margin": claimed.claim.instances,
            "key": key,
            "domain": claimed.domain,
            "hypotheses": claimed.conditions,
            "families": ["uniform"],
            "drawn": 2,
            "restarts": 1,
            "steps": 1,
        },
        theory.confirmed: {"result": attacked},
        rationals.rationalise: {"instance": instance, "digits": 3},
        rationals.checked: {"exact": exact},
        rationals.to_floats: {"exact": exact},
        random_instances.draw: {"key": key, "families": ["uniform"]},
        random_instances.check_families: {"families": ["uniform"]},
        routes.populate: {"key": key, "n": 1, "domain": claimed.domain},
        routes.applies: {"claim": claimed.claim, "route": "sweep"},
        routes.refutation: {"statement": claimed, "key": key, "claim": claimed.twin},
        theory.examples.measured: {"seed": 0},
        arc.arc_of: {**with_h, "bias": v, "eps": 0.0},
        arc.law: {**with_h, "bias": v, "eps": 0.0},
        arc.law_logits: {"law": law, "alpha": 1.0},
        arc.arc_logits: {"arc": turned, "theta": 1.0},
        arc.logits_at: {"arc": turned, "alpha": 1.0},
        arc.theta_of_alpha: {"arc": turned, "alpha": alphas},
        arc.alpha_of_theta: {"arc": turned, "theta": alphas},
        arc.derivative: {"arc": turned, "alpha": 1.0},
        arc.tangent_bound: {"arc": turned, "alpha": 1.0},
        arc.plateau: {"arc": turned, "sign": 1},
        arc.plateau_rate: {"arc": turned},
        arc.limit: {**decoder, "bias": v, "sign": 1, "softcap": 1.0},
        arc.limit_bound: {**decoder, "alpha": 1.0, "reach": 1.0, "eps": 0.0},
        arc.eps_bound: {**with_h, "eps": 0.1},
        arc.slopes: {"arc": turned, "theta": 1.0},
        arc.curvatures: {"arc": turned, "theta": 1.0},
        arc.bumps: {"arc": turned, "points": 8},
        arc.greedy_interval: {"arc": turned},
        budgets.binary_divergence: {"f0": 0.1, "f1": [0.2, 0.3]},
        budgets.cost_of_share: {"f0": 0.1, "tau": [0.2, 0.3]},
        budgets.share_within: {"f0": 0.1, "budget": 0.1},
        budgets.split_cost: {"log_p": log_p, "log_q": log_p, "members": members},
        budgets.efficiency: {"log_p": log_p, "m": m, "members": members},
        budgets.spread_of: {"log_p": log_p, "m": m},
        budgets.budget_bound: {"variance": 1.0, "above": 2.0, "alpha": alphas},
        budgets.safe_strength: {"variance": [1.0, 2.0], "above": 2.0, "budget": 0.1, "weights": [0.5, 0.5]},
        budgets.divergence_of_range: {"width": 1.0},
        budgets.range_bound: {"change": m},
        budgets.range_within: {"budget": 0.1},
        budgets.diameter: {"arc": turned, "directions": 8},
        budgets.arc_bound: {"arc": turned, "alpha": 1.0, "across": 2.0},
        budgets.safe_angle: {"across": 2.0, "budget": 0.1},
        budgets.safe_interval: {"arc": turned, "budget": 0.1, "across": 2.0},
        tilting.tilt: {"m": m, "alpha": 1.0},
        tilting.log_partition: tilted,
        tilting.log_probabilities: tilted,
        tilting.mean: tilted,
        tilting.variance: tilted,
        tilting.extremes: {"m": m},
        tilting.is_constant: {"log_p": log_p, "m": m},
        tilting.peaks: {"log_p": log_p, "m": m},
        tilting.strength_of_mean: {"log_p": log_p, "m": m, "value": 0.1},
        tilting.limit: {"log_p": log_p, "m": m, "sign": 1},
        tilting.saturation: {"log_p": log_p, "m": m, "sign": 1, "tolerance": 0.1},
        tilting.concept_log_odds: {**tilted, "members": members},
        tilting.conditional_mean: {**tilted, "members": members},
        tilting.concept_slope: {**tilted, "members": members},
    }


with jax.enable_x64(True):
    GOOD = good()


def cases():
    for function, arguments in GOOD.items():
        for argument in arguments:
            if (function, argument) not in FREE:
                yield pytest.param(function, argument, id=f"{function.__module__}.{function.__qualname__}-{argument}")


FREE = (
    (certificate.certify, "exact"),
    (certificate.confirm, "exact"),
    (theory.find, "registry"),
    (theory.find_all, "registry"),
)
"""Arguments that may be anything."""

CALLED = {"statement_id": "statement(_id)?", "concepts": "concepts|members"}
"""Arguments that messages know by another name."""

N = np.nan
RANGES = [
    (ufm.Concepts, "of_token", [[], [0, 2], [-1, 0], [[0, 1]], [0.5, 1.0]]),
    (ufm.Concepts.from_sizes, "sizes", [[], [0, 2], [-1], [[1, 2]]]),
    (
        ufm.Concepts.from_lists,
        "members",
        [[[0], []], [[0], [0, 1]], [[0]], [[0], [2]], [[0], [1.5]], [0, 1], [[-1], [0, 1]]],
    ),
    (ufm.Concepts.from_lists, "vocabulary_size", [0, -1]),
    (ufm.from_table, "p", [np.full((2, 2), N), np.full((2, 2), np.inf), np.eye(2)[0], np.eye(2) * 2, np.eye(2) - 0.1, []]),
    (ufm.from_table, "concept_of_context", [[0], [0, 2], [-1, 0], [[0, 1]], [0.0, 1.0]]),
    (ufm.from_table, "weights", [[1], [0, 1], [-1, 1], [N, 1], [np.inf, 1], [[1, 1]]]),
    (ufm.from_table, "row", [[0, 2], [-1, 0], [0.5, 1]]),
    (ufm.from_table, "words", [[0, 1], [[0]], [[0.5], [1.5]], [[0], [7]], [[-1], [0]]]),
    (
        ufm.count_documents,
        "documents",
        [[], [[0.5, 1.0]], [[[0]]], [[0, 9]], [[0, 2, 1]], ["ab"], [[[0, 1]], [[0, 1, 1]]], [None]],
    ),
    (ufm.count_documents, "smoothing", [-1.0, np.inf]),
    (ufm.sample_documents, "n", [-1, 1.5]),
    (ufm.contrast, "n_contexts", [-1, 0]),
    (ufm.contrast, "positive", [[], [4], [-1], [0, 0], [0.5], [[0]]]),
    (ufm.contrast, "negative", [[], [4], [0], [1.0]]),
    (ufm.contrastive, "target", [2, -1, 0.0]),
    (ufm.contrastive, "opposite", [0, 2, -1]),
    (ufm.contrastive, "size", [0, -1, 3, 1.5]),
    (ufm.random_negatives, "size", [0, 3]),
    (ufm.difference_of_means, "contexts", [[0, 1, 2, 4], [-1, 0, 1, 2], [0.5, 1, 2, 3]]),
    (ufm.difference_of_means, "weights", [[1.0], np.full(4, N), np.full(4, np.inf)]),
    (ufm.log_odds, "weights", [[1.0], np.full(4, N), np.full(4, np.inf)]),
    (ufm.uniform, "epsilon", [0, 1, -0.1, 0.5, np.inf]),
    (ufm.families.all_words, "length", [0, -1, 1.5]),
    (ufm.uniform, "contexts_per_concept", [0, -1, 1.5]),
    (ufm.uniform, "sizes", [[], [0, 2], [3], [-1, 2], [1.5, 2]]),
    (ufm.weighted, "gamma", [[1], [0.5, 1], [N, 1], [-1, 1], [np.inf, 1]]),
    (ufm.per_context, "gamma", [np.eye(3), np.zeros((2, 2)), np.full((2, 2), N), [1, 1]]),
    (ufm.per_context, "concept_of_context", [[0, 2], [-1, 0], [0.5, 1], [[0, 1]]]),
    (ufm.mixed, "mixture", [np.eye(3), np.eye(2) * 2, np.full((2, 2), N), [1, 0], np.zeros((0, 2))]),
    (ufm.log_linear, "base", [[N, 0.0], [], np.eye(2)]),
    (ufm.log_linear, "features", [np.eye(3), np.ones(2), np.full((2, 2), N)]),
    (ufm.log_linear, "coordinates", [np.eye(3), np.ones(2), np.full((2, 2), N), np.zeros((0, 2))]),
    (ufm.mixed, "q", [np.full((2, 2), N), np.ones(2)]),
    (ufm.probability_increase, "contexts", [[4], [-1], [0.5], [[0]]]),
    (ufm.probability_increase, "steering", [np.ones(4), np.ones((1, 3)), np.full(3, N), "v", None]),
    (ufm.probability_increase, "alphas", [[], [N], [np.inf], [[1.0, 2.0]], [[[1.0]]], ["1"]]),
    (ufm.probability_increase, "tokens", [[], [4], [-1], [0, 0], [0.5]]),
    (ufm.probability_increase, "budget", [0, -1, 1.5]),
    (ufm.concept_increase, "concepts", [ufm.Concepts([0, 1])]),
    (ufm.cross_entropy_increase, "corpus", [ufm.uniform((1, 1), 0.1, length=1)]),
    (ufm.curvature, "alpha", [np.inf, [1.0, 2.0]]),
    (ufm.init, "d", [0, -1, 1.5]),
    (ufm.init, "scale", [np.inf]),
    (ufm.init, "dtype", [int, "int32", complex]),
    (ufm.norm, "kind", ["x"]),
    (ufm.norm, "eps", [-1.0, np.inf]),
    (ufm.norm, "gamma", [np.ones(2)]),
    (ufm.norm, "bias", [np.ones(2)]),
    (ufm.init_normalised, "d", [0, 1]),
    (ufm.init_normalised, "eps", [-1.0]),
    (ufm.preference.reps, "scale", [0.0, -1.0]),
    (ufm.steer, "alpha", [[1.0, 2.0], np.inf, N]),
    (ufm.steer, "contexts", [["a"], [4], [-1], [True]]),
    (ufm.sweep_states, "states", [np.ones(3), np.full((2, 3), N)]),
    (ufm.sweep_states, "steering", [np.ones(4)]),
    (ufm.sweep_states, "alphas", [[], [N]]),
    (ufm.fit, "optimizer", ["x"]),
    (ufm.fit, "tolerance", [-1.0, N]),
    (ufm.fit, "max_steps", [0, -1]),
    (ufm.fit, "patience", [0]),
    (ufm.fit, "decay", [-1.0, N, (1.0,), (1.0, -1.0), (1.0, np.inf)]),
    (init_transformer, "tokens", [np.zeros((0, 0), int), np.array([[4]]), np.array([0, 1])]),
    (init_transformer, "d", [0, 3, -2]),
    (init_transformer, "blocks", [-1]),
    (init_transformer, "cut", [3, -1]),
    (init_transformer, "heads", [0, -1]),
    (init_transformer, "kind", ["x"]),
    (init_transformer, "placement", ["x"]),
    (init_transformer, "softcap", [0.0, -1.0]),
    (init_transformer, "eps", [-1.0]),
    (init_transformer, "vocabulary_size", [0, -1]),
    (added_in_the_limit, "v", [np.ones(3)]),
    (ufm.init_update, "form", ["x"]),
    (ufm.init_update, "rank", [0, 4]),
    (ufm.init_update, "inputs", [0, -1]),
    (ufm.init_update, "outputs", [0, -1]),
    (predicted.probability_increase, "contexts", [[4], [-1], [0.5]]),
    (predicted.probability_increase, "m", [np.ones(3), [N] * 4, [np.inf] * 4]),
    (predicted.probability_increase, "alphas", [[], [N], [np.inf], [[1.0]]]),
    (predicted.probability_increase, "tokens", [[], [4], [-1]]),
    (predicted.probability_increase, "budget", [0, -1]),
    (predicted.concept_increase, "concepts", [ufm.Concepts([0, 1])]),
    (theory.make_instance, "positive", [[], [3], [4], [0.5]]),
    (theory.make_instance, "negative", [[], [0], [-1]]),
    (theory.make_instance, "target", [2, -1]),
    (theory.find, "statement_id", ["theorem-9", "theorem-3.6"]),
    (theory.find_all, "statement_id", ["theorem-9"]),
    (theory.check, "statement", ["theorem-9", 3]),
    (theory.check, "instance", ["a", 3, None]),
    (theory.taylor, "quantity", ["x"]),
    (theory.taylor, "order", [-1, 99]),
    (certificate.certify, "interval", [(1, 0), (0, 0), (0, np.inf), (0,), (0, 1, 2), ("0", "1")]),
    (certificate.certify, "zero", [-1]),
    (certificate.certify, "precision", [0, -1]),
    (certificate.certify, "budget", [0, -1]),
    (certificate.confirm, "precision", [0, 256]),
    (theory.attack, "drawn", [0, -1]),
    (theory.attack, "restarts", [0, -1]),
    (theory.attack, "steps", [0, -1]),
    (theory.attack, "families", [[], ["x"]]),
    (rationals.rationalise, "digits", [0, -1]),
    (random_instances.draw, "families", [[], ["x"], "uniform"]),
    (routes.populate, "n", [0, -1]),
    (routes.applies, "route", ["x"]),
    (arc.arc_of, "kind", ["x"]),
    (arc.arc_of, "eps", [-1.0, np.inf]),
    (arc.arc_of, "v", [np.zeros(3), np.ones(2)]),
    (arc.arc_of, "h", [np.ones(2), np.ones(3)]),
    (arc.arc_of, "gamma", [np.ones(2)]),
    (arc.arc_of, "W", [np.ones(3)]),
    (arc.plateau, "sign", [0, 2]),
    (arc.limit, "sign", [0, 2]),
    (arc.limit, "softcap", [0.0, -1.0]),
    (arc.limit_bound, "alpha", [0.0]),
    (arc.limit_bound, "reach", [-1.0]),
    (arc.bumps, "points", [0, -1]),
    (tilting.log_probabilities, "m", [np.ones(3)]),
    (tilting.log_probabilities, "alpha", [np.inf, [1.0, 2.0]]),
    (tilting.limit, "sign", [0]),
    (tilting.saturation, "sign", [0]),
    (tilting.saturation, "tolerance", [0.0, -1.0]),
    (tilting.concept_log_odds, "members", [np.ones(3, bool), [0, 1, 1, 0]]),
]
"""Values of the right type that an argument cannot have."""


def wrong(function, argument):
    """The values that are wrong for an argument, by name."""
    of = inspect.signature(function).parameters[argument]
    optional = of.default is None or "None" in str(of.annotation)
    right = {"None"} if optional else {"truth value"} if of.annotation is bool else set()
    return {name: value for name, value in JUNK.items() if name not in right}.items()


def attempt(function, argument, value):
    try:
        out = function(**{**GOOD[function], argument: value})
    except Exception as error:
        return error
    return out


def is_refused(got, argument):
    ours = rf"({CALLED.get(argument, argument)})\b.*: expected .*, got "
    return isinstance(got, ValueError) and re.match(ours, str(got), re.DOTALL) is not None


@pytest.mark.parametrize(("function", "argument"), list(cases()))
def test_what_is_of_another_type_is_refused_by_the_name_of_the_argument(function, argument):
    for name, value in wrong(function, argument):
        got = attempt(function, argument, value)
        assert is_refused(got, argument), f"{name}: {type(got).__name__}: {got}"


@pytest.mark.parametrize(
    ("function", "argument", "values"),
    RANGES,
    ids=[f"{function.__module__}.{function.__qualname__}-{name}" for function, name, _ in RANGES],
)
def test_what_is_out_of_range_is_refused_by_the_name_of_the_argument(function, argument, values):
    for value in values:
        got = attempt(function, argument, value)
        assert is_refused(got, argument), f"{value}: {type(got).__name__}: {got}"


def test_every_public_function_is_tried():
    tried = {inspect.unwrap(getattr(function, "__func__", function)) for function in GOOD}
    public = [getattr(package, name) for package in (ufm, theory) for name in package.__all__]
    functions = {
        inspect.unwrap(function)
        for function in public
        if inspect.isfunction(function) and inspect.signature(function).parameters
    }
    assert {function.__qualname__ for function in functions - tried} == set()


DIRECTION = np.array([1.0, 0.5, -0.5])
FIELDS = {
    ufm.Add: {"v": DIRECTION},
    ufm.Ablate: {"v": DIRECTION},
    ufm.Clamp: {"v": DIRECTION, "to": 1.0},
    ufm.NormPreservingAdd: {"v": DIRECTION},
    ufm.Rotate: {"v": DIRECTION},
    ufm.When: {"intervention": ufm.Add(DIRECTION), "probe": DIRECTION, "bias": 0.5},
    ufm.NullOut: {"update": ufm.Add(DIRECTION)},
    ufm.LoRA: {"down": np.ones((1, 3)), "up": np.ones((3, 1))},
    ufm.Weight: {"A": np.eye(3), "b": DIRECTION},
}
"""Every intervention with fields that a model of width 3 takes."""


def test_fields_of_every_intervention_are_tried():
    public = {kind for kind in vars(ufm).values() if isinstance(kind, type) and issubclass(kind, ufm.Intervention)}
    assert public - {ufm.Intervention} == set(FIELDS)


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in FIELDS.items() for field in fields])
def test_fields_of_interventions_are_refused_by_name_or_by_their_widths(kind, field):
    model = GOOD[ufm.steer]["model"]
    ufm.steer(model, [0], ufm.Steering(kind(**FIELDS[kind])), 1.0)
    shapes = {"four numbers": np.ones(4), "a table": np.ones((2, 2)), "an infinite number": np.full(3, np.inf)}
    for name, value in {**JUNK, **shapes}.items():
        try:
            got = ufm.steer(model, [0], ufm.Steering(kind(**{**FIELDS[kind], field: value})), 1.0)
        except Exception as error:
            got = error
        assert is_refused(got, rf"steering(\.{field})?"), f"{name}: {type(got).__name__}: {got}"

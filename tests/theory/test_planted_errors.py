"""The checks are checked: a subtle error is planted in each closed form, and two routes must notice, of some statements."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests import compilation
from tests.theory import test_planted_in_directions
from theory import (
    REGISTRY,
    allocation,
    arc,
    budgets,
    chains,
    examples,
    predicted,
    routes,
    signs,
    states,
    tempered,
    tilting,
)
from theory.blocks import TRANSFORMERS
from theory.instance import Instance
from theory.norms import NORMS
from theory.statement import TABLES
from theory.statements import (
    lemmas_b,
    n1_concavity,
    n4_cross_entropy,
    n5_sandwich,
    n8_arc,
    n9_curvature,
    n10_robustness,
    n11_forgetting,
    n16_turns,
    n21_sequences,
    n22_bumps,
    n23_allocation,
    theorem_3_3,
    theorem_3_6,
    theorem_3_8,
)
from theory.states import STATES_BEFORE_A_NORM
from theory.trained import IMPERFECT
from ufm import UFM, NormalisedUFM, Weight, contrast, difference_of_means, exact, log_odds, probability_increase, transformer
from ufm.model import DECODER, FreeFeatures, representing
from ufm.steering import RESIDUAL

RIGHT = {name: getattr(tilting, name) for name in tilting.__dict__ if callable(getattr(tilting, name))}


def right(name, *args):
    return RIGHT[name](*args)


def swapped_extremes(m):
    highest, lowest, spread = right("extremes", m)
    return tilting.Extremes(lowest, highest, spread)


def unconditional_mean(log_p, m, alpha, members):
    return jnp.dot(jax.nn.softmax(log_p + alpha * m), jnp.where(members, m, 0))


def scaled(module, name, factor):
    function = getattr(module, name)
    return lambda *args, **options: factor * function(*args, **options)


def moved_arc(*args, **options):
    path = ARC_OF(*args, **options)
    return path._replace(centre=-path.centre)


def seen_by(name, owner, attribute, wrong, identity, by):
    """The same error, seen by several routes."""
    return {f"{name}, by {route}": (owner, attribute, wrong, identity, route) for route in by}


BELOW_TARGET, FIRST_ON_TARGET = theorem_3_3.below_target, theorem_3_3._first_on_target
ARC_OF, OF_TOKENS = arc.arc_of, signs.of_tokens

# Each: where the closed form is, its name, what is put in its place, and the statement and route that notice.
PLANTED = {
    "probabilities, wrong sign": (
        tilting,
        "log_probabilities",
        lambda log_p, m, alpha: right("log_probabilities", log_p, m, -alpha),
        "theorem-3.3.monotone",
        "instances",
    ),
    "probabilities, not normalised": (
        tilting,
        "log_probabilities",
        lambda log_p, m, alpha: log_p + alpha * m,
        "lemma-B.3",
        "instances",
    ),
    "probabilities, slightly off": (
        tilting,
        "log_probabilities",
        lambda log_p, m, alpha: right("log_probabilities", log_p, m, 1.0001 * alpha),
        "lemma-B.3",
        "sweep",
    ),
    "mean, unsteered": (
        tilting,
        "mean",
        lambda log_p, m, alpha: right("mean", log_p, m, 0 * alpha),
        "N3",
        "instances",
    ),
    "variance, not centred": (
        tilting,
        "variance",
        lambda log_p, m, alpha: jnp.dot(jnp.exp(right("log_probabilities", log_p, m, alpha)), m**2),
        "theorem-3.8",
        "instances",
    ),
    "variance, missing factor": (tilting, "variance", scaled(tilting, "variance", 0.5), "N4.bounds", "instances"),
    "extremes, swapped": (tilting, "extremes", swapped_extremes, "proposition-B.1", "instances"),
    "peaks, wrong scale": (
        Instance,
        "peaks",
        property(lambda instance: 1.01 * instance.known_peaks),
        "theorem-3.3.bump",
        "autodiff",
    ),
    "limit, other end": (
        tilting,
        "limit",
        lambda log_p, m, sign: right("limit", log_p, m, -sign),
        "proposition-B.1",
        "instances",
    ),
    "limit, evenly shared": (
        tilting,
        "limit",
        lambda log_p, m, sign: right("limit", jnp.zeros_like(log_p), m, sign),
        "proposition-B.1",
        "autodiff",
    ),
    "saturation, too early": (tilting, "saturation", scaled(tilting, "saturation", 0.5), "N4.asymptote", "instances"),
    "concept log-odds, half the strength": (
        tilting,
        "concept_log_odds",
        lambda log_p, m, alpha, members: right("concept_log_odds", log_p, m, alpha / 2, members),
        "theorem-3.6.tanh",
        "instances",
    ),
    "conditional mean, not conditional": (tilting, "conditional_mean", unconditional_mean, "theorem-3.6.tanh", "autodiff"),
    **seen_by(
        "sandwich, bounds of the other event",
        signs,
        "slope_bounds",
        lambda instance, events: signs_bounds(instance, ~events),
        "N5",
        ("instances", "certificate"),
    ),
    "sign of tokens, wrong": (signs, "of_tokens", lambda *args: -OF_TOKENS(*args), "theorem-3.3.order", "certificate"),
    "series near 0": (theorem_3_8, "exp_minus_tangent", lambda x: x * x / 2 + x**3, "theorem-3.8", "instances"),
    "quadrature of one point": (theorem_3_6, "_NODES", 1, "theorem-3.6.tanh", "instances"),
    "a decoder of another model": (
        UFM,
        "steered",
        lambda self, h, steering, alpha: jnp.roll(FreeFeatures.steered(self, h, steering, alpha), 1, axis=-1),
        "theorem-3.6.tanh",
        "autodiff",
    ),
    "log-odds, wrong sign": (
        Instance,
        "log_odds",
        property(lambda instance: -instance.contrast @ instance.log_p),
        "lemma-B.3",
        "autodiff",
    ),
    "arc, centre on the other side": (arc, "arc_of", moved_arc, "N8.arc", "instances"),
    "plateau, of one side": (arc, "plateau", lambda path, sign: path.B + path.c, "N8.plateau", "instances"),
    "plateau, half the coefficient": (
        arc,
        "plateau_rate",
        lambda path: PLATEAU_RATE(path)._replace(coefficient=PLATEAU_RATE(path).coefficient / 2),
        "N8.plateau",
        "autodiff",
    ),
    **seen_by(
        "plateau, a remainder that is a hundredth too small",
        arc,
        "plateau_rate",
        lambda path: PLATEAU_RATE(path)._replace(remainder=0.99 * PLATEAU_RATE(path).remainder),
        "N8.plateau",
        ("instances", "autodiff"),
    ),
    **seen_by(
        "forgetting, a bound that is a hundredth too small",
        arc,
        "limit_bound",
        scaled(arc, "limit_bound", 0.99),
        "proposition-4.1",
        ("instances", "autodiff"),
    ),
    **seen_by(
        "imperfect training, a bound that is a hundredth too small",
        n10_robustness,
        "error_bound",
        scaled(n10_robustness, "error_bound", 0.99),
        "N10",
        ("instances", "autodiff"),
    ),
    **seen_by(
        "imperfect training, nearly twice the error of M",
        n10_robustness,
        "error_bound",
        lambda eta, size: jnp.tanh(eta * (1 + 1.98 * size) / 2),
        "N10",
        ("instances", "autodiff"),
    ),
    **seen_by(
        "cross-entropy, an upper bound that is a hundredth too small",
        n4_cross_entropy,
        "_upper",
        scaled(n4_cross_entropy, "_upper", 0.99),
        "N4.bounds",
        ("instances", "certificate"),
    ),
    **seen_by(
        "cross-entropy, a lower bound that is a hundredth too large",
        n4_cross_entropy,
        "_lower",
        scaled(n4_cross_entropy, "_lower", 1.01),
        "N4.bounds",
        ("instances", "certificate"),
    ),
    **seen_by(
        "target tokens at 0, a condition that is a hundredth too strict",
        theorem_3_3,
        "below_target",
        lambda instance, log_p: BELOW_TARGET(instance, log_p) - 0.01 * FIRST_ON_TARGET(instance) / instance.range,
        "remark-3.4.exact",
        ("instances", "autodiff"),
    ),
    "curvature, of the whole variance": (
        n9_curvature,
        "curvature",
        lambda *arguments: 2 * CURVATURE(*arguments),
        "N9",
        "instances",
    ),
    "curvature, slightly off": (
        n9_curvature,
        "curvature",
        lambda *arguments: (1 + 1e-6) * CURVATURE(*arguments),
        "N9",
        "autodiff",
    ),
    "what blocks add, seen from the other side": (
        n11_forgetting,
        "added_in_the_limit",
        lambda model, v: ADDED(model, -v),
        "N11",
        "instances",
    ),
    "what blocks add, without attention": (
        transformer,
        "_attention",
        lambda layer, heads, x: ATTENTION(layer, heads, x) if x.shape[-2] > 1 else jnp.zeros_like(x),
        "N11",
        "autodiff",
    ),
    **seen_by(
        "a weight, 1 % too large",
        Weight,
        "added",
        lambda self, x: 1.01 * WEIGHT_ADDED(self, x),
        "N12",
        ("instances", "autodiff"),
    ),
    "a weight, slightly off": (Weight, "added", lambda self, x: (1 + 1e-6) * WEIGHT_ADDED(self, x), "N12", "autodiff"),
    "the input of the decoder, before the norm": (
        NormalisedUFM,
        "steered",
        lambda self, h, steering, alpha: before_the_norm(self, steering.apply(RESIDUAL, h, h, alpha), steering, alpha),
        "N12",
        "autodiff",
    ),
    **{
        f"{name}, seen by {route}": (owner, function, wrong, identity, route)
        for name, owner, function, wrong, identity, seen_by in (
            (
                "tempered tilt, a size off by 1 %",
                tempered,
                "log_probabilities",
                lambda log_p, m, alpha, size, steered: TEMPERED(log_p, m, alpha, 1.01 * size, steered),
                "N19.tilt",
                ("instances", "autodiff", "sweep"),
            ),
            (
                "limit of a tempered tilt, 1 % too cold",
                tempered,
                "limit",
                lambda m, length, sign: TEMPERED_LIMIT(m, 0.99 * length, sign),
                "N19.ceiling",
                ("instances", "autodiff"),
            ),
            (
                "ceiling of a concept, 1 % too low",
                tempered,
                "ceiling",
                lambda log_p, m, *rest: CEILING(0.99 * log_p, 0.99 * m, *rest),
                "N19.ceiling",
                ("instances", "autodiff", "sweep"),
            ),
            (
                "response of a text, 1 % too large",
                chains,
                "response",
                lambda *arguments: 1.01 * RESPONSE(*arguments),
                "N21.response",
                ("instances", "autodiff", "sweep"),
            ),
            (
                "amplification, of an eigenvalue off by 1 %",
                chains,
                "amplification",
                lambda eigenvalue, steps: AMPLIFICATION(0.99 * eigenvalue, steps),
                "N21.amplification",
                ("instances", "autodiff", "sweep"),
            ),
            (
                "cost of a text, 1 % too small",
                chains,
                "sequence_bound",
                lambda *arguments: 0.99 * SEQUENCE_BOUND(*arguments),
                "N21.cost",
                ("instances", "autodiff"),
            ),
            (
                "cost of a text, half",
                chains,
                "sequence_bound",
                lambda *arguments: 0.5 * SEQUENCE_BOUND(*arguments),
                "N21.cost",
                ("instances", "certificate"),
            ),
            (
                "bumps, one of them not counted",
                n22_bumps,
                "alternation",
                lambda slopes, count: ALTERNATION(slopes, count - 1),
                "N22",
                ("instances", "autodiff"),
            ),
            (
                "response of a concept, 1 % too large",
                allocation,
                "response",
                lambda *arguments: allocation.Response(1.01 * CONCEPT(*arguments).gains, CONCEPT(*arguments).covariance),
                "N23.mix",
                ("instances", "autodiff", "sweep"),
            ),
            (
                "covariance of two vectors, 1 % too large",
                allocation,
                "response",
                lambda *arguments: CONCEPT(*arguments)._replace(covariance=1.01 * CONCEPT(*arguments).covariance),
                "N23.interference",
                ("instances", "autodiff", "sweep"),
            ),
            (
                "strengths, 1 % above the budget",
                allocation,
                "best_strengths",
                lambda *arguments: 1.01 * BEST(*arguments),
                "N23.prompts",
                ("instances", "autodiff", "sweep"),
            ),
        )
        for route in seen_by
    },
}


RIGHT_BUDGETS = {name: getattr(budgets, name) for name in ("split_cost", "efficiency", "budget_bound", "diameter")}
DIVERGENCE_OF_RANGE, CHANGES = budgets.divergence_of_range, n16_turns.membership_changes


def of_budgets(name, factor):
    return lambda *arguments, **options: factor * RIGHT_BUDGETS[name](*arguments, **options)


def dearer_share(factor):
    def split_cost(*arguments):
        cost = RIGHT_BUDGETS["split_cost"](*arguments)
        return cost._replace(share=factor * cost.share)

    return split_cost


def noticed_by(*routes, **error):
    """One error in a bound or an identity, and each of the routes that have to notice it."""
    ((name, (owner, attribute, wrong, identity)),) = error.items()
    return seen_by(name.replace("_", " "), owner, attribute, wrong, identity, routes)


# 1 % off where a bound is attained or an equality claimed.
PLANTED |= {
    **noticed_by(
        "instances",
        "autodiff",
        tangent_bound=(arc, "tangent_bound", lambda path, alpha: 0.98 * TANGENT_BOUND(path, alpha), "N12"),
    ),
    **noticed_by("instances", "autodiff", "sweep", parts_of_a_cost=(budgets, "split_cost", dearer_share(0.99), "N15.split")),
    **noticed_by(
        "instances", "autodiff", "sweep", least_cost_of_a_share=(budgets, "split_cost", dearer_share(1.01), "N15.bound")
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        efficiency=(budgets, "efficiency", of_budgets("efficiency", 0.99), "N15.efficiency"),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "certificate",
        budget=(budgets, "budget_bound", of_budgets("budget_bound", 0.99), "N18"),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        range_of_a_change=(budgets, "divergence_of_range", lambda width: 0.99 * DIVERGENCE_OF_RANGE(width), "N20.range"),
    ),
    **noticed_by(
        "instances",
        "certificate",
        half_the_range_of_a_change=(
            budgets,
            "divergence_of_range",
            lambda width: 0.5 * DIVERGENCE_OF_RANGE(width),
            "N20.range",
        ),
    ),
    **noticed_by("instances", "autodiff", diameter=(budgets, "diameter", of_budgets("diameter", 0.99), "N20.arc")),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        "certificate",
        turns_of_a_share=(n16_turns, "membership_changes", lambda *arguments: CHANGES(*arguments) - 1, "N16.turns"),
    ),
    **noticed_by(
        "instances",
        "sweep",
        "certificate",
        levels_of_a_share=(n16_turns, "membership_changes", lambda *arguments: CHANGES(*arguments) - 1, "N16.levels"),
    ),
}


# Of the statements that have none above.
PLANTED |= {
    "normaliser, of the wrong sign": (
        tilting,
        "log_probabilities",
        lambda log_p, m, alpha: log_p + alpha * m + jax.nn.logsumexp(log_p + alpha * m),
        "N1",
        "instances",
    ),
    **noticed_by(
        "instances",
        "sweep",
        curvature_of_a_curve=(n1_concavity, "_curvatures", scaled(n1_concavity, "_curvatures", -1), "N1"),
    ),
    **noticed_by(
        "instances", "autodiff", peaks_on_the_other_side=(Instance, "peaks", property(lambda one: -one.known_peaks), "N2")
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        log_odds_by_share=(lemmas_b, "_log_odds_of", scaled(lemmas_b, "_log_odds_of", 1.01), "lemma-B.4"),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        log_odds_one_percent_too_large=(
            Instance,
            "log_odds",
            property(lambda one: 1.01 * one.contrast @ one.log_p),
            "N6.preference",
        ),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        slope_of_a_concept=(tilting, "concept_slope", scaled(tilting, "concept_slope", 1.01), "N6.utility"),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        width_of_the_law=(arc, "law", lambda *a, **o: LAW(*a, **o)._replace(width=1.01 * LAW(*a, **o).width), "N7"),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        ahead_of_the_plain_mean=(
            n8_arc,
            "_ahead",
            lambda logits: logits >= jnp.mean(logits, axis=-1, keepdims=True),
            "N8.bumps",
        ),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        "certificate",
        target_taken_for_all_concepts=(
            theorem_3_6,
            "_is_target",
            lambda instance: jnp.ones(instance.members.shape[0], bool),
            "theorem-3.6.target",
        ),
    ),
    **noticed_by("instances", "autodiff", log_odds_that_count_as_tied=(tilting, "TIE", 0.2, "theorem-3.6.decreasing")),
    **noticed_by(
        "instances",
        "autodiff",
        unsteered_share=(theorem_3_6, "closed_form_curves", lambda *a: 0.01 + CONCEPT_CURVES(*a), "theorem-3.6.limits"),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        divergence_of_a_q_off_by_one_percent=(n23_allocation, "_kl", lambda p, q: PROMPT_KL(p, 0.99 * q), "N23.constant"),
    ),
    **noticed_by(
        "instances",
        "autodiff",
        "sweep",
        divergence_the_other_way_round=(n23_allocation, "_kl", lambda p, q: PROMPT_KL(q, p), "N23.constant"),
    ),
}


def before_the_norm(model, h, steering, alpha):
    """Logits where what changes the decoder reads the hidden state, and not what the norm makes of it."""
    return steering.apply(DECODER, h, model.decode(h), alpha)


CURVATURE, ADDED, ATTENTION = n9_curvature.curvature, n11_forgetting.added_in_the_limit, transformer._attention
ALTERNATION = n22_bumps.alternation
CONCEPT, BEST = allocation.response, allocation.best_strengths
RESPONSE, AMPLIFICATION, SEQUENCE_BOUND = chains.response, chains.amplification, chains.sequence_bound
TEMPERED, TEMPERED_LIMIT, CEILING = tempered.log_probabilities, tempered.limit, tempered.ceiling
PLATEAU_RATE, signs_bounds = arc.plateau_rate, signs.slope_bounds
TANGENT_BOUND, WEIGHT_ADDED = arc.tangent_bound, Weight.added
LAW, CONCEPT_CURVES, PROMPT_KL = arc.law, theorem_3_6.closed_form_curves, n23_allocation._kl

# Other routes that have to notice errors named for one above.
ALSO_SEEN_BY = {
    "probabilities, wrong sign": (("lemma-B.5", "autodiff"),),
    "probabilities, not normalised": (("lemma-B.5", "autodiff"), ("lemma-B.3", "sweep")),
    "probabilities, slightly off": (
        ("lemma-B.3", "instances"),
        ("lemma-B.5", "autodiff"),
        ("N4.divergence", "instances"),
        ("N4.divergence", "autodiff"),
        ("N4.divergence", "sweep"),
    ),
    "normaliser, of the wrong sign": (("lemma-B.5", "autodiff"),),
    "mean, unsteered": (("N13.divergence", "autodiff"),),
    "variance, not centred": (("theorem-3.8", "autodiff"), ("theorem-3.8", "sweep")),
    "variance, missing factor": (("N4.bounds", "autodiff"), ("N4.bounds", "certificate")),
    "extremes, swapped": (("N4.asymptote", "autodiff"), ("N3", "sweep")),
    "peaks, wrong scale": (("theorem-3.3.bump", "instances"),),
    "peaks on the other side, by instances": (("remark-3.4", "instances"),),
    "limit, other end": (("proposition-B.1", "autodiff"),),
    "limit, evenly shared": (("proposition-B.1", "instances"),),
    "saturation, too early": (("N4.asymptote", "autodiff"),),
    "concept log-odds, half the strength": (("N10", "sweep"),),
    "conditional mean, not conditional": (("theorem-3.6.tanh", "instances"), ("theorem-3.6.tanh", "sweep")),
    "sign of tokens, wrong": (("remark-3.4", "certificate"),),
    "series near 0": (("N4.taylor", "instances"), ("N15.split", "instances")),
    "a decoder of another model": (("lemma-B.2", "instances"), ("lemma-B.2", "sweep")),
    "log-odds, wrong sign": (("lemma-B.3", "instances"), ("lemma-B.3", "sweep")),
    "arc, centre on the other side": (("N8.arc", "autodiff"),),
    "plateau, of one side": (("N8.plateau", "sweep"),),
    "plateau, half the coefficient": (("N8.plateau", "instances"),),
    "curvature, of the whole variance": (("N9", "autodiff"),),
    "what blocks add, seen from the other side": (("N11", "autodiff"),),
    "what blocks add, without attention": (("N11", "instances"),),
    "the input of the decoder, before the norm": (("N12", "instances"),),
}
PLANTED |= {
    f"{name}, seen by {route} of {identity}": (*PLANTED[name][:3], identity, route)
    for name, others in ALSO_SEEN_BY.items()
    for identity, route in others
}


ONE_ROUTE = {
    # Only ball arithmetic reads the signs of derivatives, made of pairs of tokens so that nothing cancels.
    "sign of tokens, wrong",
    # A share of the target's curve is an integral for random instances, a derivative for autodiff. On the fine grid of a
    # sweep the nodes are others.
    "quadrature of one point",
    # Closed forms of a small difference. Autodiff and sweeps take it from the model.
    "series near 0",
    # Of a millionth: above the tolerance of derivatives alone. The same errors of a hundredth or more have two routes.
    "curvature, slightly off",
    "a weight, slightly off",
}
"""Errors in what one route alone evaluates, or evaluates as exactly."""


@pytest.fixture(scope="module")
def swept():
    with jax.enable_x64(True):
        case = examples.toy_case()
        return [examples.measure(case, representing(case.instance.log_p))]


@pytest.fixture(scope="module")
def populations(few):
    """Instances of every domain, by its name."""
    with jax.enable_x64(True):
        sizes = {
            IMPERFECT: 30,
            NORMS: 30,
            TRANSFORMERS: 20,
            STATES_BEFORE_A_NORM: 30,
            n21_sequences.CHAINS: 60,
            n22_bumps.arcs_of(3): 60,
        }
        others = {domain.name: routes.populate(jax.random.key(7), n, domain) for domain, n in sizes.items()}
        return {TABLES.name: few, **others}


@pytest.fixture(scope="module")
def sweeps(swept):
    """Sweeps of trained models of every domain, by its name."""
    with jax.enable_x64(True):
        others = {
            STATES_BEFORE_A_NORM.name: [states.measure(states.of_two_rows())],
            NORMS.name: NORMS.measured(0),
        }
        return {TABLES.name: swept, n21_sequences.CHAINS.name: swept, **others}


@pytest.fixture
def run(populations, sweeps):
    """Runs a route of a statement, traced anew so that nothing traced before the error was planted is reused."""

    def evidence(identity, route):
        statement = REGISTRY[identity]
        compilation.forget()
        if route == "sweep":
            return routes.sweep(statement, sweeps[statement.domain.name])
        if route == "certificate":
            # The smallest come last, and are decided soonest.
            return routes.certificate(statement, list(examples.exact_instances().values())[::-1])
        margin = getattr(statement.claim, route)
        claim = dataclasses.replace(statement.claim, **{route: lambda instance: margin(instance)})
        return getattr(routes, route)(statement, populations[statement.domain.name], claim=claim)

    yield evidence
    # Nor is what was traced with the error.
    compilation.forget()


@pytest.mark.parametrize(("owner", "name", "wrong", "identity", "route"), PLANTED.values(), ids=PLANTED)
def test_an_error_in_a_closed_form_is_noticed(owner, name, wrong, identity, route, run, monkeypatch):
    monkeypatch.setattr(owner, name, wrong)
    evidence = run(identity, route)
    assert not evidence.holds
    assert evidence.checked > 0


def test_every_error_is_planted_for_two_routes_where_two_can_see_it():
    names, routes_of = {}, {}
    for name, (owner, attribute, wrong, _, route) in PLANTED.items():
        names.setdefault((owner, attribute, wrong), name)
        routes_of.setdefault((owner, attribute, wrong), set()).add(route)
    assert {names[error] for error, noticing in routes_of.items() if len(noticing) < 2} == ONE_ROUTE
    assert all(len(planted[4]) >= 2 for planted in test_planted_in_directions.PLANTED.values())


def test_every_statement_has_an_error_that_it_notices():
    both = [*PLANTED.values(), *test_planted_in_directions.PLANTED.values()]
    assert {planted[3] for planted in both} == set(REGISTRY)


@pytest.mark.parametrize("route", ["instances", "autodiff", "sweep", "certificate"])
def test_without_an_error_the_same_runs_hold(route, run):
    assert run("theorem-3.3.bump", route).holds


@pytest.mark.parametrize("route", ["instances", "autodiff"])
def test_an_error_in_a_strength_that_is_enough_is_noticed(route, run, monkeypatch):
    enough = n5_sandwich.enough
    monkeypatch.setattr(n5_sandwich, "enough", lambda instance, share: 0.99 * enough(instance, share))
    assert not run("N5", route).holds


def test_an_error_in_a_prediction_is_noticed(small_corpus, monkeypatch):
    """The twins disagree as soon as one of the two is wrong."""
    model, weights = exact(small_corpus), contrast(5, [0, 1], [2, 4])
    m, v = log_odds(small_corpus, weights), difference_of_means(model, jnp.arange(5), weights)

    def difference():
        predictions = predicted.probability_increase(small_corpus, [0, 3], m, [-2.0, 1.0])
        return jnp.max(jnp.abs(predictions - probability_increase(model, [0, 3], v, [-2.0, 1.0])))

    assert difference() < 1e-13
    path = predicted._partition_by_product
    monkeypatch.setattr(predicted, "_partition_by_product", lambda rows, m, alphas, *rest: path(rows, m, -alphas, *rest))
    assert difference() > 1e-3

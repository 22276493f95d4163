"""Theorem 3.6 of S: how the probability of a concept moves. A reparametrised tanh, and its three behaviours."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import (
    Events,
    closed_form_curves,
    concepts,
    limiting,
    measured_curves,
    model_curves,
    monotone,
    slope,
)
from theory.instance import Instance, Measured
from theory.statement import Claim, Statement
from theory.statements.hypotheses import chosen

# --- tanh ------------------------------------------------------------------------------------------------------------

_STEPS, _NODES, _REACH = 16, 8, 16.0


def slopes(instance: Instance, alpha, events: Events = concepts):
    """``mu_C - mu_{C^c}`` at one strength, ``[m, E]``: the slope of the log-odds of events."""

    def context(log_p):
        return jax.vmap(lambda members: tilting.concept_slope(log_p, instance.log_odds, alpha, members))(events(instance))

    return jax.vmap(context)(instance.log_p)


def _nu(instance: Instance, edges, nodes: int, events):
    """``nu_j(alpha) = integral of (mu_C - mu_{C^c}) from 0 to alpha`` at each of `edges`, which start at 0: ``[m, K, E]``.

    Gauss-Legendre quadrature with `nodes` points between consecutive edges: no antiderivative is assumed. 8 are enough
    between edges 2/R apart, 4 on the fine grid of a sweep.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    width = jnp.diff(edges)
    alphas = edges[:-1, None] + width[:, None] * (points + 1) / 2
    values = jax.vmap(jax.vmap(lambda alpha: slopes(instance, alpha, events)))(alphas)
    panels = jnp.einsum("kn,knje->jke", width[:, None] * weights / 2, values)
    return jnp.concatenate([jnp.zeros_like(panels[:, :1]), jnp.cumsum(panels, axis=1)], axis=1)


def _straight_nu(instance: Instance, edges, nodes: int, events):
    del nodes
    return edges[None, :, None] * slopes(instance, jnp.zeros(()), events)[:, None, :]


def _halves(instance: Instance):
    """The strengths at which the claim is checked, from 0 up and from 0 down."""
    edges = jnp.linspace(0, _REACH, _STEPS // 2 + 1) / instance.range
    return edges, -edges


def _rise_of_tanh(instance: Instance, events, nu):
    """How much the mean probability of a token of an event rises, as a tanh of its nu."""
    r = closed_form_curves(instance, events, jnp.zeros(1))
    return (jnp.tanh((nu + r) / 2) - jnp.tanh(r / 2)) / (2 * jnp.sum(events(instance), axis=-1))


def _rise(instance: Instance, events, log_odds):
    """How much that mean probability rises, from log-odds of the event."""
    before = closed_form_curves(instance, events, jnp.zeros(1))
    return (jax.nn.sigmoid(log_odds) - jax.nn.sigmoid(before)) / jnp.sum(events(instance), axis=-1)


def reparametrised_tanh(
    tex: str,
    events: Events,
    identities,
    *,
    straight: bool = False,
    contrast: Callable[[Instance], Float[Array, " m"]] = lambda instance: instance.contrast,
) -> Claim:
    """The claim that the probability of events is a tanh of nu, which is the integral of `slopes`.

    Args:
        tex: the claim.
        events: the sets of tokens it is about; one with nothing outside it is left out.
        identities: the same, symbolic.
        straight: claim instead that nu is linear in alpha, which is wrong.
        contrast: of which contrast the log-odds in nu are claimed to be.
    """

    def believed(instance):
        return replace(instance, contrast=contrast(instance))

    def nu(instance, edges, nodes, events):
        return (_straight_nu if straight else _nu)(believed(instance), edges, nodes, events)

    def margin(instance, tolerance, error):
        return jnp.where(jnp.all(events(instance)), jnp.inf, tolerance - error)

    def worst(instance, left, right):
        return jnp.max(jnp.where(jnp.all(events(instance), axis=-1), 0, jnp.abs(left - right)))

    def instances(instance):
        def error(edges):
            curves = closed_form_curves(instance, events, edges)
            expected = _rise_of_tanh(instance, events, nu(instance, edges, _NODES, events))
            return worst(instance, _rise(instance, events, curves), expected)

        up, down = _halves(instance)
        return margin(instance, 1e-10, jnp.maximum(error(up), error(down)))

    def autodiff(instance):
        curves = model_curves(instance, events)

        def error(alpha):
            predicted_slope = slopes(believed(instance), 0 * alpha if straight else alpha, events)
            return worst(instance, slope(curves, alpha), predicted_slope) / instance.range

        return margin(instance, 1e-9, jnp.max(jax.vmap(error)(jnp.concatenate(_halves(instance)))))

    @compiled_quickly
    def margin_on_grid(instance, alphas, measured):
        expected = _rise_of_tanh(instance, events, nu(instance, alphas, 4, events))
        return margin(instance, 1e-7, worst(instance, _rise(instance, events, measured), expected))

    def sweep(swept: Measured):
        curves = measured_curves(swept, events)
        halves = (slice(swept.zero, None), slice(swept.zero, None, -1))
        return min(float(margin_on_grid(swept.instance, swept.alphas[h], curves[:, h])) for h in halves)

    reading = "1e-10 less the largest error of the predicted rise of a probability"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_TANH_TEX = (
    r"\Delta p(C \mid c_j, \alpha) = \frac{1}{2|C|}"
    r"\left(\tanh\frac{\nu_j(\alpha) + r_j}{2} - \tanh\frac{r_j}{2}\right)"
)
_TANH = reparametrised_tanh(
    _TANH_TEX
    + r",\quad \nu_j(\alpha) = \int_0^\alpha \left(\mu_C - \mu_{C^\complement}\right)(t)\,dt,"
    + r"\quad r_j = \operatorname{logit} F_{C,j}(0)",
    concepts,
    symbolic.IDENTITIES["theorem-3.6.tanh"],
)
_PURE_TANH = reparametrised_tanh(
    _TANH_TEX + r",\quad \nu_j(\alpha) = \left(\mu_C - \mu_{C^\complement}\right)(0)\,\alpha",
    concepts,
    symbolic.TWINS["theorem-3.6.tanh"],
    straight=True,
)

# --- target, limits, decreasing --------------------------------------------------------------------------------------


def _per_context(instance: Instance, per_concept):
    return jnp.broadcast_to(per_concept, (instance.log_p.shape[0], instance.members.shape[0]))


def _is_target(instance: Instance):
    return jnp.all(instance.members == instance.in_target, axis=-1)


def _without_negatives(instance: Instance):
    """Concepts that no context of N is of, ``[G]``: the target among them."""
    of_negatives = jnp.where((instance.contrast < 0)[:, None], instance.inside, False)
    return ~jnp.any(jnp.all(instance.members[:, None, :] == of_negatives, axis=-1), axis=-1)


def without_extremes(instance: Instance):
    """Concepts none of whose tokens has extreme log-odds, ``[m, G]`` (the same for every context)."""
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    return _per_context(instance, ~jnp.any(instance.members & (highest | lowest), axis=-1))


def _without_first_extremes(instance: Instance):
    """The wrong concepts where extreme tokens tie: those without the first of each kind, ``[m, G]``."""
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    first = jnp.stack([jnp.argmax(highest), jnp.argmax(lowest)])
    return _per_context(instance, ~jnp.any(instance.members[:, first], axis=-1))


def lowest_concepts(instance: Instance):
    """-1 at concepts C with ``max_C M <= min_{C^c} M``, ties included; else 0, ``[m, G]``."""
    m = instance.log_odds
    top = jnp.max(jnp.where(instance.members, m, -jnp.inf), axis=-1)
    bottom = jnp.min(jnp.where(instance.members, jnp.inf, m), axis=-1)
    below = top <= bottom + tilting.TIE * instance.range
    return _per_context(instance, jnp.where(below, -1, 0))


def _loss_of_all(instance: Instance, sign: int):
    del sign
    base = jax.nn.sigmoid(closed_form_curves(instance, concepts, jnp.zeros(1))[:, 0])
    return -base / instance.sizes


_A1 = ("A2", "not-constant", "positive", "separated")

STATEMENTS = (
    Statement(
        id="theorem-3.6.tanh",
        title="Concept probability is a reparametrised tanh",
        source="S, theorem 3.6 and appendix B.4",
        claim=_TANH,
        twin=_PURE_TANH,
        hypotheses=chosen("A2", "not-constant", "positive"),
        proof="proofs/theorem-3.6",
        figure="concept-curves",
        remarks="A pure tanh in alpha, with nu linear, is not what the theorem says and is wrong.",
    ),
    Statement(
        id="theorem-3.6.target",
        title="The target concept rises",
        source="S, theorem 3.6",
        claim=monotone(
            r"\Delta p(T \mid c_j, \alpha)\ \text{increases strictly in}\ \alpha",
            concepts,
            lambda instance: _per_context(instance, jnp.where(_is_target(instance), 1, 0)),
        ),
        twin=monotone(
            r"\text{concepts that}\ N\ \text{has nothing of rise: }\Delta p(C \mid c_j, \cdot)"
            r"\ \text{increases for every such}\ C",
            concepts,
            lambda instance: _per_context(instance, jnp.where(_without_negatives(instance), 1, 0)),
        ),
        hypotheses=chosen(*_A1),
        proof="proofs/theorem-3.6",
        figure="concept-curves",
    ),
    Statement(
        id="theorem-3.6.limits",
        title="Concepts between the extremes vanish",
        source="S, theorem 3.6",
        claim=limiting(
            r"C' \cap (\overline{M} \cup \underline{M}) = \emptyset \implies "
            r"\lim_{\alpha \to \pm\infty} \Delta p(C' \mid c_j, \alpha) = -\frac{1}{|C'|}\sum_{z \in C'} p_j(z)",
            concepts,
            _loss_of_all,
            without_extremes,
        ),
        twin=limiting(
            r"C' \cap \{\min \overline{M}, \min \underline{M}\} = \emptyset \implies "
            r"\lim_{\alpha \to \pm\infty} \Delta p(C' \mid c_j, \alpha) = -\frac{1}{|C'|}\sum_{z \in C'} p_j(z)",
            concepts,
            _loss_of_all,
            _without_first_extremes,
        ),
        hypotheses=chosen("A2", "not-constant", "positive", "resolved"),
        proof="proofs/theorem-3.6",
        figure="concept-curves",
        remarks="Where extreme tokens tie, the concept must have none of them; the twin looks at the first one alone.",
    ),
    Statement(
        id="theorem-3.6.decreasing",
        title="The lowest concept falls",
        source="S, theorem 3.6",
        claim=monotone(
            r"\max_{z \in C} M(z) \le \min_{z \notin C} M(z) \implies "
            r"\Delta p(C \mid c_j, \alpha)\ \text{decreases strictly in}\ \alpha",
            concepts,
            lowest_concepts,
        ),
        twin=monotone(
            r"\forall C \ne T:\ \Delta p(C \mid c_j, \alpha)\ \text{decreases in}\ \alpha",
            concepts,
            lambda instance: _per_context(instance, jnp.where(_is_target(instance), 0, -1)),
        ),
        hypotheses=chosen("A2", "not-constant", "positive"),
        proof="proofs/theorem-3.6",
        figure="concept-curves",
    ),
)

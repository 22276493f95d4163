"""Theorem 3.6 of S: how the probability of a concept moves. A reparametrised tanh, and its three behaviours."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import tilting
from theory.claims import closed_form_curves, limiting, model_curves, monotone, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Statement, compiled_quickly
from theory.statements.hypotheses import margins, needs

# --- tanh ------------------------------------------------------------------------------------------------------------

_STEPS, _NODES, _REACH = 16, 12, 16.0


def _nu(one: Instance, edges, nodes: int):
    """``nu_j(alpha) = integral of (mu_C - mu_{C^c}) from 0 to alpha`` at each of `edges`, which start at 0: ``[m, E, G]``.

    Gauss-Legendre quadrature with `nodes` points between consecutive edges: no antiderivative is assumed. 12 are enough
    between edges 2/R apart, 4 on the fine grid of a sweep.
    """
    m = one.log_odds
    points, weights = np.polynomial.legendre.leggauss(nodes)
    width = jnp.diff(edges)
    alphas = edges[:-1, None] + width[:, None] * (points + 1) / 2

    def slopes(log_p):
        def at(alpha):
            return jax.vmap(lambda members: tilting.concept_slope(log_p, m, alpha, members))(one.members)

        return jnp.einsum("en,eng->eg", width[:, None] * weights / 2, jax.vmap(jax.vmap(at))(alphas))

    panels = jax.vmap(slopes)(one.log_p)
    return jnp.concatenate([jnp.zeros_like(panels[:, :1]), jnp.cumsum(panels, axis=1)], axis=1)


def _tanh_increase(one: Instance, nu):
    """``(tanh((nu + r) / 2) - tanh(r / 2)) / (2 |C|)``, ``[m, E, G]``."""
    r = closed_form_curves(one, "concepts", jnp.zeros(1))
    return (jnp.tanh((nu + r) / 2) - jnp.tanh(r / 2)) / (2 * jnp.asarray(one.corpus.concepts.sizes))


def _measured_increase(one: Instance, log_odds):
    base = jax.nn.sigmoid(closed_form_curves(one, "concepts", jnp.zeros(1)))
    return (jax.nn.sigmoid(log_odds) - base) / jnp.asarray(one.corpus.concepts.sizes)


def _tanh_claim(tex, nu, slopes):
    """The claim with a given nu; `slopes` is nu's derivative, ``[m, G]`` at one strength."""

    def halves(one):
        edges = jnp.linspace(0, _REACH, _STEPS // 2 + 1) / tilting.extremes(one.log_odds).range
        return edges, -edges

    def instances(one):
        def error(edges):
            curves = closed_form_curves(one, "concepts", edges)
            return jnp.max(jnp.abs(_measured_increase(one, curves) - _tanh_increase(one, nu(one, edges, _NODES))))

        up, down = halves(one)
        return 1e-10 - jnp.maximum(error(up), error(down))

    def autodiff(one):
        curves, spread = model_curves(one, "concepts"), tilting.extremes(one.log_odds).range

        def error(alpha):
            return jnp.max(jnp.abs(slope(curves, alpha) - slopes(one, alpha))) / spread

        return 1e-9 - jnp.max(jax.vmap(error)(jnp.concatenate(halves(one))))

    @compiled_quickly
    def largest_error(one, alphas, measured):
        return jnp.max(jnp.abs(_measured_increase(one, measured) - _tanh_increase(one, nu(one, alphas, 4))))

    def sweep(swept: Measured):
        zero, curves = int(np.argmin(np.abs(swept.alphas))), swept.concept_log_odds
        halves = (slice(zero, None), slice(zero, None, -1))
        return 1e-7 - max(float(largest_error(swept.instance, swept.alphas[h], curves[:, h])) for h in halves)

    return Claim(tex, instances, autodiff, sweep)


def _slopes(one: Instance, alpha):
    def context(log_p):
        return jax.vmap(lambda members: tilting.concept_slope(log_p, one.log_odds, alpha, members))(one.members)

    return jax.vmap(context)(one.log_p)


def _straight_nu(one: Instance, edges, nodes: int):
    del nodes
    return edges[None, :, None] * _slopes(one, jnp.zeros(()))[:, None, :]


_TANH_TEX = (
    r"\Delta p(C \mid c_j, \alpha) = \frac{1}{2|C|}"
    r"\left(\tanh\frac{\nu_j(\alpha) + r_j}{2} - \tanh\frac{r_j}{2}\right)"
)
_TANH = _tanh_claim(
    _TANH_TEX
    + r",\quad \nu_j(\alpha) = \int_0^\alpha \left(\mu_C - \mu_{C^\complement}\right)(t)\,dt,"
    + r"\quad r_j = \operatorname{logit} F_{C,j}(0)",
    _nu,
    _slopes,
)
_PURE_TANH = _tanh_claim(
    _TANH_TEX + r",\quad \nu_j(\alpha) = \left(\mu_C - \mu_{C^\complement}\right)(0)\,\alpha",
    _straight_nu,
    lambda one, alpha: _slopes(one, 0 * alpha),
)

# --- target, limits, decreasing --------------------------------------------------------------------------------------


def _per_context(one: Instance, per_concept):
    return jnp.broadcast_to(per_concept, (one.corpus.n_contexts, one.corpus.concepts.count))


def _is_target(one: Instance):
    return jnp.arange(one.corpus.concepts.count) == one.target


def _without_extremes(one: Instance):
    highest, lowest, _ = tilting.extremes(one.log_odds)
    return _per_context(one, ~jnp.any(one.members & (highest | lowest), axis=-1))


def _lowest_concepts(one: Instance):
    """Concepts C with ``max_C M <= min_{C^c} M``, ties included."""
    m = one.log_odds
    top = jnp.max(jnp.where(one.members, m, -jnp.inf), axis=-1)
    bottom = jnp.min(jnp.where(one.members, jnp.inf, m), axis=-1)
    below = top <= bottom + tilting.TIE * tilting.extremes(m).range
    return _per_context(one, jnp.where(below & ~_is_target(one), -1, 0))


def _loss_of_all(one: Instance, sign: int):
    del sign
    base = jax.nn.sigmoid(closed_form_curves(one, "concepts", jnp.zeros(1))[:, 0])
    return -base / jnp.asarray(one.corpus.concepts.sizes)


_A1 = ("A2", "not-constant", "positive", "separated")

STATEMENTS = (
    Statement(
        id="theorem-3.6.tanh",
        title="Concept probability is a reparametrised tanh",
        source="S, theorem 3.6 and appendix B.4",
        claim=_TANH,
        twin=_PURE_TANH,
        needs=needs("A2", "not-constant", "positive"),
        hypotheses=margins("A2", "not-constant", "positive"),
        remarks="A pure tanh in alpha, with nu linear, is not what the theorem says and is wrong.",
    ),
    Statement(
        id="theorem-3.6.target",
        title="The target concept rises",
        source="S, theorem 3.6",
        claim=monotone(
            r"\Delta p(T \mid c_j, \alpha)\ \text{increases in}\ \alpha",
            "concepts",
            lambda one: _per_context(one, jnp.where(_is_target(one), 1, 0)),
        ),
        twin=monotone(
            r"\text{the concept a context belongs to keeps rising: }\Delta p(C_{g(j)} \mid c_j, \cdot)"
            r"\ \text{increases for every}\ j",
            "concepts",
            lambda one: jnp.asarray(one.corpus.concept[:, None] == jnp.arange(one.corpus.concepts.count), int),
        ),
        needs=needs(*_A1),
        hypotheses=margins(*_A1),
    ),
    Statement(
        id="theorem-3.6.limits",
        title="Concepts between the extremes vanish",
        source="S, theorem 3.6",
        claim=limiting(
            r"C' \cap (\overline{M} \cup \underline{M}) = \emptyset \implies "
            r"\lim_{\alpha \to \pm\infty} \Delta p(C' \mid c_j, \alpha) = -\frac{1}{|C'|}\sum_{z \in C'} p_j(z)",
            "concepts",
            _loss_of_all,
            _without_extremes,
        ),
        twin=limiting(
            r"C' \cap (\overline{M} \cup \underline{M}) = \emptyset \implies "
            r"\lim_{\alpha \to \pm\infty} \Delta p(C' \mid c_j, \alpha) = 0",
            "concepts",
            lambda one, sign: jnp.zeros((one.corpus.n_contexts, one.corpus.concepts.count)),
            _without_extremes,
        ),
        needs=needs("A2", "not-constant", "positive"),
        hypotheses=margins("A2", "not-constant", "positive"),
        remarks="The concept loses all its probability; it does not go back to its unsteered value, as the twin says.",
    ),
    Statement(
        id="theorem-3.6.decreasing",
        title="The lowest concept falls",
        source="S, theorem 3.6",
        claim=monotone(
            r"\max_{z \in C} M(z) \le \min_{z \notin C} M(z) \implies "
            r"\Delta p(C \mid c_j, \alpha)\ \text{decreases in}\ \alpha",
            "concepts",
            _lowest_concepts,
        ),
        twin=monotone(
            r"\forall C \ne T:\ \Delta p(C \mid c_j, \alpha)\ \text{decreases in}\ \alpha",
            "concepts",
            lambda one: _per_context(one, jnp.where(_is_target(one), 0, -1)),
        ),
        needs=needs("A2", "not-constant", "positive"),
        hypotheses=margins("A2", "not-constant", "positive"),
    ),
)

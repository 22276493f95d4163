"""Theorem 3.3 of S: how the probability of one token moves. A bump, where the bumps are, and the tokens without one."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import tilting
from theory.claims import GRID, ROUNDING, least, model_curves, monotone, slope
from theory.instance import Instance, Measured
from theory.instance import peaks as token_peaks
from theory.statement import Claim, Statement
from theory.statements.hypotheses import margins, needs

# --- bump ------------------------------------------------------------------------------------------------------------


@jax.jit
def _inner(one: Instance):
    highest, lowest, _ = tilting.extremes(one.log_odds)
    return ~(highest | lowest)


def _bump_instances(one: Instance):
    """Secants of log p between strengths around each token's own closed-form peak: up before it, down after it."""
    m = one.log_odds
    spread = tilting.extremes(m).range

    def token(log_p, z, peak):
        alphas = jnp.where(jnp.isfinite(peak), peak, 0) + jnp.asarray(GRID) / spread
        curve = jax.vmap(lambda alpha: tilting.log_probabilities(log_p, m, alpha)[z])(alphas)
        secants = jnp.diff(curve) / jnp.diff(jnp.asarray(GRID))
        return jnp.min(jnp.where(GRID[:-1] < 0, secants, -secants))

    def context(log_p, peaks):
        return jax.vmap(lambda z, peak: token(log_p, z, peak))(jnp.arange(m.size), peaks)

    return least(jax.vmap(context)(one.log_p, token_peaks(one)), _inner(one)) + _around(one)


def _around(one: Instance):
    """Rounding of a secant of log p at large strengths: the log-probabilities themselves grow with |alpha|."""
    peaks = token_peaks(one)
    far = jnp.max(jnp.where(jnp.isfinite(peaks), jnp.abs(peaks), 0)) * jnp.max(jnp.abs(one.log_odds))
    return ROUNDING + 1e-14 * (far + jnp.max(jnp.abs(one.log_p)))


def _bump_autodiff(one: Instance):
    """At the closed-form peak the model's derivative of log p vanishes and its second derivative is -Var."""
    m, peaks, inner = one.log_odds, token_peaks(one), _inner(one)
    spread = tilting.extremes(m).range
    curves = model_curves(one, "tokens")

    def at(j, z):
        alpha = jnp.where(inner[z], peaks[j, z], 0)

        def curve(a):
            return curves(a)[j, z]

        first, second = jax.jvp(jax.grad(curve), (alpha,), (jnp.ones_like(alpha),))
        variance = tilting.variance(one.log_p[j], m, alpha)
        error = jnp.maximum(jnp.abs(first) / spread, jnp.abs(second + variance) / spread**2)
        # Rounding of the model's logits moves the slope by their size times the precision.
        return 1e-10 + 1e-14 * jnp.abs(alpha) * jnp.max(jnp.abs(m)) - error

    contexts, tokens = jnp.arange(one.corpus.n_contexts), jnp.arange(m.size)
    errors = jax.vmap(lambda j: jax.vmap(lambda z: at(j, z))(tokens))(contexts)
    return least(errors, inner)


def _bump_sweep(swept: Measured) -> float:
    """Each measured curve rises up to its largest value and falls after it, and that is within a step of the peak."""
    one = swept.instance
    peaks, inner = np.asarray(token_peaks(one)), np.asarray(_inner(one))
    p = np.exp(swept.log_probabilities)
    reach = swept.alphas[-1] - swept.step
    worst = np.inf
    for j, z in np.argwhere(inner & (np.abs(peaks) < reach)):
        curve = p[j, :, z]
        top = int(np.argmax(curve))
        steps = np.diff(curve)
        wrong_way = max(-steps[:top].min(initial=0), steps[top:].max(initial=0))
        worst = min(worst, 1e-9 - wrong_way, 1 - abs(swept.alphas[top] - peaks[j, z]) / swept.step)
    return float(worst)


_BUMP = Claim(
    r"\forall z \notin \overline{M} \cup \underline{M}\ \exists!\, \alpha_{j,z}:\ "
    r"\Delta p(z \mid c_j, \cdot)\ \text{increases strictly before}\ \alpha_{j,z}\ \text{and decreases after it}",
    _bump_instances,
    _bump_autodiff,
    _bump_sweep,
)
_TARGETS_ALWAYS_RISE = monotone(
    r"\forall z \in T:\ \Delta p(z \mid c_j, \cdot)\ \text{increases strictly on}\ \mathbb{R}",
    "tokens",
    lambda one: jnp.broadcast_to(jnp.where(one.in_target, 1, 0), one.log_p.shape),
)

# --- order -----------------------------------------------------------------------------------------------------------


_INFINITE_LEAD = 1e3
"""The lead, in the margin's unit, that a peak at +inf has over others: the claim is made and holds, with room to spare."""


@jax.jit
def _lead(peaks, target):
    """How much later every target peak is than every off-target peak, per context; +-inf at the extremes."""
    late = jnp.min(jnp.where(target, peaks, jnp.inf), axis=-1)
    early = jnp.max(jnp.where(target, -jnp.inf, peaks), axis=-1)
    return late - early


def _order_instances(one: Instance):
    spread = tilting.extremes(one.log_odds).range
    leads = _lead(token_peaks(one), one.in_target) * spread
    return jnp.minimum(jnp.min(leads), _INFINITE_LEAD) + ROUNDING


def _order_autodiff(one: Instance):
    """Where an off-target token peaks, the model's derivative says every target token still rises; and vice versa."""
    peaks, target = token_peaks(one), one.in_target
    spread = tilting.extremes(one.log_odds).range
    curves = model_curves(one, "tokens")

    def at(j, z):
        finite = jnp.isfinite(peaks[j, z])
        slopes = slope(curves, jnp.where(finite, peaks[j, z], 0))[j] / spread
        signed = jnp.where(target[z], -slopes, slopes)
        return jnp.where(finite, least(signed, target != target[z]), jnp.inf)

    contexts, tokens = jnp.arange(one.corpus.n_contexts), jnp.arange(target.size)
    return jnp.min(jax.vmap(lambda j: jax.vmap(lambda z: at(j, z))(tokens))(contexts)) + ROUNDING


def _order_sweep(swept: Measured) -> float:
    """The largest values of measured target curves come after those of off-target curves (at the ends: +-inf)."""
    top = swept.alphas[np.argmax(swept.log_probabilities, axis=1)]
    peaks = np.where(top == swept.alphas[-1], np.inf, np.where(top == swept.alphas[0], -np.inf, top))
    target = np.asarray(swept.instance.in_target)
    leads = np.asarray(_lead(peaks, target)) / swept.step
    return min(float(leads.min()), _INFINITE_LEAD) + 1e-9


def _signs(peaks, target):
    return jnp.min(jnp.where(target, peaks, -peaks))


def _opposite_signs_sweep(swept: Measured) -> float:
    top = swept.alphas[np.argmax(swept.log_probabilities, axis=1)]
    return float(_signs(top, swept.instance.in_target))


def _opposite_signs_autodiff(one: Instance):
    slopes = slope(model_curves(one, "tokens"), jnp.zeros(()))
    return jnp.min(jnp.where(one.in_target, slopes, -slopes))


_ORDER = Claim(
    r"z \in T,\ z' \notin T \implies \alpha_{j,z'} < \alpha_{j,z}",
    _order_instances,
    _order_autodiff,
    _order_sweep,
)
_OPPOSITE_SIGNS = Claim(
    r"z \in T,\ z' \notin T \implies \alpha_{j,z'} < 0 < \alpha_{j,z}",
    lambda one: _signs(token_peaks(one), one.in_target),
    _opposite_signs_autodiff,
    _opposite_signs_sweep,
)

# --- monotone --------------------------------------------------------------------------------------------------------


def _extreme_direction(one: Instance):
    highest, lowest, _ = tilting.extremes(one.log_odds)
    up, down = one.in_target & highest, ~one.in_target & lowest
    return jnp.broadcast_to(jnp.where(up, 1, jnp.where(down, -1, 0)), one.log_p.shape)


_MONOTONE = monotone(
    r"\Delta p(z \mid c_j, \cdot)\ \text{increases strictly on}\ \mathbb{R}\ \text{for}\ z \in T \cap \overline{M}"
    r"\ \text{and decreases strictly for}\ z \in T^{\complement} \cap \underline{M}",
    "tokens",
    _extreme_direction,
)
_OFF_TARGETS_ALWAYS_FALL = monotone(
    r"\forall z \notin T:\ \Delta p(z \mid c_j, \cdot)\ \text{decreases strictly on}\ \mathbb{R}",
    "tokens",
    lambda one: jnp.broadcast_to(jnp.where(one.in_target, 0, -1), one.log_p.shape),
)

STATEMENTS = (
    Statement(
        id="theorem-3.3.bump",
        title="One bump per token",
        source="S, theorem 3.3, first part",
        claim=_BUMP,
        twin=_TARGETS_ALWAYS_RISE,
        needs=needs("A2", "not-constant", "positive"),
        hypotheses=margins("A2", "not-constant", "positive"),
        remarks="Assumption 1 is not needed: log p is strictly concave in alpha for any corpus.",
    ),
    Statement(
        id="theorem-3.3.order",
        title="Off-target tokens peak first",
        source="S, theorem 3.3, second part",
        claim=_ORDER,
        twin=_OPPOSITE_SIGNS,
        needs=needs("A2", "not-constant", "positive", "separated"),
        hypotheses=margins("A2", "not-constant", "positive", "separated"),
        remarks="Peaks of extreme tokens count as +inf and -inf. The peaks need not lie on the two sides of 0.",
    ),
    Statement(
        id="theorem-3.3.monotone",
        title="Extreme tokens never turn",
        source="S, theorem 3.3, third part",
        claim=_MONOTONE,
        twin=_OFF_TARGETS_ALWAYS_FALL,
        needs=needs("A2", "not-constant", "positive", "separated"),
        hypotheses=margins("A2", "not-constant", "positive", "separated"),
    ),
)

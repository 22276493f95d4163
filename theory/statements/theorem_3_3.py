"""Theorem 3.3 of S: how the probability of one token moves. A bump, where the bumps are, and the tokens without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from theory import signs, tilting
from theory._compilation import compiled_quickly
from theory.claims import GRID, ROUNDING, TOKENS, least, model_curves, monotone, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen

# --- bump ------------------------------------------------------------------------------------------------------------


@jax.jit
def _inner(instance: Instance):
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    return ~(highest | lowest)


_peaks = jax.jit(lambda instance: instance.peaks)


def _bump_instances(instance: Instance):
    """Secants of log p between strengths around each token's own closed-form peak: up before it, down after it."""
    m = instance.log_odds
    spread = instance.range

    def token(log_p, z, peak):
        alphas = jnp.where(jnp.isfinite(peak), peak, 0) + jnp.asarray(GRID) / spread
        curve = jax.vmap(lambda alpha: tilting.log_probabilities(log_p, m, alpha)[z])(alphas)
        secants = jnp.diff(curve) / jnp.diff(jnp.asarray(GRID))
        return jnp.min(jnp.where(GRID[:-1] < 0, secants, -secants))

    def context(log_p, peaks):
        return jax.vmap(lambda z, peak: token(log_p, z, peak))(jnp.arange(m.size), peaks)

    return least(jax.vmap(context)(instance.log_p, instance.peaks), _inner(instance)) + _around(instance)


def _around(instance: Instance):
    """Rounding of a secant of log p at large strengths: the log-probabilities themselves grow with |alpha|."""
    peaks = instance.peaks
    far = jnp.max(jnp.where(jnp.isfinite(peaks), jnp.abs(peaks), 0)) * jnp.max(jnp.abs(instance.log_odds))
    return ROUNDING + 1e-14 * (far + jnp.max(jnp.abs(instance.log_p)))


def _bump_autodiff(instance: Instance):
    """At the closed-form peak the model's derivative of log p vanishes and its second derivative is -Var."""
    m, peaks, inner = instance.log_odds, instance.peaks, _inner(instance)
    spread = instance.range
    curves = model_curves(instance, TOKENS)

    def at(j, z):
        alpha = jnp.where(inner[z], peaks[j, z], 0)

        def curve(a):
            return curves(a)[j, z]

        first, second = jax.jvp(jax.grad(curve), (alpha,), (jnp.ones_like(alpha),))
        variance = tilting.variance(instance.log_p[j], m, alpha)
        error = jnp.maximum(jnp.abs(first) / spread, jnp.abs(second + variance) / spread**2)
        # Rounding of the model's logits moves the slope by their size times the precision.
        return 1e-10 + 1e-14 * jnp.abs(alpha) * jnp.max(jnp.abs(m)) - error

    contexts, tokens = jnp.arange(instance.log_p.shape[0]), jnp.arange(m.size)
    errors = jax.vmap(lambda j: jax.vmap(lambda z: at(j, z))(tokens))(contexts)
    return least(errors, inner)


def _bump_sweep(swept: Measured) -> float:
    """Each measured curve rises up to its largest value and falls after it, and that is within a step of the peak."""
    instance = swept.instance
    peaks, inner = np.asarray(_peaks(instance)), np.asarray(_inner(instance))
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


_BLUR = 1e-3
"""How close to a peak, in units of 1/R, the sign of the slope is left to its monotony."""


def _sign_pattern(instance: Instance, alpha):
    """Up before the peak, down after it; and the slope's sign changes once, for its unnormalised form falls."""
    slopes, inner, blur = signs.of_tokens(instance, alpha), _inner(instance), _BLUR / instance.range
    before, after = alpha <= instance.peaks - blur, alpha >= instance.peaks + blur
    # On the far side of a peak nothing is claimed: any positive number. Infinities have no ball around them.
    up, down = jnp.where(before, slopes, 1.0), jnp.where(after, -slopes, 1.0)
    return jnp.where(inner, jnp.stack([up, down, signs.falling_of_tokens(instance, alpha)]), jnp.inf)


_BUMP = Claim(
    r"\forall z \notin \overline{M} \cup \underline{M}\ \exists!\, \alpha_{j,z}:\ "
    r"\Delta p(z \mid c_j, \cdot)\ \text{increases strictly before}\ \alpha_{j,z}\ \text{and decreases after it}",
    _bump_instances,
    _bump_autodiff,
    _bump_sweep,
    (Curve(_sign_pattern, beyond=signs.settled),),
    reading="the least slope of a log-probability per unit of αR, upwards before its peak and downwards after it, with an "
    "allowance for rounding around the peak",
)
_TARGETS_ALWAYS_RISE = monotone(
    r"\forall z \in T:\ \Delta p(z \mid c_j, \cdot)\ \text{increases strictly on}\ \mathbb{R}",
    TOKENS,
    lambda instance: jnp.broadcast_to(jnp.where(instance.in_target, 1, 0), instance.log_p.shape),
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


def _order_instances(instance: Instance):
    spread = instance.range
    leads = _lead(instance.peaks, instance.in_target) * spread
    return jnp.minimum(jnp.min(leads), _INFINITE_LEAD) + ROUNDING


def _order_autodiff(instance: Instance):
    """Where an off-target token peaks, the model's derivative says every target token still rises; and vice versa."""
    peaks, target = instance.peaks, instance.in_target
    spread = instance.range
    curves = model_curves(instance, TOKENS)

    def at(j, z):
        finite = jnp.isfinite(peaks[j, z])
        slopes = slope(curves, jnp.where(finite, peaks[j, z], 0))[j] / spread
        signed = jnp.where(target[z], -slopes, slopes)
        return jnp.where(finite, least(signed, target != target[z]), jnp.inf)

    contexts, tokens = jnp.arange(instance.log_p.shape[0]), jnp.arange(target.size)
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


def _opposite_signs_autodiff(instance: Instance):
    slopes = slope(model_curves(instance, TOKENS), jnp.zeros(()))
    return jnp.min(jnp.where(instance.in_target, slopes, -slopes))


def _never_in_turn(instance: Instance, alpha):
    """At no strength does a target token fall while an off-target token rises."""
    slopes, target = signs.of_tokens(instance, alpha), instance.in_target
    rising = jnp.min(jnp.where(target, slopes, jnp.inf), axis=-1)
    falling = jnp.min(jnp.where(target, jnp.inf, -slopes), axis=-1)
    return jnp.maximum(rising, falling)


def _opposite_at_zero(instance: Instance, alpha):
    return jnp.where(instance.in_target, 1, -1) * signs.of_tokens(instance, alpha)


_ORDER = Claim(
    r"z \in T,\ z' \notin T \implies \alpha_{j,z'} < \alpha_{j,z}",
    _order_instances,
    _order_autodiff,
    _order_sweep,
    (Curve(_never_in_turn, beyond=signs.settled),),
    reading="the least distance, in units of 1/R, by which any token off the target peaks before one on it, with 1e-11 for "
    "rounding",
)
_OPPOSITE_SIGNS = Claim(
    r"z \in T,\ z' \notin T \implies \alpha_{j,z'} < 0 < \alpha_{j,z}",
    lambda instance: _signs(instance.peaks, instance.in_target),
    _opposite_signs_autodiff,
    _opposite_signs_sweep,
    (Curve(_opposite_at_zero, interval=(0.0, 1e-6)),),
)

# --- monotone --------------------------------------------------------------------------------------------------------


def _extreme_direction(instance: Instance):
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    up, down = instance.in_target & highest, ~instance.in_target & lowest
    return jnp.broadcast_to(jnp.where(up, 1, jnp.where(down, -1, 0)), instance.log_p.shape)


_MONOTONE = monotone(
    r"\Delta p(z \mid c_j, \cdot)\ \text{increases strictly on}\ \mathbb{R}\ \text{for}\ z \in T \cap \overline{M}"
    r"\ \text{and decreases strictly for}\ z \in T^{\complement} \cap \underline{M}",
    TOKENS,
    _extreme_direction,
)
_OFF_TARGETS_ALWAYS_FALL = monotone(
    r"\forall z \notin T:\ \Delta p(z \mid c_j, \cdot)\ \text{decreases strictly on}\ \mathbb{R}",
    TOKENS,
    lambda instance: jnp.broadcast_to(jnp.where(instance.in_target, 0, -1), instance.log_p.shape),
)

# --- remark 3.4 ------------------------------------------------------------------------------------------------------

_NEARBY = np.array([-1e-3, 1e-3])
"""The condition is tested this far before and after the first peak on the target, in units of 1/R."""

_UNDECIDED = 1e-12
"""A mean this close to ``min_T M``, in units of R, is left undecided."""


def _first_on_target(instance: Instance):
    """``min_T M``, the log-odds of the target token that peaks first."""
    return jnp.min(jnp.where(instance.in_target, instance.log_odds, jnp.inf))


def below_target(instance: Instance, log_p):
    """``(min_T M - E_p M) / R`` of each of some rows ``[n, V]``: positive where all target tokens still rise at 0."""
    m = instance.log_odds
    return (_first_on_target(instance) - jax.vmap(lambda row: tilting.mean(row, m, 0.0))(log_p)) / instance.range


def _rows_and_firsts(instance: Instance):
    """Rows of next-token probabilities ``[3 m, V]``, and the first peak on the target after each, in units of 1/R.

    They are the rows of the instance, and each of them steered to just before and just after its first peak on the target:
    a row as well, with its peaks moved by as much. There the condition turns, which shows how sharp it is.
    """
    first = jnp.min(jnp.where(instance.in_target, instance.peaks, jnp.inf), axis=-1)
    finite, m, spread = jnp.isfinite(first), instance.log_odds, instance.range

    def steered(log_p, alpha):
        return jax.vmap(lambda near: tilting.log_probabilities(log_p, m, alpha + near / spread))(jnp.asarray(_NEARBY))

    rows = jax.vmap(steered)(instance.log_p, jnp.where(finite, first, 0)).reshape(-1, m.size)
    ahead = jnp.where(finite[:, None], -_NEARBY, first[:, None]).ravel()
    firsts = jnp.concatenate([jnp.where(finite, first * spread, first), ahead])
    return jnp.concatenate([instance.log_p, rows]), jnp.clip(firsts, -_INFINITE_LEAD, _INFINITE_LEAD)


def _rises_at_zero(tex: str, condition) -> Claim:
    """The claim about the first peak on the target after each context: it is at a positive strength iff `condition`.

    Args:
        tex: the claim.
        condition: of the instance and rows, positive where the peak is said to be positive, negative where it is said not
            to be, 0 where nothing is said; ``[n]``.
    """

    def agree(instance, rows, firsts):
        said = condition(instance, rows)
        return least(jnp.sign(said) * firsts, jnp.abs(said) > _UNDECIDED)

    def instances(instance):
        return agree(instance, *_rows_and_firsts(instance)) + ROUNDING

    def autodiff(instance):
        rows, _ = _rows_and_firsts(instance)
        nowhere = jnp.zeros(rows.shape[0] - instance.log_p.shape[0])
        steered = dataclasses.replace(
            instance,
            log_p=rows,
            contrast=jnp.concatenate([instance.contrast, nowhere]),
            weights=jnp.concatenate([instance.weights, nowhere]),
            known_peaks=None,
        )
        slopes = slope(model_curves(steered, TOKENS), jnp.zeros(())) / instance.range
        return agree(instance, rows, jnp.min(jnp.where(instance.in_target, slopes, jnp.inf), axis=-1)) + ROUNDING

    @compiled_quickly
    def on_rows(instance, tops):
        return agree(instance, instance.log_p, tops)

    def sweep(swept):
        top = swept.alphas[np.argmax(swept.log_probabilities, axis=1)]
        first = np.min(np.where(np.asarray(swept.instance.in_target), top, np.inf), axis=-1)
        # A grid tells where a peak is up to half a step.
        return float(on_rows(swept.instance, jnp.asarray(first / swept.step))) + 0.5

    def at_zero(instance, alpha):
        slopes = signs.of_tokens(instance, alpha)
        first = jnp.min(jnp.where(instance.in_target, slopes, jnp.inf), axis=-1)
        said = condition(instance, instance.log_p)
        return jnp.where(said > _UNDECIDED, first, jnp.where(said < -_UNDECIDED, -first, jnp.inf))

    reading = (
        "how far from 0, in units of 1/R, the first peak on the target is on the side that the condition says, with"
        " 1e-11 for rounding"
    )
    return Claim(tex, instances, autodiff, sweep, (Curve(at_zero, interval=(0.0, 1e-6)),), reading=reading)


def _foreign(instance: Instance, rows):
    """1 for contexts that are not of the target, 0 for others and for rows that are of no context."""
    foreign = jnp.where(instance.concept != instance.target, 1.0, 0.0)
    return jnp.concatenate([foreign, jnp.zeros(rows.shape[0] - foreign.size)])


def _all_rows(instance: Instance, rows):
    return jnp.concatenate([jnp.ones(instance.concept.shape), jnp.zeros(rows.shape[0] - instance.concept.size)])


_EXACT = _rises_at_zero(
    r"\mathbb{E}_{p_j} M < \min_{z \in T} M(z) \iff \alpha_{j,z} > 0\ \text{for every}\ z \in T",
    lambda instance, rows: below_target(instance, rows),
)
_WITHOUT_CONDITION = _rises_at_zero(r"c_j \notin T \implies \alpha_{j,z} > 0\ \text{for every}\ z \in T", _foreign)
_REMARK = _rises_at_zero(
    r"c_j \notin T,\ z \in T,\ \sum_{z' \in T} p_j(z') M(z') < \min_T M \implies \alpha_{j,z} > 0", _foreign
)
_ALL_AFTER_ZERO = _rises_at_zero(
    r"z \in T,\ \varepsilon\ \text{small} \implies \alpha_{j,z} > 0\ \text{after every context}", _all_rows
)

STATEMENTS = (
    Statement(
        id="theorem-3.3.bump",
        title="One bump per token",
        source="S, theorem 3.3, first part",
        claim=_BUMP,
        twin=_TARGETS_ALWAYS_RISE,
        hypotheses=chosen("A2", "not-constant", "positive"),
        proof="proofs/theorem-3.3",
        figure="next-token-curves",
        remarks="Assumption 1 is not needed: log p is strictly concave in alpha for any corpus.",
    ),
    Statement(
        id="theorem-3.3.order",
        title="Off-target tokens peak first",
        source="S, theorem 3.3, second part",
        claim=_ORDER,
        twin=_OPPOSITE_SIGNS,
        hypotheses=chosen("A2", "not-constant", "positive", "separated"),
        proof="proofs/theorem-3.3",
        figure="next-token-curves",
        remarks="Peaks of extreme tokens count as +inf and -inf. The peaks need not lie on the two sides of 0.",
    ),
    Statement(
        id="theorem-3.3.monotone",
        title="Extreme tokens never turn",
        source="S, theorem 3.3, third part",
        claim=_MONOTONE,
        twin=_OFF_TARGETS_ALWAYS_FALL,
        hypotheses=chosen("A2", "not-constant", "positive", "separated"),
        proof="proofs/theorem-3.3",
        figure="next-token-curves",
    ),
    Statement(
        id="remark-3.4.exact",
        title="Which target tokens still rise at 0",
        source="S, remark 3.4, made exact",
        claim=_EXACT,
        twin=_WITHOUT_CONDITION,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Context by context, for any table: no assumption 1, and no family. The twin leaves the condition out.",
        proof="proofs/theorem-3.3",
        figure="next-token-curves",
    ),
    Statement(
        id="remark-3.4",
        title="With little noise, target tokens still rise at 0",
        source="S, remark 3.4",
        claim=_REMARK,
        twin=_ALL_AFTER_ZERO,
        hypotheses=chosen("A2", "not-constant", "positive", "separated", "small-noise"),
        remarks="S asks for eps small enough; the hypothesis here says how small, and is a corollary of remark-3.4.exact. "
        "After the target's own contexts the target tokens of lower log-odds may have their peak behind them at 0, as the "
        "twin overlooks.",
        proof="proofs/theorem-3.3",
        figure="next-token-curves",
    ),
)

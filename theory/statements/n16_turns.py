"""N16: how often the share of a set of tokens passes a level, and how often it turns, by the order of its tokens in M."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from theory import symbolic, tilting
from theory.claims import model_curves, on_sweep, slope
from theory.instance import Instance
from theory.statement import Claim, Count, Statement
from theory.statements.hypotheses import chosen

_PROOF = "proofs/N16"

_STRENGTHS = np.sinh(np.linspace(-6, 6, 65)) / np.sinh(6) * 128
"""Strengths in units of 1/R, dense near 0."""

_EVERY = 2
"""Every second context of a random instance is looked at: counting is dear."""

_NOISE = 1e-9
"""Slopes below this share of R are not told from 0."""


def sets(instance: Instance) -> Bool[Array, "E V"]:
    """The sets of tokens that are looked at: the concepts, and sets that alternate along the order of M."""
    return _sets(instance, instance.log_odds)


def _sets(instance: Instance, m: Num[Array, " V"]) -> Bool[Array, "E V"]:
    """The sets, from numbers in the order of M."""
    rank = jnp.argsort(jnp.argsort(m, stable=True))
    alternating = [rank % 2 == 0, rank % 3 == 1]
    return jnp.concatenate([instance.members, jnp.stack(alternating)])


def membership_changes(m: Num[Array, " V"], members: Bool[Array, "E V"]) -> Int[Array, " E"]:
    """s: how often membership changes along the tokens in the order of M, those of equal M in the order of their indices."""
    ordered = members[:, jnp.argsort(m, stable=True)]
    return jnp.sum(ordered[:, 1:] != ordered[:, :-1], axis=-1)


def _changes_of_sign(values: Float[Array, "... K"], noise: Float[Array, "..."]) -> Int[Array, "..."]:
    """How often the sign changes along the last axis; values within the noise have the sign of the one before."""
    signs = jnp.where(jnp.abs(values) > noise[..., None], jnp.sign(values), 0)

    def step(carry, sign):
        last, count = carry
        return (jnp.where(sign != 0, sign, last), count + (sign * last < 0)), None

    start = jnp.zeros(values.shape[:-1]), jnp.zeros(values.shape[:-1], int)
    return jax.lax.scan(step, start, jnp.moveaxis(signs, -1, 0))[0][1]


Most = Callable[[Int[Array, " E"]], Int[Array, " E"]]
"""What is claimed to be the largest count, from s."""


def _margin(instance: Instance, most: Most, counts: Int[Array, "m E"]) -> Float[Array, ""]:
    allowed = most(membership_changes(instance.log_odds, sets(instance)))
    return jnp.min(allowed - counts) + 0.5


def _tilted(instance: Instance, quantity: Callable) -> Float[Array, "m E K"]:
    """A quantity of `theory.tilting` for some contexts, all sets, at all strengths."""

    def of_context(log_p):
        def at(t):
            alpha = t / instance.range
            return jax.vmap(lambda mask: quantity(log_p, instance.log_odds, alpha, mask))(sets(instance))

        return jax.vmap(at, out_axes=-1)(jnp.asarray(_STRENGTHS))

    return jax.vmap(of_context)(instance.log_p[::_EVERY])


# --- certificates ----------------------------------------------------------------------------------------------------


def _below(instance: Instance) -> Int[Array, " V"]:
    """How many tokens have a smaller M: one number for tokens of equal M, and no choice of an exact instance is in doubt.

    Peaks are in the order of M, and those of an exact instance are known to be equal or not.
    """
    order = instance.peaks[0]
    return jnp.sum(order < order[:, None], axis=-1)


def _pairs(instance: Instance) -> tuple[Bool[Array, "E V"], Float[Array, "V V"], Bool[Array, "m E"]]:
    """The sets, how far M is ahead between tokens (0 exactly where it is equal), and where the share of a set moves.

    A share that is the same, to 1e-9, of the tokens of each M is not said to move: it is constant, or nearly so.
    """
    below, m = _below(instance), instance.log_odds
    members, tied = _sets(instance, below), below[:, None] == below
    shares = (instance.p[:, None, :] * members) @ tied / (instance.p @ tied)[:, None, :]
    moves = jnp.max(shares, axis=-1) - jnp.min(shares, axis=-1) > tilting.TIE
    return members, jnp.where(tied, 0, m[:, None] - m), moves


def _tilt(instance: Instance, alpha) -> Float[Array, " V"]:
    """A positive multiple of ``e^{alpha M}``, near 1 for what a strength favours most: wide balls stay small."""
    m = instance.log_odds
    return 1 / (jnp.exp(alpha * (jnp.max(m) - m)) + jnp.exp(alpha * (jnp.min(m) - m)))


def _turning(instance: Instance, alpha) -> Float[Array, "m E"]:
    """The sign of ``d/dalpha logit F_C``: the sum of ``p(z) p(z') (M(z) - M(z'))`` over z in C and z' outside, tilted."""
    members, ahead, moves = _pairs(instance)
    weights = (instance.p * _tilt(instance, alpha))[:, None, :]
    slopes = jnp.sum((jnp.where(members, weights, 0) @ ahead) * jnp.where(members, 0, weights), axis=-1)
    return jnp.where(moves, slopes, jnp.inf)


def _above_half(instance: Instance, alpha) -> Float[Array, "m E"]:
    """The sign of ``F_C - 1/2``."""
    members, _, moves = _pairs(instance)
    above = (instance.p * _tilt(instance, alpha)) @ jnp.where(members, 1.0, -1.0).T
    return jnp.where(moves, above, jnp.inf)


def _leads(instance: Instance, alpha) -> Float[Array, "m E"]:
    """By how much the leading exponential of `_turning` outweighs all others, which lose to it farther away from 0.

    It belongs to the tokens of the most favoured M and, of those on the other side of the set, of the next M.
    """
    (members, ahead, moves), m, below = _pairs(instance), instance.log_odds, _below(instance)
    height = jnp.where(alpha > 0, below, -below)
    first = height == jnp.max(height)
    across = members[:, :, None] & ~members[:, None, :] & (below[:, None] != below)
    other = jnp.where(first[:, None], height, jnp.where(first, height[:, None], -m.size))
    other = jnp.where(across, other, -m.size)
    leading = across & (other == jnp.max(other, axis=(1, 2), keepdims=True))
    both = m[:, None] + m
    lead = jnp.max(jnp.where(leading, both, -jnp.inf), axis=(1, 2), keepdims=True)
    terms = instance.p[:, None, :, None] * instance.p[:, None, None, :] * ahead
    rest = jnp.abs(terms) * jnp.exp(alpha * jnp.where(across & ~leading, both - lead, 0))
    weight = jnp.abs(jnp.sum(jnp.where(leading, terms, 0), axis=(2, 3)))
    return jnp.where(moves, weight - jnp.sum(jnp.where(across & ~leading, rest, 0), axis=(2, 3)), jnp.inf)


def _counts(function, most: Most, beyond=None) -> tuple[Count]:
    """The certificate that a function of every set changes its sign no more than so many times, after any context."""

    def allowed(instance):
        below = _below(instance)
        largest = most(membership_changes(below, _sets(instance, below)))
        return jnp.broadcast_to(largest, (instance.log_p.shape[0], largest.size))

    return (Count(function, allowed, beyond=beyond),)


def _one_less(s: Int[Array, " E"]) -> Int[Array, " E"]:
    return jnp.maximum(s - 1, 0)


# --- turns -----------------------------------------------------------------------------------------------------------


def _turns_at_most(tex: str, identities, most: Most) -> Claim:
    """The claim that the share of a set has no more turning points than so many."""
    counts = _counts(_turning, most, _leads)

    def instances(instance):
        rates = _tilted(instance, tilting.concept_slope)
        return _margin(instance, most, _changes_of_sign(rates, jnp.full(rates.shape[:-1], _NOISE * instance.range)))

    def autodiff(instance):
        curves = model_curves(instance, sets)
        alphas = jnp.asarray(_STRENGTHS[::2]) / instance.range
        rates = jax.vmap(lambda alpha: slope(curves, alpha), out_axes=-1)(alphas)
        return _margin(instance, most, _changes_of_sign(rates, jnp.full(rates.shape[:-1], _NOISE * instance.range)))

    @on_sweep
    def sweep(instance, alphas, measured):
        def context(log_q):
            inside = jax.nn.logsumexp(jnp.where(sets(instance)[:, None], log_q, -jnp.inf), axis=-1)
            outside = jax.nn.logsumexp(jnp.where(sets(instance)[:, None], -jnp.inf, log_q), axis=-1)
            rises = jnp.diff(inside - outside, axis=-1)
            return _changes_of_sign(rises, jnp.full(rises.shape[:-1], 1e-7))

        return _margin(instance, most, jax.lax.map(context, measured[:, ::2]))

    reading = "how many turns are allowed less how many are counted, at the worst set of tokens, plus one half"
    return Claim(tex, instances, autodiff, sweep, identities=identities, counts=counts, reading=reading)


_TURNS_TEX = r"\alpha \mapsto F_C(\alpha)\ \text{turns at most}\ "
_TURNS = _turns_at_most(
    _TURNS_TEX + r"s - 1\ \text{times},\quad s = \text{changes of}\ 1_C\ \text{along the tokens in the order of}\ M",
    symbolic.IDENTITIES["N16.turns"],
    _one_less,
)
_ONE_BUMP = _turns_at_most(
    _TURNS_TEX + r"\text{once}",
    symbolic.TWINS["N16.turns"],
    jnp.ones_like,
)

# --- levels ----------------------------------------------------------------------------------------------------------


def _passes_at_most(tex: str, most: Most, counts: tuple[Count, ...]) -> Claim:
    """The claim that the share of a set passes every level no more than so many times.

    Args:
        tex: the claim.
        most: so many.
        counts: the certificate.
    """

    def passes(curves):
        """The largest number of times that a curve, on the last axis, passes one of the levels that it has on the way."""
        middles = (curves[..., 1:] + curves[..., :-1]) / 2
        levels = middles[..., :: max(1, middles.shape[-1] // 16)]
        noise = 1e-11 * (1 + jnp.max(jnp.abs(curves), axis=-1))
        return jnp.max(_changes_of_sign(curves[..., None, :] - levels[..., None], noise[..., None]), axis=-1)

    def instances(instance):
        return _margin(instance, most, passes(_tilted(instance, tilting.concept_log_odds)))

    @on_sweep
    def sweep(instance, alphas, measured):
        def context(log_q):
            inside = jax.nn.logsumexp(jnp.where(sets(instance)[:, None], log_q, -jnp.inf), axis=-1)
            return passes(inside - jax.nn.logsumexp(jnp.where(sets(instance)[:, None], -jnp.inf, log_q), axis=-1))

        return _margin(instance, most, jax.lax.map(context, measured[:, ::4]))

    reading = (
        "how many crossings of a level are allowed less how many are counted, at the worst set of tokens, plus one half"
    )
    return Claim(tex, instances, None, sweep, counts=counts, reading=reading)


_LEVELS_TEX = r"F_C(\alpha) - \tau\ \text{changes its sign at most}\ "
_LEVELS = _passes_at_most(
    _LEVELS_TEX
    + r"s\ \text{times, so that}\ \{F_C \ge \tau\}\ \text{is at most}\ \lceil (s + 1)/2 \rceil\ \text{intervals}",
    lambda s: s,
    # Between turns a share is monotone: k turns make k + 1 pieces, and each passes a level once at most, whichever it is.
    _counts(_turning, _one_less, _leads),
)
_INTERVAL = _passes_at_most(
    _LEVELS_TEX + r"\text{twice, so that}\ \{F_C \ge \tau\}\ \text{or its complement is an interval}",
    lambda s: jnp.full_like(s, 2),
    _counts(_above_half, lambda s: jnp.full_like(s, 2)),
)

_HYPOTHESES = chosen("A2", "not-constant", "positive")
STATEMENTS = (
    Statement(
        id="N16.levels",
        title="How often a share passes a level",
        source="N16",
        claim=_LEVELS,
        twin=_INTERVAL,
        hypotheses=_HYPOTHESES,
        remarks="Descartes' rule for sums of exponentials. Tokens of equal M may be put in any order.",
        proof=_PROOF,
        figure="turns",
    ),
    Statement(
        id="N16.turns",
        title="How often a share turns",
        source="N16",
        claim=_TURNS,
        twin=_ONE_BUMP,
        hypotheses=_HYPOTHESES,
        remarks="s = 1 is theorem 3.6 for the target; s = 2 without ties is one bump or one dip. Attained for every s. "
        "Concepts between the extremes need not have the shape of a bump.",
        proof=_PROOF,
        figure="turns",
    ),
)

"""N16: how often the share of a set of tokens passes a level, and how often it turns, by the order of its tokens in M."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from theory import symbolic, tilting
from theory.claims import model_curves, on_sweep, slope
from theory.instance import Instance
from theory.statement import Claim, Statement
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
    rank = jnp.argsort(jnp.argsort(instance.log_odds, stable=True))
    alternating = [rank % 2 == 0, rank % 3 == 1]
    return jnp.concatenate([instance.members, jnp.stack(alternating)])


def membership_changes(m: Float[Array, " V"], members: Bool[Array, "E V"]) -> Int[Array, " E"]:
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


# --- turns -----------------------------------------------------------------------------------------------------------


def _turns_at_most(tex: str, identities, most: Most) -> Claim:
    """The claim that the share of a set has no more turning points than so many."""

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
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_TURNS_TEX = r"\alpha \mapsto F_C(\alpha)\ \text{turns at most}\ "
_TURNS = _turns_at_most(
    _TURNS_TEX + r"s - 1\ \text{times},\quad s = \text{changes of}\ 1_C\ \text{along the tokens in the order of}\ M",
    symbolic.IDENTITIES["N16.turns"],
    lambda s: jnp.maximum(s - 1, 0),
)
_ONE_BUMP = _turns_at_most(
    _TURNS_TEX + r"\text{once}",
    symbolic.TWINS["N16.turns"],
    jnp.ones_like,
)

# --- levels ----------------------------------------------------------------------------------------------------------


def _passes_at_most(tex: str, most: Most) -> Claim:
    """The claim that the share of a set passes every level no more than so many times."""

    def counts(curves):
        """The largest number of times that a curve, on the last axis, passes one of the levels that it has on the way."""
        middles = (curves[..., 1:] + curves[..., :-1]) / 2
        levels = middles[..., :: max(1, middles.shape[-1] // 16)]
        noise = 1e-11 * (1 + jnp.max(jnp.abs(curves), axis=-1))
        return jnp.max(_changes_of_sign(curves[..., None, :] - levels[..., None], noise[..., None]), axis=-1)

    def instances(instance):
        return _margin(instance, most, counts(_tilted(instance, tilting.concept_log_odds)))

    @on_sweep
    def sweep(instance, alphas, measured):
        def context(log_q):
            inside = jax.nn.logsumexp(jnp.where(sets(instance)[:, None], log_q, -jnp.inf), axis=-1)
            return counts(inside - jax.nn.logsumexp(jnp.where(sets(instance)[:, None], -jnp.inf, log_q), axis=-1))

        return _margin(instance, most, jax.lax.map(context, measured[:, ::4]))

    reading = (
        "how many crossings of a level are allowed less how many are counted, at the worst set of tokens, plus one half"
    )
    return Claim(tex, instances, None, sweep, reading=reading)


_LEVELS_TEX = r"F_C(\alpha) - \tau\ \text{changes its sign at most}\ "
_LEVELS = _passes_at_most(
    _LEVELS_TEX
    + r"s\ \text{times, so that}\ \{F_C \ge \tau\}\ \text{is at most}\ \lceil (s + 1)/2 \rceil\ \text{intervals}",
    lambda s: s,
)
_INTERVAL = _passes_at_most(
    _LEVELS_TEX + r"\text{twice, so that}\ \{F_C \ge \tau\}\ \text{or its complement is an interval}",
    lambda s: jnp.full_like(s, 2),
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

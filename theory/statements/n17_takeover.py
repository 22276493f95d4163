"""N17: the strength at which the target takes over, between bounds that meet as the noise of the corpus goes to 0."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from theory import span, tilting
from theory._compilation import compiled_quickly
from theory.claims import model_curves
from theory.instance import Instance, Measured
from theory.span import Takeover
from theory.statement import Claim, Statement
from theory.statements.hypotheses import chosen
from theory.statements.n14_directions import ZERO_SUM, favours_the_target
from theory.weightings import WEIGHTINGS

LOG_NOISE = -1e7
"""The logarithm of the noise at which the limit is looked at: the total probability of the tokens of other concepts."""

NEAR = 1e-3
"""How close to the limit the target takes over at that noise, relative to it."""


def quieter(instance: Instance, log_noise: float) -> Instance:
    """A table of assumption 1 with less noise: b times a factor, the shares of tokens within concepts unchanged.

    The sum of all b becomes ``e^log_noise``, too small for the sums of the a to differ from 1 in floating point.
    """
    own, log_b = instance.inside, span.levels(instance)[1]
    shares = instance.log_p - jax.nn.logsumexp(jnp.where(own, instance.log_p, -jnp.inf), axis=-1, keepdims=True)
    noise = log_b - jax.nn.logsumexp(log_b) + log_noise
    return replace(instance, log_p=jnp.where(own, shares, noise), known_peaks=None)


def _target_log_odds(instance: Instance, alphas):
    """``logit F_T`` after each context, each at its own strength, ``[m]``."""
    m, target = instance.log_odds, instance.in_target
    return jax.vmap(lambda row, alpha: tilting.concept_log_odds(row, m, alpha, target))(instance.log_p, alphas)


def _log_odds_of_a_model(instance: Instance):
    """`_target_log_odds` as a function of the strengths, through a model of gap 0; NaN where they do not rise."""
    curves = model_curves(instance, lambda instance: instance.in_target[None])
    contexts = jnp.arange(instance.log_p.shape[0])

    def log_odds(alphas):
        def context(j, alpha):
            value, rate = jax.jvp(lambda a: curves(a)[j, 0], (alpha,), (jnp.ones_like(alpha),))
            return jnp.where(rate > 0, value, jnp.nan)

        return jax.vmap(context)(contexts, alphas)

    return log_odds


def _between(instance: Instance, ends: Takeover, log_odds) -> jax.Array:
    """Least margin: at the first end the target has at most half, at the second at least half. +inf where there are none."""
    exists = jnp.isfinite(ends.low)
    below, above = (log_odds(jnp.where(exists, end, 0.0)) for end in ends)
    size = 1 + jnp.max(jnp.abs(instance.log_p))
    return jnp.min(jnp.where(exists, jnp.minimum(-below, above), jnp.inf)) / size + 1e-11


def _takes_over(tex: str, bounds, limit) -> Claim:
    """The claim that the target has half of the probability between two bounds, and at a limit as the noise goes to 0.

    Args:
        tex: the claim.
        bounds: of an instance, for every context.
        limit: of an instance, for every context; infinite where nothing is claimed.
    """

    def in_the_limit(instance, log_odds):
        """Log-odds are in the millions there: negative a little before the limit, positive a little after it."""
        at = limit(instance)
        foreign = (instance.concept != instance.target) & jnp.isfinite(at)
        safe = jnp.where(foreign, at, 0.0)
        before, after = (log_odds(safe * (1 + side * NEAR)) for side in (-1, 1))
        return jnp.min(jnp.where(foreign, jnp.minimum(-before, after), jnp.inf)) / -LOG_NOISE

    def claimed(instance, value):
        return jnp.where(favours_the_target(instance), value, jnp.inf)

    def instances(instance):
        quiet = quieter(instance, LOG_NOISE)
        finite = _between(instance, bounds(instance), lambda alphas: _target_log_odds(instance, alphas))
        limiting = in_the_limit(instance, lambda alphas: _target_log_odds(quiet, alphas))
        return claimed(instance, jnp.minimum(finite, limiting))

    def autodiff(instance):
        """By the log-odds of a model of gap 0, and the sign of their slope: what is reached is not left again."""
        quiet = _log_odds_of_a_model(quieter(instance, LOG_NOISE))
        finite = _between(instance, bounds(instance), _log_odds_of_a_model(instance))
        return claimed(instance, jnp.minimum(finite, in_the_limit(instance, quiet)))

    @compiled_quickly
    def margin(instance, alphas, log_odds):
        ends = bounds(instance)
        exists = jnp.isfinite(ends.low)[:, None]
        before, after = exists & (alphas <= ends.low[:, None]), exists & (alphas >= ends.high[:, None])
        wrong = jnp.where(before, -log_odds, jnp.where(after, log_odds, jnp.inf))
        return claimed(instance, jnp.min(wrong))

    def sweep(swept: Measured):
        log_odds = swept.concept_log_odds[..., int(swept.instance.target)]
        return float(margin(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(log_odds))) + 1e-9

    reading = (
        "the least log-odds of the target, with the claimed sign, at the two bounds (relative to the size of the "
        "logarithms, with 1e-11 for rounding), or close to the limit (in units of the logarithm of the noise), "
        "whichever is less"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _chord(instance: Instance):
    """The limit if it went evenly from 1 to 1/2 as the context's concept goes from none to all of the negatives."""
    omega = span.concept_weights(instance)
    share = -omega[instance.concept] / omega[instance.target]
    return jnp.where(instance.concept == instance.target, jnp.inf, (1 - share / 2) / omega[instance.target])


def _chord_bounds(instance: Instance) -> Takeover:
    """The bounds, moved as far as the limit is."""
    foreign = instance.concept != instance.target
    moved = jnp.where(foreign, _chord(instance), 1.0) / jnp.where(foreign, span.critical_strength(instance), 1.0)
    low, high = span.takeover(instance)
    return Takeover(low * moved, high * moved)


_TEX = (
    r"\Omega_T > 0 \ge \Omega_k \implies F_T(\alpha) \lessgtr \tfrac12\ \text{for}\ \alpha \lessgtr \alpha^*_j,\quad "
    r"%s,\quad \alpha^*_j \to %s\ \text{as}\ \varepsilon \to 0,\quad g = g(j) \ne T"
)

STATEMENTS = (
    Statement(
        id="N17",
        title="The strength at which the target takes over",
        source="N17",
        claim=_takes_over(
            _TEX
            % (
                r"\frac{\log(A_g / B_T)}{\Omega_T \max_T \Lambda - \Omega_g \max_g \Lambda} \le \alpha^*_j \le "
                r"\alpha_1 + \frac{\log(1 + (B / B_T)\, e^{-\alpha_1 \Omega_T \min_T \Lambda})}{\Omega_T \min_T \Lambda}",
                r"\frac{1}{\Omega_T - \Omega_g}",
            ),
            lambda instance: span.takeover(instance),
            lambda instance: span.critical_strength(instance),
        ),
        twin=_takes_over(
            _TEX % (r"\text{bounds moved by}\ (1 + s)(1 - s/2)", r"\frac{1 - s/2}{\Omega_T},\quad s = -\Omega_g / \Omega_T"),
            _chord_bounds,
            _chord,
        ),
        hypotheses={**chosen("A2", "not-constant", "positive", "A1"), **ZERO_SUM},
        domain=WEIGHTINGS,
        remarks="Lambda is log(a/b), A_g and B_T the probabilities of the context's own concept and of the target, B the "
        "rest, alpha_1 the lower bound with minima in place of maxima. For a difference of means the limit is "
        "1/(1 + q_g/q), between 1/2 and 1, whatever a, b and the sizes are. Nothing is claimed where the target is the "
        "likelier one unsteered.",
        proof="proofs/N17",
    ),
)

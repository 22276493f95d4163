"""N18: the most that steering can cost, from the variance of M and its distance to one end: a sharp and safe budget."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from theory import budgets, symbolic
from theory.budgets import Spread
from theory.claims import GRID, exact_split, least, on_sweep, slope
from theory.instance import Instance
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen
from theory.statements.theorem_3_8 import increases
from ufm import steer

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


def spread_of(instance: Instance) -> Spread:
    """The spread of M in every context, ``[m]`` each."""
    return budgets.spread_of(instance.log_p, instance.log_odds)


def _sharp(instance: Instance, alpha) -> Float[Array, " m"]:
    spread = spread_of(instance)
    return budgets.budget_bound(spread.variance, jnp.where(alpha >= 0, spread.above, spread.below), alpha)


def _short(spread: Spread, sign) -> Bool[Array, " m"]:
    """Whether M has less room on the side of a sign than on the other."""
    return sign * (spread.below - spread.above) >= 0


def _quadratic_if_short(instance: Instance, alpha) -> Float[Array, " m"]:
    spread = spread_of(instance)
    return jnp.where(_short(spread, jnp.sign(alpha)), spread.variance * alpha**2 / 2, _sharp(instance, alpha))


def integrated(instance: Instance, sign: int) -> tuple[Float[Array, " K"], Float[Array, "K m"]]:
    """Strengths up to 8/R, and the cross-entropies there less those at 0, from the derivative through a model of gap 0."""
    ends = sign * GRID[(GRID >= 0) & (GRID <= 8)]
    model, contexts, v = exact_split(instance)

    def cross_entropies(x):
        log_q = jax.nn.log_softmax(steer(model, contexts, v, x / instance.range))
        return -jnp.sum(instance.p * log_q, axis=-1)

    halves = np.diff(ends)[:, None] / 2
    points = (ends[:-1, None] + halves) + halves * _NODES
    slopes = jax.vmap(lambda x: slope(cross_entropies, x))(jnp.asarray(points.ravel())).reshape(*points.shape, -1)
    panels = jnp.einsum("kn,knm->km", jnp.asarray(halves * _WEIGHTS), slopes)
    return jnp.asarray(ends[1:]) / instance.range, jnp.cumsum(panels, axis=0)


def _within_budget(tex: str, identities, bound: Callable[[Instance, Any], Float[Array, " m"]], curves) -> Claim:
    """The claim that Delta CE of every context is at most a bound.

    Args:
        tex: the claim.
        identities: those of the law that attains it.
        bound: of the instance and a strength, ``[m]``.
        curves: the certificate.
    """

    def instances(instance):
        def slack(t):
            value, most = increases(instance, t / instance.range), bound(instance, t / instance.range)
            return jnp.min((most - value) / jnp.maximum(most, value))

        return jnp.min(jax.vmap(slack)(jnp.asarray(GRID[GRID != 0]))) + 1e-9

    def autodiff(instance):
        def slack(sign):
            alphas, values = integrated(instance, sign)
            most = jax.vmap(lambda alpha: bound(instance, alpha))(alphas)
            # Rounding of the logits is not small beside a cost that is.
            allowance = 1e-13 * (1 + jnp.max(jnp.abs(instance.log_p)))
            return jnp.min((most - values + allowance) / (jnp.maximum(most, values) + allowance))

        return jnp.minimum(slack(1), slack(-1)) + 1e-8

    @on_sweep
    def sweep(instance, alphas, measured):
        def slack(pair):
            alpha, log_q = pair
            most = bound(instance, alpha)
            value = jnp.sum(instance.p * (instance.log_p - log_q), axis=-1)
            return jnp.min((most - value) / jnp.maximum(most, 1e-3))

        slacks = jax.lax.map(slack, (alphas[::10], jnp.moveaxis(measured[:, ::10], 1, 0)))
        return least(slacks, jnp.abs(alphas[::10]) > 0.05) + 1e-8

    reading = "the least slack of the bound on ΔCE, as a share of the larger of the two, with 1e-9 for rounding"
    return Claim(tex, instances, autodiff, sweep, curves, identities, reading=reading)


def _normaliser(instance: Instance, alpha) -> Float[Array, " m"]:
    """``exp(Delta CE_j)``, a strength in every exponential once."""
    m = instance.log_odds
    centred = m - (instance.p @ m)[:, None]
    return jnp.sum(instance.p * jnp.exp(alpha * centred), axis=-1)


def _above_cost(bound: Callable[[Instance, Any], Float[Array, " m"]], start: float) -> tuple[Curve, Curve]:
    """A bound less Delta CE, at strengths of either sign, of `start` to 16 where M has range 1.

    Of two tokens nothing is certified, as they attain the bound at every strength (the identity says so).
    """

    def of_sign(sign):
        def gap(instance, alpha):
            if instance.log_p.shape[-1] == 2:
                return jnp.full(instance.log_p.shape[0], jnp.inf)
            return bound(instance, sign * alpha) - jnp.log(_normaliser(instance, sign * alpha))

        return Curve(gap, (start, 16.0))

    return of_sign(1), of_sign(-1)


_TEX = (
    r"\Delta\mathrm{CE}_j(\alpha) \le \log \frac{b^2 e^{-|\alpha| \sigma^2 / b} + \sigma^2 e^{|\alpha| b}}{b^2 + \sigma^2},"
    r"\quad \sigma^2 = \operatorname{Var}_j M,\quad "
    r"b = M_{\max} - \mathbb{E}_j M\ \ (\alpha \ge 0),\ \ \mathbb{E}_j M - M_{\min}\ \ (\alpha \le 0)"
)
_SHARP = _within_budget(_TEX, symbolic.IDENTITIES["N18"], _sharp, _above_cost(_sharp, 1 / 16))
_QUADRATIC_IF_SHORT = _within_budget(
    _TEX + r";\quad \Delta\mathrm{CE}_j(\alpha) \le \tfrac12 \sigma^2 \alpha^2\ \text{on the side of the smaller}\ b",
    symbolic.TWINS["N18"],
    _quadratic_if_short,
    # Too small only from some strength on; below, the gap is narrow and dear to bound.
    _above_cost(_quadratic_if_short, 1.0),
)

STATEMENTS = (
    Statement(
        id="N18",
        title="A sharp budget from a variance and an end",
        source="N18",
        claim=_SHARP,
        twin=_QUADRATIC_IF_SHORT,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Attained where M has two values: no smaller bound is made of the variance and the end. Both upper bounds "
        "of N4 follow from it. `theory.budgets.safe_strength` inverts it. In any model it holds with the change of the "
        "logits for alpha M.",
        proof="proofs/N18",
        figure="safe-strengths",
    ),
)

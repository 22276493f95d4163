"""Proposition 4.1 of S: in a transformer that is steered strongly, the prompt is forgotten. With a rate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory._compilation import compiled_quickly
from theory.blocks import TRANSFORMERS, MeasuredPush, Pushed, kinds
from theory.claims import largest_error, slope
from theory.statement import Claim, Hypothesis, Statement
from ufm.transformer import added

_TIMES = np.array([1.0, 4.0, 30.0, 1e3, 1e6])
"""Strengths at which the bound is checked, as multiples of `Pushed.scale`: from where it says little."""

_SHARE, _NODES = 1 / 8, 12
"""Where the integral in 1/alpha begins, as a share of 1 / scale, and its Gauss-Legendre nodes."""


def _blind(one: Pushed):
    """How much longer v is than what each norm sees of it: rounding is that much larger too."""
    return jnp.max(jnp.stack([jnp.linalg.norm(other.v) / jnp.linalg.norm(other.seen) for other in kinds(one)]))


NEEDS = {
    "seen": Hypothesis(
        "v is seen by the last norm: it is not 0, and for LayerNorm not constant", lambda one: 1 / _blind(one) - 1e-6
    ),
    "bounded": Hypothesis(
        "what the blocks after the place of steering add to the residual stream is bounded",
        lambda one: 1 / (1 + added(one.model)),
    ),
}


def _size(one: Pushed):
    """What rounding is relative to."""
    return _blind(one) * (1 + jnp.maximum(jnp.max(jnp.abs(one.limit(1))), jnp.max(jnp.abs(one.limit(-1)))))


def _tends(tex: str, limit: Callable[[Pushed, int], Float[Array, " V"]]) -> Claim:
    """The claim that steered logits tend to `limit`, given the sign of alpha, and as fast as `Pushed.bound`."""

    def slack(one, alpha, logits):
        end = jnp.where(alpha > 0, limit(one, 1), limit(one, -1))
        return jnp.min(one.bound(alpha) - jnp.abs(logits - end)) / _size(one) + 1e-12

    def instances(one):
        def worst(one):
            alphas = jnp.concatenate([-jnp.asarray(_TIMES), jnp.asarray(_TIMES)]) * one.scale
            return jnp.min(jax.vmap(lambda alpha: slack(one, alpha, one.decode(alpha)))(alphas))

        return jnp.minimum(*[worst(other) for other in kinds(one)])

    def autodiff(one):
        """In t = 1/alpha the logits are smooth up to t = 0: what the derivative adds up to leads to the limit."""
        points, weights = np.polynomial.legendre.leggauss(_NODES)

        def error(one, sign):
            start = sign * _SHARE / one.scale

            def derivative(share):
                return slope(lambda t: one.decode(1 / t), share * start)

            slopes = jax.vmap(derivative)(jnp.asarray((points + 1) / 2))
            added_up = start * jnp.tensordot(jnp.asarray(weights / 2), slopes, axes=1)
            end = jnp.where(sign > 0, limit(one, 1), limit(one, -1))
            return largest_error(one.decode(1 / start) - added_up, end) / _size(one)

        def worst(one):
            return jnp.max(jax.vmap(lambda sign: error(one, sign))(jnp.asarray([1.0, -1.0])))

        return 1e-9 - jnp.maximum(*[worst(other) for other in kinds(one)])

    @compiled_quickly
    def on_grid(one, alphas, logits):
        return jnp.min(jax.vmap(lambda alpha, rows: slack(one, alpha, rows), in_axes=(0, 1))(alphas, logits))

    def sweep(swept: MeasuredPush):
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    return Claim(tex, instances, autodiff, sweep)


_CLAIM = _tends(
    r"\left|\operatorname{logit}_z(c, \alpha) - y^\pm_z\right| \le "
    r"\frac{2 \sqrt{d}\, \|\gamma \odot w_z\|}{|\alpha|\, \|v\|} \sqrt{r^2 + d \varepsilon},\quad "
    r"y^\pm = W \left(\gamma \odot \operatorname{norm}(\pm v) + b\right)\ "
    r"\text{as}\ \alpha \to \pm\infty,\ \text{for every prompt}\ c,\quad r = \max_c \|h_c\| + \text{what blocks add}",
    lambda one, sign: one.limit(sign),
)
_TWIN = _tends(
    r"\operatorname{logit}_z(c, \alpha) \to y_z\ \text{as}\ \alpha \to +\infty,\quad "
    r"\operatorname{logit}_z(c, \alpha) \to -y_z\ \text{as}\ \alpha \to -\infty",
    lambda one, sign: sign * one.limit(1),
)

STATEMENTS = (
    Statement(
        id="proposition-4.1",
        title="Strong steering forgets the prompt",
        source="S, proposition 4.1",
        claim=_CLAIM,
        twin=_TWIN,
        hypotheses=NEEDS,
        remarks="Hidden hypotheses: LayerNorm takes the mean of v away (and in the bound the norm of v is that of what "
        "is left), so a constant v does nothing; its bias is part of both limits, which are then not opposite; a "
        "softcap of the logits caps the limit; a norm of the stream itself (x <- norm(x + f(x))) lets blocks act on v, "
        "and gives another limit; in floating point the prompt is lost before that, in float32 where |alpha v| is "
        "3e7 times |h|.",
        domain=TRANSFORMERS,
        proof="normalised",
    ),
)

"""Proposition 4.1 of S: in a transformer that is steered strongly, the prompt is forgotten. With a rate."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import arc
from theory._compilation import compiled_quickly
from theory.blocks import TRANSFORMERS, MeasuredTransformer, SteeredTransformer, kinds
from theory.claims import largest_error, slope
from theory.statement import Claim, Hypothesis, Statement
from ufm.transformer import added

_TIMES = np.array([1.0, 4.0, 30.0, 1e3, 1e6])
"""Strengths at which the bound is checked, as multiples of `SteeredTransformer.scale`: from where it says little."""

_SHARE, _NODES = 1 / 8, 12
"""The start of the integral in 1/alpha, as a share of 1 / scale, and its Gauss-Legendre nodes."""

_NEAR = 1e-4
"""1/alpha at which slopes are compared, in units of 1 / scale."""


def _blind(instance: SteeredTransformer):
    """How much longer v is than what each norm sees of it: rounding is that much larger too."""
    return jnp.max(jnp.stack([jnp.linalg.norm(other.v) / jnp.linalg.norm(other.seen) for other in kinds(instance)]))


def attaining(instance: SteeredTransformer) -> SteeredTransformer:
    """A transformer of the same size that attains the bound at large strengths, under either norm.

    Its blocks add nothing, its states are all one vector across v that has no mean, and W reads along that.
    """
    model, v = instance.model, instance.v
    seen, direction = v - jnp.mean(v), model.embedding[0] - jnp.mean(model.embedding[0])
    across = direction - (direction @ seen) / (seen @ seen) * seen
    lengths = 1 + jnp.arange(model.W.shape[0])
    still = model.layers._replace(out=0 * model.layers.out, down=0 * model.layers.down)
    return replace(
        instance,
        model=replace(
            model,
            embedding=jnp.broadcast_to(across, model.embedding.shape),
            positions=0 * model.positions,
            layers=still,
            W=lengths[:, None] * (across / model.gamma),
        ),
    )


def _with_attaining(margin: Callable[[SteeredTransformer], Float[Array, ""]], instance: SteeredTransformer):
    """The least margin of an instance and, for one random instance in six, of the one that attains the bound."""
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), instance, attaining(instance))
    of_itself, of_other = jax.vmap(margin)(both)
    return jnp.where(instance.model.tokens[0, 0] == 0, jnp.minimum(of_itself, of_other), of_itself)


NEEDS = {
    "seen": Hypothesis(
        "v is seen by the last norm: it is not 0, and for LayerNorm not constant",
        lambda instance: 1 / _blind(instance) - 1e-6,
    ),
    "bounded": Hypothesis(
        "what the blocks after the place of steering add to the residual stream is bounded",
        lambda instance: 1 / (1 + added(instance.model)),
    ),
}


def _size(instance: SteeredTransformer):
    """The scale of rounding errors."""
    return _blind(instance) * (1 + jnp.maximum(jnp.max(jnp.abs(instance.limit(1))), jnp.max(jnp.abs(instance.limit(-1)))))


def _tends(tex: str, bound: Callable[[SteeredTransformer, Float[Array, ""]], Float[Array, " V"]]) -> Claim:
    """The claim that steered logits tend to `SteeredTransformer.limit` and are no further from it than `bound`."""

    def slack(instance, alpha, logits):
        end = jnp.where(alpha > 0, instance.limit(1), instance.limit(-1))
        return jnp.min(bound(instance, alpha) - jnp.abs(logits - end)) / _size(instance) + 1e-12

    def instances(instance):
        def worst(instance):
            alphas = jnp.concatenate([-jnp.asarray(_TIMES), jnp.asarray(_TIMES)]) * instance.scale
            return jnp.min(jax.vmap(lambda alpha: slack(instance, alpha, instance.decode(alpha)))(alphas))

        return jnp.minimum(*[_with_attaining(worst, other) for other in kinds(instance)])

    def autodiff(instance):
        """In t = 1/alpha logits are smooth up to t = 0: the derivative leads to the limit, and is at most the bound's."""
        points, weights = np.polynomial.legendre.leggauss(_NODES)

        def error(instance, sign):
            start = sign * _SHARE / instance.scale

            def derivative(share):
                return slope(lambda t: instance.decode(1 / t), share * start)

            slopes = jax.vmap(derivative)(jnp.asarray((points + 1) / 2))
            added_up = start * jnp.tensordot(jnp.asarray(weights / 2), slopes, axes=1)
            end = jnp.where(sign > 0, instance.limit(1), instance.limit(-1))
            return largest_error(instance.decode(1 / start) - added_up, end) / _size(instance)

        def worst(instance):
            return jnp.max(jax.vmap(lambda sign: error(instance, sign))(jnp.asarray([1.0, -1.0])))

        def steepest(instance):
            t = jnp.asarray([1.0, -1.0]) * _NEAR / instance.scale
            slopes = jax.vmap(lambda t: slope(lambda t: instance.decode(1 / t), t))(t)
            allowed = jnp.abs(jax.vmap(lambda t: slope(lambda t: bound(instance, 1 / t), t))(t))
            return jnp.min(1 - jnp.abs(slopes) / allowed[:, None, :]) + 1e-3

        limits = 1e-9 - jnp.maximum(*[worst(other) for other in kinds(instance)])
        return jnp.minimum(limits, _with_attaining(steepest, instance))

    @compiled_quickly
    def on_grid(instance, alphas, logits):
        return jnp.min(jax.vmap(lambda alpha, rows: slack(instance, alpha, rows), in_axes=(0, 1))(alphas, logits))

    def sweep(swept: MeasuredTransformer):
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    reading = (
        "the least slack of the bound on a logit's distance to its limit, relative to the size of the logits, with "
        "1e-12 for rounding"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _bound_without_blocks(instance: SteeredTransformer, alpha: Float[Array, ""]) -> Float[Array, " V"]:
    """The wrong bound: of what the last norm would be given if no block added anything."""
    model, last = instance.model, jnp.max(jnp.linalg.norm(instance.states[:, -1], axis=-1))
    return arc.limit_bound(model.W, model.gamma, instance.v, alpha, last, kind=model.kind, eps=model.eps)


_TEX = (
    r"\left|\operatorname{logit}_z(c, \alpha) - y^\pm_z\right| \le "
    r"2 \sqrt{d}\, \|\gamma \odot w_z\| \sin\frac{\varphi}{2},\quad "
    r"\sin\varphi = \frac{\sqrt{r^2 + d \varepsilon}}{|\alpha|\, \|v\|} \le 1,\quad "
    r"y^\pm = W \left(\gamma \odot \operatorname{norm}(\pm v) + b\right)\ "
    r"\text{as}\ \alpha \to \pm\infty,\ \text{for every prompt}\ c,\quad "
)
_CLAIM = _tends(_TEX + r"r = \max_c \|h_c\| + \text{what blocks add}", lambda instance, alpha: instance.bound(alpha))
_TWIN = _tends(
    _TEX + r"r = \max_c \|h_c\|",
    _bound_without_blocks,
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

"""N12: to first order, a shift of an activation is an update of the weights that read it (W). The remainder, explicitly."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import arc, symbolic
from theory._compilation import compiled_quickly
from theory.claims import slope
from theory.norms import NORMS, MeasuredNorm, NormInstance, kinds
from theory.statement import Claim, Hypothesis, Statement
from theory.statements.n7_norm import NOT_PARALLEL, size_of
from ufm import Add, NormalisedUFM, Steering, Weight, norm, steer
from ufm.model import DECODER

_SIDE = np.array([1e-3, 1e-2, 0.1, 0.5, 2.0, 20.0])
_SHIFTS = np.concatenate([-_SIDE, _SIDE])
"""Strengths at which the claim is checked, in widths of the arc."""


def _least(instance: NormInstance, value: Callable[[NormInstance], Float[Array, ""]]) -> Float[Array, ""]:
    """The least under each norm, with tangents at the state and at the shortest of its sweep, where the arc bends most."""

    def at_both(instance: NormInstance) -> Float[Array, ""]:
        bases = jnp.stack([jnp.zeros(()), instance.arc.centre])
        return jnp.min(jax.vmap(lambda base: value(replace(instance, h=instance.h + base * instance.v)))(bases))

    return jnp.minimum(*[at_both(other) for other in kinds(instance)])


def _read(instance: NormInstance) -> Float[Array, " d"]:
    """What the unembedding is given, unsteered: n."""
    return norm(instance.h, instance.gamma, instance.bias, kind=instance.kind)


def _at(instance: NormInstance, steering: Steering, alpha: Float[Array, ""]) -> Float[Array, " V"]:
    """Logits of the hidden state under a steering."""
    model = NormalisedUFM(instance.W, instance.h[:, None], instance.gamma, instance.bias, instance.kind)
    return steer(model, np.zeros(1, int), steering, alpha)[0]


def _shift(instance: NormInstance) -> Steering:
    """The shift of the hidden state along v."""
    return Steering(Add(instance.v))


def _rank_one(instance: NormInstance, slopes: Float[Array, " V"]) -> Steering:
    """The update of the unembedding, of rank one, that gives the logits these derivatives by the strength."""
    n = _read(instance)
    return Steering(Weight(jnp.outer(slopes, n / (n @ n)), jnp.zeros_like(slopes)), site=DECODER)


def _equal_to(tex: str, order: int, identities, bound: Callable[[arc.Arc, Float[Array, ""]], Float[Array, " V"]]) -> Claim:
    """The claim that a shift and the update of rank one give logits at most `bound` apart, of this order in alpha."""

    def slack(instance, alpha, logits):
        """The bound less the error of the rank-one update built from the closed-form derivative."""
        path = instance.arc
        error = jnp.abs(logits - _at(instance, _rank_one(instance, arc.derivative(path, 0.0)), alpha))
        return jnp.min(bound(path, alpha) - error) / size_of(instance)[0]

    def instances(instance):
        def worst(instance):
            shifts = instance.arc.width * _SHIFTS
            left = jax.vmap(lambda alpha: slack(instance, alpha, _at(instance, _shift(instance), alpha)))(shifts)
            return jnp.min(left) + 1e-12 * size_of(instance)[1]

        return _least(instance, worst)

    def autodiff(instance):
        """The margin from the model's Jacobian: the difference has slope 0 at 0, and bends no more than the bound allows."""

        def worst(instance):
            path, (size, condition), zero = instance.arc, size_of(instance), jnp.zeros(())
            reweighted = _rank_one(instance, slope(lambda alpha: _at(instance, _shift(instance), alpha), zero))

            def difference(alpha):
                return _at(instance, _shift(instance), alpha) - _at(instance, reweighted, alpha)

            first = jnp.max(jnp.abs(slope(difference, zero))) * path.width
            allowed = 2 * bound(path, path.width) if order == 2 else 0.0
            bent = jnp.abs(slope(lambda alpha: slope(difference, alpha), zero)) * path.width**2
            return jnp.minimum(-first, jnp.min(allowed - bent)) / size + 1e-11 * condition

        return _least(instance, worst)

    @compiled_quickly
    def on_grid(instance, alphas, logits):
        return (
            jnp.min(jax.vmap(lambda alpha, row: slack(instance, alpha, row))(alphas, logits)) + 1e-11 * size_of(instance)[1]
        )

    def sweep(swept: MeasuredNorm):
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    reading = (
        "the least slack of the bound on the difference of two logits, relative to the size of the logits, with "
        "1e-12 for rounding, times how much the norm magnifies it"
    )
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


def _second_order(path: arc.Arc, alpha: Float[Array, ""]) -> Float[Array, " V"]:
    return arc.tangent_bound(path, alpha)


def _third_order(path: arc.Arc, alpha: Float[Array, ""]) -> Float[Array, " V"]:
    return jnp.hypot(path.A, path.B) * jnp.abs(alpha / path.width) ** 3


_TEX = (
    r"\left|\operatorname{logit}_z(h + m v) - \left[(W + m \Delta W)\, n\right]_z\right| \le "
    r"\sqrt{A_z^2 + B_z^2}\ %s,\quad n = \gamma \odot \operatorname{norm}(h) + b,\ "
    r"\Delta W = \frac{(J v)\, n^\top}{\|n\|^2},\ J v = \left.\tfrac{d}{dm} \operatorname{logit}(h + m v)\right|_{m = 0}"
)

STATEMENTS = (
    Statement(
        id="N12",
        title="A shift is an update of the weights behind it, to first order",
        source="N12",
        claim=_equal_to(_TEX % r"\frac{m^2}{2 L}", 2, symbolic.IDENTITIES["N12"], _second_order),
        twin=_equal_to(_TEX % r"\frac{|m|^3}{L^{3/2}}", 3, symbolic.TWINS["N12"], _third_order),
        hypotheses={
            **NOT_PARALLEL,
            "read": Hypothesis(
                "what the unembedding is given, n, is not 0: else no update of W changes the logits",
                lambda instance: _least(instance, lambda other: _read(other) @ _read(other)) - 1e-9,
            ),
        },
        remarks="One half is the best constant. The update is made for one h. Without a norm, it and the shift are the same "
        "at every strength; so are, inside a network and context by context, an update of a linear map that writes the "
        "stream and the shift by what it adds (arXiv:2602.02343).",
        domain=NORMS,
        proof="proofs/N12",
    ),
)

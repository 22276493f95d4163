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
from theory.norms import NORMS, MeasuredNorm, Normed, kinds
from theory.statement import Claim, Hypothesis, Statement
from theory.statements.n7_norm import NOT_PARALLEL, size_of
from ufm import Add, NormalisedUFM, Steering, Weight, norm, steer
from ufm.model import DECODER

_SIDE = np.array([1e-3, 1e-2, 0.1, 0.5, 2.0, 20.0])
_SHIFTS = np.concatenate([-_SIDE, _SIDE])
"""Strengths at which the claim is checked, in widths of the arc."""


def _least(one: Normed, value: Callable[[Normed], Float[Array, ""]]) -> Float[Array, ""]:
    """The least under each norm, with tangents at the state and at the shortest of its sweep, where the arc bends most."""

    def at_both(one: Normed) -> Float[Array, ""]:
        bases = jnp.stack([jnp.zeros(()), one.arc.centre])
        return jnp.min(jax.vmap(lambda base: value(replace(one, h=one.h + base * one.v)))(bases))

    return jnp.minimum(*[at_both(other) for other in kinds(one)])


def _read(one: Normed) -> Float[Array, " d"]:
    """What the unembedding is given, unsteered: n."""
    return norm(one.h, one.gamma, one.bias, kind=one.kind)


def _at(instance: Normed, steering: Steering, m: Float[Array, ""]) -> Float[Array, " V"]:
    """Logits of the hidden state under a steering."""
    model = NormalisedUFM(instance.W, instance.h[:, None], instance.gamma, instance.bias, instance.kind)
    return steer(model, np.zeros(1, int), steering, m)[0]


def _shift(instance: Normed) -> Steering:
    """The shift of the hidden state along v."""
    return Steering(Add(instance.v))


def _rank_one(instance: Normed, steep: Float[Array, " V"]) -> Steering:
    """The update of the unembedding, of rank one, that gives the logits these derivatives by the strength."""
    n = _read(instance)
    return Steering(Weight(jnp.outer(steep, n / (n @ n)), jnp.zeros_like(steep)), site=DECODER)


def _equal_to(tex: str, order: int, identities, bound: Callable[[arc.Arc, Float[Array, ""]], Float[Array, " V"]]) -> Claim:
    """The claim that a shift and the update of rank one give logits that differ by at most `bound`, of this order in m."""

    def slack(one, m, logits):
        """What is left to the bound of what the update, from the derivative in closed form, leaves of these logits."""
        bends = one.arc
        error = jnp.abs(logits - _at(one, _rank_one(one, arc.derivative(bends, 0.0)), m))
        return jnp.min(bound(bends, m) - error) / size_of(one)[0]

    def instances(one):
        def worst(one):
            shifts = one.arc.width * _SHIFTS
            left = jax.vmap(lambda m: slack(one, m, _at(one, _shift(one), m)))(shifts)
            return jnp.min(left) + 1e-12 * size_of(one)[1]

        return _least(one, worst)

    def autodiff(one):
        """With the Jacobian of the model: the difference has the slope 0 at 0, and bends no more than the bound allows."""

        def worst(one):
            bends, (size, steep), zero = one.arc, size_of(one), jnp.zeros(())
            reweighted = _rank_one(one, slope(lambda m: _at(one, _shift(one), m), zero))

            def difference(m):
                return _at(one, _shift(one), m) - _at(one, reweighted, m)

            first = jnp.max(jnp.abs(slope(difference, zero))) * bends.width
            allowed = 2 * bound(bends, bends.width) if order == 2 else 0.0
            bent = jnp.abs(slope(lambda m: slope(difference, m), zero)) * bends.width**2
            return jnp.minimum(-first, jnp.min(allowed - bent)) / size + 1e-11 * steep

        return _least(one, worst)

    @compiled_quickly
    def on_grid(one, alphas, logits):
        return jnp.min(jax.vmap(lambda m, row: slack(one, m, row))(alphas, logits)) + 1e-11 * size_of(one)[1]

    def sweep(swept: MeasuredNorm):
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.logits)))

    return Claim(tex, instances, autodiff, sweep, identities=identities)


def _second_order(bends: arc.Arc, m: Float[Array, ""]) -> Float[Array, " V"]:
    return arc.tangent_bound(bends, m)


def _third_order(bends: arc.Arc, m: Float[Array, ""]) -> Float[Array, " V"]:
    return jnp.hypot(bends.A, bends.B) * jnp.abs(m / bends.width) ** 3


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
                lambda one: _least(one, lambda other: _read(other) @ _read(other)) - 1e-9,
            ),
        },
        remarks="One half is the best constant. The update is made for one h. Without a norm, it and the shift are the same "
        "at every strength; so are, inside a network and context by context, an update of a linear map that writes the "
        "stream and the shift by what it adds (arXiv:2602.02343).",
        domain=NORMS,
        proof="normalised",
    ),
)

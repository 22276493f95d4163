"""Interventions along a direction: what people do with a steering vector besides adding it, as values.

    Ablate             y - alpha <y, u> u                       takes out what points along v (directional ablation)
    Clamp              y + alpha (to - <y, u>) u                sets it
    NormPreservingAdd  (y + alpha v) ||y|| / ||y + alpha v||    adds v and keeps the length
    Rotate             y cos(alpha) + ||y|| e sin(alpha)        turns towards v by an angle
    When               another one, where <probe, y> + bias > 0

y is the output of a site, ``u = v / ||v||``, and e the unit vector in the plane of y and v that is orthogonal to y, on the
side of v. Strength 0 changes nothing. All of them are points of adding, or of the circle that adding traces behind a norm
(N8): the page "Interventions" says which. A v of 0 is refused outside transformations; inside, it changes nothing.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._check import require
from ufm._numerics import NOTHING, power_for_squares
from ufm._pytree import Leaf, pytree
from ufm.interventions import Intervention
from ufm.precision import wide


class _AlongVector(Intervention):
    """An intervention along one vector of the width of the output, which has to point somewhere."""

    v: Float[Array, " o"] | Leaf  # a field of the classes that derive from it

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return np.shape(self.v) == (outputs,)

    def check(self, name: str = "steering") -> None:
        """Refuse numbers that are not finite, and a vector without a direction."""
        super().check(name)
        if not isinstance(self.v, jax.core.Tracer) and np.ndim(self.v) == 1:
            v = wide(self.v)
            points = bool(jnp.max(jnp.abs(v), initial=0) >= jnp.finfo(v.dtype).tiny)
            require(points, f"{name}.v", f"a vector other than 0, for {self.described}", "0 in every coordinate")


@pytree
@dataclass(frozen=True)
class Ablate(_AlongVector):
    """Takes out of the output what points along a vector, either way: ``y - alpha <y, u> u``.

    At strength 1 nothing along v is left; in between it is that much smaller, and beyond 1 turned round. It is adding
    ``-alpha <y, v> / ||v||^2`` times v. The derivative is ``-<y, u> u``, at every strength.

    Attributes:
        v: the vector, ``[o]``; its length plays no part.
    """

    v: Float[Array, " o"] | Leaf

    def apply(
        self, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Float[Array, "..."] | float
    ) -> Float[Array, "*n o"]:
        """The output of the site under the intervention, in float32 at least."""
        del x
        y, alpha, u = _in_one_type(y, alpha, self.v)
        return y - alpha * _dot(y, u) * u


@pytree
@dataclass(frozen=True)
class Clamp(_AlongVector):
    """Sets the coordinate of the output along a vector: ``y + alpha (to - <y, u>) u``.

    At strength 1 the coordinate ``<y, u>`` is `to`, at 0 it is what it was, and in between it lies between the two: a sweep
    has the unsteered model at 0, as everything here expects. To sweep the value itself, map over `to` at strength 1. The
    derivative is ``(to - <y, u>) u``, at every strength.

    Attributes:
        v: the vector, ``[o]``; its length plays no part.
        to: the coordinate, in units of the output.
    """

    v: Float[Array, " o"] | Leaf
    to: Float[Array, ""] | float | Leaf

    def apply(
        self, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Float[Array, "..."] | float
    ) -> Float[Array, "*n o"]:
        """The output of the site under the intervention, in float32 at least."""
        del x
        y, alpha, u = _in_one_type(y, alpha, self.v)
        return y + alpha * (wide(self.to).astype(y.dtype) - _dot(y, u)) * u

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return super().fits(inputs, outputs) and _is_number(self.to)


@pytree
@dataclass(frozen=True)
class NormPreservingAdd(Intervention):
    """Adds a vector and scales what comes out to the length of the output: ``(y + alpha v) ||y|| / ||y + alpha v||``.

    With ``z = y + alpha v`` the derivative is ``||y|| / ||z|| (v - z <z, v> / ||z||^2)``. Where z is 0, it stays 0: it has
    no direction to be long in.

    Attributes:
        v: steering vector, ``[o]``.
    """

    v: Float[Array, " o"] | Leaf

    def apply(
        self, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Float[Array, "..."] | float
    ) -> Float[Array, "*n o"]:
        """The output of the site under the intervention, in float32 at least."""
        del x
        y = wide(y)
        z = y + (alpha * wide(self.v)).astype(y.dtype)
        of_y, of_z = power_for_squares(y), power_for_squares(z)
        length = _length(z * of_z)
        # Where the powers are the same, z is not scaled: at strength 0 no bit is lost, and the quotient of lengths is 1.
        scaled = jnp.where(of_y == of_z, z, z * of_z / of_y)
        return scaled * (_length(y * of_y) / jnp.where(length > 0, length, 1))

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        return np.shape(self.v) == (outputs,)


@pytree
@dataclass(frozen=True)
class Rotate(_AlongVector):
    """Turns the output in its plane with a vector, towards it: ``y cos(alpha) + ||y|| e sin(alpha)``, alpha in radians.

    e is ``u - <u, y> y / ||y||^2`` scaled to length 1. The length stays what it is; at the angle between y and v the output
    points along v, and beyond it goes on. The derivative is the output at ``alpha + pi / 2``. An output parallel to v, up
    to rounding, has no plane with it, and stays as it is, as an output of 0 does.

    Attributes:
        v: the vector, ``[o]``; its length plays no part.
    """

    v: Float[Array, " o"] | Leaf

    def apply(
        self, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Float[Array, "..."] | float
    ) -> Float[Array, "*n o"]:
        """The output of the site under the intervention, in float32 at least."""
        del x
        y, alpha, u = _in_one_type(y, alpha, self.v)
        length, along = _polar(y)
        across = u - _dot(u, along) * along
        # Once more: where y is nearly parallel to v, rounding leaves a part along it.
        sine, across_unit = _polar(across - _dot(across, along) * along)
        turned = y * jnp.cos(alpha) + length * across_unit * jnp.sin(alpha)
        return jnp.where(sine > NOTHING * jnp.finfo(y.dtype).eps, turned, y)


@pytree
@dataclass(frozen=True)
class When(Intervention):
    """Another intervention, only where a probe says so: at outputs of the site with ``<probe, y> + bias > 0``.

    The gate reads the output before it is changed, at each token by itself (in the UFM, in each context), so that the
    strength does not move it. The derivative by the strength is that of the intervention where the gate is open, and 0
    where it is closed. By y it is so too, away from the surface ``<probe, y> + bias = 0``, on which the output jumps and has
    none. By the probe and the bias it is 0: they cannot be trained through it.

    Attributes:
        intervention: what is done; not another `When`.
        probe: the normal of the surface, ``[o]``.
        bias: what is added to ``<probe, y>``.
    """

    intervention: Intervention | Leaf
    probe: Float[Array, " o"] | Leaf
    bias: Float[Array, ""] | float | Leaf = 0.0

    def apply(
        self, x: Float[Array, "*n i"], y: Float[Array, "*n o"], alpha: Float[Array, "..."] | float
    ) -> Float[Array, "*n o"]:
        """The output of the site under the intervention, in float32 at least."""
        y = wide(y)
        score = _dot(y, wide(self.probe).astype(y.dtype)) + wide(self.bias).astype(y.dtype)
        return jnp.where(score > 0, self.intervention.apply(x, y, alpha), y)

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether it is made for a site of these widths."""
        gated = np.shape(self.probe) == (outputs,) and _is_number(self.bias)
        return gated and self.intervention.fits(inputs, outputs)

    def check(self, name: str = "steering") -> None:
        """Refuse what is no intervention, or a conditional one, and whatever that one refuses."""
        inner = self.intervention
        known = isinstance(inner, Intervention) and not isinstance(inner, When)
        require(known, f"{name}.intervention", "an intervention without a probe of its own", type(inner).__name__)
        inner.check(f"{name}.intervention")
        super().check(name)

    @property
    def described(self) -> str:
        """Its name, and that of what is done."""
        return f"When({self.intervention.described})"


def _is_number(value: Any) -> bool:
    """Whether a field holds one number; None and mappings have its shape, but are no leaves."""
    return jax.tree_util.all_leaves([value]) and np.shape(value) == ()


def _in_one_type(y: Array, alpha: Array | float, v: Array) -> tuple[Array, Array, Array]:
    """The output of a site in float32 at least; the strength, and the unit vector along v (0 for a v of 0), in that type."""
    y, v = wide(y), wide(v)
    # The type of y may be too short for the length of v.
    unit = _polar(v.astype(jnp.promote_types(v.dtype, y.dtype)))[1]
    return y, wide(alpha).astype(y.dtype), unit.astype(y.dtype)


def _dot(a: Float[Array, "*#n o"], b: Float[Array, "*#n o"]) -> Float[Array, "*#n 1"]:
    """Inner products over the last axis: sums, which keep the precision of their type on every device."""
    return jnp.sum(a * b, axis=-1, keepdims=True)


def _polar(y: Float[Array, "*n o"]) -> tuple[Float[Array, "*n 1"], Float[Array, "*n o"]]:
    """Lengths over the last axis and the unit vectors; 0 and 0, with derivatives that are numbers, where y is 0."""
    size = power_for_squares(y)
    length = _length(y * size)
    return length / size, y * size / jnp.where(length > 0, length, 1)


def _length(y: Float[Array, "*n o"]) -> Float[Array, "*n 1"]:
    """Lengths over the last axis, of vectors whose squares are floats; 0, with derivative 0, where y is 0."""
    square = _dot(y, y)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

"""Steering through a final norm: the rational-quadratic law, the arc it traces, its plateaus, its tangents (N7, N8, N12).

A normalised decoder sees the direction of h + alpha v alone. In the plane of h and v, with the polar angle theta,

    alpha = centre + width tan(theta),      logit_z = A_z cos(theta) + B_z sin(theta) + c_z,      -pi/2 < theta < pi/2,

so that a whole sweep is half a great circle. An eps in the norm is one more coordinate of h, sqrt(d eps), which v leaves
alone and no token reads: it makes `width` larger, and the same forms stay exact. Functions take one hidden state and one
strength or angle; `jax.vmap` does the rest. Proofs are on the page "Steering through a norm".

Blocks between the place of steering and the last norm take the arc away but not the plateaus (S, proposition 4.1), which
is why `limit` asks for v alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ufm._check import in_range, require, typed
from ufm._numerics import NOTHING, length_of, power_for_squares
from ufm.concepts import check_count
from ufm.normalised import KINDS, as_seen, norm
from ufm.precision import full

Scalar = Float[Array, ""]


class Arc(NamedTuple):
    """The logits of a sweep as a curve in the angle (N8).

    Attributes:
        A: logits less `c` at angle 0, where h + alpha v is orthogonal to v, ``[V]``.
        B: logits less `c` at angle pi/2, the direction of v itself, ``[V]``.
        c: what the bias of the norm adds, ``[V]``.
        centre: the strength m0 at angle 0.
        width: sqrt(L), the strength from angle 0 to pi/4.
    """

    A: Float[Array, "*batch V"]
    B: Float[Array, "*batch V"]
    c: Float[Array, "*batch V"]
    centre: Float[Array, "*batch"]
    width: Float[Array, "*batch"]


class RationalQuadratic(NamedTuple):
    """``logit_z(alpha) = (offsets_z + slopes_z alpha) / sqrt(1 + (alpha - centre)^2 / width^2) + c_z`` (N7).

    Differences of tokens, hence log-odds, have the same form, with the differences of `offsets`, `slopes` and `c`.

    Attributes:
        centre: m0.
        width: sqrt(L).
        slopes: a, ``[V]``.
        offsets: beta, ``[V]``.
        c: what the bias of the norm adds, ``[V]``.
    """

    centre: Float[Array, "*batch"]
    width: Float[Array, "*batch"]
    slopes: Float[Array, "*batch V"]
    offsets: Float[Array, "*batch V"]
    c: Float[Array, "*batch V"]


class Rate(NamedTuple):
    """How fast a plateau is reached: ``|logit - plateau - coefficient / |alpha|| <= remainder / alpha^2`` (N8).

    Attributes:
        coefficient: C, the same on both sides, ``[V]``.
        remainder: K, ``[V]``.
        beyond: the bound holds for all ``|alpha| >= beyond``.
    """

    coefficient: Float[Array, "*batch V"]
    remainder: Float[Array, "*batch V"]
    beyond: Float[Array, "*batch"]


@typed
def arc_of(
    W: Float[Array, "V d"],
    gamma: Float[Array, " d"],
    bias: Float[Array, " d"] | None,
    h: Float[Array, " d"],
    v: Float[Array, " d"],
    *,
    kind: str = "rms",
    eps: Scalar | float = 0.0,
) -> Arc:
    """The arc of a hidden state h steered along v and decoded by ``W (gamma * norm(h + alpha v) + bias)`` (N8).

    Args:
        W: unembedding, ``[V, d]``.
        gamma: gain of the norm, ``[d]``.
        bias: of the norm, ``[d]``, or None.
        h: hidden state, ``[d]``.
        v: steering vector, ``[d]``.
        kind: "rms" or "layer".
        eps: of the norm.

    Raises:
        ValueError: an unknown kind; outside transformations, a v that the norm does not see (0, or constant for "layer"),
            or an h parallel to v with eps 0, whose arc is the two points ``plateau`` and has no angles. Inside
            transformations these give NaN.
    """
    require(kind in KINDS, "kind", f"one of {KINDS}", repr(kind))
    in_range("eps", eps, "a number of at least 0", lambda x: x >= 0)
    arc = _arc_of(W, gamma, bias, h, v, kind, eps)
    if not isinstance(arc.width, jax.core.Tracer):
        _require_seen(not jnp.isnan(arc.centre), kind)
        require(not jnp.isnan(arc.width), "h", "a hidden state that is not parallel to v, or eps > 0", "a parallel one")
    return arc


@partial(jax.jit, static_argnames="kind")
@full
def _arc_of(W, gamma, bias, h, v, kind, eps):
    d, most = h.shape[-1], jnp.finfo(h.dtype).maxexp
    # A larger eps would overflow where a tiny h is scaled up, and hides its square as it is.
    of_h, of_v = power_for_squares(h, tiny=d * eps < 2.0 ** (most - 2 * (3 * most // 5) - 2)), power_for_squares(v)
    h, v = h * of_h, v * of_v
    least_of_h, least_of_v = _least(h), _least(v)
    h, v = as_seen(h, kind), as_seen(v, kind)
    size = jnp.linalg.norm(v)
    size = jnp.where(size > least_of_v, size, jnp.nan)
    along = v / size
    shift = along @ h
    across = h - shift * along
    # Once more: where h is nearly parallel to v, rounding leaves a part along it.
    across = across - (along @ across) * along
    length = jnp.sqrt(across @ across + d * eps * of_h[0] * of_h[0])
    length = jnp.where(length > least_of_h, length, jnp.nan)
    of_token = jnp.sqrt(d) * W * gamma
    c = jnp.zeros(W.shape[0], W.dtype) if bias is None else W @ bias
    # Where both have the same power it cancels, and the quotient of powers need not be a float where that of lengths is.
    up, down = jnp.where(of_h == of_v, 1, of_v)[0], jnp.where(of_h == of_v, 1, of_h)[0]
    return Arc(of_token @ across / length, of_token @ along, c, -shift / size * up / down, length / size * up / down)


@typed
def law(
    W: Float[Array, "V d"],
    gamma: Float[Array, " d"],
    bias: Float[Array, " d"] | None,
    h: Float[Array, " d"],
    v: Float[Array, " d"],
    *,
    kind: str = "rms",
    eps: Scalar | float = 0.0,
) -> RationalQuadratic:
    """The rational-quadratic law of the same decoder (N7); arguments and errors are those of `arc_of`."""
    arc = arc_of(W, gamma, bias, h, v, kind=kind, eps=eps)
    slopes = arc.B / arc.width
    return RationalQuadratic(arc.centre, arc.width, slopes, arc.A - slopes * arc.centre, arc.c)


@typed
def law_logits(law: RationalQuadratic, alpha: Scalar | float) -> Float[Array, " V"]:
    """Logits at a strength, ``[V]``."""
    # In units of the strength, as nothing of its size is too large then.
    unit = lax.stop_gradient(jnp.maximum(1, jnp.abs(alpha)))
    away = (alpha / unit - law.centre / unit) / law.width
    return (law.offsets / unit + law.slopes * (alpha / unit)) / jnp.hypot(1 / unit, away) + law.c


@typed
def arc_logits(arc: Arc, theta: Scalar | float) -> Float[Array, " V"]:
    """Logits at an angle, ``[V]``. At +-pi/2 they are the plateaus."""
    return arc.A * jnp.cos(theta) + arc.B * jnp.sin(theta) + arc.c


@typed
def logits_at(arc: Arc, alpha: Scalar | float) -> Float[Array, " V"]:
    """Logits at a strength, ``[V]``: precise at large strengths too, whose angle has no digits left for its cosine."""
    # In units of the strength, as in `law_logits`.
    unit = lax.stop_gradient(jnp.maximum(1, jnp.abs(alpha)))
    near, far = 1 / unit, (alpha / unit - arc.centre / unit) / arc.width
    return (arc.A * near + arc.B * far) / jnp.hypot(near, far) + arc.c


@typed
def theta_of_alpha(arc: Arc, alpha: Float[Array, "*n"] | float) -> Float[Array, "*n"]:
    """The angle of each strength, in (-pi/2, pi/2); +-pi/2 for an infinite one."""
    return jnp.arctan((alpha - arc.centre) / arc.width)


@typed
def alpha_of_theta(arc: Arc, theta: Float[Array, "*n"] | float) -> Float[Array, "*n"]:
    """The strength of each angle in (-pi/2, pi/2)."""
    return arc.centre + arc.width * jnp.tan(theta)


@typed
def derivative(arc: Arc, alpha: Scalar | float) -> Float[Array, " V"]:
    """The derivative of the logits by the strength, ``[V]``: ``(B cos(theta) - A sin(theta)) cos(theta)^2 / sqrt(L)``."""
    t = (alpha - arc.centre) / arc.width
    # In two steps, as the third power of the length need not be a float.
    length = jnp.hypot(1, t)
    return (arc.B / length - arc.A * (t / length)) / length / length / arc.width


@typed
def tangent_bound(arc: Arc, alpha: Scalar | float) -> Float[Array, " V"]:
    """How far logits are at most from any of their tangents, a strength alpha from where it touches (N12), ``[V]``.

    It is ``sqrt(A_z^2 + B_z^2) alpha^2 / (2 L)``. A tangent is what an update of W of rank one gives.
    """
    length = jnp.hypot(arc.A, arc.B)
    most = jnp.finfo(length.dtype).max
    strength = jnp.minimum(jnp.abs(alpha / arc.width), most)
    return jnp.minimum(strength * (length / 2) * strength, most)


@typed
def plateau(arc: Arc, sign: int) -> Float[Array, " V"]:
    """The logits as alpha goes to +inf (`sign` 1) or -inf (-1): those of the direction +-v, whatever h is (N8).

    Raises:
        ValueError: another sign.
    """
    require(sign in (1, -1), "sign", "1 or -1", sign)
    return sign * arc.B + arc.c


@typed
def plateau_rate(arc: Arc) -> Rate:
    """How the plateaus are reached: from one side, with the same coefficient at both ends (N8).

    With ``eta = sqrt(m0^2 + L)``, the length of h in units of v: ``C = A sqrt(L)``, ``K = 2 |C| eta + 2 |B| L`` beyond
    ``|alpha| = 2 eta``; as L goes to 0 it is attained there.
    """
    eta = jnp.hypot(arc.centre, arc.width)
    coefficient = arc.A * arc.width
    remainder = 2 * (jnp.abs(coefficient) * eta + jnp.abs(arc.B) * arc.width**2)
    return Rate(coefficient, remainder, 2 * eta)


@typed
@full
def limit(
    W: Float[Array, "V d"],
    gamma: Float[Array, " d"],
    bias: Float[Array, " d"] | None,
    v: Float[Array, " d"],
    sign: int,
    *,
    kind: str = "rms",
    softcap: Scalar | float | None = None,
) -> Float[Array, " V"]:
    """The logits as alpha goes to +inf (`sign` 1) or -inf (-1), from v alone (S, proposition 4.1, and N8), ``[V]``.

    Right for every model whose last steps are the norm and W, if its blocks add to the residual stream what stays bounded.

    Args:
        W, gamma, bias, kind: the decoder, as for `arc_of`; its eps plays no part.
        v: steering vector, ``[d]``, added at every position.
        sign: 1 or -1.
        softcap: logits are ``softcap * tanh(logits / softcap)``, if given.

    Raises:
        ValueError: outside transformations, for a v that the norm does not see.
    """
    require(sign in (1, -1), "sign", "1 or -1", sign)
    if not isinstance(v, jax.core.Tracer):
        _require_seen(bool(_length_seen(v, kind) > _least(v)), kind)
    in_range("softcap", 1 if softcap is None else softcap, "None or a number above 0", lambda x: x > 0)
    logits = W @ norm(sign * v, gamma, bias, kind=kind)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


@typed
def limit_bound(
    W: Float[Array, "V d"],
    gamma: Float[Array, " d"],
    v: Float[Array, " d"],
    alpha: Scalar | float,
    reach: Scalar | float,
    *,
    kind: str = "rms",
    eps: Scalar | float = 0.0,
) -> Float[Array, " V"]:
    """How far logits are from their `limit` at most, if the last norm is given alpha v plus at most `reach`, ``[V]``.

    It is ``2 sqrt(d) ||gamma * w_z|| sin(phi / 2)`` with ``sin(phi) = sqrt(reach^2 + d eps) / (|alpha| ||v||)``, v centred
    for "layer" (S, proposition 4.1): what is given is at most phi away from v. Where the sine would be above 1, it may point
    anywhere, and the bound is ``2 sqrt(d) ||gamma * w_z||``. A softcap only makes the distance smaller.

    Args:
        W, gamma, kind, eps: the decoder, as for `arc_of`.
        v: steering vector, ``[d]``.
        alpha: strength, other than 0.
        reach: the most that is added to alpha v, a Euclidean norm.
    """
    in_range("alpha", alpha, "a strength other than 0", lambda x: x != 0)
    in_range("reach", reach, "a length of at least 0", lambda x: x >= 0)
    in_range("eps", eps, "a number of at least 0", lambda x: x >= 0)
    d = v.shape[-1]
    sine = jnp.hypot(reach, jnp.sqrt(d * eps)) / jnp.abs(alpha) / _length_seen(v, kind)
    within = jnp.minimum(sine, 1)
    # The chord 2 sin(phi / 2), without the cancellation of 1 - cos(phi). The root has no slope where the cosine is 0.
    cosine = jnp.sqrt(jnp.where(sine < 1, 1 - within**2, 1))
    chord = within * jnp.sqrt(2 / (1 + jnp.where(sine < 1, cosine, 0)))
    return jnp.sqrt(d) * length_of(W * gamma) * jnp.where(sine > 1, 2, chord)


@typed
@full
def eps_bound(
    W: Float[Array, "V d"],
    gamma: Float[Array, " d"],
    h: Float[Array, " d"],
    v: Float[Array, " d"],
    eps: Scalar | float,
    *,
    kind: str = "rms",
) -> Float[Array, " V"]:
    """How far eps can move each logit from the law for eps 0, at any strength, ``[V]`` (N7).

    It multiplies ``logit_z - c_z`` by ``(1 + d eps / ||h + alpha v||^2)^(-1/2)``, so that the change is at most
    ``sqrt(A_z^2 + B_z^2) d eps / (2 ||h_perp||^2)``. Errors are those of `arc_of`.

    Args:
        W, gamma, kind, eps: the decoder, as for `arc_of`.
        h: hidden state, ``[d]``.
        v: steering vector, ``[d]``.
    """
    in_range("eps", eps, "a number of at least 0", lambda x: x >= 0)
    without = arc_of(W, gamma, None, h, v, kind=kind)
    ratio = jnp.sqrt(h.shape[-1] * eps) / (without.width * _length_seen(v, kind))
    return jnp.hypot(without.A, without.B) * ratio * ratio / 2


@typed
@full
def slopes(arc: Arc, theta: Scalar | float) -> Float[Array, " V"]:
    """The derivative of the log-odds of each token, ``log sigma_z / (1 - sigma_z)``, by the angle, ``[V]``.

    It has the sign of the derivative of the probability, and does not vanish where the probability saturates.
    """
    logits, rise = arc_logits(arc, theta), arc.B * jnp.cos(theta) - arc.A * jnp.sin(theta)
    q, top = jax.nn.softmax(logits), jnp.argmax(logits)
    # The mean over the others. Only the likeliest token can have a probability so near 1 that taking it away cancels.
    mean = (q @ rise - q * rise) / jnp.where(jnp.arange(q.size) == top, 1, 1 - q)
    of_others = jax.nn.softmax(logits.at[top].set(-jnp.inf))
    return rise - mean.at[top].set(of_others @ rise)


@typed
@full
def curvatures(arc: Arc, theta: Scalar | float) -> Float[Array, " V"]:
    """The second derivative of each log-probability by the angle, ``[V]`` (N8).

    With f the logits, ``(E[f] - f_z) - (E[c] - c_z) - Var[f']`` under the distribution at that angle. Without bias it is
    never positive where the surprisal of z is at most the entropy, hence not where z is the likeliest token.
    """
    logits, rise = arc_logits(arc, theta), arc.B * jnp.cos(theta) - arc.A * jnp.sin(theta)
    q, turning = jax.nn.softmax(logits), logits - arc.c
    return q @ turning - turning - q @ (rise - q @ rise) ** 2


@typed
def bumps(arc: Arc, points: int = 4096) -> Int[Array, " V"]:
    """How many bumps the probability of each token has on the open arc: its local maxima inside, ``[V]``.

    They are read off a grid of angles, as changes of sign of `slopes` from rising to falling: no bump is too flat to be
    seen, but two that are closer than pi / `points` may be missed. A supremum at an end, where alpha is infinite, is not
    counted.

    Raises:
        ValueError: no points, or more than fit in memory.
    """
    require(points >= 1, "points", "at least one angle", points)
    check_count("points", "angles", points)
    noise = NOTHING * jnp.finfo(arc.A.dtype).eps * jnp.max(jnp.hypot(arc.A, arc.B))

    def step(carry, theta):
        before, count = carry
        slope = slopes(arc, theta)
        # A slope lost in noise takes the sign of the last one that is not.
        sign = jnp.where(jnp.abs(slope) > noise, jnp.sign(slope), before)
        return (sign, count + ((before > 0) & (sign < 0))), None

    theta = (jnp.arange(points) + 0.5) * (jnp.pi / points) - jnp.pi / 2
    start = jnp.zeros_like(arc.A), jnp.zeros(arc.A.shape, int)
    return lax.scan(step, start, theta.astype(arc.A.dtype))[0][1]


@typed
def greedy_interval(arc: Arc) -> tuple[Float[Array, " V"], Float[Array, " V"]]:
    """The angles between which each token is the likeliest, lowest and highest, ``[V]``; NaN for a token that never is (N8).

    Raises:
        ValueError: outside transformations, for an arc with a bias that tells tokens apart: there these angles need not
            form an interval.
    """
    if not isinstance(arc.c, jax.core.Tracer):
        spread = float(jnp.ptp(arc.c))
        require(spread == 0, "arc", "one without bias (c constant)", f"c with a range of {spread:g}")
    # Where cos(theta) > 0, the logits are ordered as the lines A + B tan(theta).
    rise = arc.B - arc.B[:, None]
    head_start = arc.A - arc.A[:, None]
    crossing = jnp.arctan(-head_start / jnp.where(rise == 0, 1, rise))
    low = jnp.max(jnp.where(rise < 0, crossing, -jnp.pi / 2), axis=1)
    high = jnp.min(jnp.where(rise > 0, crossing, jnp.pi / 2), axis=1)
    never = (low > high) | jnp.any((rise == 0) & (head_start > 0), axis=1)
    return jnp.where(never, jnp.nan, low), jnp.where(never, jnp.nan, high)


def _least(vector: Float[Array, " d"]) -> Scalar:
    return NOTHING * jnp.finfo(vector.dtype).eps * length_of(vector)


def _length_seen(v: Float[Array, " d"], kind: str) -> Scalar:
    """The length of what the norm sees of a vector."""
    size = power_for_squares(v)
    return length_of(as_seen(v * size, kind)) / size[0]


def _require_seen(seen: bool, kind: str) -> None:
    blind = "other than 0" if kind == "rms" else "that is not constant, for LayerNorm takes its mean away"
    require(seen, "v", f"a vector {blind}", "one that the norm does not see")

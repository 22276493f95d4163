from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

from tests.oracles import close, softmax
from theory import arc
from theory.arc import Arc
from ufm import norm

KINDS = pytest.mark.parametrize("kind", ["rms", "layer"])
EPS = pytest.mark.parametrize("eps", [0.0, 1e-5, 0.7])
ALPHAS = [-1e6, -40.0, -1.3, 0.0, 0.2, 2.0, 1e3, 1e9]

HALF_PI = np.pi / 2


def draw(seed=0, tokens=6, d=5):
    """W, gamma, bias, h, v."""
    rng = np.random.default_rng(seed)
    shapes = (tokens, d), (d,), (d,), (d,), (d,)
    W, gamma, bias, h, v = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    return W, 1 + 0.3 * gamma, bias, h, v


def decode(W, gamma, bias, h, v, alpha, kind, eps=0.0):
    return norm(h + alpha * v, gamma, bias, kind=kind, eps=eps) @ W.T


def exactly(W, gamma, bias, h, v, kind, eps):
    """m0, sqrt(L), a and beta of the law, as N7 writes them, to 50 digits."""
    h, v = [mpf(float(x)) for x in h], [mpf(float(x)) for x in v]
    d = len(h)
    if kind == "layer":
        h, v = [x - mp.fsum(h) / d for x in h], [x - mp.fsum(v) / d for x in v]

    def dot(x, y):
        return mp.fsum(a * b for a, b in zip(x, y, strict=True))

    centre = -dot(h, v) / dot(v, v)
    width = mp.sqrt(((dot(h, h) + d * mpf(eps)) * dot(v, v) - dot(h, v) ** 2) / dot(v, v) ** 2)
    scale = mp.sqrt(d) / (mp.sqrt(dot(v, v)) * width)
    rows = [[mpf(float(w)) * mpf(float(g)) for w, g in zip(row, gamma, strict=True)] for row in W]
    return centre, width, [scale * dot(u, v) for u in rows], [scale * dot(u, h) for u in rows]


@KINDS
@EPS
def test_law_to_50_digits(kind, eps):
    arrays = draw()
    centre, width, slopes, offsets = exactly(*arrays, kind, eps)
    law = arc.law(*arrays, kind=kind, eps=eps)
    assert close(law.centre, centre, rtol=1e-14)
    assert close(law.width, width, rtol=1e-14)
    assert all(close(x, y, rtol=0, atol=1e-13) for x, y in zip(law.slopes, slopes, strict=True))
    assert all(close(x, y, rtol=0, atol=1e-13) for x, y in zip(law.offsets, offsets, strict=True))
    np.testing.assert_allclose(law.c, np.asarray(arrays[0]) @ np.asarray(arrays[2]), rtol=1e-13)


@KINDS
@EPS
def test_law_and_arc_are_what_decoding_gives(kind, eps):
    arrays = draw(1)
    path, law = arc.arc_of(*arrays, kind=kind, eps=eps), arc.law(*arrays, kind=kind, eps=eps)
    for alpha in ALPHAS:
        expected = decode(*arrays, alpha, kind, eps)
        np.testing.assert_allclose(arc.logits_at(path, alpha), expected, atol=1e-13)
        np.testing.assert_allclose(arc.law_logits(law, alpha), expected, atol=1e-13)
        np.testing.assert_allclose(arc.arc_logits(path, arc.theta_of_alpha(path, alpha)), expected, atol=1e-13)
        log_odds = (law.offsets[2] - law.offsets[0]) + (law.slopes[2] - law.slopes[0]) * alpha
        d = 1 / np.sqrt(1 + ((alpha - law.centre) / law.width) ** 2)
        np.testing.assert_allclose(log_odds * d + law.c[2] - law.c[0], expected[2] - expected[0], atol=1e-13)


def test_a_norm_without_bias():
    W, gamma, _, h, v = draw(2)
    np.testing.assert_array_equal(arc.arc_of(W, gamma, None, h, v).c, np.zeros(6))
    with_zeros = arc.arc_of(W, gamma, jnp.zeros(5), h, v)
    for field, other in zip(arc.arc_of(W, gamma, None, h, v), with_zeros, strict=True):
        np.testing.assert_array_equal(field, other)


@pytest.mark.parametrize("distance", [1e-3, 1e-8, 1e-11])
def test_nearly_parallel_states_keep_their_digits(distance):
    """L as N7 writes it would cancel: at a distance of 1e-8 it is 1e-16 of ||h||^2 ||v||^2."""
    W, gamma, bias, h, v = draw(3)
    h = -3 * v + distance * h
    _, width, _, offsets = exactly(W, gamma, bias, h, v, "rms", 0.0)
    law = arc.law(W, gamma, bias, h, v)
    assert close(law.width, width, rtol=1e-15 / distance)
    assert all(close(x, y, rtol=1e-14 / distance) for x, y in zip(law.offsets, offsets, strict=True))


@KINDS
@EPS
def test_derivatives_by_the_strength(kind, eps):
    arrays = draw(4)
    path = arc.arc_of(*arrays, kind=kind, eps=eps)
    for alpha in (-3.0, 0.0, 1.1):
        through_the_model = jax.jacfwd(lambda a: decode(*arrays, a, kind, eps))(alpha)
        np.testing.assert_allclose(jax.jacfwd(partial(arc.logits_at, path))(alpha), through_the_model, atol=1e-13)


@KINDS
def test_two_directions_give_every_strength(kind):
    """N8 as a picture: angle 0 is the part of h across v, angle pi/2 is v, and the arc is the half circle between."""
    W, gamma, bias, h, v = draw(5)
    path = arc.arc_of(W, gamma, bias, h, v, kind=kind)
    ends = [norm(x, gamma, bias, kind=kind) @ W.T for x in (h + path.centre * v, v, -v)]
    np.testing.assert_allclose(path.A + path.c, ends[0], atol=1e-13)
    np.testing.assert_allclose(path.B + path.c, ends[1], atol=1e-13)
    np.testing.assert_allclose(-path.B + path.c, ends[2], atol=1e-13)
    across, along = (norm(x, kind=kind) for x in (h + path.centre * v, v))
    assert abs(float(across @ along)) < 1e-14


def test_angles_and_strengths():
    path = arc.arc_of(*draw(6))
    alphas = jnp.asarray([-1e5, -2.0, 0.0, 3.0, 1e5])
    np.testing.assert_allclose(arc.alpha_of_theta(path, arc.theta_of_alpha(path, alphas)), alphas, rtol=1e-9, atol=1e-12)
    assert float(arc.theta_of_alpha(path, path.centre)) == 0
    assert float(arc.theta_of_alpha(path, path.centre + path.width)) == pytest.approx(np.pi / 4)
    np.testing.assert_array_equal(arc.theta_of_alpha(path, jnp.asarray([-jnp.inf, jnp.inf])), [-HALF_PI, HALF_PI])


@KINDS
def test_eps_is_one_more_coordinate(kind):
    """The law with eps in d dimensions is that without in d + 1, for the rescaled gain: sqrt(d) became sqrt(d + 1)."""
    W, gamma, bias, h, v = draw(7)
    if kind == "layer":
        h, v = h - jnp.mean(h), v - jnp.mean(v)
    with_eps = arc.arc_of(W, gamma, bias, h, v, kind=kind, eps=0.3)
    extended = jnp.pad(W, ((0, 0), (0, 1))), jnp.append(gamma, 1.0) * (5 / 6) ** 0.5, jnp.append(bias, 0.0)
    without = arc.arc_of(*extended, jnp.append(h, (5 * 0.3) ** 0.5), jnp.append(v, 0.0))
    for field, other in zip(with_eps, without, strict=True):
        np.testing.assert_allclose(field, other, rtol=1e-13)


@KINDS
@pytest.mark.parametrize("eps", [1e-6, 1e-2, 10.0])
def test_eps_bound(kind, eps):
    W, gamma, bias, h, v = draw(8)
    bound = arc.eps_bound(W, gamma, h, v, eps, kind=kind)
    with_eps, without = (arc.arc_of(W, gamma, bias, h, v, kind=kind, eps=value) for value in (eps, 0.0))
    alphas = arc.alpha_of_theta(without, jnp.linspace(-1.57, 1.57, 500))
    moved = jnp.abs(jax.vmap(lambda a: arc.logits_at(with_eps, a) - arc.logits_at(without, a))(alphas))
    assert (moved <= bound).all()
    # It is reached, to first order in eps, by a token that sees nothing of v.
    blind = W - jnp.outer(W @ (gamma * v), gamma * v) / ((gamma * v) @ (gamma * v))
    if kind == "rms" and eps == 1e-6:
        change = decode(blind, gamma, bias, h, v, without.centre, kind, eps) - decode(
            blind, gamma, bias, h, v, without.centre, kind
        )
        np.testing.assert_allclose(jnp.abs(change), arc.eps_bound(blind, gamma, h, v, eps), rtol=1e-4)


@KINDS
@EPS
@pytest.mark.parametrize("sign", [1, -1])
def test_plateau_and_its_rate(kind, eps, sign):
    arrays = draw(9)
    path = arc.arc_of(*arrays, kind=kind, eps=eps)
    rate = arc.plateau_rate(path)
    end = arc.plateau(path, sign)
    np.testing.assert_allclose(end, arc.limit(*arrays[:3], arrays[4], sign, kind=kind), atol=1e-13)
    np.testing.assert_allclose(end, decode(*arrays, sign * 1e12, kind, eps), atol=1e-10)
    sizes = float(rate.beyond) * np.geomspace(1, 1e4, 30)
    distance = np.stack([decode(*arrays, sign * a, kind, eps) - end for a in sizes])
    left = distance - np.asarray(rate.coefficient) / sizes[:, None]
    assert (np.abs(left) <= np.asarray(rate.remainder) / sizes[:, None] ** 2 + 1e-14).all()
    # Log-log slopes: -1, and -2 with the leading term taken away, until rounding.
    slope = np.diff(np.log(np.abs(distance[20:])), axis=0) / np.diff(np.log(sizes[20:]))[:, None]
    np.testing.assert_allclose(slope, -1, atol=2e-2)
    slope = np.diff(np.log(np.abs(left[14:22])), axis=0) / np.diff(np.log(sizes[14:22]))[:, None]
    np.testing.assert_allclose(slope, -2, atol=0.1)


def test_the_remainder_holds_on_random_arcs_and_is_not_idle():
    """5000 arcs at the strength from which the bound holds, where it is tightest."""
    of_A, of_B, of_centre, of_width = jax.random.split(jax.random.key(0), 4)
    path = Arc(
        jax.random.normal(of_A, (5000, 3)),
        jax.random.normal(of_B, (5000, 3)),
        jnp.zeros((5000, 3)),
        jax.random.normal(of_centre, (5000,)),
        jnp.exp(3 * jax.random.normal(of_width, (5000,))),
    )

    def used(curve, sign):
        rate = arc.plateau_rate(curve)
        left = arc.logits_at(curve, sign * rate.beyond) - arc.plateau(curve, sign) - rate.coefficient / rate.beyond
        return jnp.abs(left) * rate.beyond**2 / rate.remainder

    shares = jnp.stack([jax.vmap(partial(used, sign=sign))(path) for sign in (1, -1)])
    assert 0.3 < float(shares.max()) <= 1


# --- tangents -------------------------------------------------------------------------------------------------------


@KINDS
@EPS
def test_derivative_is_that_of_decoding(kind, eps):
    arrays = draw(15)
    path = arc.arc_of(*arrays, kind=kind, eps=eps)
    for alpha in (-30.0, 0.0, 0.4, 1e4):
        expected = jax.jacfwd(lambda a: decode(*arrays, a, kind, eps))(alpha)
        np.testing.assert_allclose(arc.derivative(path, alpha), expected, rtol=1e-9, atol=1e-14)


@KINDS
@EPS
def test_tangent_bound(kind, eps):
    """From every point of the arc to every other."""
    arrays = draw(16)
    path = arc.arc_of(*arrays, kind=kind, eps=eps)
    alphas = np.asarray(arc.alpha_of_theta(path, jnp.linspace(-1.5, 1.5, 40)))
    logits = np.stack([decode(*arrays, alpha, kind, eps) for alpha in alphas])
    used = []
    for alpha, touched in zip(alphas, logits, strict=True):
        steps = (alphas - alpha)[:, None]
        bound = (np.hypot(path.A, path.B) * steps**2) / (2 * float(path.width) ** 2)
        np.testing.assert_allclose([arc.tangent_bound(path, step) for step in steps[:, 0]], bound, rtol=1e-13)
        away = np.abs(logits - touched - steps * np.asarray(arc.derivative(path, alpha)))
        assert (away <= bound + 1e-13).all()
        used.append(np.max(away[bound.min(axis=1) > 1e-9] / bound[bound.min(axis=1) > 1e-9]))
    assert max(used) > 0.5


def test_tangent_bound_is_attained():
    """By a token that sees nothing of v, where the state is shortest; one that sees v alone does not bend there."""
    h, v = jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0])
    arrays = jnp.eye(2), jnp.ones(2), None, h, v
    path = arc.arc_of(*arrays)
    np.testing.assert_allclose(arc.derivative(path, 0.0), [0, np.sqrt(2)], atol=1e-15)
    for alpha in (1e-2, 1e-3):
        away = np.abs(decode(*arrays, alpha, "rms") - decode(*arrays, 0.0, "rms") - alpha * arc.derivative(path, 0.0))
        bound = arc.tangent_bound(path, alpha)
        assert float(away[0] / bound[0]) == pytest.approx(1 - 3 * alpha**2 / 4, abs=1e-8)
        assert away[1] < 2 * alpha * bound[1]


# --- proposition 4.1 ------------------------------------------------------------------------------------------------


@KINDS
def test_limit_with_bias_and_softcap(kind):
    W, gamma, bias, h, v = draw(10)
    far = decode(W, gamma, bias, h, v, 1e10, kind)
    np.testing.assert_allclose(arc.limit(W, gamma, bias, v, 1, kind=kind), far, atol=1e-8)
    np.testing.assert_allclose(arc.limit(W, gamma, bias, v, 1, kind=kind, softcap=2.0), 2 * np.tanh(far / 2), atol=1e-8)
    assert np.abs(arc.limit(W, gamma, None, v, 1, kind=kind) - far).max() > 0.1


@KINDS
@EPS
def test_limit_bound(kind, eps):
    """Whatever is added to alpha v, if it is no longer than `reach`."""
    W, gamma, bias, h, v = draw(11)
    for alpha in (-1e4, -30.0, 1.0, 7.0, 100.0):
        bound = arc.limit_bound(W, gamma, v, alpha, jnp.linalg.norm(h), kind=kind, eps=eps)
        end = arc.limit(W, gamma, bias, v, int(np.sign(alpha)), kind=kind)
        assert (np.abs(decode(W, gamma, bias, h, v, alpha, kind, eps) - end) <= bound).all()


# --- what the norm does not see -------------------------------------------------------------------------------------

UNSEEN = {
    "zero": ("rms", jnp.zeros(5), "v: expected a vector other than 0, got one that the norm does not see"),
    "constant": ("layer", jnp.full(5, 1.7), "v: expected a vector that is not constant, .*, got one that .* not see"),
}


@pytest.mark.parametrize(("kind", "v", "message"), UNSEEN.values(), ids=UNSEEN)
def test_refuses_what_the_norm_does_not_see(kind, v, message):
    W, gamma, bias, h, _ = draw(12)
    for refused in (
        lambda: arc.arc_of(W, gamma, bias, h, v, kind=kind),
        lambda: arc.law(W, gamma, bias, h, v, kind=kind, eps=1e-5),
        lambda: arc.limit(W, gamma, bias, v, 1, kind=kind),
        lambda: arc.eps_bound(W, gamma, h, v, 1e-5, kind=kind),
    ):
        with pytest.raises(ValueError, match="^" + message):
            refused()
    np.testing.assert_allclose(decode(W, gamma, bias, h, v, 1e3, kind), decode(W, gamma, bias, h, v, 0.0, kind), atol=1e-11)


def test_parallel_states_have_two_points_and_no_arc():
    W, gamma, bias, _, v = draw(13)
    h = 0.3 * v
    message = r"^h: expected a hidden state that is not parallel to v, or eps > 0, got a parallel one"
    with pytest.raises(ValueError, match=message):
        arc.arc_of(W, gamma, bias, h, v)
    with pytest.raises(ValueError, match=message):
        arc.arc_of(W, gamma, bias, h + 2.0, v, kind="layer")
    ends = [arc.limit(W, gamma, bias, v, sign) for sign in (1, -1)]
    np.testing.assert_allclose(decode(W, gamma, bias, h, v, -0.29, "rms"), ends[0], atol=1e-12)
    np.testing.assert_allclose(decode(W, gamma, bias, h, v, -0.31, "rms"), ends[1], atol=1e-12)
    smooth = arc.arc_of(W, gamma, bias, h, v, eps=1e-3)
    np.testing.assert_allclose(arc.logits_at(smooth, 0.1), decode(W, gamma, bias, h, v, 0.1, "rms", 1e-3), atol=1e-13)
    inside = jax.jit(arc.arc_of)(W, gamma, bias, h, v)
    assert np.isnan(inside.width)
    assert np.isnan(inside.A).all()


def test_refuses_kind():
    with pytest.raises(ValueError, match=r"^kind: .*got 'post'"):
        arc.arc_of(*draw(), kind="post")


def test_refuses_more_angles_than_fit_in_memory():
    with pytest.raises(ValueError, match=r"^points: expected angles that fit in memory, at most 16777216"):
        arc.bumps(arc.arc_of(*draw()), 2**62)


@KINDS
def test_a_batch(kind):
    W, gamma, bias, _, v = draw(14)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    path = jax.jit(jax.vmap(lambda h: arc.arc_of(W, gamma, bias, h, v, kind=kind)))(states)
    for i in range(3):
        for field, batched in zip(arc.arc_of(W, gamma, bias, states[i], v, kind=kind), path, strict=True):
            np.testing.assert_allclose(batched[i], field, rtol=1e-13, atol=1e-14)


# --- bumps ----------------------------------------------------------------------------------------------------------

MOST = {
    2: ([0, -1], [0, 0]),
    3: ([0, 1, -4], [0, 0, 0]),
    4: ([0, 2, 2, -20], [0, 2, -2, 0]),
    5: ([0, 1, 1, 4, -320], [0, 4, -4, 0, 0]),
    6: ([0, 4, 4, 0, 0, -100], [0, 2, -2, 5, -5, 0]),
}
"""A and B of arcs whose token 0 has V - 1 bumps, by V."""


def plain(A, B, c=None):
    """An arc of centre 0 and width 1."""
    A, B = jnp.asarray(A, float), jnp.asarray(B, float)
    return Arc(A, B, jnp.zeros_like(A) if c is None else jnp.asarray(c, float), jnp.asarray(0.0), jnp.asarray(1.0))


def maxima(A, B, z, points=20001):
    """Strict maxima of a probability on a grid, ends left out, by comparing neighbours."""
    theta = np.linspace(-HALF_PI, HALF_PI, points)
    q = softmax(np.cos(theta)[:, None] * np.asarray(A, float) + np.sin(theta)[:, None] * np.asarray(B, float))[:, z]
    return theta[1:-1][(q[1:-1] > q[:-2]) & (q[1:-1] > q[2:])]


@pytest.mark.parametrize("V", MOST)
def test_instances_with_a_bump_less_than_tokens(V):
    A, B = MOST[V]
    got = arc.bumps(plain(A, B))
    assert got.tolist() == [len(maxima(A, B, z)) for z in range(V)]
    assert int(got[0]) == V - 1


def test_bumps_are_seen_through_a_model():
    """W, h and v with the arc of three tokens; the bumps are at cos(theta) = log(4) / 5, on both sides of the centre."""
    W = jnp.asarray([[0.0, 0, 0, 0], [0.5, 0, 0, 0], [-2.0, 0, 0, 0]])
    h, v = jnp.asarray([1.0, 3.0, 0, 0]), jnp.asarray([0.0, 2.0, 0, 0])
    path = arc.arc_of(W, jnp.ones(4), None, h, v)
    np.testing.assert_allclose(path.A, [0, 1, -4], atol=1e-15)
    assert (float(path.centre), float(path.width)) == (-1.5, 0.5)
    peaks = [float(arc.alpha_of_theta(path, sign * np.arccos(np.log(4) / 5))) for sign in (-1, 1)]
    sigma = jax.jit(lambda alpha: jax.nn.softmax(decode(W, jnp.ones(4), 0.0 * h, h, v, alpha, "rms"))[0])
    for peak in peaks:
        assert abs(jax.grad(sigma)(peak)) < 1e-12
        assert sigma(peak) > max(sigma(peak - 0.1), sigma(peak + 0.1))


def population(key, n, V, biased):
    """Arcs from flat to sharp."""
    of_r, of_phi, of_c, of_scale = jax.random.split(key, 4)
    r = jnp.exp(jax.random.uniform(of_r, (n, V), minval=-2.0, maxval=4.0))
    phi = jax.random.uniform(of_phi, (n, V), minval=-jnp.pi, maxval=jnp.pi)
    scale = jnp.exp(jax.random.uniform(of_scale, (n, 1), minval=-2.0, maxval=4.0))
    c = biased * scale * jax.random.normal(of_c, (n, V))
    return Arc(r * jnp.cos(phi), r * jnp.sin(phi), c, jnp.zeros(n), jnp.ones(n))


@pytest.mark.parametrize(("V", "most"), [(2, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("biased", [False, True])
def test_random_arcs_have_no_more(V, most, biased):
    """2 and 3 are theorems, 4 is what was found."""
    counts = jax.jit(jax.vmap(partial(arc.bumps, points=500)))(population(jax.random.key(V), 2000, V, biased))
    assert int(counts.max()) <= most
    assert (counts == 1).any()
    assert V == 2 or (counts == 2).any()


def test_bumps_too_small_for_probabilities_are_counted():
    """The probability of token 0 is 1 - 1e-130 at its bumps."""
    assert arc.bumps(plain([0, 1, -4], [0, 0, 0], [300.0, 0, 0])).tolist()[0] == 2


def test_ends_and_constants_are_no_bumps():
    assert arc.bumps(plain([0.0, 0.0], [1.0, -1.0])).tolist() == [0, 0]
    assert arc.bumps(plain([0.3, 0.3, 0.3], [0.1, 0.1, 0.1], [0.0, 1.0, 2.0])).tolist() == [0, 0, 0]


# --- greedy ---------------------------------------------------------------------------------------------------------


def test_greedy_intervals():
    theta = np.linspace(-1.57, 1.57, 3001)
    for seed in range(20):
        path = jax.tree.map(lambda leaf: leaf[0], population(jax.random.key(seed), 1, 5, False))
        low, high = (np.asarray(x) for x in arc.greedy_interval(path))
        logits = np.cos(theta)[:, None] * np.asarray(path.A) + np.sin(theta)[:, None] * np.asarray(path.B)
        best = logits.argmax(axis=1)
        for z in range(5):
            inside = (theta > low[z]) & (theta < high[z])
            np.testing.assert_array_equal(inside, best == z)
        # They tile the arc, in the order of B.
        order = np.argsort(np.where(np.isnan(low), np.inf, low))[: np.isfinite(low).sum()]
        np.testing.assert_allclose(low[order][1:], high[order][:-1], atol=1e-12)
        assert (low[order][0], high[order][-1]) == (-HALF_PI, HALF_PI)
        assert (np.diff(np.asarray(path.B)[order]) > 0).all()


def test_greedy_intervals_with_ties():
    low, high = arc.greedy_interval(plain([1.0, 1.0, 0.5], [0.0, 0.0, 0.0]))
    np.testing.assert_array_equal(low, [-HALF_PI, -HALF_PI, np.nan])
    np.testing.assert_array_equal(high, [HALF_PI, HALF_PI, np.nan])


def test_slopes_and_curvatures_are_derivatives():
    path = jax.tree.map(lambda leaf: leaf[0], population(jax.random.key(5), 1, 4, True))

    def log_q(theta):
        return jax.nn.log_softmax(arc.arc_logits(path, theta))

    def log_odds(theta):
        return jax.scipy.special.logit(jnp.exp(log_q(theta)))

    path = jax.tree.map(lambda leaf: leaf / 10, path)
    for theta in (-1.2, 0.0, 0.4):
        np.testing.assert_allclose(arc.slopes(path, theta), jax.jacfwd(log_odds)(theta), rtol=1e-9)
        np.testing.assert_allclose(arc.curvatures(path, theta), jax.jacfwd(jax.jacfwd(log_q))(theta), rtol=1e-9, atol=1e-9)


def test_log_probabilities_are_concave_where_a_token_is_typical():
    """Surprisal at most the entropy; the greedy token always is."""
    theta = jnp.linspace(-1.57, 1.57, 200)
    path = population(jax.random.key(6), 300, 5, False)

    def at(curve, theta):
        log_q = jax.nn.log_softmax(arc.arc_logits(curve, theta))
        entropy = -jnp.sum(jnp.exp(log_q) * log_q)
        bent = arc.curvatures(curve, theta) / jnp.max(jnp.hypot(curve.A, curve.B)) ** 2
        return bent, -log_q <= entropy, log_q == jnp.max(log_q)

    bent, typical, likeliest = jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))(path, theta)
    assert typical[likeliest].all()
    assert float(bent[typical].max()) < 1e-12
    assert float(bent[~typical].max()) > 1e-3


def test_what_bias_breaks():
    """Token 0 of three is the likeliest at every strength, and has two bumps; of two, only at both ends."""
    biased = plain([0, 1, -4], [0, 0, 0], [2.0, 0.0, 0.0])
    theta = jnp.linspace(-1.57, 1.57, 500)
    logits = jax.vmap(partial(arc.arc_logits, biased))(theta)
    assert (jnp.argmax(logits, axis=1) == 0).all()
    assert int(arc.bumps(biased)[0]) == 2
    logits = jax.vmap(partial(arc.arc_logits, plain([0, 1], [0, 0], [0.5, 0.0])))(theta)
    assert np.flatnonzero(np.diff(jnp.argmax(logits, axis=1))).size == 2
    with pytest.raises(ValueError, match=r"^arc: .*got c with a range of 2"):
        arc.greedy_interval(biased)


def test_mpmath_agrees_on_the_depth_of_a_valley():
    """Between its two bumps, token 0 of three falls from 0.377 to 0.268: 1 / (1 + e^x + e^(-4x)) at x = log(4)/5 and 1."""
    x = mp.log(4) / 5
    values = [1 / (1 + mp.exp(y) + mp.exp(-4 * y)) for y in (x, mpf(1))]
    for theta, expected in zip((mp.acos(x), mpf(0)), values, strict=True):
        got = jax.nn.softmax(arc.arc_logits(plain([0, 1, -4], [0, 0, 0]), float(theta)))[0]
        assert close(got, expected, rtol=1e-14)
    assert [mpmath.nstr(value, 3) for value in values] == ["0.377", "0.268"]


# --- numbers whose squares are none -----------------------------------------------------------------------------------

TYPES = pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])


def powers(double):
    """Exponents of two that take vectors to where their squares overflow, or are 0 or imprecise."""
    return (600, -508, -515, -600) if double else (70, -60, -66, -80)


@TYPES
@KINDS
def test_arcs_of_vectors_of_any_size(kind, double):
    with jax.enable_x64(double):
        W, gamma, bias, h, v = (jnp.asarray(x, float) for x in draw(11))
        path, limit = arc.arc_of(W, gamma, bias, h, v, kind=kind), arc.limit(W, gamma, bias, v, 1, kind=kind)
        for power in powers(double):
            unit = 2.0**power
            of_h = arc.arc_of(W, gamma, bias, h * unit, v, kind=kind)
            of_v = arc.arc_of(W, gamma, bias, h, v * unit, kind=kind)
            of_both = arc.arc_of(W, gamma, bias, h * unit, v * unit, kind=kind)
            for other, factor in ((of_h, unit), (of_v, 1 / unit), (of_both, 1)):
                for got, expected in zip(other[:3], path[:3], strict=True):
                    np.testing.assert_array_equal(got, expected)
                assert (other.centre, other.width) == (path.centre * factor, path.width * factor)
            np.testing.assert_array_equal(arc.limit(W, gamma, bias, v * unit, 1, kind=kind), limit)


@KINDS
def test_an_eps_far_above_a_tiny_state_is_no_infinity(kind):
    with jax.enable_x64(False):
        W, gamma, _, h, v = (jnp.asarray(x, float) for x in draw(12))
        for eps in (1e-5, 1e-8, 1e-12):
            path = arc.arc_of(W, gamma, None, h * 1e-25, v, kind=kind, eps=eps)
            size = float(jnp.linalg.norm(v - jnp.mean(v) if kind == "layer" else v))
            assert float(path.width) == pytest.approx(np.sqrt(5 * eps) / size, rel=1e-5)


@TYPES
@KINDS
def test_bounds_of_vectors_of_any_size(kind, double):
    with jax.enable_x64(double):
        W, gamma, _, h, v = (jnp.asarray(x, float) for x in draw(13))
        bound = arc.limit_bound(W, gamma, v, 40.0, 3.0, kind=kind)
        of_eps = arc.eps_bound(W, gamma, h, v, 2.0**-10, kind=kind)
        for power in powers(double):
            unit = 2.0**power
            np.testing.assert_array_equal(arc.limit_bound(W, gamma, v * unit, 40.0, 3.0 * unit, kind=kind), bound)
            np.testing.assert_array_equal(arc.limit_bound(W * unit, gamma, v, 40.0, 3.0, kind=kind), bound * unit)
            np.testing.assert_allclose(arc.eps_bound(W, gamma, h, v * unit, 2.0**-10, kind=kind), of_eps, rtol=1e-6)
        unit = 2.0 ** (-500 if double else -55)
        np.testing.assert_allclose(arc.eps_bound(W, gamma, h * unit, v, 2.0**-10 * unit**2, kind=kind), of_eps, rtol=1e-6)


def test_derivatives_at_strengths_whose_third_power_is_no_float():
    with jax.enable_x64(False):
        path = plain([5.0, 0.0], [1.0, 2.0])
        np.testing.assert_allclose(arc.derivative(path, 1e13), [-5e-26, 0], rtol=1e-5, atol=1e-37)
        near = plain([0.5, -0.5], [1.0, 2.0])
        np.testing.assert_allclose(arc.derivative(near, 1e13), [-5e-27, 5e-27], rtol=1e-5)


def test_a_tangent_bound_is_capped_where_it_is_no_float_alone():
    with jax.enable_x64(False):
        path = plain([1e-5, 0.0, 1.0], [1e-5, 0.0, 1.0])
        bound = arc.tangent_bound(path, 1e20)
        np.testing.assert_allclose(bound[:2], [np.sqrt(0.5) * 1e35, 0], rtol=1e-6)
        assert bound[2] == jnp.finfo(jnp.float32).max
        assert (np.asarray(arc.tangent_bound(path, 1e38))[[0, 1]] == [jnp.finfo(jnp.float32).max, 0]).all()

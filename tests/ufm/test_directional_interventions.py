"""Interventions along a direction: against loops over NumPy numbers, their closed forms, and the theory of adding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet

import ufm
from tests.ufm.test_interventions import MODELS, D, M, V, assert_no_bit_changes, models, normalised, numbers, under
from theory import arc, tilting
from ufm import UFM, Ablate, Add, After, Clamp, LoRA, NormPreservingAdd, NullOut, Rotate, Steering, Weight, When, Where
from ufm.steering import stacks

STRENGTHS = [-2.5, -0.4, 0.0, 0.7, 1.0, 3.0]


def length(a):
    return sum(float(c) ** 2 for c in a) ** 0.5


def inner(a, b):
    return sum(float(p) * float(q) for p, q in zip(a, b, strict=True))


def plain_ablate(y, alpha, v):
    return y - alpha * inner(y, v) / inner(v, v) * v


def plain_clamp(y, alpha, v, to):
    u = v / length(v)
    return y + alpha * (to - inner(y, u)) * u


def plain_norm_preserving(y, alpha, v):
    moved = y + alpha * v
    return moved * length(y) / length(moved)


def plain_rotate(y, alpha, v):
    """By the matrix of the rotation: identity but in the plane of y and v, where it turns y towards v."""
    first = y / length(y)
    second = v - inner(v, first) * first
    second = second / length(second)
    turn = np.outer(second, first) - np.outer(first, second)
    plane = np.outer(first, first) + np.outer(second, second)
    return (np.eye(len(y)) + np.sin(alpha) * turn + (np.cos(alpha) - 1) * plane) @ y


def plain_when(plain, probe, bias):
    return lambda y, alpha, *rest: plain(y, alpha, *rest) if inner(y, probe) + bias > 0 else y


def kinds(outputs, seed=2):
    """Each intervention for outputs of a width, with what it does to one of them at a strength, by loops."""
    v, probe = numbers(outputs, seed=seed), numbers(outputs, seed=seed + 1)
    bias = 0.1
    plain = {
        "ablate": (Ablate(jnp.asarray(v)), lambda y, alpha: plain_ablate(y, alpha, v)),
        "clamp": (Clamp(jnp.asarray(v), 1.3), lambda y, alpha: plain_clamp(y, alpha, v, 1.3)),
        "norm-preserving": (NormPreservingAdd(jnp.asarray(v)), lambda y, alpha: plain_norm_preserving(y, alpha, v)),
        "rotate": (Rotate(jnp.asarray(v)), lambda y, alpha: plain_rotate(y, alpha, v)),
    }
    gated = {
        f"{name} when": (When(intervention, jnp.asarray(probe), bias), plain_when(by_loops, probe, bias))
        for name, (intervention, by_loops) in plain.items()
    }
    added = When(Add(jnp.asarray(v)), jnp.asarray(probe), bias)
    return plain | gated | {"add when": (added, plain_when(lambda y, alpha: y + alpha * v, probe, bias))}


each = pytest.mark.parametrize("name", kinds(D))
ungated = pytest.mark.parametrize("name", [name for name in kinds(D) if "when" not in name])


# --- what they do ---------------------------------------------------------------------------------------------------


@each
def test_by_loops(name):
    intervention, by_loops = kinds(D)[name]
    outputs = numbers(40, D, seed=7)
    for alpha in STRENGTHS:
        got = intervention.apply(jnp.zeros((40, 2)), jnp.asarray(outputs), alpha)
        for y, row in zip(outputs, got, strict=True):
            np.testing.assert_allclose(row, by_loops(y, alpha), rtol=1e-12, atol=1e-13)


@models
@each
def test_on_a_model_at_all_of_its_sites(make, name):
    """At the state and at the decoder, in `steer` and in a sweep; strength 0 changes no bit."""
    model = make()
    contexts = jnp.arange(M)
    h = model.embed(contexts)
    for site, (_, outputs) in model.sites.items():
        intervention, by_loops = kinds(outputs)[name]
        steering = Steering(intervention, site=site)
        swept = ufm.sweep(model, contexts, steering, jnp.asarray(STRENGTHS), lambda logits, _: logits)
        for k, alpha in enumerate(STRENGTHS):
            if site == "residual":
                flat = np.asarray(h).reshape(-1, outputs)
                expected = model.decode(jnp.asarray([by_loops(y, alpha) for y in flat]).reshape(h.shape))
            else:
                expected = [by_loops(y, alpha) for y in np.asarray(model.decode(h))]
            np.testing.assert_allclose(under(model, intervention, alpha, site), expected, rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(swept[:, k], expected, rtol=1e-11, atol=1e-12)
        assert_no_bit_changes(model, steering)


def test_each_keeps_or_sets_what_it_says():
    y, v = jnp.asarray(numbers(30, D, seed=8)), jnp.asarray(numbers(D, seed=2))
    u = v / jnp.linalg.norm(v)
    np.testing.assert_allclose(Ablate(v).apply(y, y, 1.0) @ v, 0, atol=1e-14)
    np.testing.assert_allclose(Clamp(v, -2.5).apply(y, y, 1.0) @ u, -2.5, rtol=1e-14)
    np.testing.assert_allclose(Clamp(v, -2.5).apply(y, y, 0.25) @ u, 0.75 * (y @ u) - 0.25 * 2.5, rtol=1e-12)
    for keeps in (NormPreservingAdd(v), Rotate(v)):
        for alpha in STRENGTHS:
            got = jnp.linalg.norm(keeps.apply(y, y, alpha), axis=1)
            np.testing.assert_allclose(got, jnp.linalg.norm(y, axis=1), rtol=1e-14)
    angles = jnp.arccos(y @ u / jnp.linalg.norm(y, axis=1))
    for k in range(30):
        turned = Rotate(v).apply(y[k], y[k], angles[k])
        np.testing.assert_allclose(turned / jnp.linalg.norm(turned), u, atol=1e-14)


def test_the_length_of_a_direction_plays_no_part():
    y, v = jnp.asarray(numbers(30, D, seed=8)), jnp.asarray(numbers(D, seed=2))
    for make in (Ablate, Rotate, lambda v: Clamp(v, 1.0)):
        expected = make(v).apply(y, y, 0.6)
        for size in (3.0, 1e-200, 1e200):
            np.testing.assert_allclose(make(size * v).apply(y, y, 0.6), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_directions_may_be_as_large_and_as_small_as_floats_are(dtype):
    y, v = jnp.asarray(numbers(30, D, seed=8), dtype), numbers(D, seed=2)
    v, reach = v / np.abs(v).max(), np.finfo(dtype)
    close = 1e-5 if dtype == "float32" else 1e-13
    for make in (Ablate, Rotate, lambda v: Clamp(v, 1.0)):
        expected = make(jnp.asarray(v, dtype)).apply(y, y, 0.6)
        for size in (1e3 * float(reach.tiny), float(reach.tiny) ** 0.5, float(reach.max) ** 0.5, float(reach.max)):
            got = make(jnp.asarray(size * v, dtype)).apply(y, y, 0.6)
            np.testing.assert_allclose(got, expected, rtol=close, atol=close)
    far = NormPreservingAdd(jnp.asarray(v, dtype)).apply(y, y, 1 / float(reach.eps) ** 2)
    np.testing.assert_allclose(NormPreservingAdd(jnp.asarray(float(reach.max) * v, dtype)).apply(y, y, 0.6), far, rtol=close)


def test_the_direction_may_be_of_a_longer_type_than_the_output():
    y, v = jnp.asarray(numbers(30, D, seed=8), jnp.float32), jnp.asarray(numbers(D, seed=2))
    for size in (1e-200, 1e200):
        got = Ablate(size * v).apply(y, y, 1.0)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, Ablate(v).apply(y, y, 1.0), rtol=1e-6, atol=1e-6)


def test_keeping_the_length_changes_no_bit_at_strength_0():
    for size in (1e-30, 1.0, 1e20):
        y = jnp.asarray(size * np.array([1.0, 0.3, 1e-20]), jnp.float32)
        np.testing.assert_array_equal(NormPreservingAdd(jnp.ones(3, jnp.float32)).apply(y, y, 0.0), y)


def test_outputs_may_be_as_large_and_as_small_as_floats_are():
    y, v = jnp.asarray(numbers(30, D, seed=8)), jnp.asarray(numbers(D, seed=2))
    for size in (1e-200, 1e200):
        for make in (Ablate, Rotate, NormPreservingAdd):
            got = make(size * v).apply(size * y, size * y, 0.6) / size
            np.testing.assert_allclose(got, make(v).apply(y, y, 0.6), rtol=1e-12, atol=1e-14)


def test_a_gate_reads_the_output_and_not_the_strength():
    y, probe, bias = numbers(40, D, seed=9), numbers(D, seed=5), -0.2
    is_open = y @ probe + bias > 0
    assert 5 < is_open.sum() < 35
    v = jnp.asarray(-100 * probe)
    for alpha in (0.5, 1e3):
        got = When(Add(v), jnp.asarray(probe), bias).apply(jnp.asarray(y), jnp.asarray(y), alpha)
        np.testing.assert_array_equal(np.any(np.asarray(got) != y, axis=1), is_open)
    edge = jnp.asarray([1.0, 2.0, 3.0])
    at_the_edge = When(Add(v), jnp.asarray([1.0, 0.0, 0.0]), -1.0).apply(edge, edge, 1.0)
    np.testing.assert_array_equal(at_the_edge, [1.0, 2.0, 3.0])


# --- derivatives ----------------------------------------------------------------------------------------------------


def closed_derivative(intervention, y, alpha):
    """The derivative by the strength that the docstrings state."""
    if isinstance(intervention, When):
        is_open = y @ intervention.probe + intervention.bias > 0
        return is_open * closed_derivative(intervention.intervention, y, alpha)
    v = intervention.v
    u = v / jnp.linalg.norm(v)
    if isinstance(intervention, Add):
        return v
    if isinstance(intervention, Ablate):
        return -(y @ u) * u
    if isinstance(intervention, Clamp):
        return (intervention.to - y @ u) * u
    if isinstance(intervention, Rotate):
        return intervention.apply(y, y, alpha + np.pi / 2)
    z = y + alpha * v
    return jnp.linalg.norm(y) / jnp.linalg.norm(z) * (v - z * (z @ v) / (z @ z))


@each
def test_derivatives_by_the_strength(name):
    """Autodiff both ways, the closed form and differences, on both sides of 0."""
    intervention, _ = kinds(D)[name]

    def ways(y, alpha):
        def curve(alpha):
            return intervention.apply(y, y, alpha)

        difference = (curve(alpha + 1e-5) - curve(alpha - 1e-5)) / 2e-5
        return jax.jacfwd(curve)(alpha), jax.jacrev(curve)(alpha), difference

    outputs, alphas = jnp.asarray(numbers(6, D, seed=7)), jnp.asarray(STRENGTHS)
    forward, backward, difference = jax.jit(jax.vmap(jax.vmap(ways, (None, 0)), (0, None)))(outputs, alphas)
    closed = [[closed_derivative(intervention, y, alpha) for alpha in STRENGTHS] for y in outputs]
    np.testing.assert_allclose(forward, closed, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(backward, forward, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(difference, forward, rtol=1e-7, atol=1e-8)


@each
def test_derivatives_by_the_output_and_the_fields(name):
    intervention, _ = kinds(D)[name]
    y, ahead = jnp.asarray(numbers(D, seed=7)), jnp.asarray(numbers(D, seed=11))

    def total(intervention, y):
        return jnp.sum(ahead * intervention.apply(y, y, 0.6))

    leaves, structure = jax.tree.flatten((intervention, y))
    gradients = jax.tree.leaves(jax.grad(total, argnums=(0, 1))(intervention, y))
    for k, gradient in enumerate(gradients):
        step = 1e-6 * jnp.asarray(np.random.default_rng(k).normal(size=np.shape(leaves[k])))
        ends = [
            total(*jax.tree.unflatten(structure, [leaf + sign * step if i == k else leaf for i, leaf in enumerate(leaves)]))
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(2 * jnp.sum(gradient * step), ends[0] - ends[1], rtol=1e-6, atol=1e-13)


@ungated
def test_taylor_mode(name):
    intervention, _ = kinds(D)[name]
    y = jnp.asarray(numbers(D, seed=7))

    def curve(alpha):
        return intervention.apply(y, y, alpha)

    first, second = jet(curve, (0.3,), ((1.0, 0.0),))[1]
    np.testing.assert_allclose(first, jax.jacfwd(curve)(0.3), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(second, jax.jacfwd(jax.jacfwd(curve))(0.3), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("make", [MODELS["rms"], MODELS["transformer"]], ids=["rms", "transformer"])
@pytest.mark.parametrize("name", ["clamp", "norm-preserving", "rotate", "add when"])
def test_the_curvature_needs_the_first_derivative_only(make, name):
    """N9 of a curved path: what KL begins with is that of adding the derivative at strength 0 to each state."""
    model = make()
    h = model.embed(jnp.arange(M))
    intervention, _ = kinds(h.shape[-1])[name]
    ahead = jax.jacfwd(lambda alpha: intervention.apply(h, h, alpha))(0.0)
    logits, steep = jax.jvp(model.decode, (h,), (ahead,))
    expected = ufm.measures.variance(logits, steep) / 2
    got = ufm.curvature(model, jnp.arange(M), Steering(intervention))
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)
    kl = ufm.divergence(model, jnp.arange(M), Steering(intervention), [-1e-4, 1e-4]).mean(axis=1)
    np.testing.assert_allclose(kl, 1e-8 * expected, rtol=1e-4, atol=1e-15)


# --- where there is no direction ------------------------------------------------------------------------------------


def test_limits_are_numbers_with_derivatives_that_are_numbers():
    """v of 0 inside transformations, y of 0, y along v and against it, y + alpha v of 0."""
    v = jnp.asarray([0.3, -1.0, 2.0])
    nothing = jnp.zeros(3)
    stay = [
        *((kind, nothing, y) for kind in (Ablate, Rotate, NormPreservingAdd, lambda v: Clamp(v, 1.0)) for y in (v, nothing)),
        (Ablate, v, nothing),
        (NormPreservingAdd, v, nothing),
        (NormPreservingAdd, v, 2 * v),
        (Rotate, v, nothing),
        (Rotate, v, 1.7 * v),
        (Rotate, v, -0.7 * v),
        (Rotate, v, v * (1 + 1e-15 * jnp.arange(3))),
    ]
    for make, along, y in stay:
        for alpha in (0.0, 0.8):

            def total(along, y, alpha, make=make):
                return jnp.sum(make(along).apply(y, y, alpha))

            got = jax.jit(lambda along, y, alpha, make=make: make(along).apply(y, y, alpha))(along, y, alpha)
            np.testing.assert_allclose(got, y, rtol=1e-14)
            gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(along, y, alpha)
            assert all(np.isfinite(leaf).all() for leaf in gradients)
    against = NormPreservingAdd(v).apply(-2 * v, -2 * v, 2.0)
    np.testing.assert_array_equal(against, nothing)
    assert np.isfinite(jax.grad(lambda alpha: jnp.sum(NormPreservingAdd(v).apply(-2 * v, -2 * v, alpha)))(2.0))
    np.testing.assert_allclose(NormPreservingAdd(v).apply(-2 * v, -2 * v, 3.0), 2 * v, rtol=1e-14)


def test_nearly_parallel_is_turned_by_the_angle():
    v = jnp.asarray([1.0, 2.0, -0.5, 3.0])
    for off in (1e-3, 1e-8, 1e-12):
        y = v + off * jnp.asarray([1.0, -1.0, 0.0, 0.3])
        got = Rotate(-v).apply(y, y, 0.5)
        assert float(jnp.linalg.norm(got)) == pytest.approx(float(jnp.linalg.norm(y)), rel=1e-14)
        assert float(got @ y) == pytest.approx(float(y @ y) * np.cos(0.5), rel=1e-12)


# --- what the theory says -------------------------------------------------------------------------------------------


@models
def test_ablation_and_clamping_are_points_of_adding(make):
    """The point ``-alpha <h, v> / ||v||^2``, and ``alpha (to - <h, u>) / ||v||``, another for each state."""
    model = make()
    contexts = jnp.arange(M)
    h = model.embed(contexts)
    v = jnp.asarray(numbers(h.shape[-1], seed=2))
    size = jnp.linalg.norm(v)
    along = (h @ v / size)[..., None]
    for alpha in STRENGTHS:
        for got, points in (
            (Ablate(v), -alpha * along / size),
            (Clamp(v, 0.8), alpha * (0.8 - along) / size),
        ):
            expected = model.decode(Add(v).apply(h, h, points))
            np.testing.assert_allclose(under(model, got, alpha), expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(under(model, Clamp(v, 0.0), 0.4), under(model, Ablate(v), 0.4), rtol=1e-13)


@pytest.mark.parametrize("name", ["ablate", "clamp"])
def test_without_a_norm_they_tilt_by_a_strength_of_each_context(name):
    """B.3 of S at the point of adding: theorems on p_alpha hold at that strength."""
    corpus = ufm.uniform((2, 2), 0.1, length=1)
    model, weights = ufm.exact(corpus), ufm.contrast(4, [0, 1], [2, 3])
    v = ufm.difference_of_means(model, np.arange(4), weights)
    m = ufm.log_odds(corpus, weights)
    size = jnp.linalg.norm(v)
    made = {"ablate": Ablate(v), "clamp": Clamp(v, 2.0)}[name]
    to = {"ablate": 0.0, "clamp": 2.0}[name]
    for alpha in (0.3, 1.0, 2.0):
        logits = ufm.steer(model, np.arange(4), Steering(made), alpha)
        for j in range(4):
            point = alpha * (to - model.H[:, j] @ v / size) / size
            expected = tilting.log_probabilities(corpus.log_p[j], m, point)
            np.testing.assert_allclose(jax.nn.log_softmax(logits[j]), expected, atol=1e-12)
    ablated = ufm.steer(model, np.arange(4), Steering(Ablate(v)), 1.0)
    odds = jax.nn.log_softmax(ablated) @ (m - m.mean())
    np.testing.assert_allclose(odds, odds[0], atol=1e-12)  # nothing along M is left to tell contexts apart


@pytest.mark.parametrize("bias", [False, True])
def test_rotations_before_a_norm_are_the_angle_of_n8(bias):
    """``theta = theta_0 + alpha``, all around the circle, of which adding sees the half with cos(theta) > 0."""
    model = normalised("rms", eps=0.0)
    b = model.bias if bias else None
    model = ufm.NormalisedUFM(model.W, model.H, model.gamma, b)
    v = jnp.asarray(numbers(D, seed=2))
    for alpha in np.linspace(-np.pi, np.pi, 9):
        got = under(model, Rotate(v), alpha)
        for j in range(M):
            path = arc.arc_of(model.W, model.gamma, b, model.H[:, j], v)
            theta = arc.theta_of_alpha(path, 0.0) + alpha
            np.testing.assert_allclose(got[j], arc.arc_logits(path, theta), rtol=1e-11, atol=1e-11)
            if abs(theta) < 1.5:
                same = under(model, Add(v), arc.alpha_of_theta(path, theta), contexts=jnp.asarray([j]))[0]
                np.testing.assert_allclose(got[j], same, rtol=1e-10, atol=1e-10)


def test_with_an_eps_rotations_are_that_angle_of_a_smaller_circle():
    """A rotation keeps the length, so that eps takes the same share of every logit."""
    model, eps = normalised("rms", eps=0.2), 0.2
    v = jnp.asarray(numbers(D, seed=2))
    for alpha in (-2.0, 0.5, 3.0):
        got = under(model, Rotate(v), alpha)
        for j in range(M):
            h = model.H[:, j]
            path = arc.arc_of(model.W, model.gamma, model.bias, h, v)
            share = (1 + D * eps / (h @ h)) ** -0.5
            free = arc.arc_logits(path, arc.theta_of_alpha(path, 0.0) + alpha) - path.c
            np.testing.assert_allclose(got[j], share * free + path.c, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_before_a_norm_without_eps_keeping_the_length_is_adding(kind):
    """With a bias and without one: the bias comes after the norm."""
    model, v = normalised(kind, eps=0.0), jnp.asarray(numbers(D, seed=2))
    for alpha in [*STRENGTHS, 50.0]:
        np.testing.assert_allclose(
            under(model, NormPreservingAdd(v), alpha), under(model, Add(v), alpha), rtol=1e-11, atol=1e-11
        )
    free = ufm.UFM(model.W, model.H)
    assert np.abs(under(free, NormPreservingAdd(v), 1.0) - under(free, Add(v), 1.0)).max() > 0.1


@models
def test_norm_preserving_addition_is_a_rotation_at_every_layer(make):
    """By the angle between y and y + alpha v, which is the way along the arc from strength 0."""
    h = make().embed(jnp.arange(M))
    v = jnp.asarray(numbers(h.shape[-1], seed=2))
    for y in h.reshape(-1, v.size):
        shortest = -(y @ v) / (v @ v)
        width = jnp.linalg.norm(y + shortest * v) / jnp.linalg.norm(v)
        for alpha in STRENGTHS:
            angle = jnp.arctan((alpha - shortest) / width) - jnp.arctan(-shortest / width)
            got = NormPreservingAdd(v).apply(y, y, alpha)
            np.testing.assert_allclose(got, Rotate(v).apply(y, y, angle), rtol=1e-11, atol=1e-12)


# --- in programs ----------------------------------------------------------------------------------------------------


def test_several_in_order_each_with_its_strength():
    model = normalised("rms")
    made = kinds(D)
    names = ["rotate", "clamp when", "norm-preserving", "ablate", "add when"]
    steering = Steering(made[names[0]][0])
    for name in names[1:]:
        steering = steering + Steering(made[name][0])
    scores, score_by_loops = kinds(V)["rotate"]
    steering = steering + Steering(scores, site="decoder")
    alphas = jnp.asarray([0.4, 1.0, -2.0, 0.5, 1.5, -0.3])
    got = ufm.steer(model, jnp.arange(M), steering, alphas)
    for j in range(M):
        y = np.asarray(model.H[:, j])
        for name, alpha in zip(names, alphas[:-1], strict=True):
            y = made[name][1](y, float(alpha))
        expected = score_by_loops(np.asarray(model.decode(jnp.asarray(y))), -0.3)
        np.testing.assert_allclose(got[j], expected, rtol=1e-11, atol=1e-12)


def test_structures_know_what_is_done():
    """Or a program compiled for one is run for another: all of these have a vector as their only leaf, some with a probe."""
    v = jnp.ones(D)
    alike = [Add(v), Ablate(v), Rotate(v), NormPreservingAdd(v)]
    table = jnp.ones((D, D))
    for group in (
        alike,
        [UFM(table, table), LoRA(table, table)],
        [When(inside, v, 0.1) for inside in alike],
        [*map(Steering, alike)],
        [After(3), Where(3)],
    ):
        structures = [jax.tree.structure(value) for value in group]
        for k, structure in enumerate(structures):
            assert [structure == other for other in structures] == [k == j for j in range(len(group))]
            assert hash(structure) == hash(jax.tree.structure(jax.tree.map(lambda leaf: 2 * leaf, group[k])))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(When(Add(v), v, 0.1))]
    assert paths == [".intervention.v", ".probe", ".bias"]


def test_they_are_stacked_by_kind():
    v = jnp.ones(3)
    steering = Steering({k: Ablate(v) for k in range(3)}) + Steering({k: When(Clamp(v, 1.0), v, 0.5) for k in range(2)})
    assert [len(stack.layers) for stack in stacks(steering)] == [3, 2]
    assert repr(steering) == "Steering(0: Ablate, 1: Ablate, 2: Ablate, 0: When(Clamp), 1: When(Clamp))"


def test_lists_become_arrays_inside_too():
    steering = Steering(When(Clamp([1.0, 2.0, 2.0], 3), probe=[1, 0, 0]))
    got = steering.parts[0].intervention
    assert isinstance(got.probe, jax.Array)
    assert isinstance(got.intervention.v, jax.Array)
    y = jnp.asarray([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    expected = [[1 + 8 / 9, 16 / 9, 16 / 9], [-1.0, 0.0, 0.0]]
    np.testing.assert_allclose(steering.apply("residual", y, y, 1.0), expected, rtol=1e-14)


@each
def test_half_types_are_computed_in_float32(name):
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), kinds(D)[name][0])
    full = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), half)
    y = jnp.asarray(numbers(20, D), jnp.bfloat16)
    got = half.apply(y, y, jnp.asarray(0.6, jnp.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, full.apply(y.astype(jnp.float32), y.astype(jnp.float32), 0.6))
    model = UFM(jnp.asarray(numbers(V, D), jnp.bfloat16), jnp.asarray(numbers(D, M), jnp.bfloat16))
    assert under(model, half, 0.6).dtype == jnp.float32
    whole = jax.jit(lambda alpha: half.apply(y, y, alpha))(1.0)
    np.testing.assert_allclose(whole, half.apply(y, y, 1.0), rtol=1e-6)


@each
def test_measures_take_them(name, small_corpus):
    """Increases at strength 0 are 0, and elsewhere those of the logits."""
    model = normalised("rms")
    intervention, _ = kinds(D)[name]
    rises = ufm.probability_increase(model, np.arange(M), Steering(intervention), [0.0, 0.8])
    p = [jax.nn.softmax(under(model, intervention, alpha)) for alpha in (0.0, 0.8)]
    np.testing.assert_array_equal(rises[:, 0], 0)
    np.testing.assert_allclose(rises[:, 1], p[1] - p[0], atol=1e-14)
    losses = ufm.cross_entropy_increase(model, small_corpus, Steering(intervention), [0.0, 0.8])
    log_p = [jax.nn.log_softmax(under(model, intervention, alpha)) for alpha in (0.0, 0.8)]
    expected = small_corpus.weights @ jnp.sum(jnp.exp(small_corpus.log_p) * (log_p[0] - log_p[1]), axis=1)
    np.testing.assert_allclose(losses, [0, expected], atol=1e-13)


def test_the_value_of_a_clamp_can_be_swept():
    model, v = normalised("rms"), jnp.asarray(numbers(D, seed=2))
    values = jnp.asarray([-1.0, 0.0, 2.0])
    got = jax.vmap(lambda to: under(model, Clamp(v, to), 1.0))(values)
    for k, to in enumerate(values):
        np.testing.assert_allclose(got[k], under(model, Clamp(v, float(to)), 1.0), rtol=1e-12)


# --- what is refused ------------------------------------------------------------------------------------------------

ONES = np.ones(D)
WIDTHS = r"steering: expected an intervention for the site residual, from 3 to 3 numbers, got {}"
WITHOUT = r"steering{}.v: expected a vector other than 0, for {}, got 0 in every coordinate"
FINITE = r"steering{}: expected finite numbers, got {}"
REFUSED = {
    "a wide vector": (Ablate(np.ones(4)), WIDTHS.format(r"Ablate with v \(4,\)")),
    "a matrix": (Rotate(np.ones((3, 3))), WIDTHS.format(r"Rotate with v \(3, 3\)")),
    "a number": (NormPreservingAdd(1.0), WIDTHS.format(r"NormPreservingAdd with v \(\)")),
    "nothing": (Ablate(None), WIDTHS.format("Ablate with no numbers")),
    "several values": (Clamp(ONES, np.ones(3)), WIDTHS.format(r"Clamp with v \(3,\), to \(3,\)")),
    "a wide probe": (When(Add(ONES), np.ones(4)), WIDTHS.format(r"When\(Add\) with .*probe \(4,\)")),
    "several biases": (When(Add(ONES), ONES, ONES), WIDTHS.format(r"When\(Add\) with .*bias \(3,\)")),
    "a wide vector inside": (When(Rotate(np.ones(4)), ONES), WIDTHS.format(r"When\(Rotate\) with intervention.v \(4,\)")),
    "zero to ablate": (Ablate(0 * ONES), WITHOUT.format("", "Ablate")),
    "zero to clamp": (Clamp(0 * ONES, 1.0), WITHOUT.format("", "Clamp")),
    "zero to rotate to": (Rotate(jnp.zeros(3)), WITHOUT.format("", "Rotate")),
    "zero inside": (When(Rotate(0 * ONES), ONES), WITHOUT.format(".intervention", "Rotate")),
    "NaN": (Ablate(np.nan * ONES), FINITE.format(".v", "nan at index")),
    "an infinite value": (Clamp(ONES, np.inf), FINITE.format(".to", "inf")),
    "an infinite probe": (When(Add(ONES), np.inf * ONES), FINITE.format(".probe", "inf at index")),
    "a bias of NaN": (When(Add(ONES), ONES, np.nan), FINITE.format(".bias", "nan")),
    "NaN inside": (When(Add(np.nan * ONES), ONES), FINITE.format(".intervention.v", "nan at index")),
    "words": (Clamp(ONES, "high"), r"steering.to: expected real numbers, got 'high'"),
    "a condition on a condition": (
        When(When(Add(ONES), ONES), ONES),
        "steering.intervention: expected an intervention without a probe of its own, got When",
    ),
    "a vector under a condition": (
        When(ONES, ONES),
        "steering.intervention: expected an intervention without a probe of its own, got ndarray",
    ),
    "a steering under a condition": (
        When(Steering(Add(ONES)), ONES),
        "steering.intervention: expected an intervention without a probe of its own, got Steering",
    ),
    "an update that is none": (NullOut(Ablate(ONES)), "steering.update: expected an Add, a LoRA or a Weight, got Ablate"),
}


@pytest.mark.parametrize(("intervention", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(intervention, message):
    model = UFM(jnp.asarray(numbers(V, D)), jnp.asarray(numbers(D, M)))
    with pytest.raises(ValueError, match=f"^{message}"):
        ufm.steer(model, [0], Steering(intervention), 1.0)


def test_conditions_of_any_other_intervention_are_taken():
    model = UFM(jnp.asarray(numbers(V, D)), jnp.asarray(numbers(D, M)))
    for intervention in (LoRA(np.ones((1, D)), np.ones((D, 1))), Weight(np.eye(D), ONES), NullOut(Add(ONES))):
        probe, bias = numbers(D, seed=5), 0.1
        got = under(model, When(intervention, jnp.asarray(probe), bias), 0.5)
        is_open = np.asarray(model.H.T) @ probe + bias > 0
        assert 0 < is_open.sum() < M
        expected = np.where(is_open[:, None], under(model, intervention, 0.5), model.decode(model.H.T))
        np.testing.assert_allclose(got, expected, rtol=1e-13)

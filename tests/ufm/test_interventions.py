import inspect
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory._compilation import compiled_quickly
from ufm import (
    UFM,
    Ablate,
    Add,
    Clamp,
    Intervention,
    LoRA,
    NormalisedUFM,
    NullOut,
    Rotate,
    Steering,
    Weight,
    When,
    cross_entropy_increase,
    curvature,
    divergence,
    init_update,
    logits,
    probability_increase,
    pytree,
    steer,
    sweep,
)
from ufm._pytree import static
from ufm.interventions import FORMS
from ufm.transformer import init_transformer

V, D, M = 4, 3, 5
"""The sizes of `small_corpus`, and a width."""

STRENGTHS = [-3.0, -0.4, 1.0, 20.0]


def numbers(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def ufm():
    return UFM(jnp.asarray(numbers(V, D)), jnp.asarray(numbers(D, M)))


def normalised(kind, eps=1e-3):
    gamma, bias = 1 + 0.3 * numbers(D), 0.5 * numbers(D, seed=1)
    return NormalisedUFM(
        jnp.asarray(numbers(V, D)), jnp.asarray(numbers(D, M)), jnp.asarray(gamma), jnp.asarray(bias), kind, eps
    )


def transformer():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, size=(M, 3)))
    return init_transformer(jax.random.key(0), tokens, V, 4, biased=True)


MODELS = {
    "ufm": ufm,
    "rms": lambda: normalised("rms"),
    "layer": lambda: normalised("layer"),
    "transformer": transformer,
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
small = pytest.mark.parametrize("make", list(MODELS.values())[:3], ids=list(MODELS)[:3])
forms = pytest.mark.parametrize("form", FORMS)


def draw(form, inputs, outputs, seed=2):
    """An update of random numbers."""
    if form == "vector":
        return Add(jnp.asarray(numbers(outputs, seed=seed)))
    if form == "lora":
        return LoRA(jnp.asarray(numbers(2, inputs, seed=seed)), jnp.asarray(numbers(outputs, 2, seed=seed)))
    return Weight(jnp.asarray(numbers(outputs, inputs, seed=seed)), jnp.asarray(numbers(outputs, seed=seed)))


def plainly(update, x):
    """What an update adds to one output, by loops."""
    parts = {name: np.asarray(leaf) for name, leaf in vars(update).items()}
    if isinstance(update, Add):
        return parts["v"]
    if isinstance(update, LoRA):
        hidden = [sum(row[i] * x[i] for i in range(len(x))) for row in parts["down"]]
        return np.array([sum(row[r] * hidden[r] for r in range(len(hidden))) for row in parts["up"]])
    return np.array([sum(row[i] * x[i] for i in range(len(x))) for row in parts["A"]]) + parts["b"]


def normed(model, h):
    """What the decoder of a model reads, from one hidden state."""
    if isinstance(model, UFM):
        return h
    h = h - h.mean() if model.kind == "layer" else h
    return np.asarray(model.gamma) * h / np.sqrt(np.mean(h**2) + model.eps) + np.asarray(model.bias)


def under(model, intervention, alpha, site="residual", contexts=None):
    """Logits of a model under an intervention at a strength."""
    return steer(model, jnp.arange(M) if contexts is None else contexts, Steering(intervention, site=site), alpha)


def assert_no_bit_changes(model, steering):
    """At strength 0, operation by operation: how programs of several round depends on the processor."""
    contexts = jnp.arange(M)
    with jax.disable_jit():
        np.testing.assert_array_equal(steer(model, contexts, steering, 0.0), model.decode(model.embed(contexts)))


# --- one law --------------------------------------------------------------------------------------------------------


@models
@forms
def test_strength_0_changes_no_bit(make, form):
    model = make()
    contexts, compiled = jnp.arange(M), compiled_quickly(steer)
    h = model.embed(contexts)
    for site, widths in model.sites.items():
        steering = Steering(draw(form, *widths), site=site)
        assert_no_bit_changes(model, steering)
        np.testing.assert_allclose(steer(model, contexts, steering, 0.0), model.decode(h), rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(
            compiled(model, contexts, steering, 0.0), compiled(model, contexts, jnp.zeros(h.shape[-1]), 0.0)
        )
        assert np.abs(steer(model, contexts, steering, 1.0) - model.decode(h)).min() > 1e-6


@small
@forms
def test_interventions_by_loops(make, form):
    model = make()
    W, H = np.asarray(model.W), np.asarray(model.H)
    for site, widths in model.sites.items():
        update = draw(form, *widths)
        for m in STRENGTHS:
            for j, got in enumerate(under(model, update, m, site)):
                if site == "residual":
                    expected = W @ normed(model, H[:, j] + m * plainly(update, H[:, j]))
                else:
                    x = normed(model, H[:, j])
                    expected = W @ x + m * plainly(update, x)
                np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@models
def test_a_lora_is_the_weight_of_its_product(make):
    model = make()
    for site, widths in model.sites.items():
        lora = draw("lora", *widths)
        weight = Weight(lora.up @ lora.down, jnp.zeros(widths[1]))
        for m in STRENGTHS:
            got, expected = (under(model, update, m, site) for update in (lora, weight))
            np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


@models
def test_a_vector_is_short_for_adding_it(make):
    model = make()
    v = draw("vector", *model.sites["residual"]).v
    for m in STRENGTHS:
        np.testing.assert_array_equal(under(model, Add(v), m), steer(model, jnp.arange(M), v, m))


@small
def test_what_reads_one_constant_number_is_a_vector(make):
    """States differ in all coordinates but the first, and the updates read nothing else."""
    model = make()
    model = jax.tree.unflatten(jax.tree.structure(model), [model.W, model.H.at[0].set(1.5), *jax.tree.leaves(model)[2:]])
    reads, writes, shift = jnp.asarray([2.0, 0.0, 0.0]), jnp.asarray(numbers(D)), jnp.asarray(numbers(D, seed=3))
    lora, weight = LoRA(reads[None], writes[:, None]), Weight(jnp.outer(writes, reads), shift)
    for update, v in ((lora, 3 * writes), (weight, 3 * writes + shift)):
        for m in STRENGTHS:
            expected = steer(model, jnp.arange(M), v, m)
            np.testing.assert_allclose(under(model, update, m), expected, rtol=1e-13, atol=1e-12)


@small
@forms
def test_an_update_of_what_writes_the_state_is_a_vector_of_each_context(make, form):
    """``v_j = dA h_j + db``, at every strength: N12 behind the weights."""
    model = make()
    update = draw(form, D, D)
    for j in range(M):
        v = jnp.asarray(plainly(update, np.asarray(model.H[:, j])))
        for m in STRENGTHS:
            expected = steer(model, jnp.asarray([j]), v, m)
            got = under(model, update, m, contexts=jnp.asarray([j]))
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_without_a_norm_a_shift_is_an_update_of_rank_one():
    """``W (h + m v) = (W + m (W v) h^T / |h|^2) h``: N12 for the UFM, exactly."""
    model, v = ufm(), jnp.asarray(numbers(D, seed=4))
    h = model.H[:, 2]
    rank_one = Weight(jnp.outer(model.W @ v, h) / (h @ h), jnp.zeros(V))
    for m in STRENGTHS:
        got = under(model, rank_one, m, "decoder")[2]
        np.testing.assert_allclose(got, steer(model, jnp.asarray([2]), v, m)[0], rtol=1e-13)


# --- what is written against the split ------------------------------------------------------------------------------


@small
def test_sweeps_and_measures_take_any_steering(make, small_corpus):
    """A matrix that writes the same for every context is a vector, for all measures."""
    model = make()
    v, alphas, contexts = jnp.asarray(numbers(D, seed=5)), jnp.asarray([-2.0, 0.0, 0.7, 5.0]), jnp.asarray([4, 0, 2])
    steering = Steering(Weight(jnp.zeros((D, D)), v))

    def log_softmax(logits, i):
        return i + jax.nn.log_softmax(logits)

    for budget in (None, 1):
        got = sweep(model, contexts, steering, alphas, log_softmax, budget=budget)
        np.testing.assert_allclose(got, sweep(model, contexts, v, alphas, log_softmax), rtol=1e-12)
    for measure, data in ((probability_increase, contexts), (cross_entropy_increase, small_corpus)):
        np.testing.assert_allclose(measure(model, data, steering, alphas), measure(model, data, v, alphas), atol=1e-13)
    for alpha in (0.0, 0.7):
        np.testing.assert_allclose(
            curvature(model, contexts, steering, alpha), curvature(model, contexts, v, alpha), rtol=1e-10
        )


@small
def test_two_sites_each_with_its_strength(make):
    model = make()
    W, H = np.asarray(model.W), np.asarray(model.H)
    v, lora = jnp.asarray(numbers(D, seed=5)), draw("lora", D, V)
    both = Steering(lora, site="decoder") + Steering(Add(v))
    for first, second in ((0.0, 2.0), (-1.0, 0.5)):
        got = steer(model, jnp.arange(M), both, [first, second])
        for j in range(M):
            x = normed(model, H[:, j] + second * np.asarray(v))
            np.testing.assert_allclose(got[j], W @ x + first * plainly(lora, x), rtol=1e-12, atol=1e-12)


@forms
def test_logits_of_a_half_type_are_in_float32(form):
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ufm())
    for site, widths in model.sites.items():
        update = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), draw(form, *widths))
        assert under(model, update, 2.0, site).dtype == jnp.float32


@small
@forms
def test_interventions_pass_through_transformations(make, form):
    model = make()
    update = draw(form, *model.sites["decoder"])

    def first(update, m):
        return under(model, update, m, "decoder")[0, 0]

    got = jax.jit(jax.value_and_grad(first))(update, 0.5)
    np.testing.assert_allclose(got[0], first(update, 0.5), rtol=1e-13)
    for leaf, change in zip(jax.tree.leaves(update), jax.tree.leaves(got[1]), strict=True):
        step = 1e-6 * jnp.ones_like(leaf)
        moved = [
            jax.tree.unflatten(
                jax.tree.structure(update), [x + sign * step if x is leaf else x for x in jax.tree.leaves(update)]
            )
            for sign in (1, -1)
        ]
        expected = (first(moved[0], 0.5) - first(moved[1], 0.5)) / 2e-6
        np.testing.assert_allclose(jnp.sum(change), expected, rtol=1e-5, atol=1e-8)


# --- taking the concept out -----------------------------------------------------------------------------------------


@forms
def test_null_out_removes_what_points_along_the_update_and_no_more(form):
    update = draw(form, D, V)
    x, y = numbers(40, D, seed=6), numbers(40, V, seed=7)
    got = np.asarray(NullOut(update).apply(jnp.asarray(x), jnp.asarray(y), 3.0))
    signs = set()
    for i in range(40):
        u = plainly(update, x[i])
        signs.add(y[i] @ u > 0)
        if y[i] @ u > 0:
            np.testing.assert_allclose(got[i], y[i] - (y[i] @ u) / (u @ u) * u, rtol=1e-12, atol=1e-13)
            assert abs(got[i] @ u) < 1e-12
        else:
            np.testing.assert_array_equal(got[i], y[i])
    assert signs == {True, False}
    np.testing.assert_array_equal(got, NullOut(update).apply(jnp.asarray(x), jnp.asarray(y), 0.0))


@forms
def test_null_out_of_nothing(form):
    """An update that adds 0 takes nothing out, and its gradient is a number."""
    update = jax.tree.map(jnp.zeros_like, draw(form, D, V))
    x, y = jnp.asarray(numbers(6, D)), jnp.asarray(numbers(6, V))

    def total(update, x, y):
        return jnp.sum(NullOut(update).apply(x, y, 1.0) ** 2)

    np.testing.assert_array_equal(NullOut(update).apply(x, y, 1.0), y)
    gradients = jax.grad(total, argnums=(0, 1, 2))(update, x, y)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(gradients[2], 2 * y)


@models
def test_null_out_at_the_state_of_a_model(make):
    """It is steering by minus the component; where that is not positive it does nothing."""
    model = make()
    h = model.embed(jnp.arange(M))
    v = draw("vector", *model.sites["residual"]).v
    component = np.maximum(h @ v, 0) / (v @ v)
    expected = model.decode(h - component[..., None] * v)
    np.testing.assert_allclose(under(model, NullOut(Add(v)), 0.0), expected, rtol=1e-12, atol=1e-12)
    assert 0 < (component > 0).sum() < component.size


def test_the_law():
    update, x, y = draw("weight", D, V), numbers(D), numbers(V)
    got = update.apply(jnp.asarray(x), jnp.asarray(y), 0.3)
    np.testing.assert_allclose(got, y + 0.3 * plainly(update, x), rtol=1e-13)


# --- where training starts ------------------------------------------------------------------------------------------


@small
@forms
def test_init_adds_nothing_and_has_a_gradient(make, form):
    model = make()
    for site, widths in model.sites.items():
        update = init_update(jax.random.key(0), form, *widths, rank=2)
        assert isinstance(update, FORMS[form])
        assert update.fits(*widths)
        assert not np.any(update.added(jnp.asarray(numbers(6, widths[0]))))

        def loss(update, site=site):
            return jnp.sum(jax.nn.log_softmax(under(model, update, 1.0, site))[:, 0])

        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(jax.grad(loss)(update))) > 1e-3


def test_init_draws_the_lower_matrix_only():
    first, other = (init_update(jax.random.key(k), "lora", 400, 300, rank=100) for k in (0, 1))
    assert (first.down.shape, first.up.shape) == ((100, 400), (300, 100))
    assert float(jnp.std(first.down)) == pytest.approx(400**-0.5, rel=0.02)
    assert np.abs(first.down - other.down).max() > 0.01
    assert init_update(jax.random.key(0), "lora", 9, 8).down.shape == (4, 9)


@forms
def test_init_dtype(form):
    update = init_update(jax.random.key(0), form, 6, 5, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(update)} == {jnp.dtype(jnp.float32)}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "rank", "message"),
    [
        ("lora", 0, "rank: expected a number from 1 to 3, the smaller width of the site, got 0"),
        ("lora", 4, "rank: expected a number from 1 to 3, the smaller width of the site, got 4"),
        ("prompt", 1, "form: expected one of vector, lora, weight, got 'prompt'"),
    ],
)
def test_init_refuses(form, rank, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        init_update(jax.random.key(0), form, 3, 4, rank=rank)


WIDE = r"steering: expected an intervention for the site {}, from 3 to {} numbers, got {} with .*"
REFUSED = {
    "unknown site": (ufm, "vector", (D, D), "head", "site: expected one of residual, decoder, got 'head'"),
    "a site of another model": (transformer, "vector", (4, 4), "decoder", "site: expected one of residual, got 'decoder'"),
    "wide vector": (ufm, "vector", (D, V), "residual", WIDE.format("residual", 3, "Add")),
    "narrow vector": (ufm, "vector", (D, D), "decoder", WIDE.format("decoder", 4, "Add")),
    "lora, inputs": (ufm, "lora", (V, D), "residual", WIDE.format("residual", 3, "LoRA")),
    "lora, outputs": (ufm, "lora", (D, D), "decoder", WIDE.format("decoder", 4, "LoRA")),
    "weight, turned round": (ufm, "weight", (V, D), "decoder", WIDE.format("decoder", 4, "Weight")),
}


@pytest.mark.parametrize(("make", "form", "widths", "site", "message"), REFUSED.values(), ids=REFUSED)
def test_an_intervention_for_another_site_is_refused(make, form, widths, site, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        under(make(), draw(form, *widths), 1.0, site)


def test_ranks_that_differ_and_a_bias_of_another_width_are_refused():
    for update in (
        LoRA(jnp.ones((2, D)), jnp.ones((D, 1))),
        LoRA(jnp.ones((0, D)), jnp.ones((D, 0))),
        Weight(jnp.ones((D, D)), jnp.ones(V)),
    ):
        for intervention in (update, NullOut(update)):
            with pytest.raises(ValueError, match=r"^steering: expected an intervention for the site residual"):
                under(ufm(), intervention, 1.0)
    # As without the run-time type checks of the tests, which refuse them first.
    assert not inspect.unwrap(LoRA.fits)(SimpleNamespace(down=1.0, up=1.0), D, D)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@forms
def test_numbers_that_are_not_finite_are_refused(form, bad):
    update = draw(form, D, D)
    for name, leaf in vars(update).items():
        broken = type(update)(**{**vars(update), name: leaf.at[(0,) * leaf.ndim].set(bad)})
        with pytest.raises(ValueError, match=rf"^steering.{name}: expected finite numbers, got {bad} at index"):
            under(ufm(), broken, 1.0)


def test_an_intervention_says_what_it_does():
    for call in (lambda intervention: intervention.added(jnp.ones(3)), lambda intervention: intervention.fits(3, 3)):
        with pytest.raises(NotImplementedError):
            call(Intervention())


LARGE = 10**10
"""A whole number of more than 32 bits."""


@pytest.mark.parametrize("kind", [list, np.asarray, lambda numbers: [Fraction(x) for x in numbers]])
def test_vectors_of_whole_numbers_and_fractions_of_any_size(kind):
    model, whole = ufm(), [LARGE, -3, 2]
    expected = steer(model, [0], jnp.asarray(whole, float), 1e-10)
    for steering in (kind(whole), Add(kind(whole)), Steering(Add(kind(whole)))):
        np.testing.assert_allclose(steer(model, [0], steering, 1e-10), expected, rtol=1e-12)


OTHERWISE = {
    "the other order of bytes": lambda x: x.astype(x.dtype.newbyteorder()),
    "fractions": lambda x: np.vectorize(Fraction, otypes=[object])(x),
    "long floats": lambda x: x.astype(np.longdouble),
}
"""Arrays of NumPy that JAX takes for others, or does not take."""


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("kind", OTHERWISE)
def test_arrays_are_the_numbers_that_they_hold(kind):
    model, v, other = ufm(), numbers(D), OTHERWISE[kind]
    for make in (lambda x: x, Add, Ablate, lambda x: Clamp(v, x[0]), lambda x: Clamp(v, np.array(x[0], x.dtype))):
        expected = steer(model, [0], make(v), 1.0)  # first: what is compiled by now asks nothing of an array
        np.testing.assert_allclose(steer(model, [0], make(other(v)), 1.0), expected, rtol=1e-12)
    np.testing.assert_allclose(
        divergence(model, [0], other(v), other(np.array([1.0, 2.0]))), divergence(model, [0], v, [1.0, 2.0]), rtol=1e-12
    )


@pytest.mark.parametrize("x64", [True, False])
def test_the_length_of_an_update_plays_no_part_in_taking_it_out(x64):
    with jax.enable_x64(x64):
        v, scales, rtol = numbers(D), (1e-200, 1e200) if x64 else (1e-25, 1e20), 1e-12 if x64 else 1e-5
        model = UFM(jnp.asarray(numbers(4, D)), jnp.asarray(v)[:, None])
        expected = steer(model, [0], NullOut(Add(v)), 1.0)
        assert np.abs(expected - logits(model)[0]).min() > 0.01
        for scale in scales:
            np.testing.assert_allclose(steer(model, [0], NullOut(Add(v * scale)), 1.0), expected, rtol=rtol, atol=rtol)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: When(Add(v), v * 1e-39), r"steering.probe: expected numbers that float32 holds, from 1.18e-38 on, got"),
        (lambda v: Add(v * 1e-40), r"steering.v: expected numbers that float32 holds, from 1.18e-38 on, got"),
        (lambda v: Rotate(v * 1e300), r"steering.v: expected numbers that float32 holds, up to 3.4e\+38, got"),
        (
            lambda v: Add(np.ma.masked_array(v, [True, False, False])),
            r"steering.v: expected .*, got an array with some mask",
        ),
    ],
)
def test_numbers_that_floats_do_not_hold_are_refused(make, message):
    with jax.enable_x64(False), pytest.raises(ValueError, match="^" + message):
        steer(ufm(), [0], make(numbers(D)), 1.0)


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("alpha", [LARGE, LARGE**2, np.int64(LARGE), Fraction(1, 3)])
def test_strengths_and_coordinates_that_are_whole_numbers_or_fractions(alpha, x64):
    with jax.enable_x64(x64):
        model, v, rtol = ufm(), jnp.asarray(numbers(D)), 1e-12 if x64 else 1e-5
        for make in (lambda x: (Add(v), x), lambda x: (Clamp(v, x), 1.0), lambda x: (When(Add(v), v, x), 1.0)):
            np.testing.assert_allclose(steer(model, [0], *make(alpha)), steer(model, [0], *make(float(alpha))), rtol=rtol)
        both = steer(model, [0], Steering(Add(v)) + Steering(Add(v)), [alpha, 0])
        np.testing.assert_allclose(both, steer(model, [0], Add(v), float(alpha)), rtol=rtol)


@pytree
@dataclass(frozen=True)
class AtCoordinate(Intervention):
    """Adds to one coordinate, which is a number of the program, as many times as a constant of it says."""

    coordinate: int
    times: int = static(default=2)

    def added(self, x):
        return sum(jnp.zeros(D).at[self.coordinate].add(1.0) for _ in range(self.times))

    def fits(self, inputs, outputs):
        return outputs == D


def test_whole_numbers_of_an_intervention_of_ones_own_stay_what_they_are():
    model = ufm()
    np.testing.assert_allclose(
        steer(model, [0], AtCoordinate(1), 0.5), steer(model, [0], jnp.asarray([0.0, 1.0, 0.0]), 1.0), rtol=1e-12
    )

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from ufm import (
    Add,
    Steerable,
    Steering,
    Weight,
    curvature,
    divergence,
    init,
    probability_increase,
    steer,
    sweep,
    sweep_states,
    uniform,
)
from ufm.steerable import at_once, pairs, strengths


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Curved(Steerable):
    """A split model that is not linear after the cut: anything that assumes it is fails on it."""

    table: Float[Array, "n d"]
    W: Float[Array, "V d"]

    def embed(self, contexts):
        return self.table[contexts]

    def decode(self, h):
        return jnp.tanh(h) @ self.W.T


@pytest.fixture
def curved():
    rng = np.random.default_rng(0)
    return Curved(jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=(7, 3))))


class Unregistered(Steerable):
    """A class that JAX does not know: only what is compiled needs it to."""

    def embed(self, contexts):
        return jnp.eye(3)[contexts]

    def decode(self, h):
        return jnp.sin(h)


def test_a_model_that_jax_does_not_know_is_steered():
    logits = steer(Unregistered(), [2, 0], Steering(Add(jnp.asarray([0.0, 1.0, 0.0]))), 0.5)
    np.testing.assert_allclose(logits, np.sin([[0, 0.5, 1], [1, 0.5, 0]]), rtol=1e-6)


V = jnp.asarray([0.3, -1.0, 0.5])
ALPHAS = jnp.asarray([-2.0, 0.0, 0.5, 3.0, 1e6])
CONTEXTS = [4, 0, 5, 0]


def test_what_embeds_and_decodes_is_steerable(curved, small_model):
    """The rest has defaults: one site of the width of its states, as many numbers as logits."""
    assert isinstance(small_model, Steerable)
    assert curved.sites == {"residual": (3, 3)}
    assert (curved.n_contexts, curved.activation_size) == (None, None)
    assert curved.described == "Curved, float64"
    for undefined in (lambda: Steerable().embed(jnp.arange(2)), lambda: Steerable().decode(jnp.ones(3))):
        with pytest.raises(NotImplementedError):
            undefined()


def test_steering_by_any_intervention(curved):
    """A model that has no site but its hidden state is steered there."""
    table, W = np.asarray(curved.table), np.asarray(curved.W)
    A, b = np.arange(9.0).reshape(3, 3) / 9, np.array([0.1, 0.2, -0.3])
    weight = steer(curved, jnp.asarray(CONTEXTS), Steering(Weight(jnp.asarray(A), jnp.asarray(b))), -0.7)
    np.testing.assert_allclose(weight, [np.tanh(table[c] - 0.7 * (A @ table[c] + b)) @ W.T for c in CONTEXTS], rtol=1e-12)
    two = Steering(Add(V)) + Steering(Add(jnp.asarray(b)))
    both = sweep(curved, jnp.asarray(CONTEXTS), two, jnp.asarray([[1.0, 2.0], [0.0, -1.0]]), lambda f, _: f)
    for k, (first, second) in enumerate([(1.0, 2.0), (0.0, -1.0)]):
        expected = [np.tanh(table[c] + first * np.asarray(V) + second * b) @ W.T for c in CONTEXTS]
        np.testing.assert_allclose(both[:, k], expected, rtol=1e-12)


def test_steer_moves_the_hidden_state(curved):
    table, W = np.asarray(curved.table), np.asarray(curved.W)
    got = steer(curved, jnp.asarray(CONTEXTS), V, 1.7)
    np.testing.assert_allclose(got, [np.tanh(table[c] + 1.7 * np.asarray(V)) @ W.T for c in CONTEXTS], rtol=1e-12)


def measure(logits, position):
    return {"logits": logits, "weighted": position * logits[0]}


@pytest.mark.parametrize("budget", [1, 7 * 3, 2**20])
def test_sweep_is_steering_at_every_pair(curved, budget):
    got = sweep(curved, jnp.asarray(CONTEXTS), V, ALPHAS, measure, budget=budget)
    assert got["logits"].shape == (4, 5, 7)
    for i, context in enumerate(CONTEXTS):
        for k, alpha in enumerate(ALPHAS):
            expected = np.asarray(steer(curved, jnp.asarray([context]), V, alpha))[0]
            np.testing.assert_allclose(got["logits"][i, k], expected, rtol=1e-13)
            np.testing.assert_allclose(got["weighted"][i, k], i * expected[0], rtol=1e-13)


def test_sweep_from_states_that_are_known(curved):
    h = curved.embed(jnp.asarray(CONTEXTS))
    got = sweep_states(curved, h, V, ALPHAS, measure)
    for name, expected in sweep(curved, jnp.asarray(CONTEXTS), V, ALPHAS, measure).items():
        np.testing.assert_array_equal(got[name], expected)


def test_a_model_says_how_much_it_holds(curved):
    h = curved.embed(jnp.asarray(CONTEXTS[0]))
    assert at_once(curved, h, 21) == 3
    assert at_once(curved, h, 1) == 1
    assert at_once(curved, h) == 2**20 // 7

    class Large(Curved):
        activation_size, budget = 1000, 5000

    large = Large(curved.table, curved.W)
    assert at_once(large, h) == 5
    assert at_once(large, h, 2500) == 2


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_pairs(chunk):
    got = pairs(lambda i, alpha: jnp.stack([i, alpha]), 2, jnp.asarray([10.0, 20.0, 30.0]), chunk)
    np.testing.assert_array_equal(got, [[[i, a] for a in (10, 20, 30)] for i in (0, 1)])


def test_pairs_refuses_chunk():
    with pytest.raises(ValueError, match=r"^chunk: .*got 0"):
        pairs(lambda i, alpha: alpha, 2, ALPHAS, 0)


def temporary_bytes(n_alphas, budget):
    corpus = uniform((8, 8, 8, 8), length=1)
    model = init(jax.random.key(0), corpus, 64)

    def top(model, alphas):
        return sweep(
            model, jnp.arange(corpus.n_contexts), model.H[:, 0], alphas, lambda f, _: jax.nn.logsumexp(f), budget=budget
        )

    return jax.jit(top).lower(model, jnp.zeros(n_alphas)).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_bounded_by_the_budget():
    pairs_of, logits = 32 * 2000, 32 * 2000 * 32
    scalars = 8 * pairs_of
    assert temporary_bytes(2000, 2**30) > 8 * logits
    # What is left is a few numbers for each pair, and the logits of one chunk.
    assert temporary_bytes(2000, 2**12) < 8 * scalars + 4 * 8 * 2**12 < 8 * logits / 3


def test_the_prefix_is_computed_once_per_context(curved):
    class Counting(Curved):
        def embed(self, contexts):
            jax.debug.callback(lambda c: calls.append(c.tolist()), contexts)
            return super().embed(contexts)

    calls = []
    counting = Counting(curved.table, curved.W)
    sweep(counting, jnp.asarray(CONTEXTS), V, ALPHAS, measure, budget=7)
    jax.effects_barrier()
    assert sorted(calls) == sorted(CONTEXTS)


def test_a_batch_of_models(curved):
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), curved)
    got = jax.vmap(lambda model: sweep(model, jnp.asarray(CONTEXTS), V, ALPHAS, lambda f, _: f))(models)
    for i in range(2):
        alone = jax.tree.map(lambda leaf: leaf[i], models)  # noqa: B023
        np.testing.assert_allclose(got[i], sweep(alone, jnp.asarray(CONTEXTS), V, ALPHAS, lambda f, _: f), rtol=1e-13)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([0.0, np.nan], r"finite numbers, got nan at index \(1,\)"),
        ([np.inf], r"finite numbers, got inf at index \(0,\)"),
        (-np.inf, "finite numbers, got -inf"),
        ([], r"a list of strengths, got shape \(0,\)"),
        ([[1.0, 2.0]], r"strengths \[K\], or one for each of the 1 interventions, \[K, 1\], got \(2, 2\)"),
        ([[[1.0]]], r"a list of strengths, got shape \(1, 1, 1\)"),
    ],
)
def test_refuses_strengths(small_model, alphas, message):
    with pytest.raises(ValueError, match="^alphas: expected " + message):
        probability_increase(small_model, [0], jnp.ones(3), alphas)


def first_logit(logits, _):
    return logits[0]


@pytest.mark.parametrize("contexts", [[5], [-1], [0, 9]])
def test_sweep_refuses_contexts_that_are_not_there(small_model, contexts):
    with pytest.raises(ValueError, match=r"^contexts: expected indices from 0 to 4, got"):
        sweep(small_model, contexts, jnp.ones(3), [1.0], first_logit)


@pytest.mark.parametrize(
    "measured",
    [
        lambda model: steer(model, [], V, 1.0),
        lambda model: sweep(model, [], V, [1.0], first_logit),
        lambda model: divergence(model, [], V, [1.0]),
        lambda model: curvature(model, [], V),
    ],
)
def test_refuses_no_contexts(curved, small_model, measured):
    """Of models that say how many they have, and of others."""
    for model in (curved, small_model):
        with pytest.raises(ValueError, match=r"^contexts: expected at least one, got none"):
            measured(model)


@pytest.mark.parametrize("contexts", [[2**32], np.array([1, 2**32 + 1]), [-(2**32)], np.uint32([2**32 - 1])])
def test_a_context_beyond_32_bits_is_not_taken_for_another(contexts):
    with jax.enable_x64(False):
        model = init(jax.random.key(0), uniform(), 3)
        for measured in (lambda: steer(model, contexts, V, 1.0), lambda: divergence(model, np.ravel(contexts), V, [1.0])):
            with pytest.raises(ValueError, match=r"^contexts: expected .*, up to 2147483647, got -?4294967\d+$"):
                measured()
    with pytest.raises(ValueError, match=r"^contexts: expected indices from 0 to"):
        steer(init(jax.random.key(0), uniform(), 3), contexts, V, 1.0)


def test_a_steering_that_is_too_large_is_named_and_not_the_strength(small_model):
    with pytest.raises(ValueError, match=r"^steering: expected one under which .*\(UFM, float64\), got .* at strength 0"):
        curvature(small_model, [0], np.full(3, 1e200))
    for strengths_of, name in ([1.0, 5.0], "steering"), ([5.0], "alphas"):
        with pytest.raises(ValueError, match=f"^{name}: expected .*float64"):
            sweep(small_model, [0], jnp.full(3, 1e308), strengths_of, first_logit)


def test_strengths():
    np.testing.assert_array_equal(strengths(2), [2.0])
    np.testing.assert_array_equal(strengths([-1e6, 1e6]), [-1e6, 1e6])
    assert jax.jit(lambda a: strengths(a).shape)(1.0) == (1,)

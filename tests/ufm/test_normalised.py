import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm import NormalisedUFM, Steerable, entropy, fit, gap, init, init_normalised, logits, norm, steer, sweep, uniform
from ufm.model import FreeFeatures

KINDS = pytest.mark.parametrize("kind", ["rms", "layer"])


def normed(h, gamma, bias, kind, eps):
    """One hidden state, one coordinate at a time."""
    mean = sum(h) / len(h) if kind == "layer" else 0.0
    scale = np.sqrt(sum((x - mean) ** 2 for x in h) / len(h) + eps)
    return [g * (x - mean) / scale + b for x, g, b in zip(h, gamma, bias, strict=True)]


@KINDS
@pytest.mark.parametrize("eps", [0.0, 1e-5, 2.0])
def test_norm_by_hand(kind, eps):
    rng = np.random.default_rng(0)
    h, gamma, bias = rng.normal(size=(2, 3, 5)), rng.normal(size=5), rng.normal(size=5)
    got = norm(jnp.asarray(h), jnp.asarray(gamma), jnp.asarray(bias), kind=kind, eps=eps)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(got[i], normed(h[i], gamma, bias, kind, eps), rtol=1e-13)
    plain = norm(jnp.asarray(h), kind=kind, eps=eps)
    np.testing.assert_allclose(plain[1, 2], normed(h[1, 2], np.ones(5), np.zeros(5), kind, eps), rtol=1e-13)


@KINDS
def test_without_eps_only_the_direction_counts(kind):
    h = jnp.asarray([0.3, -1.0, 2.0, 0.7])
    assert float(jnp.linalg.norm(norm(h, kind=kind))) == pytest.approx(2.0, rel=1e-14)
    np.testing.assert_allclose(norm(1e9 * h, kind=kind), norm(h, kind=kind), rtol=1e-14)
    np.testing.assert_allclose(norm(-h, kind=kind), -norm(h, kind=kind), rtol=1e-14)
    moved = norm(h + 5.0, kind=kind)
    assert np.allclose(moved, norm(h, kind=kind), rtol=1e-13) == (kind == "layer")


@KINDS
@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e-37), ("float32", 1e-25), ("float64", 1e-307), ("float64", 1e-200)]
)
def test_tiny_states_have_a_direction(kind, dtype, size):
    h, close = np.asarray([0.5, -1.0, 3.0]), 1e-6 if dtype == "float32" else 1e-13
    tiny = jnp.asarray(size * h, dtype)
    np.testing.assert_allclose(norm(tiny, kind=kind), norm(jnp.asarray(h), kind=kind), rtol=close)
    slopes = jax.jacobian(lambda h: norm(h, kind=kind))(jnp.asarray(h))
    np.testing.assert_allclose(size * jax.jacobian(lambda h: norm(h, kind=kind))(tiny), slopes, rtol=close, atol=close)
    for eps in (1e-5, 2.0):
        np.testing.assert_allclose(norm(tiny, eps=eps), tiny / np.sqrt(eps), rtol=close)


@pytest.mark.parametrize(("dtype", "eps"), [("float32", 1e-12), ("float32", 1e-30), ("float64", 1e-280)])
def test_tiny_states_beside_a_tiny_eps(dtype, eps):
    h, close = np.asarray([0.5, -1.0, 3.0]), 1e-5 if dtype == "float32" else 1e-13
    tiny = jnp.asarray(eps**0.5 * h, dtype)
    np.testing.assert_allclose(norm(tiny, eps=eps), normed(h, np.ones(3), np.zeros(3), "rms", 1.0), rtol=close)
    at_zero = jax.grad(lambda h: norm(h, eps=eps)[0])(jnp.zeros(3, dtype))
    np.testing.assert_allclose(at_zero, [eps**-0.5, 0, 0], rtol=close)


def test_a_hidden_state_without_a_direction():
    assert np.isnan(norm(jnp.zeros(3))).all()
    assert np.isnan(norm(jnp.ones(4), kind="layer")).all()
    np.testing.assert_array_equal(norm(jnp.ones(4), bias=jnp.arange(4.0), kind="layer", eps=1e-5), np.arange(4.0))


@KINDS
def test_the_split_is_the_model(small_corpus, kind):
    model = init_normalised(jax.random.key(1), small_corpus, 3, kind=kind, eps=0.1, biased=True)
    model = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape), model)
    W, H, gamma, bias = (np.asarray(leaf) for leaf in (model.W, model.H, model.gamma, model.bias))
    assert isinstance(model, Steerable)
    assert isinstance(model, FreeFeatures)
    np.testing.assert_array_equal(model.embed(jnp.asarray([3, 0, 3])), H[:, [3, 0, 3]].T)
    expected = [W @ normed(H[:, j], gamma, bias, kind, 0.1) for j in range(5)]
    np.testing.assert_allclose(logits(model), expected, rtol=1e-13)
    v = jnp.asarray([1.0, -2.0, 0.5])
    steered = [W @ normed(H[:, j] + 0.7 * np.asarray(v), gamma, bias, kind, 0.1) for j in (4, 1)]
    np.testing.assert_allclose(steer(model, jnp.asarray([4, 1]), v, 0.7), steered, rtol=1e-13)
    swept = sweep(model, jnp.asarray([4, 1]), v, jnp.asarray([0.7, 0.0]), lambda f, _: f)
    np.testing.assert_allclose(swept[:, 0], steered, rtol=1e-13)


def test_init(small_corpus):
    free = init(jax.random.key(2), small_corpus, 6, scale=0.5)
    model = init_normalised(jax.random.key(2), small_corpus, 6, kind="layer", eps=1e-6)
    np.testing.assert_array_equal(model.W, free.W)
    np.testing.assert_array_equal(model.H, free.H)
    np.testing.assert_array_equal(model.gamma, np.ones(6))
    assert (model.bias, model.kind, model.eps) == (None, "layer", 1e-6)
    biased = init_normalised(jax.random.key(2), small_corpus, 6, biased=True, dtype=jnp.float32)
    np.testing.assert_array_equal(biased.bias, np.zeros(6))
    assert {leaf.dtype for leaf in jax.tree.leaves(biased)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "batch"}, r"kind: expected one of \('rms', 'layer'\), got 'batch'"),
        ({"eps": -1.0}, "eps: expected a number of at least 0, got -1.0"),
        ({"d": 1}, "d: expected a width of at least 2, which the norm turns in a circle, got 1"),
        ({"d": 2, "kind": "layer"}, "d: expected a width of at least 3, .*, got 2"),
    ],
)
def test_refuses(small_corpus, arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        init_normalised(jax.random.key(0), small_corpus, **({"d": 4} | arguments))
    if "kind" in arguments and "d" not in arguments:
        with pytest.raises(ValueError, match="^" + message):
            norm(jnp.ones(3), kind=arguments["kind"])


@pytest.mark.parametrize(("kind", "biased"), [pytest.param("rms", False, marks=pytest.mark.slow), ("layer", True)])
def test_trains_to_the_bottom_of_the_default_corpus(kind, biased):
    corpus = uniform()
    start = init_normalised(jax.random.key(0), corpus, 16, kind=kind, biased=biased)
    result = fit(corpus, start=start, tolerance=1e-25)
    assert isinstance(result.model, NormalisedUFM)
    assert result.converged
    assert result.gaps[0] == pytest.approx(float(gap(start, corpus)), rel=1e-12)
    assert result.entropy == float(entropy(corpus))
    assert (result.model.bias is None) == (not biased)
    np.testing.assert_allclose(jax.nn.log_softmax(logits(result.model)), corpus.log_p, atol=1e-10)


def test_trains_in_float32():
    with jax.enable_x64(False):
        corpus = uniform((2, 3), 0.1, length=2)
        result = fit(corpus, start=init_normalised(jax.random.key(0), corpus, 6, biased=True), tolerance=1e-7)
        assert result.converged
        assert {leaf.dtype for leaf in jax.tree.leaves(result.model)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_refuses_hidden_states_that_are_not_finite(wrong):
    with pytest.raises(ValueError, match=r"^h: expected .* at index \(1, 0\)"):
        norm(jnp.asarray([[1.0, 2.0], [wrong, 1.0]]))

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import ufm
from tests.oracles import close, divergence, softmax
from ufm import UFM, cross_entropy, exact, from_table, gap, init, logits
from ufm._numerics import exp_minus_tangent


@pytest.mark.parametrize(
    "x", [0.0, 1e-150, 1e-12, -1e-9, 3e-5, -1e-3, 0.0199, 0.0201, -0.0199, -0.0201, 0.5, -2.0, 40.0, -700.0]
)
def test_exp_minus_tangent_to_full_precision(x):
    with mpmath.workdps(400):
        expected = mpmath.exp(mpmath.mpf(x)) - 1 - mpmath.mpf(x)
    assert close(exp_minus_tangent(jnp.asarray(x)), expected, rtol=2e-14)


def test_exp_minus_tangent_is_differentiable_on_both_sides_of_its_switch():
    x = jnp.asarray([-0.5, -0.021, -0.019, 0.0, 1e-6, 0.019, 0.021, 0.5])
    np.testing.assert_allclose(jax.vmap(jax.grad(exp_minus_tangent))(x), jnp.expm1(x), rtol=1e-12)


def test_init(small_corpus):
    model = init(jax.random.key(0), small_corpus, 400, scale=0.3)
    assert (model.W.shape, model.H.shape) == ((4, 400), (400, 5))
    assert float(jnp.std(model.W)) == pytest.approx(0.3, rel=0.1)
    assert float(jnp.std(model.H)) == pytest.approx(0.3, rel=0.1)
    assert abs(float(jnp.corrcoef(model.W[0], model.H[:, 0])[0, 1])) < 0.2
    assert init(jax.random.key(0), small_corpus, 2, dtype=jnp.float32).W.dtype == jnp.float32


@pytest.mark.parametrize("d", [0, -3])
def test_init_refuses_width(small_corpus, d):
    with pytest.raises(ValueError, match=f"^d: .*got {d}"):
        init(jax.random.key(0), small_corpus, d)


def test_the_split_is_the_model(small_model):
    W, H = np.asarray(small_model.W), np.asarray(small_model.H)
    np.testing.assert_array_equal(small_model.embed(jnp.asarray([3, 0, 3])), H[:, [3, 0, 3]].T)
    np.testing.assert_array_equal(small_model.embed(jnp.asarray(2)), H[:, 2])
    np.testing.assert_allclose(small_model.decode(small_model.embed(jnp.asarray([3, 0]))), H[:, [3, 0]].T @ W.T, rtol=1e-13)
    np.testing.assert_allclose(logits(small_model), (W @ H).T, rtol=1e-13)


def test_exact_satisfies_assumption_2(small_corpus):
    model = exact(small_corpus)
    np.testing.assert_allclose(softmax(np.asarray(logits(model))), np.exp(small_corpus.log_p), rtol=1e-13)
    assert 0 <= float(gap(model, small_corpus)) < 1e-28
    assert float(cross_entropy(model, small_corpus)) == pytest.approx(float(ufm.entropy(small_corpus)), rel=1e-15)


def test_exact_does_not_hide_log_probabilities_in_its_hidden_states(small_corpus):
    h = np.asarray(exact(small_corpus).H.T)
    centred = np.asarray(small_corpus.log_p) - np.asarray(small_corpus.log_p).mean(axis=1, keepdims=True)
    assert np.abs(h - centred).max() > 0.1


@pytest.mark.parametrize("distance", [3.0, 1e-2, 1e-6, 1e-11])
def test_gap_to_50_digits(small_corpus, distance):
    at_zero = exact(small_corpus)
    model = UFM(at_zero.W, at_zero.H + distance * jax.random.normal(jax.random.key(1), at_zero.H.shape))
    rows = zip(np.asarray(small_corpus.log_p), np.asarray(logits(model)), np.asarray(small_corpus.weights), strict=True)
    expected = mpmath.fsum(float(w) * divergence(log_p, f) for log_p, f, w in rows)
    assert close(gap(model, small_corpus), expected, rtol=1e-13 + 1e-14 / distance)


def test_cross_entropy_by_brute_force(small_corpus, small_model):
    p, q = np.exp(np.asarray(small_corpus.log_p)), softmax(np.asarray(logits(small_model)))
    expected = -sum(
        float(small_corpus.weights[j]) * p[j, z] * np.log(q[j, z]) for j in range(p.shape[0]) for z in range(p.shape[1])
    )
    assert float(cross_entropy(small_model, small_corpus)) == pytest.approx(expected, rel=1e-14)


def test_gap_with_probabilities_of_zero(small_model):
    p = np.array([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0], [0.25] * 4, [0.0, 0.0, 0.5, 0.5]])
    corpus = from_table(p, [[0, 1], [2, 3]], [0, 1, 0, 1, 1])
    q = softmax(np.asarray(logits(small_model)))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0)
    assert float(gap(small_model, corpus)) == pytest.approx(terms.sum(axis=1).mean(), rel=1e-13)
    assert np.isfinite(np.asarray(jax.grad(lambda model: gap(model, corpus))(small_model).W)).all()


def test_gap_of_a_batch_of_models(small_corpus):
    models = jax.vmap(lambda key: init(key, small_corpus, 3))(jax.random.split(jax.random.key(2), 3))
    got = jax.vmap(lambda model: gap(model, small_corpus))(models)
    one_by_one = [float(gap(jax.tree.map(lambda leaf: leaf[i], models), small_corpus)) for i in range(3)]  # noqa: B023
    np.testing.assert_allclose(got, one_by_one, rtol=1e-14)


@pytest.mark.parametrize("scale", [-0.3, 1e308])
def test_init_refuses_scale(small_corpus, scale):
    with pytest.raises(ValueError, match=r"^scale: expected a standard deviation from 0 to 1\.12e\+307, got "):
        init(jax.random.key(0), small_corpus, 4, scale=scale)


@pytest.mark.parametrize("measure", [gap, cross_entropy])
def test_refuses_a_model_of_another_corpus(small_model, measure):
    for corpus in (ufm.uniform((3, 3), length=1), ufm.uniform((2, 2), length=1)):
        wanted = rf"W \[{corpus.vocabulary_size}, d\] and H \[d, {corpus.n_contexts}\] .* got W \(4, \d\) and H \(\d, 5\)"
        with pytest.raises(ValueError, match="^model: expected " + wanted):
            measure(small_model, corpus)


def test_refuses_parameters_that_do_not_fit_each_other(small_model):
    for W, H, got in (
        (small_model.W[:, :1], small_model.H, r"W \(4, 1\) and H"),
        (small_model.W[0], small_model.H, r"W \(\d,\) and H"),
        ("a", "b", "'a' and 'b'"),
    ):
        with pytest.raises(
            ValueError, match=r"^model: expected arrays W \[V, d\] and H \[d, m\] of one width d, got " + got
        ):
            logits(UFM(W, H))


@pytest.mark.usefixtures("as_users_have_it")
def test_parameters_of_few_bits_are_not_cut_off():
    w, h = np.arange(8, dtype=np.uint8).reshape(4, 2) * 30, np.arange(8, dtype=np.uint8).reshape(2, 4)
    expected = (w.astype(float) @ h.astype(float)).T
    for kind in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(logits(UFM(kind(w), kind(h))), expected)
        np.testing.assert_array_equal(ufm.steer(UFM(kind(w), kind(h)), np.arange(4), np.zeros(2), 1.0), expected)

"""Models with a gap: what random ones are, and what steering costs them where training is at rest (N13)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import ufm
from theory import routes, trained
from theory.statements import n13_stationarity as n13
from theory.trained import IMPERFECT, KINDS


@pytest.fixture(scope="module")
def drawn():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 200)
        designs, parameters = jax.vmap(trained.sample)(keys)
        return designs, jax.vmap(trained.assemble)(designs, parameters)


def test_rows_are_distributions(drawn):
    _, batch = drawn
    p = np.exp(batch.log_p)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-12)


def losses(instance, W, H):
    log_q = jax.nn.log_softmax((W @ H).T)
    penalty = (instance.decay[0] * jnp.sum(W**2) + instance.decay[1] * jnp.sum(H**2)) / 2
    return penalty - jnp.sum(instance.weights[:, None] * jnp.exp(instance.log_p) * log_q)


def test_models_are_at_rest_as_their_kind_says(drawn):
    """By the derivatives that JAX takes of the loss, weight decay included."""
    designs, batch = drawn
    gradients = jax.vmap(lambda i: jax.grad(lambda W, H: losses(i, W, H), argnums=(0, 1))(i.W, i.H))(batch)
    of_w, of_h = (np.abs(np.asarray(g)).max(axis=(1, 2)) for g in gradients)
    along = np.abs(np.einsum("ndm,nd->n", np.asarray(gradients[1]), np.asarray(batch.v)))
    kind = np.asarray(designs.kind)
    for name in KINDS[:2]:
        assert of_w[kind == KINDS.index(name)].max() < 1e-12
        assert of_h[kind == KINDS.index(name)].max() < 1e-12
    weak = kind == KINDS.index("along v")
    assert along[weak].max() < 1e-12
    assert np.median(of_h[weak]) > 1e-3
    assert np.median(along[kind == KINDS.index("anything")]) > 1e-3
    assert (np.asarray(batch.decay)[kind != 0] == 0).all()
    assert np.asarray(jax.vmap(lambda i: i.gap)(batch))[np.asarray(designs.width) < 3].min() > 0


def test_the_bound_of_the_slope_is_nearly_attained(drawn):
    designs, batch = drawn
    share = np.asarray(jax.vmap(lambda i: jnp.abs(n13.slope_at_zero(i)) / n13.slope_bound(i))(batch))
    extremal = np.asarray(designs.kind) == KINDS.index("extremal")
    assert share.max() <= 1 + 1e-9
    assert share[extremal].min() > 0.9999
    assert share[~extremal].max() < 0.9


def test_narrow_models_stay_narrow():
    corpus = trained.corpus_of_any_rows()
    start = trained.narrow(ufm.init(jax.random.key(0), corpus, 9), 2)
    model = ufm.fit(corpus, start=start, tolerance=0.0, decay=1e-3).model
    assert (np.asarray(model.W)[:, 2:] == 0).all()
    assert (np.asarray(model.H)[2:] == 0).all()
    assert float(ufm.gap(model, corpus)) > 0.05


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_before_the_decoder_takes_the_slope_away(bias):
    """``h_j = A x_j + b``, a decoder that is not trained: only with b is the loss at rest along every direction."""
    rng = np.random.default_rng(0)
    x, rows, U = rng.normal(size=(12, 4)), rng.dirichlet(np.ones(7), size=12), jnp.asarray(rng.normal(size=(7, 3)))

    def loss(flat, shift):
        A, b = flat[:12].reshape(4, 3), flat[12:]
        h = x @ A + (b if bias else 0) + shift
        return -jnp.mean(jnp.sum(rows * jax.nn.log_softmax(h @ U.T), axis=-1))

    gradient, zero = jax.jit(jax.grad(loss)), jnp.zeros(3)
    best = minimize(
        lambda flat: float(loss(jnp.asarray(flat), zero)),
        np.zeros(15),
        jac=lambda flat: np.asarray(gradient(jnp.asarray(flat), zero)),
        options={"gtol": 1e-10},
    )
    slopes = np.asarray(jax.grad(loss, argnums=1)(jnp.asarray(best.x), zero))
    assert (float(np.abs(slopes).max()) < 1e-8) is bias
    if not bias:
        assert np.abs(slopes).max() > 1e-2


def test_populations_hold_what_statements_need():
    population = routes.populate(jax.random.key(7), 60, IMPERFECT)
    assert len(set(np.asarray(jnp.sum(jnp.any(population.W != 0, axis=1), axis=-1)).tolist())) == 3

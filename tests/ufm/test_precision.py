import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

import ufm
from tests.oracles import softmax
from tests.programs import asks_for_less, products
from theory import arc, predicted, tilting
from theory.instance import make_instance
from ufm import (
    LoRA,
    NormalisedUFM,
    Steering,
    Weight,
    concept_increase,
    contrast,
    cross_entropy,
    cross_entropy_increase,
    curvature,
    difference_of_means,
    divergence,
    init,
    init_normalised,
    log_odds,
    norm,
    probability_increase,
    steer,
    uniform,
)
from ufm.precision import full, in_float64, of_products
from ufm.transformer import added_in_the_limit, init_transformer


def in_float32():
    """A corpus, models of it, a contrast and strengths, in float32."""
    with jax.enable_x64(False):
        corpus = uniform((2, 2), 0.1)
        m = corpus.n_contexts
        models = {
            "ufm": init(jax.random.key(0), corpus, 6),
            "normalised": init_normalised(jax.random.key(0), corpus, 6, kind="layer"),
            "transformer": init_transformer(jax.random.key(1), jnp.zeros((m, 3), int), 4, d=4),
        }
        steerings = {
            "lora": Steering(LoRA(jnp.ones((2, 6)), jnp.ones((4, 2))), site="decoder"),
            "weight": Steering(Weight(jnp.ones((6, 6)), jnp.ones(6))),
        }
        models |= {"lora": models["ufm"], "weight": models["normalised"]}
        return corpus, models, steerings, contrast(m, [0], [m - 1])


CORPUS, MODELS, STEERINGS, CONTRAST = in_float32()
ALPHAS = np.array([-1.0, 0.5])


def direction(name):
    return STEERINGS.get(name, jnp.ones(MODELS[name].embed(jnp.arange(1)).shape[-1]))


@pytest.mark.parametrize("name", MODELS)
def test_products_of_models_keep_float32(name):
    with jax.enable_x64(False):
        model, v, everyone = MODELS[name], direction(name), jnp.arange(CORPUS.n_contexts)
        for measure in (
            lambda model, v: steer(model, everyone, v, 1.0),
            lambda model, v: probability_increase(model, everyone, v, ALPHAS),
            lambda model, v: concept_increase(model, everyone, v, ALPHAS, CORPUS.concepts),
            lambda model, v: cross_entropy_increase(model, CORPUS, v, ALPHAS),
            lambda model, v: divergence(model, everyone, v, ALPHAS),
            lambda model, v: curvature(model, everyone, v),
            lambda model, v: jax.grad(lambda u: curvature(model, everyone, u).sum())(v),
            lambda model, v: jax.vmap(lambda a: divergence(model, everyone, v, a))(jnp.ones((2, 1))),
        ):
            assert asks_for_less(measure, model, v) == []
        if name != "transformer":
            weights = CONTRAST.astype(jnp.float32)
            assert asks_for_less(lambda model: difference_of_means(model, everyone, weights), model) == []


def test_products_of_training_and_theory_keep_float32():
    with jax.enable_x64(False):
        model = MODELS["ufm"]
        weights, m, p = CONTRAST.astype(jnp.float32), jnp.arange(4.0), jnp.log(jnp.full(4, 0.25))
        W, gamma, h = jnp.ones((4, 6)), jnp.ones(6), jnp.arange(6.0)
        path = arc.arc_of(W, gamma, gamma, h, gamma + h**2)
        instance = make_instance(CORPUS, [0], [CORPUS.n_contexts - 1], target=0)
        for function, arguments in (
            (lambda model: cross_entropy(model, CORPUS), (model,)),
            (lambda model: jax.grad(cross_entropy)(model, CORPUS), (model,)),
            (lambda weights: log_odds(CORPUS, weights), (weights,)),
            (lambda m: predicted._partition_by_product(CORPUS.log_rows, m, jnp.ones(3), CORPUS.concepts, 100), (m,)),
            (tilting.mean, (p, m, 1.0)),
            (tilting.variance, (p, m, 1.0)),
            (lambda h: arc._arc_of(W, gamma, gamma, h, gamma, "rms", 0.0), (h,)),
            (lambda v: arc.limit(W, gamma, gamma, v, 1), (h,)),
            (arc.slopes, (path, 0.3)),
            (arc.curvatures, (path, 0.3)),
            (lambda instance: instance.log_odds, (instance,)),
            (lambda model: added_in_the_limit(model, jnp.ones(4)), (MODELS["transformer"],)),
        ):
            assert asks_for_less(function, *arguments) == []
        # The search of a root hides its program from those who walk jaxprs in some releases; what is compiled shows it.
        for function, arguments in ((tilting.strength_of_mean, (p, m, 1.0)), (tilting.peaks, (p, m))):
            lines = jax.jit(function).lower(*arguments).as_text().splitlines()
            products = [line for line in lines if "stablehlo.dot_general" in line]
            assert products
            assert all("HIGHEST" in line for line in products)


def test_what_trains_keeps_float32():
    with jax.enable_x64(False):
        start = MODELS["ufm"]
        pairs = products(lambda start: ufm.training._train(start, CORPUS, 0.0, 3, 3, ufm.OPTIMIZERS["lbfgs"])[0], start)
        assert ("float32", lax.Precision.HIGHEST) in pairs
        assert [pair for pair in pairs if pair[1] is not lax.Precision.HIGHEST] == []


def test_the_wrapper_leaves_the_setting_as_it_was():
    before = jax.config.jax_default_matmul_precision
    assert full(lambda: jax.config.jax_default_matmul_precision)() == "highest"
    assert jax.config.jax_default_matmul_precision == before
    assert asks_for_less(lambda x: x @ x, jnp.ones((2, 2), jnp.float32)) != []


def test_half_types_and_fast_products_are_left_at_the_default():
    assert of_products(jnp.float32) is of_products(jnp.float64) is lax.Precision.HIGHEST
    assert of_products(jnp.float32, fast=True) is of_products(jnp.bfloat16) is lax.Precision.DEFAULT


STAND_IN = """
import threading
import jax
import ufm.precision
cpu, other = jax.devices()
# The other device stands for an accelerator: it is the default, and JAX's list of CPU devices begins with the first.
jax.config.update("jax_default_device", other)
import jax.numpy as jnp
import ufm
def where(x): return next(iter(x.devices())) is cpu, str(x.dtype)
there = jnp.ones(3)
with ufm.in_float64():
    corpus = ufm.uniform()
    print(where(corpus.log_rows), where(ufm.fit(corpus, d=3, max_steps=2).model.W))
    print(where(there + 1), where(jax.jit(jnp.sin)(there)))
    thread = threading.Thread(target=lambda: print(where(jnp.ones(1))))
    thread.start(), thread.join()
print(where(jnp.ones(1)))
from sim.checks.verify import train_examples
print(where(train_examples(names=["default"])["default"].fit.model.W))
"""


def test_float64_is_on_the_cpu_device_of_this_thread():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", STAND_IN], env=environment, capture_output=True, text=True, check=True)
    made, moved, thread, after, examples = done.stdout.splitlines()
    assert made == " ".join(["(True, 'float64')"] * 2)
    assert moved == " ".join(["(True, 'float32')"] * 2)
    assert (thread, after) == ("(False, 'float32')",) * 2
    assert examples == "(True, 'float64')"


def test_without_a_cpu_device_the_default_one_does_the_work(monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    with jax.enable_x64(False), in_float64():
        assert jnp.ones(1).dtype == jnp.float64


# --- what is measured ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_measures_of_half_types_are_right_to_float32(half):
    corpus, models, *_ = in_float32()
    model = jax.tree.map(lambda leaf: leaf.astype(half), models["ufm"])
    kind = ml_dtypes.bfloat16 if half == jnp.bfloat16 else np.float16
    W, H = (np.asarray(part).astype(kind).astype(float) for part in (model.W, model.H))
    v = np.linspace(-1, 1, 6)
    alphas = np.array([0.0, 0.01, 0.05, 3.0])
    p = np.stack([[softmax(W @ (h + alpha * v)) for alpha in alphas] for h in H.T])
    with jax.enable_x64(False):
        contexts, steering = jnp.arange(corpus.n_contexts), jnp.asarray(v, jnp.float32)
        got = divergence(model, contexts, steering, alphas)
        kl = np.sum(p[:, :1] * (np.log(p[:, :1]) - np.log(p)), axis=-1)
        np.testing.assert_allclose(got, kl, rtol=2e-4, atol=1e-11)
        assert np.abs(got[:, 0]).max() < 1e-12
        rise = probability_increase(model, contexts, steering, alphas)
        np.testing.assert_allclose(rise, p - p[:, :1], atol=3e-7)
        coefficient = curvature(model, contexts, steering)
        slope = W @ v
        mean = p[:, 0] @ slope
        np.testing.assert_allclose(coefficient, (p[:, 0] @ slope**2 - mean**2) / 2, rtol=1e-5)


# --- edges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_norm_does_not_overflow(kind, dtype):
    h = np.linspace(-1, 3, 7)
    wanted = norm(jnp.asarray(h), kind=kind, eps=0.0)
    reach = 1e37 if dtype == "float32" else 1e307
    for size in (1e10, 1e17, 1e20, 1e30, reach):
        got = norm(jnp.asarray(size * h, dtype), jnp.ones(7, dtype), kind=kind, eps=1e-5)
        close = 1e-6 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(got, wanted, rtol=close, atol=close)


def test_the_norm_of_ordinary_states_is_the_formula_bit_for_bit():
    h = jnp.asarray(np.random.default_rng(0).normal(size=(5, 9)) * 1e3, jnp.float32)
    np.testing.assert_array_equal(norm(h, eps=1e-5), h / jnp.sqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-5))


def test_derivatives_of_a_norm_are_right_for_huge_states():
    h = jnp.asarray([1e25, -2e25, 3e24], jnp.float32)
    small = jax.jacobian(norm)(h / 1e25)
    np.testing.assert_allclose(1e25 * jax.jacobian(norm)(h), small, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e10, 1e17, 1e20, 1e30])
def test_far_out_steering_gives_the_limit(alpha):
    with jax.enable_x64(False):
        for name in ("normalised", "transformer"):
            model, v = MODELS[name], jnp.arange(direction(name).size, dtype=jnp.float32) % 4 + 1
            far = divergence(model, [0, 1], v, [1e7])
            np.testing.assert_allclose(divergence(model, [0, 1], v, [alpha]), far, rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_and_strengths_that_are_not_finite_are_refused(bad):
    model, v = MODELS["ufm"], jnp.ones(6)
    for measure in (divergence, probability_increase):
        with pytest.raises(ValueError, match=r"^steering.v: .*(?i:nan|inf)"):
            measure(model, [0], v * bad, [1.0])
        with pytest.raises(ValueError, match=r"^alphas: .*(?i:nan|inf)"):
            measure(model, [0], v, [1.0, bad])
    with pytest.raises(ValueError, match=r"^steering.v: .*(?i:nan|inf)"):
        steer(model, [0], v * bad, 1.0)
    with pytest.raises(ValueError, match=r"^alpha: .*(?i:nan|inf)"):
        steer(model, [0], v, bad)
    with pytest.raises(ValueError, match=r"^steering.v: .*(?i:nan|inf)"):
        cross_entropy_increase(model, CORPUS, v * bad, [1.0])
    with pytest.raises(ValueError, match=r"^steering.v: .*(?i:nan|inf)"):
        curvature(model, [0], v * bad)


@pytest.mark.parametrize(
    "measured",
    [
        lambda model, v, alpha: divergence(model, [0, 1], v, [0.0, 1.0, alpha, -alpha]),
        lambda model, v, alpha: probability_increase(model, [0, 1], v, [0.0, 1.0, alpha, -alpha]),
        lambda model, v, alpha: cross_entropy_increase(model, CORPUS, v, [0.0, 1.0, alpha, -alpha]),
        lambda model, v, alpha: ufm.sweep(
            model, jnp.arange(2), v, jnp.asarray([1.0, alpha]), lambda row, _: jnp.argmax(row)
        ),
        lambda model, v, alpha: steer(model, [0], v, alpha),
    ],
)
def test_logits_that_are_not_finite_are_an_error_that_names_type_and_strength(measured):
    with jax.enable_x64(False):
        model, v = replace(MODELS["ufm"], W=1e5 * MODELS["ufm"].W), jnp.ones(6)
        measured(model, v, 1e3)
        with pytest.raises(ValueError, match=r"^alphas: .*UFM, float32.*e\+37"):
            measured(model, v, 2e37)


def test_strengths_beyond_the_precision_of_the_scope_are_refused():
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"^alphas: .*float32"):
        divergence(MODELS["ufm"], [0], jnp.ones(6), [1.0, 1e39])
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"^alpha: .*float32, got 1e\+39"):
        steer(MODELS["ufm"], [0], jnp.ones(6), 1e39)


@pytest.mark.parametrize(
    "measured", [ufm.logits, lambda model: ufm.gap(model, CORPUS), lambda model: ufm.cross_entropy(model, CORPUS)]
)
def test_a_model_whose_logits_overflow_is_refused(measured):
    with jax.enable_x64(False):
        model = MODELS["ufm"]
        assert np.isfinite(measured(replace(model, W=1e20 * model.W))).all()
        with pytest.raises(ValueError, match=r"^model: .*finite \(UFM, float32\)"):
            measured(replace(model, W=1e38 * model.W, H=1e3 * model.H))


def test_one_logit_that_is_not_finite_spoils_all_of_them():
    """Minus infinity alone would pass for a probability of 0."""
    with jax.enable_x64(False):
        model = MODELS["ufm"]
        broken = replace(model, W=model.W.at[0].set(-1e30))
        with pytest.raises(ValueError, match=r"^alphas"):
            probability_increase(broken, [0], jnp.ones(6), [1e10], tokens=[1])
        got = jax.jit(lambda a: ufm.sweep(broken, jnp.arange(1), jnp.ones(6), a, lambda row, _: row[1]))(jnp.asarray([1e10]))
        assert np.isnan(got).all()


@pytest.mark.parametrize("alpha", [1e308, -1e308])
def test_predictions_refuse_strengths_whose_tilts_overflow(alpha):
    corpus = uniform((2, 2), 0.1)
    m = log_odds(corpus, contrast(corpus.n_contexts, [0], [corpus.n_contexts - 1]))
    for twin in (predicted.probability_increase, predicted.concept_increase):
        with pytest.raises(ValueError, match=r"^alphas: .*float64"):
            twin(corpus, [0], m, [alpha])
        assert np.isfinite(twin(corpus, [0], m, [alpha / 1e10])).all()
    with pytest.raises(ValueError, match=r"^alphas"):
        predicted.cross_entropy_increase(corpus, m, [alpha])


@pytest.mark.parametrize(("dtype", "alpha"), [("float32", 1e38), ("float32", -1e308), ("float64", 1e308)])
def test_tilts_refuse_strengths_at_which_they_overflow(dtype, alpha):
    with jax.enable_x64(dtype == "float64"):
        m = jnp.asarray([2.0, 0.5, -3.0], dtype)
        log_p = jax.nn.log_softmax(m)
        for form in (tilting.log_probabilities, tilting.log_partition, tilting.mean, tilting.variance):
            with pytest.raises(ValueError, match=rf"^alpha: .*finite in {dtype}"):
                form(log_p, m, alpha)
            assert np.isfinite(form(log_p, m, alpha / 10 if abs(alpha) < 1e300 or dtype == "float64" else -1e37)).all()


@pytest.mark.parametrize(("dtype", "alphas"), [("float32", [1e25, 3e38]), ("float64", [1e200, 1e308])])
def test_behind_a_norm_the_largest_strengths_reach_the_limit(dtype, alphas):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(1)
        W, gamma, h, v = (jnp.asarray(rng.normal(size=n), dtype) for n in ((5, 4), 4, 4, 4))
        path, law = arc.arc_of(W, gamma, None, h, 3 * v), arc.law(W, gamma, None, h, 3 * v)
        for alpha in [sign * size for sign in (1, -1) for size in alphas]:
            limit = arc.limit(W, gamma, None, v, int(np.sign(alpha)))
            for logits in (arc.logits_at(path, alpha), arc.law_logits(law, alpha)):
                np.testing.assert_allclose(logits, limit, rtol=2e-5 if dtype == "float32" else 1e-13)
            assert not np.isnan(arc.tangent_bound(path._replace(A=0 * path.A, B=0 * path.B), alpha)).any()


def test_checks_are_left_out_inside_transformations():
    model, v = MODELS["ufm"], jnp.ones(6)
    assert np.isnan(jax.jit(lambda v: divergence(model, jnp.arange(1), v, jnp.ones(1)))(v * jnp.nan)).all()
    assert jax.vmap(lambda a: divergence(model, jnp.arange(1), v, a))(jnp.ones((2, 1))).shape == (2, 1, 1)
    assert jax.grad(lambda v: steer(model, jnp.arange(1), v, 1.0).sum())(v).shape == (6,)
    assert isinstance(model, ufm.UFM)
    assert isinstance(MODELS["normalised"], NormalisedUFM)

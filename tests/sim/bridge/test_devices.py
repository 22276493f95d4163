"""Precision, types and devices of language models: what their programs ask for, and what is refused."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.bridge import devices, generation, split
from sim.bridge.architectures import from_config
from sim.bridge.decoder import Decoder
from sim.bridge.devices import ON_ACCELERATOR, ON_CPU, portion
from sim.bridge.model import load, random_model
from sim.bridge.parameters import parameter_bytes, shapes
from sim.bridge.readout import readout
from sim.experiments.gpt import training
from sim.experiments.strength import mmlu, next_token, vectors
from sim.measure import losses
from tests.oracles import softmax
from tests.programs import asks_for_less, products
from tests.sim.bridge import references
from ufm import Add, Steering

PROMPTS = [[3, 4, 5, 6], [7, 8, 1]]
ALPHAS = np.array([0.0, 0.01, 0.05, 4.0])
V = np.random.default_rng(0).normal(size=32).astype(np.float32)
NAMES = ["gpt2", "gemma3", "qwen3"]


def model(name="gemma3", dtype="float32"):
    with jax.enable_x64(False):
        return random_model(from_config(references.CONFIGS[name]), jax.random.key(0), dtype=dtype)


@jax.jit
def swept(cut, alphas):
    """The logits of both prompts, steered along V."""
    return ufm.sweep(cut, jnp.arange(2), V, alphas, lambda row, _: row)


def programs(lm):
    """The programs of public functions, and their arguments."""
    cut, whole = lm.split(PROMPTS, 0), lm.split(PROMPTS, 1, last_only=False)
    far = jnp.asarray(ALPHAS, jnp.float32)
    ids, mask = map(jnp.asarray, lm.contexts(PROMPTS))
    limits, v = jnp.zeros((2, lm.config.vocab_size)), jnp.asarray(V)
    sampler = generation.Sampler.of(generation.Sampling(1.0, 5, 0.9), jax.random.key(0), lm.config.vocab_size)
    steering = Steering(Add(v))
    return {
        "logits": (split.all_logits, lm.decoder, ids, mask),
        "states": (split.all_states, lm.decoder, ids, mask),
        "divergence": (lambda cut: ufm.divergence(cut, jnp.arange(2), v, ALPHAS), cut),
        "curvature": (lambda cut: ufm.curvature(cut, jnp.arange(2), v), cut),
        "gradient": (
            lambda v: jax.grad(
                lambda v: whole.statically().steered(whole.embed(jnp.asarray(0)), Steering(Add(v)), 1.0).sum()
            )(v),
            v,
        ),
        "moments": (losses.moments, whole, steering),
        "increases": (losses.increases, whole, steering, far),
        "curves": (
            lambda cut: next_token.swept(cut, steering, far, limits[0], limits, kept=3),
            lm.split(PROMPTS[:1], 0, length=4),
        ),
        "letters": (mmlu._letters, cut, v, far, jnp.arange(4)),
        "log-odds": (vectors.last_log_p, cut),
        "limit": (lambda v: readout(lm).limit(v, 1), v),
        "generation": (
            lambda decoder: generation.generate(
                decoder,
                ids,
                mask,
                sampler,
                jnp.asarray([-1]),
                Steering({1: Add(v)}),
                jnp.ones((2, 1)),
                max_new_tokens=2,
            ),
            lm.decoder,
        ),
        "training": (
            lambda parameters: jax.grad(lambda parameters: training.loss(lm.config, parameters, jnp.tile(ids, (1, 2))))(
                parameters
            ),
            lm.parameters,
        ),
    }


@pytest.mark.parametrize("name", NAMES)
def test_products_keep_float32(name):
    for program, (function, *arguments) in programs(model(name)).items():
        assert asks_for_less(function, *arguments) == [], program


@pytest.mark.parametrize("name", references.CONFIGS)
def test_products_of_every_family_keep_float32(name):
    a, ids = from_config(references.CONFIGS[name]), jnp.ones((2, 3), int)
    parameters = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes(a).items()}
    assert asks_for_less(lambda parameters: Decoder(a, parameters)(ids, ids > 0), parameters) == []


def test_products_of_half_types_are_left_to_the_device():
    lm = model(dtype="bfloat16")
    kinds = products(*programs(lm)["logits"])
    assert {kind for kind, _ in kinds} == {"bfloat16"}
    assert {precision for _, precision in kinds} == {jax.lax.Precision.DEFAULT}


def test_products_are_fast_where_that_is_asked_for(checkpoint):
    fast = load(checkpoint("gpt2"), precision="fast", progress=False)
    assert asks_for_less(*programs(fast)["logits"]) == products(*programs(fast)["logits"])
    assert asks_for_less(*programs(fast.with_dtype("float32", precision="full"))["logits"]) == []
    with pytest.raises(ValueError, match=r"^precision: .*full, fast"):
        load(checkpoint("gpt2"), precision="tf32")


# --- half types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_measures_of_half_types_are_right_to_float32(dtype):
    lm = model(dtype=dtype)
    cut = lm.split(PROMPTS, 1)
    push, contexts = jnp.asarray(V), jnp.arange(2)
    logits = np.asarray(swept(cut, jnp.asarray(ALPHAS)), float)
    p = softmax(logits)
    kl = np.sum(p[:, :1] * (np.log(p[:, :1]) - np.log(p)), axis=-1)
    got = ufm.divergence(cut, contexts, push, ALPHAS)
    # The unsteered pass and the sweep are two programs, which round half types differently: 1e-3 of a logit, squared.
    np.testing.assert_allclose(got, kl, rtol=0.02, atol=3e-6)
    assert np.abs(got[:, 0]).max() < 1e-6
    rise = ufm.probability_increase(cut, contexts, push, ALPHAS)
    np.testing.assert_allclose(rise, p - p[:, :1], atol=3e-7)
    # Small strengths are not swallowed: the same as in float32, but for the rounding of the products.
    exact = ufm.divergence(model().split(PROMPTS, 1), contexts, push, ALPHAS)
    np.testing.assert_allclose(got[:, 2:], exact[:, 2:], rtol=0.3 if dtype == "bfloat16" else 0.03)
    increase, divergence = losses.increases(lm.split(PROMPTS, 1, last_only=False), Steering(Add(V)), jnp.asarray([0.0, 4.0]))
    assert increase.dtype == divergence.dtype == jnp.float32
    assert np.abs(np.asarray(divergence)[:, 0]).max() < 1e-6
    assert lm.logits(PROMPTS)[0].dtype == np.float32
    assert vectors.last_log_p(cut).dtype == jnp.float32


def test_far_out_steering_gives_the_limit_of_proposition_4_1():
    lm, far = model(), jnp.asarray([1e10, 1e17, 1e20, 1e30])
    for layer in (0, lm.config.num_layers - 1):
        got = swept(lm.split(PROMPTS, layer), jnp.concatenate([far, -far]))
        for sign, of_sign in ((1, got[:, :4]), (-1, got[:, 4:])):
            limit = readout(lm).limit(jnp.asarray(V), sign)
            np.testing.assert_allclose(of_sign, jnp.broadcast_to(limit, of_sign.shape), atol=2e-5)


def huge(dtype):
    """A model whose MLPs give numbers beyond float16."""
    lm = model("gpt2", dtype)
    large = {name: value * {"blocks.up": 100, "blocks.down": 3e4}.get(name, 1) for name, value in lm.parameters.items()}
    return replace(lm, decoder=type(lm.decoder)(lm.config, large, dtype=dtype))


def test_what_overflows_is_an_error_that_names_type_and_layer():
    lm = huge("float16")
    for function in (
        lambda: lm.logits(PROMPTS),
        lambda: lm.generate(PROMPTS, max_new_tokens=3),
    ):
        with pytest.raises(ValueError, match=r"^logits: .*after block [01].*float16"):
            function()
    with pytest.raises(
        ValueError, match=r"^states: expected finite numbers, got others, first after block [01], in float16"
    ):
        lm.states(PROMPTS)
    cut = lm.split(PROMPTS, 1)
    with pytest.raises(ValueError, match=r"^logits: expected finite numbers, got others, in float16"):
        split.last_log_p(cut)
    with pytest.raises(ValueError, match=r"^steering: .*float16, steered after block 1"):
        ufm.divergence(cut, [0], V, [1.0])
    assert np.isfinite(huge("float32").logits(PROMPTS)[0]).all()


def test_steering_that_overflows_is_an_error_that_names_it():
    lm = model(dtype="float16")
    assert lm.generate(PROMPTS, max_new_tokens=3, steering=Steering({1: Add(V)})).tokens
    with pytest.raises(ValueError, match=r"^alpha: .*float16.*up to 1e\+06 of Steering\(1: Add\)"):
        lm.generate(PROMPTS, max_new_tokens=3, steering=Steering({1: Add(V)}), alpha=1e6)
    cut = lm.split(PROMPTS, 2)
    with pytest.raises(ValueError, match=r"^alphas: .*float16, steered after block 2.*1e\+38"):
        ufm.probability_increase(cut, [0], 8 * V, [0.0, 1.0, 1e38])
    with pytest.raises(ValueError, match=r"^alphas: .*after block 2"):
        losses.loss_increases(lm, losses.Text(PROMPTS[:1], np.ones((1, 3), bool)), 8 * V, 2, np.array([0.0, 1e38]))


# --- devices -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """A device as far as it is asked."""

    bytes_limit: int | None
    bytes_in_use: int = 0
    platform: str = "gpu"
    device_kind: str = "a card"

    def memory_stats(self):
        if self.bytes_limit is None:
            return None
        return {"bytes_limit": self.bytes_limit, "bytes_in_use": self.bytes_in_use}


@pytest.mark.parametrize(
    ("gibibytes", "budget"), [(59.5, 2**30), (105, 2**30), (18, 2**28), (6, 2**27), (3, 2**26), (1, 2**24)]
)
def test_budgets_know_the_device(gibibytes, budget):
    # JAX takes three quarters of a card's memory: 59.5 GiB of one with 80 GB.
    assert portion(Card(int(gibibytes * 2**30))) == (budget, ON_ACCELERATOR.strengths_per_batch)


def test_budgets_of_cpus_and_of_devices_that_say_nothing():
    assert portion(jax.devices()[0]) == portion(Card(None)) == ON_CPU
    assert portion(Card(2**36, platform="cpu")) == ON_CPU
    with pytest.raises(AttributeError):
        ON_CPU.budget = 1


def test_a_user_sets_the_budget(monkeypatch):
    lm = model()
    assert (lm.split(PROMPTS, 0).budget, lm.split(PROMPTS, 0).strengths_per_batch) == ON_CPU
    monkeypatch.setattr(devices, "portion", lambda device: devices.Portion(2**28, 32))
    assert (lm.split(PROMPTS, 0).budget, lm.split(PROMPTS, 0).strengths_per_batch) == (2**28, 32)
    assert replace(lm, memory_budget=1000).split(PROMPTS, 0).budget == 1000


def test_a_device_without_enough_memory_says_how_much_is_needed(monkeypatch, checkpoint):
    lm, real = model(), devices.free
    for size, refused in (
        (1000, lambda: load(checkpoint("gpt2"), progress=False)),
        (1000, lambda: random_model(lm.config, jax.random.key(0))),
        (1000, lambda: lm.split(PROMPTS, 0)),
        (100, lambda: lm.logits(PROMPTS)),
        (1000, lambda: lm.generate(PROMPTS, max_new_tokens=50)),
        (2**20, lambda: lm.generate(PROMPTS, max_new_tokens=2, num_return_sequences=10**4)),
    ):
        monkeypatch.setattr(devices, "free", lambda device, size=size: size)
        with pytest.raises(ValueError, match=r"^(model|config|prompts|num_return_sequences): .*\d+\.\d MiB free"):
            refused()
        monkeypatch.setattr(devices, "free", real)
    assert parameter_bytes(lm.config, "float32") == sum(value.nbytes for value in lm.parameters.values())
    half = model(dtype="bfloat16")
    assert parameter_bytes(lm.config, "bfloat16") == sum(value.nbytes for value in half.parameters.values())


def test_what_is_left_of_a_card():
    assert devices.free(Card(100, 30)) == 70
    assert devices.free(Card(None)) is None
    with pytest.raises(ValueError, match=r"^model: .*2\.0 GiB.*got 1\.0 GiB"):
        devices.require_room("model", 2**31, Card(2**30))


def test_what_is_left_of_a_host(monkeypatch):
    """On a CPU, which says nothing of its memory, what the host has left counts; an accelerator is believed."""
    cpu = jax.devices("cpu")[0]
    devices.require_room("model", 2**10, cpu)
    devices.require_room("model", 2**60, Card(None))
    with pytest.raises(ValueError, match=r"^model: .*1073741824\.0 GiB free, got \d+\.\d .iB on cpu"):
        devices.require_room("model", 2**60, cpu)
    monkeypatch.setattr(devices, "free_on_host", lambda: None)
    devices.require_room("model", 2**60, cpu)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64", "half a float", "float64"])
def test_other_types_are_refused(dtype, checkpoint):
    for refused in (
        lambda: load(checkpoint("gpt2"), dtype=dtype),
        lambda: random_model(model().config, jax.random.key(0), dtype=dtype),
        lambda: model().with_dtype(dtype),
    ):
        with pytest.raises(ValueError, match=r"^dtype: expected (one of float32, bfloat16, float16|.*float64)"):
            refused()
    with pytest.raises(ValueError, match=r"^compute: expected"):
        load(checkpoint("gpt2"), compute=dtype)


def test_an_unknown_device_is_named():
    code = "from sim.bridge import devices\ntry: devices.default_device()\nexcept ValueError as error: print(error)"
    environment = os.environ | {"JAX_PLATFORMS": "abacus"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("JAX_PLATFORMS: expected cpu")
    assert "abacus" in done.stdout

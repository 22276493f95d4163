"""Interventions at the two sites of a block: against models with changed parameters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.bridge.decoder import Decoder
from ufm import Add, Last, LoRA, NullOut, Steering, Weight

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3]]
NAMES = ["gpt2", "gemma3, scaled"]


@jax.jit
def steered(split, steering, alpha):
    return ufm.steer(split, jnp.arange(3), steering, alpha)


@jax.jit
def unsteered(split):
    return split.decode(split.embed(jnp.arange(3)))


def normal(seed, *shape, scale=0.1):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def updates(split, site):
    inputs, outputs = split.sites[site]
    return {
        "vector": Add(normal(0, outputs)),
        "lora": LoRA(normal(1, 2, inputs), normal(2, outputs, 2)),
        "weight": Weight(normal(3, outputs, inputs), normal(4, outputs)),
    }


def changed(model, deltas):
    """The model with matrices added to the down-projections of some blocks."""
    parameters = dict(model.parameters)
    down = np.array(parameters["blocks.down"])
    for layer, A in deltas.items():
        down[layer] += np.asarray(A).T
    return replace(model, decoder=Decoder(model.config, parameters | {"blocks.down": jnp.asarray(down)}))


def last_logits(model):
    return np.stack([row[-1] for row in model.logits(PROMPTS)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("site", ["residual", "mlp_down"])
def test_no_strength_is_the_model_itself_bit_for_bit(small, name, site):
    model = small(name)
    split = model.split(PROMPTS, 1, site=site)
    expected = unsteered(split)
    np.testing.assert_allclose(expected, last_logits(model), atol=2e-5)
    for update in updates(split, site).values():
        np.testing.assert_array_equal(steered(split, Steering(update, site=site), 0.0), expected)


@pytest.mark.parametrize("name", NAMES)
def test_weights_at_down_projections_are_other_down_projections(small, name):
    """At one layer, and at all of them with a strength of their own, in whichever order they are given."""
    model = small(name)
    layers = range(model.config.num_layers)
    split = model.split(PROMPTS)
    outputs, inputs = reversed(split.sites["mlp_down"])
    deltas = {layer: normal(layer, outputs, inputs) for layer in layers}
    alone = Steering({1: Weight(deltas[1], jnp.zeros(outputs))}, site="mlp_down")
    expected = last_logits(changed(model, {1: 0.7 * deltas[1]}))
    np.testing.assert_allclose(steered(*split.resolve(alone), 0.7), expected, atol=5e-5)
    assert np.abs(expected - last_logits(model)).max() > 1e-2
    order = list(layers)[::-1]
    every = Steering({layer: Weight(deltas[layer], jnp.zeros(outputs)) for layer in order}, site="mlp_down")
    alphas = jnp.asarray([0.5, -1.0, 0.7, 0.2, 0.1, 0.3][: len(order)])
    expected = last_logits(
        changed(model, {layer: alpha * deltas[layer] for layer, alpha in zip(order, alphas, strict=True)})
    )
    np.testing.assert_allclose(steered(*split.resolve(every), alphas), expected, atol=5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_at_the_down_projection_is_one_at_the_stream(small, name):
    model = small(name)
    if model.config.post_norm:
        return  # a norm lies between the two
    v = updates(model.split(PROMPTS), "residual")["vector"].v
    for tokens in (None, Last()):
        for layer in (0, 1):
            both = [Steering({layer: Add(v)}, site=site, tokens=tokens) for site in ("residual", "mlp_down")]
            logits, expected = (steered(*model.split(PROMPTS).resolve(steering), 1.3) for steering in both)
            np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_both_sites_of_a_block_and_a_block_behind(small):
    model = small(NAMES[0])
    split, v = model.split(PROMPTS), normal(0, model.config.d_model)
    outputs, inputs = reversed(split.sites["mlp_down"])
    delta = normal(5, outputs, inputs)
    steering = Steering({1: Weight(delta, jnp.zeros(outputs))}, site="mlp_down") + Steering({1: Add(v), 2: Add(v)})
    logits = steered(*split.resolve(steering), jnp.asarray([0.7, 2.0, -1.0]))
    other = changed(model, {1: 0.7 * delta}).split(PROMPTS)
    expected = steered(*other.resolve(Steering({1: Add(v), 2: Add(v)})), jnp.asarray([2.0, -1.0]))
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_sweeps_of_an_update(small):
    model, alphas = small(NAMES[1]), jnp.asarray([-1.0, 0.0, 0.5])
    split = model.split(PROMPTS, 0, site="mlp_down")
    steering = Steering(updates(split, "mlp_down")["lora"], site="mlp_down")
    swept = ufm.sweep(split, jnp.arange(3), steering, alphas, lambda logits, _: logits)
    expected = np.stack([steered(split, steering, alpha) for alpha in alphas], axis=1)
    np.testing.assert_allclose(swept, expected, atol=2e-5)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-3


def test_nulling_out_at_a_site(small):
    model = small(NAMES[0])
    split, b = model.split(PROMPTS, 1), normal(0, model.config.d_model)
    states = split.embed(jnp.arange(3))
    along = np.maximum(np.asarray(states.stream @ b), 0)[..., None] / float(b @ b)
    assert (along > 0).any()
    expected = split.decode(replace(states, stream=states.stream - along * b))
    np.testing.assert_allclose(steered(split, Steering(NullOut(Add(b))), 0.0), expected, atol=2e-5)


def test_a_site_that_there_is_not_is_refused(small):
    model = small(NAMES[0])
    with pytest.raises(ValueError, match=r"site: .*got 'up'"):
        model.split(PROMPTS, 0, site="up")
    split = model.split(PROMPTS, 0)
    here = updates(split, "mlp_down")["weight"]
    wide = Weight(jnp.zeros((here.A.shape[0], here.A.shape[1] + 1)), here.b)
    with pytest.raises(ValueError, match=r"^steering: .*site mlp_down"):
        ufm.steer(split, [0], Steering(wide, site="mlp_down"), 1.0)


def test_gradients_go_through_the_suffix(small):
    model = small(NAMES[0])
    split = model.split(PROMPTS, 0, site="mlp_down").statically()
    update = updates(split, "mlp_down")["lora"]
    states = split.embed(jnp.arange(3))

    @jax.jit
    def loss(update):
        return jnp.sum(jax.nn.log_softmax(split.steered(states, Steering(update, site="mlp_down"), 1.0))[:, 7])

    gradient = jax.jit(jax.grad(loss))(update)
    step = normal(9, *update.down.shape, scale=1.0)
    size = 1e-2
    forward, backward = (loss(LoRA(update.down + sign * size * step, update.up)) for sign in (1, -1))
    assert float(jnp.sum(gradient.down * step)) == pytest.approx(float(forward - backward) / (2 * size), rel=2e-2)

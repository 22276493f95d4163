"""Updates of a language model at its two sites: against blocks run one by one with changed parameters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.bridge.decoder import Decoder
from ufm.updates import LoRA, Vector, Weight, null_out

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3]]
NAMES = ["gpt2", "gemma3, scaled"]


@jax.jit
def at_strength(model, contexts, m):
    h = model.embed(contexts)
    return model.decode(h + m * model.direction)


@jax.jit
def unsteered(cut, contexts):
    return cut.decode(cut.embed(contexts))


def normal(seed, *shape, scale=0.1):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def updates(cut):
    inputs, outputs = next(iter(cut.sites.values()))
    return {
        "vector": Vector(normal(0, outputs)),
        "lora": LoRA(normal(1, 2, inputs), normal(2, outputs, 2)),
        "weight": Weight(normal(3, outputs, inputs), normal(4, outputs)),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("site", ["state", "down"])
def test_no_strength_is_the_model_itself_bit_for_bit(small, name, site):
    model, contexts = small(name), jnp.arange(3)
    cut = model.at(1, PROMPTS, site=site)
    expected = unsteered(cut, contexts)
    whole = [row[-1] for row in model.logits(PROMPTS)]
    np.testing.assert_allclose(expected, whole, atol=2e-5)
    for update in updates(cut).values():
        found = at_strength(ufm.updated(cut, update, site=site), contexts, 0.0)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_at_the_down_projection_is_another_down_projection(small, name):
    model, layer, m = small(name), 1, 0.7
    cut = model.at(layer, PROMPTS, site="down")
    update = Weight(normal(3, *reversed(cut.sites["down"])), jnp.zeros(cut.sites["down"][1]))
    parameters = dict(model.parameters)
    down = np.array(parameters["blocks.down"])
    down[layer] += m * np.asarray(update.A).T
    changed = replace(model, decoder=Decoder(model.architecture, parameters | {"blocks.down": jnp.asarray(down)}))
    expected = [row[-1] for row in changed.logits(PROMPTS)]
    found = at_strength(ufm.updated(cut, update, site="down"), jnp.arange(3), m)
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert np.abs(np.stack(expected) - np.stack([row[-1] for row in model.logits(PROMPTS)])).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_at_the_state_is_steering_everywhere(small, name):
    model, contexts = small(name), jnp.arange(3)
    cut = model.at(1, PROMPTS)
    b = updates(cut)["vector"].b
    expected = ufm.steer(cut, contexts, cut.everywhere(b), 1.3)
    np.testing.assert_allclose(at_strength(ufm.updated(cut, Vector(b)), contexts, 1.3), expected, atol=2e-5)
    if not model.architecture.sandwich:  # no norm between the down-projection and the stream
        low = model.at(1, PROMPTS, site="down")
        found = at_strength(ufm.updated(low, Vector(b), site="down"), contexts, 1.3)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_sweeps_of_an_update(small):
    model, alphas = small(NAMES[1]), jnp.asarray([-1.0, 0.0, 0.5])
    cut = model.at(0, PROMPTS, site="down")
    one = ufm.updated(cut, updates(cut)["lora"], site="down")
    assert isinstance(one, ufm.Steerable)
    swept = ufm.sweep(one, jnp.arange(3), one.direction, alphas, lambda logits, _: logits)
    expected = np.stack([at_strength(one, jnp.arange(3), alpha) for alpha in alphas], axis=1)
    np.testing.assert_allclose(swept, expected, atol=2e-5)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-3


def test_nulling_out_at_a_site(small):
    model = small(NAMES[0])
    cut, b = model.at(1, PROMPTS), normal(0, model.architecture.width)
    h = cut.embed(jnp.arange(3))
    found = cut.decode_through(h, "state", null_out(Vector(b)), jnp.zeros(3))
    x, marks = cut.parted(h)
    along = np.maximum(np.asarray(x @ b), 0)[..., None] / float(b @ b)
    assert (along > 0).any()
    expected = cut.decode(jnp.concatenate([x - along * b, marks], axis=-1).reshape(h.shape))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_site_of_another_kind_or_width_is_refused(small):
    model = small(NAMES[0])
    cut = model.at(0, PROMPTS, site="down")
    with pytest.raises(ValueError, match="site: expected one of down, got 'state'"):
        ufm.updated(cut, updates(cut)["vector"])
    with pytest.raises(ValueError, match="site: expected one of state, down, got 'up'"):
        model.at(0, PROMPTS, site="up")
    with pytest.raises(ValueError, match="site: expected down"):
        cut.decode_through(cut.embed(jnp.arange(1)), "state", lambda x, y, m: y, jnp.zeros(1))
    here = updates(cut)["weight"]
    wide = Weight(jnp.zeros((here.A.shape[0], here.A.shape[1] + 1)), here.b)
    with pytest.raises(ValueError, match="update: expected one for the site down"):
        ufm.updated(cut, wide, site="down")


def test_gradients_go_through_the_suffix(small):
    model = small(NAMES[0])
    cut = model.at(0, PROMPTS, site="down").statically()
    update = updates(cut)["lora"]
    h = cut.embed(jnp.arange(3))

    @jax.jit
    def loss(one):
        return jnp.sum(
            jax.nn.log_softmax(
                ufm.updated(cut, one, site="down").model.decode_through(
                    h, "down", lambda x, y, m: y + one.added(x), jnp.zeros(3)
                )
            )[:, 7]
        )

    gradient = jax.jit(jax.grad(loss))(update)
    step = normal(9, *update.down.shape, scale=1.0)
    size = 1e-2
    there, back = (loss(LoRA(update.down + sign * size * step, update.up)) for sign in (1, -1))
    assert float(jnp.sum(gradient.down * step)) == pytest.approx(float(there - back) / (2 * size), rel=2e-2)

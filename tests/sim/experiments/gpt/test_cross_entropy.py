"""How steeply the cross-entropy begins along random directions: against the gradient of a bias."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim.bridge.decoder import Decoder
from sim.experiments.gpt import cross_entropy
from sim.experiments.gpt.training import finished, train
from sim.measure.losses import Text, loss_moments
from tests.sim.experiments.conftest import DOCUMENTS, TINY


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


def test_the_slope_along_a_direction_is_the_gradient_of_the_last_bias(trained):
    """Adding a vector after the block is moving the bias of the last map of its MLP: N13's reason why training rests."""
    done = finished(trained[1], DOCUMENTS)
    lm, rows = done.model, [done.training[k * 8 :][:8].tolist() for k in range(6)]
    text = Text(rows, np.broadcast_to(np.arange(7) >= 2, (6, 7)))
    v = np.random.default_rng((3, 2)).standard_normal((1, TINY.d_model)).astype(np.float32)[0]

    def loss(shift):
        moved = {**lm.parameters, "blocks.down_bias": lm.parameters["blocks.down_bias"] + shift}
        log_q = jax.nn.log_softmax(Decoder(lm.config, moved)(jnp.asarray(rows), jnp.ones((6, 8), bool)))[:, :-1]
        chosen = jnp.take_along_axis(log_q, jnp.asarray(rows)[:, 1:, None], axis=-1)[..., 0]
        return -jnp.mean(chosen[:, 2:])

    expected = float(jax.grad(loss)(jnp.zeros(TINY.d_model)) @ v)
    numbers = cross_entropy.random_slopes(lm, {"some": text}, 0, directions=1, seed=3)["some"]
    curvature = loss_moments(lm, text, v, 0).curvature
    assert numbers["slope"] == pytest.approx(abs(expected) / np.sqrt(curvature), rel=1e-3)
    assert numbers["error"] == pytest.approx(np.sqrt(2 / text.counted.sum()), rel=1e-6)


def test_a_llama_is_trained_without_biases(tmp_path):
    done = train(tmp_path, DOCUMENTS, replace(TINY, family="llama", steps=2), progress=False)
    assert done.model.config.norm == "rms"
    assert not [name for name in done.model.parameters if name.endswith("_bias")]
    assert finished(tmp_path, DOCUMENTS).settings.family == "llama"
    with pytest.raises(ValueError, match=r"^family: expected one of gpt2, llama, got 'gpt3'"):
        replace(TINY, family="gpt3")

"""N13 on a tiny GPT that is trained until rest: with biases, no vector has a slope on the text of the training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sim.bridge.architectures import from_config
from sim.bridge.decoder import Decoder
from sim.bridge.model import LanguageModel
from sim.bridge.parameters import init_parameters
from sim.experiments.gpt.training import loss
from sim.measure.losses import Text, loss_moments

GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
STEPS = 1500


def at_rest(config, tokens):
    """The model that full batches of a text lead to, with a rate that falls to nothing."""
    parameters = init_parameters(jax.random.key(0), config, dtype=jnp.float64)
    adam = optax.adam(optax.cosine_decay_schedule(0.02, STEPS))

    def step(carry, _):
        parameters, state = carry
        updates, state = adam.update(jax.grad(lambda p: loss(config, p, tokens))(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    trained = jax.jit(lambda start: jax.lax.scan(step, start, length=STEPS)[0][0])((parameters, adam.init(parameters)))
    return LanguageModel(Decoder(config, trained, dtype=jnp.float64), name="at rest")


def test_with_biases_there_is_no_slope_on_the_training_text():
    """On other text there is one."""
    rng, shares = np.random.default_rng(1), 1 / np.arange(1, 12)
    seen, other = rng.choice(11, (2, 24, 10), p=shares / shares.sum())
    with jax.enable_x64(True):
        lm = at_rest(from_config(GPT2), jnp.asarray(seen))
        for v in rng.normal(size=(4, 8)):
            own, foreign = (loss_moments(lm, Text(rows.tolist(), np.ones((24, 9), bool)), v, 0) for rows in (seen, other))
            assert abs(own.slope) < 1e-3 * np.sqrt(own.curvature)
            assert abs(foreign.slope) > 1e-2 * np.sqrt(foreign.curvature)

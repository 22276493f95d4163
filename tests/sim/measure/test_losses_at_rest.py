"""N13 on tiny models that are trained until rest: with biases, no vector has a slope on the text of the training."""

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
LLAMA = {
    **{"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 1, "tie_word_embeddings": True, "max_position_embeddings": 16, "rms_norm_eps": 1e-5},
}
"""No biases, and little that could stand in for one: one neuron, and one matrix for what goes in and what comes out."""

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


def slopes(config, vectors):
    """The slopes of Delta CE along vectors, where KL is alpha^2, on the training text and on other text, ``[n, 2]``."""
    shares = 1 / np.arange(1, 12)
    texts = np.random.default_rng(1).choice(11, (2, 24, 10), p=shares / shares.sum())
    lm = at_rest(from_config(config), jnp.asarray(texts[0]))
    parts = [[loss_moments(lm, Text(rows.tolist(), np.ones((24, 9), bool)), v, 0) for rows in texts] for v in vectors]
    return np.array([[part.slope / np.sqrt(part.curvature) for part in row] for row in parts])


def test_with_biases_there_is_no_slope_on_the_training_text():
    """On other text there is one; and without biases there is one on both, though training is as much at rest."""
    vectors = np.random.default_rng(2).normal(size=(4, 8))
    with jax.enable_x64(True):
        biased, free = slopes(GPT2, vectors), slopes(LLAMA, vectors)
    assert np.abs(biased[:, 0]).max() < 4e-4
    # Of single vectors it may be small by chance.
    assert np.sqrt(np.mean(biased[:, 1] ** 2)) > 0.05
    # With four times as many steps it is 4e-3 again.
    assert np.abs(free[:, 0]).max() > 2e-3

"""The numbers of the experiments again, one context and one strength at a time, in float64 and without splits or sweeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sim.bridge.decoder import Decoder

LENGTH = 192
"""What every context is padded to, on the right: one program serves all."""


def _of(a, parameters):
    return Decoder(a, {name: value.astype(jnp.float64) for name, value in parameters.items()}, dtype=jnp.float64)


@partial(jax.jit, static_argnums=0)
def _through(a, parameters, tokens, layer, push):
    decoder = _of(a, parameters)
    attention_context = decoder.attention_context(jnp.ones((1, LENGTH), bool))
    x, kept = decoder.embed(tokens[None], attention_context.positions), []
    for i in range(a.num_layers):
        x = decoder.run_blocks(x, attention_context, i, i + 1)
        x = x + jnp.where(i == layer, push, 0.0)
        kept.append(x[0])
    return jnp.stack(kept), decoder.logits(x)[0]


def through(lm, tokens, layer=0, push=0.0):
    """The stream after every block, ``[L, T, d]``, and log-probabilities, ``[T, V]``, with something added after a block."""
    padded = np.zeros(LENGTH, np.int32)
    padded[: len(tokens)] = tokens
    with jax.enable_x64(True):
        added = np.zeros((LENGTH, lm.config.d_model))
        added[: len(tokens)] = push
        states, logits = _through(lm.config, lm.parameters, padded, layer, added)
        states, logits = np.asarray(states)[:, : len(tokens)], np.asarray(logits)[: len(tokens)]
    return states, log_softmax(logits)


def log_p(lm, tokens, layer=0, push=0.0):
    """Log-probabilities of the token after every position, ``[T, V]``."""
    return through(lm, tokens, layer, push)[1]


def at_infinity(lm, v):
    """Log-probabilities at infinite strength: only v is left of the stream, and the norm takes its length away."""
    parameters = {name: np.asarray(value, float) for name, value in lm.parameters.items()}
    centred = v - v.mean()
    seen = centred / np.sqrt((centred**2).mean()) * parameters["norm"] + parameters["norm_bias"]
    return log_softmax(parameters["embedding"] @ seen)


def kl(p, q):
    """From log-probabilities p to q, of the last axis."""
    return (np.exp(p) * (p - q)).sum(axis=-1)


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def allowed(log_p, *, temperature, top_k, top_p, slack=1e-4):
    """Which tokens may be sampled; with some slack for rounding."""
    scaled = log_p / temperature
    order = np.argsort(-scaled)[:top_k]
    p = np.exp(scaled[order] - np.logaddexp.reduce(scaled[order]))
    least = scaled[order][np.cumsum(p) - p < top_p][-1]
    return scaled >= least - slack

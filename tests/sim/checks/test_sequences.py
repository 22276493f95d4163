"""Responses of written texts to steering, on a model whose texts are a Markov chain: against the chain itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.bridge.decoder import Decoder
from sim.bridge.model import LanguageModel
from sim.checks.validation.sequences import Responses, responses
from theory import chains
from ufm import Add, Steering

STEPS, COPIES, ALPHA = 6, 600, 1.5


@pytest.fixture
def forgetful(small):
    """A model without attention: what comes next depends on the last token alone."""
    lm = small("llama, grouped, tied")
    parameters = lm.parameters
    with jax.enable_x64(False):
        parameters["blocks.out"] = jnp.zeros_like(parameters["blocks.out"])
        # Predictions that are not too certain: rare events have errors that a sample does not show.
        parameters["norm"] = 0.3 * parameters["norm"]
        return LanguageModel(Decoder(lm.config, parameters), name="forgetful")


def test_responses_are_those_of_the_chain(forgetful):
    rng, count, start = np.random.default_rng(3), forgetful.config.vocab_size, 7
    members, v = rng.random(count) < 0.3, rng.normal(size=forgetful.config.d_model).astype(np.float32)
    with jax.enable_x64(False):
        got = responses(forgetful, ([start],) * COPIES, Steering({1: Add(v)}), ALPHA, members, STEPS, 0)
        every = forgetful.split([[z] for z in range(count)], 1)
        tables = ufm.sweep(
            every, jnp.arange(count), v, jnp.asarray([-ALPHA, 0.0, ALPHA]), lambda x, _: jax.nn.log_softmax(x)
        )
        low, own, high = np.asarray(tables, float).swapaxes(0, 1)
    with ufm.in_float64():
        first, target = jax.nn.one_hot(start, count, dtype=float), jnp.asarray(members)
        ends = [np.asarray(chains.shares(jnp.asarray(table), target, first, STEPS)) for table in (low, high)]
    before = np.asarray([np.eye(count)[start] @ np.linalg.matrix_power(np.exp(own), k) for k in range(STEPS)])
    held = before @ (np.exp(high) - np.exp(low)) @ members
    assert np.abs(ends[1] - ends[0]).max() > 0.05
    for values, expected in ((got.whole, ends[1] - ends[0]), (got.held, held)):
        error = values.std(axis=0) / np.sqrt(COPIES)
        np.testing.assert_array_less(np.abs(values.mean(axis=0) - expected), 4 * error + 1e-5)
    np.testing.assert_array_equal(got.inside[:, 0], members[start])


def test_amplification_and_eigenvalue_by_hand():
    whole, held = np.asarray([[1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 1.0, 3.0]]), np.ones((2, 4))
    inside = np.asarray([[True, False, False, True], [False, True, False, False]])
    share = np.where(inside, 0.7, 0.2)
    got = Responses(whole, held, share, inside)
    assert got.amplification == pytest.approx((3.0, np.sqrt(8) / 4))
    assert got.eigenvalue == pytest.approx(0.5)
    assert np.isnan(Responses(whole, held, share, inside & False).eigenvalue)

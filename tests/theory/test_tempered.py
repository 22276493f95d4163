"""The tempered tilt before a norm, against the norm itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import tempered
from ufm import contrast, norm


@pytest.fixture(params=["rms", "layer"])
def states(request):
    """Four states of very different sizes, a decoder of five tokens, an eps, and log-probabilities by plain NumPy."""
    rng = np.random.default_rng(3)
    H, W, eps = rng.normal(size=(4, 6)) * np.array([[0.1], [1.0], [7.0], [2.0]]), rng.normal(size=(5, 6)), 0.03

    def log_q(h):
        h = h - h.mean(-1, keepdims=True) if request.param == "layer" else h
        logits = h / np.sqrt((h**2).mean(-1, keepdims=True) + eps) @ W.T
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    return request.param, H, eps, log_q


def test_the_law_is_what_the_norm_does(states):
    kind, H, eps, log_q = states
    weights = np.asarray(contrast(4, [0, 1], [2, 3]))
    v = tempered.direction(jnp.asarray(H), jnp.asarray(weights), kind=kind, eps=eps)
    m = jnp.asarray(weights @ log_q(H))
    for alpha in (-30.0, -0.5, 0.0, 3.0, 1e4):
        for h in H:
            before, after = (tempered.size_of(jnp.asarray(x), kind=kind, eps=eps) for x in (h, h + alpha * v))
            law = tempered.log_probabilities(jnp.asarray(log_q(h)), m, alpha, before, after)
            np.testing.assert_allclose(law, log_q(h + alpha * np.asarray(v)), atol=1e-12)


def test_sizes_are_what_the_norm_divides_by(states):
    kind, H, eps, _ = states
    centred = H - H.mean(1, keepdims=True) if kind == "layer" else H
    through = norm(jnp.asarray(H), kind=kind, eps=eps)
    np.testing.assert_allclose(centred * np.sqrt(6) / tempered.size_of(jnp.asarray(H), kind=kind, eps=eps)[:, None], through)


def test_the_limit_is_that_of_every_prompt(states):
    kind, H, eps, log_q = states
    weights = np.asarray(contrast(4, [0, 1], [2, 3]))
    v = np.asarray(tempered.direction(jnp.asarray(H), jnp.asarray(weights), kind=kind, eps=eps))
    length = np.linalg.norm(v - v.mean() if kind == "layer" else v)
    for sign in (1, -1):
        end = tempered.limit(jnp.asarray(weights @ log_q(H)), length, sign)
        np.testing.assert_allclose(np.exp(log_q(H + sign * 1e9 * v)), np.tile(end, (4, 1)), atol=1e-8)


def test_no_direction_of_the_plane_beats_the_ceiling_and_two_rows_attain_it():
    rng = np.random.default_rng(0)
    for attained in (False, True):
        target = np.array([True, False, True, False, False])
        W = rng.normal(size=(5, 3))
        W = np.where(target[:, None], W[0], W[1]) if attained else W
        h, v = rng.normal(size=(2, 3))
        angles = np.linspace(0, 2 * np.pi, 20_001)
        plane = np.linalg.qr(np.stack([h, v], axis=1))[0]
        logits = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T @ W.T
        log_odds = np.logaddexp.reduce(logits[:, target], axis=1) - np.logaddexp.reduce(logits[:, ~target], axis=1)
        log_p = W @ h / np.linalg.norm(h)
        cosine = h @ v / np.linalg.norm(h) / np.linalg.norm(v)
        found = float(
            tempered.ceiling(jnp.asarray(log_p), jnp.asarray(W @ v), jnp.asarray(target), np.linalg.norm(v), cosine)
        )
        assert log_odds.max() <= found + 1e-12
        assert (log_odds.max() > found - 1e-6) == attained


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: tempered.limit(m, 1.0, 0), "sign: expected 1 or -1"),
        (lambda m: tempered.limit(m, 0.0, 1), "length: expected a length above 0"),
        (lambda m: tempered.ceiling(m, m, m > 9, 1.0, 0.0), "target: expected between 1 and 2 of 3 tokens"),
        (lambda m: tempered.ceiling(m, m, m > 0, 1.0, 1.0), "cosine: expected a number between -1 and 1"),
        (lambda m: tempered.log_probabilities(m, m, 1.0, 1.0, 0.0), "steered_size: expected a size above 0"),
        (lambda m: tempered.log_probabilities(m, m, 1.0, -1.0, 1.0), "^size: expected a size above 0"),
        (lambda m: tempered.direction(0 * m[:, None], m), "h: expected states that a norm of kind 'rms' sees"),
        (
            lambda m: tempered.direction(jnp.ones((3, 2)), m, kind="layer"),
            "h: expected states that a norm of kind 'layer' sees",
        ),
        (lambda m: tempered.size_of(m, kind="batch"), "kind: expected one of"),
        (lambda m: tempered.size_of(m, eps=-1.0), "eps: expected a number of at least 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray([1.0, 0.0, -1.0]))


def test_the_law_is_differentiable():
    slope = jax.grad(lambda alpha: tempered.log_probabilities(jnp.zeros(2), jnp.asarray([1.0, 0.0]), alpha, 1.0, 2.0)[0])(
        0.0
    )
    assert slope == pytest.approx(0.25)

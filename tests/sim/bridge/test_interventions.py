"""Interventions along a direction on language models: against the blocks run one by one, with loops over NumPy numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.bridge.readout import readout
from sim.measure.losses import Text, loss_increases
from tests.sim.bridge.test_split import PROMPTS, SELECTIONS
from tests.ufm.test_directional_interventions import (
    plain_ablate,
    plain_clamp,
    plain_norm_preserving,
    plain_rotate,
    plain_when,
)
from theory import arc
from ufm import Ablate, Add, After, Clamp, Last, NormPreservingAdd, Rotate, Steering, When, Where

NAMES = ["gpt2", "gemma3, scaled"]

LENGTH = 10
"""No fewer tokens than any text here has."""


def vector(d, seed=0):
    return np.random.default_rng([seed, d]).normal(size=d).astype(np.float32)


def kinds(d):
    """Each intervention for d numbers, with what it does to the row of one token at a strength."""
    v, probe = vector(d), vector(d, 1)
    return {
        "ablate": (Ablate(v), lambda y, alpha: plain_ablate(y, alpha, v)),
        "clamp": (Clamp(v, 2.0), lambda y, alpha: plain_clamp(y, alpha, v, 2.0)),
        "norm-preserving": (NormPreservingAdd(v), lambda y, alpha: plain_norm_preserving(y, alpha, v)),
        "rotate": (Rotate(v), lambda y, alpha: plain_rotate(y, alpha, v)),
        "add when": (When(Add(v), probe, 0.1), plain_when(lambda y, alpha: y + alpha * v, probe, 0.1)),
        "rotate when": (When(Rotate(v), probe), plain_when(lambda y, alpha: plain_rotate(y, alpha, v), probe, 0.0)),
    }


def block_by_block(model, prompt, parts):
    """Logits at every token of a prompt, ``[T, V]``.

    Args:
        model: a language model.
        prompt: its tokens.
        parts: of each: the layer, the site, what is done to a row, the strength, and at which tokens.
    """
    decoder = model.decoder
    # One length, for which every operation is compiled once.
    tokens, mask = map(jnp.asarray, model.contexts([prompt], length=LENGTH, side="right"))
    attention_context = decoder.attention_context(mask)
    x = decoder.embed(tokens, attention_context.positions)

    def hook(site, i, _, y):
        rows = np.array(y[0], np.float64)
        for layer, at, done, alpha, chosen in parts:
            if (layer, at) == (int(i), site):
                for row in np.flatnonzero(chosen):
                    rows[row] = done(rows[row], alpha)
        return jnp.asarray(rows[None], y.dtype)

    for i in range(model.config.num_layers):
        x = decoder.apply_block(decoder.block(i), i, x, attention_context, hook=hook)
    return np.asarray(decoder.logits(x)[0], np.float32)[: len(prompt)]


@jax.jit
def _swept(split, steering, alphas):
    return ufm.sweep(split, jnp.arange(split.n_contexts), steering, alphas, lambda logits, _: logits)


def swept(model, steering, alphas, **options):
    split, steering = model.split(PROMPTS, **options).resolve(steering)
    return np.asarray(_swept(split, steering, jnp.asarray(alphas, jnp.float32)))


def all_at_once(d, layers, site="residual"):
    """A steering of all kinds at layers, and strengths by which each acts alone: ``[kinds, parts]``."""
    every = [Steering(dict.fromkeys(layers, intervention), site=site) for intervention, _ in kinds(d).values()]
    return sum(every[1:], every[0]), np.repeat(np.eye(len(every)), len(layers), axis=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("site", ["residual", "mlp_down"])
def test_at_one_layer(small, name, site):
    model = small(name)
    steering, alone = all_at_once(model.config.d_model, [1], site)
    got = swept(model, steering, np.concatenate([0 * alone[:1], 0.7 * alone]))
    for prompt, rows in zip(PROMPTS, got, strict=True):
        np.testing.assert_allclose(rows[0], model.logits([prompt])[0][-1], atol=5e-5)
        for row, (_, done) in zip(rows[1:], kinds(model.config.d_model).values(), strict=True):
            expected = block_by_block(model, prompt, [(1, site, done, 0.7, [True] * len(prompt))])[-1]
            np.testing.assert_allclose(row, expected, atol=1e-4)
    assert np.abs(got[:, 1:] - got[:, :1]).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("tokens", SELECTIONS)
def test_at_some_tokens(small, tokens):
    model, (selection, chosen) = small("gpt2"), SELECTIONS[tokens]
    made = [kinds(model.config.d_model)[kind] for kind in ("rotate", "add when")]
    got = swept(model, Steering({1: [intervention for intervention, _ in made]}, tokens=selection), 0.7 * np.eye(len(made)))
    for k, (prompt, rows) in enumerate(zip(PROMPTS, got, strict=True)):
        at = np.asarray(chosen(len(prompt), k), bool)
        for row, (_, done) in zip(rows, made, strict=True):
            np.testing.assert_allclose(row, block_by_block(model, prompt, [(1, "residual", done, 0.7, at)])[-1], atol=1e-4)


def several(model):
    """A steering of seven parts at three layers and two sites, and what each does, as `block_by_block` takes it."""
    made = kinds(model.config.d_model)
    steering = Steering(dict.fromkeys((0, 1, 2), made["ablate"][0])) + Steering(
        {1: [made["rotate"][0], made["clamp"][0]], 2: made["norm-preserving"][0]}, tokens=After(1)
    )
    steering = steering + Steering({1: made["add when"][0]}, site="mlp_down")
    alphas = [0.5, 0.0, 1.0, 0.4, 0.8, -1.5, 2.0]
    names = ["ablate", "ablate", "ablate", "rotate", "clamp", "norm-preserving", "add when"]
    layers = [0, 1, 2, 1, 1, 2, 1]

    def parts(length, strengths=alphas):
        whole, later = np.ones(length, bool), np.arange(length) >= 1
        selections = [whole] * 3 + [later] * 3 + [whole]
        sites = ["residual"] * 6 + ["mlp_down"]
        dones = [made[name][1] for name in names]
        return [*zip(layers, sites, dones, strengths, selections, strict=True)]

    return steering, alphas, parts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("last_only", [True, False])
def test_several_layers_and_sites_in_one_program(small, name, last_only):
    model = small(name)
    steering, alphas, parts = several(model)
    got = swept(model, steering, [alphas], last_only=last_only)[:, 0]
    for prompt, rows in zip(PROMPTS, got, strict=True):
        expected = block_by_block(model, prompt, parts(len(prompt)))
        if last_only:
            np.testing.assert_allclose(rows, expected[-1], atol=2e-4)
        else:
            np.testing.assert_allclose(rows[-len(prompt) :], expected, atol=2e-4)


@pytest.mark.parametrize("layers", [(0, 1), (0, 1, 2)])
def test_what_comes_first_acts_first_at_every_layer(small, layers):
    """Though parts at several layers are stacked by what they are, and a kind is not first everywhere."""
    model = small("llama, grouped, tied")
    made = kinds(model.config.d_model)
    orders = [("clamp", "rotate"), ("rotate", "ablate"), ("clamp", "ablate")][-len(layers) :]
    names = dict(zip(layers, orders, strict=True))
    steering = Steering({layer: [made[name][0] for name in order] for layer, order in names.items()})
    alpha, prompt = 0.7, PROMPTS[0]
    parts = [(i, "residual", made[name][1], alpha, [True] * len(prompt)) for i, order in names.items() for name in order]
    expected = block_by_block(model, prompt, parts)[-1]
    got = swept(model, steering, np.full((1, len(parts)), alpha))[0, 0]
    np.testing.assert_allclose(got, expected, atol=2e-4)
    written = model.generate([prompt], max_new_tokens=1, steering=steering, alpha=alpha).tokens[0]
    assert list(written) == [int(expected.argmax())]


@pytest.mark.parametrize("tokens", [After([7, 1]), Where(np.ones((2, 9), bool))])
def test_selections_for_fewer_contexts_are_refused(small, tokens):
    model = small("gpt2")
    steering = Steering({1: Ablate(vector(model.config.d_model))}, tokens=tokens)
    with pytest.raises(ValueError, match=r"^tokens: expected .* each of 3 contexts, got 2 of them"):
        model.generate(PROMPTS, max_new_tokens=1, steering=steering)
    with pytest.raises(ValueError, match=r"^tokens: expected .* each of 3 contexts, got 2 of them"):
        model.split(PROMPTS).resolve(steering)


def test_losses(small):
    model = small("llama, grouped, tied")
    steering, _, parts = several(model)
    row, alphas = PROMPTS[0], np.array([0.0, 0.6])
    counted = np.ones((1, len(row) - 1), bool)
    got = loss_increases(model, Text([row], counted), steering, None, alphas)
    log_p = [np.asarray(jax.nn.log_softmax(block_by_block(model, row, parts(len(row), [alpha] * 7)))) for alpha in alphas]
    rises = np.subtract(*(table[np.arange(len(row) - 1), row[1:]] for table in log_p))
    divergences = np.sum(np.exp(log_p[0]) * (log_p[0] - log_p[1]), axis=-1)[:-1]
    error = np.sqrt(np.sum((rises - divergences) ** 2)) / rises.size
    np.testing.assert_allclose(got, [[0, rises.mean()], [0, divergences.mean()], [0, error]], atol=1e-4)


def test_generation(small):
    """A strength for each prompt; the reference runs the whole model for every token."""
    model, alphas, lengths = small("llama, grouped, tied"), [0.9, -2.0], [7, 1]
    intervention, done = kinds(model.config.d_model)["rotate when"]
    steering = Steering({1: intervention}, tokens=After(lengths))
    got = model.generate(PROMPTS[:2], max_new_tokens=3, steering=steering, alpha=alphas).tokens
    for prompt, alpha, length, written in zip(PROMPTS, alphas, lengths, got, strict=False):
        grown = list(prompt)
        for _ in range(3):
            at = np.arange(len(grown)) >= length
            grown.append(int(block_by_block(model, grown, [(1, "residual", done, alpha, at)])[-1].argmax()))
        assert list(written) == grown[len(prompt) :]
    assert got != model.generate(PROMPTS[:2], max_new_tokens=3).tokens


def test_in_bfloat16(small):
    """What is done is computed in float32, and what comes of it is rounded to the type of the stream."""
    model = small("llama, grouped, tied").with_dtype(jnp.bfloat16)
    layers, alpha = (0, 1), 2.5
    steering, alone = all_at_once(model.config.d_model, layers)
    halved = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16) if jnp.ndim(leaf) else leaf, steering)
    assert np.isfinite(swept(model, halved, alpha * alone)).all()
    got = swept(model, steering, alpha * alone)
    for prompt, rows in zip(PROMPTS, got, strict=True):
        free = block_by_block(model, prompt, [])[-1]
        for row, (_, done) in zip(rows, kinds(model.config.d_model).values(), strict=True):
            parts = [(layer, "residual", done, alpha, [True] * len(prompt)) for layer in layers]
            expected = block_by_block(model, prompt, parts)[-1]
            assert np.abs(row - expected).max() < 0.2 * np.abs(expected - free).max()


# --- after the last block -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama, grouped, tied", "gemma3, scaled"])
def test_rotations_after_the_last_block_are_the_angle_of_n8(small, name):
    """Two unembeddings give the logits at every angle; eps takes the same share of all of them."""
    model = small(name)
    last, v, angles = model.config.num_layers - 1, vector(model.config.d_model), np.linspace(-3, 3, 7)
    got = swept(model, Steering({last: Rotate(v)}, tokens=Last()), angles)
    states = np.asarray(model.split(PROMPTS, last).embed(jnp.arange(3)).stream[:, -1])
    end = readout(model)
    assert end.softcap is None
    for h, rows in zip(states, got, strict=True):
        path = arc.arc_of(end.W, end.gamma, end.bias, jnp.asarray(h), jnp.asarray(v))
        share = (1 + h.size * model.config.eps / (h @ h)) ** -0.5
        for angle, row in zip(angles, rows, strict=True):
            theta = arc.theta_of_alpha(path, 0.0) + angle
            np.testing.assert_allclose(row, share * arc.arc_logits(path, theta), atol=1e-4)
    assert np.abs(got[:, 0] - got[:, 3]).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_after_the_last_block_keeping_the_length_is_adding(small, name):
    """With LayerNorm and its bias, and with RMSNorm; before the last block it is not."""
    model, alphas = small(name), [-3.0, 0.5, 2.0]
    last, v = model.config.num_layers - 1, vector(model.config.d_model)
    for layer in (last, last - 1):
        got, added = (swept(model, Steering({layer: make(v)}), alphas) for make in (NormPreservingAdd, Add))
        away = np.abs(got - added).max()
        assert away < 1e-3 if layer == last else away > 1e-2


def test_refused(small):
    model = small("gpt2")
    d = model.config.d_model
    ones = np.ones(d, np.float32)
    for intervention, message in (
        (Rotate(np.zeros(d)), "steering.v: expected a vector other than 0, for Rotate, got 0 in every coordinate"),
        (When(Add(ones), ones[1:]), r"steering: expected an intervention for the site residual, from 32 to 32 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(PROMPTS, max_new_tokens=1, steering=Steering({0: intervention}))
        with pytest.raises(ValueError, match=message):
            ufm.divergence(model.split(PROMPTS), [0], Steering({0: intervention}), [1.0])

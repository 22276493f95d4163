"""The split of a language model: against the whole model, and against blocks run one by one."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.jet import jet

import ufm
from sim.bridge.decoder import positions_of
from sim.bridge.families import from_config
from sim.bridge.model import random_model

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3]]
NAMES = ["gpt2", "llama, grouped, tied", "qwen3, windows, biases", "gemma3, scaled"]


@nnx.jit
def _whole(decoder, ids, seen, steering):
    positions = positions_of(seen)
    x = decoder.embed(ids, positions)
    x = decoder.run(x, positions, seen, 0, steering.shape[0], each=lambda x, i: x + steering[i])
    return decoder.logits(x)


def whole(model, steering=None, prompt=PROMPTS[0]):
    """Logits of a prompt, with `steering` added to the stream after each block, ``[L, d]``."""
    steering = np.zeros((model.architecture.layers, model.architecture.width)) if steering is None else steering
    ids, seen = model.contexts([prompt], length=20, side="right")
    return np.asarray(_whole(model.decoder, ids, seen, jnp.asarray(steering, jnp.float32))[0])[: len(prompt)]


@jax.jit
def embedded(cut):
    return cut.embed(jnp.arange(3))


@jax.jit
def steered(cut, v):
    return ufm.steer(cut, jnp.arange(3), cut.everywhere(v), 1.0)


def direction(model, seed=0):
    return np.random.default_rng(seed).normal(size=model.architecture.width).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_gives_the_logits_of_the_whole(small, name):
    model = small(name)
    expected = [row[-1] for row in model.logits(PROMPTS)]
    for layer in range(model.architecture.layers):
        cut = model.at(layer, PROMPTS)
        assert isinstance(cut, ufm.Steerable)
        np.testing.assert_allclose(steered(cut, jnp.zeros(model.architecture.width)), expected, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_steering_is_adding_to_the_stream_after_a_block(small, name):
    model, v = small(name), direction(small(name))
    for layer in range(model.architecture.layers):
        steering = np.zeros((model.architecture.layers, v.size), np.float32)
        steering[layer] = 1.5 * v
        cut = model.at(layer, PROMPTS)
        got = steered(cut, jnp.asarray(1.5 * v))
        for row, prompt in zip(np.asarray(got), PROMPTS, strict=True):
            np.testing.assert_allclose(row, whole(model, steering, prompt)[-1], atol=5e-5)


def test_steering_at_the_end_only(small):
    model, v = small("gpt2"), direction(small("gpt2"))
    cut = model.at(1, PROMPTS, last_only=False)
    h = cut.embed(jnp.arange(3))
    moved = h + cut.at_end(jnp.asarray(v))
    rows, _ = cut.parted(moved - h)
    np.testing.assert_allclose(rows[:, -1], np.broadcast_to(v, (3, v.size)), atol=1e-5)
    np.testing.assert_array_equal(rows[:, :-1], 0)
    width = PROMPTS[0].__len__()
    changed = np.asarray(cut.decode(moved) - cut.decode(h)).reshape(3, width, -1)
    np.testing.assert_allclose(changed[0, :-1], 0, atol=1e-6)
    assert np.abs(changed[:, -1]).max() > 0.1


def test_states_of_all_layers_are_those_of_every_cut(small):
    model = small("gemma2")
    states, seen = model.states(PROMPTS)
    for layer in range(model.architecture.layers):
        cut = model.at(layer, PROMPTS)
        rows, marks = cut.parted(embedded(cut))
        np.testing.assert_array_equal(marks[..., 0] == 1, seen)
        np.testing.assert_allclose(np.asarray(rows)[seen], np.asarray(states[layer])[seen], atol=1e-5)
        every = cut.embed_all(jnp.arange(3))
        np.testing.assert_allclose(cut.parted(every[layer])[0], rows, atol=1e-5)
        np.testing.assert_array_equal(cut.parted(every[layer])[1], marks)


@pytest.mark.parametrize(("layer", "last_only"), [(0, False), (1, True), (2, True)])
def test_steering_at_this_and_all_later_layers(small, layer, last_only):
    model = small("llama")
    rows = np.random.default_rng(1).normal(size=(3, model.architecture.width)).astype(np.float32)
    cut = model.at(layer, PROMPTS, last_only=last_only).and_later(jnp.asarray(rows))
    got = np.asarray(_swept(cut, jnp.asarray(rows[layer]), jnp.asarray([0.0, -1.5])))
    for prompt, both in zip(PROMPTS, got, strict=True):
        for alpha, row in zip((0.0, -1.5), both, strict=True):
            expected = whole(model, alpha * rows * (np.arange(3) >= layer)[:, None], prompt)
            if not last_only:
                row = row.reshape(-1, expected.shape[1])[-len(prompt) :]
            np.testing.assert_allclose(row, expected[-1] if last_only else expected, atol=1e-4)


@jax.jit
def _swept(cut, v, alphas):
    return ufm.sweep(cut, jnp.arange(3), cut.everywhere(v), alphas, lambda logits, _: logits)


def test_rows_of_another_shape_are_refused(small):
    with pytest.raises(ValueError, match=r"rows: expected shape \(3, 32\), got \(2, 32\)"):
        small("llama").at(0, PROMPTS).and_later(jnp.ones((2, 32)))


@pytest.mark.parametrize("budget", [2**20])
def test_a_sweep_holds_what_its_budget_allows(budget):
    """Temporary memory of the compiled program, whatever the number of strengths; and it is used, not a fraction of it."""
    settings = {"vocab_size": 3000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    model = random_model(from_config({"model_type": "llama", "num_attention_heads": 4, **settings}), jax.random.key(0))
    cut, v = replace(model.at(1, [list(range(40))]), budget=budget), jnp.ones(32)

    def temporary(count):
        swept = jax.jit(
            lambda cut, v, alphas: ufm.sweep(cut, jnp.arange(1), cut.everywhere(v), alphas, lambda row, _: row[0])
        )
        compiled = swept.lower(cut, v, jnp.ones(count)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    slack = 2**20 + 8 * 32 * 40 * 64
    assert temporary(4096) <= 4 * budget + slack
    assert temporary(4096) <= temporary(512) + slack
    at_a_time = ufm.steerable.at_once(cut, jnp.zeros((1, 40 * 33)))
    assert at_a_time == max(1, budget // cut.held)


def test_a_transformer_of_one_layer():
    """Its one block is the first and the last: the cut is before the norm."""
    settings = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = random_model(from_config({"model_type": "gpt2", **settings}), jax.random.key(0))
    cut, v = model.at(0, PROMPTS), jnp.asarray(direction(model))
    expected = [row[-1] for row in model.logits(PROMPTS)]
    np.testing.assert_allclose(steered(cut, jnp.zeros(16)), expected, atol=2e-5)
    np.testing.assert_allclose(steered(cut, v)[0], whole(model, np.asarray(v)[None])[-1], atol=2e-5)


def test_all_positions_when_asked_for(small):
    model = small("llama")
    cut = model.at(0, PROMPTS[:1], last_only=False)
    got = np.asarray(cut.decode(cut.embed(jnp.asarray([0])))).reshape(len(PROMPTS[0]), -1)
    np.testing.assert_allclose(got, whole(model), atol=2e-5)


def test_measures_of_the_toy_run_on_it(small):
    model, v = small("mistral"), direction(small("mistral"))
    cut, alphas = model.at(1, PROMPTS), np.linspace(-2, 2, 5)
    rises = ufm.probability_increase(cut, [0, 2], cut.everywhere(jnp.asarray(v)), alphas, tokens=[3, 7])
    assert rises.shape == (2, 5, 2)
    np.testing.assert_allclose(rises[:, 2], 0, atol=1e-6)
    p = [np.asarray(jax.nn.softmax(whole(model, _rows(model, 1, a * v))[-1]))[[3, 7]] for a in alphas]
    np.testing.assert_allclose(rises[0], np.asarray(p) - p[2], atol=1e-5)


def _rows(model, layer, v):
    rows = np.zeros((model.architecture.layers, v.size), np.float32)
    rows[layer] = v
    return rows


@pytest.mark.slow
def test_derivatives_go_through_the_strength_and_the_state(small):
    """Forward mode with the layer as an array; reverse mode with it as a constant. Both against differences."""
    model = small("qwen2")
    v = jnp.asarray(direction(model))
    cut = model.at(1, PROMPTS[:1])
    h, push = cut.embed(jnp.asarray([0]))[0], cut.everywhere(v)

    def loss(alpha, cut):
        return jax.nn.log_softmax(cut.decode(h + alpha * push))[7]

    slope = jax.jvp(lambda a: loss(a, cut), (jnp.asarray(0.3),), (jnp.asarray(1.0),))[1]
    backward = jax.grad(lambda a: loss(a, cut.statically()))(jnp.asarray(0.3))
    difference = (loss(0.31, cut) - loss(0.29, cut)) / 0.02
    assert float(slope) == pytest.approx(float(backward), rel=1e-4, abs=1e-5)
    assert float(slope) == pytest.approx(float(difference), rel=2e-2, abs=2e-3)
    second = jax.jvp(lambda b: jax.jvp(lambda a: loss(a, cut), (b,), (jnp.asarray(1.0),))[1], (jnp.asarray(0.3),), (1.0,))[1]
    assert np.isfinite(second)


@pytest.mark.parametrize(("name", "layer"), [pytest.param("llama", 1, marks=pytest.mark.slow), ("gemma2", 2)])
def test_taylor_mode_goes_through_the_strength_and_the_state(small, name, layer):
    """Against derivatives of derivatives, in float64, for contexts of two lengths."""
    with jax.enable_x64(True):
        model = small(name).with_dtype(jnp.float64)
        cut = model.at(layer, PROMPTS[:2]).statically(unrolled=True)
        h, push = cut.embed(jnp.arange(2)), cut.everywhere(jnp.asarray(direction(model), jnp.float64))
        assert h.dtype == jnp.float64

        def curve(alpha):
            return jax.nn.log_softmax(cut.decode(h + alpha * push))

        @jax.jit
        def both(alpha):
            found, expected = jet(curve, (alpha,), ((1.0, 0.0, 0.0),))[1], []
            function = curve
            for _ in range(3):
                function = partial(_slope, function)
                expected.append(function(alpha))
            return found, expected

        for got, expected in zip(*both(jnp.asarray(0.3)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def _slope(function, alpha):
    return jax.jvp(function, (alpha,), (jnp.ones_like(alpha),))[1]


def test_one_program_serves_all_layers_strengths_vectors_and_contexts(small):
    model = small("llama")
    count = 0

    @jax.jit
    def logits(cut, v, alpha):
        nonlocal count
        count += 1
        return ufm.steer(cut, jnp.arange(2), cut.everywhere(v), alpha)

    for layer in range(3):
        for alpha, prompts in ((1.0, [[1, 2, 3], [4]]), (-2.5, [[5], [6, 7]])):
            cut = model.at(layer, prompts, length=4)
            logits(cut, jnp.asarray(direction(model, layer)), alpha).block_until_ready()
    assert count == 1


def test_a_split_holds_no_copy_of_the_weights(small):
    model = small("llama")
    cut = model.at(1, PROMPTS)
    assert all(
        a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer()
        for a, b in zip(jax.tree.leaves(cut.state), jax.tree.leaves(nnx.state(model.decoder)), strict=True)
    )


@pytest.mark.parametrize(
    ("layer", "prompts", "message"),
    [
        (3, PROMPTS, "layer: expected a block from 0 to 2, got 3"),
        (-1, PROMPTS, "layer: expected a block from 0 to 2, got -1"),
        (0, "a string", "prompts: expected a list of prompts, got the one string 'a string'"),
        (0, [], "prompts: expected at least one, got none"),
        (0, [[1], []], "prompt: expected at least one token, got none in prompt 1"),
        (0, [[1, 61]], r"tokens: expected ids from 0 to 60, got \[61\]"),
        (0, [[-1]], r"tokens: expected ids from 0 to 60, got \[-1\]"),
        (0, [list(range(40)) * 7], "prompt: expected at most 256 tokens, got 280"),
        (0, ["text"], "prompt: expected token ids, for a model without a tokenizer, got 'text'"),
    ],
)
def test_bad_input(small, layer, prompts, message):
    with pytest.raises(ValueError, match=message):
        small("llama").at(layer, prompts)


def test_vectors_that_do_not_fit_are_refused(small):
    model = small("llama")
    cut = model.at(0, PROMPTS)
    for make in (cut.everywhere, cut.at_end):
        with pytest.raises(ValueError, match=r"v: expected shape \(32,\), the width of the stream, got \(31,\)"):
            make(jnp.ones(31))
        with pytest.raises(ValueError, match=r"v: expected finite numbers, got nan at index \(0,\)"):
            make(np.full(32, np.nan, np.float32))
    with pytest.raises(ValueError, match="rows: expected finite numbers, got nan"):
        cut.and_later(np.full((3, 32), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"v: expected shape \(264,\), that of one hidden state .*, got \(32,\)"):
        ufm.steer(cut, [0], jnp.ones(32), 1.0)
    # A vector made by the split that knows nothing of later layers.
    with pytest.raises(ValueError, match=r"v: expected shape \(272,\), .*, got \(264,\)"):
        ufm.divergence(cut.and_later(jnp.ones((3, 32))), [0], cut.everywhere(jnp.ones(32)), [1.0])


@pytest.mark.parametrize("measure", [ufm.curvature, lambda *a: ufm.divergence(*a, [1.0]), lambda *a: ufm.steer(*a, 1.0)])
def test_contexts_that_are_not_there_are_refused(small, measure):
    cut = small("llama").at(0, PROMPTS)
    push = cut.everywhere(direction(small("llama")))
    for contexts in ([7], [0, 3], [-1]):
        with pytest.raises(ValueError, match="contexts: expected indices from 0 to 2, got"):
            measure(cut, contexts, push)


def test_a_split_is_shown_in_a_line(small):
    assert repr(small("llama").at(1, PROMPTS)) == "Split(after block 1, 3 contexts of 8 tokens)"


def test_rows_of_some_layers(small):
    model, v = small("llama"), direction(small("llama"))
    rows = model.steering({0: v, 2: -v})
    np.testing.assert_array_equal(rows, [v, 0 * v, -v])
    with pytest.raises(ValueError, match="layer: expected a block from 0 to 2, got 3"):
        model.steering({3: v})
    with pytest.raises(ValueError, match="v: expected shape"):
        model.steering({1: v[:5]})

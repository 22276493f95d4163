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
from sim.bridge.architectures import from_config
from sim.bridge.decoder import Decoder
from sim.bridge.model import random_model
from ufm import Add, After, All, Last, LoRA, Steering, Where
from ufm.steering import stacks

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3]]
NAMES = ["gpt2", "llama, grouped, tied", "qwen3, windows, biases", "gemma3, scaled"]


@jax.jit
def _whole(decoder, ids, mask, steering):
    attention_context = decoder.attention_context(mask)

    def hook(site, i, x, y):
        return y + steering[i] if site == "residual" else y

    x = decoder.run_blocks(
        decoder.embed(ids, attention_context.positions), attention_context, 0, steering.shape[0], hook=hook
    )
    return decoder.logits(x)


def whole(model, steering=None, prompt=PROMPTS[0]):
    """Logits of a prompt, with `steering` added to the stream after each block: ``[L, d]``, or ``[L, T, d]`` by token."""
    a = model.config
    steering = np.zeros((a.num_layers, a.d_model)) if steering is None else np.asarray(steering)
    rows = np.zeros((a.num_layers, 20, a.d_model), np.float32)
    if steering.ndim == 2:
        rows += steering[:, None]
    else:
        rows[:, : len(prompt)] = steering
    ids, mask = model.contexts([prompt], length=20, side="right")
    return np.asarray(_whole(model.decoder, ids, mask, jnp.asarray(rows))[0])[: len(prompt)]


@jax.jit
def embedded(split):
    return split.embed(jnp.arange(3))


@jax.jit
def steered(split, steering, alpha=1.0):
    return ufm.steer(split, jnp.arange(3), steering, alpha)


def sweep(split, steering, alphas):
    """Logits, and the split that they were taken behind."""
    split, steering = split.resolve(steering)
    return np.asarray(_swept(split, steering, jnp.asarray(alphas, jnp.float32))), split


@jax.jit
def _swept(split, steering, alphas):
    return ufm.sweep(split, jnp.arange(split.n_contexts), steering, alphas, lambda logits, _: logits)


def direction(model, seed=0):
    return np.random.default_rng(seed).normal(size=model.config.d_model).astype(np.float32)


def _rows(model, layer, v):
    rows = np.zeros((model.config.num_layers, v.size), np.float32)
    rows[layer] = v
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_every_split_gives_the_logits_of_the_whole(small, name):
    model = small(name)
    expected = [row[-1] for row in model.logits(PROMPTS)]
    for layer in range(model.config.num_layers):
        split = model.split(PROMPTS, layer)
        assert isinstance(split, ufm.Steerable)
        np.testing.assert_allclose(steered(split, jnp.zeros(model.config.d_model)), expected, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_steering_is_adding_to_the_stream_after_a_block(small, name):
    model, v = small(name), direction(small(name))
    for layer in range(model.config.num_layers):
        got = steered(model.split(PROMPTS, layer), jnp.asarray(1.5 * v))
        same = steered(model.split(PROMPTS), Steering({layer: Add(jnp.asarray(v))}), 1.5)
        for row, other, prompt in zip(np.asarray(got), np.asarray(same), PROMPTS, strict=True):
            expected = whole(model, _rows(model, layer, 1.5 * v), prompt)[-1]
            np.testing.assert_allclose(row, expected, atol=5e-5)
            np.testing.assert_allclose(other, expected, atol=5e-5)


# --- which tokens --------------------------------------------------------------------------------------------------------

SELECTIONS = {
    "all": (All(), lambda length, k: np.ones(length)),
    "last": (Last(), lambda length, k: np.arange(length) == length - 1),
    "after": (After(2), lambda length, k: np.arange(length) >= 2),
    "after, by context": (After(jnp.asarray([5, 1, 4])), lambda length, k: np.arange(length) >= [5, 1, 4][k]),
    "where": (Where(np.arange(8) % 2 == 1), lambda length, k: np.arange(8)[8 - length :] % 2 == 1),
    "where, by context": (
        Where(np.arange(8) == np.array([[3], [6], [7]])),
        lambda length, k: np.arange(8)[8 - length :] == [3, 6, 7][k],
    ),
}
FIRST = {"all": 0, "last": 7, "after": 2, "after, by context": 5, "where": 1, "where, by context": 3}
"""The first column that is touched; contexts of 8, 3 and 5 tokens are padded on the left."""


def _dear(name, tokens):
    """Positions that are learned and windows are tried with every selection, the other families with two."""
    return name not in ("gpt2", "gemma3, scaled") and tokens not in ("last", "where, by context")


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        pytest.param(tokens, name, id=f"{tokens}-{name}", marks=[pytest.mark.slow] if _dear(name, tokens) else [])
        for tokens in SELECTIONS
        for name in NAMES
    ],
)
def test_steering_of_some_tokens(small, name, tokens):
    """What is before the first token that is touched is computed once; the logits are those of the whole model."""
    model, v, alphas = small(name), direction(small(name)), [0.0, 1.0, -2.0]
    selection, chosen = SELECTIONS[tokens]
    for layer in (0, 1, model.config.num_layers - 1):
        got, split = sweep(model.split(PROMPTS), Steering({layer: Add(v)}, tokens=selection), alphas)
        assert split.prefix_length == FIRST[tokens]
        assert split.embed(jnp.arange(3)).stream.shape[1] == 8 - FIRST[tokens]
        for k, (prompt, rows) in enumerate(zip(PROMPTS, got, strict=True)):
            for alpha, row in zip(alphas, rows, strict=True):
                at = np.zeros((model.config.num_layers, len(prompt), v.size))
                at[layer] = alpha * np.asarray(chosen(len(prompt), k), float)[:, None] * v
                np.testing.assert_allclose(row, whole(model, at, prompt)[-1], atol=5e-5)


def test_all_logits_of_some_tokens(small):
    """Where all logits are asked for, those before the first token that is touched are unsteered."""
    model, v = small("gpt2"), direction(small("gpt2"))
    split, steering = model.split(PROMPTS, 1, last_only=False).resolve(Steering(Add(v), tokens=Last()))
    assert split.prefix_length == 0
    states = split.embed(jnp.arange(3))
    changed = np.asarray(split.steered(states, steering, 1.0) - split.decode(states))
    np.testing.assert_allclose(changed[0, :-1], 0, atol=1e-6)
    assert np.abs(changed[:, -1]).max() > 0.1


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_layer_that_is_a_constant_of_the_program_keeps_keys_too(small, unrolled):
    model, v = small("gemma2"), direction(small("gemma2"))
    split, steering = model.split(PROMPTS, 1).statically(unrolled=unrolled).resolve(Steering(Add(v), tokens=Last()))
    assert (split.prefix_length, split.layer) == (7, 1)
    got = jax.jit(lambda alpha: ufm.steer(split, jnp.arange(3), steering, alpha))(1.0)
    expected = sweep(model.split(PROMPTS, 1), Steering(Add(v), tokens=Last()), [1.0])[0][:, 0]
    np.testing.assert_allclose(got, expected, atol=2e-5)


# --- several interventions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_only", [True, False])
def test_several_layers_each_with_its_strength(small, last_only):
    model = small("llama")
    vectors = np.random.default_rng(1).normal(size=(3, model.config.d_model)).astype(np.float32)
    alphas = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, -2.0], [0.5, 3.0, 1.0]])
    steering = Steering({layer: Add(jnp.asarray(v)) for layer, v in enumerate(vectors)})
    got, _ = sweep(model.split(PROMPTS, last_only=last_only), steering, alphas)
    one_for_all, _ = sweep(model.split(PROMPTS, last_only=last_only), steering, [2.0])
    for prompt, rows, alone in zip(PROMPTS, got, one_for_all, strict=True):
        for alpha, row in [*zip(alphas, rows, strict=True), (2 * np.ones(3), alone[0])]:
            expected = whole(model, alpha[:, None] * vectors, prompt)
            np.testing.assert_allclose(
                row if last_only else row[-len(prompt) :], expected[-1] if last_only else expected, atol=1e-4
            )


def test_several_at_one_layer_add_up_in_order(small):
    model = small("gpt2")
    v, w = direction(model), direction(model, 1)
    both = Steering({1: [Add(v), Add(w)]}) + Steering({2: Add(v)}, tokens=Last())
    alphas = np.array([[1.0, -1.0, 2.0]])
    got, split = sweep(model.split(PROMPTS), both, alphas)
    assert (int(split.layer), split.prefix_length) == (1, 0)
    at = np.zeros((model.config.num_layers, 8, v.size))
    at[1], at[2, -1] = v - w, 2 * v
    np.testing.assert_allclose(got[0, 0], whole(model, at)[-1], atol=5e-5)
    again = sweep(
        model.split(PROMPTS), Steering({2: Add(v)}) + Steering({2: Add(w)}) + Steering({1: Add(v)}), [[1.0, 2.0, 0.0]]
    )
    np.testing.assert_allclose(again[0][0, 0], whole(model, _rows(model, 2, v + 2 * w))[-1], atol=5e-5)


def test_as_many_programs_as_kinds_of_parts(small):
    """Vectors at any layers are one stack: the program does not grow with their number."""
    model = small("llama")
    steering = Steering({layer: Add(direction(model, layer)) for layer in range(3)})
    assert [len(stack.layers) for stack in stacks(steering)] == [3]
    assert len(stacks(steering + Steering({0: Add(direction(model))}))) == 2
    assert len(stacks(steering + Steering({0: Add(direction(model))}, tokens=Last()))) == 2


def test_states_of_all_layers_are_those_of_every_split(small):
    model = small("gemma2")
    states, mask = model.states(PROMPTS)
    for layer in range(model.config.num_layers):
        split = model.split(PROMPTS, layer)
        alone = embedded(split)
        np.testing.assert_array_equal(alone.mask, mask)
        np.testing.assert_allclose(np.asarray(alone.stream)[mask], np.asarray(states[layer])[mask], atol=1e-5)
        every = ufm.steerable.one_of(split.embed_all(jnp.arange(3)), layer)
        np.testing.assert_allclose(every.stream, alone.stream, atol=1e-5)
        np.testing.assert_array_equal(every.mask, mask)
        np.testing.assert_array_equal(every.context, alone.context)


def test_the_difference_of_means_is_that_of_the_last_tokens(small):
    model = small("llama, grouped, tied")
    states, mask = model.states(PROMPTS)
    last = states[1, :, -1]
    assert mask[:, -1].all()
    weights = np.array([1.0, -0.25, -0.75])
    v = ufm.difference_of_means(model.split(PROMPTS, 1), [0, 1, 2], weights)
    np.testing.assert_allclose(v, weights @ last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [2**20])
def test_a_sweep_holds_what_its_budget_allows(budget):
    """Temporary memory of the compiled program, whatever the number of strengths; and it is used, not a fraction of it."""
    settings = {"vocab_size": 3000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    model = random_model(from_config({"model_type": "llama", "num_attention_heads": 4, **settings}), jax.random.key(0))
    cut, v = replace(model.split([list(range(40))], 1), budget=budget), jnp.ones(32)

    def temporary(count):
        swept = jax.jit(lambda cut, v, alphas: ufm.sweep(cut, jnp.arange(1), v, alphas, lambda row, _: row[0]))
        compiled = swept.lower(cut, v, jnp.ones(count)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    slack = 2**20 + 8 * 32 * 40 * 64
    assert temporary(4096) <= 4 * budget + slack
    assert temporary(4096) <= temporary(512) + slack
    at_a_time = ufm.steerable.at_once(cut, cut.embed(jnp.asarray(0)))
    assert at_a_time == max(1, budget // cut.activation_size)


def test_a_sweep_of_last_tokens_holds_what_its_budget_allows():
    """Keys, values and the passes that make them are for a few contexts at a time."""
    settings = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    model = random_model(from_config({"model_type": "llama", "num_attention_heads": 4, **settings}), jax.random.key(0))

    def temporary(contexts, budget):
        split = replace(model.split([list(range(40))] * contexts), budget=budget)
        split, steering = split.resolve(Steering({1: Add(jnp.ones(32))}, tokens=Last()))
        assert split.prefix_length == 39
        swept = jax.jit(lambda split: ufm.sweep(split, jnp.arange(contexts), steering, jnp.ones(2), lambda row, _: row[0]))
        return swept.lower(split).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(64, 2**17), temporary(64, 2**24)
    assert small <= 4 * 2**17 + 2**20
    assert large > 4 * small


def test_tokens_that_were_computed_without_steering_give_no_number(small):
    """In a compiled program, a steering of tokens before the first that a split was resolved for."""
    model, v = small("llama"), direction(small("llama"))
    split, _ = model.split(PROMPTS, 1).resolve(Steering(Add(v), tokens=Last()))

    @jax.jit
    def logits(split, steering):
        return ufm.steer(split, jnp.arange(3), steering, 1.0)

    assert np.isfinite(logits(split, Steering(Add(v), tokens=Last()))).all()
    assert np.isfinite(logits(split, Steering(Add(v), tokens=After(jnp.asarray([7, 2, 4]))))).all()
    assert np.isnan(logits(split, Steering(Add(v), tokens=After(jnp.asarray([6, 2, 4]))))).all()


def test_a_transformer_of_one_layer():
    """Its one block is the first and the last: the cut is before the norm."""
    settings = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = random_model(from_config({"model_type": "gpt2", **settings}), jax.random.key(0))
    cut, v = model.split(PROMPTS, 0), jnp.asarray(direction(model))
    expected = [row[-1] for row in model.logits(PROMPTS)]
    np.testing.assert_allclose(steered(cut, jnp.zeros(16)), expected, atol=2e-5)
    np.testing.assert_allclose(steered(cut, v)[0], whole(model, np.asarray(v)[None])[-1], atol=2e-5)


def test_all_positions_when_asked_for(small):
    model = small("llama")
    cut = model.split(PROMPTS[:1], 0, last_only=False)
    got = np.asarray(cut.decode(cut.embed(jnp.asarray([0]))))[0]
    np.testing.assert_allclose(got, whole(model), atol=2e-5)


def test_measures_of_the_toy_run_on_it(small):
    model, v = small("mistral"), direction(small("mistral"))
    cut, alphas = model.split(PROMPTS, 1), np.linspace(-2, 2, 5)
    rises = ufm.probability_increase(cut, [0, 2], v, alphas, tokens=[3, 7])
    assert rises.shape == (2, 5, 2)
    np.testing.assert_allclose(rises[:, 2], 0, atol=1e-6)
    p = [np.asarray(jax.nn.softmax(whole(model, _rows(model, 1, a * v))[-1]))[[3, 7]] for a in alphas]
    np.testing.assert_allclose(rises[0], np.asarray(p) - p[2], atol=1e-5)
    free, steering = model.split(PROMPTS), Steering({1: Add(v)})
    again = ufm.probability_increase(free, [0, 2], steering, alphas, tokens=[3, 7])
    np.testing.assert_allclose(again, rises, atol=1e-6)
    half = ufm.Concepts([0] * 30 + [1] * (model.config.vocab_size - 30))
    of_concepts = (ufm.concept_increase(at, [0, 2], by, alphas, half) for at, by in ((free, steering), (cut, v)))
    np.testing.assert_allclose(*of_concepts, atol=1e-6)
    assert ufm.divergence(free, [0, 2], steering, alphas).shape == (2, 5)
    assert ufm.curvature(free, [0, 2], steering).shape == (2,)


CALLS = {
    "embed": lambda split, state, steering: split.embed(jnp.arange(3)),
    "embed_all": lambda split, state, steering: split.embed_all(jnp.arange(3)),
    "decode": lambda split, state, steering: split.decode(state),
    "steered": lambda split, state, steering: split.steered(state, steering, alpha=0.5),
    "steer": lambda split, state, steering: ufm.steer(split, [0, 2], steering, 0.5),
    "steer within a budget": lambda split, state, steering: ufm.steer(split, [0, 2], steering.within(0.1), 0.5),
    "probability_increase": lambda split, state, steering: ufm.probability_increase(split, [0], steering, [0.5]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_outside_of_programs_traces_nothing(small, monkeypatch, name):
    """A loop that is not part of a program would be traced and compiled at every call."""
    model = small("llama")
    split = model.split(PROMPTS, 1)
    state, steering, traced = split.embed(jnp.arange(3)), Steering(Add(jnp.asarray(direction(model)))), []
    run_blocks = Decoder.run_blocks
    monkeypatch.setattr(Decoder, "run_blocks", lambda *values, **named: traced.append(name) or run_blocks(*values, **named))
    first = CALLS[name](split, state, steering)
    traced.clear()
    jax.tree.map(np.testing.assert_array_equal, CALLS[name](split, state, steering), first)
    assert traced == []


@pytest.mark.slow
def test_derivatives_go_through_the_strength_and_the_state(small):
    """Forward mode with the layer as an array; reverse mode with it as a constant. Both against differences."""
    model = small("qwen2")
    v = jnp.asarray(direction(model))
    cut = model.split(PROMPTS[:1], 1)
    state, steering = cut.embed(jnp.asarray(0)), Steering(Add(v))

    def loss(alpha, cut):
        return jax.nn.log_softmax(cut.steered(state, steering, alpha))[7]

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
        cut = model.split(PROMPTS[:2], layer).statically(unrolled=True)
        states, steering = cut.embed(jnp.arange(2)), Steering(Add(jnp.asarray(direction(model), jnp.float64)))
        assert states.stream.dtype == jnp.float64

        def curve(alpha):
            return jax.nn.log_softmax(cut.steered(states, steering, alpha))

        @jax.jit
        def both(alpha):
            derivatives, expected = jet(curve, (alpha,), ((1.0, 0.0, 0.0),))[1], []
            function = curve
            for _ in range(3):
                function = partial(_slope, function)
                expected.append(function(alpha))
            return derivatives, expected

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
        return ufm.steer(cut, jnp.arange(2), v, alpha)

    for layer in range(3):
        for alpha, prompts in ((1.0, [[1, 2, 3], [4]]), (-2.5, [[5], [6, 7]])):
            cut = model.split(prompts, layer, length=4)
            logits(cut, jnp.asarray(direction(model, layer)), alpha).block_until_ready()
    assert count == 1


def test_a_split_holds_no_copy_of_the_weights(small):
    model = small("llama")
    cut = model.split(PROMPTS, 1)
    assert all(
        a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer()
        for a, b in zip(jax.tree.leaves(cut.parameters), jax.tree.leaves(nnx.state(model.decoder)), strict=True)
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
        small("llama").split(prompts, layer)


def test_steerings_that_do_not_fit_are_refused(small):
    model = small("llama")
    d = model.config.d_model
    split, v = model.split(PROMPTS, 1), direction(model)
    refused = {
        r"steering: expected an intervention for the site residual, from 32 to 32 numbers, got Add with v \(31,\)": v[:31],
        r"steering.v: expected finite numbers, got nan at index \(0,\)": Steering(Add(np.full(d, np.nan, np.float32))),
        "layer: expected a block from 0 to 2, got 3": Steering({3: Add(v)}),
        "layer: expected blocks from 1 on, where the model is split": Steering(Add(v)) + Steering({0: Add(v)}),
        "site: expected one of residual, mlp_down, got 'attention'": Steering({1: Add(v)}, site="attention"),
        "steering: expected an intervention for the site mlp_down": Steering(
            {1: LoRA(v[None], v[:, None])}, site="mlp_down"
        ),
        r"tokens: expected at least one token of every context, got none of context 1: After": Steering(
            Add(v), tokens=After(3)
        ),
        r"tokens: expected a mask of 8 positions, got \(5,\)": Steering(Add(v), tokens=Where(np.ones(5, bool))),
        r"steering: expected a Steering, or a vector \[d\], got shape \(2, 32\)": np.ones((2, d)),
    }
    for message, steering in refused.items():
        with pytest.raises(ValueError, match=message):
            ufm.steer(split, [0], steering, 1.0)
    with pytest.raises(ValueError, match=r"^steering: .*layer.*Steering\({12: Add\(v\)}\)"):
        ufm.steer(model.split(PROMPTS), [0], v, 1.0)
    with pytest.raises(ValueError, match=r"^alpha: .*2 interventions, got shape \(3,\)"):
        ufm.steer(split, [0], Steering({1: Add(v), 2: Add(v)}), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"^alphas: .*\[K\].*1 interventions"):
        ufm.divergence(split, [0], v, [[1.0, 2.0]])


def test_states_that_a_steering_cannot_act_on_are_refused(small):
    model, alphas = small("llama"), jnp.ones(1)
    v = direction(model)
    split = model.split(PROMPTS, 1)
    states = split.embed(jnp.arange(3))
    lora = LoRA(jnp.ones((1, split.sites["mlp_down"][0])), jnp.ones((v.size, 1)))
    last, _ = split.resolve(Steering(Add(v), tokens=Last()))
    refused = {
        "layer: expected blocks after 1, or none": (split, states, Steering({1: Add(v)})),
        "site: expected residual, or states from before the MLP": (split, states, Steering(lora, site="mlp_down")),
        "tokens: expected positions from 7 on": (last, last.embed(jnp.arange(3)), Steering(Add(v))),
    }
    for message, (at, held, steering) in refused.items():
        with pytest.raises(ValueError, match=message):
            ufm.sweep_states(at, held, steering, alphas, lambda logits, _: logits)


@pytest.mark.parametrize("measure", [ufm.curvature, lambda *a: ufm.divergence(*a, [1.0]), lambda *a: ufm.steer(*a, 1.0)])
def test_contexts_that_are_not_there_are_refused(small, measure):
    split = small("llama").split(PROMPTS, 0)
    for contexts in ([7], [0, 3], [-1]):
        with pytest.raises(ValueError, match=r"^contexts: .*0 to 2, got"):
            measure(split, contexts, direction(small("llama")))


def test_a_split_is_shown_in_a_line(small):
    assert repr(small("llama").split(PROMPTS, 1)) == "Split(after block 1, 3 contexts of 8 tokens)"
    assert repr(small("llama").split(PROMPTS)) == "Split(at no layer yet, 3 contexts of 8 tokens)"

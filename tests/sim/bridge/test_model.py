"""A model with its tokenizer: prompts of every kind, chats, directions in batches, and what is refused in a sentence."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

import sim
import ufm
from sim.bridge import model
from sim.bridge.generation import Sampling
from sim.bridge.model import load
from sim.bridge.split import block_activation_size
from sim.bridge.tokenizer import Tokenizer
from sim.directions.states import token_states
from tests.ufm.test_check import Tensor
from ufm import Add, Steering

LETTERS = [chr(i) for i in range(33, 91)]
"""Of token 3 and so on; the small models have 61 tokens."""
BOS, USER, END = 0, 1, 2
TEMPLATE = "<s>{% for m in messages %}<user>{{ m.content }}<end>{% endfor %}{{ '!' if add_generation_prompt }}"


def letters(more=()):
    """A tokenizer of letters that begins texts with <s>, as that of Llama 3 does."""
    vocabulary = {text: i for i, text in enumerate(["<s>", "<user>", "<end>", *LETTERS, *more])}
    core = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.add_special_tokens(["<s>", "<user>", "<end>", *more])
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(core, bos=BOS, eos=END, eos_ids=(END,), template=TEMPLATE)


def in_itself():
    """The messages of a chat, of which one has itself as its content."""
    message = {"role": "user"}
    message["content"] = message
    return [message]


@pytest.fixture
def lm(small):
    return replace(small("llama"), tokenizer=letters())


def ids(text):
    return [3 + LETTERS.index(letter) for letter in text]


def test_it_is_shown_in_a_line(lm):
    device = next(iter(lm.decoder.embedding[...].devices()))
    shown = repr(replace(lm, name="mine"))
    assert shown == f"LanguageModel('mine': llama, 3 layers of width 32, 61 tokens, float32 on {device})"
    assert "no tokenizer, bfloat16" in repr(replace(lm, tokenizer=None).with_dtype("bfloat16"))


# --- prompts ----------------------------------------------------------------------------------------------------------


ROW = [BOS, 35, 36]
"""Of the text AB."""

KINDS = {
    "list": lambda: ["AB", ROW],
    "tuple": lambda: ("AB", np.array(ROW, np.int16)),
    "array": lambda: np.array([ROW] * 2),
    "jax": lambda: jnp.asarray([ROW] * 2),
    "tensor": lambda: Tensor([ROW] * 2, "torch.int64"),
    "list of others": lambda: [Tensor(ROW, "torch.int64"), np.str_("AB")],
    "generator": lambda: (text for text in ("AB", "<s>AB")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_every_kind(lm, kind):
    tokens, mask = lm.contexts(KINDS[kind]())
    assert tokens.tolist() == [ROW] * 2 == [[BOS, *ids("AB")]] * 2
    assert mask.all()


CALLS = {
    "logits": lambda lm, prompts: lm.logits(prompts),
    "states": lambda lm, prompts: lm.states(prompts),
    "at": lambda lm, prompts: lm.split(prompts, 1),
    "generate": lambda lm, prompts: lm.generate(prompts, max_new_tokens=1),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("AB", "^prompts: .*the one string 'AB'"),
        (5, "^prompts: .*5"),
        (None, "^prompts: .*None"),
        ({"A": 1}, "^prompts: .*'A': 1"),
        ([], "^prompts: .*none"),
        (["A", 5], "^prompt: .*5 in place 1"),
        ([3.5], "^prompt: .*3.5 in place 0"),
        ([None], "^prompt: .*None"),
        ([b"AB"], "^prompt: .*b'AB'"),
        ([["A", "B"]], "^prompt 0: expected a whole number, got 'A'"),
        ([[1.0, 2.0]], "^prompt 0: expected a whole number, got 1.0"),
        ([np.array([1.0])], "^prompt 0: expected a whole number, got 1.0"),
        ([[True]], "^prompt 0: expected a whole number, got True"),
        ([[[1]]], r"^prompt 0: expected a whole number, got \[1\]"),
        (np.zeros((1, 1, 1), int), r"^prompt: .*array of int64 of shape \(1, 1\) in place 0"),
        ([[]], "^prompt: .*none in prompt 0"),
        (["A\ud83d"], "^text: .*lone surrogate"),
        ([[{"role": "user", "content": "A"}]], "^prompt: .*chat=True"),
        ([[61]], r"^tokens: .*from 0 to 60.*\[61\]"),
        ([[2**40]], "^tokens: .*from 0 to 60"),
        ([[-1]], r"^tokens: .*\[-1\]"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_things_that_are_no_prompts(lm, call, prompts, message):
    with pytest.raises(ValueError, match=message):
        CALLS[call](lm, prompts)


def test_a_tokenizer_may_have_more_tokens_than_the_model(checkpoint, small, tmp_path):
    """As those of Gemma 3 and CodeLlama: only tokens that are used have to exist."""
    more = letters(["<image>"])
    (tmp_path / "config.json").write_bytes((checkpoint("llama") / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((checkpoint("llama") / "model.safetensors").read_bytes())
    more.core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    model = load(tmp_path, progress=False)
    assert (model.tokenizer.size, model.config.vocab_size) == (62, 61)
    np.testing.assert_array_equal(model.logits(["AB"])[0], small("llama").logits([[BOS, *ids("AB")]])[0])
    for call in CALLS.values():
        with pytest.raises(ValueError, match=r"^tokens: .*from 0 to 60, .*\[61\] \('<image>'"):
            call(model, ["A<image>"])


# --- chats ------------------------------------------------------------------------------------------------------------


def test_chats_begin_once(lm):
    """By `chat`, by the text of a chat, and by its tokens: the same."""
    messages = [{"role": "user", "content": "AB"}]
    expected = [BOS, USER, *ids("AB"), END, *ids("!")]
    assert lm.tokenizer.encode(lm.tokenizer.chat(messages)) == expected
    for prompts, chat in ((["AB"], True), ([messages], True), ([lm.tokenizer.chat(messages)], False), ([expected], False)):
        assert lm.contexts(prompts, chat=chat)[0].tolist() == [expected]
    same = [lm.generate(prompts, max_new_tokens=4, chat=True, stop=False).tokens for prompts in (["AB"], [messages])]
    assert same[0] == same[1] == lm.generate([expected], max_new_tokens=4, stop=False).tokens
    np.testing.assert_array_equal(lm.logits(["AB"], chat=True)[0], lm.logits([expected])[0])
    np.testing.assert_array_equal(lm.states(["AB"], chat=True)[0], lm.states([expected])[0])
    assert lm.split(["AB"], 1, chat=True).tokens.tolist() == [expected]


def test_chats_that_cannot_be(lm):
    with pytest.raises(ValueError, match=r"^messages: "):
        lm.generate([[3, 4]], chat=True)
    with pytest.raises(ValueError, match=r"^template: .*none"):
        replace(lm, tokenizer=replace(lm.tokenizer, template=None)).generate(["A"], chat=True)
    with pytest.raises(ValueError, match=r"^prompt: .*without a tokenizer"):
        replace(lm, tokenizer=None).generate(["A"], chat=True)


# --- batches and vectors ----------------------------------------------------------------------------------------------


def test_logits_and_states_are_taken_in_batches(lm, monkeypatch):
    """Three prompts, of which two fit at a time and a third not quite: two batches of one size."""
    a, prompts, sizes = lm.config, [[3, 4, 5, 6], [7, 8], [9, 10, 11]], []
    logits = [lm.logits([prompt])[0] for prompt in prompts]
    states = [lm.states([prompt], length=4)[0][:, 0] for prompt in prompts]
    for name in ("all_logits", "all_states"):
        program = getattr(model, name)
        monkeypatch.setattr(model, name, lambda *args, run=program: (sizes.append(args[1].shape), run(*args))[1])

    def batched(more):
        return replace(lm, memory_budget=3 * (block_activation_size(a, 4, 4) + 4 * more) - 1)

    for values, expected in zip(batched(a.vocab_size).logits(prompts), logits, strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-5)
    values, mask = batched(a.num_layers * a.d_model).states(prompts)
    np.testing.assert_allclose(values[:, mask], np.stack(states, axis=1)[:, mask], atol=1e-5)
    assert sizes == [(2, 4)] * 4


def test_no_call_copies_the_parameters(lm):
    """A program that gave them back would need room for them twice, and the time of a copy at every call."""
    tokens, texts = [[3, 4, 5, 6], [7, 8]], [[3, 4, 5], [7, 8, 9]]

    def places():
        return {name: value.unsafe_buffer_pointer() for name, value in lm.parameters.items()}

    before = places()
    for call in (
        lambda: lm.logits(tokens),
        lambda: lm.states(tokens),
        lambda: lm.generate(tokens, max_new_tokens=2),
        lambda: sim.make_vector(lm, texts, [[9, 9, 4], [3, 3, 8]], name="x", progress=False),
        lambda: list(token_states(lm, texts, 1, progress=False)),
        lambda: ufm.divergence(lm.split(tokens, 1), [0, 1], np.ones(lm.config.d_model), [0.1]),
    ):
        call()
        assert places() == before


@pytest.mark.parametrize("value", [list, Tensor, lambda v: Tensor(v, "torch.bfloat16", requires_grad=True), jnp.asarray])
def test_vectors_of_every_library(lm, value):
    v = np.arange(32, dtype=np.float32)
    steering, expected = (Steering({np.int64(1): Add(vector)}) for vector in (value(v), v))
    np.testing.assert_array_equal(steering.parts[0].intervention.v, v)
    split = lm.split(["AB"], jnp.asarray(1))
    np.testing.assert_array_equal(ufm.steer(split, [0], value(v), 1.0), ufm.steer(split, [0], v, 1.0))
    assert lm.generate(["A"], max_new_tokens=2, steering=steering) == lm.generate(["A"], max_new_tokens=2, steering=expected)


@pytest.mark.parametrize("layer", ["1", 1.0, True, [1], -1, 3, np.array([1])], ids=repr)
def test_things_that_are_no_layer(lm, layer):
    with pytest.raises(ValueError, match=r"^layer: expected a (block from 0 to 2|whole number), got"):
        lm.split(["A"], layer)
    if not isinstance(layer, list | np.ndarray):
        with pytest.raises(ValueError, match=r"^layer: expected a block"):
            lm.generate(["A"], steering=Steering({layer: Add(np.zeros(32))}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm.generate(["A"], steering="v"), "^steering: expected a Steering"),
        (lambda lm: lm.generate(["A"], steering={1: np.zeros(32)}), "^steering: expected a Steering"),
        (lambda lm: lm.generate(["A"], steering=Steering({1: Add("v")})), "^steering.v: expected real numbers"),
        (lambda lm: lm.generate(["A"], steering=Steering({1: Add([1.0, 2.0])})), "^steering: .*from 32 to 32 numbers"),
        (lambda lm: ufm.steer(lm.split(["A"], 1), [0], "v", 1.0), "^steering: expected a Steering, or a vector"),
        (lambda lm: ufm.steer(lm.split(["A"], 1), [0], None, 1.0), "^steering: expected a Steering, or a vector"),
        (lambda lm: ufm.steer(lm.split(["A"], 1), [0], [[1.0], [1.0, 2.0]], 1.0), "^steering: expected a Steering"),
        (lambda lm: lm.generate(["A"], length=10**6), "^length: expected at most the 256 tokens of .*, got 1000000"),
        (lambda lm: lm.states(["A"], length=257), "^length: expected at most the 256 tokens"),
        (lambda lm: lm.generate(["A"], num_return_sequences=10**9), "^num_return_sequences: .* GiB free, got .* on cpu"),
        (lambda lm: lm.generate(["A"], num_return_sequences=10**15), "^num_return_sequences: .* GiB free, got .* on cpu"),
        (lambda lm: load("x", dtype=None), "^dtype: expected one of float32, bfloat16, float16, float64, got None"),
        (lambda lm: lm.with_dtype("float99"), "^dtype: .*float32.*, got 'float99'"),
        (lambda lm: load("x", dtype=int), "^dtype: .*float32.*, got int"),
        (lambda lm: load("x", compute="int8"), "^compute: .*float32.*, got int8"),
        (lambda lm: load(None), "^model: expected a name or a path"),
        (lambda lm: load(5), "^model: expected a name or a path, got 5"),
        (lambda lm: load(""), "^model: expected a name or a path"),
        (lambda lm: load("x", mesh=5), "^mesh: expected a Mesh or a str, got 5"),
        (lambda lm: load("x", offload="x"), "^offload: expected True or False, got 'x'"),
        (lambda lm: load("x", hosts="a"), "^hosts: expected a whole number, got 'a'"),
        (lambda lm: model.random_model({"d_model": 3}, jax.random.key(0)), "^config: expected a Config, got dict"),
        (lambda lm: model.random_model(lm.config, 0), "^key: expected one jax.random.key, got 0"),
        (lambda lm: replace(lm, memory_budget=0), "^memory_budget: expected a whole number of at least 1, got 0"),
        (lambda lm: replace(lm, memory_budget=-5), "^memory_budget: expected a whole number of at least 1, got -5"),
        (lambda lm: lm.generate(["A"], stop="no"), "^stop: expected True or False, got 'no'"),
        (lambda lm: lm.generate(["A"], alpha="x"), "^alpha: expected real numbers, got 'x'"),
        (lambda lm: lm.generate(["A"], alpha=float("nan")), "^alpha: expected finite numbers, got nan"),
        (lambda lm: lm.split(["A"], last_only="no"), "^last_only: expected True or False, got 'no'"),
        (lambda lm: lm.logits(["A"], chat="no"), "^chat: expected True or False, got 'no'"),
        (
            lambda lm: lm.generate([in_itself()], chat=True),
            "^messages: .*nested at most 100 deep, got more, or one in itself",
        ),
        (lambda lm: Sampling(temperature=float("nan")), "^temperature: "),
        (lambda lm: Sampling(temperature=float("inf")), "^temperature: "),
    ],
)
def test_things_that_are_refused(lm, call, message):
    with pytest.raises(ValueError, match=message):
        call(lm)

"""Tokenizers from files and from metadata, padding, and chat templates that cannot do harm."""

import json

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sim.bridge import tokenizer
from sim.bridge.gguf_file import Gguf

TEXT = "In 1984 the quick brown fox can't jump\n\tover   the lazy dog; naïve café 12345!"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def trained():
    """A byte-level tokenizer as SmolLM2 has it: digits one by one."""
    core = tokenizers.Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([TEXT, "the fox and the dog", "jumping over cafés"] * 5, trainer)
    return core


@pytest.fixture
def folder(trained, tmp_path):
    """The same as Hugging Face keeps it."""
    trained.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    return tmp_path


def in_gguf(path, core, pre="smollm"):
    """The same as llama.cpp keeps it."""
    data = json.loads(core.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if text in SPECIAL else 1 for text in tokens])
    writer.add_token_merges([" ".join(pair) for pair in data["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Gguf(path)


def test_both_files_give_the_same_tokens(trained, folder):
    theirs, ours = tokenizer.from_folder(folder), tokenizer.from_gguf(in_gguf(folder / "x.gguf", trained))
    for text in (TEXT, "<|im_start|>user\nhi<|im_end|>", "x", "  ", "日本"):
        assert theirs.encode(text) == ours.encode(text) == trained.encode(text).ids
        assert theirs.decode(theirs.encode(text), special=True) == text
    assert (theirs.bos, theirs.eos, theirs.ends) == (1, 2, (0, 2))
    assert (ours.bos, ours.eos, ours.ends) == (1, 2, (2,))
    assert theirs.size == ours.size == trained.get_vocab_size()


def test_digits_are_split_one_by_one(trained, folder):
    pieces = [trained.id_to_token(i) for i in tokenizer.from_folder(folder).encode("12345")]
    assert pieces == list("12345")


def test_sentence_piece_metadata(tmp_path):
    """Merges follow from scores: the token of the highest score is put together first. Unknown characters become bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "ab", "▁ab", "ba", "▁a"]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -4.0]
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 7])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    words = tokenizer.from_gguf(Gguf(tmp_path / "x.gguf"))
    assert [tokens[i] for i in words.encode("ab ba")] == ["<s>", "▁ab", "▁", "ba"]
    assert [tokens[i] for i in words.encode("é", special=False)] == ["▁", "<0xC3>", "<0xA9>"]
    assert words.decode(words.encode("ab baé aab")) == "ab baé aab"
    # The decoder takes a space from the beginning of a text, not from a token in it.
    assert words.spoken[-7:] == [" ", "a", "b", "ab", " ab", "ba", " a"]
    assert words.spoken[1:3] == ["", ""]


def test_every_token_as_text(folder):
    words = tokenizer.from_folder(folder)
    assert words.spoken[words.encode("x the")[-1]] == " the"
    assert words.spoken == [words.decode([z]) for z in range(words.size)]


def test_batches_are_padded(folder):
    words = tokenizer.from_folder(folder)
    short, long = words.encode("fox"), words.encode("the quick brown fox")
    ids, seen = words.batch(["fox", "the quick brown fox"])
    assert ids[0, -len(short) :].tolist() == short
    assert ids[1].tolist() == long
    assert seen.sum(axis=1).tolist() == [len(short), len(long)]
    right, flags = words.batch(["fox", "the quick brown fox"], side="right", length=50)
    assert right.shape == (2, 50)
    assert flags[0].tolist() == [k < len(short) for k in range(50)]
    with pytest.raises(ValueError, match="texts: expected at least one"):
        words.batch([])
    with pytest.raises(ValueError, match="prompt: expected at most 1 tokens"):
        words.batch(["the quick brown fox"], length=1)
    with pytest.raises(ValueError, match="side: expected left or right, got 'top'"):
        words.batch(["fox"], side="top")


def test_chats(folder):
    words = tokenizer.from_folder(folder)
    text = words.chat([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert words.chat([{"role": "user", "content": "hi"}], reply=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert words.encode(text)[0] == words.core.token_to_id("<|im_start|>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception('no system message') }}",
        "{{ messages.append(1) }}",
        "{{ nothing.at.all }}",
        "{% for x in %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_templates_can_do_no_harm(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="template: expected messages that it takes"):
        tokenizer.from_folder(folder).chat([{"role": "user", "content": "hi"}])


def test_no_template(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="template: expected a model with a chat template"):
        tokenizer.from_folder(tmp_path).chat([])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "BPE"}}'])
def test_files_that_are_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="a tokenizer of the package tokenizers"):
        tokenizer.from_folder(tmp_path)


def test_metadata_that_are_not_known(trained, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre: expected one of default"):
        tokenizer.from_gguf(in_gguf(tmp_path / "x.gguf", trained, pre="nonsense"))


def test_ids_of_numpy_decode(folder):
    words = tokenizer.from_folder(folder)
    assert words.decode(np.asarray(words.encode("fox"))) == "fox"

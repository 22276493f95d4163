"""Tokenizers from files and from metadata, padding, and chat templates that cannot do harm."""

import json
import shutil
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from sim.bridge import sentencepiece_file
from sim.bridge.tokenizer import from_folder, from_gguf, pad
from sim.bridge.weights.gguf_file import Gguf
from tests.sim.bridge.gguf_files import written

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


def in_gguf(path, core, pre="smollm", change=None, config="llama"):
    """The same as llama.cpp keeps it."""
    data = json.loads(core.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    writer = gguf.GGUFWriter(str(path), config)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if text in SPECIAL else 1 for text in tokens])
    writer.add_token_merges([" ".join(pair) for pair in data["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    if change:
        change(writer)
    written(writer)
    return Gguf(path)


def test_both_files_give_the_same_tokens(trained, folder):
    theirs, ours = from_folder(folder), from_gguf(in_gguf(folder / "x.gguf", trained))
    for text in (TEXT, "<|im_start|>user\nhi<|im_end|>", "x", "  ", "日本"):
        assert theirs.encode(text) == ours.encode(text) == trained.encode(text).ids
        assert theirs.decode(theirs.encode(text), special=True) == text
    assert (theirs.bos, theirs.eos, theirs.eos_ids) == (1, 2, (0, 2))
    # <|endoftext|> ends a generation, whatever the metadata say.
    assert (ours.bos, ours.eos, ours.eos_ids) == (1, 2, (0, 2))
    assert theirs.size == ours.size == trained.get_vocab_size()


def test_digits_are_split_one_by_one(trained, folder):
    pieces = [trained.id_to_token(i) for i in from_folder(folder).encode("12345")]
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
    written(writer)
    tokenizer = from_gguf(Gguf(tmp_path / "x.gguf"))
    assert [tokens[i] for i in tokenizer.encode("ab ba")] == ["<s>", "▁ab", "▁", "ba"]
    assert [tokens[i] for i in tokenizer.encode("é", special=False)] == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab baé aab")) == "ab baé aab"
    # The decoder takes a space from the beginning of a text, not from a token in it.
    assert tokenizer.token_strings[-7:] == [" ", "a", "b", "ab", " ab", "ba", " a"]
    assert tokenizer.token_strings[1:3] == ["", ""]


def test_every_token_as_text(folder):
    tokenizer = from_folder(folder)
    assert tokenizer.token_strings[tokenizer.encode("x the")[-1]] == " the"
    assert tokenizer.token_strings == [tokenizer.decode([z]) for z in range(tokenizer.size)]


def test_batches_are_padded(folder):
    tokenizer = from_folder(folder)
    short, long = tokenizer.encode("fox"), tokenizer.encode("the quick brown fox")
    ids, mask = pad([short, long])
    assert ids[0, -len(short) :].tolist() == short
    assert ids[1].tolist() == long
    assert mask.sum(axis=1).tolist() == [len(short), len(long)]
    right, flags = pad([short, long], side="right", length=50)
    assert right.shape == (2, 50)
    assert flags[0].tolist() == [k < len(short) for k in range(50)]
    with pytest.raises(ValueError, match=r"prompt: .*got none in prompt 1"):
        pad([short, []])
    with pytest.raises(ValueError, match="prompt: expected at most 1 tokens"):
        pad([long], length=1)
    with pytest.raises(ValueError, match="side: expected left or right, got 'top'"):
        pad([short], side="top")


def test_chats(folder):
    tokenizer = from_folder(folder)
    text = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat([{"role": "user", "content": "hi"}], reply=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.encode(text)[0] == tokenizer.core.token_to_id("<|im_start|>")


def test_no_template(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"^template: .*chat template"):
        from_folder(tmp_path).chat([])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "BPE"}}'])
def test_files_that_are_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="a tokenizer of the package tokenizers"):
        from_folder(tmp_path)


def test_metadata_that_are_not_known(trained, tmp_path):
    with pytest.raises(ValueError, match=r"^tokenizer\.ggml\.pre: .*'nonsense'"):
        from_gguf(in_gguf(tmp_path / "x.gguf", trained, pre="nonsense"))


def test_ids_of_numpy_decode(folder):
    tokenizer = from_folder(folder)
    assert tokenizer.decode(np.asarray(tokenizer.encode("fox"))) == "fox"


# --- the token that begins a text -------------------------------------------------------------------------------------


@pytest.fixture
def beginning(trained, tmp_path):
    """As Llama 3: the tokenizer puts a token before texts, and so does the chat template."""
    core = tokenizers.Tokenizer.from_str(trained.to_str())
    core.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    core.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": "{{ bos_token }}" + TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_text_begins_once(trained, beginning, kind):
    if kind == "folder":
        tokenizer = from_folder(beginning)
    else:
        tokenizer = from_gguf(in_gguf(beginning / "x.gguf", trained, change=lambda w: w.add_add_bos_token(True)))
    bos, fox = tokenizer.core.id_to_token(tokenizer.bos), trained.encode("fox").ids
    assert tokenizer.opening == [tokenizer.bos]
    assert tokenizer.encode("fox") == tokenizer.encode(f"{bos}fox") == [tokenizer.bos, *fox]
    assert tokenizer.encode(bos) == [tokenizer.bos]
    assert tokenizer.encode("") == [tokenizer.bos]
    assert tokenizer.encode(f"{bos}fox", special=False) == [tokenizer.bos, *fox]
    # Who writes it twice has it twice.
    assert tokenizer.encode(f"{bos}{bos}fox") == [tokenizer.bos, tokenizer.bos, *fox]
    chat = tokenizer.chat([{"role": "user", "content": "fox"}])
    assert tokenizer.encode(chat) == tokenizer.encode(chat, special=False)


@pytest.mark.parametrize("named", [{}, {"bos_token": None}])
def test_a_text_begins_once_if_no_file_names_its_beginning(trained, beginning, named):
    put(beginning, tokenizer_config=named)
    tokenizer, fox = from_folder(beginning), trained.encode("fox").ids
    assert (tokenizer.bos, tokenizer.opening) == (None, [0])
    assert tokenizer.encode("fox") == tokenizer.encode("<|endoftext|>fox") == [0, *fox]
    assert tokenizer.encode("<|endoftext|>fox", special=False) == [0, *fox]
    assert tokenizer.encode("<|endoftext|><|endoftext|>fox") == [0, 0, *fox]


def surrounded(path, core, **flags):
    """A folder of a `tokenizer.json` with these flags beside it."""
    core.save(str(path / "tokenizer.json"))
    put(path, tokenizer_config={"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", **flags})
    return from_folder(path)


@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token"])
def test_what_a_tokenizer_json_puts_around_a_text_is_all(trained, tmp_path, key):
    """As in transformers 5, which was asked for the same folders, whatever the flags say; where they differ, it is said."""
    fox, core = trained.encode("fox").ids, tokenizers.Tokenizer.from_str(trained.to_str())
    whole = {"add_bos_token": "<|endoftext|> $A", "add_eos_token": "$A <|im_end|>"}[key]
    core.post_processor = TemplateProcessing(single=whole, special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)])
    around, name = ([0, *fox], "<\\|endoftext\\|> before") if key == "add_bos_token" else ([*fox, 2], "<\\|im_end\\|> after")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for said in (True, None):
            assert surrounded(tmp_path, core, **{key: said}).encode("fox") == around
        for said in (False, None):
            assert surrounded(tmp_path, trained, **{key: said}).encode("fox") == fox
    with pytest.warns(UserWarning, match=f"^{key}: false is not used, .* puts {name} a text"):
        assert surrounded(tmp_path, core, **{key: False}).encode("fox") == around
    with pytest.warns(UserWarning, match=f"^{key}: true is not used, .* puts nothing"):
        tokenizer = surrounded(tmp_path, trained, **{key: True})
    assert (tokenizer.encode("fox"), tokenizer.opening, tokenizer.closing) == (fox, [], [])


def test_a_text_ends_with_the_token_where_a_gguf_file_says_so(trained, tmp_path):
    tokenizer = from_gguf(in_gguf(tmp_path / "x.gguf", trained, change=lambda w: w.add_add_eos_token(True)))
    fox = trained.encode("fox").ids
    assert (tokenizer.encode("fox"), tokenizer.encode("fox", special=False)) == ([*fox, 2], fox)
    assert (tokenizer.opening, tokenizer.closing) == ([], [2])

    def nameless(writer):
        writer.add_add_eos_token(True)
        del writer.kv_data[0]["tokenizer.ggml.eos_token_id"]

    with pytest.raises(ValueError, match=r"^tokenizer\.ggml\.eos_token_id: expected an id, since texts end with it"):
        from_gguf(in_gguf(tmp_path / "y.gguf", trained, change=nameless))


def test_a_text_that_begins_with_nothing(folder):
    tokenizer = from_folder(folder)
    assert tokenizer.opening == []
    assert tokenizer.encode("<|im_start|><|im_start|>fox")[:2] == [1, 1]


def test_the_one_token_of_a_word(beginning):
    tokenizer = from_folder(beginning)
    assert tokenizer.token_strings[tokenizer.token(" the")] == " the"
    assert tokenizer.token("x") == tokenizer.core.token_to_id("x")
    assert tokenizer.token("\n") == tokenizer.core.token_to_id("Ċ")
    assert tokenizer.token("<|im_end|>") == 2
    with pytest.raises(ValueError, match=r"^word: .*' zebra', which is \d \(.*' '.*'z'"):
        tokenizer.token(" zebra")
    with pytest.raises(ValueError, match=r"^word: .*'', which is 0"):
        tokenizer.token("")


# --- what ends a text -------------------------------------------------------------------------------------------------


def named_in_gguf(path, names, change=None):
    """A GGUF file whose vocabulary is these tokens, after a few letters."""
    core = tokenizers.Tokenizer(models.BPE({text: i for i, text in enumerate(["a", "b", "ab", *names])}, [("a", "b")]))

    def only(writer):
        del writer.kv_data[0]["tokenizer.ggml.eos_token_id"], writer.kv_data[0]["tokenizer.ggml.bos_token_id"]
        if change:
            change(writer)

    return in_gguf(path, core, change=only)


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (["<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>"], ["<|eot_id|>", "<|eom_id|>"]),
        (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], ["<|im_end|>", "<|endoftext|>"]),
        (["<start_of_turn>", "<end_of_turn>", "<eos>"], ["<end_of_turn>", "<eos>"]),
        (["<|user|>", "<|end|>"], ["<|end|>"]),
        (["<|return|>", "<|call|>", "<|end|>"], ["<|return|>", "<|call|>"]),
        (["<|tool_response>", "</s>"], ["<|tool_response>"]),
        (["</s>", "<|end_of_text|>"], ["</s>", "<|end_of_text|>"]),
        (["<｜end▁of▁sentence｜>"], ["<｜end▁of▁sentence｜>"]),
    ],
)
def test_tokens_that_end_a_text_by_their_name(tmp_path, names, texts):
    tokenizer = from_gguf(named_in_gguf(tmp_path / "x.gguf", names))
    assert [tokenizer.core.id_to_token(i) for i in tokenizer.eos_ids] == texts
    assert tokenizer.decode(tokenizer.eos_ids) == ""


def test_tokens_that_end_a_text_by_their_keys(tmp_path):
    def keys(writer):
        writer.add_eos_token_id(3)
        writer.add_eot_token_id(4)
        writer.add_eom_token_id(5)

    tokenizer = from_gguf(named_in_gguf(tmp_path / "x.gguf", ["x", "y", "z"], keys))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eos_ids) == (None, 3, (3, 4, 5))


def test_all_that_configurations_say_ends_a_text(folder):
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": [5, 6]}, "eos_token_id": None}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert from_folder(folder).eos_ids == (2, 5, 6, 7)


# --- GGUF: what is not said -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("tekken", True), ("smaug-bpe", False), ("qwen2", False)])
def test_whether_a_text_begins_with_the_token_where_the_file_does_not_say(trained, tmp_path, pre, adds):
    assert from_gguf(in_gguf(tmp_path / "x.gguf", trained, pre=pre)).adds_bos is adds


def test_a_splitting_that_is_not_named(trained, tmp_path):
    for pre in (None, "default"):
        with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre: x\.gguf does not say"):
            tokenizer = from_gguf(in_gguf(tmp_path / "x.gguf", trained, pre=pre))
        assert [tokenizer.core.id_to_token(i) for i in tokenizer.encode("a(b")] == ["a", "(", "b"]
    path = in_gguf(tmp_path / "y.gguf", trained, pre=None, config="gpt2")
    assert from_gguf(path).encode(TEXT.replace("1984", "x").replace("12345", "x"))


def test_several_templates_in_a_file(trained, tmp_path):
    def more(writer):
        del writer.kv_data[0]["tokenizer.chat_template"]
        writer.add_chat_template([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}])

    tokenizer, messages = (
        from_gguf(in_gguf(tmp_path / "x.gguf", trained, change=more)),
        [{"role": "user", "content": ""}],
    )
    assert (tokenizer.chat(messages), tokenizer.chat(messages, tools=[{}])) == ("plain", "tools")


def test_a_file_without_a_tokenizer(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_block_count(1)
    written(writer)
    assert from_gguf(Gguf(tmp_path / "x.gguf")) is None


# --- facts in one file or another -------------------------------------------------------------------------------------


def put(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def specials(folder):
    tokenizer = from_folder(folder)
    return tokenizer.bos, tokenizer.eos


def test_special_tokens_in_each_file(trained, tmp_path):
    """In the order of transformers, which was asked for the same folders."""
    trained.save(str(tmp_path / "tokenizer.json"))
    assert specials(tmp_path) == (None, None)
    put(tmp_path, config={"bos_token_id": 1, "eos_token_id": [2, 0]})
    assert specials(tmp_path) == (1, 2)
    put(tmp_path, generation_config={"eos_token_id": 0})
    assert specials(tmp_path) == (1, 0)
    put(tmp_path, special_tokens_map={"bos_token": {"content": "<|endoftext|>"}})
    assert specials(tmp_path) == (0, 0)
    put(tmp_path, tokenizer_config={"bos_token": "<|im_end|>", "eos_token": "<|im_start|>"})
    assert specials(tmp_path) == (0, 1)
    listed = {"0": {"content": "<|endoftext|>", "special": True}}
    put(tmp_path, tokenizer_config={"bos_token": "<|im_end|>", "eos_token": None, "added_tokens_decoder": listed})
    assert specials(tmp_path) == (2, None)


@pytest.mark.parametrize("file", ["added_tokens", "tokenizer_config"])
def test_tokens_that_were_added_later(trained, tmp_path, file):
    trained.save(str(tmp_path / "tokenizer.json"))
    n = trained.get_vocab_size()
    put(tmp_path, tokenizer_config={"eos_token": "<end>"}, added_tokens={"<end>": n + 1, "<new>": n})
    if file == "tokenizer_config":
        listed = {str(n): {"content": "<new>"}, str(n + 1): {"content": "<end>", "special": True}}
        put(tmp_path, tokenizer_config={"eos_token": "<end>", "added_tokens_decoder": listed}, added_tokens={"<end>": 7})
    tokenizer = from_folder(tmp_path)
    assert tokenizer.encode("fox<new>fox<end>") == [*trained.encode("fox").ids, n, *trained.encode("fox").ids, n + 1]
    assert (tokenizer.size, tokenizer.eos) == (n + 2, n + 1)
    assert tokenizer.decode([n, n + 1]) == "<new>"
    put(tmp_path, tokenizer_config={}, added_tokens={"<new>": n + 5})
    with pytest.raises(ValueError, match=rf"^added_tokens: .*'<new>'.*{n}, got {n + 5}"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "new"),
    [
        ({"extra_special_tokens": ["<x>"]}, ["<x>"]),
        ({"additional_special_tokens": ["<x>", "<|im_start|>"], "extra_special_tokens": {}}, ["<x>"]),
        ({"additional_special_tokens": ["<x>"], "extra_special_tokens": ["<y>"]}, ["<y>"]),
        ({"extra_special_tokens": {"video_token": "<y>", "image_token": "<x>"}}, ["<y>", "<x>"]),
        ({"video_token": "<z>", "image_token": "<x>", "extra_special_tokens": ["<y>"]}, ["<z>", "<x>", "<y>"]),
        ({"extra_special_tokens": ["<x>"], "pad_token": "<z>"}, ["<z>", "<x>"]),
    ],
)
def test_other_special_tokens_follow_on_the_vocabulary(trained, tmp_path, settings, new):
    """In the order of transformers, which was asked for the same folders."""
    trained.save(str(tmp_path / "tokenizer.json"))
    put(tmp_path, tokenizer_config=settings)
    tokenizer, n, fox = from_folder(tmp_path), trained.get_vocab_size(), trained.encode("fox").ids
    assert tokenizer.encode("fox".join(["", *new])) == [i for k in range(len(new)) for i in (*fox, n + k)]
    assert tokenizer.size == n + len(new)


def test_templates_in_each_file(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    messages = [{"role": "user", "content": ""}]

    def said(**values):
        return from_folder(tmp_path).chat(messages, **values)

    put(tmp_path, processor_config={"chat_template": "from processor_config.json"})
    assert said() == "from processor_config.json"
    put(tmp_path, chat_template={"chat_template": "from chat_template.json"})
    assert said() == "from chat_template.json"
    several = [{"name": "default", "template": "the first"}, {"name": "tool_use", "template": "with {{ tools | length }}"}]
    put(tmp_path, tokenizer_config={"chat_template": several})
    assert (said(), said(tools=[{}, {}]), said(template="tool_use", tools=[])) == ("the first", "with 2", "with 0")
    with pytest.raises(ValueError, match=r"^template: .*got 'rag'"):
        said(template="rag")
    (tmp_path / "chat_template.jinja").write_text("from its own file", encoding="utf-8-sig")
    assert (said(), said(tools=[])) == ("from its own file", "from its own file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("for documents")
    assert (said(), said(template="rag")) == ("from its own file", "for documents")


def test_templates_see_special_tokens(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    put(tmp_path, tokenizer_config={"bos_token": "<|im_start|>", "pad_token": "<|endoftext|>", "image_token": "<image>"})
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{{ pad_token }}{{ image_token }}{{ eos_token is defined }}"
    )
    assert from_folder(tmp_path).chat([{"role": "user"}]) == "<|im_start|><|endoftext|><image>False"


def test_a_mark_of_the_byte_order(folder):
    for path in folder.glob("*.json"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    tokenizer = from_folder(folder)
    assert (tokenizer.bos, tokenizer.eos_ids) == (1, (0, 2))
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}', encoding="utf-16")
    assert from_folder(folder).eos_ids == (2, 5)


# --- without a tokenizer.json -----------------------------------------------------------------------------------------

PIECES = Path(__file__).parent / "pieces.model"
"""Made by SentencePiece: pairs (BPE) of a few English words, with <start_of_turn> and two spaces as tokens of their own."""


@pytest.mark.parametrize("legacy", [False, True])
def test_sentence_piece(tmp_path, legacy):
    """As the package `sentencepiece` encodes it, special tokens apart; after these, a space is put if `legacy`."""
    shutil.copy(PIECES, tmp_path / "tokenizer.model")
    put(tmp_path, tokenizer_config={"legacy": legacy})
    tokenizer = from_folder(tmp_path)
    expected = {
        "the quick fox": [268, 283, 317, 297, 296, 294, 316, 276, 264],
        "naïve 日 12345": [283, 289, 290, 200, 180, 305, 285, 283, 235, 156, 170, 283, 299, 308, 309, 300, 310],
        "a\nb\tc": [283, 290, 15, 315, 14, 294],
        "can't": [275, 262, 307, 293],
        "": [],
    }
    for text, ids in expected.items():
        assert tokenizer.encode(text, special=False) == ids
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode([1, *ids, 2]) == text
    the = [268] if legacy else [293, 261]
    assert tokenizer.encode("<start_of_turn>the", special=False) == [3, *the]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eos_ids, tokenizer.size) == (1, 2, (2,), 320)
    assert tokenizer.named == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    # As it is after other text: no space is put before it.
    assert (tokenizer.token(" the"), tokenizer.token_strings[tokenizer.token("q")]) == (268, "q")


@pytest.mark.parametrize(
    ("flags", "text", "ids"),
    [
        ({}, "the", [1, 268]),
        ({"add_bos_token": False}, "the", [268]),
        ({"add_bos_token": None}, "the", [268]),
        ({"add_bos_token": True, "add_eos_token": True}, "the", [1, 268, 2]),
        ({"add_bos_token": True, "add_prefix_space": False}, "the", [1, 293, 261]),
        ({"add_bos_token": True, "add_prefix_space": False, "legacy": True}, "<start_of_turn>the", [1, 3, 293, 261]),
        ({"add_bos_token": True, "add_prefix_space": None}, "the", [1, 268]),
    ],
)
def test_flags_beside_sentence_piece(tmp_path, flags, text, ids):
    """As the Llama tokenizer of transformers 5 has it, but for a text's beginning where nothing is said of it."""
    shutil.copy(PIECES, tmp_path / "tokenizer.model")
    put(tmp_path, tokenizer_config=flags)
    tokenizer = from_folder(tmp_path)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_other_files_of_that_name(tmp_path):
    for change in ({"model_type": 1}, {"remove_extra_whitespaces": True}, {"precompiled_charsmap": b"x"}):
        model = sentencepiece_file.read(PIECES)
        for name, value in change.items():
            setattr(model.trainer_spec if name == "model_type" else model.normalizer_spec, name, value)
        (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=r"^tokenizer\.model: expected SentencePiece .* save a tokenizer\.json"):
            from_folder(tmp_path)
    # The vocabulary of the first Llama 3 has this name too.
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ValueError, match=r"^tokenizer\.model: .*SentencePiece.*tokenizer\.json"):
        from_folder(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_vocabulary_and_merges(tmp_path, family):
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [TEXT] * 5,
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL[:1], initial_alphabet=alphabet, show_progress=False),
    )
    core.model.save(str(tmp_path))
    put(tmp_path, config={"model_type": family})
    tokenizer = from_folder(tmp_path)
    pieces = [core.id_to_token(i) for i in tokenizer.encode("12345 cafe\u0301<|endoftext|>")]
    assert pieces[-1] == "<|endoftext|>"
    numbers = core.encode("12345").tokens
    assert len(numbers) < 5
    assert pieces[: len(numbers)] == numbers if family == "gpt2" else pieces[:5] == list("12345")
    assert ("Ã" in "".join(pieces)) is (family == "qwen2")
    assert (tokenizer.bos, tokenizer.eos) == (0 if family == "gpt2" else None, 0)
    put(tmp_path, config={"model_type": "llama"})
    with pytest.raises(ValueError, match=r"^tokenizer: expected a tokenizer\.json .*'llama'"):
        from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "merges.txt", "tekken.json", "added_tokens.json"])
def test_a_tokenizer_that_is_not_whole(tmp_path, name):
    assert from_folder(tmp_path) is None
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"^tokenizer: .*only {name}"):
        from_folder(tmp_path)


# --- other things that people pass in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"fox", None, 5, ["fox"], "f\ud83dx"])
def test_things_that_are_no_text(folder, text):
    tokenizer = from_folder(folder)
    with pytest.raises(ValueError, match=r"^text: expected text"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match=r"^word: expected text"):
        tokenizer.token(text)


@pytest.mark.parametrize("ids", [[-1], ["a"], [1.5], np.array([1.5]), -1, float("nan"), 2**70])
def test_things_that_are_no_ids(folder, ids):
    with pytest.raises(ValueError, match=r"^ids: expected a whole number"):
        from_folder(folder).decode(ids)


def test_one_id_decodes(folder):
    tokenizer = from_folder(folder)
    assert tokenizer.decode(tokenizer.token(" the")) == tokenizer.decode(np.int64(tokenizer.token(" the"))) == " the"


@pytest.mark.parametrize("name", [["a"], {}, 5])
def test_things_that_are_no_name_of_a_template(folder, name):
    with pytest.raises(ValueError, match=r"^template: expected one of default, got"):
        from_folder(folder).chat([{"role": "user", "content": "hi"}], template=name)


# --- values that files do not have --------------------------------------------------------------------------------------


def test_ids_in_configurations(folder):
    """Whole floats are ids; those that no token can have are none, as they match nothing in transformers."""
    put(folder, tokenizer_config={"chat_template": TEMPLATE}, config={"bos_token_id": 1})
    put(folder, generation_config={"eos_token_id": [2.0, -1, 2**31, 2**40], "bos_token_id": -1})
    tokenizer = from_folder(folder)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eos_ids) == (1, 2, (2,))
    assert tokenizer.chat([{"role": "user", "content": "hi"}])
    for value in ("2", 2.5, True, {"id": 2}, [[2]], float("nan")):
        put(folder, generation_config={"eos_token_id": value})
        with pytest.raises(ValueError, match=r"^eos_token_id: expected a token id.* in generation_config\.json"):
            from_folder(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"added_tokens_decoder": {"5": "<x>"}}, r"^added_tokens_decoder: .*content.*got '<x>' by '5'"),
        ({"added_tokens_decoder": {"5": {"content": "\ud800"}}}, "^added_tokens_decoder: expected text that UTF-8"),
        ({"added_tokens_decoder": [5]}, "^added_tokens_decoder: expected tokens by id"),
        ({"chat_template": [{"name": ["a"], "template": "x"}]}, r"^chat_template: expected text, got \['a'\]"),
        ({"chat_template": [{"name": "a", "template": 5}]}, "^chat_template: expected text, got 5"),
        ({"chat_template": "\ud800"}, "^chat_template: expected text that UTF-8"),
        ({"chat_template": 5}, "^chat_template: expected a text, or several by name, got int"),
        ({"bos_token": {"content": "\ud800"}}, "^bos_token: expected text that UTF-8"),
        ({"bos_token": "<|im_start|>", "add_bos_token": "false"}, "^add_bos_token: expected a truth value, got 'false'"),
        ({"add_eos_token": 1}, "^add_eos_token: expected a truth value, got 1"),
        ({"extra_special_tokens": "<x>"}, "^extra_special_tokens: expected a list of tokens, or tokens by name, got '<x>'"),
        ({"additional_special_tokens": [5]}, "^additional_special_tokens: expected text, got None"),
    ],
)
def test_settings_that_are_refused(folder, settings, message):
    put(folder, tokenizer_config=settings)
    with pytest.raises(ValueError, match=message):
        from_folder(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"legacy": "no"}, "^legacy: expected a truth value, got 'no'"),
        ({"add_prefix_space": 0}, "^add_prefix_space: expected a truth value, got 0"),
    ],
)
def test_flags_that_are_refused_beside_sentence_piece(tmp_path, settings, message):
    shutil.copy(PIECES, tmp_path / "tokenizer.model")
    put(tmp_path, tokenizer_config=settings)
    with pytest.raises(ValueError, match=message):
        from_folder(tmp_path)


@pytest.mark.parametrize("kind", [5, ["GPT2Tokenizer"]])
def test_a_class_of_a_tokenizer_that_is_no_text(tmp_path, kind):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    put(tmp_path, config={"model_type": "gpt2"}, tokenizer_config={"tokenizer_class": kind})
    with pytest.raises(ValueError, match=r"^tokenizer_class: expected text, got"):
        from_folder(tmp_path)
    put(tmp_path, config={"model_type": ["gpt2"]}, tokenizer_config={})
    with pytest.raises(ValueError, match=r"^tokenizer: expected a tokenizer\.json .*\['gpt2'\]"):
        from_folder(tmp_path)


def test_a_template_that_is_a_pointer_of_git_lfs(folder):
    (folder / "chat_template.jinja").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ValueError, match=r"^chat_template\.jinja: expected the file itself, .*git lfs pull"):
        from_folder(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tokenizer.ggml.pre", ["smollm"], r"one of gpt-2, .*got \['smollm'\]"),
        ("tokenizer.chat_template", 5, "text, got 5"),
        ("tokenizer.chat_template", ["a"], "text, got"),
        ("tokenizer.chat_templates", 5, "a list of names, got 5"),
        ("tokenizer.chat_templates", [5], "a list of names, got"),
        ("tokenizer.ggml.add_bos_token", "false", "a truth value, got 'false'"),
        ("tokenizer.ggml.add_space_prefix", 5, "a truth value, got 5"),
        ("tokenizer.ggml.add_eos_token", 5, "a truth value, got 5"),
        ("tokenizer.ggml.bos_token_id", "x", "a whole number, got 'x'"),
        ("tokenizer.ggml.eos_token_id", True, "a whole number, got True"),
    ],
)
def test_metadata_that_are_refused(trained, tmp_path, key, value, expected):
    kinds = {int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING, list: gguf.GGUFValueType.ARRAY}
    kinds[bool] = gguf.GGUFValueType.BOOL

    def change(writer):
        writer.kv_data[0][key] = gguf.GGUFValue(value, kinds[type(value)])

    file = in_gguf(tmp_path / "x.gguf", trained, change=change)
    with pytest.raises(ValueError, match=rf"^{key}: expected {expected}"):
        from_gguf(file)


def test_a_tokenizer_is_shown_in_a_line(trained, folder):
    assert repr(from_folder(folder)) == f"Tokenizer({trained.get_vocab_size()} tokens, bos=1, eos=2, eos_ids=(0, 2))"

"""What files beside a `tokenizer.json` say of tokens, as transformers 5 reads it: it was asked for the same folders."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from sim.bridge.tokenizer import from_folder

STRIPPING = {"lstrip": True, "rstrip": True, "normalized": False, "single_word": False}


def folder(path, settings, *, more=(), **files):
    """A folder of a tokenizer of bytes, with three special tokens from 256 on, then `more`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE({text: i for i, text in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_tokens([*(AddedToken(text, special=True) for text in ("<s>", "</s>", "<|user|>")), *more])
    core.save(str(path / "tokenizer.json"))
    for name, content in {"tokenizer_config": settings, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return from_folder(path)


def pieces(tokenizer, text):
    return [tokenizer.core.id_to_token(i) for i in tokenizer.encode(text, special=False)]


def test_flags_of_added_tokens_win(tmp_path):
    listed = {"258": {"content": "<|user|>", "special": True, **STRIPPING}}
    tokenizer = folder(tmp_path, {"added_tokens_decoder": listed})
    assert pieces(tokenizer, "a <|user|> b") == ["a", "<|user|>", "b"]
    keeping = {"content": "<|end|>", "special": True, "normalized": False, "rstrip": False}
    stripped = AddedToken("<|end|>", rstrip=True, normalized=False, special=True)
    tokenizer = folder(tmp_path, {"added_tokens_decoder": {"259": keeping}}, more=[stripped])
    assert pieces(tokenizer, "a<|end|> b") == ["a", "<|end|>", "Ġ", "b"]


def test_an_older_list_of_added_tokens_changes_no_flags(tmp_path):
    stripped = AddedToken("<|end|>", rstrip=True, normalized=False, special=True)
    tokenizer = folder(tmp_path, {}, more=[stripped], added_tokens={"<|end|>": 259, "<new>": 260})
    assert pieces(tokenizer, "a<|end|> b<new>") == ["a", "<|end|>", "b", "<new>"]


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"mask_token": {"__type": "AddedToken", "content": "<x>", **STRIPPING}}, {}),
        ({"additional_special_tokens": [{"__type": "AddedToken", "content": "<x>", **STRIPPING}]}, {}),
        ({"extra_special_tokens": {"image_token": {"content": "<x>", **STRIPPING}}}, {}),
        ({}, {"special_tokens_map": {"mask_token": {"content": "<x>", **STRIPPING}}}),
    ],
)
def test_flags_of_new_special_tokens(tmp_path, settings, files):
    assert pieces(folder(tmp_path, settings, **files), "a <x> b") == ["a", "<x>", "b"]


def test_flags_of_a_special_token_that_is_a_word(tmp_path):
    tokenizer = folder(tmp_path, {"mask_token": {"__type": "AddedToken", "content": "a", "lstrip": True}})
    assert pieces(tokenizer, "b a b") == ["b", "a", "Ġ", "b"]
    assert tokenizer.decode(tokenizer.encode("b a b")) == "b b"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"pad_token": "<pad>", "added_tokens_decoder": {"259": {"content": "<pad>", "special": False}}}, ""),
        ({"added_tokens_decoder": {"259": {"content": "<pad>", "special": False}}}, "<pad>"),
        ({"pad_token": "<pad>"}, ""),
        ({"pad_token": "<pad>", "added_tokens_decoder": {}}, "<pad>"),
        ({}, "<pad>"),
    ],
)
def test_tokens_with_names_are_special(tmp_path, settings, text):
    """Of those that the tokenizer itself has, where no list of added tokens says more."""
    assert folder(tmp_path, settings, more=[AddedToken("<pad>", special=False)]).decode([259]) == text


@pytest.mark.parametrize(("said", "text"), [({}, "<x>"), ({"special": True}, ""), ({"special": False}, "<x>")])
def test_whether_a_listed_token_is_special(tmp_path, said, text):
    token = {"__type": "AddedToken", "content": "<x>", **said}
    assert folder(tmp_path, {"additional_special_tokens": [token]}).decode([259]) == text


def test_flags_that_are_no_truth_values(tmp_path):
    with pytest.raises(ValueError, match=r"^lstrip: expected a truth value, got 'no'"):
        folder(tmp_path, {"added_tokens_decoder": {"258": {"content": "<|user|>", "lstrip": "no"}}})


def test_special_tokens_in_text_are_split_where_the_settings_say_so(tmp_path):
    listed = {"259": {"content": "<|x|>", "special": False}}
    tokenizer = folder(tmp_path, {"split_special_tokens": True, "added_tokens_decoder": listed, "eos_token": "</s>"})
    assert pieces(tokenizer, "a <|x|></s>") == ["a", "Ġ", "<|x|>", *"</s>"]
    assert (tokenizer.eos, tokenizer.decode([tokenizer.eos])) == (257, "")
    tokenizer = folder(tmp_path, {"split_special_tokens": False})
    assert pieces(tokenizer, "a</s>") == ["a", "</s>"]
    with pytest.raises(ValueError, match=r"^split_special_tokens: expected a truth value, got 'yes'"):
        folder(tmp_path, {"split_special_tokens": "yes"})


# --- a space before a text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind", "spaced"),
    [
        ("gpt2", "GPT2Tokenizer", True),
        ("gpt2", None, True),
        ("gpt_neox", "GPTNeoXTokenizerFast", True),
        ("llama", "GPT2TokenizerFast", True),
        ("qwen2", "PreTrainedTokenizerFast", True),
        ("qwen3", "PreTrainedTokenizerFast", False),
        ("llama", "PreTrainedTokenizerFast", False),
        ("llama", "LlamaTokenizer", False),
        ("granite", "GPT2Tokenizer", False),
        ("gpt2", "PreTrainedTokenizerFast", False),
    ],
)
def test_a_space_before_a_text(tmp_path, family, kind, spaced):
    """Of classes that make their own; that of Llama takes bytes of text as they are in the file."""
    settings = {"add_prefix_space": True, **({} if kind is None else {"tokenizer_class": kind})}
    tokenizer = folder(tmp_path, settings, config={"model_type": family})
    assert pieces(tokenizer, "ab") == [*(["Ġ"] if spaced else []), "a", "b"]


def test_a_space_before_a_text_that_is_split_in_steps(tmp_path):
    folder(tmp_path, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, config={"model_type": "gpt2"})
    core = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), core.pre_tokenizer])
    core.save(str(tmp_path / "tokenizer.json"))
    assert pieces(from_folder(tmp_path), "ab") == ["Ġ", "a", "b"]


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"add_prefix_space": True}, ["▁", "a", "</s>", "b"]),
        ({"add_prefix_space": True, "legacy": True}, ["▁", "a", "</s>", "▁", "b"]),
        ({"add_prefix_space": False}, ["▁", "a", "</s>", "b"]),
    ],
)
def test_a_space_before_a_text_of_llama(tmp_path, settings, tokens):
    core = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "▁": 2, "a": 3, "b": 4}, []))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    core.save(str(tmp_path / "tokenizer.json"))
    for name, content in {"config": {"model_type": "llama"}, "tokenizer_config": settings}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **content}))
    tokenizer = from_folder(tmp_path)
    assert pieces(tokenizer, " a</s>b") == tokens
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


# --- what ends a text where no file says so -----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"model_type": "gemma3", "text_config": {}}, {}])
def test_nothing_ends_a_text_where_no_file_says_so(tmp_path, config):
    """The configuration class of a family has an id; generation with a checkpoint does not stop at it in transformers."""
    tokenizer = folder(tmp_path, {}, config=config)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eos_ids) == (None, None, ())

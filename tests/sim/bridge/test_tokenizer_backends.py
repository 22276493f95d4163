"""How text is split into words before pairs of bytes are put together, by the names that GGUF files have for it.

Expected words are those of the regular expressions in the `tokenizer.json` of these models, or of tiktoken, by another
engine (the package `regex`); of deepseek-llm, with the letters of two cases as Unicode has them.
"""

import json

import pytest
from tokenizers import pre_tokenizers

from sim.bridge import tokenizer_backends
from sim.bridge.tokenizer_backends import DEFAULT, SPLITTINGS, pre_tokenizer

TEXT = (
    "I'LL don't  naïve CamelCaseHTTP 12345½ x=1;\n\n\t日本語かな! (foo)/b"
    "ar...\r\n Straße cafe\u0301 \u0e01\u0e34 Ünï—42% 'tis end  "
)

WORDS = {
    "gpt-2": (
        "I¦'¦LL¦ don¦'t¦ ¦ naïve¦ CamelCaseHTTP¦ 12345½¦ x¦=¦1¦;¦\n\n¦\t¦日本語かな¦!¦ (¦foo¦)/¦b"
        "ar¦...¦\r\n¦ Straße¦ cafe¦\u0301¦ \u0e01¦\u0e34¦ Ünï¦—¦42¦%¦ '¦tis¦ end¦  "
    ),
    "smollm": (
        "I¦'¦LL¦ don¦'t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦1¦2¦3¦4¦5¦½¦ x¦=¦1¦;¦\n\n¦\t¦日本語かな¦!¦ (¦fo"
        "o¦)/¦bar¦...¦\r\n¦ Straße¦ cafe¦\u0301¦ \u0e01¦\u0e34¦ Ünï¦—¦4¦2¦%¦ '¦tis¦ end¦  "
    ),
    "llama-bpe": (
        "I¦'LL¦ don¦'t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦123¦45½¦ x¦=¦1¦;\n\n¦\t日本語かな¦!¦ (¦foo¦)/¦ba"
        "r¦...\r\n¦ Straße¦ cafe¦\u0301¦ \u0e01¦\u0e34¦ Ünï¦—¦42¦%¦ '¦tis¦ end¦  "
    ),
    "qwen2": (
        "I¦'LL¦ don¦'t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦1¦2¦3¦4¦5¦½¦ x¦=¦1¦;\n\n¦\t日本語かな¦!¦ (¦foo¦)"
        "/¦bar¦...\r\n¦ Straße¦ cafe¦\u0301¦ \u0e01¦\u0e34¦ Ünï¦—¦4¦2¦%¦ '¦tis¦ end¦  "
    ),
    "qwen35": (
        "I¦'LL¦ don¦'t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦1¦2¦3¦4¦5¦½¦ x¦=¦1¦;\n\n¦\t日本語かな¦!¦ (¦foo¦)"
        "/¦bar¦...\r\n¦ Straße¦ cafe\u0301¦ \u0e01\u0e34¦ Ünï¦—¦4¦2¦%¦ '¦tis¦ end¦  "
    ),
    "seed-coder": (
        "I¦'LL¦ don¦'t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦1¦2¦3¦4¦5¦½¦ x¦=¦1¦;¦\n\n¦\t日本語かな¦!¦ (¦foo¦"
        ")/¦bar¦...¦\r\n¦ Straße¦ cafe¦\u0301¦ \u0e01¦\u0e34¦ Ünï¦—¦4¦2¦%¦ '¦tis¦ end¦  "
    ),
    "tekken": (
        "I¦'LL¦ don¦'t¦ ¦ naïve¦ Camel¦Case¦HTTP¦ ¦1¦2¦3¦4¦5¦½¦ x¦=¦1¦;\n\n¦\t日本語かな¦!¦ (¦foo"
        "¦)/¦bar¦...\r\n¦ Straße¦ cafe\u0301¦ \u0e01\u0e34¦ Ünï¦—¦4¦2¦%¦ '¦tis¦ end¦  "
    ),
    "gpt-4o": (
        "I'LL¦ don't¦ ¦ naïve¦ Camel¦Case¦HTTP¦ ¦123¦45½¦ x¦=¦1¦;\n\n¦\t日本語かな¦!¦ (¦foo¦)/¦ba"
        "r¦...\r\n¦ Straße¦ cafe\u0301¦ \u0e01\u0e34¦ Ünï¦—¦42¦%¦ '¦tis¦ end¦  "
    ),
    "deepseek-llm": (
        "I¦'¦LL¦ don¦'¦t¦ ¦ na¦ï¦ve¦ CamelCaseHTTP¦ ¦12345½¦ x¦=¦1¦;¦\n¦\n¦\t¦日本語かな¦!¦ (¦foo"
        "¦)/¦bar¦...¦\r¦\n¦ Stra¦ß¦e¦ cafe¦\u0301 ¦\u0e01\u0e34¦ Ü¦n¦ï¦—¦42¦%¦ '¦tis¦ end¦  "
    ),
    "deepseek-coder": (
        "I¦'¦LL¦ don¦'¦t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦1¦2¦3¦4¦5¦½¦ x¦=¦1¦;¦\n¦\n¦\t¦日本語かな¦!¦ (¦"
        "foo¦)/¦bar¦...¦\r¦\n¦ Straße¦ cafe¦\u0301¦ ¦\u0e01¦\u0e34¦ Ünï¦—¦4¦2¦%¦ '¦tis¦ end¦  "
    ),
    "deepseek-v3": (
        "I¦'LL¦ don¦'t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦123¦45½¦ x¦=¦1¦;\n\n¦\t¦日本語かな¦!¦ (¦foo¦)/¦b"
        "ar¦...\r\n¦ Straße¦ cafe\u0301¦ \u0e01\u0e34¦ Ünï¦—¦42¦%¦ '¦tis¦ end¦  "
    ),
    "default": (
        "I¦'¦LL¦ don¦'¦t¦ ¦ naïve¦ CamelCaseHTTP¦ ¦123¦45½¦ x¦=¦1¦;¦\n\n¦\t¦日本語かな¦!¦ ¦(¦foo¦"
        ")/¦bar¦...¦\r\n¦ Straße¦ cafe¦\u0301¦ \u0e01¦\u0e34¦ Ünï¦—¦42¦%¦ ¦'¦tis¦ end¦  "
    ),
}


def words(splitting):
    return [TEXT[start:end] for _, (start, end) in pre_tokenizer(splitting).pre_tokenize_str(TEXT)]


@pytest.mark.parametrize("name", WORDS)
def test_words(name):
    expected = WORDS[name].split("¦")
    assert "".join(expected) == TEXT
    assert words(DEFAULT if name == "default" else SPLITTINGS[name]) == expected


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("phi-2", "gpt-2"),
        ("mpt", "gpt-2"),
        ("olmo", "gpt-2"),
        ("starcoder", "smollm"),
        ("refact", "smollm"),
        ("command-r", "smollm"),
        ("llama3", "llama-bpe"),
        ("llama-v3", "llama-bpe"),
        ("falcon3", "llama-bpe"),
        ("pixtral", "llama-bpe"),
        ("smaug-bpe", "llama-bpe"),
        ("dbrx", "llama-bpe"),
        ("megrez", "qwen2"),
        ("deepseek-r1-qwen", "qwen2"),
        ("llama4", "gpt-4o"),
    ],
)
def test_names_of_the_same_splitting(name, other):
    assert words(SPLITTINGS[name]) == WORDS[other].split("¦")


def test_every_name_is_tried():
    assert len(SPLITTINGS) == len(set(WORDS) - {"default"}) + 15


def test_single_digits_are_those_of_tokenizers():
    """All characters that count as digits."""
    text = "".join(chr(i) for i in range(0x30000) if chr(i).isnumeric())
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert pre_tokenizer(SPLITTINGS["smollm"]).pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_words_that_are_tokens_are_not_put_together_from_pairs():
    """Llama 3 takes a word that is a token, even if the merges would not get there."""
    letters = ["a", "b", "c", "ab", "bc", "abc"]
    vocabulary, merges = {text: i for i, text in enumerate(letters)}, [("b", "c")]
    got = {
        name: tokenizer_backends.byte_level(vocabulary, merges, SPLITTINGS[name]).encode("abc").tokens
        for name in ("llama-bpe", "tekken", "smaug-bpe", "qwen2")
    }
    assert got == {"llama-bpe": ["abc"], "tekken": ["abc"], "smaug-bpe": ["a", "bc"], "qwen2": ["a", "bc"]}


def test_characters_are_put_together_where_the_model_has_it_so():
    vocabulary = {text: i for i, text in enumerate(["e", "Ì", "ģ", "Ã", "©"])}
    got = {
        name: tokenizer_backends.byte_level(vocabulary, [], SPLITTINGS[name]).encode("e\u0301").tokens
        for name in ("qwen2", "gpt-2")
    }
    assert got == {"qwen2": ["Ã", "©"], "gpt-2": ["e", "Ì", "ģ"]}


def test_only_normal_tokens_are_put_together():
    """A token that users defined is found in text as a whole, or not at all."""
    tokens, types = ["<unk>", "a", "b", "ab", "bb"], [tokenizer_backends.UNKNOWN, 1, 1, tokenizer_backends.USER_DEFINED, 1]
    core = tokenizer_backends.sentence_piece(tokens, [0.0, -1.0, -2.0, -0.5, -3.0], types, unknown=0, prefix=False)
    assert core.encode("abb").tokens == ["a", "bb"]
    tokenizer_backends.mark(core, tokens, types)
    assert core.encode("abb").tokens == ["ab", "b"]
    assert core.encode("a<unk>b").tokens == ["a", "<unk>", "b"]


@pytest.mark.parametrize("form", [lambda pair: pair, " ".join])
@pytest.mark.parametrize(
    ("prefix", "pair", "reads"),
    [
        ("##", ["a", "##b"], True),
        ("x", ["a", "b"], True),
        ("", ["a", "b"], True),
        ("##", ["a", "b"], False),
        ("é", ["a", "b"], False),
        ("x", ["日", "本"], False),
    ],
)
def test_merges_that_a_prefix_cannot_be_cut_off_from(form, prefix, pair, reads):
    """The package would panic at them, and end the process at some."""
    words = dict.fromkeys([*pair, "".join(pair), pair[0] + pair[1].removeprefix(prefix), pair[0]])
    vocabulary = {text: i for i, text in enumerate(words)}
    model = {"type": "BPE", "continuing_subword_prefix": prefix, "vocab": vocabulary, "merges": [form(pair)]}
    content = json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    if reads:
        assert tokenizer_backends.of_json(content).get_vocab_size() == len(vocabulary)
    else:
        with pytest.raises(ValueError, match=r"^continuing_subword_prefix .* is too short for"):
            tokenizer_backends.of_json(content)

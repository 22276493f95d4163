"""Tokenizers of the package `tokenizers`, built from vocabularies: where a checkpoint brings no `tokenizer.json`.

Two kinds: pairs of bytes, as in GPT-2, which differ in how text is split into words before (a table here, under the names
that GGUF files have for it); and SentencePiece's pairs of characters with scores, as in Llama 2 and Gemma.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of tokens, in GGUF files and in SentencePiece."""

SPACE = "\u2581"
"""How SentencePiece writes a space."""


class Splitting(NamedTuple):
    """How text is split into words, and what else goes with it.

    Attributes:
        regexes: what they match, and what is between the matches, is split off, by one after the other.
        gpt2: whether what is left is then split as GPT-2 does.
        composed: whether characters are put together before (NFC).
        whole_words: whether a word that is a token is taken as it is, whatever the merges say.
        adds_bos: whether texts begin with the begin-of-text token, where the file does not say.
    """

    regexes: tuple[str, ...] = ()
    gpt2: bool = False
    composed: bool = False
    whole_words: bool = False
    adds_bos: bool = False


_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN = rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_MARKED = rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_REST}"
_SEED = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_REST}"
# Words in which a capital begins a new one.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|\p{{N}}%s"
_CAMEL += rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
# The letters of alphabets with two cases; and of Chinese, Japanese and Korean.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_ASIAN = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _REST
)

_LLAMA3 = Splitting((_GPT4,), whole_words=True, adds_bos=True)
_NEOX, _QWEN2 = Splitting(gpt2=True, composed=True), Splitting((_QWEN,), composed=True)
_DIGITS = Splitting((r"\p{N}",), gpt2=True)
_O200K = Splitting((_CAMEL % (_SUFFIX + "?", _SUFFIX + "?", "{1,3}"),))

SPLITTINGS = {
    "gpt-2": Splitting(gpt2=True),
    "phi-2": Splitting(gpt2=True),
    "mpt": _NEOX,
    "olmo": _NEOX,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS._replace(composed=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": Splitting((_GPT4,)),
    "dbrx": Splitting((_GPT4,)),
    "qwen2": _QWEN2,
    "megrez": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "qwen35": Splitting((_MARKED,), composed=True),
    "seed-coder": Splitting((_SEED,)),
    "tekken": Splitting((_CAMEL % ("", "", ""),), whole_words=True, adds_bos=True),
    "gpt-4o": _O200K,
    "llama4": _O200K,
    "deepseek-llm": Splitting(
        (r"[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _ASIAN, r"\p{N}+")
    ),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _ASIAN, r"\p{N}")),
    "deepseek-v3": Splitting((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_3)),
}
"""Splittings by their names in GGUF files, as the `tokenizer.json` of these models has them."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

DEFAULT = Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
"""What llama.cpp takes where a file does not say, which is right for few models."""


def pre_tokenizer(splitting: Splitting, *, prefix: bool = False) -> pre_tokenizers.PreTokenizer:
    """What splits text into words, and writes their bytes as characters.

    Args:
        splitting: into words.
        prefix: whether a space is put before a text.
    """
    splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in splitting.regexes]
    steps = [*splits, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=splitting.gpt2)]
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def byte_level(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], splitting: Splitting, *, prefix: bool = False
) -> tokenizers.Tokenizer:
    """Byte-pair encoding of bytes, as in GPT-2."""
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=splitting.whole_words))
    if splitting.composed:
        core.normalizer = normalizers.NFC()
    core.pre_tokenizer, core.decoder = pre_tokenizer(splitting, prefix=prefix), decoders.ByteLevel()
    return core


def sentence_piece(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, unknown: int, prefix: bool, first: bool = False
) -> tokenizers.Tokenizer:
    """Byte-pair encoding of characters with scores, as in Llama 2: a merge for every way to put a token together.

    Args:
        tokens: in the order of their ids.
        scores: the pair whose token has the highest is put together first.
        types: only normal tokens are put together.
        unknown: the id of the token for what is not in the vocabulary.
        prefix: whether a space is put before text.
        first: before the first piece only, where special tokens cut a text into pieces.
    """
    normal = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    ranked = []
    for text, i in normal.items():
        for cut in range(1, len(text)):
            left, right = normal.get(text[:cut]), normal.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[i], left, right))
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(ranked)]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    core = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    before: list[Any] = [normalizers.Prepend(SPACE)] if prefix and not first else []
    core.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    if prefix and first:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    after: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    return core


def mark(core: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Have special tokens recognised in text, and those that users defined."""
    pairs = list(zip(tokens, types, strict=True))
    special = [text for text, kind in pairs if kind in (UNKNOWN, CONTROL)]
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    core.add_tokens([AddedToken(text, normalized=False) for text, kind in pairs if kind == USER_DEFINED])

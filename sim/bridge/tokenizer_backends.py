"""Tokenizers of the package `tokenizers`, built from vocabularies: where a checkpoint brings no `tokenizer.json`.

Two kinds: pairs of bytes, as in GPT-2, which differ in how text is split into words before (a table here, under the names
that GGUF files have for it); and SentencePiece's pairs of characters with scores, as in Llama 2 and Gemma.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ufm._check import shown

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
# The letters of alphabets with two cases, by code point, in ranges; and those of Chinese, Japanese and Korean.
_CASED_RANGES = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_CASED = "".join("-".join(rf"\x{{{end}}}" for end in span.split("-")) for span in _CASED_RANGES.split())
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
"""The splitting that llama.cpp takes where a file does not say, which is right for few models."""


def of_json(content: str) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    Raises:
        ValueError: a merge that the prefix of its second part cannot be cut off from: with that the package would end the
            process.
        Exception: of the package, on anything else that it does not take.
    """
    data = json.loads(content)
    model = data.get("model") if isinstance(data, dict) else None
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    merges = model.get("merges") if isinstance(model, dict) else None
    if isinstance(prefix, str) and prefix and isinstance(merges, list):
        for merge in merges:
            parts = merge.split(" ") if isinstance(merge, str) else merge
            second = parts[-1] if isinstance(parts, list) and parts else None
            if isinstance(second, str) and not _cuts(second, len(prefix.encode())):
                raise ValueError(f"continuing_subword_prefix {prefix!r}, which the merge {shown(merge)} is too short for")
    return tokenizers.Tokenizer.from_str(content)


def _cuts(text: str, length: int) -> bool:
    """Whether a text has so many bytes, and no character across their end."""
    data = text.encode(errors="replace")
    return length == len(data) or (length < len(data) and data[length] & 0xC0 != 0x80)


def pre_tokenizer(splitting: Splitting, *, prefix: bool = False) -> pre_tokenizers.PreTokenizer:
    """A pre-tokenizer that splits text into words, and writes their bytes as characters.

    Args:
        splitting: into words.
        prefix: whether a space is put before a text.
    """
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in splitting.regexes]
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


def space_as_llama(core: tokenizers.Tokenizer, *, prefix: bool, first: bool) -> None:
    """Have spaces written as the Llama tokenizer of transformers 5 does, whatever the tokenizer has of its own.

    Args:
        core: the tokenizer, to be changed.
        prefix: whether a space is put before text.
        first: before the first piece only, where special tokens cut a text into pieces.
    """
    scheme: Literal["always", "never", "first"] = ("first" if first else "always") if prefix else "never"
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    after: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after])


def mark(core: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Have special tokens recognised in text, and those that users defined."""
    pairs = list(zip(tokens, types, strict=True))
    special = [text for text, kind in pairs if kind in (UNKNOWN, CONTROL)]
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    core.add_tokens([AddedToken(text, normalized=False) for text, kind in pairs if kind == USER_DEFINED])

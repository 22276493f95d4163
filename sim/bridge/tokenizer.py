"""Text to tokens and back, from `tokenizer.json` or from the metadata of a GGUF file; chat templates, rendered in a sandbox.

The package `tokenizers` does the work. A template is a program of whoever made the checkpoint: it runs in a sandbox, which
lets it format text and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from sim.bridge.checkpoint import read_json, reading
from sim.bridge.gguf_file import Gguf
from ufm._check import require

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens in GGUF files."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, and what it knows of special tokens.

    Attributes:
        core: of the package `tokenizers`.
        bos, eos: first token of a text and token that ends one, if there are any.
        ends: all tokens that end a generation.
        adds_bos: whether `encode` puts `bos` first.
        template: of chats, in Jinja.
    """

    core: tokenizers.Tokenizer
    bos: int | None = None
    eos: int | None = None
    ends: tuple[int, ...] = field(default=())
    adds_bos: bool = False
    template: str | None = None

    @property
    def size(self) -> int:
        """How many tokens there are, special ones included."""
        return self.core.get_vocab_size(with_added_tokens=True)

    @cached_property
    def spoken(self) -> list[str]:
        """Every token as text, as it is after another: some decoders take the space from the first."""
        first, twice = (
            self.core.decode_batch([[z] * n for z in range(self.size)], skip_special_tokens=True) for n in (1, 2)
        )
        return [both[len(one) :] for one, both in zip(first, twice, strict=True)]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            text: special tokens in it, such as those of a chat, are recognised.
            special: whether to add the special tokens that the model expects around a text.
        """
        ids = self.core.encode(text, add_special_tokens=special).ids
        return [self.bos, *ids] if special and self.adds_bos and self.bos is not None and ids[:1] != [self.bos] else ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = False) -> str:
        """The text of tokens; special ones are left out unless told otherwise."""
        return self.core.decode([int(i) for i in ids], skip_special_tokens=not special)

    def batch(
        self, texts: Sequence[str], *, special: bool = True, side: str = "left", length: int | None = None
    ) -> tuple[Int[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """Texts as one array of tokens, padded on the "left" or the "right"; and which tokens are not padding.

        Args:
            texts: at least one.
            special: as in `encode`.
            side: of the padding.
            length: to pad to; the longest text if left out.

        Raises:
            ValueError: no texts, an empty one, or one that is longer than `length`.
        """
        require(len(texts) > 0, "texts", "at least one", "none")
        rows = [self.encode(text, special=special) for text in texts]
        return pad(rows, side=side, length=length)

    def chat(self, messages: Sequence[Mapping[str, str]], *, reply: bool = True, **values: Any) -> str:
        """A conversation in the form that the model was trained on.

        Args:
            messages: each with "role" and "content".
            reply: whether the answer's opening is put last, so that the model goes on with it.
            values: more that the template asks for, `enable_thinking` for instance.

        Raises:
            ValueError: there is no template, or it does not take these messages.
        """
        require(self.template is not None, "template", "a model with a chat template", "none")
        assert self.template is not None
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
        environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        text = {name: "" if i is None else self.core.id_to_token(i) for name, i in (("bos", self.bos), ("eos", self.eos))}
        given = {"messages": list(messages), "add_generation_prompt": reply}
        given |= {"bos_token": text["bos"], "eos_token": text["eos"], **values}
        try:
            return environment.from_string(self.template).render(**given)
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"template: expected messages that it takes, got {type(error).__name__}: {error}") from error


def pad(
    rows: Sequence[Sequence[int]], *, side: str = "left", length: int | None = None
) -> tuple[Int[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
    """Sequences of tokens as one array, and which of it is not padding.

    Raises:
        ValueError: an empty sequence, one that is longer than `length`, an unknown side.
    """
    require(side in ("left", "right"), "side", "left or right", repr(side))
    empty = [k for k, row in enumerate(rows) if len(row) == 0]
    require(not empty, "prompt", "at least one token", f"none in prompt {', '.join(map(str, empty[:3]))}")
    longest = max(len(row) for row in rows)
    width = longest if length is None else length
    require(longest <= width, "prompt", f"at most {width} tokens", longest)
    ids, seen = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for k, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[k, place], seen[k, place] = row, True
    return ids, seen


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


# --- tokenizer.json --------------------------------------------------------------------------------------------------


def from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json`, with `tokenizer_config.json` and the like if they are there.

    Raises:
        ValueError: a file that is missing or malformed.
    """
    path = folder / "tokenizer.json"
    require(path.is_file(), "tokenizer", "a tokenizer.json", f"none in {str(folder)!r}")
    with reading(path, "a tokenizer of the package tokenizers"):
        core = tokenizers.Tokenizer.from_file(str(path))
    core.no_padding()
    core.no_truncation()
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    bos, eos = (_token(core, settings.get(name)) for name in ("bos_token", "eos_token"))
    ends = {i for i in (eos,) if i is not None}
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        ends |= {i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)}
    # What a tokenizer.json adds by itself is not added again.
    adds = bool(settings.get("add_bos_token")) and bos is not None and core.encode("a").ids[:1] != [bos]
    return Tokenizer(core, bos, eos, tuple(sorted(ends)), adds, template)


def _token(core: tokenizers.Tokenizer, value: Any) -> int | None:
    text = value.get("content") if isinstance(value, dict) else value
    return core.token_to_id(text) if isinstance(text, str) else None


# --- GGUF ------------------------------------------------------------------------------------------------------------


def from_gguf(file: Gguf) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file.

    Raises:
        ValueError: a kind of tokenizer that is not known, or metadata that are missing or malformed.
    """
    kind = file.metadata("tokenizer.ggml.model")
    require(kind in ("gpt2", "llama"), "tokenizer.ggml.model", "gpt2 or llama", repr(kind))
    tokens, types = file.metadata("tokenizer.ggml.tokens"), file.metadata("tokenizer.ggml.token_type")
    require(isinstance(tokens, list) and len(tokens) > 0, "tokenizer.ggml.tokens", "a list of tokens", type(tokens).__name__)
    types = types if isinstance(types, list) else [1] * len(tokens)
    require(len(types) == len(tokens), "tokenizer.ggml.token_type", f"{len(tokens)} types", len(types))
    with reading(file.path, "a tokenizer"):
        core = _byte_level(file, tokens) if kind == "gpt2" else _sentence_piece(file, tokens)
    marked = [(text, t) for text, t in zip(tokens, types, strict=True) if t in (CONTROL, USER_DEFINED)]
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text, t in marked if t == CONTROL])
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text, t in marked if t == USER_DEFINED])
    bos, eos = (file.metadata(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    others = [file.metadata(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    adds = file.metadata("tokenizer.ggml.add_bos_token", kind == "llama")
    ends = sorted({i for i in (eos, *others) if i is not None})
    return Tokenizer(core, bos, eos, tuple(ends), bool(adds), file.metadata("tokenizer.chat_template"))


def _byte_level(file: Gguf, tokens: list[str]) -> tokenizers.Tokenizer:
    """Byte-pair encoding of bytes, as in GPT-2."""
    merges = file.metadata("tokenizer.ggml.merges")
    require(isinstance(merges, list), "tokenizer.ggml.merges", "a list of merges", type(merges).__name__)
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    core = tokenizers.Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=pairs))
    before = file.metadata("tokenizer.ggml.pre", "default")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=bool(file.metadata("tokenizer.ggml.add_space_prefix", False)))
    if before in ("default", "gpt-2"):
        core.pre_tokenizer = plain
    elif before == "smollm":
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    elif before in ("llama-bpe", "llama3", "qwen2"):
        words = pre_tokenizers.Split(Regex(_WORDS % ("1" if before == "qwen2" else "1,3")), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_only])
        if before == "qwen2":
            core.normalizer = normalizers.NFC()
    else:
        known = "default, gpt-2, smollm, llama-bpe, llama3, qwen2"
        require(False, "tokenizer.ggml.pre", f"one of {known}", repr(before))
    core.decoder = decoders.ByteLevel()
    return core


def _sentence_piece(file: Gguf, tokens: list[str]) -> tokenizers.Tokenizer:
    """Byte-pair encoding of characters with scores, as in Llama 2: a merge for every way to put a token together."""
    scores = file.metadata("tokenizer.ggml.scores")
    require(
        isinstance(scores, list) and len(scores) == len(tokens), "tokenizer.ggml.scores", f"{len(tokens)} scores", "others"
    )
    vocabulary = {text: i for i, text in enumerate(tokens)}
    ranked = []
    for text, i in vocabulary.items():
        for cut in range(1, len(text)):
            left, right = vocabulary.get(text[:cut]), vocabulary.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[i], left, right))
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(ranked)]
    unknown = file.metadata("tokenizer.ggml.unknown_token_id", 0)
    core = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(file.metadata("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("\u2581")] if prefix else []
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    after: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    return core

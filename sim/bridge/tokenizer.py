"""Text to tokens and back, from the files of a Hugging Face folder or from the metadata of a GGUF file.

The package `tokenizers` does the work (`sim.bridge.tokenizer_backends` where a checkpoint brings no `tokenizer.json`). Chats
have templates (`sim.bridge.chat_template`).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import AddedToken, models, pre_tokenizers

from sim.bridge import tokenizer_backends
from sim.bridge.files import read_json, read_text, reading
from sim.bridge.tokenizer_backends import CONTROL, DEFAULT, NORMAL, SPLITTINGS, USER_DEFINED
from sim.bridge.weights.gguf_file import Gguf
from ufm._check import real_numbers, require, shown, whole_number
from ufm._check import text as checked


@dataclass(frozen=True, repr=False)
class Tokenizer:
    """A tokenizer, and what it knows of special tokens.

    Attributes:
        core: of the package `tokenizers`.
        bos, eos: first token of a text and token that ends one, if there are any.
        eos_ids: all tokens that end a generation.
        adds_bos: whether `encode` puts `bos` first, where `core` does not.
        template: of chats, in Jinja; or several, by name.
        named: special tokens as text, by what templates call them ("bos_token", "pad_token"); those of `bos` and `eos` may
            be left out.
        adds_eos: whether `encode` puts `eos` last, where `core` does not.
    """

    core: tokenizers.Tokenizer
    bos: int | None = None
    eos: int | None = None
    eos_ids: tuple[int, ...] = field(default=())
    adds_bos: bool = False
    template: str | Mapping[str, str] | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    adds_eos: bool = False

    def __repr__(self) -> str:
        return f"Tokenizer({self.size} tokens, bos={self.bos}, eos={self.eos}, eos_ids={self.eos_ids})"

    @property
    def size(self) -> int:
        """How many tokens there are, special ones included. It may be more than the model has, and less."""
        return self.core.get_vocab_size(with_added_tokens=True)

    @cached_property
    def token_strings(self) -> list[str]:
        """Every token as text, as it is after another: some decoders take the space from the first."""
        first, doubled = (
            self.core.decode_batch([[z] * n for z in range(self.size)], skip_special_tokens=True) for n in (1, 2)
        )
        return [pairs[len(text) :] for text, pairs in zip(first, doubled, strict=True)]

    @cached_property
    def opening(self) -> list[int]:
        """The tokens that `encode` puts before a text: the begin-of-text token, or none."""
        return _around(self.core)[0] or ([self.bos] if self.adds_bos and self.bos is not None else [])

    @cached_property
    def closing(self) -> list[int]:
        """The tokens that `encode` puts after a text: mostly none."""
        return _around(self.core)[1] or ([self.eos] if self.adds_eos and self.eos is not None else [])

    def encode(self, text: Any, *, special: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            text: special tokens in it, such as those of a chat, are recognised.
            special: whether to add the special tokens that the model expects around a text. One that begins with the
                begin-of-text token already gets no second.

        Raises:
            ValueError: something that is no text, or half of a character (a lone surrogate).
        """
        ids = self.core.encode(checked("text", text), add_special_tokens=False).ids
        if not special:
            return ids
        begun = ids[: len(self.opening)] == self.opening
        return [*([] if begun else self.opening), *ids, *self.closing]

    def span(self, text: Any, first: int, end: int) -> tuple[int, int]:
        """The tokens of a part of a text, without special ones around it: the number of the first, and that after the last.

        Args:
            text: the whole.
            first, end: the part's first character, and that after its last. A token that is in it in part counts.
        """
        places = self.core.encode(checked("text", text), add_special_tokens=False).offsets
        inside = [k for k, (low, high) in enumerate(places) if low < end and high > first]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)

    def token(self, word: Any) -> int:
        """The one token of a word, as it is after other text: `token(" happy")`.

        Args:
            word: with the space before it, if it is to begin a word.

        Raises:
            ValueError: a word of several tokens, or of none; the message names them.
        """
        word = checked("word", word)
        # After a line break, no tokenizer puts a space of its own before the word, and few join the two.
        before, joined = (self.encode(text, special=False) for text in ("\n", f"\n{word}"))
        apart = joined[: len(before)] == before
        ids = joined[len(before) :] if apart else self.encode(word, special=False)
        several = ", ".join(f"{i} {self.decode([i], special=True)!r}" for i in ids)
        require(len(ids) == 1, "word", "a word that is one token", f"{word!r}, which is {len(ids)} ({several})")
        return ids[0]

    def decode(self, ids: Any, *, special: bool = False) -> str:
        """The text of tokens, or of one; special ones are left out unless told otherwise, and so are ids that no token has.

        Raises:
            ValueError: ids that are no whole numbers from 0 on.
        """
        ids = ids if isinstance(ids, list | tuple) else real_numbers("ids", ids).tolist()
        listed = ids if isinstance(ids, list | tuple) else [ids]
        known = [k for k in (whole_number("ids", i, 0) for i in listed) if k < 2**32]
        return self.core.decode(known, skip_special_tokens=not special)

    def chat(self, messages: Any, *, reply: bool = True, template: Any = None, **values: Any) -> str:
        """A conversation in the form that the model was trained on.

        Args:
            messages: a list of mappings, each with "role" and "content".
            reply: whether the answer's opening is put last, so that the model goes on with it.
            template: which, by name, where there are several. If left out, "tool_use" where there are `tools`, else
                "default".
            values: more that the template asks for: `tools`, `enable_thinking` for instance.

        Raises:
            ValueError: there is no template; it fails; it does not take these messages.
        """
        ids = {"bos_token": self.bos, "eos_token": self.eos}
        special = {name: self.core.id_to_token(i) for name, i in ids.items() if i is not None}
        variables = {**special, **self.named, "add_generation_prompt": bool(reply), **values}
        from sim.bridge import chat_template  # here, since Jinja takes a while to import

        return chat_template.render(self._template(template, values.get("tools")), messages, variables)

    def _template(self, name: Any, tools: Any) -> str:
        require(bool(self.template), "template", "a model with a chat template", "none")
        several = {"default": self.template} if isinstance(self.template, str) else dict(self.template or {})
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in several else "default"
        known = isinstance(name, str) and name in several
        require(known, "template", f"one of {', '.join(several)}", shown(name))
        return several[name]


def _around(core: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer of the package puts before and after a text by itself."""
    whole, text = (core.encode("a", add_special_tokens=special).ids for special in (True, False))
    start = max((k for k in range(len(whole) + 1) if whole[k : k + len(text)] == text), default=0)
    return whole[:start], whole[start + len(text) :]


def pad(
    rows: Sequence[Sequence[int]], *, side: str = "left", length: int | None = None
) -> tuple[Int[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
    """Sequences of tokens as one array, and which of it is not padding.

    Raises:
        ValueError: an empty sequence, one that is longer than ``length``, an unknown side.
    """
    require(side in ("left", "right"), "side", "left or right", repr(side))
    empty = [k for k, row in enumerate(rows) if len(row) == 0]
    require(not empty, "prompt", "at least one token", f"none in prompt {', '.join(map(str, empty[:3]))}")
    longest = max(len(row) for row in rows)
    width = longest if length is None else whole_number("length", length, 1)
    require(longest <= width, "prompt", f"at most {width} tokens", longest)
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for k, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[k, place], mask[k, place] = row, True
    return ids, mask


# --- folders ---------------------------------------------------------------------------------------------------------

_TRACES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tekken.json", "vocab.txt", "spiece.model"),
)
"""Files that say that there is a tokenizer, and hold no whole one that could be read."""

_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

_HOW = "save a tokenizer.json with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...))"


def from_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None if there is no trace of one.

    It is read from `tokenizer.json`, `tokenizer.model` (SentencePiece) or `vocab.json` with `merges.txt`, in this order.
    What else there is to know is looked for in all files that transformers reads, in its order.

    Raises:
        ValueError: a file that is missing or malformed, or a kind of tokenizer that is not known.
    """
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        with reading(folder / "tokenizer.json", "a tokenizer of the package tokenizers"):
            core = tokenizer_backends.of_json(read_text(folder / "tokenizer.json"))
        core.no_padding()
        core.no_truncation()
        _space(core, settings, read_json(folder / "config.json") if (folder / "config.json").is_file() else {})
    elif (folder / "tokenizer.model").is_file():
        core, settings = _of_pieces(folder / "tokenizer.model", settings)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        core, settings = _of_pairs(folder, settings)
    else:
        traces = [name for name in _TRACES if (folder / name).is_file()]
        expected = "a tokenizer.json, a tokenizer.model, or a vocab.json with merges.txt"
        require(not traces, "tokenizer", expected, f"only {', '.join(traces)} in {str(folder)!r}; {_HOW}")
        return None
    texts, special = _special(settings)
    _add(core, settings, set(texts.values()))
    core.add_tokens([token for token in special if token.content not in _added(core)])
    core.encode_special_tokens = _truth("split_special_tokens", settings.get("split_special_tokens"))
    files = ("generation_config.json", "config.json")
    more = {name: read_json(folder / name) for name in files if (folder / name).is_file()}
    parts = {name: config["text_config"] for name, config in more.items() if isinstance(config.get("text_config"), dict)}
    more |= {f"text_config of {name}": part for name, part in parts.items()}
    bos, eos = (_first(core, settings, more, name) for name in ("bos", "eos"))
    eos_ids = {i for file, config in more.items() for i in _ids(file, config, "eos_token_id")}
    eos_ids |= set() if eos is None else {eos}
    adds_bos, adds_eos = _adds(core, settings, itself=(folder / "tokenizer.json").is_file())
    return Tokenizer(core, bos, eos, tuple(sorted(eos_ids)), adds_bos, _templates(folder), texts, adds_eos)


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with what other files say of special tokens.

    Where it lists added tokens itself, it goes before the older `special_tokens_map.json`, and `added_tokens.json` has
    nothing more to say.
    """
    files = {
        name: read_json(folder / f"{name}.json") if (folder / f"{name}.json").is_file() else {}
        for name in ("tokenizer_config", "special_tokens_map", "added_tokens")
    }
    config, older = files["tokenizer_config"], files["special_tokens_map"]
    if "added_tokens_decoder" in config:
        return {**older, **config}
    declared = {**config, **older}
    special = {_content(value) for name, value in declared.items() if name.endswith("_token")}
    several = (declared.get(name) or [] for name in ("additional_special_tokens", "extra_special_tokens"))
    special |= {_content(value) for group in several if isinstance(group, list) for value in group}
    listed = {str(i): {"content": text, "special": text in special} for text, i in files["added_tokens"].items()}
    return {**declared, "added_tokens": listed}


def _content(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _ids(file: str, config: dict[str, Any], key: str) -> list[int]:
    """The token ids that a configuration has by a key; those that no token can have are as good as none."""
    value = config.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    for i in listed:
        whole = (isinstance(i, int) and not isinstance(i, bool)) or (isinstance(i, float) and i.is_integer())
        require(whole, key, "a token id, or a list of them", f"{shown(i)} in {file}")
    return [int(i) for i in listed if 0 <= i < 2**31]


def _truth(key: str, value: Any) -> bool:
    """A truth value of a file; null counts as false."""
    require(value is None or isinstance(value, bool), key, "a truth value", shown(value))
    return bool(value)


def _first(core: tokenizers.Tokenizer, settings: dict[str, Any], more: dict[str, dict[str, Any]], name: str) -> int | None:
    """The begin or the end of texts: the token that is named; else the first id that a configuration says."""
    if f"{name}_token" in settings:
        text = _content(settings[f"{name}_token"])
        return None if text is None else core.token_to_id(text)
    return next((i for file, config in more.items() for i in _ids(file, config, f"{name}_token_id")), None)


_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
"""What is said of a token beside its text."""


def _token(value: Any) -> AddedToken:
    """A token of the settings, with what they say of it; one that is no more than text is special."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    said = {flag: _truth(flag, value[flag]) for flag in _FLAGS if value.get(flag) is not None}
    return AddedToken(value["content"], **said)


def _add(core: tokenizers.Tokenizer, settings: dict[str, Any], named: set[str]) -> None:
    """Tokens that were added to a vocabulary after it was made.

    What `added_tokens_decoder` says of a token holds, whatever the tokenizer itself says of it, as in transformers; of
    `added_tokens.json`, only tokens that the tokenizer does not recognise in text are taken.

    Args:
        core: the tokenizer, to be changed.
        settings: of the folder.
        named: tokens that have names in the settings: they are special, whatever is said of them.

    Raises:
        ValueError: a token whose id does not follow on those that are there.
    """
    key = "added_tokens_decoder" if "added_tokens_decoder" in settings else "added_tokens"
    listed = settings[key] or {}
    require(isinstance(listed, dict), key, "tokens by id", shown(listed))
    for i, token in listed.items():
        fits = i.isdecimal() and isinstance(token, dict) and bool(_content(token))
        require(fits, key, 'mappings with a "content", by id', f"{shown(token)} by {shown(i)}")
        checked(key, token["content"])
    present = {token.content: token for token in core.get_added_tokens_decoder().values()}
    if key == "added_tokens":
        core.add_tokens([_named(token) for text, token in present.items() if text in named and not token.special])
        listed = {i: token for i, token in listed.items() if token["content"] not in present}
    for i, token in sorted(((int(i), _token(token)) for i, token in listed.items()), key=lambda pair: pair[0]):
        text = token.content
        known = core.token_to_id(text) is not None
        core.add_tokens([_named(token) if text in named else token])
        place = core.token_to_id(text)
        require(known or place == i, "added_tokens", f"{text!r} to follow on the vocabulary as {place}", i)


def _named(token: AddedToken) -> AddedToken:
    """Make a token special, and return it."""
    token.special = True
    return token


def _special(settings: dict[str, Any]) -> tuple[dict[str, str], list[AddedToken]]:
    """Special tokens of the settings.

    As in transformers, those that are not in the vocabulary follow on it: the ones that have names, the usual names first
    and other names in the order of the files, then the rest.

    Returns:
        The texts of those that have names, by name; and all tokens, in that order.
    """
    key = "extra_special_tokens" if settings.get("extra_special_tokens") else "additional_special_tokens"
    extra = settings.get(key) or []
    require(isinstance(extra, list | dict), key, "a list of tokens, or tokens by name", shown(extra))
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    named = {name: value for name, value in named.items() if _content(value) is not None}
    texts = {name: checked(name, _content(value)) for name, value in named.items()}
    order = sorted(texts, key=lambda name: _NAMED.index(name) if name in _NAMED else len(_NAMED))
    others = extra if isinstance(extra, list) else []
    for value in others:
        checked(key, _content(value))
    # Of a list, a token that is written out says itself whether it is special; older files leave that out.
    others = [{"special": "__type" not in value, **value} if isinstance(value, dict) else value for value in others]
    return texts, [*(_named(_token(named[name])) for name in order), *map(_token, others)]


_CLASSES = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("mistral", "olmo2", "phi3", "granite"), "TokenizersBackend"),
    **{"gpt2": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"},
}
"""The tokenizers of families in transformers 5; "TokenizersBackend" is whatever the `tokenizer.json` says."""


def _space(core: tokenizers.Tokenizer, settings: dict[str, Any], config: dict[str, Any]) -> None:
    """Whether a space is put before a text, where `add_prefix_space` says so and transformers goes by it.

    The classes that do put a part of their own in the place of that of a `tokenizer.json`.
    """
    prefix = settings.get("add_prefix_space")
    if prefix is None:
        return
    prefix, family = _truth("add_prefix_space", prefix), config.get("model_type")
    usual = _CLASSES.get(family) if isinstance(family, str) else None
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class") or usual
    kind = kind.removesuffix("Fast") if isinstance(kind, str) else None
    # The class that folders of Qwen 2 name counts as wrong.
    kind = usual if usual == "TokenizersBackend" or family == "qwen2" else kind
    whole: Any = core.pre_tokenizer
    several = isinstance(whole, pre_tokenizers.Sequence)
    steps = list(whole) if several else [whole]
    bytes_of_text = [step for step in steps if isinstance(step, pre_tokenizers.ByteLevel)]
    if kind in ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"):
        for step in bytes_of_text:
            step.add_prefix_space = prefix
    elif kind == "LlamaTokenizer" and isinstance(core.model, models.BPE) and not bytes_of_text:
        tokenizer_backends.space_as_llama(core, prefix=prefix, first=not _truth("legacy", settings.get("legacy")))


def _adds(core: tokenizers.Tokenizer, settings: dict[str, Any], *, itself: bool) -> tuple[bool, bool]:
    """Whether the settings have the begin and the end put around texts.

    Args:
        core: the tokenizer.
        settings: of the folder.
        itself: whether the tokenizer is a `tokenizer.json`. What that puts around texts is all, as in transformers 5.
    """
    keys = ("add_bos_token", "add_eos_token")
    bos, eos = (_truth(key, settings.get(key)) for key in keys)
    if not itself:
        return bos, eos
    for key, where, added in zip(keys, ("before", "after"), _around(core), strict=True):
        if settings.get(key) not in (None, bool(added)):
            puts = ", ".join(str(core.id_to_token(i)) for i in added) or "nothing"
            said = str(settings[key]).lower()
            warnings.warn(
                f"{key}: {said} is not used, as in transformers 5: tokenizer.json puts {puts} {where} a text", stacklevel=4
            )
    return False, False


def _added(core: tokenizers.Tokenizer) -> set[str]:
    return {token.content for token in core.get_added_tokens_decoder().values()}


def _of_pairs(folder: Path, settings: dict[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A tokenizer from `vocab.json` and `merges.txt`: byte-level, and split into words as the tokenizers of two families do.

    Returns:
        The tokenizer; and settings with the special tokens of its family, where they say nothing.
    """
    kind, end = settings.get("tokenizer_class"), "<|endoftext|>"
    family = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    classes = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
    kind = None if kind is None else checked("tokenizer_class", kind)
    usual = classes.get(family) if isinstance(family, str) else None
    fits = usual is not None and (kind or usual).removesuffix("Fast") == usual
    require(
        fits,
        "tokenizer",
        "a tokenizer.json (vocab.json and merges.txt do not say how text is split into words, but for GPT-2 and Qwen)",
        f"{kind or 'no tokenizer_class'} for the model_type {family!r}; {_HOW}",
    )
    assert family is not None
    prefix = _truth("add_prefix_space", settings.get("add_prefix_space"))
    merges_of_it = reading(folder / "merges.txt", "merges of the vocabulary beside them")
    with merges_of_it, reading(folder / "vocab.json", "a vocabulary with the merges beside it"):
        vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        splitting = SPLITTINGS["gpt-2" if family == "gpt2" else "qwen2"]
        core = tokenizer_backends.byte_level(vocabulary, merges, splitting, prefix=prefix)
    declared = {"bos_token": end} if family == "gpt2" else {"bos_token": None, "pad_token": end}
    return core, {**declared, "eos_token": end, "unk_token": end, **settings}


def _of_pieces(path: Path, settings: dict[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A tokenizer from a `tokenizer.model`; and settings with what it says of special tokens, where they say nothing."""
    from sim.bridge import sentencepiece_file  # here, since protocol buffers take a while to import

    model = sentencepiece_file.read(path)
    types = [piece.type for piece in model.pieces]
    declared = {"add_prefix_space": model.normalizer_spec.add_dummy_prefix}
    declared |= {key: value for key, value in settings.items() if value is not None}
    prefix, legacy = (_truth(key, declared.get(key)) for key in ("add_prefix_space", "legacy"))
    # In text, what users defined has spaces.
    tokens = [
        piece.piece.replace(tokenizer_backends.SPACE, " ") if piece.type == USER_DEFINED else piece.piece
        for piece in model.pieces
    ]
    spec = model.trainer_spec
    with reading(path, "a vocabulary of SentencePiece"):
        core = tokenizer_backends.sentence_piece(
            tokens, [piece.score for piece in model.pieces], types, unknown=spec.unk_id, prefix=prefix, first=not legacy
        )
        tokenizer_backends.mark(core, tokens, types)
    ids = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id}
    special = {name: tokens[i] for name, i in ids.items() if 0 <= i < len(tokens)}
    return core, {"add_bos_token": True, **special, **settings}


def _templates(folder: Path) -> str | dict[str, str] | None:
    """The chat template, or several by name: files of their own go before what configurations have."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    files |= {"default": folder / "chat_template.jinja"} if (folder / "chat_template.jinja").is_file() else {}
    templates: Any = {name: read_text(path) for name, path in files.items()}
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        templates = templates or (read_json(folder / name).get("chat_template") if (folder / name).is_file() else None)
    pairs = list(templates.items()) if isinstance(templates, dict) else []
    if isinstance(templates, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in templates if isinstance(entry, dict)]
    if pairs:
        named = {checked("chat_template", name): checked("chat_template", text) for name, text in pairs}
        return named["default"] if list(named) == ["default"] else named
    require(
        not templates or isinstance(templates, str), "chat_template", "a text, or several by name", type(templates).__name__
    )
    return checked("chat_template", templates) if templates else None


# --- GGUF ------------------------------------------------------------------------------------------------------------

# fmt: off
_EOS_TEXTS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
    "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
))
# fmt: on
"""Tokens that end a generation whatever the metadata say, as in llama.cpp."""


def from_gguf(file: Gguf) -> Tokenizer | None:
    """The tokenizer in the metadata of a GGUF file; None if there is none.

    Raises:
        ValueError: a kind of tokenizer that is not known, or metadata that are missing or malformed.
    """
    kind = file.metadata("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return None
    require(kind in ("gpt2", "llama"), "tokenizer.ggml.model", "gpt2 or llama", repr(kind))
    tokens, types = file.metadata("tokenizer.ggml.tokens"), file.metadata("tokenizer.ggml.token_type")
    require(isinstance(tokens, list) and len(tokens) > 0, "tokenizer.ggml.tokens", "a list of tokens", type(tokens).__name__)
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
    types = types if isinstance(types, list) else [NORMAL] * len(tokens)
    require(len(types) == len(tokens), "tokenizer.ggml.token_type", f"{len(tokens)} types", len(types))
    places = {text: i for i, text in enumerate(tokens)}
    twice = next((text for i, text in enumerate(tokens) if places[text] != i), None)
    require(twice is None, "tokenizer.ggml.tokens", "different tokens", f"{twice!r} more than once")
    eos_ids = _known_eos_ids(places)
    types = [CONTROL if i in eos_ids else kind for i, kind in enumerate(types)]
    core, adds = _byte_level(file, places) if kind == "gpt2" else (_sentence_piece(file, tokens, types), True)
    tokenizer_backends.mark(core, tokens, types)
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}
    ids = {
        name: _id(file, name, len(tokens), defaults.get(name))
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator")
    }
    eos_ids |= {i for i in (ids["eos"], ids["eot"], ids["eom"]) if i is not None}
    called = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep"}
    named = {f"{ours}_token": tokens[i] for theirs, ours in called.items() if (i := ids[theirs]) is not None}
    adds_bos, adds_eos = _flag(file, "add_bos_token", adds), _flag(file, "add_eos_token", False)
    for name, added, verb in (("bos", adds_bos, "begin"), ("eos", adds_eos, "end")):
        known, key = not added or ids[name] is not None, f"tokenizer.ggml.{name}_token_id"
        require(known, key, f"an id, since texts {verb} with it", "none")
    template = _gguf_templates(file)
    return Tokenizer(core, ids["bos"], ids["eos"], tuple(sorted(eos_ids)), adds_bos, template, named, adds_eos)


def _flag(file: Gguf, name: str, default: bool) -> bool:
    return _truth(f"tokenizer.ggml.{name}", file.metadata(f"tokenizer.ggml.{name}", default))


def _id(file: Gguf, name: str, count: int, default: int | None) -> int | None:
    """The id of a special token; one that is not in the vocabulary is as good as none, as in llama.cpp."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.metadata(key, default)
    i = -1 if value is None else whole_number(key, value)
    return i if 0 <= i < count else None


def _known_eos_ids(places: Mapping[str, int]) -> set[int]:
    """Tokens that end a generation by what they are called."""
    texts = _EOS_TEXTS & set(places)
    # Where parts of an answer end with <|end|> or </s>, the whole ends otherwise.
    if texts & {"<|call|>", "<|calls|>"} and texts & {"<|return|>", "<|flush|>"}:
        texts -= {"<|end|>"}
    if "<|tool_response>" in texts:
        texts -= {"</s>"}
    return {places[text] for text in texts}


def _gguf_templates(file: Gguf) -> str | dict[str, str] | None:
    key = "tokenizer.chat_template"
    default, names = file.metadata(key), file.metadata(f"{key}s", [])
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(listed, f"{key}s", "a list of names", shown(names))
    templates = {key: default, **{f"{key}.{name}": file.metadata(f"{key}.{name}") for name in names}}
    texts = {place: checked(place, text) for place, text in templates.items() if text is not None}
    several = {place.removeprefix(key).removeprefix(".") or "default": text for place, text in texts.items() if text}
    return several if set(several) - {"default"} else default or None


def _byte_level(file: Gguf, places: dict[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    """Byte-pair encoding of bytes, as in GPT-2; and whether texts of its kind begin with the begin-of-text token."""
    merges = file.metadata("tokenizer.ggml.merges")
    require(isinstance(merges, list), "tokenizer.ggml.merges", "a list of merges", type(merges).__name__)
    name = file.metadata("tokenizer.ggml.pre", "default")
    if name == "default" and file.metadata("general.architecture") == "gpt2":
        name = "gpt-2"
    if name == "default":
        warnings.warn(
            f"tokenizer.ggml.pre: {file.path.name} does not say how its tokenizer splits text into words; it is split as "
            "llama.cpp does, which is wrong for most models: take a newer file",
            stacklevel=2,
        )
    known = {**SPLITTINGS, "default": DEFAULT}
    fits = isinstance(name, str) and name in known
    require(fits, "tokenizer.ggml.pre", f"one of {', '.join(SPLITTINGS)}", shown(name))
    prefix = _flag(file, "add_space_prefix", False)
    with reading(file.path, "a tokenizer"):
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        return tokenizer_backends.byte_level(places, pairs, known[name], prefix=prefix), known[name].adds_bos


def _sentence_piece(file: Gguf, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    scores = file.metadata("tokenizer.ggml.scores")
    require(
        isinstance(scores, list) and len(scores) == len(tokens), "tokenizer.ggml.scores", f"{len(tokens)} scores", "others"
    )
    unknown = _id(file, "unknown", len(tokens), 0) or 0
    prefix = _flag(file, "add_space_prefix", True)
    with reading(file.path, "a tokenizer"):
        return tokenizer_backends.sentence_piece(tokens, scores, types, unknown=unknown, prefix=prefix)

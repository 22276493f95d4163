"""Text to train on and to measure cross-entropy on: a corpus that every CPython has, text files, parquet files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers

from sim.bridge.files import reading, require_file
from sim.bridge.tokenizer import Tokenizer
from ufm._check import require

END = "<|endoftext|>"
"""The token between documents."""


def manual() -> list[str]:
    """The topics of Python's own manual: about 0.5 MB of English in 79 documents."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def in_both_cases(documents: Sequence[str]) -> list[str]:
    """Every document in lower case, then every document in upper case.

    The transformer's version of the corpus of disjoint concepts: two concepts, of which every context is in one.
    """
    return [text.lower() for text in documents] + [text.upper() for text in documents]


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, parted by two blank lines, or of the column "text" of a parquet file.

    Raises:
        ValueError: no such file, another type, a file that is empty or malformed; the message names it and, for parquet, the
            row.
    """
    require_file("text", path, "a text or a parquet file")
    documents = list(_of_parquet(path)) if path.suffix == ".parquet" else _of_text(path)
    require(len(documents) > 0, "text", "at least one document", f"none in {str(path)!r}")
    return documents


def _of_text(path: Path) -> list[str]:
    with reading(path, "a text file in UTF-8", argument="text"):
        text = path.read_text(encoding="utf-8-sig")
    return [part for part in text.replace("\r\n", "\n").split("\n\n\n") if part.strip()]


def _of_parquet(path: Path) -> Iterator[str]:
    import pyarrow.parquet

    with reading(path, "a parquet file", argument="text"):
        file = pyarrow.parquet.ParquetFile(path)
    require("text" in file.schema_arrow.names, "text", f"a column of that name in {str(path)!r}", file.schema_arrow.names)
    row = 0
    for batch in file.iter_batches(columns=["text"]):
        for value in batch.column(0).to_pylist():
            require(isinstance(value, str), f"row {row} of {path.name}", "text", type(value).__name__)
            row += 1
            if value.strip():
                yield value


def train_tokenizer(documents: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-pair tokenizer of at most `vocabulary` tokens: bytes, merges, and one that ends a document.

    Raises:
        ValueError: a vocabulary that has no room for the 256 bytes and the end.
    """
    require(vocabulary > 256, "vocabulary", "more than the 256 bytes", vocabulary)
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(documents, trainer)
    end = core.token_to_id(END)
    assert end is not None
    return Tokenizer(core, bos=end, eos=end, eos_ids=(end,))


def as_tokens(documents: Sequence[str], tokenizer: Tokenizer) -> Int[np.ndarray, " N"]:
    """All documents one after the other, each with an end before it.

    Raises:
        ValueError: a tokenizer that has no token for the end of a document.
    """
    require(tokenizer.eos is not None, "tokenizer", "one with a token that ends documents", "none")
    rows = tokenizer.core.encode_batch(list(documents), add_special_tokens=False)
    return np.concatenate([np.asarray([tokenizer.eos, *row.ids], np.int32) for row in rows])

"""Text from files, and the tokenizer made for it."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sim.experiments import corpora


def test_the_manual_is_english_in_documents():
    documents = corpora.manual()
    assert sum(map(len, documents)) > 300_000
    assert "assignment" in " ".join(documents)


def test_both_cases():
    assert corpora.in_both_cases(["One two.", "B"]) == ["one two.", "b", "ONE TWO.", "B"]


def test_text_files(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("first\nline\n\n\nsecond\n\nstill\n\n\n\n\n\n", encoding="utf-8")
    assert [text.strip() for text in corpora.read_documents(file)] == ["first\nline", "second\n\nstill"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe\xff", "a text file in UTF-8"), (b"  \n", "at least one document")]
)
def test_files_that_are_not_text(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        corpora.read_documents(tmp_path / "a.txt")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^text: .*parquet"):
        corpora.read_documents(tmp_path / "nothing.txt")


def test_the_tokenizer_loses_nothing():
    documents = ["Hello, wörld! 123", "ΑΒΓ\n\ttabs"]
    words = corpora.train_tokenizer(documents, 300)
    assert words.size <= 300
    for text in [*documents, "unseen \N{SNOWMAN}"]:
        assert words.decode(words.encode(text)) == text
    tokens = corpora.as_tokens(documents, words)
    assert (tokens == words.eos).sum() == 2
    assert tokens[0] == words.eos
    np.testing.assert_array_equal(tokens[1 : 1 + len(words.encode(documents[0]))], words.encode(documents[0]))


def test_a_vocabulary_without_room_for_bytes():
    with pytest.raises(ValueError, match=r"vocabulary: .*got 256"):
        corpora.train_tokenizer(["a"], 256)


def test_parquet_files(tmp_path):
    table = pyarrow.table({"text": ["one", " ", "two"], "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert corpora.read_documents(tmp_path / "a.parquet") == ["one", "two"]


def test_parquet_files_that_are_not_right(tmp_path):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one"]}), file)
    with pytest.raises(ValueError, match="text: expected a column of that name"):
        corpora.read_documents(file)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None]}), file)
    with pytest.raises(ValueError, match=r"row 1 of a\.parquet: .*got NoneType"):
        corpora.read_documents(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="expected a parquet file"):
        corpora.read_documents(file)

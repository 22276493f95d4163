"""A corpus of one's own: what is read, what is refused with the line, and that the figures are drawn for any sizes."""

import jax
import numpy as np
import pytest

from sim.reproduction import draw_corpus
from sim.toy.corpus_file import read_corpus

TABLE = """\
context,concept,weight,red,blue,cat,dog,cow,oak,elm,ash,fir,yew
concept,,,colour,colour,animal,animal,animal,tree,tree,tree,tree,tree

the sky is,colour,2,0.4,0.3,0.04,0.03,0.03,0.05,0.05,0.03,0.04,0.03
the pet is a,animal,1,0.05,0.05,0.35,0.3,0.05,0.03,0.07,0.03,0.03,0.04
a leaf of an,tree,1,0.06,0.04,0.05,0.05,0.02,0.2,0.18,0.15,0.15,0.1
"""

DOCUMENTS = """\
colour: red blue
animal: cat dog cow

red red blue
red blue red
blue red cat
cat dog cat
cow dog red
red red red
"""


@pytest.fixture
def read(tmp_path):
    def of_text(text, name="own.csv", **options):
        path = tmp_path / name
        path.write_text(text)
        with jax.enable_x64(True):
            return read_corpus(path, **options)

    return of_text


def test_a_table_is_read_with_its_names_and_weights(read):
    case, names = read(TABLE)
    corpus = case.corpus
    assert names.tokens == ("red", "blue", "cat", "dog", "cow", "oak", "elm", "ash", "fir", "yew")
    assert names.concepts == ("colour", "animal", "tree")
    assert names.contexts[1] == "the pet is a"
    assert corpus.concepts.sizes.tolist() == [2, 3, 5]
    np.testing.assert_allclose(corpus.weights, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(np.exp(corpus.log_p)[2, 5:], [0.2, 0.18, 0.15, 0.15, 0.1])
    np.testing.assert_allclose(case.instance.log_odds[:2], np.log([0.4 / 0.05, 0.3 / 0.05]))


def test_concepts_are_named_to_steer_between(read):
    case, names = read(TABLE, target="tree", away="colour")
    assert names.concepts == ("tree", "colour", "animal")
    assert case.corpus.concepts.of_token.tolist() == [1, 1, 2, 2, 2, 0, 0, 0, 0, 0]
    assert np.asarray(case.instance.contrast).tolist() == [-1, 0, 1]
    assert read(TABLE, away="colour").names.concepts[0] == "animal"


def test_documents_are_counted(read):
    case, names = read(DOCUMENTS, "own.txt", smoothing=0.5)
    j = names.contexts.index("red red")
    # "red red" is followed by blue and by red; one half is added to each of five tokens.
    np.testing.assert_allclose(np.exp(case.corpus.log_p)[j], np.array([1.5, 1.5, 0.5, 0.5, 0.5]) / 4.5)
    assert case.corpus.weights[j] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("own.csv", ("0.4,0.3", "0.5,0.3"), "own.csv, line 4: expected probabilities that sum to 1, got a sum of 1.1"),
        ("own.csv", ("0.4,0.3", "0.4,x"), "own.csv, line 4: expected a number of at least 0 under 'blue', got 'x'"),
        ("own.csv", ("0.4,0.3", "0.3,0.4,"), "own.csv, line 4: expected 13 cells, as the first line has, got 14"),
        (
            "own.csv",
            ("a leaf of an,tree", "a leaf of an,bush"),
            "own.csv, line 6: expected a concept that has tokens: colour, ",
        ),
        ("own.csv", ("an,tree,1", "an,tree,0"), "own.csv, line 6: expected a positive weight, got 0"),
        ("own.csv", ("blue,cat", "red,cat"), "own.csv, line 1: expected tokens of different names, got red more than once"),
        ("own.csv", ("concept,,,", "kind,,,"), "own.csv, line 2: expected a line that begins with 'concept'"),
        (
            "own.csv",
            ("0.04,0.03,0.03,", "0.07,0,0.03,"),
            "own.csv: expected positive probabilities .*0 for 'dog' after 'the sky",
        ),
        ("own.csv", ("the pet is a,animal", "the pet is a,tree"), "own.csv: expected a context of the concept 'animal'"),
        ("own.txt", ("cow dog red", "cow dog"), "own.txt, line 8: expected a document of 3 tokens, as the first, got 2"),
        ("own.txt", ("cow dog red", "cow red red"), "own.txt, line 8: expected a context whose tokens are of one concept"),
        ("own.txt", ("cow dog red", "cow dog pig"), "own.txt, line 8: expected tokens of the concepts above, got .'pig'"),
        (
            "own.txt",
            ("cat dog cow", "cat dog red"),
            "own.txt, line 2: expected tokens that are of one concept, got 'red' a second",
        ),
        ("own.txt", ("animal:", "animal"), "own.txt, line 2: expected CONCEPT: TOKEN TOKEN ..., got 'animal cat"),
    ],
)
def test_what_is_wrong_is_refused_with_file_and_line(read, name, change, message):
    text = TABLE if name.endswith("csv") else DOCUMENTS
    assert change[0] in text
    with pytest.raises(ValueError, match=message):
        read(text.replace(change[0], change[1], 1), name)


def test_lines_are_those_of_the_file_and_csv_that_is_none_is_refused(read):
    where = next(k for k, line in enumerate(TABLE.splitlines()) if line.startswith("the pet is a"))
    with pytest.raises(ValueError, match=rf"own.csv, line {where + 2}: expected \d+ cells"):
        read(TABLE.replace("the pet is a,animal", '"the\npet is a",animal,0.1', 1), "own.csv")
    with pytest.raises(ValueError, match=r"own.csv: expected a table in CSV, got line \d+"):
        read(TABLE + '"' + "x" * 140_000, "own.csv")


def test_unseen_tokens_are_refused_with_a_way_out(read):
    with pytest.raises(ValueError, match=r"smoothing.*got 0 for 'cat' after 'red red'"):
        read(DOCUMENTS, "own.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "bird"}, "target: expected a concept of .*own.csv: colour, animal, tree, got bird"),
        ({"target": "tree", "away": "tree"}, "away: expected another concept than the target"),
        ({"smoothing": 0.5}, "smoothing: expected 0 for a table"),
    ],
)
def test_options_that_do_not_fit(read, options, message):
    with pytest.raises(ValueError, match=message):
        read(TABLE, **options)


@pytest.mark.parametrize(
    ("text", "name", "smoothing"),
    [(TABLE, "own.csv", 0.0), pytest.param(DOCUMENTS, "own.txt", 0.5, marks=pytest.mark.slow)],
    ids=["three", "two"],
)
def test_figures_are_drawn_for_two_concepts_and_three_of_any_sizes(read, tmp_path, text, name, smoothing):
    files = draw_corpus(tmp_path, read(text, name, smoothing=smoothing))
    assert {"next-token-table", "next-token-curves", "concept-curves", "cross-entropy", "share-cost"} <= set(files)
    assert all(path.stat().st_size > 1000 for paths in files.values() for path in paths.values())
    import xarray as xr

    with xr.open_datatree(tmp_path / "toy.nc", engine="h5netcdf") as tree:
        for dataset in ("next-token-curves", "concept-curves", "cross-entropy"):
            np.testing.assert_allclose(tree[dataset]["measured"], tree[dataset]["predicted"], atol=1e-8)
        curves = tree["concept-curves"]
        of, towards = curves["concept"].values[[1, 0]]
        assert curves.attrs["steered"].startswith("after '")
        assert curves.attrs["steered"].endswith(f"', {of} to {towards}")
        assert curves.attrs["steered"] == tree["next-token-curves"].attrs["steered"]
        assert ("red" in tree["next-token-curves"]["token"].values, tree["concept-curves"]["concept"].size) == (
            True,
            3 if name == "own.csv" else 2,
        )

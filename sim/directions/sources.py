"""The two sets of texts that a steering vector is made from, as a user names them.

They are a concept of the library, a file of pairs, or two files of texts.
"""

from pathlib import Path
from typing import NamedTuple

from sim.bridge.files import text_lines
from sim.directions.texts import concept_pairs, read_pairs, sides_of
from ufm._check import require

EXPECTED = "a file with a text in each line"


class Source(NamedTuple):
    """Two sets of texts.

    Attributes:
        name: of what the first shows.
        positive, negative: texts that show it, and texts that do not.
        questions: what both answer, in order; None if they answer nothing.
    """

    name: str
    positive: list[str]
    negative: list[str]
    questions: list[str] | None = None


def source(
    *, concept: str | None = None, pairs: Path | None = None, positive: Path | None = None, negative: Path | None = None
) -> Source:
    """The texts of one source.

    Args:
        concept: of the library, or of the file of pairs, if that holds several.
        pairs: as `sim.read_pairs` reads them.
        positive, negative: files with a text in each line; empty lines are passed over.

    Raises:
        ValueError: no source, several, one of two files; an unknown concept; a file that cannot be read;
            pairs of which some only have a question.
    """
    listed = positive is not None or negative is not None
    named = (("positive and negative", listed), ("pairs", pairs), ("concept", concept))
    sources = [name for name, value in named if value]
    fits = len(sources) == 1 or sources == ["pairs", "concept"]
    expected = "one of positive with negative, pairs, concept (with pairs, the one of them)"
    require(fits, "texts", expected, " and ".join(sources) or "none")
    if listed:
        require(positive is not None and negative is not None, "texts", "both positive and negative", "one of them")
        assert positive is not None
        assert negative is not None
        return Source(positive.stem, text_lines("positive", positive, EXPECTED), text_lines("negative", negative, EXPECTED))
    if pairs is None:
        assert concept is not None
        name, chosen = concept, concept_pairs(concept)
    else:
        by_concept = read_pairs(pairs)
        names = ", ".join(by_concept)
        require(concept in by_concept or (concept is None and len(by_concept) == 1), "concept", f"one of {names}", concept)
        name = concept or names
        chosen = by_concept[name]
    return Source(name, *sides_of(chosen))

"""How figures look, in one place: sizes, colours, fonts, and the three formats they are saved in."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from sim.output import write_whole

TARGET = "#0072B2"
"""Blue of the Okabe-Ito palette, which colour-blind readers tell apart."""

OFF_TARGET = "#E69F00"
"""Its orange."""

THIRD = "#009E73"
"""Its green, for what is neither."""

INK = "#222222"

SPREAD = ("#222222", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#999999")
"""Colours of tokens, from one end of a sweep to the other."""

LAYERS = (TARGET, THIRD, OFF_TARGET)
"""Colours of layers, from early to last."""

KINDS = (TARGET, "#C8C8C8", OFF_TARGET)
"""Colours of one bump, none, several."""

DOTS: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.2,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
}
"""Circles: what was measured."""


FORMATS = ("svg", "pdf", "png")

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "mathtext.fontset": "cm",
    "svg.fonttype": "path",
    "svg.hashsalt": "ufm-steering",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


class Drawing(NamedTuple):
    """A figure of a run.

    Attributes:
        dataset: its dataset in the tree of the run.
        draw: from that dataset to a figure.
        source: what it shows: paper and number, or N-id.
        caption: what to see in it.
    """

    dataset: str
    draw: Callable[[xr.Dataset], Figure]
    source: str
    caption: str


@contextmanager
def style():
    """The project's matplotlib settings, for the duration of a `with` block."""
    with mpl.rc_context(_RC):
        yield


def word_label(text: object) -> str:
    """A token as a label: without its spaces, and nothing that TeX, a legend or the font would stumble over."""
    word = str(text)
    glyphs = _glyphs()
    plain = "".join(c if c.isprintable() and ord(c) in glyphs else c.encode("unicode_escape").decode() for c in word)
    plain = plain.strip().replace("$", "\\$")
    plain = plain if len(plain) <= 18 else f"{plain[:17]}\N{HORIZONTAL ELLIPSIS}"
    # A legend leaves out what begins with an underscore.
    return f"'{plain}'" if plain.startswith("_") else plain or repr(word)


def word_labels(texts: Iterable[object]) -> list[str]:
    """Tokens as labels, each another one: where two differ by a space alone, it is shown."""
    words = [str(text) for text in texts]
    labels = [word_label(word) for word in words]
    return [
        "\N{OPEN BOX}" + label if labels.count(label) > 1 and word.startswith(" ") else label
        for word, label in zip(words, labels, strict=True)
    ]


@cache
def _glyphs() -> frozenset[int]:
    """The characters that the font has."""
    with style():
        return frozenset(get_font(findfont(FontProperties())).get_charmap())


def save(figure: Figure, folder: Path, name: str) -> dict[str, Path]:
    """Write `figure` as SVG, PDF and PNG into `folder`, the same bytes every time. Returns the paths by format."""
    with style():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is found once, not once for each format
        return {kind: write_whole(folder / f"{name}.{kind}", partial(_write, figure, kind)) for kind in FORMATS}


def _write(figure: Figure, kind: str, path: Path) -> None:
    undated: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(path, format=kind, metadata=undated.get(kind), dpi=200)

"""Formulas as MathML, written at build time: pages need no script, no web font and no network to show them."""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

# Pages are built from the sources beside them, installed or not.
sys.path.insert(0, str(Path(__file__).parents[2]))

from sim.tex import to_html

logger = logging.getLogger(__name__)


def _element(node: nodes.math | nodes.math_block, *, display: bool) -> str:
    try:
        return to_html(node.astext(), display=display)
    except ValueError as error:
        logger.warning("%s", error, location=node)
        return node.astext()


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(_element(node, display=False))
    raise nodes.SkipNode


def _block(translator, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="formula"))
    translator.body.append(_element(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

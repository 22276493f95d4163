"""Pages of the documentation as HTML that needs nothing beside it: Markdown with formulas, as far as the proofs use it.

The pages are written for Sphinx and MyST. Their parser is used here too, with formulas as MathML (`sim.tex`), and the roles
``doc``, ``ref`` and ``py:...`` resolved by a table of addresses.
"""

import html
import re
from collections.abc import Mapping

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from mdit_py_plugins.deflist import deflist_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from sim import tex

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
"""A formula of a page, displayed or within a line."""


def to_html(text: str, addresses: Mapping[str, str], *, level: int = 1) -> str:
    """A page, or part of one, as HTML.

    Args:
        text: MyST Markdown: paragraphs, lists, tables, code, formulas, labels, and the roles above. Directives are code.
        addresses: where labels and pages (by the last part of their names) are to be found; what is not in it is no link.
        level: what a heading ``#`` becomes: 3 for ``<h3>``.

    Raises:
        ValueError: a formula that `sim.tex` does not know.
    """
    parser = MarkdownIt("commonmark").enable("table")
    for plugin in (deflist_plugin, myst_block_plugin, myst_role_plugin):
        parser.use(plugin)
    parser.use(dollarmath_plugin, double_inline=False, renderer=_formula)
    parser.add_render_rule("math_block", _math_block)
    parser.add_render_rule("myst_target", _label)
    parser.add_render_rule("myst_role", lambda renderer, tokens, k, options, env: _role(tokens[k], addresses))
    parser.add_render_rule("table_open", lambda *rest: '<div class="scroll"><table class="matrix">\n')
    parser.add_render_rule("table_close", lambda *rest: "</table></div>\n")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + level - 1)}"
    return parser.renderer.render(tokens, parser.options, {})


def formulas(text: str) -> list[str]:
    """The TeX of a page's formulas."""
    return [display or inline for display, inline in FORMULA.findall(text)]


def _formula(source: str, style: dict) -> str:
    return tex.to_html(source.strip(), display=style["display_mode"])


def _math_block(renderer: RendererHTML, tokens, k: int, options, env) -> str:
    return f'<div class="claim">{_formula(tokens[k].content, {"display_mode": True})}</div>\n'


def _label(renderer: RendererHTML, tokens, k: int, options, env) -> str:
    return f'<a id="{html.escape(tokens[k].content)}"></a>'


def _role(token, addresses: Mapping[str, str]) -> str:
    """A role: a link where its target has an address, else its words."""
    named = re.fullmatch(r"(?P<words>.*?)\s*<(?P<target>.*)>", token.content, re.DOTALL)
    words, target = (named["words"], named["target"]) if named else (token.content, token.content)
    role = token.meta["name"]
    if role not in ("doc", "ref"):
        return f"<code>{html.escape(target.removeprefix('~'))}</code>"
    target = target.rpartition("/")[2]
    words = html.escape(words.rpartition("/")[2] if role == "doc" else words)
    return f'<a href="{html.escape(addresses[target])}">{words}</a>' if target in addresses else words

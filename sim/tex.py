"""TeX to MathML: formulas that a browser renders by itself, with no script, no web font and no network.

latex2mathml does the parsing. What it leaves to fonts and attributes that browsers do not honour (MathML Core) is repaired
here on the element tree: limits under `lim` and `max`, spaces around function names, unary signs, primes, bold digits,
upright capital Greek letters, column alignment. Anything it did not understand is an error, not a silent backslash.
"""

import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from latex2mathml.converter import convert

THIN = "0.167em"
"""TeX's thin space, which it puts around function names."""

_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
_WITH_LIMITS = {"lim", "max", "min", "sup", "inf", "argmax", "argmin"}
_SCRIPTS = {"msub", "msup", "msubsup", "munder", "mover", "munderover"}
_PRIMES = {"\u2032", "\u2033", "\u2034"}
_SIGNS = {"+", "\u2212", "-", "\u00b1", "\u2213"}
_CLOSING = {")", "]", "}", "|", "\u2016", "!"}
_ORDINARY = {"\u221e", "\u2205", "\u2207", "\u2202", "\u2113"}
_BARS = {"|": "|", "\u2016": "\u2016", "/": "/"}


def to_html(tex: str, *, display: bool) -> str:
    r"""A formula as a ``<math>`` element, with its TeX as annotation.

    Args:
        tex: math-mode TeX without delimiters, such as ``\tfrac12 \alpha^2``.
        display: a displayed formula (limits under operators, full-size fractions) rather than one within a line.

    Raises:
        ValueError: a command or an alignment that the converter does not know.
    """
    source = tex.replace("{aligned}", "{align*}").replace(r"\lVert", r"\|").replace(r"\rVert", r"\|")
    try:
        root = ET.fromstring(convert(source, display="block" if display else "inline"))
    except Exception as error:  # its parser's errors have no common class
        raise ValueError(f"tex: expected TeX that latex2mathml knows, got {tex!r} ({error!r})") from error
    for element in root.iter():
        element.tag = element.tag.removeprefix(_NAMESPACE)
        if "\\" in (element.text or ""):
            raise ValueError(f"tex: expected TeX that latex2mathml knows, got {element.text!r} in {tex!r}")
    _repair(root, display)
    row = root[0]  # the converter puts everything in one
    root.remove(row)
    semantics = ET.SubElement(root, "semantics")
    semantics.append(row)
    ET.SubElement(semantics, "annotation", encoding="application/x-tex").text = tex
    return ET.tostring(root, encoding="unicode")


def _repair(element: ET.Element, display: bool) -> None:
    for child in list(element):
        _repair(child, _style_within(element, child, display))
    for index, child in enumerate(list(element)):
        element[index] = _repaired(child, _style_within(element, child, display))
    if element.tag in {"mrow", "math", "mstyle", "mtd"}:
        _space(element)
        _join_upright(element)


def _style_within(parent: ET.Element, child: ET.Element, display: bool) -> bool:
    """Whether a child is set in display style: not in a fraction or a script, unless it says so itself."""
    own = child.get("displaystyle") or parent.get("displaystyle")
    if own is not None:
        return own == "true"
    in_script = parent.tag in _SCRIPTS and child is not parent[0]
    return display and parent.tag not in {"mfrac", "mtable"} and not in_script


def _repaired(element: ET.Element, display: bool) -> ET.Element:
    tag, text = element.tag, element.text or ""
    if tag in {"mi", "mo"}:
        _repair_symbol(element, text)
    elif tag == "mn" and element.get("mathvariant") == "bold":
        del element.attrib["mathvariant"]
        element.text = "".join(chr(0x1D7CE + int(c)) if c.isdigit() else c for c in text)
    elif tag == "mtd":
        align = element.attrib.pop("columnalign", "center")
        element.set("style", f"text-align: {align}")
    elif tag == "mtable" and "columnspacing" in element.attrib:
        del element.attrib["columnspacing"]
        for cell in element.iter("mtd"):
            side = "right" if "right" in cell.get("style", "") else "left"
            cell.set("style", f"text-align: {side}; padding-{side}: 0")
    elif tag == "msub" and display and element[0].text in _WITH_LIMITS:
        element.tag = "munder"
    elif tag == "msup" and (element[1].text or "") in _PRIMES:
        return _primed(element[0], element[1])
    elif tag == "msubsup" and (element[2].text or "") in _PRIMES:
        subscripted = ET.Element("msub")
        subscripted.extend([_primed(element[0], element[2]), element[1]])
        return subscripted
    elif tag == "mover" and element[1].text in {"\u2015", "\u00af"}:
        return _barred(element, "top")
    elif tag == "munder" and element[1].text in {"\u2015", "_"}:
        return _barred(element, "bottom")
    return element


def _primed(base: ET.Element, prime: ET.Element) -> ET.Element:
    """A prime beside its base: it is drawn raised already, and as a superscript would be raised twice."""
    row = ET.Element("mrow")
    row.append(base)
    ET.SubElement(row, "mo", lspace="0.05em", rspace="0", form="postfix").text = prime.text
    return row


def _barred(element: ET.Element, side: str) -> ET.Element:
    """A bar drawn as a border: the same in every font, where a stretched accent is not."""
    row = ET.Element("mrow", style=f"border-{side}: 0.06em solid; padding-{side}: 0.1em")
    row.append(element[0])
    return row


def _repair_symbol(element: ET.Element, text: str) -> None:
    if text in _ORDINARY:
        element.tag, element.attrib = "mi", {"mathvariant": "normal"} if text != "\u2113" else {}
    elif element.tag == "mo" and text.isalpha():
        element.tag, element.attrib = "mi", {"mathvariant": "normal"} if len(text) == 1 else {}
    elif text in _BARS:
        stretchy = element.get("stretchy", "false")
        element.attrib.update(lspace="0", rspace="0", stretchy=stretchy)
    elif element.tag == "mi" and len(text) == 1 and unicodedata.category(text) == "Sm" and text not in _PRIMES:
        element.tag = "mo"
        element.attrib.update(lspace="0.278em", rspace="0.278em")
    elif element.tag == "mi" and len(text) == 1 and "\u0391" <= text <= "\u03a9":
        element.set("mathvariant", "normal")


def _core(element: ET.Element) -> ET.Element:
    """The element that scripts are attached to."""
    while element.tag in _SCRIPTS:
        element = element[0]
    return element


def _is_name(element: ET.Element) -> bool:
    core = _core(element)
    return core.tag == "mi" and len(core.text or "") > 1


def _ends_operand(element: ET.Element) -> bool:
    core = _core(element)
    return core.tag not in {"mo", "mspace", "mtext"} or (core.tag == "mo" and core.text in _CLOSING)


def _space(row: ET.Element) -> None:
    """Thin spaces around function names, and signs that have no left operand made unary."""
    children = list(row)
    for element in children:
        row.remove(element)
    before: ET.Element | None = None
    for element, after in zip(children, [*children[1:], None], strict=True):
        unary = before is None or not _ends_operand(before)
        if element.tag == "mo" and element.text in _SIGNS and unary:
            element.attrib.update(form="prefix", lspace="0", rspace="0")
        if element.tag == "mo" and element.text == "\u22c5" and unary:
            element.tag = "mi"
        named = _is_name(element)
        if named and before is not None and _ends_operand(before):
            row.append(ET.Element("mspace", width=THIN))
        row.append(element)
        if named and after is not None and after.tag not in {"mo", "mspace"} and not _is_name(after):
            opens = after.tag == "mrow" and len(after) > 0 and after[0].tag == "mo"
            if not opens:
                row.append(ET.Element("mspace", width=THIN))
        before = element


def _join_upright(row: ET.Element) -> None:
    r"""Letters of one ``\mathrm`` as one identifier, so that they are set as a word."""
    for run in list(_upright_runs(row)):
        run[0].text = "".join(letter.text or "" for letter in run)
        run[0].attrib.pop("mathvariant")
        for letter in run[1:]:
            row.remove(letter)


def _upright_runs(row: ET.Element) -> Iterator[list[ET.Element]]:
    run: list[ET.Element] = []
    for element in [*row, ET.Element("end")]:
        latin = element.tag == "mi" and element.get("mathvariant") == "normal" and (element.text or "").isascii()
        if latin:
            run.append(element)
            continue
        if len(run) > 1:
            yield run
        run = []

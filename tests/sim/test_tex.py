"""TeX to MathML: what browsers need repaired is, and what is not understood is refused."""

import xml.etree.ElementTree as ET

import pytest

from sim.tex import to_html
from theory import REGISTRY

CLAIMS = [
    pytest.param(c.tex, id=f"{s.id}-{kind}") for s in REGISTRY.values() for kind, c in (("claim", s.claim), ("twin", s.twin))
]


def parse(tex, *, display=True):
    return ET.fromstring(to_html(tex, display=display))


@pytest.mark.parametrize("display", [True, False])
@pytest.mark.parametrize("tex", CLAIMS)
def test_every_claim_converts_and_keeps_its_tex(tex, display):
    root = parse(tex, display=display)
    assert root.get("display") == ("block" if display else "inline")
    assert root.find(".//annotation").text == tex


def test_limits_go_under_the_operator_in_display_style_only():
    tex = r"\lim_{\alpha \to \infty} x"
    assert parse(tex).find(".//munder") is not None
    assert parse(tex, display=False).find(".//munder") is None
    assert parse(rf"\frac{{1}}{{{tex}}}").find(".//munder") is None


@pytest.mark.parametrize(
    ("tex", "element", "attributes"),
    [
        (r"\mathbf{1}", "mn", {"text": "\U0001d7cf"}),
        (r"\Delta p", "mi", {"text": "Δ", "mathvariant": "normal"}),
        (r"\mathrm{CE}(f)", "mi", {"text": "CE"}),
        (r"z'", "mo", {"text": "′", "form": "postfix"}),
        (r"x \to -\infty", "mo", {"text": "−", "form": "prefix"}),
        (r"|C|", "mo", {"text": "|", "lspace": "0", "rspace": "0"}),
        (r"\pi_j \operatorname{Var}_j(M)", "mspace", {"width": "0.167em"}),
        (r"\begin{cases} a & b \\ c & d \end{cases}", "mtd", {"style": "text-align: left"}),
        (r"\overline{M}", "mrow", {"style": "border-top: 0.06em solid; padding-top: 0.1em"}),
    ],
)
def test_what_browsers_do_not_honour_is_spelled_out(tex, element, attributes):
    elements = [{"text": node.text, **node.attrib} for node in parse(tex).iter(element)]
    assert any(attributes.items() <= attributes_of_element.items() for attributes_of_element in elements)


def test_a_minus_between_operands_stays_binary():
    assert all(operator.get("form") is None for operator in parse("|a| - b").iter("mo"))


@pytest.mark.parametrize("tex", [r"\unknowncommand x", r"a & b", r"x_1_2"])
def test_what_is_not_understood_is_refused(tex):
    with pytest.raises(ValueError, match=r"^tex: expected TeX that latex2mathml knows, got"):
        to_html(tex, display=True)

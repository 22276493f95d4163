"""Tables of pages sort and filter in a browser, by mouse and keyboard, and no page is wider than a phone."""

from dataclasses import replace

import pytest

from sim.checks import report
from sim.checks.verify import Verdict
from theory import REGISTRY
from theory.routes import Evidence

NAMES = list(REGISTRY)[:12]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of verdicts: twelve statements whose margins fall from row to row, and one that fails."""
    evidence = [Evidence("instances", k != 3, 10 * k + 1, 10.0 ** -(k + 1), 0.1) for k in range(len(NAMES))]
    verdicts = [
        Verdict(REGISTRY[name], (found,), (replace(found, holds=False),))
        for name, found in zip(NAMES, evidence, strict=True)
    ]
    return report.write_verification(tmp_path_factory.mktemp("pages"), verdicts, {})


def names(window):
    """The statements in the rows that are shown, from the first on."""
    rows = "[...document.querySelectorAll('table.sortable tbody tr')].filter(r => !r.hidden)"
    return window.value(f"{rows}.map(r => r.querySelector('code').textContent)")


def click(window, heading):
    window.value(
        f"[...document.querySelectorAll('table.sortable th button')].find(b => b.textContent === '{heading}').click()"
    )


def test_a_table_sorts_by_words_and_by_numbers(window, page):
    window.open(page)
    assert names(window) == NAMES
    click(window, "false twin")
    click(window, "Statement")
    first = names(window)
    assert sorted(first) == sorted(NAMES)
    assert first != NAMES
    click(window, "Statement")
    assert names(window) == first[::-1]
    assert window.value("document.querySelector('th[aria-sort]').textContent") == "Statement"
    assert window.problems == []


def test_a_table_shows_the_rows_with_some_words(window, page):
    window.open(page, width=390)
    window.value(
        "const f = document.querySelector('label.filter input'); f.value = 'fails'; f.dispatchEvent(new Event('input'))"
    )
    assert names(window) == [NAMES[3]]
    assert "1 of 12" in window.value("document.querySelector('label.filter').textContent")
    window.value("const g = document.querySelector('label.filter input'); g.value = ''; g.dispatchEvent(new Event('input'))")
    assert names(window) == NAMES


def test_a_heading_is_pressed_by_the_keyboard(window, page):
    window.open(page)
    window.value("document.querySelector('th button').focus()")
    window.press("Enter")
    assert window.value("document.querySelector('th').getAttribute('aria-sort')") == "ascending"


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_no_wider_than_its_window(window, page, width):
    for file in (page, page.parent / "statements" / f"{NAMES[0]}.html"):
        window.open(file, width=width)
        assert window.value("document.documentElement.scrollWidth") <= width
    assert window.problems == []

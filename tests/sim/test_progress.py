"""Bars on a terminal, lines elsewhere."""

import io

import pytest

from sim import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass at will, for the lines; the bar has its own clock."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(monkeypatch, clock):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with progress.bar(total=5, desc="work", mininterval=0) as bar:
        for k in range(5):
            clock[0] += 20
            bar.set_postfix_str(f"step {k}", refresh=False)
            bar.update()
    lines = log.getvalue().splitlines()
    assert [line[: line.index(",")] for line in lines] == ["ufm: work: 2 of 5", "ufm: work: 4 of 5"]
    assert all("so far" in line and "left" in line for line in lines)
    assert "step 3" in lines[1]


def test_short_work_is_silent_in_a_log_and_a_bar_on_a_terminal(monkeypatch):
    log, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stderr", log)
    assert list(progress.bar(range(3), desc="work")) == [0, 1, 2]
    assert log.getvalue() == ""
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress.bar(range(3), desc="work")) == [0, 1, 2]
    assert "3/3" in terminal.getvalue()


def test_bars_that_are_asked_for_or_not_are_bars_or_nothing(monkeypatch):
    for shown in (True, False):
        log = io.StringIO()
        monkeypatch.setattr("sys.stderr", log)
        assert list(progress.bar(range(3), shown=shown)) == [0, 1, 2]
        assert ("3/3" in log.getvalue()) == shown

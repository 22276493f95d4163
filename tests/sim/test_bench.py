"""The benchmark's cases at a small size: they run, and report what they say they report."""

import pytest

from sim import bench


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "VOCABULARY", 60)
    monkeypatch.setattr(bench, "CONCEPTS", 5)
    monkeypatch.setattr(bench, "STRENGTHS", 101)
    monkeypatch.setattr(bench, "TOKENS", 10)
    monkeypatch.setattr(bench, "SMALL_CORPORA", 60)


@pytest.mark.parametrize("case", bench.CASES)
def test_cases_report_figures(small, case):
    figures = bench.CASES[case](0)
    assert figures["seconds"] > 0
    assert figures["peak MiB"] > 0


def test_the_trained_model_is_trained(small):
    assert bench.measured_at_scale(0)["gap"] < 1e-3


def test_table_names_every_figure():
    results = {"cases": {"many-small-corpora": {"seconds": 1.5, "peak MiB": 20.0}}}
    table = bench.as_table(results)
    assert "many-small-corpora" in table
    assert "peak MiB" in table

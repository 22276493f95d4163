"""The benchmark's cases at a small size: they run, and report what they say they report."""

import jax
import pytest

from sim import bench, bench_half
from sim.bridge import fetch


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "VOCABULARY", 60)
    monkeypatch.setattr(bench, "CONCEPTS", 5)
    monkeypatch.setattr(bench, "STRENGTHS", 101)
    monkeypatch.setattr(bench, "TOKENS", 10)
    monkeypatch.setattr(bench, "SMALL_CORPORA", 60)
    monkeypatch.setattr(bench, "PROMPT_TOKENS", 3)
    monkeypatch.setattr(bench, "SWEPT", 2)
    monkeypatch.setattr(bench, "SWEPT_LONG", 3)


@pytest.mark.parametrize("case", ["predicted-at-scale", "measured-at-scale", "many-small-corpora"])
def test_cases_report_figures(small, case):
    figures = bench.CASES[case](0)
    assert figures["seconds"] > 0
    assert figures["peak MiB"] > 0


needs_model = pytest.mark.skipif(not fetch.default_model().is_file(), reason="SmolLM2 is not in the cache: ufm fetch")


@needs_model
@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_parameters(small):
    figures = bench.CASES["loading"](0)
    assert figures["seconds, with imports"] > 0
    # 1.2 where nothing else runs; two copies would be 2.
    assert 1 < figures["peak of loading / parameters"] < 1.6


@pytest.mark.slow
@needs_model
def test_a_language_model_is_swept_without_transformers_too(small, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with jax.enable_x64(False):
        figures = bench.CASES["language-model"](0)
    assert figures["last block, seconds"] < figures["all layers, seconds"]
    assert figures["3 strengths, middle"] > 0
    assert not any("ratio" in name for name in figures)


@pytest.mark.slow
@needs_model
def test_a_half_type_keeps_two_digits(monkeypatch):
    for name, value in {"TEXTS": 2, "WRITTEN": 12, "STRENGTHS": 5, "NEW": 3, "SIZE": 64, "RUNS": 1}.items():
        monkeypatch.setattr(bench_half, name, value)
    with jax.enable_x64(False):
        figures = bench.CASES["half-types"](0)
    assert figures["next-token, ratio"] > 0
    for measure in ("KL of the next token", "KL on a text", "rise of the cross-entropy", "curvature of KL"):
        assert 0 < figures[f"{measure}, median error"] < 0.05 * figures[f"{measure}, size"]
    assert 0 < figures["vector, 1 less its cosine"] < 1e-3


def test_the_trained_model_is_trained(small):
    assert bench.measured_at_scale(0)["gap"] < 1e-3


def test_table_names_every_figure():
    results = {"cases": {"many-small-corpora": {"seconds": 1.5, "peak MiB": 20.0}}}
    table = bench.as_table(results)
    assert "many-small-corpora" in table
    assert "peak MiB" in table

"""The notebooks run from the first cell to the last; the toy's print what they are committed with."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import pytest

import sim
from sim.bridge import fetch
from sim.bridge.architectures import from_config
from sim.experiments import corpora
from tests.docs.running import printed_by

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
TOY = {"theorist", "reader"}


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def printed_before(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def execute(path: Path) -> list[tuple[str, str]]:
    """Run the code cells in order; what each was committed with, and what it prints now."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    pairs = []
    for number, cell in enumerate(code_cells(path)):
        code = compile(source(cell), f"{path.name}, code cell {number}", "exec")
        pairs.append((printed_before(cell), printed_by(code, namespace)))
    plt.close("all")
    return pairs


@pytest.fixture(autouse=True)
def settings_are_put_back():
    """A notebook may choose float64 for itself."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


def small_model(path: Path) -> sim.LanguageModel:
    """A random model whose tokenizer has a token for every word that the notebook quotes."""
    text = "\n".join(source(cell) for cell in code_cells(path))
    quoted = re.findall(r'" (\w+)"', text)
    tokenizer = corpora.train_tokenizer([text, *[f" {word}" * 60 for word in quoted]], 500)
    config = {
        "model_type": "gpt2",
        "vocab_size": tokenizer.size,
        "n_embd": 16,
        "n_layer": 21,
        "n_head": 2,
        "n_positions": 256,
    }
    return replace(sim.random_model(from_config(config), jax.random.key(0)), tokenizer=tokenizer)


def test_there_is_one_for_every_kind_of_user():
    assert [path.stem for path in NOTEBOOKS] == ["engineer", "reader", "student", "theorist"]


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem in TOY], ids=lambda path: path.stem)
def test_the_toy_prints_what_it_is_committed_with(path):
    for before, now in execute(path):
        assert now == before


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem not in TOY], ids=lambda path: path.stem)
def test_notebooks_of_language_models_run(path, monkeypatch):
    lm = small_model(path)
    monkeypatch.setattr(sim, "load", lambda *_, **__: lm, raising=False)
    assert len(execute(path)) == len(code_cells(path))


@pytest.mark.slow
@pytest.mark.skipif(not fetch.default_model().is_file(), reason="SmolLM2 is not in the cache: ufm fetch")
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem not in TOY], ids=lambda path: path.stem)
def test_notebooks_run_on_the_real_model(path):
    assert all(now for before, now in execute(path) if before)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_the_machine_is_in_a_notebook(path):
    text = path.read_text()
    assert not re.search(r"/(?:home|root|tmp|work)/|stderr|Traceback", text)
    assert len(text) < 300_000

"""A tiny model with a tokenizer, one run of all stages with it, and a tiny trained GPT: shared by all tests."""

import os

import filelock
import jax
import pytest

from sim.experiments import corpora
from sim.experiments.gpt.training import TrainingSettings, train
from tests.sim.experiments import tiny

SENTENCES = [f"the {animal} sat on the {place}. " for animal in ("cat", "dog", "fox") for place in ("mat", "hill", "log")]
DOCUMENTS = corpora.in_both_cases([6 * sentence for sentence in SENTENCES])
TINY = TrainingSettings(
    d_model=16, num_heads=2, vocab_size=300, length=12, batch=4, steps=8, warm_up=1, rate=1e-2, every=3, held_out=0.2
)


@pytest.fixture(scope="session")
def lm():
    """The model that is steered."""
    with jax.enable_x64(False):
        return tiny.model(0)


@pytest.fixture(scope="session")
def judge():
    """Another model, which often says 0 or 1."""
    with jax.enable_x64(False):
        return tiny.judging()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of compiled programs for processes that are killed, which may leave some unfinished."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def done(lm, judge, tmp_path_factory):
    """All stages, run without an interruption in a process of its own, once for all workers of pytest-xdist."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    with filelock.FileLock(place / "tiny.lock"):
        if not (place / "tiny.done").exists():
            assert tiny.started(place / "tiny", jax.config.jax_compilation_cache_dir).wait() == 0
            (place / "tiny.done").touch()
    with jax.enable_x64(False):
        return tiny.start(place / "tiny", lm, judge)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The model, and the folder of its training."""
    folder = tmp_path_factory.mktemp("gpt")
    with jax.enable_x64(False):
        return train(folder, DOCUMENTS, TINY, progress=False), folder

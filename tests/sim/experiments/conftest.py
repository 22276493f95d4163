"""A tiny GPT, trained for a few steps on a few sentences in both cases."""

import jax
import pytest

from sim.experiments import corpora
from sim.experiments.training import Settings, train

SENTENCES = [f"the {animal} sat on the {place}. " for animal in ("cat", "dog", "fox") for place in ("mat", "hill", "log")]
DOCUMENTS = corpora.in_both_cases([6 * sentence for sentence in SENTENCES])
TINY = Settings(width=16, heads=2, vocabulary=300, length=12, batch=4, steps=8, warm_up=1, rate=1e-2, every=3, held_out=0.2)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The model, and the folder of its training."""
    folder = tmp_path_factory.mktemp("gpt")
    with jax.enable_x64(False):
        return train(folder, DOCUMENTS, TINY, progress=False), folder

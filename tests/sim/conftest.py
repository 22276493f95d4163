"""Small models of every family, as checkpoints and loaded."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import ufm
from sim.bridge.model import load
from tests import browser
from tests.sim.bridge import references

IN_FLOAT32 = {"bridge", "directions", "experiments", "figures", "measure", "test_validation.py"}
"""Language models run in float32, as users run them, on the device that is there."""


@pytest.fixture(autouse=True)
def float64(request):
    with jax.enable_x64(False) if IN_FLOAT32.intersection(request.path.parts) else ufm.in_float64():
        yield


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """A page in a browser without a window."""
    if browser.PROGRAM is None:
        pytest.skip("no Chromium: looked for " + ", ".join(browser.NAMES))
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def kept():
    """The reference logits, and the configurations and shapes under "about"."""
    with np.load(references.FILE) as file:
        arrays = {name: file[name] for name in file.files}
    return {**arrays, "about": json.loads(bytes(arrays["about"]))}


@pytest.fixture(scope="session")
def checkpoint(kept, tmp_path_factory):
    """The folder of a small model, by the name of its configuration."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("model")
            about = kept["about"][name]
            (folders[name] / "config.json").write_text(json.dumps(about["config"]))
            save_file(references.weights(about["shapes"]), folders[name] / "model.safetensors")
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def small(checkpoint):
    """A small model, loaded, by the name of its configuration."""
    models = {}

    def model(name):
        if name not in models:
            with jax.enable_x64(False):
                models[name] = load(checkpoint(name), progress=False)
        return models[name]

    return model

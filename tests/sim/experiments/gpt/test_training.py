"""Training a small GPT: the loss is the cross-entropy, an interruption changes nothing, and bad input is refused."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim.bridge.model import load
from sim.experiments.gpt import training
from sim.experiments.gpt.training import batch, finished, prepare, train
from tests.sim.experiments.conftest import DOCUMENTS, TINY


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


def test_the_loss_falls_and_is_kept(trained):
    result, folder = trained
    assert result.losses.shape == (TINY.steps,)
    assert result.losses[-2:].mean() < result.losses[:2].mean() - 0.2
    assert json.loads((folder / "losses.json").read_text()) == pytest.approx(result.losses.tolist())
    assert not (folder / "steps").exists()
    assert 0 < result.held_out < result.losses[0]


def test_the_loss_is_the_cross_entropy_of_the_model(trained):
    result, _ = trained
    words, tokens, _ = prepare(DOCUMENTS, TINY)
    rows = batch(tokens, TINY, 3)
    expected = []
    for row, logits in zip(rows, result.model.logits([row[:-1].tolist() for row in rows]), strict=True):
        log_q = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        expected.append(-log_q[np.arange(TINY.length), row[1:]].mean())
    got = training.loss(result.model.config, result.model.parameters, jnp.asarray(rows))
    assert float(got) == pytest.approx(np.mean(expected), rel=1e-5)
    assert words.encode("the cat") == result.model.tokenizer.encode("the cat")


def test_an_interrupted_training_goes_on_with_the_same_numbers(trained, tmp_path, monkeypatch):
    real, done = training._step, []

    def interrupted(*arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, DOCUMENTS, TINY, progress=False)
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(training, "_step", lambda *arguments: done.append(1) or real(*arguments))
    again = train(tmp_path, DOCUMENTS, TINY, progress=False)
    assert len(done) == 5 + TINY.steps - 3  # from the checkpoint after step 3
    np.testing.assert_array_equal(again.losses, trained[0].losses)
    for name, value in again.model.parameters.items():
        np.testing.assert_array_equal(value, trained[0].model.parameters[name], err_msg=name)


def test_what_is_there_is_not_trained_again(trained, monkeypatch):
    monkeypatch.setattr(training, "_step", None)
    again = train(trained[1], DOCUMENTS, TINY, progress=False)
    assert again.model.fingerprint == trained[0].model.fingerprint == load(trained[1] / "model").fingerprint


def test_a_folder_of_another_training_is_refused(trained):
    with pytest.raises(ValueError, match=r"^folder: .*rate 0\.01 there, 0\.02 here"):
        train(trained[1], DOCUMENTS, replace(TINY, rate=2e-2), progress=False)
    with pytest.raises(ValueError, match=r"folder: .*got text"):
        train(trained[1], DOCUMENTS[::-1], TINY, progress=False)


def test_a_training_that_diverges_is_stopped_and_says_what_is_kept(tmp_path):
    wrong = r"training: expected finite losses and parameters, got others at step .*; the state of step .* is kept in"
    with pytest.raises(ValueError, match=wrong):
        train(tmp_path, DOCUMENTS, replace(TINY, rate=1e30, clip=1e30, every=1), progress=False)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"d_model": 17}, "d_model: expected a multiple of the 2 heads, got 17"),
        ({"warm_up": 8}, "warm_up: expected fewer than the 8 steps, got 8"),
        ({"held_out": 1.0}, "held_out: expected a share between 0 and 1, got 1.0"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_too_little_text(tmp_path):
    with pytest.raises(ValueError, match=r"^documents: .*12 tokens"):
        train(tmp_path, ["a few words"], TINY, progress=False)


def test_a_training_that_is_done_is_opened_with_its_text(trained):
    result, folder = trained
    opened = finished(folder, DOCUMENTS)
    assert opened.settings == TINY
    assert opened.model.fingerprint == result.model.fingerprint
    _, tokens, held_out = prepare(DOCUMENTS, TINY)
    np.testing.assert_array_equal(opened.training, tokens)
    np.testing.assert_array_equal(opened.held_out, held_out)


def test_what_is_no_training_that_is_done_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"^model: .*ufm lm train .*got '.*'"):
        finished(tmp_path, DOCUMENTS)
    with pytest.raises(ValueError, match=r"^text: .*trained on.*got others"):
        finished(trained[1], DOCUMENTS[::-1])
    (tmp_path / "model").mkdir()
    (tmp_path / "training.json").write_text('{"family": "gpt2", "num_layers": 1}')
    with pytest.raises(ValueError, match=r"training\.json: .*got none of d_model"):
        finished(tmp_path, DOCUMENTS)

"""What a run takes: cells as the store has them, operations as XLA counts them, and time from what was measured."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim import cli
from sim.bridge import sharding
from sim.bridge.architectures import from_config
from sim.bridge.model import random_model
from sim.bridge.parameters import parameter_bytes
from sim.bridge.sharding import bytes_on_each
from sim.bridge.split import all_logits
from sim.experiments import estimate as estimate_module
from sim.experiments.estimate import (
    STAGES,
    Card,
    FromHost,
    Rates,
    Shape,
    StageCost,
    count,
    count_for,
    estimate,
    is_worth_measuring,
    measure_rates,
    rates_on,
    trials_of,
)
from sim.experiments.run import STAGE_OF_GROUP, foresee, in_order, prepare
from sim.experiments.store import read_store
from tests.sim.experiments import tiny


def test_cells_are_those_of_the_store(done):
    made: dict[str, int] = {}
    for group in done.store.groups:
        stage = group if group in STAGES else STAGE_OF_GROUP[group.split("-")[0]]
        # Beside completions lie a few small groups.
        if group not in ("judge", "lexicon"):
            made[stage] = made.get(stage, 0) + done.store.done(group)[1]
    counted = {name: work.cells for name, work in count(done).items()}
    assert {name: counted[name] for name in made} == made


@pytest.mark.parametrize("tokens", [8, 64])
def test_operations_are_those_that_xla_counts(tokens):
    a = from_config(
        {
            "model_type": "llama",
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        }
    )
    lm = random_model(a, jax.random.key(0))
    ids, mask = jnp.zeros((3, tokens), jnp.int32), jnp.ones((3, tokens), bool)
    analysis = jax.jit(all_logits).lower(lm.decoder, ids, mask).compile().cost_analysis()
    shape = Shape(a)
    # Norms, softmax and rotations are left out.
    assert shape.read(3, tokens, 1) + shape.logits(3 * tokens) == pytest.approx(analysis["flops"], rel=0.15)


def test_seconds_are_of_reading_writing_and_compiling():
    rates = Rates(operations=1e9, step=(0.1, 0.4), together=4, program=2.0)
    assert rates.seconds(StageCost(1, 3e9, (), 2)) == pytest.approx(3 + 4)
    assert rates.seconds(StageCost(1, 0.0, ((10, 1), (5, 4)), 0)) == pytest.approx(1 + 2)
    assert rates.seconds(StageCost(1, 0.0, ((10, 2),), 0)) == pytest.approx(2)


def test_groups_share_cells():
    work = StageCost(5, 10.0, ((8, 2),) * 5)
    assert work.of_one(1) == work
    assert work.of_one(2) == StageCost(5, 6.0, ((8, 2),) * 3)
    assert work.of_one(8) == StageCost(5, 2.0, ((8, 2),))


def test_what_is_done_is_left_out(done, lm, judge, tmp_path, monkeypatch):
    rates = Rates(1e9, (0.1, 0.2), 2, 1.0)
    monkeypatch.setattr(estimate_module, "measure_rates", None)
    assert estimate(done, in_order()).stages == ()
    assert estimate(done, in_order()).total == 0
    fresh = estimate(tiny.start(tmp_path / "run", lm, judge), in_order(), rates)
    assert list(fresh.stages) == in_order()
    assert fresh.total == pytest.approx(sum(rates.seconds(work) for work in fresh.work))
    text = str(fresh)
    assert all(name in text for name in fresh.stages)
    assert "on each device" in text


def test_what_is_left_is_foretold(done, lm, judge, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimate_module, "measure_rates", lambda lm, trials: Rates(1e9, (0.1, 0.2), trials.together, 1.0))
    fresh = tiny.start(tmp_path / "run", lm, judge)

    def told(experiment, stages, preset=None):
        cli._foretell(experiment, in_order(stages), preset, 1)
        return capsys.readouterr().err

    assert all(f"\n{name} " in told(fresh, None) for name in in_order())
    trial = "ufm: all stages of the preset smoke take about two minutes with the default model on two cores\n"
    assert told(fresh, None, "smoke") == told(fresh, ["mmlu"], "smoke") == trial
    # What is trained is of no known time.
    table = told(fresh, ["preference-utility"], "smoke")
    assert [line.split()[0] for line in table.splitlines()[2:-1]] == ["train-update", "preference-utility"]
    assert told(done, None) == told(done, ["concept"], "smoke") == ""


def test_little_work_is_not_measured(lm, judge, tmp_path, monkeypatch, capsys):
    """What trials of the speed are, is counted like the work itself."""
    monkeypatch.setattr(estimate_module, "measure_rates", None)
    fresh = tiny.start(tmp_path / "run", lm, judge)
    cli._foretell(fresh, ["blocks"], None, 1)
    assert capsys.readouterr().err == "ufm: what is left takes no longer here than measuring its time would\n"
    work, shape = STAGES["vectors"](fresh), Shape(lm.config)
    trials = trials_of(lm, [work])
    assert trials == (96, 8, 64, 2, 8, 4)
    # Four times a sweep, two prompts of 64 tokens, and 8 tokens of one sequence and of two.
    token = shape.read(1, 1, 3) + shape.logits(1)
    measuring = 4 * (trials.sweep(shape) + 2 * shape.read(1, 64, 3) + 24 * token)
    for factor, worth in ((1.4, False), (1.6, True)):
        left = StageCost(1, factor * measuring)
        monkeypatch.setitem(STAGES, "vectors", lambda experiment, left=left: left)
        assert is_worth_measuring(fresh, ["vectors"]) is worth


def test_rates_are_measured(lm):
    rates = measure_rates(lm, trials_of(lm, [StageCost(1, 1.0, ((3, 2), (3, 4)))]))
    assert np.isfinite(rates.operations)
    assert rates.operations > 0
    assert rates.together == 4
    assert 0 < rates.step[0] < 10
    assert rates.program >= 0


def test_a_dry_run_leaves_nothing(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "BLOCKS_AT_ONCE", 2)
    model = lm.save(tmp_path / "model")
    arguments = {"model": str(model), "preset": "smoke"}
    changes = {"concept.prompts": 1, "next_token.kept": 5}
    told = foresee(tmp_path / "run", ["vectors"], **arguments, changes=changes)
    assert told.stages == ("prompts", "vectors")
    offloaded = foresee(tmp_path / "run", ["vectors"], **arguments, changes=changes, offload=True)
    a = lm.config
    assert told.memory - offloaded.memory == parameter_bytes(a, "float32") - bytes_on_each(a, "float32", offload=True) > 0
    assert not (tmp_path / "run").exists()
    # A run that has begun and computed nothing keeps its settings.
    begun = prepare(tmp_path / "run", **arguments, changes=changes)
    foresee(tmp_path / "run", ["vectors"], changes={"seed": 7})
    assert read_store(tmp_path / "run").about == begun.store.about
    with pytest.raises(ValueError, match=r"^stage: .*got nothing"):
        foresee(tmp_path / "run", ["nothing"], **arguments)


def test_memory_counts_the_judge(done, lm, judge):
    alone, both = (estimate(replace(done, judge=each), []).memory for each in (lm, judge))
    assert both - alone == parameter_bytes(judge.config, "float32") > 0


def test_a_model_whose_weights_are_not_at_hand_is_counted_alike(done):
    counted = count_for(done.lm.config, done.tokenizer, done.settings, done.inputs)
    own = replace(done, judge=done.lm)
    assert counted == count(own)


def test_rates_of_a_group_of_cards():
    a = from_config({"model_type": "gpt2", "vocab_size": 100, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64})
    card = Card(reading=1e12, writing=1e12, bandwidth=1e9, link=1e9)
    one, four = (rates_on(card, a, model=model, together=8) for model in (1, 4))
    assert one.operations == pytest.approx(1e12)
    assert one.step[0] == pytest.approx(parameter_bytes(a, "bfloat16") / 1e9)
    # Three of four parts of 32 numbers of 2 bytes, twice, for both outputs of 3 blocks.
    link = 6 * 2 * 0.75 * 32 * 2 / 1e9
    assert four.step[0] == pytest.approx(one.step[0] / 4 + link)
    each = 3 * Shape(a).block
    assert each / four.operations == pytest.approx(each / 4e12 + link)
    # Half as many parameters as operations, of 2 bytes, for every token that is written, and for every 50 that are read.
    coming = rates_on(card, a, together=8, offload=FromHost(bandwidth=1e8, tokens=50))
    assert coming.step[0] == pytest.approx(one.step[0] + each / 1e8)
    assert each / coming.operations == pytest.approx(each / 1e12 + each / 1e8 / 50)

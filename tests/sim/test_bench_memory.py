"""The memory that programs need, counted for a tiny model."""

from math import isfinite

import jax

from sim.bench_memory import CompiledSizes, measured
from tests.sim.test_bench_gpu import TINY

MODEL = TINY | {"vocab_size": 4000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}


def counted(**sizes):
    small = {"prompt": 8, "blocks": 2, "block": 8, "together": 2, "max_new_tokens": 4, "kept": 5}
    with jax.enable_x64(False):
        return measured(MODEL, CompiledSizes(**small | sizes))


def test_a_sweep_takes_as_much_as_its_budget_whatever_the_strengths():
    figures = counted(budget=2**17, strengths=(32, 128, 512))
    assert all(isfinite(value) and value > 0 for value in figures.values())
    for name in ("next-token", "cross-entropy"):
        few, more, many = (figures[f"{name}, {k} strengths"] for k in (32, 128, 512))
        # What is kept of each strength grows, and nothing else: a batch is of as many strengths as fit.
        assert many - more < 0.3 * few, name
        assert many < 1.6 * few, name


def test_no_program_gives_the_parameters_back():
    """Here they are in float32, and take twice as much."""
    figures = counted(budget=2**10, strengths=(3,))
    parameters = figures.pop("parameters in bfloat16")
    assert all(value < parameters for value in figures.values()), figures

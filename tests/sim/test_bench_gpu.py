"""The benchmark of accelerators, on a tiny model and on whatever device there is."""

import math

import jax
import pytest

from sim import bench, bench_gpu
from sim.bench_gpu import Sizes

TINY = {
    "model_type": "qwen3",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
SMALL = Sizes(
    matrix=64,
    prompt=5,
    strengths=5,
    blocks=2,
    block=6,
    costs=3,
    texts=2,
    text=4,
    together=2,
    max_new_tokens=3,
    batch=2,
    kept=4,
)
THEIRS = {"tiny": {"next-token, last block, full passes": 7.0, "generation of one, generate": 3.0}}


def test_every_work_is_timed_beside_the_official_loop():
    with jax.enable_x64(False):
        figures = bench_gpu.measured({"tiny": TINY}, SMALL, THEIRS)
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    for what in ("first layer", "middle layer", "last block"):
        assert {f"tiny, next-token, {what}", f"tiny, next-token, {what}, share"} <= set(figures)
    assert {"bfloat16, TFLOP/s", "float32, TFLOP/s", "float32 fast, TFLOP/s"} <= set(figures)
    assert {f"tiny, {what}, offloaded" for what in bench_gpu.OFFLOADED} <= set(figures)
    assert figures["tiny, next-token, last block, full passes"] == 7
    assert figures["tiny, generation of one, generate"] == 3
    assert figures["tiny, generation together, tokens/s"] == pytest.approx(2 * 3 / figures["tiny, generation together"])


def test_operations_are_two_for_each_weight():
    from sim.bridge.architectures import from_config

    # Query and output 16 x 16, key and value 16 x 8, gate, up and down 16 x 24.
    assert bench_gpu.operations(from_config(TINY)) == (2 * (2 * 256 + 2 * 128 + 3 * 384), 2 * 16 * 50)
    block, unembedding = bench_gpu.operations(from_config(bench_gpu.MODELS["8B"]))
    assert 36 * block / 2 == pytest.approx(6.95e9, rel=0.01)
    assert unembedding / 2 == 4096 * 151_936


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is an accelerator")
def test_without_an_accelerator_it_is_skipped_with_a_word():
    assert bench_gpu.gpu() == {}
    assert "skipped" in bench.as_table({"cases": {"gpu": {}}})


@pytest.mark.parity
def test_the_official_loop_in_transformers():
    pytest.importorskip("transformers")
    seconds = bench_gpu.official(TINY, SMALL)
    assert len(seconds) == 10
    assert all(value > 0 for value in seconds.values())

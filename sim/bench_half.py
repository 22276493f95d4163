"""What bfloat16 gains in time and costs in digits, on the processor or card at hand.

SmolLM2 does the work of the experiments' stages in float32 and in bfloat16, weights and computation alike. What is measured
on the way is compared: on text that the model writes, steered along the joy of the library's texts, up to the strengths
that people use.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import ufm
from sim.bench_choosing import prompts
from sim.bench_gpu import median_seconds, seconds_of
from sim.bridge import fetch
from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel, load
from sim.choosing.rollouts import Writer
from sim.directions.extraction import make_vector
from sim.directions.texts import concept_pairs
from sim.measure import losses
from ufm import Add, Steering

TYPES = ("float32", "bfloat16")

TEXTS, WRITTEN = 16, 84
"""How many texts, and how many tokens of each the model writes."""

REACH, STRENGTHS = 6.0, 33
"""Strengths of the joy of the texts, in either direction: at 3.2 the 95th percentile of KL is 1 nat."""

TOKENS = 20
"""How many of the likeliest tokens are looked at."""

NEW = 32
"""Tokens that are generated."""

SIZE, RUNS = 2048, 3
"""Rows and columns of the matrices whose product is timed; and how often each work is timed."""


def half_types(seed: int = 0) -> dict[str, float]:
    """SmolLM2 in float32 and in bfloat16: seconds of each stage's work, and how far apart what is measured is."""
    models = {name: load(fetch.NAME, dtype=name, progress=False) for name in TYPES}
    exact = models["float32"]
    begun = Writer.of(exact, prompts(held_out=False)[:TEXTS], WRITTEN).prompts
    written = exact.generate(begun, max_new_tokens=WRITTEN, sampling=Sampling(1.0), seed=seed, stop=False)
    texts = [[*prompt, *new] for prompt, new in zip(begun, written.tokens, strict=True)]
    middle = exact.config.num_layers // 2
    vectors = {name: make_vector(lm, pairs=concept_pairs("joy"), name="joy", progress=False) for name, lm in models.items()}
    v, rounded_v = (np.asarray(vector[middle], float) for vector in vectors.values())
    work = {name: _work(lm, texts, Steering({middle: Add(jnp.asarray(v, jnp.float32))})) for name, lm in models.items()}

    figures = {f"{name}, product in Gflop/s": _product_rate(name) for name in TYPES}
    for stage in work["float32"]:
        seconds = _alternately(work["float32"][stage], work["bfloat16"][stage])
        figures |= {f"{stage}, float32 seconds": seconds[0], f"{stage}, bfloat16 seconds": seconds[1]}
        figures[f"{stage}, ratio"] = seconds[0] / seconds[1]
    likeliest = np.argsort(np.mean([rows[-1] for rows in exact.logits(texts)], axis=0))[-TOKENS:].tolist()
    truth, rounded = (_measures(lm, texts, middle, v, likeliest) for lm in models.values())
    for measure, values in truth.items():
        error = np.abs(rounded[measure] - values)
        figures |= {
            f"{measure}, size": float(np.median(np.abs(values))),
            f"{measure}, median error": float(np.median(error)),
        }
        figures[f"{measure}, largest error"] = float(error.max())
    cosine = v @ rounded_v / np.linalg.norm(v) / np.linalg.norm(rounded_v)
    return figures | {"vector, 1 less its cosine": float(1 - cosine)}


def _work(lm: LanguageModel, texts: list[list[int]], steering: Steering) -> dict[str, Callable[[], Any]]:
    """The work of the stages, by name."""
    contexts, alphas = jnp.arange(1), np.linspace(-REACH, REACH, 2 * STRENGTHS - 1)
    rows, resolved = lm.split(texts[:2], last_only=False).resolve(steering)
    return {
        "next-token": lambda: ufm.divergence(lm.split(texts[:1]), contexts, steering, alphas),
        "cross-entropy": lambda: losses.increases(rows, resolved, jnp.asarray(alphas[::2], jnp.float32)),
        "states": lambda: lm.states(texts),
        "generation": lambda: lm.generate([text[:64] for text in texts], max_new_tokens=NEW, stop=False).tokens,
        "generation of one text": lambda: lm.generate([texts[0][:64]], max_new_tokens=NEW, stop=False).tokens,
    }


def _measures(lm: LanguageModel, texts: list[list[int]], layer: int, v: Any, tokens: list[int]) -> dict[str, Any]:
    """What is measured of a model, by name: nats, but for the increase of probabilities of some tokens."""
    steering, contexts = Steering({layer: Add(jnp.asarray(v, jnp.float32))}), np.arange(len(texts))
    alphas = np.linspace(-REACH, REACH, STRENGTHS)
    split = lm.split(texts)
    rise, cost = losses.increases(*lm.split(texts[:2], last_only=False).resolve(steering), jnp.asarray(alphas, jnp.float32))
    steered: Array = ufm.steer(split, jnp.asarray(contexts), steering, REACH / 2)
    return {
        "log-probability": np.asarray(jax.nn.log_softmax(steered))[:, tokens],
        "increase of probability": np.asarray(ufm.probability_increase(split, contexts, steering, alphas, tokens=tokens)),
        "KL of the next token": np.asarray(ufm.divergence(split, contexts, steering, alphas)),
        "curvature of KL": np.asarray(ufm.curvature(split, contexts, steering)),
        "rise of the cross-entropy": np.asarray(rise).mean(axis=-1),
        "KL on a text": np.asarray(cost).mean(axis=-1),
    }


def _product_rate(name: str) -> float:
    """The median rate of products of matrices of a type, with sums in float32, in 1e9 operations a second."""
    matrix = jnp.ones((SIZE, SIZE), name)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    return 2 * SIZE**3 / median_seconds(product, matrix, runs=3 * RUNS) / 1e9


def _alternately(*works: Callable[[], Any]) -> list[float]:
    """The median time of each of several works, by turns, after one that compiles."""
    for work in works:
        jax.block_until_ready(work())
    return np.median([[seconds_of(work) for work in works] for _ in range(RUNS)], axis=0).tolist()

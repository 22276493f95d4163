"""Benchmarks: how long the sweeps at the size of a real vocabulary take, and how much memory.

Each case runs in a process of its own, so that its peak memory is its own, and reports seconds with compilation included.
Where there is another way to do the same work, both are run in the case and the ratio is reported.
"""

import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import ufm
from sim.output import settings
from theory import predicted, routes, tilting
from theory.instance import Instance
from theory.statement import TABLES
from ufm import Corpus
from ufm._check import require

Figures = dict[str, float]

VOCABULARY, CONCEPTS, STRENGTHS, TOKENS = 50_000, 50, 1_001, 100
SMALL_CORPORA = 10_000


def large_corpus(contexts: int, seed: int = 0) -> Corpus:
    """A weighted corpus of V=50,000 tokens in G=50 concepts of 1,000, all log-odds distinct."""
    rng = np.random.default_rng(seed)
    size = VOCABULARY // CONCEPTS
    shares = rng.uniform(0.5, 1.5, (2, CONCEPTS, size))
    gamma, omega = (shares / shares.sum(axis=-1, keepdims=True)).reshape(2, VOCABULARY)
    return ufm.weighted([size] * CONCEPTS, gamma, omega, 0.05, contexts_per_concept=contexts // CONCEPTS)


def predicted_at_scale(seed: int = 0) -> Figures:
    """Closed-form curves of a corpus of 5,000 contexts at 1,001 strengths, in float64."""
    with jax.enable_x64(True):
        corpus, contrast, one_per_concept, tokens, alphas = _large_problem(5_000, seed)
        start = time.perf_counter()
        m = ufm.log_odds(corpus, contrast)
        curves = (
            predicted.cross_entropy_increase(corpus, m, alphas),
            predicted.concept_increase(corpus, one_per_concept, m, alphas),
            predicted.probability_increase(corpus, one_per_concept, m, alphas, tokens=tokens),
        )
        jax.block_until_ready(curves)
        seconds = time.perf_counter() - start
        few = jnp.asarray(alphas[::50])
        product, logsumexp = (
            _median_seconds(lambda path=path: path(corpus.log_rows, m, few, corpus.concepts, 2**20))
            for path in (predicted._partition_by_product, predicted._partition_by_logsumexp)
        )
    return {"seconds": seconds, "log-sum-exp / matrix product": logsumexp / product, "peak MiB": _peak_mib()}


def measured_at_scale(seed: int = 0) -> Figures:
    """Training a UFM of 200 contexts and d=64 in float32, then its measured curves at 1,001 strengths."""
    corpus, contrast, one_per_concept, tokens, alphas = _large_problem(200, seed)
    start = time.perf_counter()
    # Adam with a short memory of squares: gradients of rare tokens are tiny, and shrink as training goes on.
    steps = 300
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, steps), b2=0.8, eps=1e-12)
    initial = ufm.init(jax.random.key(seed), corpus, 64, scale=0.3)
    fit = ufm.fit(corpus, optimizer=optimizer, tolerance=1e-9, max_steps=steps, patience=steps, start=initial)
    training = time.perf_counter() - start
    start = time.perf_counter()
    v = ufm.difference_of_means(fit.model, jnp.arange(corpus.n_contexts), contrast)
    curves = (
        ufm.cross_entropy_increase(fit.model, corpus, v, alphas),
        ufm.concept_increase(fit.model, one_per_concept, v, alphas, corpus.concepts),
        ufm.probability_increase(fit.model, one_per_concept, v, alphas, tokens=tokens),
    )
    jax.block_until_ready(curves)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "training seconds": training,
        "training steps": fit.steps,
        "gap": fit.gap,
        "peak MiB": _peak_mib(),
    }


def many_small_corpora(seed: int = 0) -> Figures:
    """ΔCE of 10,000 random corpora of 7 tokens and 6 contexts at 121 strengths: one vmap against a compiled loop."""
    n, looped = SMALL_CORPORA, SMALL_CORPORA // 20
    with jax.enable_x64(True):
        batch = routes.populate(jax.random.key(seed), n, TABLES)
        alphas = jnp.linspace(-6, 6, 121)

        def curve(one: Instance):
            m = one.log_odds
            a = jax.vmap(lambda log_p: jax.vmap(lambda alpha: tilting.log_partition(log_p, m, alpha))(alphas))(one.log_p)
            return one.weights @ (a - alphas * (jnp.exp(one.log_p) @ m)[:, None])

        every = jax.jit(jax.vmap(curve))
        start = time.perf_counter()
        jax.block_until_ready(every(batch))
        seconds = time.perf_counter() - start
        together = _median_seconds(every, batch)
        single = jax.jit(curve)
        ones = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(looped)]
        loop = _median_seconds(lambda: [single(one) for one in ones]) * n / looped
    return {"seconds": seconds, "loop / vmap": loop / together, "corpora per second": n / together, "peak MiB": _peak_mib()}


CASES: dict[str, Callable[[int], Figures]] = {
    "predicted-at-scale": predicted_at_scale,
    "measured-at-scale": measured_at_scale,
    "many-small-corpora": many_small_corpora,
}
"""The cases by name."""


def bench(names: Sequence[str] | None = None, seed: int = 0) -> dict[str, Any]:
    """Run cases one after the other, each in a fresh process.

    Returns:
        ``{"settings": ..., "cases": {name: {figure: number}}}``.
    """
    chosen = list(CASES) if not names else list(names)
    unknown = [name for name in chosen if name not in CASES]
    require(not unknown, "case", f"one of {', '.join(CASES)}", ", ".join(unknown))
    context = multiprocessing.get_context("spawn")
    cases: dict[str, Figures] = {}
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name in (bar := tqdm(chosen, unit="case", disable=None)):
            bar.set_description(name)
            cases[name] = pool.submit(CASES[name], seed).result()
    return {"settings": settings(seed, processor=platform.machine()), "cases": cases}


def as_table(results: dict[str, Any]) -> str:
    """The results as a table for the terminal."""
    lines = []
    for name, figures in results["cases"].items():
        summary = (CASES[name].__doc__ or "").splitlines()[0]
        lines += [name, f"  {summary}", *(f"  {label:<30}{value:>14.4g}" for label, value in figures.items())]
    return "\n".join(lines)


def _large_problem(contexts: int, seed: int):
    corpus = large_corpus(contexts, seed)
    contrast = ufm.contrast(corpus.n_contexts, *ufm.contrastive(corpus, target=0, opposite=1))
    one_per_concept = np.arange(CONCEPTS) * (contexts // CONCEPTS)
    tokens = np.linspace(0, VOCABULARY - 1, TOKENS).astype(int)
    return corpus, contrast, one_per_concept, tokens, np.linspace(-60, 60, STRENGTHS)


def _median_seconds(function: Callable[..., Any], *arguments: Any, runs: int = 3) -> float:
    """The median time of some runs after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

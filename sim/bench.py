"""Benchmarks: how long the sweeps at the size of a real vocabulary and on a language model take, and how much memory.

Each case runs in a process of its own, so that its peak memory is its own, and reports seconds with compilation included.
Where there is another way to do the same work, both are run in the case and the ratio is reported.
"""

import importlib.util
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import ufm
from sim import bench_choosing, bench_gpu, bench_half, bench_memory
from sim.bench_gpu import median_seconds, seconds_of
from sim.bridge import fetch
from sim.bridge.generation import Sampling
from sim.bridge.model import load
from sim.directions.states import every_token, mean_states
from sim.experiments.strength import next_token
from sim.measure import losses
from sim.output import settings
from theory import predicted, routes, tilting
from theory.instance import Instance
from theory.statement import TABLES
from ufm import Add, Corpus, Last, Steering
from ufm._check import known_names
from ufm.steerable import one_of

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
            median_seconds(lambda path=path: path(corpus.log_rows, m, few, corpus.concepts, 2**20))
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
    fit = ufm.fit(corpus, optimizer=optimizer, tolerance=0.0, max_steps=steps, patience=steps, start=initial)
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
    # The gap once more, of the same parameters in float64 on the CPU: a number that rests on no device's short products.
    with ufm.in_float64():
        exact = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), fit.model)
        check = float(ufm.gap(exact, large_corpus(200, seed)))
    return {
        "seconds": seconds,
        "training seconds": training,
        "training steps": fit.steps,
        "gap": fit.gap,
        "gap in float64": check,
        "peak MiB": _peak_mib(),
    }


def many_small_corpora(seed: int = 0) -> Figures:
    """ΔCE of 10,000 random corpora of 7 tokens and 6 contexts at 121 strengths: one vmap against a compiled loop."""
    n, looped = SMALL_CORPORA, SMALL_CORPORA // 20
    with jax.enable_x64(True):
        batch = routes.populate(jax.random.key(seed), n, TABLES)
        alphas = jnp.linspace(-6, 6, 121)

        def curve(instance: Instance):
            m = instance.log_odds
            a = jax.vmap(lambda log_p: jax.vmap(lambda alpha: tilting.log_partition(log_p, m, alpha))(alphas))(
                instance.log_p
            )
            return instance.weights @ (a - alphas * (jnp.exp(instance.log_p) @ m)[:, None])

        every = jax.jit(jax.vmap(curve))
        start = time.perf_counter()
        jax.block_until_ready(every(batch))
        seconds = time.perf_counter() - start
        together = median_seconds(every, batch)
        single = jax.jit(curve)
        instances = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(looped)]
        loop = median_seconds(lambda: [single(instance) for instance in instances]) * n / looped
    return {"seconds": seconds, "loop / vmap": loop / together, "corpora per second": n / together, "peak MiB": _peak_mib()}


def loading(seed: int = 0) -> Figures:
    """SmolLM2 from its file to the first logits, in a process of its own, nothing compiled before; host memory of it."""
    del seed
    fetch.fetch()
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _LOADING], env=environment, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    beside, size = (float(number) for number in done.stdout.split()[-2:])
    return {"seconds, with imports": seconds, "parameters MiB": size, "peak of loading / parameters": beside / size}


_LOADING = """
import resource, sys, jax
from flax import nnx
from sim.bridge.model import load
from sim.bench import _peak_mib
jax.block_until_ready(jax.numpy.ones(3))
before = _peak_mib()
lm = load("smollm2-135m-instruct", progress=False)
beside = _peak_mib() - before
size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(lm.decoder))) / 2**20
lm.logits(["The capital of France is"])
print(beside, size)
"""

PROMPT_TOKENS, SWEPT, SWEPT_LONG, FULL_PASSES = 100, 64, 1_024, 8


def language_model(seed: int = 0) -> Figures:
    """SmolLM2, 100 tokens, 64 strengths, float32: sweeps by the split against full passes through transformers.

    The ratios need torch and transformers; without them only our seconds are given.
    """
    prompt, v = _swept_prompt(seed)
    lm = load(fetch.NAME, progress=False)
    layers = lm.config.num_layers
    alphas, v = jnp.linspace(-200.0, 200.0, SWEPT), jnp.asarray(v)
    split = lm.split([prompt], 0)

    @jax.jit
    def embedded(split):
        return split.embed_all(jnp.arange(1))

    def swept(split, states, alphas):
        return _swept(split, states, v, alphas)

    figures: Figures = {}
    with _torch() as other:
        theirs = [other(_full_pass_seconds)]
        every = median_seconds(embedded, split)
        states = jax.block_until_ready(embedded(split))
        jax.block_until_ready(swept(split, one_of(states, 0), alphas))
        ours = np.empty(layers)
        for layer in tqdm(range(layers), desc="sweeps", unit="layer", disable=None):
            ours[layer] = seconds_of(swept, split.at(layer), one_of(states, layer), alphas)
            if layer == layers // 2:
                theirs.append(other(_full_pass_seconds))
        theirs.append(other(_full_pass_seconds))
    last = median_seconds(swept, split.at(layers - 1), one_of(states, -1), alphas)
    alone = median_seconds(_embedded, split.at(layers - 1))
    middle = ours[layers // 2]
    figures |= {
        "all streams, one pass": every,
        "first layer, seconds": ours[0],
        "middle layer, seconds": middle,
        "last block, seconds": last,
        "stream of the last block": alone,
        "all layers, seconds": every + ours.sum(),
    }
    full = SWEPT * float(np.median(theirs))
    if np.isfinite(full):
        figures |= {
            "transformers, one layer": full,
            "ratio at the middle layer": full / middle,
            "ratio over all layers": layers * full / (every + ours.sum()),
            "ratio at the last block": full / last,
            "the same with its stream": full / (last + alone),
        }
    start = time.perf_counter()
    many, middle_states = jnp.linspace(-200.0, 200.0, SWEPT_LONG), one_of(states, layers // 2)
    jax.block_until_ready(swept(split.at(layers // 2), middle_states, many))
    return figures | {f"{SWEPT_LONG} strengths, middle": time.perf_counter() - start, "peak MiB": _peak_mib()}


def last_token(seed: int = 0) -> Figures:
    """SmolLM2, 100 tokens of context, 64 strengths after the middle layer at the last token, next-token log-softmax.

    Once with the keys and values of the tokens before it kept, and once with all tokens computed at every strength: the
    sweep from states that are known, and with the pass that makes them. Programs are compiled before.
    """
    prompt, v = _swept_prompt(seed)
    lm = load(fetch.NAME, progress=False)
    steering = Steering({lm.config.num_layers // 2: Add(jnp.asarray(v))}, tokens=Last())
    kept, parts = lm.split([prompt]).resolve(steering)
    whole, alphas = replace(kept, prefix_length=0), jnp.linspace(-200.0, 200.0, SWEPT)

    states = [_embedded(split) for split in (kept, whole)]
    prefixes = [median_seconds(_embedded, split) for split in (kept, whole)]
    calls = [(split, state, parts, alphas) for split, state in zip((kept, whole), states, strict=True)]
    sweeps = [median_seconds(_swept, *arguments) for arguments in calls]
    apart = jnp.max(jnp.abs(_swept(*calls[0]) - _swept(*calls[1])))
    return {
        "keys kept: prefix": prefixes[0],
        "keys kept: sweep": sweeps[0],
        "all tokens: prefix": prefixes[1],
        "all tokens: sweep": sweeps[1],
        "ratio of the sweeps": sweeps[1] / sweeps[0],
        "ratio with the prefix": (prefixes[1] + sweeps[1]) / (prefixes[0] + sweeps[0]),
        "largest difference": float(apart),
    }


@jax.jit
def _embedded(split):
    """The state of the only context of a split."""
    return split.embed(jnp.arange(1))


@jax.jit
def _swept(split, states, steering, alphas):
    """Next-token log-probabilities of a few tokens along a sweep from states."""
    return ufm.sweep_states(split, states, steering, alphas, lambda row, _: jax.nn.log_softmax(row)[:TOKENS])


def _swept_prompt(seed: int) -> tuple[list[int], Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 49_152, PROMPT_TOKENS).tolist(), rng.normal(size=576).astype(np.float32)


@contextmanager
def _torch() -> Iterator[Callable[[Callable[[], float]], float]]:
    """A timer for functions that use transformers: it runs them in a separate process; NaN where that is not installed."""
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        yield lambda _: np.nan
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function: pool.submit(function).result()


@cache
def _transformers() -> Any:
    import torch
    import transformers

    file = fetch.default_model()
    loading = transformers.AutoModelForCausalLM.from_pretrained
    return loading(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()


def _passes_seconds(ids: Any, reach: float, use: Callable[[Any], Any]) -> float:
    """The median time of full passes steered at the middle layer, and of what is made of their logits."""
    import torch

    model, vector, times = _transformers(), torch.tensor(_swept_prompt(0)[1]), []
    layers, alpha = model.model.layers, 0.0

    def steered(module: Any, inputs: Any, out: Any) -> Any:
        del module, inputs
        more = alpha * vector
        return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more

    hook = layers[len(layers) // 2].register_forward_hook(steered)
    with torch.no_grad():
        for alpha in np.linspace(-reach, reach, FULL_PASSES + 1).tolist():  # noqa: B007 -- read by the hook
            times.append(seconds_of(lambda: use(model(ids).logits)))
    hook.remove()
    return float(np.median(times[1:]))


def _full_pass_seconds() -> float:
    """The median time of a steered full pass to the last position's log-softmax."""
    import torch

    return _passes_seconds(torch.tensor([_swept_prompt(0)[0]]), 200.0, lambda logits: logits[0, -1].log_softmax(-1))


BLOCKS, BLOCK, TEXTS, NEW = 2, 128, 16, 32


def _block_seconds() -> float:
    """The median time of a steered full pass over blocks of text to their cross-entropy."""
    import torch

    ids = torch.tensor(_random_rows(BLOCKS, BLOCK))

    def cross_entropy(logits: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))

    return _passes_seconds(ids, 100.0, cross_entropy)


def _states_seconds() -> float:
    """The median time of a pass over texts to the means of their states at all layers."""
    import torch

    model, ids = _transformers(), torch.tensor(_random_rows(TEXTS, PROMPT_TOKENS))

    def passed() -> None:
        with torch.no_grad():
            states = model.model(ids, output_hidden_states=True).hidden_states
            torch.stack([layer.mean(dim=1) for layer in states[1:]])

    return median_seconds(passed)


def _generated_seconds() -> float:
    """The median time of sampling continuations with a cache."""
    import torch

    model, ids = _transformers(), torch.tensor(_random_rows(TEXTS, PROMPT_TOKENS))
    settings = {"do_sample": True, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "pad_token_id": 0}
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW}

    def generated() -> None:
        model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **length)

    return median_seconds(generated)


def _random_rows(count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, 49_152, (count, length)).tolist()


def experiments(seed: int = 0) -> Figures:
    """SmolLM2: the work of the experiments' stages, against full passes and generation with transformers.

    Next tokens: every second layer of each half, one context of 100 tokens, 128 strengths. Cross-entropy: early, middle and
    last layer, 2 blocks of 128 tokens, 32 strengths. Vectors: 16 texts of 100 tokens, all layers. Generation: 32 tokens
    after each of these. Programs are compiled, and the other side warmed up, before.
    """
    lm, (prompt, v) = load(fetch.NAME, progress=False), _swept_prompt(seed)
    a = lm.config
    vector, few, many = jnp.asarray(v), jnp.linspace(-100.0, 100.0, 32), jnp.linspace(-200.0, 200.0, 128)
    rows, texts = _random_rows(BLOCKS, BLOCK), _random_rows(TEXTS, PROMPT_TOKENS)
    odds, limits = jnp.zeros(a.vocab_size), jnp.zeros((2, a.vocab_size))
    sampling = Sampling(0.9, 50, 0.95)

    def curves(layer: int) -> Any:
        split, steering = lm.split([prompt]).resolve(Steering({layer: Add(vector)}))
        return next_token.swept(split, steering, many, odds, limits, kept=TOKENS)

    def costs(layer: int) -> Any:
        return losses.increases(*lm.split(rows, last_only=False).resolve(Steering({layer: Add(vector)})), few)

    layers, half = (a.num_layers // 4, a.num_layers // 2, a.num_layers - 1), a.num_layers // 2
    # As deep on average as all layers are.
    every = [*range(0, half, 2), *range(half, a.num_layers, 2)]
    figures: Figures = {}
    with _torch() as other:
        theirs = {
            "next-token": len(every) * many.size * other(_full_pass_seconds),
            "cross-entropy": len(layers) * few.size * other(_block_seconds),
            "vectors": other(_states_seconds),
            "generation": other(_generated_seconds),
        }
        curves(0), curves(a.num_layers - 1)
        ours = {
            "next-token": sum(
                seconds_of(curves, layer) for layer in tqdm(every, desc="next-token", unit="layer", disable=None)
            ),
            "cross-entropy": sum(median_seconds(costs, layer) for layer in layers),
            "vectors": median_seconds(partial(mean_states, leave_out=True), lm, texts, every_token(texts)),
            "generation": median_seconds(
                lambda: lm.generate(texts, max_new_tokens=NEW, sampling=sampling, stop=False).tokens
            ),
        }
    for name, seconds in ours.items():
        figures |= {f"{name}, seconds": seconds}
        if np.isfinite(theirs[name]):
            figures |= {f"{name}, transformers": theirs[name], f"{name}, ratio": theirs[name] / seconds}
    return figures | {"peak MiB": _peak_mib()}


CASES: dict[str, Callable[..., Figures]] = {
    "predicted-at-scale": predicted_at_scale,
    "measured-at-scale": measured_at_scale,
    "many-small-corpora": many_small_corpora,
    "loading": loading,
    "language-model": language_model,
    "last-token": last_token,
    "experiments": experiments,
    "half-types": bench_half.half_types,
    "memory": bench_memory.memory,
    "gpu": bench_gpu.gpu,
    "choosing": bench_choosing.case,
}
"""The cases by name."""

HOURS = ("choosing",)
"""Cases that take hours, and run only where they are named."""


def bench(names: Sequence[str] | None = None, seed: int = 0, **of_choosing: Any) -> dict[str, Any]:
    """Run cases one after the other, each in a fresh process.

    Args:
        names: of cases; all but those that take hours if left out.
        seed: of everything random.
        of_choosing: for the case "choosing": what `sim.bench_choosing.case` takes.

    Returns:
        ``{"settings": ..., "cases": {name: {figure: number}}}``.

    Raises:
        ValueError: an unknown case.
    """
    chosen = [name for name in CASES if name not in HOURS] if not names else list(names)
    known_names("case", chosen, CASES)
    context = multiprocessing.get_context("spawn")
    cases: dict[str, Figures] = {}
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name in (bar := tqdm(chosen, unit="case", disable=None)):
            bar.set_description(name)
            more = of_choosing if name == "choosing" else {}
            cases[name] = pool.submit(CASES[name], seed, **more).result()
    return {"settings": settings(seed, processor=platform.machine()), "cases": cases}


def as_table(results: dict[str, Any]) -> str:
    """The results as a table for the terminal; a case without figures was skipped."""
    lines = []
    for name, figures in results["cases"].items():
        summary = (CASES[name].__doc__ or "").splitlines()[0]
        if not figures:
            lines += [name, "  skipped: JAX finds no accelerator here"]
            continue
        lines += [name, f"  {summary}", *(f"  {label:<30}{value:>14.4g}" for label, value in figures.items())]
    return "\n".join(lines)


def _large_problem(contexts: int, seed: int):
    corpus = large_corpus(contexts, seed)
    contrast = ufm.contrast(corpus.n_contexts, *ufm.contrastive(corpus, target=0, opposite=1))
    one_per_concept = np.arange(CONCEPTS) * (contexts // CONCEPTS)
    tokens = np.linspace(0, VOCABULARY - 1, TOKENS).astype(int)
    return corpus, contrast, one_per_concept, tokens, np.linspace(-60, 60, STRENGTHS)


def _peak_mib() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage would tell of the process that started this one.
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

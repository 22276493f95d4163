"""A benchmark of an accelerator: its rate of matrix products, and the share of it that the work on language models reaches.

Weights are random, in the shapes of Gemma 3 1B and Qwen 3 8B, in bfloat16. Operations are counted as two for each weight of
a product that the work needs by the split; attention scores, norms and softmax are left out. Beside ours stand, where torch
and transformers are installed, the loop of the steering-strength paper's code (a full pass for each strength), the same with
strengths in batches and the last logits only, and `generate` of transformers.
"""

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sim.bridge.architectures import from_config
from sim.bridge.config import Config
from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel, random_model
from sim.bridge.parameters import shapes
from sim.directions.states import every_token, mean_states
from sim.experiments.strength import next_token
from sim.measure import losses
from sim.progress import bar
from ufm import Add, Steering
from ufm.precision import of_products

Figures = dict[str, float]

MODELS: dict[str, dict[str, Any]] = {
    "1B": {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 1_152,
        "intermediate_size": 6_912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32_768,
    },
    "8B": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4_096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "max_position_embeddings": 40_960,
    },
}
"""The shapes of Gemma 3 1B and Qwen 3 8B, in the terms of transformers."""


class Sizes(NamedTuple):
    """How much work is timed.

    Attributes:
        matrix: rows and columns of the matrices that are multiplied.
        prompt, strengths: tokens and strengths of next-token curves.
        blocks, block, costs: blocks of text, their tokens, and strengths of cross-entropy.
        texts, text: texts that vectors are made from, and their tokens.
        together, max_new_tokens: sequences generated together, and tokens of each.
        batch: strengths in one pass of the loop's batched form.
        kept: tokens that next-token curves keep.
    """

    matrix: int = 8_192
    prompt: int = 100
    strengths: int = 256
    blocks: int = 4
    block: int = 128
    costs: int = 64
    texts: int = 64
    text: int = 300
    together: int = 32
    max_new_tokens: int = 100
    batch: int = 32
    kept: int = 100


def gpu(seed: int = 0) -> Figures:
    """Rates of products on an accelerator, and the share of them that sweeps, vectors and generation reach; seconds.

    Nothing where JAX finds no accelerator.
    """
    # In processes that end: JAX and torch would not leave each other enough memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        if pool.submit(platform).result() == "cpu":
            return {}
        installed = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
        theirs = {name: pool.submit(official, config).result() for name, config in MODELS.items()} if installed else {}
    return measured(MODELS, Sizes(), theirs, seed)


def platform() -> str:
    """The kind of the default device."""
    return jax.default_backend()


def measured(
    models: Mapping[str, dict[str, Any]], sizes: Sizes, theirs: Mapping[str, Mapping[str, float]], seed: int = 0
) -> Figures:
    """The figures of `gpu` on the default device, whatever it is.

    Args:
        models: configurations by name.
        sizes: of the work.
        theirs: what `official` gave, by model and kind of work.
        seed: of weights and tokens.
    """
    figures = rates(sizes.matrix)
    rate = figures["bfloat16, TFLOP/s"] * 1e12
    for name, config in models.items():
        lm = random_model(from_config(config), jax.random.key(seed), dtype=jnp.bfloat16, offload=True)
        offloaded = works(lm, sizes, seed)
        figures |= {f"{name}, {title}, offloaded": median_seconds(offloaded[title][0]) for title in OFFLOADED}
        # Let go of before there is another one.
        del lm, offloaded
        lm = random_model(from_config(config), jax.random.key(seed), dtype=jnp.bfloat16)
        for title, (work, operations) in bar(works(lm, sizes, seed).items(), desc=name, unit="work"):
            seconds, label = median_seconds(work), f"{name}, {title}"
            figures |= {label: seconds, f"{label}, share": operations / seconds / rate}
            if title in GENERATED:
                figures[f"{label}, tokens/s"] = (
                    (1 if title == GENERATED[0] else sizes.together) * sizes.max_new_tokens / seconds
                )
            other = theirs.get(name, {})
            figures |= {
                f"{label}, {kind.removeprefix(title).strip(', ')}": duration
                for kind, duration in other.items()
                if kind.startswith(f"{title}, ")
            }
        del lm
    return figures


def rates(n: int) -> Figures:
    """How many operations the device does in a second on products of large matrices, by type, 1e12 each."""

    def rate(dtype: Any, fast: bool) -> float:
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        precision = of_products(dtype, fast=fast)
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
        return 2 * n**3 / median_seconds(lambda: product(a, a), runs=5) / 1e12

    return {
        "bfloat16, TFLOP/s": rate(jnp.bfloat16, True),
        "float32, TFLOP/s": rate(jnp.float32, False),
        "float32 fast, TFLOP/s": rate(jnp.float32, True),
    }


GENERATED = ("generation of one", "generation together")
"""The two works whose tokens are counted."""


OFFLOADED = ("next-token, first layer", "cross-entropy", GENERATED[1])
"""The works that are timed a second time, with the blocks in the host's memory."""


def works(lm: LanguageModel, sizes: Sizes, seed: int) -> dict[str, tuple[Callable[[], Any], float]]:
    """The works that are timed, by name: a function, and the least number of operations that it takes."""
    a, rng = lm.config, np.random.default_rng(seed)
    v, last = jnp.asarray(rng.normal(size=a.d_model), jnp.float32), a.num_layers - 1
    prompt, rows = _rows(a, 1, sizes.prompt), _rows(a, sizes.blocks, sizes.block)
    texts, few = _rows(a, sizes.texts, sizes.text), _rows(a, sizes.together, sizes.prompt)
    alphas, costs = jnp.linspace(-200.0, 200.0, sizes.strengths), jnp.linspace(-100.0, 100.0, sizes.costs)
    odds, limits = jnp.zeros(a.vocab_size), jnp.zeros((2, a.vocab_size))
    block, unembedding = operations(a)

    def curves(layer: int) -> Callable[[], Any]:
        split, steering = lm.split(prompt).resolve(Steering({layer: Add(v)}))
        return lambda: next_token.swept(split, steering, alphas, odds, limits, kept=min(sizes.kept, a.vocab_size))

    def of_curves(layer: int) -> float:
        return sizes.strengths * (sizes.prompt * block * (last - layer) + unembedding)

    def generated(prompts: list[list[int]]) -> Callable[[], Any]:
        sampling = Sampling(0.9, 50, 0.95)
        return lambda: lm.generate(prompts, max_new_tokens=sizes.max_new_tokens, sampling=sampling, stop=False).tokens

    def of_generated(count: int) -> float:
        return count * ((sizes.prompt + sizes.max_new_tokens) * block * a.num_layers + sizes.max_new_tokens * unembedding)

    middle = a.num_layers // 2
    whole, steering = lm.split(rows, last_only=False).resolve(Steering({middle: Add(v)}))
    tokens = sizes.blocks * sizes.costs * sizes.block
    return {
        "next-token, first layer": (curves(0), of_curves(0)),
        "next-token, middle layer": (curves(middle), of_curves(middle)),
        "next-token, last block": (curves(last), of_curves(last)),
        "cross-entropy": (
            lambda: losses.increases(whole, steering, costs),
            tokens * (block * (last - middle) + unembedding),
        ),
        "vectors": (
            lambda: mean_states(lm, texts, every_token(texts), leave_out=True),
            sizes.texts * sizes.text * block * a.num_layers,
        ),
        GENERATED[0]: (generated(prompt), of_generated(1)),
        GENERATED[1]: (generated(few), of_generated(sizes.together)),
    }


def operations(a: Config) -> tuple[float, float]:
    """Operations of one token in the products of a block, and in the unembedding."""
    matrices = [shape for name, shape in shapes(a).items() if name.startswith("blocks.") and len(shape) == 3]
    return 2.0 * sum(rows * columns for _, rows, columns in matrices), 2.0 * a.d_model * a.vocab_size


def _rows(a: Config, count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, a.vocab_size, (count, length)).tolist()


def median_seconds(function: Callable[..., Any], *arguments: Any, runs: int = 3) -> float:
    """The median time of some runs, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    return float(np.median([seconds_of(function, *arguments) for _ in range(runs)]))


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """The time of one run."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def official(config: dict[str, Any], sizes: Sizes | None = None) -> dict[str, float]:
    """The seconds of the works through transformers, on torch's CUDA device where it has one, by work and way.

    A strength takes the same time as any other: eight full passes are timed, and three batches, and scaled up.
    """
    import torch
    import transformers

    sizes, device = sizes or Sizes(), "cuda" if torch.cuda.is_available() else "cpu"
    kind = {key: value for key, value in config.items() if key != "model_type"}
    settings = transformers.AutoConfig.for_model(config["model_type"], **kind)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
    a = from_config(config)
    vector, alphas = torch.randn(a.d_model, device=device, dtype=torch.bfloat16), [torch.zeros(1, 1, 1, device=device)]

    def steered(module: Any, inputs: Any, out: Any) -> Any:
        del module, inputs
        more = alphas[0].to(vector.dtype) * vector
        return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more

    passes, seconds = _official_passes(model, a, sizes), _torch_seconds
    single, several = torch.full((1, 1, 1), 2.0, device=device), torch.linspace(-200, 200, sizes.batch, device=device)
    figures: dict[str, float] = {}
    with torch.no_grad():
        for title, layer in (("first layer", 0), ("middle layer", a.num_layers // 2), ("last block", a.num_layers - 1)):
            hook = model.model.layers[layer].register_forward_hook(steered)
            alphas[0] = single
            figures[f"next-token, {title}, full passes"] = sizes.strengths * seconds(passes["full"], 8)
            if layer == a.num_layers // 2:
                figures["cross-entropy, full passes"] = sizes.costs * seconds(passes["loss"], 8)
            alphas[0] = several[:, None, None]
            figures[f"next-token, {title}, batched passes"] = sizes.strengths / sizes.batch * seconds(passes["batched"], 3)
            hook.remove()
        figures["vectors, full passes"] = seconds(passes["states"], 3)
        for title in GENERATED:
            figures[f"{title}, generate"] = seconds(passes[title], 3)
    return figures


def _official_passes(model: Any, a: Config, sizes: Sizes) -> dict[str, Callable[[], Any]]:
    """The functions that are timed of a model of transformers, by name: passes, and the generations of `GENERATED`."""
    import torch

    lengths = ((1, sizes.prompt), (sizes.blocks, sizes.block), (sizes.texts, sizes.text), (sizes.together, sizes.prompt))
    prompt, rows, texts, few = (torch.tensor(_rows(a, *shape), device=model.device) for shape in lengths)
    many, targets = prompt.expand(sizes.batch, -1), rows[:, 1:].reshape(-1)

    def full() -> None:
        model(prompt).logits[0, -1].float().log_softmax(-1)

    def batched() -> None:
        model(many, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)

    def loss() -> None:
        logits = model(rows).logits[:, :-1].flatten(0, 1).float()
        torch.nn.functional.cross_entropy(logits, targets)

    def states() -> None:
        states = model.model(texts, output_hidden_states=True).hidden_states
        torch.stack([layer.float().mean(dim=1) for layer in states[1:]])

    def generated(ids: Any) -> Callable[[], Any]:
        how = {"do_sample": True, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "pad_token_id": 0}
        length = {"max_new_tokens": sizes.max_new_tokens, "min_new_tokens": sizes.max_new_tokens}
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **how, **length)

    passes = {"full": full, "batched": batched, "loss": loss, "states": states}
    return passes | {GENERATED[0]: generated(prompt), GENERATED[1]: generated(few)}


def _torch_seconds(work: Callable[[], Any], runs: int) -> float:
    """The median time of some runs, after one that warms up, each to the end of what it has begun on a CUDA device."""
    import torch

    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))

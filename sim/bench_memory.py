"""The memory that programs need beside the parameters, as XLA counts it when it compiles them: nothing is run.

The shape is that of Qwen 3 8B. XLA for a CPU turns half types into float32, so that the count is one of float32; a card
holds states and logits in float32 as well.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sim.bench_gpu import MODELS, Figures
from sim.bridge.architectures import from_config
from sim.bridge.config import Config
from sim.bridge.decoder import Decoder
from sim.bridge.generation import Sampler, Sampling
from sim.bridge.generation import compiled as generate
from sim.bridge.parameters import parameter_bytes, shapes
from sim.bridge.split import Split, all_states, block_activation_size
from sim.experiments.strength import next_token
from sim.measure import losses
from ufm import Add, Steering


class CompiledSizes(NamedTuple):
    """How much work is compiled.

    Attributes:
        budget: numbers that are held at once, as on a card of 24 GB.
        strengths: the numbers of strengths, from few to many.
        prompt: tokens of a context.
        blocks, block: blocks of text, and their tokens.
        together, max_new_tokens: sequences that are written together, and tokens of each.
        kept: tokens that next-token curves keep.
    """

    budget: int = 2**28
    strengths: tuple[int, ...] = (64, 1024)
    prompt: int = 100
    blocks: int = 4
    block: int = 128
    together: int = 32
    max_new_tokens: int = 100
    kept: int = 100


def memory(seed: int = 0) -> Figures:
    """The memory of sweeps, texts and generation beside the parameters of a model of 8B, from compiled programs; GiB."""
    del seed  # there are no numbers
    with jax.enable_x64(False):
        return measured(MODELS["8B"], CompiledSizes())


def measured(model: Mapping[str, Any], sizes: CompiledSizes) -> Figures:
    """The figures of `memory`.

    Args:
        model: its configuration, in the terms of transformers.
        sizes: of the work.
    """
    config = from_config(dict(model))
    figures = {"parameters in bfloat16": parameter_bytes(config, jnp.bfloat16) / 2**30}
    return figures | {name: _held(program) / 2**30 for name, program in programs(config, sizes).items()}


def programs(a: Config, sizes: CompiledSizes) -> dict[str, jax.stages.Lowered]:
    """The programs by name, lowered for arrays of which only the shapes are known.

    Args:
        a: the architecture.
        sizes: of the work.
    """
    decoder = nnx.eval_shape(lambda: Decoder(a, {name: jnp.zeros(shape) for name, shape in shapes(a).items()}))
    graph, parameters = nnx.split(decoder)

    def split(n: int, length: int, last_only: bool) -> Split:
        layer, budget = _shape(dtype=jnp.int32), sizes.budget
        return Split(parameters, *_contexts(n, length), layer, graph, last_only, budget=budget, strengths_per_batch=32)

    added, result = Steering(Add(_shape(a.d_model))), {}
    odds, limits = _shape(a.vocab_size), _shape(2, a.vocab_size)
    prompt, texts = split(1, sizes.prompt, True), split(sizes.blocks, sizes.block, False)
    for k in sizes.strengths:
        curves = next_token.swept.lower(prompt, added, _shape(k), odds, limits, kept=sizes.kept)
        result[f"next-token, {k} strengths"] = curves
        result[f"cross-entropy, {k} strengths"] = losses.increases.lower(texts, added, _shape(k))
    more = sizes.prompt * a.num_layers * a.d_model
    n = max(1, sizes.budget // (block_activation_size(a, sizes.prompt, sizes.prompt) + more))
    result[f"states of all layers, {n} texts"] = all_states.lower(decoder, *_contexts(n, sizes.prompt))
    sampler, ends = Sampler.of(Sampling(1.0), jax.random.key(0), a.vocab_size), _shape(1, dtype=jnp.int32)
    steering, alphas = Steering({a.num_layers // 2: Add(_shape(a.d_model))}), _shape(sizes.together, 1)
    contexts = _contexts(sizes.together, sizes.prompt)
    result[f"generation of {sizes.together}"] = generate.lower(
        decoder, *contexts, sampler, ends, steering, alphas, max_new_tokens=sizes.max_new_tokens
    )
    return result


def _contexts(n: int, length: int) -> tuple[Any, Any]:
    return _shape(n, length, dtype=jnp.int32), _shape(n, length, dtype=bool)


def _shape(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _held(program: jax.stages.Lowered) -> int:
    """Bytes of intermediate results and of the result."""
    analysis: Any = program.compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

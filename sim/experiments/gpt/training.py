"""The 1-layer GPT: a small transformer trained from scratch, on text whose concept is its case (S, figure A.4).

Training goes on where it was if it is interrupted, with the same numbers: batches depend on the seed and the step alone, and
checkpoints hold parameters, the optimiser's state and the losses.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sim import output
from sim.bridge.architectures import from_config
from sim.bridge.config import Config
from sim.bridge.decoder import Decoder
from sim.bridge.files import read_json
from sim.bridge.model import LanguageModel, load
from sim.bridge.parameters import init_parameters, is_gain
from sim.bridge.tokenizer import Tokenizer
from sim.experiments import corpora
from sim.experiments.steps import run_steps
from ufm._check import require

Parameters = dict[str, Any]


FAMILIES = ("gpt2", "llama")
"""The families that can be trained."""


@dataclass(frozen=True)
class TrainingSettings:
    """The model that is trained, and how.

    Attributes:
        family: "gpt2", with LayerNorms and biases, or "llama", with RMSNorms and no bias.
        num_layers, d_model, num_heads: of the GPT.
        vocab_size: of its tokenizer, at most.
        length: tokens of a sequence.
        batch: sequences of a step.
        steps: in all.
        warm_up: steps until the full rate; it then falls like a cosine to a tenth.
        rate: the highest learning rate, of AdamW.
        decay: of the weights, biases and norms left out.
        clip: the largest norm of a gradient.
        held_out: share of the text, its end, that is not trained on.
        every: steps between checkpoints.
        seed: of everything random.
    """

    family: str = "gpt2"
    num_layers: int = 1
    d_model: int = 256
    num_heads: int = 4
    vocab_size: int = 2048
    length: int = 128
    batch: int = 16
    steps: int = 1_200
    warm_up: int = 100
    rate: float = 2e-3
    decay: float = 0.1
    clip: float = 1.0
    held_out: float = 0.05
    every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.family in FAMILIES, "family", f"one of {', '.join(FAMILIES)}", repr(self.family))
        for name in ("num_layers", "d_model", "num_heads", "length", "batch", "steps", "every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.d_model % self.num_heads == 0, "d_model", f"a multiple of the {self.num_heads} heads", self.d_model)
        require(0 <= self.warm_up < self.steps, "warm_up", f"fewer than the {self.steps} steps", self.warm_up)
        require(0 < self.held_out < 1, "held_out", "a share between 0 and 1", self.held_out)


@dataclass(frozen=True)
class TrainedGPT:
    """A trained model.

    Attributes:
        model: with its tokenizer.
        losses: mean cross-entropy of the batch of every step, nats per token.
        held_out: mean cross-entropy on text that was not trained on, nats per token.
    """

    model: LanguageModel
    losses: Float[np.ndarray, " steps"]
    held_out: float


def config_of(settings: TrainingSettings, vocabulary: int) -> Config:
    """The configuration of a GPT-2 with few layers, or of a Llama whose unembedding is tied as well."""
    if settings.family == "gpt2":
        return from_config(
            {
                "model_type": "gpt2",
                "vocab_size": vocabulary,
                "n_embd": settings.d_model,
                "n_layer": settings.num_layers,
                "n_head": settings.num_heads,
                "n_positions": 2 * settings.length,
            }
        )
    return from_config(
        {
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": settings.d_model,
            "intermediate_size": 4 * settings.d_model,
            "num_hidden_layers": settings.num_layers,
            "num_attention_heads": settings.num_heads,
            "max_position_embeddings": 2 * settings.length,
            "tie_word_embeddings": True,
        }
    )


def loss(a: Config, parameters: Parameters, tokens: Int[Array, "n T"]) -> Float[Array, ""]:
    """Mean cross-entropy of every token given those before it in its sequence, nats."""
    inputs = tokens[:, :-1]
    logits = Decoder(a, parameters)(inputs, jnp.ones(inputs.shape, bool))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))


def optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """AdamW with clipped gradients, a warm-up and a cosine."""
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.rate, settings.warm_up, settings.steps, settings.rate / 10)

    def decays(parameters: Parameters) -> dict[str, bool]:
        return {name: not (is_gain(name) or name.endswith("_bias")) for name in parameters}

    return optax.chain(
        optax.clip_by_global_norm(settings.clip), optax.adamw(rate, b2=0.95, weight_decay=settings.decay, mask=decays)
    )


@partial(jax.jit, static_argnames=("a", "settings"))
def _step(a: Config, settings: TrainingSettings, parameters: Parameters, state: Any, tokens: Array) -> Any:
    value, gradient = jax.value_and_grad(partial(loss, a))(parameters, tokens)
    updates, state = optimizer(settings).update(gradient, state, parameters)
    return optax.apply_updates(parameters, updates), state, value


_loss = jax.jit(loss, static_argnums=0)


def batch(tokens: Int[np.ndarray, " N"], settings: TrainingSettings, step: int) -> Int[np.ndarray, "n T"]:
    """The sequences of a step, from random places."""
    rng = np.random.default_rng((settings.seed, step))
    starts = rng.integers(0, tokens.size - settings.length, settings.batch)
    return tokens[starts[:, None] + np.arange(settings.length + 1)]


def train(
    folder: str | Path,
    documents: Sequence[str] | None = None,
    settings: TrainingSettings | None = None,
    *,
    progress: bool | None = None,
) -> TrainedGPT:
    """Train a GPT, or go on with a training that was interrupted.

    Args:
        folder: gets ``model`` (which `load` reads), ``losses.json``, and while it is going on ``steps``.
        documents: what to train on; Python's manual in both cases if left out.
        settings: what and how.
        progress: whether to show a bar.

    Raises:
        ValueError: a folder of another training (the message says what differs); too little text; a loss that is not finite,
            with the last good state kept.
    """
    chosen = settings or TrainingSettings()
    texts = corpora.in_both_cases(corpora.manual()) if documents is None else list(documents)
    tokenizer, training, held_out = prepare(texts, chosen)
    path = output.prepare_folder(folder)
    _claim(path, asdict(chosen) | {"text": _fingerprint(training, held_out)})
    a = config_of(chosen, tokenizer.size)
    if not (path / "model").is_dir():
        parameters, losses = _run(path, a, chosen, training, progress)
        output.write_json(path / "losses.json", [float(value) for value in losses])
        LanguageModel(Decoder(a, parameters), tokenizer).save(path / "model")
        shutil.rmtree(path / "steps", ignore_errors=True)
    model = load(path / "model")
    return TrainedGPT(
        model, np.asarray(json.loads((path / "losses.json").read_text())), held_out_loss(model, held_out, chosen)
    )


class Finished(NamedTuple):
    """A training that is done.

    Attributes:
        model: with its tokenizer.
        settings: what was trained, and how.
        training, held_out: tokens that it was trained on, and those it was not.
    """

    model: LanguageModel
    settings: TrainingSettings
    training: Int[np.ndarray, " N"]
    held_out: Int[np.ndarray, " n"]


def finished(folder: str | Path, documents: Sequence[str] | None = None) -> Finished:
    """Open a finished training, with the text that the model was trained on.

    Args:
        folder: that `train` was given.
        documents: what `train` was given.

    Raises:
        ValueError: no training in the folder, or one that is not done; other documents.
    """
    path = Path(folder)
    trained = (path / "training.json").is_file() and (path / "model").is_dir()
    require(trained, "model", "a folder in which a training is done (ufm lm train --out FOLDER)", repr(str(path)))
    about = read_json(path / "training.json")
    names = [field.name for field in fields(TrainingSettings)]
    missing = [name for name in [*names, "text"] if name not in about]
    require(not missing, "training.json", "the settings of a training", f"none of {', '.join(missing)}")
    settings = TrainingSettings(**{name: about[name] for name in names})
    texts = corpora.in_both_cases(corpora.manual()) if documents is None else list(documents)
    _, training, held_out = prepare(texts, settings)
    same = _fingerprint(training, held_out) == about["text"]
    require(same, "text", f"the documents that the model in {str(path)!r} was trained on", "others")
    return Finished(load(path / "model"), settings, training, held_out)


def prepare(
    documents: Sequence[str], settings: TrainingSettings
) -> tuple[Tokenizer, Int[np.ndarray, " N"], Int[np.ndarray, " n"]]:
    """A tokenizer made for the documents, and their tokens in random order: to train on, and held out.

    Raises:
        ValueError: too little text for one sequence on each side.
    """
    tokenizer = corpora.train_tokenizer(documents, settings.vocab_size)
    order = np.random.default_rng(settings.seed).permutation(len(documents))
    tokens = corpora.as_tokens([documents[i] for i in order], tokenizer)
    kept = int(tokens.size * (1 - settings.held_out))
    least = min(kept, tokens.size - kept)
    require(least > settings.length, "documents", f"more than {settings.length} tokens on each side", least)
    return tokenizer, tokens[:kept], tokens[kept:]


def held_out_loss(model: LanguageModel, tokens: Int[np.ndarray, " n"], settings: TrainingSettings) -> float:
    """Mean cross-entropy of text in sequences of the length trained on, nats per token."""
    parameters = model.parameters
    rows = [tokens[k : k + settings.length + 1] for k in range(0, tokens.size - settings.length, settings.length)]
    return float(np.mean([_loss(model.config, parameters, jnp.asarray(row[None])) for row in rows]))


def _run(
    path: Path, a: Config, settings: TrainingSettings, tokens: Int[np.ndarray, " N"], progress: bool | None
) -> tuple[Parameters, Float[np.ndarray, " steps"]]:
    """Run all steps that follow the last checkpoint."""
    parameters = init_parameters(jax.random.key(settings.seed), a)
    start = (parameters, optimizer(settings).init(parameters))

    def step(k: int, state: Any) -> tuple[Any, Array]:
        parameters, inner, value = _step(a, settings, *state, jnp.asarray(batch(tokens, settings, k)))
        return (parameters, inner), value

    (parameters, _), losses, stopped = run_steps(
        path / "steps", start, step, settings.steps, every=settings.every, progress=progress
    )
    if stopped is not None:
        kept = [int(checkpoint.name) for checkpoint in (path / "steps").iterdir() if checkpoint.name.isdigit()]
        good = f"the state of step {max(kept)} is kept in {str(path / 'steps')!r}" if kept else "nothing is kept before it"
        require(False, "training", "finite losses and parameters", f"others at step {stopped}; {good}")
    return parameters, losses


def _claim(path: Path, about: dict[str, Any]) -> None:
    """Record which training a folder holds, or raise an error if it holds another one."""
    file = path / "training.json"
    if not file.is_file():
        output.write_json(file, about)
        return
    known = json.loads(file.read_text())
    off = [f"{name} {known.get(name)!r} there, {value!r} here" for name, value in about.items() if known.get(name) != value]
    require(not off, "folder", "one of this training, or a new one", "; ".join(off))


def _fingerprint(*tokens: np.ndarray) -> str:
    digest = hashlib.sha256()
    for row in tokens:
        digest.update(row.tobytes())
    return digest.hexdigest()[:16]

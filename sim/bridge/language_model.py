"""A language model, loaded: logits, residual streams, the split at a layer, generation, and its tokenizer.

lm = load("smollm2-135m-instruct")
split = lm.at(20, ["The weather today is"])         # a `ufm.Steerable`, as the UFM is one
logits = ufm.steer(split, [0], split.everywhere(v), 4.0)
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sim.bridge import fetch, generation, split, tokenizer, trained
from sim.bridge.architecture import Architecture
from sim.bridge.checkpoint import PICKLES, Tensors, fill, open_folder
from sim.bridge.decoder import Decoder, init_parameters, shapes
from sim.bridge.generation import Sampling
from sim.bridge.gguf_file import Gguf
from sim.bridge.split import Split
from sim.bridge.tokenizer import Tokenizer
from ufm._check import finite, require

Prompt = str | Sequence[int] | Int[np.ndarray, " T"]
Prompts = Sequence[Prompt]


@dataclass(frozen=True)
class Generated:
    """What was generated.

    Attributes:
        tokens: of every prompt, its end not included.
        texts: the same as text, if there is a tokenizer.
        ended: whether each ended by itself.
    """

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ended: tuple[bool, ...]


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its tokenizer.

    Attributes:
        decoder: the parameters and what is computed with them.
        tokenizer: None for a model that has none.
        name: what it was loaded as.
        fingerprint: a hash of names, shapes and a sample of the weights, to tell results of different checkpoints apart.
    """

    decoder: Decoder
    tokenizer: Tokenizer | None = None
    name: str = ""
    fingerprint: str = ""

    @property
    def architecture(self) -> Architecture:
        """What the decoder is made of."""
        return self.decoder.architecture

    @property
    def parameters(self) -> dict[str, jax.Array]:
        """The parameters by path, as `sim.bridge.decoder.shapes` lists them."""
        return {name: _leaf(self.decoder, name)[...] for name in shapes(self.architecture)}

    @property
    def config(self) -> Architecture:
        """The same."""
        return self.architecture

    def contexts(
        self, prompts: Prompts, *, length: int | None = None, side: str = "left", room: int = 0
    ) -> tuple[Int[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """Prompts as one array of tokens, and which of it is not padding.

        Args:
            prompts: texts, or sequences of token ids.
            length: to pad to, so that programs are compiled for few lengths; the longest prompt if left out.
            side: of the padding.
            room: tokens that are to follow.

        Raises:
            ValueError: no prompt, an empty one, one that is too long for the model, token ids that it has not.
        """
        require(not isinstance(prompts, str), "prompts", "a list of prompts", f"the one string {prompts!r}")
        require(len(prompts) > 0, "prompts", "at least one", "none")
        rows = [self._tokens(prompt) for prompt in prompts]
        ids, seen = tokenizer.pad(rows, side=side, length=length)
        longest, context = int(seen.sum(axis=1).max()) + room, self.architecture.context
        require(
            longest <= context, "prompt", f"at most {context} tokens{f' with {room} to follow' if room else ''}", longest
        )
        outside = ids[(ids < 0) | (ids >= self.architecture.vocabulary)]
        require(outside.size == 0, "tokens", f"ids from 0 to {self.architecture.vocabulary - 1}", outside[:3].tolist())
        return ids, seen

    def _tokens(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            require(self.tokenizer is not None, "prompt", "token ids, for a model without a tokenizer", repr(prompt))
            assert self.tokenizer is not None
            return self.tokenizer.encode(prompt)
        return [int(i) for i in prompt]

    def logits(self, prompts: Prompts) -> list[Float[np.ndarray, "T V"]]:
        """The logits at every position of every prompt."""
        ids, seen = self.contexts(prompts)
        values = np.asarray(split.all_logits(self.decoder, jnp.asarray(ids), jnp.asarray(seen)))
        return [row[mask] for row, mask in zip(values, seen, strict=True)]

    def states(
        self, prompts: Prompts, *, length: int | None = None
    ) -> tuple[Float[Array, "L n T d"], Bool[np.ndarray, "n T"]]:
        """The residual stream after every block, in one pass, and which positions are not padding."""
        ids, seen = self.contexts(prompts, length=length)
        return split.all_states(self.decoder, jnp.asarray(ids), jnp.asarray(seen)), seen

    def difference_of_means(self, positive: Prompts, negative: Prompts) -> Float[np.ndarray, "L d"]:
        """The steering vector of every layer, from one pass over each of the two sets (S, equation 3 and section 5).

        The state of a text is the mean over its tokens, padding left out; that of a set is the mean over its texts.

        Raises:
            ValueError: as `contexts`.
        """
        sides = [self.contexts(texts) for texts in (positive, negative)]
        length, means = max(ids.shape[1] for ids, _ in sides), []
        for ids, seen in sides:
            more = ((0, 0), (length - ids.shape[1], 0))
            tokens, there = jnp.asarray(np.pad(ids, more)), jnp.asarray(np.pad(seen, more))
            means.append(np.asarray(split.all_means(self.decoder, tokens, there).mean(axis=1)))
        return means[0] - means[1]

    def at(
        self, layer: int, prompts: Prompts, *, length: int | None = None, last_only: bool = True, site: str = "state"
    ) -> Split:
        """The model cut after block `layer`, asked about these prompts (`sim.bridge.split`).

        Args:
            layer: 0 to L - 1.
            prompts: the contexts, which are then known by their index.
            length: to pad to, on the left.
            last_only: whether `decode` gives the logits of the last position only, which is most of the cost of logits.
            site: where updates act: "state", the stream after the block, or "down", its MLP's down-projection.

        Raises:
            ValueError: a layer outside the model, an unknown site; as `contexts`.
        """
        layers = self.architecture.layers
        whole = isinstance(layer, int | np.integer)
        require(whole and 0 <= layer < layers, "layer", f"a block from 0 to {layers - 1}", layer)
        ids, seen = self.contexts(prompts, length=length)
        graph, state = nnx.split(self.decoder)
        known = ("state", "down")
        require(site in known, "site", f"one of {', '.join(known)}", repr(site))
        return Split(state, jnp.asarray(ids), jnp.asarray(seen), jnp.asarray(layer), graph, last_only, site=site)

    def steering(self, vectors: Mapping[int, Any]) -> Float[np.ndarray, "L d"]:
        """What `generate` and `Split.and_later` add: a vector for each of some layers, and nothing after the others.

        Args:
            vectors: by layer, ``[d]`` each: ``{20: 2 * v}``.

        Raises:
            ValueError: a layer outside the model; a vector of another width.
        """
        a = self.architecture
        rows = np.zeros((a.layers, a.width), np.float32)
        for layer, v in vectors.items():
            require(0 <= layer < a.layers, "layer", f"a block from 0 to {a.layers - 1}", layer)
            require(np.shape(v) == (a.width,), "v", f"shape ({a.width},), the width of the stream", np.shape(v))
            rows[layer] = np.asarray(v)
        return rows

    def generate(
        self,
        prompts: Prompts,
        *,
        new: int = 50,
        each: int = 1,
        sampling: Sampling | None = None,
        seed: int = 0,
        steering: Any = None,
        length: int | None = None,
        stop: bool = True,
    ) -> Generated:
        """Continuations of prompts, with a key-value cache.

        Args:
            prompts: texts or token ids.
            new: tokens at most.
            each: continuations of every prompt, one after the other in what comes back.
            sampling: greedy if left out.
            seed: of the randomness.
            steering: what is added to the stream after each block, at every position, ``[L, d]``: ``alpha v`` in the row of
                a layer, zeros in the others; or one such array for each prompt, ``[n, L, d]``.
            length: to pad prompts to.
            stop: whether a token that ends a text ends a sequence.

        Raises:
            ValueError: as `contexts`; a steering of another shape.
        """
        require(new >= 1, "new", "at least one token", new)
        require(each >= 1, "each", "at least one continuation", each)
        ids, seen = self.contexts(prompts, length=length, room=new)
        a, chosen = self.architecture, sampling or Sampling()
        added = None
        if steering is not None:
            array = jnp.asarray(finite("steering", steering))
            fits = array.shape in ((a.layers, a.width), (len(prompts), a.layers, a.width))
            require(fits, "steering", f"shape ({a.layers}, {a.width}), or one such for each prompt", array.shape)
            added = jnp.broadcast_to(array, (len(prompts), a.layers, a.width))
        ends = self.tokenizer.ends if stop and self.tokenizer is not None and self.tokenizer.ends else (-1,)
        top_k = a.vocabulary if chosen.top_k is None else chosen.top_k
        settings = (jnp.asarray(chosen.temperature), jnp.asarray(top_k), jnp.asarray(chosen.top_p))
        out, lengths = generation.compiled(
            self.decoder,
            jnp.asarray(ids),
            jnp.asarray(seen),
            jax.random.key(seed),
            settings,
            jnp.asarray(ends, jnp.int32),
            added,
            new=new,
            sampled=chosen.temperature > 0,
            sort=chosen.sort,
            each=each,
        )
        rows = [row[:n].tolist() for row, n in zip(np.asarray(out), np.asarray(lengths), strict=True)]
        ended = [bool(row) and row[-1] in ends for row in rows]
        own = tuple(tuple(row[:-1] if over else row) for row, over in zip(rows, ended, strict=True))
        texts = () if self.tokenizer is None else tuple(self.tokenizer.decode(row) for row in own)
        return Generated(own, texts, tuple(ended))

    def save(self, folder: str | Path) -> Path:
        """Write the model into a new folder, as an Orbax checkpoint that `load` reads (`sim.bridge.trained`)."""
        return trained.save(folder, self.architecture, self.parameters, self.tokenizer)

    def with_dtype(self, dtype: DTypeLike) -> "LanguageModel":
        """The same weights, computed with in another type."""
        graph, state = nnx.split(self.decoder)
        decoder = nnx.merge(graph, state)
        decoder.dtype = jnp.dtype(dtype)
        return replace(self, decoder=decoder)


def _leaf(decoder: Decoder, path: str) -> Any:
    holder, _, name = path.rpartition(".")
    return getattr(decoder.blocks if holder else decoder, name)


def load(
    source: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    compute: DTypeLike | None = None,
    put: Callable[[str, np.ndarray], jax.Array] | None = None,
    progress: bool | None = None,
) -> LanguageModel:
    """A language model from a folder, a GGUF file, the default model's name, or a repository id.

    Args:
        source: a Hugging Face folder; a `.gguf` file; "smollm2-135m-instruct", which is fetched if it is not there; or
            "owner/name", which needs a network.
        dtype: of the weights.
        compute: of the computation; as the weights if left out.
        put: where a parameter goes, by its path (`sim.bridge.sharding`); to the default device if left out.
        progress: whether to show a bar.

    Raises:
        ValueError: nothing of that name, or a checkpoint that is not whole; the message says what is wrong.
    """
    require(bool(str(source)), "model", "a name or a path", "none")
    path = Path(source)
    if str(source) == fetch.NAME:
        path = fetch.fetch()
    elif not path.exists() and _is_repository(str(source)):
        path = _from_hub(str(source))
    known = f"a folder, a .gguf file, {fetch.NAME} or a repository id"
    require(path.exists(), "model", known, f"{str(source)!r}, where there is nothing")
    require(path.suffix not in PICKLES, "model", "safetensors or GGUF (a pickle can run code; convert it)", path.name)
    digest = hashlib.sha256()
    if path.is_dir() and trained.is_one(path):
        architecture, parameters, words = trained.read(path, dtype=dtype, put=put, digest=digest)
    else:
        architecture, tensors, words = _open(path)
        parameters = fill(architecture, tensors, dtype=dtype, put=put, progress=progress, digest=digest)
    if words is not None:
        require(words.size <= architecture.vocabulary, "tokenizer", f"at most {architecture.vocabulary} tokens", words.size)
    decoder = Decoder(architecture, parameters, dtype=dtype if compute is None else compute)
    return LanguageModel(decoder, words, str(source), digest.hexdigest()[:16])


def _open(path: Path) -> tuple[Architecture, Tensors, Tokenizer | None]:
    """The architecture, the tensors and the tokenizer of a folder or a GGUF file."""
    if path.is_dir():
        return *open_folder(path), tokenizer.from_folder(path) if (path / "tokenizer.json").is_file() else None
    require(path.suffix == ".gguf", "model", "a folder or a .gguf file", repr(str(path)))
    file = Gguf(path)
    architecture, words = file.architecture, tokenizer.from_gguf(file)
    file.forget_metadata()
    return architecture, file, words


def random_model(architecture: Architecture, key: jax.Array, *, dtype: DTypeLike = jnp.float32) -> LanguageModel:
    """A model of random weights, without a tokenizer."""
    parameters = init_parameters(key, architecture, dtype=dtype)
    drawn = hashlib.sha256(f"{architecture}{jax.random.key_data(key).tolist()}{jnp.dtype(dtype)}".encode())
    return LanguageModel(Decoder(architecture, parameters, dtype=dtype), None, "random", drawn.hexdigest()[:16])


def _is_repository(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith("/")


def _from_hub(source: str) -> Path:
    """The folder of a repository, in the hub's own cache; pickles are not brought."""
    import huggingface_hub

    kinds = ["*.json", "*.safetensors", "flax_model.msgpack", "tokenizer.model", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=kinds))
    except Exception as error:
        words = str(error).strip().splitlines()
        cause = f"{type(error).__name__}{f': {words[0]}' if words else ''}"
        raise ValueError(
            f"model: expected a folder, or a repository that can be reached, got {source!r} ({cause})"
        ) from error

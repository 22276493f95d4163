"""A language model, loaded: logits, residual streams, the split at a layer, generation, and its tokenizer.

lm = load("smollm2-135m-instruct")
split = lm.split(["The weather today is"], 20)         # a `ufm.Steerable`, as the UFM is one
logits = ufm.steer(split, [0], v, 4.0)
text = lm.generate(["The weather today is"], steering=ufm.Steering({20: ufm.Add(v)}), alpha=4.0).texts[0]
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from sim.bridge import devices, fetch, generation, sharding
from sim.bridge.config import Config
from sim.bridge.decoder import Decoder
from sim.bridge.files import read_json, reading
from sim.bridge.generation import Sampler, Sampling
from sim.bridge.offload import offloaded
from sim.bridge.parameters import init_parameters, parameter_bytes, shapes
from sim.bridge.split import MLP_DOWN, Split, all_logits, all_states, block_activation_size, sites_of
from sim.bridge.tokenizer import Tokenizer, from_folder, from_gguf, pad
from sim.bridge.weights import orbax_checkpoint
from sim.bridge.weights.gguf_file import Gguf
from sim.bridge.weights.hf import PICKLES, Tensors, load_params, open_folder
from ufm._check import finite, random_seed, real_numbers, require, shown, typed, whole_number
from ufm.steering import RESIDUAL, Steering, require_contexts, require_sites

Prompts = Any
"""A list of prompts, each a text, token ids (a list, or an array of any library), or the messages of a chat. What people
pass in is checked where it is used (`LanguageModel.contexts`)."""


@dataclass(frozen=True)
class Generated:
    """The sequences that a model generated.

    Attributes:
        tokens: of every prompt, its end not included.
        texts: the same as text, if there is a tokenizer.
        ended: whether each ended by itself.
        factors, costs: with a budget, what the strengths were lowered by at the prediction of each token, from 0 to 1, and
            what the prediction cost, KL in nats; of the end too, where there is one.
    """

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ended: tuple[bool, ...]
    factors: tuple[tuple[float, ...], ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its tokenizer.

    Attributes:
        decoder: the parameters and what is computed with them.
        tokenizer: None for a model that has none.
        name: what it was loaded as.
        fingerprint: a hash of names, shapes and a sample of the weights, to tell results of different checkpoints apart.
        memory_budget: numbers that sweeps of it hold at once; what suits the device (`sim.bridge.devices`) if left out.
    """

    decoder: Decoder
    tokenizer: Tokenizer | None = None
    name: str = ""
    fingerprint: str = ""
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        """Refuse a budget that holds nothing."""
        if self.memory_budget is not None:
            whole_number("memory_budget", self.memory_budget, 1)

    @property
    def device(self) -> jax.Device:
        """The device that has its parameters; the first one if they are spread."""
        return devices.device_of(self.decoder.embedding)

    @property
    def config(self) -> Config:
        """The description of the decoder."""
        return self.decoder.config

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The devices that its parameters are spread over; None for one device."""
        return sharding.mesh_of(self.decoder.embedding[...])

    @property
    def groups(self) -> tuple["LanguageModel", ...]:
        """The model on each group of devices of this process that has all parameters, which are not copied.

        Raises:
            ValueError: a group with devices of several processes.
        """
        if self.mesh is None or self.mesh.shape["data"] == 1:
            return (self,)
        graph, state = nnx.split(self.decoder)
        parts = [jax.tree.map(partial(sharding.part_of, group=mesh), state) for mesh in sharding.groups(self.mesh)]
        return tuple(replace(self, decoder=nnx.merge(graph, part)) for part in parts)

    @property
    def parameters(self) -> dict[str, jax.Array]:
        """The parameters by path, as `sim.bridge.parameters.shapes` lists them."""
        return {name: _leaf(self.decoder, name)[...] for name in shapes(self.config)}

    def __repr__(self) -> str:
        a, decoder = self.config, self.decoder
        where = ", ".join(sorted({str(device) for device in decoder.embedding[...].devices()}))
        vocabulary = "no tokenizer" if self.tokenizer is None else f"{self.tokenizer.size} tokens"
        return (
            f"LanguageModel({self.name!r}: {a.family}, {a.num_layers} layers of width {a.d_model}, {vocabulary}, "
            f"{jnp.dtype(decoder.dtype).name} on {where})"
        )

    @typed
    def contexts(
        self, prompts: Prompts, *, length: int | None = None, side: str = "left", room: int = 0, chat: bool = False
    ) -> tuple[Int[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """Prompts as one array of tokens, and which of it is not padding.

        Args:
            prompts: texts, or sequences of token ids.
            length: to pad to, so that programs are compiled for few lengths; the longest prompt if left out.
            side: of the padding.
            room: tokens that are to follow.
            chat: whether each prompt is what a user says (or a list of messages), and is put into the form of a chat, up to
                the opening of the answer.

        Raises:
            ValueError: no prompt, an empty one, one that is too long for the model, token ids that it has not; a length that
                is too long for the model.
        """
        alone = f"the one string {shown(prompts)}" if isinstance(prompts, str) else shown(prompts)
        require(_is_list(prompts), "prompts", "a list of prompts", alone)
        prompts = list(prompts)
        require(len(prompts) > 0, "prompts", "at least one", "none")
        rows = [self._tokens(prompt, k, chat) for k, prompt in enumerate(prompts)]
        context = self.config.max_seq_len
        fits = length is None or whole_number("length", length, 1) <= context
        require(fits, "length", f"at most the {context} tokens of the model's context", length)
        ids, mask = pad(rows, side=side, length=length)
        longest = int(mask.sum(axis=1).max()) + room
        require(
            longest <= context, "prompt", f"at most {context} tokens{f' with {room} to follow' if room else ''}", longest
        )
        switch, lengths = self.config.longrope_switch_length, mask.sum(axis=1)
        if switch is not None and room:
            # Keys that are kept would have been turned by the frequencies of shorter sequences.
            crosses = (lengths <= switch) & (lengths + room - 1 > switch)
            beyond = f"beyond {switch} tokens the model has other rotary frequencies"
            expected = f"longer prompts, or prompts of at most {switch + 1} tokens with the new ones ({beyond})"
            require(not crosses.any(), "max_new_tokens", expected, room)
        return ids, mask

    def _tokens(self, prompt: Any, k: int, chat: bool) -> list[int]:
        tokenizer = self.tokenizer
        if chat or isinstance(prompt, str):
            require(tokenizer is not None, "prompt", "token ids, for a model without a tokenizer", shown(prompt))
            assert tokenizer is not None
            if not chat:
                return self._known(tokenizer.encode(prompt))
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return self._known(tokenizer.encode(tokenizer.chat(messages), special=False))
        expected = "a text or token ids"
        require(_is_list(prompt) and getattr(prompt, "ndim", 1) == 1, "prompt", expected, f"{shown(prompt)} in place {k}")
        messages = isinstance(prompt, list | tuple) and any(isinstance(message, Mapping) for message in prompt)
        require(not messages, "prompt", expected, f"messages in place {k}: give chat=True")
        ids = prompt if isinstance(prompt, list | tuple) else real_numbers(f"prompt {k}", prompt).tolist()
        return self._known([whole_number(f"prompt {k}", i) for i in ids])

    def _known(self, ids: list[int]) -> list[int]:
        """Token ids, if the model has them all: a tokenizer may have more."""
        last = self.config.vocab_size - 1
        outside = next((i for i in ids if not 0 <= i <= last), None)
        if outside is not None:
            known = self.tokenizer is not None and 0 <= outside < self.tokenizer.size
            text = self.tokenizer.core.id_to_token(outside) if self.tokenizer is not None and known else None
            of = "" if text is None else f" ({text!r}, of the tokenizer only)"
            require(False, "tokens", f"ids from 0 to {last}", f"[{outside}]{of}")
        return ids

    @typed
    def logits(self, prompts: Prompts, *, chat: bool = False) -> list[Float[np.ndarray, "T V"]]:
        """The logits at every position of every prompt, in float32 at least; prompts are taken in batches.

        Raises:
            ValueError: as `contexts`; logits that are not finite.
        """
        ids, mask = self.contexts(prompts, chat=chat)
        more = ids.shape[1] * self.config.vocab_size
        rows = [row[real] for row, real in zip(self._in_batches(all_logits, ids, mask, more, axis=0), mask, strict=True)]
        if not all(np.isfinite(row).all() for row in rows):
            each = (_first_not_finite(states, real) for states, real in zip(self._states(ids, mask), mask, strict=True))
            block = next((block for block in each if block is not None), None)
            self._require_finite(
                "logits", False, "in the last norm or the logits" if block is None else f"after block {block}"
            )
        return rows

    @typed
    def states(
        self, prompts: Prompts, *, length: int | None = None, chat: bool = False
    ) -> tuple[Float[np.ndarray, "L n T d"], Bool[np.ndarray, "n T"]]:
        """The residual stream after every block, from one pass in batches, and which positions are not padding.

        Raises:
            ValueError: as `contexts`; states that are not finite.
        """
        ids, mask = self.contexts(prompts, length=length, chat=chat)
        states = []
        for each, real in zip(self._states(ids, mask), mask, strict=True):
            block = _first_not_finite(each, real)
            self._require_finite("states", block is None, f"after block {block}")
            states.append(each)
        return np.stack(states, axis=1), mask

    def _states(self, ids: np.ndarray, mask: np.ndarray) -> Iterator[Float[np.ndarray, "L T d"]]:
        """The residual stream of each context after every block."""
        more = ids.shape[1] * self.config.num_layers * self.config.d_model
        return self._in_batches(all_states, ids, mask, more, axis=1)

    def _in_batches(self, program: Any, ids: np.ndarray, mask: np.ndarray, more: int, *, axis: int) -> Iterator[np.ndarray]:
        """The results of a program for each context.

        Args:
            program: from the decoder, contexts and their mask to an array.
            ids, mask: the contexts.
            more: as in `batches`.
            axis: of the array that contexts are along.
        """
        for rows in self.batches(*ids.shape, more=more):
            values = np.asarray(program(self.decoder, *self.on_devices(ids[rows], mask[rows])))
            yield from np.moveaxis(values, axis, 0)[: len(np.unique(rows))]

    def on_devices(self, *rows: np.ndarray) -> tuple[jax.Array, ...]:
        """Arrays of a row for each context, over the groups of devices of its mesh if that comes out even."""
        if self.mesh is None or len(rows[0]) % self.mesh.shape["data"]:
            return tuple(map(jnp.asarray, rows))
        return sharding.spread(self.mesh, *rows)

    def batches(self, n: int, length: int, *, more: int = 0, budget: int | None = None) -> Iterator[Int[np.ndarray, " b"]]:
        """The numbers of contexts in batches of one size, for which a program is compiled once.

        The last batch is filled up with the last context.

        Args:
            n, length: number of contexts, and of their tokens.
            more: numbers that a program holds for a context beside those of a block.
            budget: numbers that are held at once; what suits the device if left out.

        Raises:
            ValueError: a device that has no room for a batch; a budget below 1.
        """
        usual = self.memory_budget or devices.portion(self.device).budget
        allowed = usual if budget is None else whole_number("budget", budget, 1)
        activation_size = block_activation_size(self.config, length, length) + more
        size = -(-n // -(-n // max(1, allowed // activation_size)))
        if self.mesh is not None and size > 1:
            data = self.mesh.shape["data"]
            size = -(-size // data) * data
        devices.require_room("prompts", size * more * max(4, self.decoder.dtype.itemsize), self.device)
        for start in range(0, n, size):
            yield np.minimum(np.arange(start, start + size), n - 1)

    def _require_finite(self, argument: str, finite: bool, place: str) -> None:
        """Refuse numbers of an unsteered model that are not finite, and say where they first are."""
        require(finite, argument, "finite numbers", f"others, first {place}, in {self.decoder.dtype.name}")

    @typed
    def split(
        self,
        prompts: Prompts,
        layer: Any = None,
        *,
        length: int | None = None,
        last_only: bool = True,
        site: str = "residual",
        chat: bool = False,
    ) -> Split:
        """The model split after block `layer`, asked about these prompts (`sim.bridge.split`).

        Args:
            prompts: the contexts, which are then known by their index.
            layer: 0 to L - 1; where steerings without a layer act, plain vectors among them. If left out, each steering
                tells.
            length: to pad to, on the left.
            last_only: whether `decode` gives the logits of the last position only, which is most of the cost of logits.
            site: "residual", after the block, or "mlp_down", before the MLP: where states are taken if nothing steers.
            chat: as in `contexts`.

        Raises:
            ValueError: a layer outside the model, an unknown site; as `contexts`.
        """
        at = None if layer is None else jnp.asarray(self._layer(layer))
        ids, mask = self.contexts(prompts, length=length, chat=chat)
        graph, state = nnx.split(self.decoder)
        known = (RESIDUAL, MLP_DOWN)
        require(site in known, "site", f"one of {', '.join(known)}", repr(site))
        portion = devices.portion(self.device)
        fixed: dict[str, Any] = {
            "site": site,
            "batch_sharding": None if self.mesh is None else sharding.over_groups(self.mesh),
            "budget": self.memory_budget or portion.budget,
            "strengths_per_batch": portion.strengths_per_batch,
        }
        tokens, real = self.on_devices(ids, mask)
        split = Split(state, tokens, real, at, graph, last_only, **fixed)
        devices.require_room("prompts", 4 * split.activation_size, self.device)
        return split

    def _layer(self, layer: Any) -> int:
        last = self.config.num_layers - 1
        expected = f"a block from 0 to {last}"
        require(not isinstance(layer, str), "layer", expected, shown(layer))
        number = whole_number("layer", layer)
        require(0 <= number <= last, "layer", expected, number)
        return number

    @typed
    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 50,
        num_return_sequences: int = 1,
        sampling: Sampling | None = None,
        seed: int = 0,
        steering: Any = None,
        alpha: Any = 1.0,
        length: int | None = None,
        stop: bool = True,
        chat: bool = False,
    ) -> Generated:
        """Continuations of prompts, with a key-value cache.

        Args:
            prompts: texts or token ids.
            max_new_tokens: of each continuation.
            num_return_sequences: continuations of every prompt, one after the other in what comes back.
            sampling: greedy if left out.
            seed: of the randomness.
            steering: what acts while the model reads and writes, such as ``Steering({20: Add(v)})``: every part has a layer.
                With a budget, ``Steering({20: Add(v)}, budget=0.1)``, strengths are lowered for the prompt and for each
                token whose prediction would cost more (`ufm.kl_cap`), and it takes six to ten times as long.
            alpha: its strength: a number, one for each prompt, ``[n]``, or one for each prompt and part, ``[n, k]``.
            length: to pad prompts to.
            stop: whether a token that ends a text ends a sequence.
            chat: as in `contexts`: `generate(["Who are you?"], chat=True)` answers.

        Raises:
            ValueError: as `contexts`; a steering for another model, another number of strengths; logits that are not finite;
                more continuations than the device has room for.
        """
        new, seed = whole_number("max_new_tokens", max_new_tokens, 1), whole_number("seed", seed)
        copies = whole_number("num_return_sequences", num_return_sequences, 1)
        require(sampling is None or isinstance(sampling, Sampling), "sampling", "a Sampling", shown(sampling))
        ids, mask = self.contexts(prompts, length=length, room=new, chat=chat)
        strengths = self._strengths(steering, alpha, len(ids))
        eos_ids = self.tokenizer.eos_ids if stop and self.tokenizer is not None and self.tokenizer.eos_ids else (-1,)
        caches = 1 if steering is None or steering.budget is None else 2  # with a budget, that of the unsteered model too
        self._require_room_for_keys(len(ids), copies, caches * (ids.shape[1] + new))
        tokens, real = self.on_devices(ids, mask)
        out, lengths, finite_throughout, capped = generation.compiled(
            self.decoder,
            tokens,
            real,
            Sampler.of(sampling or Sampling(), jax.random.key(random_seed("seed", seed)), self.config.vocab_size),
            jnp.asarray(eos_ids, jnp.int32),
            steering,
            jnp.asarray(strengths),
            max_new_tokens=new,
            num_return_sequences=copies,
        )
        if not bool(finite_throughout):
            self.logits(prompts, chat=chat)
            self._refuse_steering(steering, strengths)
        return self._generated(np.asarray(out), np.asarray(lengths), capped, eos_ids)

    def _require_room_for_keys(self, prompts: int, copies: int, tokens: int) -> None:
        """Refuse more continuations than the device has room for, by their keys and values and their logits."""
        a = self.config
        numbers = 2 * tokens * a.num_layers * a.num_kv_heads * a.head_dim + a.vocab_size
        size = prompts * numbers * self.decoder.dtype.itemsize
        devices.require_room("prompts", size, self.device)
        devices.require_room("num_return_sequences", copies * size, self.device)

    def _refuse_steering(self, steering: Steering | None, strengths: np.ndarray) -> None:
        """Refuse what generation was steered by, if its logits were not finite though those of the prompts are."""
        kind, sizes = self.decoder.dtype.name, ", ".join(f"{size:.3g}" for size in np.abs(strengths).max(axis=0))
        require(steering is not None, "generate", "finite logits", f"others, in {kind}, after some tokens")
        require(False, "alpha", f"strengths at which logits are finite in {kind}", f"up to {sizes} of {steering}")

    def _generated(
        self, out: np.ndarray, lengths: np.ndarray, capped: generation.KLCapped | None, eos_ids: tuple[int, ...]
    ) -> Generated:
        """The new tokens of every sequence, without its end, and whether it has one; with a budget, what each cost."""
        rows = [row[:n].tolist() for row, n in zip(out, lengths, strict=True)]
        ended = tuple(bool(row) and row[-1] in eos_ids for row in rows)
        tokens = tuple(tuple(row[:-1] if over else row) for row, over in zip(rows, ended, strict=True))
        texts = () if self.tokenizer is None else tuple(self.tokenizer.decode(row) for row in tokens)
        per_token = (
            tuple(tuple(row[:n].tolist()) for row, n in zip(np.asarray(values), lengths, strict=True))
            for values in (() if capped is None else (capped.factors, capped.costs))
        )
        return Generated(tokens, texts, ended, *per_token)

    def _strengths(self, steering: Any, alpha: Any, count: int) -> Float[np.ndarray, "n k"]:
        """The strength of each part of a steering for each prompt, in float32."""
        require(steering is None or isinstance(steering, Steering), "steering", "a Steering({layer: ...})", shown(steering))
        array = finite("alpha", alpha)
        if steering is None:
            return np.zeros((count, 1), np.float32)
        a, parts = self.config, len(steering.parts)
        require_sites(steering, sites_of(a), layers=a.num_layers)
        require_contexts(steering, count)
        placed = all(part.layer is not None for part in steering.parts)
        require(placed, "steering", "a layer for every intervention, as in Steering({12: Add(v)})", repr(steering))
        largest = np.max(np.abs(array), initial=0)
        require(largest <= np.finfo(np.float32).max, "alpha", "strengths that float32 holds", f"{largest:g}")
        fits = array.ndim == 0 or array.shape == (count,) or array.shape in ((count, parts), (1, parts))
        require(fits, "alpha", f"a number, one for each prompt, [{count}], or [{count}, {parts}] for each part", array.shape)
        columns = array[:, None] if array.ndim == 1 else array
        return np.broadcast_to(columns, (count, parts)).astype(np.float32)

    @typed
    def save(self, folder: str | Path) -> Path:
        """Write the model as an Orbax checkpoint that `load` reads (`sim.bridge.weights`).

        Raises:
            ValueError: a folder that holds something, or a file.
        """
        return orbax_checkpoint.save(folder, self.config, self.parameters, self.tokenizer)

    def with_dtype(self, dtype: DTypeLike, *, precision: str | None = None) -> "LanguageModel":
        """A model of these weights that computes in another type; `precision` as in `load`, as it is if left out."""
        graph, state = nnx.split(self.decoder)
        decoder = nnx.merge(graph, state)
        decoder.dtype = devices.known_type("dtype", dtype)
        decoder.fast = decoder.fast if precision is None else _is_fast(precision)
        return replace(self, decoder=decoder)


def _is_list(value: Any) -> bool:
    """Whether it has members, and is neither text nor bytes nor a mapping."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) and getattr(value, "ndim", 1) > 0


def _is_fast(precision: str) -> bool:
    require(precision in devices.PRECISIONS, "precision", f"one of {', '.join(devices.PRECISIONS)}", repr(precision))
    return precision == "fast"


def _first_not_finite(states: Float[np.ndarray, "L T d"], real: Bool[np.ndarray, " T"]) -> int | None:
    """The block after which the stream of a context first has numbers that are not finite; None if it has none."""
    bad = ~np.isfinite(states[:, real]).all(axis=(1, 2))
    return int(np.argmax(bad)) if bad.any() else None


def _leaf(decoder: Decoder, path: str) -> Any:
    holder, _, name = path.rpartition(".")
    return getattr(decoder.blocks if holder else decoder, name)


@typed
def load(
    source: Any,
    *,
    dtype: Any = jnp.float32,
    compute: Any = None,
    precision: str = "full",
    mesh: jax.sharding.Mesh | str | None = None,
    hosts: int = 1,
    offload: bool | None = False,
    progress: bool | None = None,
) -> LanguageModel:
    """A language model from a folder, a GGUF file, the default model's name, or a repository id.

    Args:
        source: a Hugging Face folder; a GGUF file; "smollm2-135m-instruct", which is downloaded at the first use; or
            "owner/name", which needs a network.
        dtype: of the weights, one of `sim.bridge.devices.TYPES`.
        compute: of the computation; as the weights if left out.
        precision: "full", and products of float32 are float32 on every device; or "fast", and they are what the device does
            fastest: TF32 on NVIDIA cards, with a relative error of 3e-4. Half types do not know the difference.
        mesh: devices that the parameters are spread over (`sim.make_mesh`), or a text such as "data=2,model=4" or "auto"
            (`sim.bridge.sharding.mesh_from_text`); the default device if left out.
        hosts: how many share the mesh of that text; this one gets its part of the groups.
        offload: whether the matrices of the blocks stay in the memory of the host, for a model that is larger than the
            device: each block comes to the device when it runs. None: where the device has no room for them.
        progress: whether to show a bar.

    Raises:
        ValueError: nothing of that name, or a checkpoint that is not whole; an unknown type or precision; a device that the
            parameters do not fit on. The message says what is wrong.
    """
    named = isinstance(source, str | Path) and bool(str(source))
    require(named, "model", "a name or a path", shown(source) if source else "none")
    kind, fast = devices.known_type("dtype", dtype), _is_fast(precision)
    computing = kind if compute is None else devices.known_type("compute", compute)
    device = devices.default_device()
    path = Path(source)
    if str(source) == fetch.NAME:
        path = fetch.fetch()
    elif not _exists(path) and _is_repository(str(source)):
        path = _from_hub(str(source))
    known = f"a folder, a GGUF file, {fetch.NAME} or a repository id"
    require(_exists(path), "model", known, f"{shown(str(source))}, where there is nothing")
    digest = hashlib.sha256()
    sharding_of = None if mesh is None else sharding.on_mesh(mesh, kind, hosts, offload=bool(offload))
    if offload is not False:
        sharding_of = offloaded(sharding_of, kind, needed=offload is None)
    if path.is_dir() and orbax_checkpoint.is_checkpoint(path):
        config, parameters, tokenizer = orbax_checkpoint.read(path, dtype=kind, sharding_of=sharding_of, digest=digest)
    else:
        config, tensors, tokenizer = _open(path)
        if sharding_of is None:
            devices.require_room("model", parameter_bytes(config, kind), device)
        parameters = load_params(config, tensors, dtype=kind, sharding_of=sharding_of, progress=progress, digest=digest)
    decoder = Decoder(config, parameters, dtype=computing, fast=fast)
    return LanguageModel(decoder, tokenizer, str(source), digest.hexdigest()[:16])


def _open(path: Path) -> tuple[Config, Tensors, Tokenizer | None]:
    """The architecture, the tensors and the tokenizer of a folder or a GGUF file."""
    if path.is_dir():
        _require_model(path)
        return *open_folder(path), from_folder(path)
    _require_gguf(path)
    file = Gguf(path)
    config, tokenizer = file.config, from_gguf(file)
    file.forget_metadata()
    return config, file, tokenizer


def _require_model(folder: Path) -> None:
    """Refuse a folder that holds something else than a model, and say what to do with it."""
    about, whole = folder / "adapter_config.json", (folder / "config.json").is_file()
    if about.is_file() or ((folder / "adapter_model.safetensors").is_file() and not whole):
        base = repr(read_json(about).get("base_model_name_or_path")) if about.is_file() else "a model that it does not name"
        require(
            False,
            "model",
            "a whole model",
            f"{str(folder)!r}, a PEFT adapter for {base}: put the two together with PEFT (merge_and_unload, then "
            "save_pretrained into a new folder), and load that",
        )
    files = sorted(file.name for file in folder.glob("*.gguf"))
    others = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".msgpack", *PICKLES)]
    require(
        not files or (whole and bool(others)),
        "model",
        "a folder of a model, or a GGUF file",
        f"a folder that holds {', '.join(files)}: name one",
    )


def _require_gguf(path: Path) -> None:
    """Refuse a file that does not begin as GGUF files do, whatever it is called, and say what it is."""
    with reading(path, "a file that can be read", argument="model"), path.open("rb") as file:
        start = file.read(8)
    if start[:4] == b"GGUF":
        return
    kinds = {
        "a pickle (a pickle can run code; convert it to safetensors)": start[:4] == b"PK\x03\x04" or start[:1] == b"\x80",
        "a file of GGML from before GGUF: convert it anew": start[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"),
        "an empty file": not start,
        "one file of a model: give its folder": path.suffix in (".safetensors", ".json", ".msgpack", ".model"),
        "a pickle by its name (a pickle can run code; convert it to safetensors)": path.suffix in PICKLES,
    }
    description = next((kind for kind, fits in kinds.items() if fits), "a file that does not begin as GGUF does")
    require(False, "model", "a folder or a GGUF file", f"{str(path)!r}, {description}")


@typed
def random_model(config: Config, key: jax.Array, *, dtype: Any = jnp.float32, offload: bool = False) -> LanguageModel:
    """A model of random weights, without a tokenizer; `offload` as in `load`, once they have been drawn on the device."""
    dtype = devices.known_type("dtype", dtype)
    devices.require_room("config", parameter_bytes(config, dtype), devices.default_device())
    parameters = init_parameters(key, config, dtype=dtype)
    if offload:
        place = offloaded(None, dtype)
        parameters = {name: jax.device_put(value, place(config, name, value.shape)) for name, value in parameters.items()}
    drawn = hashlib.sha256(f"{config}{jax.random.key_data(key).tolist()}{jnp.dtype(dtype)}".encode())
    return LanguageModel(Decoder(config, parameters, dtype=dtype), None, "random", drawn.hexdigest()[:16])


def _exists(path: Path) -> bool:
    """Whether there is a file or a folder; names that no file can have are of none."""
    try:
        return path.exists()
    except OSError:
        return False


def _is_repository(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith("/")


def _from_hub(source: str) -> Path:
    """The folder of a repository, in the hub's own cache; pickles are not brought."""
    import huggingface_hub

    kinds = ["*.json", "*.safetensors", "flax_model.msgpack", "tokenizer.model", "merges.txt", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=kinds))
    except Exception as error:
        words = str(error).strip().splitlines()
        cause = f"{type(error).__name__}{f': {words[0]}' if words else ''}"
        raise ValueError(
            f"model: expected a folder, or a repository that can be reached, got {source!r} ({cause})"
        ) from error

"""Sparse autoencoders of a model's states: ``a = ReLU(W_e (h - b_d) + b_e)`` is sparse, and ``W_d a + b_d`` is close to h.

The columns of W_d, atoms of length 1, are directions that the states of tokens are made of, a few at a time. They minimise
the mean of ``1/2 ||h - W_d a - b_d||^2 + lambda ||a||_1``: sparse coding, with codes that an encoder gives at once. What the
directions have to do with two sets of texts is in `sim.directions.features`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ufm._check import finite, finite_number, random_key, require, typed, whole_number
from ufm.precision import full

NORMALIZATIONS = ("none", "center", "layer_norm", "constant_norm_rescale")
"""What is done to a state before it is encoded, and undone after: nothing; its mean over coordinates is taken out; that, and
its standard deviation becomes 1; its norm becomes sqrt(d)."""

ACTIVATIONS = ("relu", "jumprelu", "topk")

MOST_ACTIVATIONS = 2**26
"""Numbers that are held at once where states are encoded: 256 MiB."""


@dataclass(frozen=True)
class Report:
    """What an autoencoder makes of states; lengths are in units of the root mean square of a coordinate of a state.

    Attributes:
        loss: mean of ``1/2 ||h - h'||^2 + lambda ||a||_1``.
        gradient: norm of its gradient.
        l0: features that are active on a state, in the mean.
        explained_variance: 1 less the mean squared error over the variance of the states.
        dead: features that are active on none of the states.
        losses: of the batch of every step, if it was trained.
    """

    loss: float
    gradient: float
    l0: float
    explained_variance: float
    dead: int
    losses: tuple[float, ...] = ()


class SparseAutoencoder(nnx.Module):
    """A sparse autoencoder of the states after a block.

    Attributes:
        encoder, encoder_bias: ``[d, f]`` and ``[f]``, for f features.
        decoder, decoder_bias: an atom for each feature, ``[f, d]``, and ``[d]``.
        threshold: a feature whose value is not above it is not active, ``[f]``; for "jumprelu".
        typical: mean of what a feature is where it is active, ``[f]``, 0 for those that never were; None if unknown.
        activation: one of `ACTIVATIONS`; k is how many features are active at most, for "topk".
        subtracts_bias: whether the bias of the decoder is taken off a state before it is encoded.
        normalization: one of `NORMALIZATIONS`.
        layer: the block whose states it is for; None if unknown.
        source: where it is from.
        report: on the states that it was trained on; None if unknown.
    """

    def __init__(
        self,
        encoder: Any,
        encoder_bias: Any,
        decoder: Any,
        decoder_bias: Any,
        *,
        threshold: Any = None,
        typical: Any = None,
        activation: str = "relu",
        k: int = 0,
        subtracts_bias: bool = True,
        normalization: str = "none",
        layer: int | None = None,
        source: str = "",
        report: Report | None = None,
    ) -> None:
        self.encoder, self.encoder_bias = nnx.Param(encoder), nnx.Param(encoder_bias)
        self.decoder, self.decoder_bias = nnx.Param(decoder), nnx.Param(decoder_bias)
        self.threshold = None if threshold is None else nnx.Param(threshold)
        self.typical = None if typical is None else nnx.Variable(typical)
        self.activation, self.k, self.subtracts_bias, self.normalization = activation, k, subtracts_bias, normalization
        self.layer, self.source, self.report = layer, source, report

    @property
    def width(self) -> int:
        """The width of the states."""
        return self.encoder.shape[0]

    @property
    def features(self) -> int:
        """The number of its features."""
        return self.encoder.shape[1]

    def encode(self, states: Float[Array, "n d"]) -> Float[Array, "n f"]:
        """What each feature is in each state, 0 where it is not active."""
        return self._encoded(self._normalized(states)[0])

    def decode(self, activations: Float[Array, "n f"]) -> Float[Array, "n d"]:
        """The states that features make, as the encoder sees them: normalised."""
        return activations @ self.decoder[...] + self.decoder_bias[...]

    def __call__(self, states: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The states as the features give them."""
        x, mean, scale = self._normalized(states)
        return self.decode(self._encoded(x)) * scale + mean

    def _encoded(self, x: Float[Array, "n d"]) -> Float[Array, "n f"]:
        if self.subtracts_bias:
            x = x - self.decoder_bias[...]
        values = x @ self.encoder[...] + self.encoder_bias[...]
        active = jax.nn.relu(values)
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return jnp.where(values > jax.nn.relu(self.threshold[...]), active, 0)
        if self.activation == "topk":
            _, places = lax.top_k(values, self.k)
            chosen = jnp.zeros(values.shape, bool).at[jnp.arange(len(values))[:, None], places].set(True)
            return jnp.where(chosen, active, 0)
        return active

    def _normalized(self, states: Float[Array, "n d"]) -> tuple[Array, Array | float, Array | float]:
        """States as they are encoded, and what was taken off and divided by."""
        mean = states.mean(axis=-1, keepdims=True)
        if self.normalization == "center":
            return states - mean, mean, 1.0
        if self.normalization == "layer_norm":
            spread = states.std(axis=-1, keepdims=True, ddof=1)
            return (states - mean) / (spread + 1e-5), mean, spread
        if self.normalization == "constant_norm_rescale":
            scale = jnp.linalg.norm(states, axis=-1, keepdims=True) / self.width**0.5
            return states / scale, 0.0, scale
        return states, 0.0, 1.0


@typed
def encoded(sae: SparseAutoencoder, states: Float[np.ndarray, "n d"]) -> Iterator[Float[np.ndarray, "b f"]]:
    """What each feature is in each state, in batches: of a published autoencoder, all of it may not fit into memory.

    Args:
        sae: the autoencoder.
        states: the states.

    Raises:
        ValueError: no states, states that are not finite or of another width.
    """
    array = _states(states, sae.width)
    rows = max(1, MOST_ACTIVATIONS // sae.features)
    return (np.asarray(_encode(sae, jnp.asarray(array[k : k + rows]))) for k in range(0, len(array), rows))


@typed
def train_sparse_autoencoder(
    states: Float[np.ndarray, "n d"],
    *,
    features: int,
    sparsity: float = 1.0,
    steps: int = 1000,
    batch: int = 256,
    rate: float = 3e-3,
    decay: float = 1e-4,
    key: jax.Array | None = None,
    layer: int | None = None,
) -> SparseAutoencoder:
    """Train one with AdamW, in one compiled loop, in float32; the same arguments give the same autoencoder.

    States are scaled by one number to a root mean square norm of sqrt(d) while it is trained, so that `sparsity` means the
    same for every model and block; what is returned takes states as they are.

    Args:
        states: of tokens; those of attention sinks do not belong among them (`sim.directions.states.token_states`).
        features: how many.
        sparsity: the lambda of the loss, on scaled states.
        steps: of the optimiser.
        batch: states of a step, drawn with repetition; all of them, and in order, if there are no more.
        rate: the highest learning rate: after a warm-up of a twentieth of the steps it falls like a cosine to 0.
        decay: of the encoder's weights.
        key: for the first atoms and the batches; `jax.random.key(0)` if left out.
        layer: the block that the states are from.

    Raises:
        ValueError: fewer than two states, states that are not finite or all the same, a number out of range, a training
            that does not stay finite.
    """
    array = _states(states, None)
    require(len(array) > 1 and bool(np.ptp(array, axis=0).any()), "states", "states that differ", f"{len(array)} alike")
    f, steps, batch = (whole_number(*pair, 1) for pair in (("features", features), ("steps", steps), ("batch", batch)))
    sparsity, decay = (
        finite_number(name, value, "a number of at least 0", lambda x: x >= 0)
        for name, value in (("sparsity", sparsity), ("decay", decay))
    )
    rate = finite_number("rate", rate, "a number above 0", lambda x: x > 0)
    key = jax.random.key(0) if key is None else random_key("key", key)
    block = None if layer is None else whole_number("layer", layer, 0)
    scale = float(np.sqrt(np.mean(array.astype(float) ** 2)))
    scaled = jnp.asarray(array / scale)
    of_start, of_batches = jax.random.split(key)
    schedule = Schedule(steps, min(batch, len(array)), rate, decay)
    parameters, losses = _train(scaled, _start(scaled, f, of_start), of_batches, sparsity, schedule)
    require(bool(np.isfinite(losses).all()), "rate", "one at which the loss stays finite", rate)
    sae = SparseAutoencoder(**parameters)
    values = np.concatenate(list(encoded(sae, np.asarray(scaled))))
    # ReLU commutes with a positive factor: biases in the units of the states give activations in these units.
    parameters |= {name: parameters[name] * scale for name in ("encoder_bias", "decoder_bias")}
    return SparseAutoencoder(
        **parameters,
        typical=scale * values.sum(axis=0) / np.maximum((values > 0).sum(axis=0), 1),
        layer=block,
        source="trained",
        report=_report(sae, scaled, values, sparsity, losses),
    )


def loss_of(sae: SparseAutoencoder, states: Float[Array, "n d"], sparsity: Any) -> Float[Array, ""]:
    """Mean over states of half the squared error and `sparsity` times the sum of activations.

    Args:
        sae: an autoencoder with ReLU and without normalisation.
        states: as they are.
        sparsity: lambda.
    """
    values = sae.encode(states)
    errors = jnp.sum((states - sae.decode(values)) ** 2, axis=-1)
    return jnp.mean(errors / 2 + sparsity * jnp.sum(values, axis=-1))


def _states(states: Any, d: int | None) -> Float[np.ndarray, "n d"]:
    array = finite("states", states).astype(np.float32)
    require(array.ndim == 2 and array.size > 0, "states", "states [n, d], at least one", f"shape {array.shape}")
    require(d in (None, array.shape[1]), "states", f"states of width {d}", f"width {array.shape[1]}")
    return array


@jax.jit
@full
def _encode(sae: SparseAutoencoder, states: Float[Array, "n d"]) -> Float[Array, "n k"]:
    return sae.encode(states)


Parameters = dict[str, Any]


class Schedule(NamedTuple):
    """How long and how fast to train.

    Attributes:
        steps, batch, rate, decay: as for `train_sparse_autoencoder`.
    """

    steps: int
    batch: int
    rate: float
    decay: float

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with a warm-up and a cosine; the decay is of the encoder alone."""
        warm_up = max(1, self.steps // 20)
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, warm_up, max(self.steps, warm_up + 1))
        return optax.adamw(rate, weight_decay=self.decay, mask=lambda tree: {name: name == "encoder" for name in tree})


def _start(states: Float[Array, "n d"], features: int, key: jax.Array) -> Parameters:
    """Atoms along random states less their mean, which is the bias; the encoder is the decoder transposed."""
    of_places, of_noise = jax.random.split(key)
    mean = states.mean(axis=0)
    places = jax.random.choice(of_places, len(states), (features,), replace=features > len(states))
    # A state may be drawn more than once, or be the mean itself.
    noise = jax.random.normal(of_noise, (features, states.shape[1]), jnp.float32)
    atoms = _unit(_unit(states[places] - mean) + 0.1 * _unit(noise))
    return {"encoder": atoms.T, "encoder_bias": jnp.zeros(features, jnp.float32), "decoder": atoms, "decoder_bias": mean}


def _unit(rows: Float[Array, "f d"]) -> Float[Array, "f d"]:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _loss(parameters: Parameters, states: Float[Array, "n d"], sparsity: Any) -> Float[Array, ""]:
    """The loss with atoms of length 1, whatever length they come with."""
    return loss_of(SparseAutoencoder(**parameters | {"decoder": _unit(parameters["decoder"])}), states, sparsity)


@partial(jax.jit, static_argnames="schedule")
@full
def _train(
    states: Float[Array, "n d"], start: Parameters, key: jax.Array, sparsity: Any, schedule: Schedule
) -> tuple[Parameters, Float[Array, " steps"]]:
    optimizer, n = schedule.optimizer(), len(states)

    def step(carry: Any, key: jax.Array) -> Any:
        parameters, inner = carry
        rows = states if schedule.batch == n else states[jax.random.randint(key, (schedule.batch,), 0, n)]
        loss, gradient = jax.value_and_grad(_loss)(parameters, rows, sparsity)
        updates, inner = optimizer.update(gradient, inner, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return (parameters | {"decoder": _unit(parameters["decoder"])}, inner), loss

    keys = jax.random.split(key, schedule.steps)
    (parameters, _), losses = lax.scan(step, (start, optimizer.init(start)), keys)
    return parameters, losses


_loss_and_gradient = jax.jit(full(jax.value_and_grad(_loss)))


def _report(
    sae: SparseAutoencoder, states: Float[Array, "n d"], values: Float[np.ndarray, "n f"], sparsity: float, losses: Array
) -> Report:
    parameters = {name: getattr(sae, name)[...] for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")}
    loss, gradient = _loss_and_gradient(parameters, states, sparsity)
    errors = np.sum((np.asarray(states) - np.asarray(sae.decode(jnp.asarray(values)))) ** 2)
    active = values > 0
    return Report(
        loss=float(loss),
        gradient=float(jnp.linalg.norm(ravel_pytree(gradient)[0])),
        l0=float(active.sum(axis=1).mean()),
        explained_variance=float(1 - errors / np.sum(np.var(np.asarray(states), axis=0) * len(states))),
        dead=int((~active.any(axis=0)).sum()),
        losses=tuple(np.asarray(losses).tolist()),
    )

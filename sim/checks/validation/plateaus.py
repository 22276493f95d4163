"""Strong steering: the limit of proposition 4.1, and how fast it is approached (N11)."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from sim.bridge.readout import Readout, readout
from sim.bridge.split import Split, State
from sim.checks.validation.findings import Finding, Run, about_of, by_pair
from theory import arc
from ufm import Add, Steering
from ufm._batches import map_in_batches
from ufm.steerable import one_of


def plateaus(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """Proposition 4.1 with its rate, in float64: at every layer, steering forgets the prompt like ``C / |alpha|`` (N11)."""
    findings, parts = [], []
    with jax.enable_x64(True):
        wide, out = run.lm.with_dtype(jnp.float64), readout(run.lm)
        cuts = {layer: wide.split(run.texts.openings, layer) for layer in run.layers}
        for name, layer in run.pairs():
            arrays = _approach(cuts[layer], out, jnp.asarray(run.v(name, layer), float), run.size.far)
            approach = {key: np.asarray(value) for key, value in arrays.items()}
            sizes, distance, leading = approach["sizes"], approach["distance"], approach["leading"]
            # The rate, where it is the leading term and not yet rounding; rounding of the sizes themselves decides nothing.
            decades = np.log10(sizes / sizes[0]).round(6)
            clean = (decades >= 4) & (decades <= 6)
            slopes = [np.polyfit(np.log(sizes[clean]), np.log(row[clean]), 1)[0] for row in distance]
            ratio = distance[:, clean] * sizes[clean] / leading[:, None]
            about = about_of(name, layer)
            findings += [
                Finding(
                    "proposition-4.1",
                    about,
                    "distance to the limit beyond its bound, in logits",
                    approach["beyond"].max(),
                    1e-9,
                ),
                Finding("proposition-4.1", about, "exponent of the rate, less -1", np.abs(np.add(slopes, 1)).max(), 0.01),
                Finding(
                    "N11",
                    about,
                    "leading coefficient of the rate, relative error",
                    np.abs(ratio - 1).max(),
                    0.01,
                ),
            ]
            parts.append(
                xr.Dataset(
                    {
                        "distance": (("sign", "size"), distance),
                        "bound": (("sign", "size"), approach["bound"]),
                        "leading": ("sign", leading),
                        "strengths": ("size", sizes),
                    },
                    coords={"sign": [-1, 1]},
                )
            )
    return by_pair(run, parts), findings


@partial(jax.jit, static_argnames="count")
def _approach(split: Split, out: Readout, v: Array, count: int) -> dict[str, Array]:
    """How far the logits of all contexts are from their limit at large strengths of both signs, and what is said of it."""
    states, steering = split.embed(jnp.arange(split.n_contexts)), Steering(Add(v))
    own = states.stream[:, -1]
    sizes = jnp.max(jnp.linalg.norm(own, axis=-1)) / jnp.linalg.norm(v) * jnp.geomspace(1, 1e7, count)

    def of(sign, limit):
        def at(size):
            x = split.before_norm(states, steering, sign * size)
            reach = jnp.max(jnp.linalg.norm(x - sign * size * v, axis=-1))
            bound = arc.limit_bound(out.W, out.gamma, v, size, reach, kind=out.kind, eps=out.eps)
            off = jnp.abs(split.decoder.logits(x) - limit)
            return jnp.max(off), jnp.max(off - bound), jnp.max(bound)

        added, ones = _added(split, states, v, sign * 100 * sizes[-1]), jnp.ones(())
        leading = jax.jvp(lambda t: split.decoder.logits(sign * v + t * (own + added)), (0 * ones,), (ones,))[1]
        at_sizes = map_in_batches(at, sizes, split.strengths_per_batch, sharding=split.batch_sharding)
        return *at_sizes, jnp.max(jnp.abs(leading))

    both = [of(sign, out.limit(v, sign)) for sign in (-1, 1)]
    distance, beyond, bound, leading = (jnp.stack(parts) for parts in zip(*both, strict=True))
    return {"sizes": sizes, "distance": distance, "beyond": beyond, "bound": bound, "leading": leading}


def _added(split: Split, states: State, v: Array, huge: Array) -> Float[Array, " d"]:
    """What blocks add once the prompt is forgotten: they are given v alone, so large that their eps plays no part."""
    nothing = one_of(replace(states, stream=jnp.zeros_like(states.stream)), 0)
    return split.before_norm(nothing, Steering(Add(v)), huge) - huge * v

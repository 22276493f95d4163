"""Logits and a sweep of a small model over a mesh, written to a file: what the tests of sharding run in other processes.

python sharded.py FOLDER OUT DATA MODEL OFFLOAD [PROCESSES RANK PORT]
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import sim
import ufm
from sim.bridge import split
from sim.bridge.model import load
from sim.bridge.sharding import bytes_on_each, make_mesh, spread
from sim.measure import losses

STRENGTHS = 21

CONTEXTS = (1, 3, 4)
"""Of the prompts: those that come out even on two groups of devices, and those that do not."""

PROMPTS = [[3, 1, 4, 1], [5, 9], [2, 6, 5], [3, 5, 8, 9]]


def main(folder, out, data, model, offload, processes=1, rank=0, port=0):
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    mesh = make_mesh(data, model)
    lm = load(folder, mesh=mesh, offload=bool(offload), progress=False)
    assert lm.decoder.offloaded == bool(offload)
    assert all(group.decoder.offloaded == bool(offload) for group in lm.groups if processes == 1)
    if not offload:
        device, size = jax.local_devices()[0], bytes_on_each(lm.config, "float32", mesh.shape)
        parts = [part for value in lm.parameters.values() for part in value.addressable_shards if part.device == device]
        assert sum(part.data.nbytes for part in parts) == size
    shardings = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(split.nnx.state(lm.decoder))}
    ids, mask = spread(mesh, *lm.contexts(PROMPTS))
    logits = split.all_logits(lm.decoder, ids, mask)
    cut = replace(lm.split(PROMPTS, 1), tokens=ids, mask=mask)
    whole = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, static_argnames="n")
    def swept(cut, v, alphas, n):
        return ufm.sweep(cut, jnp.arange(n), v, alphas, lambda row, _: jax.nn.log_softmax(row))

    v = jax.device_put(np.linspace(-1, 1, lm.config.d_model, dtype=np.float32), whole)
    alphas = jax.device_put(np.linspace(-2, 2, STRENGTHS, dtype=np.float32), whole)
    measured, operations = {}, {}
    for n in CONTEXTS:  # at once, and few strengths at a time
        for name, part in (("at once", cut), ("few", replace(cut, budget=3 * cut.activation_size))):
            measured[f"curves of {n}, {name}"] = swept(part, v, alphas, n)
            cost = swept.lower(part, v, alphas, n).compile().cost_analysis()
            operations[f"operations of {n}, {name}"] = cost["flops"]
    # The text of all prompts: cross-entropy, KL, and their first derivatives.
    text, steering = replace(cut, last_only=False), ufm.steerable.as_steering(v)
    measured["rises"], measured["divergences"] = losses.increases(text, steering, alphas)
    measured["curvatures"], measured["slopes"] = losses.moments(text, steering)
    measured["losses"] = losses.first_losses(text)
    measured["logits"] = logits
    if processes == 1:
        chosen = sim.choose(lm, sim.Steering({1: sim.Add(v)}), PROMPTS, tokens=[4, 9, 33], budget=0.05, horizon=4)
        measured["alpha"], measured["interval"] = chosen.alpha, chosen.interval
    measured = {name: multihost_utils.process_allgather(x, tiled=True) for name, x in measured.items()}
    if rank == 0:
        np.savez(out, shardings=sorted(shardings), devices=jax.device_count(), **measured, **operations)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))

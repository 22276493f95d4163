"""Logits and a sweep of a small model over a mesh, written to a file: what the tests of sharding run in other processes.

python sharded.py FOLDER OUT DATA MODEL OFFLOAD [PROCESSES RANK PORT]
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import ufm
from sim.bridge import split
from sim.bridge.model import load
from sim.bridge.sharding import bytes_on_each, make_mesh, spread

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

    @jax.jit
    def swept(cut, v, alphas):
        return ufm.sweep(cut, jnp.arange(4), v, alphas, lambda row, _: jax.nn.log_softmax(row))

    v = jax.device_put(np.linspace(-1, 1, lm.config.d_model, dtype=np.float32), whole)
    curves = swept(cut, v, jax.device_put(np.linspace(-2, 2, 5, dtype=np.float32), whole))
    logits, curves = (multihost_utils.process_allgather(x, tiled=True) for x in (logits, curves))
    if rank == 0:
        np.savez(out, logits=logits, curves=curves, shardings=sorted(shardings), devices=jax.device_count())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))

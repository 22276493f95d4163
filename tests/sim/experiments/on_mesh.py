"""Stages of a tiny run on a mesh of virtual devices, and by several processes: what the tests of meshes run.

python on_mesh.py FOLDER MODEL MESH HOSTS HOST STAGES [STOP], where MESH may be "none"; a process with STOP computes so many
cells, and is then killed.
"""

import os
import signal
import sys
from pathlib import Path

import jax

from sim.bridge.model import load
from sim.experiments.experiment import begin
from sim.experiments.hosts import Host, joined
from sim.experiments.run import run
from sim.experiments.store import Store
from sim.output import versions
from tests.sim.experiments import tiny


def main(folder: Path, model: str, mesh: str, hosts: int, host: int, stages: list[str], stop: int = 0) -> None:
    lm = load(model, mesh=None if mesh == "none" else mesh, hosts=hosts, progress=False)
    write, computed = Store._write, []

    def counted(self, arrays, layout, cell, values):
        write(self, arrays, layout, cell, values)
        computed.append(cell)
        if len(computed) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    Store._write = counted
    experiment = begin(folder, lm, tiny.settings(), tiny.INPUTS, progress=False)
    with joined(folder, Host(host, hosts), versions(), wait=300.0):
        run(experiment, None if stages == ["all"] else stages)
        if stages == ["all"]:
            run(experiment, ["preference-utility"])
    print(f"{len(computed)} cells on {len(experiment.on_every_group)} groups of {jax.device_count()} devices")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4], *map(int, sys.argv[4:6]), sys.argv[6].split(","), *map(int, sys.argv[7:]))

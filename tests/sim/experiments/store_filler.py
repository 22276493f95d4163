"""A store that is filled with numbers that cost nothing, by one process or several, killed or not.

``python store_filler.py FOLDER STEP`` fills one store after another, and kills each process a bit later than the one before:
before its first change of a file, before change number 1 + STEP and so on, until one comes to its end; a second process goes
on with each.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from sim.experiments.store import Layout, Store, open_store

ABOUT = {"settings": {"seed": 1, "part": {"count": 2}}, "model": {"name": "m"}, "judge": {"name": "m"}, "inputs": {"a": "1"}}

LAYOUT = Layout(
    {"x": ["a", "b"], "y": np.arange(3), "z": np.arange(4)},
    {"f": (("x", "y", "z"), "float32"), "i": (("y", "x"), "int8"), "s": (("x", "y"), "U")},
    {"x": 1, "y": 2},
    fixed={"weight": (("z",), np.linspace(0, 1, 4)), "name": (("x",), ["one", "zwei"])},
)


def compute(cell):
    """What the cell holds, from its number."""
    rng = np.random.default_rng(cell)
    count = 1 + (cell[1] == 0)
    return {
        "f": rng.normal(size=(count, 4)),
        "i": rng.integers(0, 9, count),
        "s": np.asarray([f"{cell}, {k}" for k in range(count)]),
    }


def counting(file, function=compute):
    """The same, with a line in a file for every cell."""

    def noted(cell):
        with Path(file).open("a") as lines:
            lines.write(f"{'-'.join(map(str, cell))}\n")
        return function(cell)

    return noted


def lines(file):
    """What is in such a file."""
    return Path(file).read_text().split() if Path(file).is_file() else []


def fill(folder, file, function=compute, groups=("one", "other")) -> Store:
    """Two groups."""
    store = open_store(folder, ABOUT)
    for group in groups:
        store.fill(group, LAYOUT, counting(f"{file}.{group}", function), progress=False)
    return store


CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")


def _killed(folder: Path, at: int) -> None:
    count = 0

    def watch(event, arguments):
        nonlocal count
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in CHANGES or written) and str(folder) in str(arguments[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    fill(folder / "run", folder / "cells")


def _in_a_process(function, *arguments) -> bool:
    """Whether a copy of this process comes to the end of a function."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return status == 0


def main(folder: Path, step: int) -> None:
    at, over = 1, False
    while not over:
        part = folder / str(at)
        part.mkdir()
        over = _in_a_process(_killed, part, at)
        assert _in_a_process(fill, part / "run", part / "again")
        at += step


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

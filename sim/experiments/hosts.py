"""Several hosts that fill one store: who they are, whether all have come, and whether they run the same versions.

Each computes cells of its own, with its own copy of the parameters, and they tell each other nothing but through the folder
of the run, which all of them see. So a host that is gone ends no other: the others compute what it has left. (Processes that
`jax.distributed` joins end together.) A host holds a lock while it works, which the system gives back when it dies.
"""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from sim import output
from ufm._check import require

FOLDER = ".hosts"
"""Where hosts leave word, in the folder of a run."""

VARIABLES = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_NTASKS", "SLURM_PROCID"),
)
"""Variables in which clusters tell a process how many there are and which it is: Open MPI, other MPIs, Slurm. MPIs come
first: within a Slurm job their processes inherit Slurm's variables of the whole job."""

STEP = 0.2
"""Seconds between two looks at who is there."""


@dataclass(frozen=True)
class Host:
    """One of several hosts.

    Attributes:
        number: from 0 on; 0 writes the pages.
        count: how many there are.
    """

    number: int = 0
    count: int = 1


def this_host(hosts: str | None = None, host: int | None = None, environment: Mapping[str, str] | None = None) -> Host:
    """Which host this is.

    Args:
        hosts: how many there are, or "auto": as the cluster says in its variables; one if left out.
        host: which one this is; as the cluster says if left out.
        environment: variables; those of the process if left out.

    Raises:
        ValueError: no number, a host outside them, or no word from a cluster.
    """
    known = os.environ if environment is None else environment
    if hosts is None:
        require(host is None, "host", "none where --hosts does not say how many there are", host)
        return Host()
    told = next(((known[count], known[rank]) for count, rank in VARIABLES if count in known and rank in known), None)
    if hosts == "auto":
        names = ", ".join(count for count, _ in VARIABLES)
        require(told is not None, "hosts", f"a number, or auto where a cluster sets {names}", "auto where none is set")
        assert told is not None
        hosts = told[0]
    require(hosts.isascii() and hosts.isdigit() and int(hosts) > 0, "hosts", "a number from 1 on, or auto", repr(hosts))
    count = int(hosts)
    if host is None:
        fits = count == 1 or told is not None
        require(fits, "host", f"which of the {count} hosts this is, from 0 to {count - 1}", "none")
        host = int(told[1]) if told is not None and count > 1 else 0
    require(0 <= host < count, "host", f"a number from 0 to {count - 1}", host)
    return Host(host, count)


@contextmanager
def joined(folder: Path, host: Host, versions: Mapping[str, str], *, wait: float) -> Iterator[None]:
    """Wait until all hosts have come to a run, and be known as one of them while the block runs.

    Args:
        folder: of the run.
        host: this one.
        versions: of what computes, by name; those of all hosts must be the same.
        wait: seconds to wait for the others.

    Raises:
        ValueError: hosts that have not come by then; one with other versions; another process that is this host.
    """
    if host.count == 1:
        yield
        return
    place = output.prepare_folder(folder / FOLDER)
    lock = _lock_of(place, host.number)
    word = place / f"{host.number}.json"
    with _door(place):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            require(False, "host", "a number that no other process has", f"{host.number}, which {_who(word)} has")
        about = {"node": platform.node(), "process": os.getpid(), "versions": dict(versions)}
        output.write_json(word, about)
    try:
        _await_others(place, host, wait)
        for number in range(host.count):
            others = json.loads((place / f"{number}.json").read_text(encoding="utf-8"))["versions"]
            off = [f"{name} {own} and {others.get(name)}" for name, own in versions.items() if own != others.get(name)]
            require(not off, "hosts", "the same versions on all", f"on {host.number} and {number}: {', '.join(off)}")
        yield
    finally:
        # So that one that comes just now sees that this one has been here.
        with suppress(OSError):
            word.touch()
        lock.release()


def _door(place: Path) -> filelock.BaseFileLock:
    """Only one host at a time comes in or looks who is in: no look takes another's for a host at work."""
    return filelock.FileLock(place / "door.lock")


def _lock_of(place: Path, number: int) -> filelock.BaseFileLock:
    return filelock.FileLock(place / f"{number}.lock")


def _await_others(place: Path, host: Host, wait: float) -> None:
    """Wait for hosts that are neither at work nor have been since this one came."""
    came = (place / f"{host.number}.json").stat().st_mtime_ns
    end = time.monotonic() + wait
    missing = [number for number in range(host.count) if number != host.number]
    while missing:
        missing = [number for number in missing if not _has_come(place, number, came)]
        if missing and time.monotonic() > end:
            names = ", ".join(map(str, missing))
            require(False, "hosts", f"all {host.count} in {str(place.parent)!r} within {wait:g} s", f"none yet of {names}")
        if missing:
            time.sleep(STEP)


def _has_come(place: Path, number: int, since: int) -> bool:
    word = place / f"{number}.json"
    if not word.is_file():
        return False
    if word.stat().st_mtime_ns >= since:
        return True
    with _door(place):
        try:
            with _lock_of(place, number).acquire(timeout=0):
                return False
        except filelock.Timeout:
            return True


def _who(file: Path) -> str:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "another process"
    return f"process {about['process']} on {about['node']}"

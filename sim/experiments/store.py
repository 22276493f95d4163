"""Results on disk, computed piece by piece: one folder for each run, Zarr inside, which xarray opens with no code of ours.

Every stage has a group of arrays, cut into cells along some of their dimensions. A cell is computed by one process, which
holds a lock that the system gives back if the process dies; its chunks belong to it alone and are written as whole files;
then it is marked as done. So a run may be killed at any moment and go on, and several processes may share one.
"""

import hashlib
import json
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import xarray as xr
import zarr

from sim import output
from sim.bridge.files import reading
from sim.experiments.meanings import meaning
from sim.experiments.settings import differences
from sim.progress import bar
from ufm._check import require

FORMAT = 4
"""The version of what is stored. It changes when names in the store change."""

DATA = "data.zarr"
"""The name of the Zarr hierarchy in the folder of a run."""

FILLS = {"f": np.nan, "i": -1, "U": ""}
"""The value of entries that have not been computed, by kind of data type."""

Cell = tuple[int, ...]


class StoppedError(Exception):
    """Cells are not computed, since the work has been stopped elsewhere."""


class Layout(NamedTuple):
    """The arrays of a group.

    Attributes:
        coords: labels along every dimension.
        arrays: the dimensions and the type of every array that is computed.
        cells: dimensions that are cut, and how many entries a cell has along each.
        fixed: arrays that are known beforehand, with their dimensions.
    """

    coords: Mapping[str, Sequence[Any] | np.ndarray]
    arrays: Mapping[str, tuple[tuple[str, ...], str]]
    cells: Mapping[str, int]
    fixed: Mapping[str, tuple[tuple[str, ...], Any]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How many cells there are along each dimension that is cut."""
        return {name: -(-len(self.coords[name]) // size) for name, size in self.cells.items()}

    @property
    def all_cells(self) -> list[Cell]:
        """Every cell, by its number along each dimension that is cut."""
        return list(product(*(range(count) for count in self.counts.values())))

    def slices(self, cell: Cell) -> dict[str, slice]:
        """The entries of a cell along each dimension that is cut."""
        sizes = zip(cell, self.cells.items(), strict=True)
        return {name: slice(k * size, min((k + 1) * size, len(self.coords[name]))) for k, (name, size) in sizes}

    def labels(self, cell: Cell) -> dict[str, list[Any]]:
        """The labels of a cell's entries along each dimension that is cut, as plain numbers and texts."""
        return {name: np.asarray(self.coords[name])[part].tolist() for name, part in self.slices(cell).items()}


@dataclass(frozen=True)
class Store:
    """The folder of a run.

    Attributes:
        path: the folder.
        about: what produced it: settings, model, inputs, versions, device.
        stopping: set when threads that fill it are to stop after the cell that they compute.
    """

    path: Path
    about: Mapping[str, Any]
    stopping: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def root(self) -> Path:
        """The folder of the arrays."""
        return self.path / DATA

    @property
    def digest(self) -> str:
        """A hash of what must stay the same for the run to continue, `COMPARED`."""
        compared = json.dumps({name: self.about.get(name) for name in COMPARED}, sort_keys=True)
        return hashlib.sha256(compared.encode()).hexdigest()[:12]

    def has(self, group: str) -> bool:
        """Whether a group has been begun."""
        return (self.root / group / "zarr.json").is_file()

    def data(self, group: str) -> xr.Dataset:
        """The arrays of a group, in memory; NaN, -1 and "" where nothing has been computed.

        Raises:
            ValueError: a group that is missing, or that cannot be read.
        """
        require(self.has(group), "store", f"a group {group}", f"none in {str(self.path)!r}")
        with self._reading(group):
            return xr.open_zarr(self.root / group, consolidated=False).load()

    def done(self, group: str) -> tuple[int, int]:
        """The number of cells of a group that are done, and the number that are wanted.

        Raises:
            ValueError: a group that cannot be read.
        """
        if not self.has(group):
            return 0, 0
        with self._reading(group):
            wanted, done = (_array(zarr.open_group(self.root / group, mode="r"), name)[...] for name in ("wanted", "done"))
        return int((np.asarray(done) & np.asarray(wanted)).sum()), int(np.sum(wanted))

    @property
    def groups(self) -> list[str]:
        """The groups that have been begun."""
        return sorted(path.parent.name for path in self.root.glob("*/zarr.json"))

    def finished(self, group: str) -> bool:
        """Whether all cells of a group are done."""
        made, wanted = self.done(group)
        return self.has(group) and made == wanted

    def fill(
        self,
        group: str,
        layout: Layout,
        compute: Callable[[Cell], Mapping[str, Any]],
        *,
        wanted: Sequence[Cell] | None = None,
        progress: bool | None = None,
    ) -> None:
        """Compute the cells of a group that are not done yet.

        A cell that another process or thread is computing is left to it. The call returns when all cells are done.

        Args:
            group: its name.
            layout: of its arrays.
            compute: from a cell to its arrays, without the cut dimensions that have one entry in a cell.
            wanted: the cells that are to be computed; all if left out.
            progress: whether to show a bar.

        Raises:
            ValueError: the group exists and cannot be read.
            StoppedError: the store is `stopping`.
        """
        cells = layout.all_cells if wanted is None else list(wanted)
        self._begin(group, layout, cells)
        with self._reading(group):
            arrays = zarr.open_group(self.root / group, mode="r+")
            marks = _array(arrays, "done")
            done = np.asarray(marks[...])
        waiting = [cell for cell in cells if not done[cell]]
        with bar(total=len(cells), initial=len(cells) - len(waiting), desc=group, unit="cell", shown=progress) as cells_done:
            while waiting:
                before = len(waiting)
                for cell in list(waiting):
                    if self.stopping.is_set():
                        raise StoppedError(f"{group}: stopped, since another part of the work was")
                    with self._mine(f"{group}-{'-'.join(map(str, cell))}") as mine:
                        if not mine:
                            continue
                        if not marks[cell]:
                            self._write(arrays, layout, cell, compute(cell))
                        waiting.remove(cell)
                        cells_done.update()
                if len(waiting) == before:
                    time.sleep(0.2)  # the others are being computed elsewhere
        for left in (*self.root.glob(f"{group}/**/*.partial"), *self._locks.glob(f"{group}-*.lock")):
            left.unlink(missing_ok=True)

    def _write(self, arrays: zarr.Group, layout: Layout, cell: Cell, values: Mapping[str, Any]) -> None:
        """Write the arrays of a cell, and then mark it as done.

        xarray's `to_zarr` with a region takes as many lines and 1.6 to 3.5 times as long (13 to 20 ms a cell).
        """
        parts = layout.slices(cell)
        for name, (dims, kind) in layout.arrays.items():
            place = tuple(parts.get(dim, slice(0, len(layout.coords[dim]))) for dim in dims)
            shape = tuple(part.stop - part.start for part in place)
            _array(arrays, name)[place] = np.asarray(values[name], None if kind == "U" else kind).reshape(shape)
        _array(arrays, "done")[cell] = True

    def _begin(self, group: str, layout: Layout, wanted: Sequence[Cell]) -> None:
        """Create the arrays of a group in a temporary folder, move it to its place, and list the group."""
        place = self.root / group
        with filelock.FileLock(self._locks / "store.lock"):
            # Another process that was killed here may have left these folders.
            for left in self.path.glob(".group-*"):
                shutil.rmtree(left, ignore_errors=True)
            for file in self.root.glob("*.partial"):
                file.unlink(missing_ok=True)
            # Another process may have begun the empty store with other settings.
            _same(read_store(self.path), self.about)
            if not self.has(group):
                require(not place.exists(), "store", "a group of arrays", f"{str(place)!r}, which has no zarr.json")
                part = Path(tempfile.mkdtemp(dir=self.path, prefix=".group-"))
                try:
                    _make(part, group, layout, wanted, self._unit)
                    part.chmod(0o755)
                    part.replace(place)
                except BaseException:
                    shutil.rmtree(part, ignore_errors=True)
                    raise
            if not self._listed(group):
                with warnings.catch_warnings():
                    # That consolidated metadata are not in the specification yet.
                    warnings.simplefilter("ignore", UserWarning)
                    zarr.consolidate_metadata(self.root)

    @property
    def _unit(self) -> str:
        """The unit of strength in this run, `Vectors.unit`; empty if the settings do not say."""
        settings = self.about.get("settings")
        vectors = settings.get("vectors") if isinstance(settings, Mapping) else None
        return str(vectors.get("unit", "")) if isinstance(vectors, Mapping) else ""

    def _listed(self, group: str) -> bool:
        """Whether the metadata of the whole store list the group."""
        with reading(self.root, "a store of arrays", argument="store"):
            whole = json.loads((self.root / "zarr.json").read_text(encoding="utf-8"))
        return group in (whole.get("consolidated_metadata") or {}).get("metadata", {})

    def _reading(self, group: str) -> AbstractContextManager[None]:
        """A context in which an error of reading names the group."""
        return reading(self.root / group, "a group of arrays", argument="store")

    @property
    def _locks(self) -> Path:
        return self.path / ".locks"

    @contextmanager
    def _mine(self, name: str) -> Iterator[bool]:
        """Hold a lock while the block runs, and yield whether this process got it."""
        lock = filelock.FileLock(self._locks / f"{name}.lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _make(path: Path, group: str, layout: Layout, wanted: Sequence[Cell], unit: str) -> None:
    arrays = zarr.create_group(path, overwrite=True)

    def create(
        name: str, dims: Sequence[str], shape: Sequence[int], chunks: Sequence[int], kind: Any, fill: Any
    ) -> zarr.Array:
        return arrays.create_array(
            name,
            shape=tuple(shape),
            chunks=tuple(chunks),
            dtype=kind,
            fill_value=fill,
            dimension_names=tuple(dims),
            attributes=meaning(group, name, unit),
        )

    def known(name: str, dims: Sequence[str], values: Any) -> None:
        array = np.asarray(values)
        kind: Any = str if array.dtype.kind == "U" else array.dtype
        made = create(name, dims, array.shape, array.shape, kind, None)
        made[...] = array.astype(object) if kind is str else array

    for name, labels in layout.coords.items():
        known(name, (name,), labels)
    for name, (dims, values) in layout.fixed.items():
        known(name, dims, values)
    for name, (dims, kind) in layout.arrays.items():
        shape = tuple(len(layout.coords[dim]) for dim in dims)
        chunks = tuple(layout.cells.get(dim, size) for dim, size in zip(dims, shape, strict=True))
        create(
            name,
            dims,
            shape,
            chunks,
            str if kind == "U" else np.dtype(kind),
            FILLS["U" if kind == "U" else np.dtype(kind).kind],
        )
    counts = tuple(layout.counts.values())
    names = [f"cell_{name}" for name in layout.cells]
    create("done", names, counts, (1,) * len(counts), bool, False)
    chosen = np.zeros(counts, bool)
    chosen[tuple(np.asarray(wanted).T)] = True
    known("wanted", names, chosen)


COMPARED = ("settings", "model", "judge", "inputs", "dtype", "precision")
"""The entries of `about` that must stay the same for a run to continue."""


def open_store(folder: str | Path, about: Mapping[str, Any]) -> Store:
    """The store of a run. It is created if the folder has none, and replaced if nothing has been computed in it.

    Args:
        folder: of the run.
        about: settings and versions of the run; its entries `COMPARED` must equal those of a store that exists.

    Raises:
        ValueError: a folder that cannot be written, one of something else, one of a run with other settings, another model
            or other inputs; the message shows the differences.
    """
    path = output.prepare_folder(folder)
    output.prepare_folder(path / ".locks")
    with filelock.FileLock(path / ".locks" / "store.lock"):
        if not (path / DATA).is_dir():
            others = [file.name for file in path.iterdir() if not file.name.startswith(".")]
            require(
                not others, "out", "a new folder, or one of a run", f"{str(path)!r} with {', '.join(sorted(others)[:3])}"
            )
            for left in path.glob(".group-*"):
                shutil.rmtree(left, ignore_errors=True)
            part = Path(tempfile.mkdtemp(dir=path, prefix=".group-"))
            zarr.create_group(part, attributes={**about, "format": FORMAT}, overwrite=True)
            part.chmod(0o755)
            part.replace(path / DATA)
        store = read_store(path)
        if not store.groups and _others(store, about):
            # Nothing has been computed: a run whose inputs were refused may be begun with others.
            zarr.open_group(path / DATA, mode="r+").attrs.put({**about, "format": FORMAT})
            store = read_store(path)
    _same(store, about)
    return store


def _others(store: Store, about: Mapping[str, Any]) -> list[str]:
    """The entries in which a store differs from `about`, one line for each."""
    return differences(*({name: record.get(name) for name in COMPARED} for record in (store.about, about)))


def _same(store: Store, about: Mapping[str, Any]) -> None:
    off = _others(store, about)
    wanted = f"a run with these settings, or a new folder ({str(store.path)!r} has others)"
    require(not off, "out", wanted, "; ".join(off[:6]))


def read_store(folder: str | Path) -> Store:
    """Open the store of a run.

    Raises:
        ValueError: a folder without one, or with one that cannot be read.
    """
    path = Path(folder)
    require((path / DATA).is_dir(), "out", "the folder of a run", f"{str(path)!r}, where there is none")
    with reading(path / DATA, "a store of arrays", argument="out"):
        about = dict(zarr.open_group(path / DATA, mode="r").attrs)
    require("settings" in about, "out", "the store of a run", f"{str(path / DATA)!r}, which says nothing of its settings")
    number = int(str(about.pop("format", 1)))
    older = f"{str(path)!r}, of an older version, whose names are others: begin a new folder"
    require(number == FORMAT, "out", "a run of this version", older if number < FORMAT else f"{str(path)!r}, of a newer one")
    return Store(path, about)

"""The store: cells, what is left of an interruption, several processes, and what is refused."""

import errno
import json
import multiprocessing
import subprocess
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import filelock
import numpy as np
import pytest
import xarray as xr
import zarr.storage

from sim.experiments.store import DATA, FORMAT, Layout, open_store, read_store
from tests.sim.experiments import store_filler
from tests.sim.experiments.store_filler import ABOUT, LAYOUT, compute, counting, fill, lines

CELLS = ["0-0", "0-1", "1-0", "1-1"]


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run", ABOUT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that was filled without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return fill(folder / "run", folder / "cells")


def files(folder):
    """All files, but for those that are made to see whether a folder can be written."""
    paths = {path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()}
    return {str(path) for path in paths if not path.name.startswith(".writable-")}


def same(store, other):
    """Whether two stores hold the same, and nothing else is left in their folders."""
    assert store.groups == other.groups
    for group in store.groups:
        assert store.finished(group)
        first, second = store.data(group), other.data(group)
        assert first.identical(second)
        assert all(first[name].values.tobytes() == second[name].values.tobytes() for name in ("f", "i"))
    assert files(store.path) == files(other.path)
    with opened(store) as tree:
        assert set(tree.children) == set(store.groups)


def opened(store):
    """The store as anybody opens it; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_datatree(store.root, engine="zarr")


# --- cells -----------------------------------------------------------------------------------------------------------


def test_cells_of_a_layout():
    assert LAYOUT.counts == {"x": 2, "y": 2}
    assert LAYOUT.all_cells == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert LAYOUT.slices((1, 1)) == {"x": slice(1, 2), "y": slice(2, 3)}
    assert LAYOUT.labels((1, 0)) == {"x": ["b"], "y": [0, 1]}
    assert all(type(label) in (int, str) for labels in LAYOUT.labels((1, 0)).values() for label in labels)


def test_what_is_computed_is_where_it_belongs(store, tmp_path):
    assert (store.has("one"), store.done("one"), store.finished("one"), store.groups) == (False, (0, 0), False, [])
    store.fill("one", LAYOUT, counting(tmp_path / "cells"), progress=False)
    assert lines(tmp_path / "cells") == CELLS
    assert (store.has("one"), store.done("one"), store.finished("one"), store.groups) == (True, (4, 4), True, ["one"])
    data = store.data("one")
    assert data["f"].dtype == np.float32
    assert data["i"].dtype == np.int8
    assert data["weight"].values.tolist() == np.linspace(0, 1, 4).tolist()
    assert data["name"].values.tolist() == ["one", "zwei"]
    for cell in LAYOUT.all_cells:
        values, labels = compute(cell), LAYOUT.labels(cell)
        got = data.sel(x=labels["x"][0], y=labels["y"])
        np.testing.assert_array_equal(got["f"], values["f"].astype(np.float32))
        np.testing.assert_array_equal(got["i"], values["i"])
        assert got["s"].values.tolist() == values["s"].tolist()


def test_some_cells_only(store, tmp_path):
    store.fill("one", LAYOUT, counting(tmp_path / "cells"), wanted=[(0, 1), (1, 0)], progress=False)
    assert lines(tmp_path / "cells") == ["0-1", "1-0"]
    assert store.done("one") == (2, 2)
    data = store.data("one")
    assert np.isnan(data["f"].sel(x="a", y=[0, 1])).all()
    assert (data["i"].sel(x="b", y=2) == -1).all()
    assert (data["s"].sel(x="a", y=[0, 1]) == "").all()
    assert np.isfinite(data["f"].sel(x="b", y=[0, 1])).all()


def test_a_group_that_there_is_not(store):
    with pytest.raises(ValueError, match=r"store: .*got none in"):
        store.data("one")


def test_anybody_can_open_the_data(whole):
    with opened(whole) as tree:
        assert set(tree.children) == {"one", "other"}
        assert tree.attrs["settings"] == ABOUT["settings"]
        assert tree["one"].to_dataset().identical(whole.data("one"))
        assert tree["one"]["f"].sel(x="b").dims == ("y", "z")
    assert read_store(whole.path).about == ABOUT
    assert whole.root.stat().st_mode & 0o777 == (whole.root / "one").stat().st_mode & 0o777 == 0o755
    assert [path for path in files(whole.path) if not path.startswith(DATA)] == [".locks/store.lock"]


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("after", [0, 3])
def test_finished_cells_stay_when_a_computation_fails(tmp_path, whole, error, after):
    def failing(cell):
        if len(lines(tmp_path / "cells.one")) > after:
            raise error("stop")
        return compute(cell)

    with pytest.raises(error):
        fill(tmp_path / "run", tmp_path / "cells", failing)
    store = read_store(tmp_path / "run")
    assert store.done("one") == (after, 4)
    assert lines(tmp_path / "cells.one") == CELLS[: after + 1]
    (tmp_path / "cells.one").unlink()
    same(fill(tmp_path / "run", tmp_path / "cells"), whole)
    assert lines(tmp_path / "cells.one") == CELLS[after:]


def test_a_result_without_an_array_or_of_another_size_is_not_done(tmp_path, store):
    for wrong in ({"f": 0, "i": 0}, {"f": np.zeros(3), "i": np.zeros(2), "s": np.zeros(2)}):
        with pytest.raises((KeyError, ValueError)):
            store.fill("one", LAYOUT, lambda cell, wrong=wrong: wrong, progress=False)
        assert store.done("one") == (0, 4)


def writes(monkeypatch, tmp_path):
    """How many files Zarr writes for a whole run, by counting."""
    real, count = zarr.storage.LocalStore.set, []

    async def counted(self, key, value, *rest):
        count.append(key)
        return await real(self, key, value, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", counted)
        fill(tmp_path / "counted", tmp_path / "counts")
    return len(count)


def test_a_full_disk_loses_nothing_that_is_done(tmp_path, whole, monkeypatch):
    """One write after another is the one that fails, with nothing or half a file on the disk."""
    real, step = zarr.storage.LocalStore.set, 15
    every = writes(monkeypatch, tmp_path)
    assert every > 40
    for at in range(0, every, step):
        seen = []

        async def failing(self, key, value, *rest, at=at, seen=seen):
            seen.append(key)
            if len(seen) == at + 1:
                if at % 2:
                    path = self.root / f"{key}.partial"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            return await real(self, key, value, *rest)

        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            patch.setattr(zarr.storage.LocalStore, "set", failing)
            with pytest.raises(OSError, match="No space left") as caught:
                fill(folder, tmp_path / f"{at}.first")
        assert caught.value.errno == errno.ENOSPC
        same(fill(folder, tmp_path / f"{at}.again"), whole)
        for group in ("one", "other"):
            first, again = lines(tmp_path / f"{at}.first.{group}"), lines(tmp_path / f"{at}.again.{group}")
            # At most the one that could not be written is computed again.
            assert len(first) + len(again) <= 5
            assert {*first, *again} == set(CELLS)


def killed(folder, step):
    """Processes killed at one change of a file after another, and gone on with (`store_filler`)."""
    root = Path(store_filler.__file__).parents[3]
    subprocess.run(
        [sys.executable, store_filler.__file__, folder, str(step)], cwd=root, env={"PYTHONPATH": str(root)}, check=True
    )
    return sorted(folder.iterdir(), key=lambda path: int(path.name))


def gone_on_with(parts, whole):
    for part in parts:
        same(read_store(part / "run"), whole)
        for group in ("one", "other"):
            first, again = lines(part / f"cells.{group}"), lines(part / f"again.{group}")
            assert {*first, *again} == set(CELLS)
            assert max(Counter(first).values(), default=1) == max(Counter(again).values(), default=1) == 1
            assert len(first) + len(again) <= 5


def test_a_process_may_be_killed_at_any_change_of_a_file(tmp_path, whole):
    parts = killed(tmp_path, 41)
    assert len(parts) > 3
    gone_on_with(parts, whole)


@pytest.mark.slow
def test_a_process_may_be_killed_at_every_change_of_a_file(tmp_path, whole):
    parts = killed(tmp_path, 1)
    assert len(parts) > 100
    gone_on_with(parts, whole)


def test_a_group_without_its_place_among_the_others_gets_it(tmp_path, whole, monkeypatch):
    """A process that dies between making the last group and listing it."""

    def dying(root):
        if (root / "other").is_dir():
            raise KeyboardInterrupt
        return real(root)

    real = zarr.consolidate_metadata
    with monkeypatch.context() as patch:
        patch.setattr(zarr, "consolidate_metadata", dying)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "run", tmp_path / "cells")
    same(fill(tmp_path / "run", tmp_path / "cells"), whole)


# --- several processes -----------------------------------------------------------------------------------------------


def test_a_cell_that_another_is_at_is_left_out_and_waited_for(tmp_path, whole):
    begun, others = threading.Event(), threading.Event()

    def first(cell):
        begun.set()
        assert others.wait(30)
        return compute(cell)

    def second(cell):
        if len(lines(tmp_path / "second.one")) == 3:
            others.set()
        return compute(cell)

    thread = threading.Thread(target=fill, args=(tmp_path / "run", tmp_path / "first", first, ("one",)))
    thread.start()
    assert begun.wait(30)
    store = fill(tmp_path / "run", tmp_path / "second", second, ("one",))
    # It came back when all were done, one of them by the other.
    assert store.finished("one")
    thread.join(30)
    assert lines(tmp_path / "first.one") == ["0-0"]
    assert lines(tmp_path / "second.one") == ["0-1", "1-0", "1-1"]
    assert store.data("one").identical(whole.data("one"))


def test_a_cell_is_computed_when_another_has_given_it_up(tmp_path, store):
    store.fill("one", LAYOUT, compute, wanted=LAYOUT.all_cells[:0] or [(0, 1)], progress=False)
    lock = filelock.FileLock(store.path / ".locks" / "other-0-0.lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    store.fill("other", LAYOUT, counting(tmp_path / "cells"), progress=False)
    timer.join()
    assert lines(tmp_path / "cells") == ["0-1", "1-0", "1-1", "0-0"]
    assert store.finished("other")


def test_processes_share_a_run(tmp_path, whole):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path / "run", tmp_path / "cells")) for _ in range(2)]
    for process in processes:
        process.start()
    fill(tmp_path / "run", tmp_path / "cells")
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    same(read_store(tmp_path / "run"), whole)
    for group in ("one", "other"):
        assert sorted(lines(tmp_path / f"cells.{group}")) == CELLS


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_run_in_which_nothing_is_computed_may_be_begun_with_other_settings(store, tmp_path):
    other = ABOUT | {"inputs": {"a": "2"}}
    assert open_store(store.path, other).about == other
    with pytest.raises(ValueError, match=r'has others.*, got inputs\.a "2" there, "1" here'):
        store.fill("one", LAYOUT, counting(tmp_path / "cells"), progress=False)
    assert read_store(store.path).groups == []
    fill_one = open_store(store.path, other).fill
    fill_one("one", LAYOUT, counting(tmp_path / "cells"), progress=False)
    with pytest.raises(ValueError, match="expected a run with these settings"):
        open_store(store.path, ABOUT)
    xr.open_datatree(store.root, engine="zarr").close()


def test_a_run_that_is_there_is_gone_on_with_by_the_same_settings_only(store, tmp_path):
    store.fill("one", LAYOUT, counting(tmp_path / "cells"), progress=False)
    assert open_store(store.path, ABOUT | {"begun": "later", "version": "2"}).about == ABOUT
    changed = {
        "settings.part.count 2 there, 3 here": ABOUT | {"settings": {"seed": 1, "part": {"count": 3}}},
        'model.name "m" there, "n" here': ABOUT | {"model": {"name": "n"}},
        'judge.name "m" there, "n" here': ABOUT | {"judge": {"name": "n"}},
        'inputs.a "1" there, "2" here': ABOUT | {"inputs": {"a": "2"}},
        'dtype null there, "bfloat16" here': ABOUT | {"dtype": "bfloat16"},
    }
    for difference, about in changed.items():
        with pytest.raises(ValueError, match=r"^out: .*settings.*run'") as refusal:
            open_store(store.path, about)
        assert str(refusal.value).endswith(f"got {difference}")


def test_folders_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: .*got '.*' with notes\.txt"):
        open_store(tmp_path, ABOUT)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"^out: .*written"):
        open_store(tmp_path / "notes.txt", ABOUT)
    with pytest.raises(ValueError, match=r"out: .*got '.*', where there is none"):
        read_store(tmp_path)


def test_a_hidden_file_is_no_content(tmp_path):
    (tmp_path / ".hidden").write_text("")
    assert open_store(tmp_path, ABOUT).groups == []


@pytest.mark.parametrize("left", [20, 0, None])
def test_a_damaged_store_is_named(tmp_path, left):
    store = fill(tmp_path / "run", tmp_path / "cells", groups=("one",))

    def damage(path):
        kept = path.read_bytes()
        if left is None:
            path.unlink()
        else:
            path.write_bytes(kept[:left])
        return lambda: path.write_bytes(kept)

    root = store.root / "zarr.json"
    restore = damage(root)
    for read in (read_store, lambda path: open_store(path, ABOUT)):
        with pytest.raises(ValueError, match=r"^out: expected .*data\.zarr"):
            read(store.path)
    restore()
    uses = [
        lambda: store.done("one"),
        lambda: fill(store.path, tmp_path / "cells", groups=("one",)),
        lambda: store.data("one"),
    ]
    for path in (store.root / "one" / "done" / "zarr.json", store.root / "one" / "zarr.json"):
        restore = damage(path)
        missing = left is None
        # Without a file, what is there counts as something else that happens to lie there; nothing is deleted.
        for use in uses if not missing else uses[1:2]:
            with pytest.raises(ValueError, match=r"^store: expected .*one"):
                use()
        restore()
    assert store.finished("one")
    assert lines(tmp_path / "cells.one") == CELLS


def test_a_damaged_number_is_named(tmp_path):
    store = fill(tmp_path / "run", tmp_path / "cells", groups=("one",))
    for path in (store.root / "one" / "f" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(ValueError, match=r"^store: .*got '.*one' "):
        store.data("one")


def test_a_store_of_something_else_is_named(tmp_path):
    zarr.create_group(tmp_path / DATA)
    with pytest.raises(ValueError, match=r"out: .*got '.*', which says nothing of its settings"):
        read_store(tmp_path)


def test_the_hierarchy_is_plain_json(whole):
    about = json.loads((whole.root / "zarr.json").read_text())
    assert about["attributes"] == {**ABOUT, "format": FORMAT}
    assert set(about["consolidated_metadata"]["metadata"]) > {"one", "one/f", "other", "other/f"}


def test_labels_of_one_kind_only():
    layout = Layout({"x": ["a"], "y": [3, 5]}, {}, {"y": 1})
    assert layout.labels((1,)) == {"y": [5]}


@pytest.mark.parametrize(
    ("number", "words"), [(None, "of an older version"), (2, "of an older version"), (FORMAT + 1, "of a newer one")]
)
def test_a_store_of_another_version_is_refused(tmp_path, number, words):
    store = open_store(tmp_path / "run", ABOUT)
    attributes = zarr.open_group(store.root, mode="r+").attrs
    attributes.put({**ABOUT, **({} if number is None else {"format": number})})
    for read in (read_store, lambda folder: open_store(folder, ABOUT)):
        with pytest.raises(ValueError, match=f"^out: .*got .*{words}"):
            read(tmp_path / "run")

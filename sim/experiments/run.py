"""The stages of the experiments by name, one by one or together; a run begun, gone on with, and listed."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sim.bridge import fetch
from sim.bridge.model import load
from sim.experiments import strength
from sim.experiments.estimate import RunCost, estimate, is_finished
from sim.experiments.experiment import Experiment, begin
from sim.experiments.inputs import read_inputs
from sim.experiments.preference.measure import preference_utility
from sim.experiments.preference.updates import tasks, train_updates
from sim.experiments.settings import PRESETS, from_json
from sim.experiments.store import DATA, Store, read_store
from sim.experiments.strength.concept import concept, suitable_starts
from sim.experiments.strength.cross_entropy import blocks, cross_entropy, enough
from sim.experiments.strength.mmlu import mmlu, rows_of
from sim.experiments.strength.next_token import next_token, suitable_contexts
from sim.experiments.strength.prompts import known, prompts
from sim.experiments.strength.vectors import log_odds, vectors
from sim.experiments.unused import unused
from theory._compilation import release_programs
from ufm._check import require

STAGES: dict[str, tuple[Callable[[Experiment], None], tuple[str, ...]]] = {
    "prompts": (prompts, ()),
    "vectors": (vectors, ("prompts",)),
    "log-odds": (log_odds, ("prompts",)),
    "next-token": (next_token, ("vectors", "log-odds")),
    "concept": (concept, ("vectors", "log-odds")),
    "blocks": (blocks, ()),
    "cross-entropy": (cross_entropy, ("vectors", "blocks")),
    "mmlu": (mmlu, ("vectors",)),
    "train-update": (train_updates, ()),
    "preference-utility": (preference_utility, ("train-update",)),
}
"""Every stage, and those that it needs."""

INPUT_CHECKS: dict[str, Callable[[Experiment], object]] = {
    "prompts": known,
    "next-token": suitable_contexts,
    "concept": suitable_starts,
    "blocks": enough,
    "mmlu": rows_of,
    "train-update": tasks,
}
"""Functions that raise an error if the inputs do not suit a stage. They run before any stage computes anything."""


def in_order(stages: Sequence[str] | None = None) -> list[str]:
    """Stages after those that they need.

    Args:
        stages: names; those of S, `strength.STAGES`, if left out.

    Raises:
        ValueError: an unknown stage.
    """
    chosen = list(strength.STAGES) if stages is None else list(stages)
    unknown = [name for name in chosen if name not in STAGES]
    require(not unknown, "stage", f"one of {', '.join(STAGES)}", ", ".join(unknown))
    order: dict[str, None] = {}

    def need(name: str) -> None:
        for before in STAGES[name][1]:
            need(before)
        order.setdefault(name)

    for name in chosen:
        need(name)
    return list(order)


def run(
    experiment: Experiment, stages: Sequence[str] | None = None, *, told: Callable[[str], object] = lambda name: None
) -> None:
    """Run stages, and first the stages that they need. A stage that is finished is not run again.

    Warnings name the user's texts that are cut or not used.

    Args:
        experiment: the run.
        stages: names; those of S, `strength.STAGES`, if left out.
        told: called with the name of every stage when it begins.

    Raises:
        ValueError: an unknown stage; inputs that a stage cannot use, before anything is computed."""
    order = in_order(stages)
    _check_inputs(order, experiment)
    for line in unused(experiment, [name for name in order if not is_finished(experiment, name)]):
        warnings.warn(line, stacklevel=2)
    for name in order:
        told(name)
        release_programs()
        on_every_group(experiment, STAGES[name][0])


def _check_inputs(stages: Sequence[str], experiment: Experiment) -> None:
    """Raise an error if the inputs do not suit one of some stages that are not finished."""
    for name in stages:
        if name in INPUT_CHECKS and not is_finished(experiment, name):
            INPUT_CHECKS[name](experiment)


def on_every_group(experiment: Experiment, stage: Callable[[Experiment], None]) -> None:
    """Run a stage on all groups of devices side by side; if it fails on one, the others end with the cell they are at."""
    if not experiment.others:
        stage(experiment)
        return
    stopping = experiment.store.stopping
    stopping.clear()
    parts = experiment.on_every_group
    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            for done in as_completed([pool.submit(stage, part) for part in parts]):
                done.result()
        except BaseException:
            stopping.set()
            raise


def prepare(
    out: str | Path,
    *,
    model: str | None = None,
    judge: str | None = None,
    preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    dtype: str | None = None,
    precision: str | None = None,
    budget: int | None = None,
    mesh: str | None = None,
    hosts: int = 1,
    offload: bool | None = False,
    progress: bool | None = None,
    stages: Sequence[str] | None = (),
) -> Experiment:
    """Begin or continue a run in a folder. An argument that is left out keeps the run's value; a new run gets the default.

    Args:
        out: the folder.
        model: what `load` takes.
        judge: what `load` takes, for the judge; the model itself if left out.
        preset: one of `PRESETS`.
        changes: settings that differ from the preset, by name (`ExperimentSettings.changed`).
        files: the user's own texts, by the arguments of `read_inputs`.
        dtype: of weights and computation, as in `load`: "float32" if left out of a new run.
        precision: as in `load`: "full" if left out of a new run.
        budget: numbers that sweeps hold at once; what suits the device if left out.
        mesh: devices, such as "data=2,model=4": groups over which cells are spread, and devices of a group, over which
            parameters are; one device if left out.
        hosts: how many share the groups of the mesh.
        offload: whether the blocks of the models stay on the host, as in `load`.
        progress: whether to show bars.
        stages: what `run` will be given: inputs that do not suit these stages are refused. None of them if left out.

    Raises:
        ValueError: an argument is wrong; the error comes before anything is computed or written.
    """
    check = partial(_check_inputs, in_order(stages))
    known = read_store(out).about if (Path(out) / DATA).is_dir() else {}
    require(preset is None or preset in PRESETS, "preset", f"one of {', '.join(PRESETS)}", repr(preset))
    base = from_json(known["settings"]) if known and preset is None else PRESETS[preset or "laptop"]
    paths = {name: Path(path) for name, path in known.get("files", {}).items()} | dict(files or {})
    settings, inputs = base.changed(changes or {}), read_inputs(**paths)
    name = model or (known["model"]["name"] if known else fetch.NAME)
    judging = judge or (known["judge"]["name"] if known else name)
    kind, products = dtype or known.get("dtype", "float32"), precision or known.get("precision", "full")
    require(budget is None or budget >= 1, "budget", "a number of at least 1", budget)
    computed: dict[str, Any] = {"dtype": kind, "precision": products, "offload": offload}
    lm = replace(load(name, mesh=mesh, hosts=hosts, **computed), memory_budget=budget)
    other = None
    if judging != name:
        other = replace(load(judging, mesh=lm.mesh, **computed), memory_budget=budget)
    return begin(out, lm, settings, inputs, judge=other, files=paths, progress=progress, check=check)


def foresee(out: str | Path, stages: Sequence[str] | None = None, **arguments: Any) -> RunCost:
    """An estimate of what stages of a run will take on this device. Nothing is left in the folder.

    Args:
        out: the folder; what a run in it has done counts as done.
        stages: as `run` takes them.
        arguments: the others of `prepare`.

    Raises:
        ValueError: as `prepare` and `run`, before anything is measured.
    """
    order = in_order(stages)
    with tempfile.TemporaryDirectory() as temporary:
        folder, known = Path(out), (Path(out) / DATA).is_dir()
        if not known or not read_store(out).groups:
            # What has not begun to compute could be begun with other settings, and is left as it is.
            folder = Path(temporary) / "run"
            if known:
                shutil.copytree(Path(out) / DATA, folder / DATA)
        experiment = prepare(folder, stages=order, **arguments)
        return estimate(experiment, order, hosts=arguments.get("hosts", 1))


def tables(folder: str | Path) -> Iterator[str]:
    """A table of each run in a folder and in its subfolders; of one that cannot be read, what is wrong with it."""
    for path in sorted({file.parent for file in Path(folder).glob(f"**/{DATA}")}):
        try:
            yield as_table(read_store(path))
        except ValueError as error:
            yield f"{path}\n  cannot be read: {error}"


def as_table(store: Store) -> str:
    """A table of the settings of a run and of the progress of its stages, for the terminal."""
    about, settings = store.about, from_json(store.about["settings"])
    size = sum(path.stat().st_size for path in store.root.glob("**/*") if path.is_file()) / 2**20
    lines = [
        f"{store.path}",
        f"  model {about['model']['name']} ({about['model']['fingerprint']}), judged by {about['judge']['name']}",
        f"  concepts {', '.join(settings.concepts)}; layers {', '.join(map(str, settings.layers))}; "
        f"variants {', '.join(settings.variants)}; seed {settings.seed}",
        f"  begun {about['begun']}, version {about['version']}, JAX {about['jax']}, on {about['device']}; {size:.1f} MiB",
    ]
    for group in sorted(store.groups, key=_order):
        done, wanted = store.done(group)
        lines.append(f"    {group:<18}{done:>6} of {wanted} cells{'' if done == wanted else '  (not finished)'}")
    return "\n".join(lines)


STAGE_OF_GROUP = {"lexicon": "concept", "judge": "concept", "update": "train-update", "preference": "preference-utility"}
"""The stage of a group that does not have its stage's name, by the first part of the group's name."""


def _order(group: str) -> tuple[int, str]:
    """A sort key of groups: each stands with its stage; at the end if no stage is known for it."""
    names = list(STAGES)
    stage = group if group in names else STAGE_OF_GROUP.get(group.split("-")[0])
    return (len(names) if stage is None else names.index(stage)), group

"""The whole of it in one call: train, verify, compute, draw, and one page that shows everything together."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from sim import output
from sim.bridge.model import LanguageModel, load
from sim.checks import report
from sim.checks.refute import Kept, write_instance
from sim.checks.validation import Validation, validate
from sim.checks.verify import INSTANCES, Verdict, as_json, train_examples, verify
from sim.choosing.page import write_page
from sim.choosing.search import choose
from sim.directions.extraction import make_vector
from sim.directions.prompt_texts import STARTS
from sim.directions.texts import concept_pairs
from sim.figures import COSTS_FIGURES, FIGURES, VALIDATION_FIGURES, Drawing, save
from sim.figures.toy import CORPUS_FIGURES
from sim.output import write_data, write_json
from sim.progress import bar
from sim.toy import arc, costs, texts, turns
from sim.toy import curves as toy
from sim.toy.corpus_file import NamedCase
from theory import examples, norms
from theory._compilation import release_programs
from ufm.precision import in_float64

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """The results of a reproduction.

    Attributes:
        verdicts: statement by statement.
        numbers: the figures that the run is judged by, by name.
        data: the labelled data of the figures.
        page: the page that shows them.
        seconds: wall time of the run.
        on_model: what was found on the language model; None if there was none.
        missing: why there was none, and what to do; empty if none was asked for.
        choice: the page of a strength that was chosen on the language model.
    """

    verdicts: list[Verdict]
    numbers: dict[str, Any]
    data: xr.DataTree
    page: Path
    seconds: float
    on_model: Validation | None = None
    missing: str = ""
    choice: Path | None = None

    @property
    def holds(self) -> bool:
        """Whether every statement holds by every route that was taken, and on the language model if there is one."""
        on_model = self.on_model is None or self.on_model.holds
        return on_model and all(verdict.holds for verdict in self.verdicts)


def reproduce(
    out: str | Path = "out",
    *,
    seed: int = 0,
    instances: int = INSTANCES,
    statements: Sequence[str] | None = None,
    model: str | LanguageModel | None = None,
    check_model: Callable[[LanguageModel], Validation] | None = None,
    choose_strength: Callable[[LanguageModel, Path], Path] | None = None,
    apart: bool = False,
) -> Reproduction:
    """Train the toy models, verify the statements, draw the figures, check the theory on a language model; write it all.

    The folder gets ``index.html``, ``statements/`` with a page for each, ``instances/`` with the worst instances that routes
    found (`sim.replay` reads them), ``figures/``, ``toy.nc`` (netCDF, one group per figure),
    ``verdicts.json`` and ``numbers.json``; for a language model, also what `write_validation` writes, and
    ``choosing/`` with the page of a chosen strength. Files of an earlier run are replaced one by one, each as a whole.

    Args:
        out: the folder, made if need be.
        seed: of initial parameters and random instances.
        instances: random instances per statement.
        statements: ids of those to verify; all if left out.
        model: a language model, or what `sim.load` takes; none if left out. If it cannot be loaded,
            the page says so, and the rest is made all the same.
        check_model: what to check on it; `sim.validate` with the seed if left out.
        choose_strength: how to write the page of a chosen strength, from the model and a folder; `write_choice` with the
            seed if left out.
        apart: whether a second process checks the random instances (`sim.verify`).

    Raises:
        ValueError: a folder that cannot be written, before anything is computed.
    """
    folder = output.prepare_folder(out)
    pictures = output.prepare_folder(folder / "figures")
    start = time.perf_counter()
    train = cache(partial(train_examples, seed))
    verdicts = verify(statements, seed=seed, instances=instances, twins=True, trained=train, apart=apart)
    trained = train()
    data, files = draw(pictures, trained["default"], trained["toy"], seed)
    numbers = _numbers(trained) | {"settings": output.settings(seed, instances=instances, float64=True)}
    write_data(folder / "toy.nc", data, numbers["settings"])
    write_json(folder / "verdicts.json", as_json(verdicts, seed))
    write_json(folder / "numbers.json", numbers)
    kept = keep(output.prepare_folder(folder / "instances"), verdicts, seed)
    lm, missing = _loaded(model)
    on_model = choice = None
    if lm is not None:
        # The programs of the statements are done with.
        release_programs(0)
        on_model = (check_model or partial(validate, seed=seed))(lm)
        files |= write_validation(folder, on_model)
        choice = (choose_strength or partial(write_choice, seed=seed))(lm, folder / "choosing")
    seconds = time.perf_counter() - start
    page = report.write(
        folder, verdicts, files, kept, numbers, seconds, on_model=on_model, missing=missing, choice=choice is not None
    )
    return Reproduction(verdicts, numbers, data, page, seconds, on_model, missing, choice)


def _numbers(trained: dict[str, toy.Trained]) -> dict[str, Any]:
    """The figures that a run is judged by."""
    with in_float64():
        agreement = {name: toy.agreement(trained[name])._asdict() for name in ("default", "toy")}
    fit = trained["default"].fit
    return {"entropy": fit.entropy, "gap": fit.gap, "steps": fit.steps, "agreement": agreement}


def _loaded(model: str | LanguageModel | None) -> tuple[LanguageModel | None, str]:
    """A language model; or none, and why it could not be loaded."""
    try:
        return (load(model) if isinstance(model, str) else model), ""
    except ValueError as error:
        return None, str(error)


def write_choice(
    lm: LanguageModel, folder: Path, *, seed: int = 0, concept: str = "joy", prompts: int = 8, horizon: int = 24
) -> Path:
    """Choose how hard to push a concept of the library after the middle block, for 1 nat, and write the page of the choice.

    Args:
        lm: the model.
        folder: for the page.
        seed: of the texts that the model writes.
        concept: of the library.
        prompts: how many beginnings.
        horizon: tokens of a continuation.

    Returns:
        The path of the page.
    """
    layer = (lm.config.num_layers - 1) // 2
    vector = make_vector(lm, pairs=concept_pairs(concept), name=concept, progress=False)
    beginnings = STARTS[:prompts]
    choice = choose(lm, vector, beginnings, layer=layer, budget=1.0, horizon=horizon, completions=0, seed=seed)
    return write_page(lm, choice, beginnings, folder)


def write_validation(folder: Path, validation: Validation, *, alone: bool = False) -> dict[str, dict[str, Path]]:
    """Write what was found on a language model: ``language-model.html``, ``.json`` and ``.nc``, and figures.

    Returns:
        The paths of the figures, by figure and format.
    """
    groups = {name: figure for name, figure in VALIDATION_FIGURES.items() if figure.dataset in validation.data.children}
    files = draw_all(groups, validation.data, output.prepare_folder(folder / "figures"))
    write_data(folder / "language-model.nc", validation.data, validation.numbers)
    write_json(folder / "language-model.json", validation.as_json())
    report.write_language_model(folder, validation, files, alone=alone)
    return files


def draw_all(figures: dict[str, Drawing], data: xr.DataTree, folder: Path) -> dict[str, dict[str, Path]]:
    """Save every figure in every format; paths by figure and format."""
    LOG.info("%d figures are drawn", len(figures))
    names = bar(figures.items(), desc="draw", unit="figure")
    return {name: save(figure.draw(data[figure.dataset].to_dataset()), folder, name) for name, figure in names}


def draw(
    folder: Path, default: toy.Trained, other: toy.Trained, seed: int = 0
) -> tuple[xr.DataTree, dict[str, dict[str, Path]]]:
    """Compute the data of the figures and save every figure in every format; paths by figure and format."""
    LOG.info("the data of the figures are computed")
    with in_float64():
        data = toy.run(default, other, seed)
        others = {"arc": arc.data(norms.spread_out()), **costs.run(other), "texts": texts.run(), "turns": turns.run()}
        for name, dataset in others.items():
            data[name] = xr.DataTree(dataset)
    return data, draw_all(FIGURES, data, folder)


def draw_corpus(folder: Path, named: NamedCase, seed: int = 0) -> dict[str, dict[str, Path]]:
    """Train a model of a corpus of one's own, and save the toy figures and those of costs; paths by figure and format."""
    LOG.info("a model of the corpus is trained, and the data of its figures are computed")
    with in_float64():
        ((_, fitted),) = examples.train({"own": named.case}, jax.random.key(seed))
        trained = toy.Trained(named.case, fitted, named.names)
        datasets = toy.of_corpus(trained, seed) | costs.run(trained)
    data = xr.DataTree.from_dict(datasets)
    write_data(folder / "toy.nc", data, output.settings(seed, float64=True))
    own = {name: figure for name, figure in COSTS_FIGURES.items() if figure.dataset in datasets}
    return draw_all(CORPUS_FIGURES | own, data, folder)


def write_verification(folder: Path, verdicts: list[Verdict], seed: int) -> Path:
    """Write ``verdicts.json``, ``instances/`` with the worst instances, and pages; returns the path of the first page."""
    write_json(folder / "verdicts.json", as_json(verdicts, seed))
    return report.write_verification(folder, verdicts, keep(output.prepare_folder(folder / "instances"), verdicts, seed))


def keep(folder: Path, verdicts: list[Verdict], seed: int) -> dict[tuple[str, str, bool], Path]:
    """Write the worst instance that each route found, of statements and of false twins, so that it can be replayed.

    Returns:
        The files by statement, route and whether it is of the twin. Margins of sweeps need a trained model: they are left
        out.
    """
    files = {}
    for verdict in verdicts:
        name = verdict.statement.id
        for twin, evidence in ((False, verdict.evidence), (True, verdict.twin)):
            for result in evidence:
                if result.worst is None or result.route == "sweep":
                    continue
                path = folder / f"{name}{'.twin' if twin else ''}.{result.route}.json"
                kept = Kept(result.worst, name, result.worst_margin, twin=twin, route=result.route, seed=seed)
                files[name, result.route, twin] = write_instance(path, kept)
    return files

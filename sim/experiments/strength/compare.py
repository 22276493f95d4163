"""Several runs side by side on one page: what the claims come to on other models, at other layers, with other settings."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim import output
from sim.bridge.files import reading
from sim.experiments.settings import differences, from_json, layers_by_name
from sim.experiments.store import read_store
from sim.experiments.strength import in_short
from sim.experiments.strength.page import SAMPLES, is_trial
from sim.pages import write_page
from ufm._check import require


@dataclass(frozen=True)
class ComparedRun:
    """A run whose claims have been tested.

    Attributes:
        name: of its folder.
        about: what the run is: model, settings, versions.
        num_layers: blocks of its model.
        tested: the claims, as `PaperClaim.as_json` gives them.
        trials: stages that measure no more than a trial run does.
    """

    name: str
    about: dict[str, Any]
    num_layers: int
    tested: tuple[dict[str, Any], ...]
    trials: tuple[str, ...] = ()

    @property
    def layers(self) -> list[int]:
        """The blocks that it was steered after."""
        return sorted(int(layer) for layer in self.about["settings"]["layers"])

    @property
    def counts(self) -> dict[str, int]:
        """How many claims hold, fail and are open."""
        return {name: sum(claim["verdict"] == name for claim in self.tested) for name in ("holds", "fails", "open")}

    def claims(self, names: Mapping[int, str]) -> dict[tuple[str, str, str], dict[str, Any]]:
        """The claims by what is said, where and of which number.

        Args:
            names: what blocks are called.
        """

        def named(match: re.Match[str]) -> str:
            return names.get(int(match[1]), match[0])

        return {
            (claim["says"], re.sub(r"block (\d+)", named, claim["about"]), _without_number(claim["what"])): claim
            for claim in self.tested
        }


def names_of_layers(runs: Sequence[ComparedRun]) -> list[dict[int, str]]:
    """Names for the blocks of each run; blocks that are to be compared get the same name.

    Runs with as many blocks stand side by side block by block, in their order. Otherwise blocks are called early, middle and
    last where they are.
    """
    if len({len(run.layers) for run in runs}) == 1:
        ranks = list(zip(*(run.layers for run in runs), strict=True))
        titles = [f"block {' | '.join(str(layer) for layer in dict.fromkeys(rank))}" for rank in ranks]
        return [dict(zip(run.layers, titles, strict=True)) for run in runs]
    return [{number: name for name, number in reversed(layers_by_name(run.num_layers).items())} for run in runs]


def compare(folders: Sequence[str | Path], page: str | Path) -> Path:
    """Write a page with the claims of several runs side by side.

    A claim has one row for each concept, block and text (`names_of_layers` says which blocks belong together).

    Args:
        folders: of the runs, two or more, with their claims tested (`ufm lm all` or `ufm lm page`).
        page: the HTML file to write; .html is put to a name without an ending.

    Raises:
        ValueError: fewer than two folders, one twice, one without a run or without tested claims.
    """
    paths = [Path(folder) for folder in folders]
    require(len(paths) > 1, "folders", "two runs or more", len(paths))
    twice = len({path.resolve() for path in paths}) < len(paths)
    require(not twice, "folders", "different runs", ", ".join(str(path) for path in paths))
    named = Path(page)
    target = output.writable_file(named if named.suffix or named.is_dir() else named.with_suffix(".html"), "out")
    runs = [read_run(path) for path in paths]
    names = names_of_layers(runs)
    claims = [run.claims(own) for run, own in zip(runs, names, strict=True)]
    keys = list(dict.fromkeys(key for of_run in claims for key in of_run))
    first = runs[0].about
    return write_page(
        target,
        "comparison.html",
        runs=runs,
        found=in_short.of_runs({run.name: run.tested for run in runs}),
        rows=[
            {"says": says, "where": where, "what": what, "cells": [of_run.get((says, where, what)) for of_run in claims]}
            for says, where, what in keys
        ],
        apart=[differences(_compared(first), _compared(run.about)) for run in runs],
        trials=[f"{run.name} ({', '.join(run.trials)})" for run in runs if run.trials],
        matched=len(runs[0].layers) if len({len(run.layers) for run in runs}) == 1 else 0,
    )


def read_run(folder: Path) -> ComparedRun:
    """The tested claims of a run.

    Raises:
        ValueError: no run there, or one whose claims have not been tested.
    """
    store, file = read_store(folder), folder / "claims.json"
    again = f"ufm lm page --out {folder}"
    tested = f"a run whose claims have been tested: {again}"
    require(file.is_file() and store.has("vectors"), "folders", tested, repr(str(folder)))
    with reading(file, "claims of a run", argument="folders"):
        claims = json.loads(file.read_text(encoding="utf-8"))["claims"]
    current = all({"value", "low", "high", "reason"} <= set(claim) for claim in claims)
    require(current, "folders", f"claims of this version: {again}", repr(str(folder)))
    settings = from_json(store.about["settings"])
    trials = tuple(stage for stage in SAMPLES if store.finished(stage) and is_trial(settings, stage))
    return ComparedRun(folder.resolve().name, dict(store.about), store.data("vectors").sizes["layer"], tuple(claims), trials)


def _without_number(what: str) -> str:
    """The name of a number without the strength it was taken at, which differs from run to run."""
    return re.sub(r",? at ±?-?[\d.e+-]+", "", what)


def _compared(about: dict[str, Any]) -> dict[str, Any]:
    kept = ("dtype", "judge", "inputs")
    return {"model": about["model"]["name"], **{name: about.get(name) for name in kept}, **about["settings"]}

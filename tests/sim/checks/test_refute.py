"""The workbench for conjectures, as a user meets it: answers, files, replay, and bad input in one line."""

import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

import sim.checks.refute
from sim import cli
from sim.checks.counterexample import as_text, describe
from sim.figures.counterexample import counterexample, shown_numbers
from theory import REGISTRY, Instance, examples, norms, rationals, routes
from theory._compilation import compiled_quickly
from theory.random_instances import FAMILIES

PAGE = Path(__file__).parents[3] / "docs" / "conjectures.md"

BAD = """
import math
import jax
import jax.numpy as jnp
import numpy as np
number = 3
def shape(one): return one.p
def pair(one): return one.range, one.range
def numpy(one): return jnp.asarray(np.min(np.asarray(one.p)))
def python(one): return one.range if one.range > 1 else -one.range
def floats(one): return jnp.asarray(math.log(one.range))
def integer(one): return jnp.sum(one.members)
def raises(one): return 1 / 0 * one.range
def attribute(one): return jnp.min(one.probabilities)
def two(one, other): return one.range
def loop(one): return jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, one.range)
def callback(one): return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), float), jax.lax.stop_gradient(one.range))
def nan(one): return jnp.log(-1 - one.range)
def vacuous(one): return jnp.where(one.range < 0, one.range, jnp.inf)
def unsupported(one): return -1 - jnp.linalg.eigvalsh(one.p @ one.p.T)[0] ** 2
def rounding(one): return jnp.min(1 - jnp.sum(one.p, axis=1)) + 1e-30
"""

RARE = rationals.from_json(
    {
        "p": [["1/20", "9/20", "3/10", "1/5"], ["1/100", "1/10", "2/5", "49/100"]],
        "weights": ["1/2", "1/2"],
        "concept": [0, 1],
        "members": [[0, 1], [2, 3]],
        "contrast": ["1", "-1"],
        "target": 0,
    }
)
"""Two contexts, in one of which the token of the largest log-odds is rare."""


@pytest.fixture
def ufm(monkeypatch, capsys, tmp_path):
    """`ufm` with arguments, in an empty folder and with a short search: the exit code, and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sim.checks.refute, "refute", partial(sim.checks.refute.refute, drawn=64, restarts=4, steps=10))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ufm", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def mine(tmp_path):
    """The file of the page: its first block."""
    code = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.py").write_text(code[1])


@pytest.fixture
def bad(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)


def written(folder):
    """All files but the user's."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")


@pytest.mark.usefixtures("mine")
def test_a_false_conjecture_is_refuted_written_drawn_and_replayed(ufm, tmp_path):
    code, out, err = ufm("refute", "mine.py:leads", "--out", "new/folder", "--seed", "3")
    assert (code, err) == (1, "")
    ends = re.match(r"refuted: confirmed in exact fractions, margin in \[(\S+), (\S+)\], 128 bits; written to new", out)
    assert written(tmp_path) == [f"leads.{kind}" for kind in ("json", "pdf", "png", "svg")]
    kept = json.loads((tmp_path / "new/folder/leads.json").read_text())
    assert kept["target"] == "mine.py:leads"
    assert kept["needs"] == ["not-constant", "positive"]
    assert kept["seed"] == 3
    assert kept["enclosure"] == [float(ends[1]), float(ends[2])]
    # By hand, from the fractions alone: the token of the largest log-odds, and one that beats it.
    exact = rationals.from_json(kept["instance"]["fields"])
    p = np.array([[float(x) for x in row] for row in exact.p])
    m = np.array([float(x) for x in exact.contrast]) @ np.log(p)
    logits = np.log(p) + 4 * m / np.ptp(m)
    top = m > m.max() - 1e-9
    assert np.min(logits[:, top].max(axis=1) - logits[:, ~top].max(axis=1)) == pytest.approx(float(ends[1]), abs=1e-9)
    code, out, _ = ufm("replay", "new/folder/leads.json")
    assert code == 0
    assert f"exactly in [{ends[1]}, {ends[2]}]" in out
    assert "the counterexample stands" in out


FALLS = rationals.from_json(
    {
        "p": [["1/2", "1/5", "3/10"], ["3/10", "2/5", "3/10"], ["3/10", "1/5", "1/2"]],
        "weights": ["1/3", "1/3", "1/3"],
        "concept": [0, 1, 2],
        "members": [[0], [1], [2]],
        "contrast": ["1", "-1", "0"],
        "target": 0,
    }
)
"""Three concepts of a token each; N has nothing of concept 2, which rises at first and falls in the end."""


def test_the_counterexample_of_a_twin_is_marked_where_its_inequality_fails():
    """The false twin of theorem 3.6 says that every concept rises that N has nothing of: here concepts 0 and 2."""
    twin = REGISTRY["theorem-3.6.target"].twin
    with jax.enable_x64(True):
        margin = float(twin.instances(rationals.to_floats(FALLS)))
        data = describe(FALLS, "a twin", twin.instances, margin, claim=twin)
    # By hand: the log-odds of a concept of one token have the slope M(z) - E[M | not z].
    p = np.array([[0.5, 0.2, 0.3], [0.3, 0.4, 0.3], [0.3, 0.2, 0.5]])
    m = np.log(p[0] / p[1])
    tilted = p[:, None] * np.exp(data["alpha"].values[:, None] / np.ptp(m) * m)
    rest = tilted[..., None] * (1 - np.eye(3))
    slopes = (m - (rest * m[:, None]).sum(axis=2) / rest.sum(axis=2))[..., [0, 2]]
    fails = slopes.min(axis=(0, 2)) < 0
    assert 0.2 < fails.mean() < 0.8
    np.testing.assert_array_equal(data["fails"], fails)
    assert margin == pytest.approx(slopes.min() / np.ptp(m), abs=1e-3)

    first = data["alpha"].values[fails.argmax()]
    lines = as_text(data).splitlines()
    assert lines[-3:-1] == [
        f"The target is concept 0. a twin requires a margin above 0; here it is {margin:+.6g}.",
        f"The margin is {twin.reading}.",
    ]
    assert lines[-1] == f"Its inequality fails at strengths from {first:+g} / R up."

    figure = counterexample(data)
    assert figure.get_suptitle().splitlines()[0] == "Counterexample to a twin"
    assert f"{margin:.4g}".replace("-", "\N{MINUS SIGN}") in figure.get_suptitle()
    *panels, table = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        f"$c_{j}$, concept {j}{role}" for j, role in enumerate((", $P$", ", $N$", ""))
    ]
    for axes in panels:
        (shaded,) = axes.patches
        assert shaded.get_x() == pytest.approx(first, abs=0.1)
        assert shaded.get_x() + shaded.get_width() == pytest.approx(data["alpha"].values[-1], abs=0.1)
    assert [text.get_text() for text in table.get_yticklabels()][:2] == ["$c_0$, concept 0, $P$", "$c_1$, concept 1, $N$"]
    assert "claim fails" in [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_table_of_a_counterexample_says_what_is_what_and_why_no_strength_is_marked():
    with jax.enable_x64(True):
        data = describe(RARE, "mine.py:leads", lambda instance: instance.p[0, 0] - 0.3, -0.25)
    lines = as_text(data).splitlines()
    assert lines[0].split() == ["token", "0", "token", "1", "token", "2", "token", "3"]
    assert lines[1].split() == ["weight", *["concept", "0"] * 2, *["concept", "1"] * 2]
    assert lines[2].split() == ["c0,", "concept", "0,", "in", "P", "1/2", "1/20", "9/20", "3/10", "1/5"]
    assert lines[3].split() == ["c1,", "concept", "1,", "in", "N", "1/2", "1/100", "1/10", "2/5", "49/100"]
    assert [float(word) for word in lines[4].split()[2:]] == pytest.approx(np.log([5, 4.5, 0.75, 20 / 49]), abs=1e-3)
    assert lines[6:] == [
        "The target is concept 0. mine.py:leads requires a margin above 0; here it is -0.25.",
        "No strength is marked: the margin is one number for the whole table.",
    ]
    title = counterexample(data).get_suptitle().splitlines()
    assert title == [
        "Counterexample to mine.py:leads",
        "A margin above 0 is required; here it is \N{MINUS SIGN}0.25.",
        lines[-1],
    ]


@pytest.mark.usefixtures("mine")
def test_the_smallest_table_of_round_numbers_comes_first(ufm, tmp_path):
    assert ufm("refute", "mine.py:leads")[0] == 1
    fields = json.loads((tmp_path / "out/refute/leads.json").read_text())["instance"]["fields"]
    assert (len(fields["p"]), len(fields["p"][0])) == (2, 2)
    assert all(100 % int(x.partition("/")[2]) == 0 for row in fields["p"] for x in row)


def test_a_conjecture_that_takes_larger_tables_only_is_still_attacked(ufm, tmp_path):
    (tmp_path / "large.py").write_text(
        "import jax.numpy as jnp\ndef large(one):\n    return jnp.dot(one.p[0], jnp.ones(7)) - 2\n"
    )
    assert ufm("refute", "large.py:large")[0] == 1
    fields = json.loads((tmp_path / "out/refute/large.json").read_text())["instance"]["fields"]
    assert len(fields["p"][0]) == 7


def test_a_large_counterexample_loses_contexts_and_tokens_that_it_does_not_need(ufm, tmp_path):
    """False where a context is of weight above 0.6, which no small table has; two tokens and two contexts are enough."""
    (tmp_path / "heavy.py").write_text("import jax.numpy as jnp\ndef heavy(one):\n    return 0.6 - jnp.max(one.weights)\n")
    assert ufm("refute", "heavy.py:heavy", "--needs", "positive")[0] == 1
    fields = json.loads((tmp_path / "out/refute/heavy.json").read_text())["instance"]["fields"]
    assert len(fields["p"][0]) in (2, 3)
    assert ufm("replay", "out/refute/heavy.json")[0] == 0


@pytest.mark.usefixtures("mine")
def test_a_second_counterexample_does_not_replace_the_first(ufm, tmp_path):
    folder = tmp_path / "out/refute"
    ufm("refute", "mine.py:leads")
    first = (folder / "leads.json").read_bytes()
    assert "written to out/refute/leads.json" in ufm("refute", "mine.py:leads")[1]
    assert "written to out/refute/leads-2.json" in ufm("refute", "mine.py:leads", "--seed", "5")[1]
    assert (folder / "leads.json").read_bytes() == first
    assert {path.name for path in folder.iterdir()} == {
        f"leads{n}.{kind}" for n in ("", "-2") for kind in ("json", "pdf", "png", "svg")
    }
    assert ufm("replay", "out/refute/leads-2.json")[0] == 0


@pytest.mark.usefixtures("mine")
def test_a_true_conjecture_is_not_refuted(ufm, tmp_path):
    code, out, err = ufm("refute", "mine.py:moves_little")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"not refuted: lowest margin \+\S+ among 64 instances after descent; with .*, families .*seed 0\n", out
    )
    assert written(tmp_path) == []


def test_a_constant_margin_is_said_to_test_nothing(ufm, tmp_path):
    (tmp_path / "same.py").write_text("def same(one):\n    return 0 * one.range + 1\n")
    code, out, _ = ufm("refute", "same.py:same")
    assert code == 0
    assert re.fullmatch(r"not refuted: lowest margin \+1 .*; .*nothing was tested.*constant\n", out)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda fields, file: None, 0),
        (lambda fields, file: fields.update(p=[["1/20", "9/20", "3/10", "1/5"], ["1/100", "1/10", "29/100", "3/5"]]), 1),
        (lambda fields, file: fields.update(p=[["2/5", "1/10", "3/10", "1/5"], ["1/10", "1/10", "2/5", "2/5"]]), 1),
        (lambda fields, file: file.write_text("def leads(one): return one.range"), 1),
    ],
    ids=["as it was", "a hypothesis fails", "the margin is positive", "another function"],
)
def test_replay_sees_what_has_changed(ufm, tmp_path, change, code):
    needs = ("not-constant", "separated")
    kept = sim.checks.refute.Kept(RARE, "mine.py:leads", -2.1, needs, route="refutation", enclosure=(-2.2, -2.1))
    file = sim.checks.refute.write_instance(tmp_path / "leads.json", kept)
    data = json.loads(file.read_text())
    change(data["instance"]["fields"], tmp_path / "mine.py")
    file.write_text(json.dumps(data))
    got, out, _ = ufm("replay", "leads.json")
    assert got == code
    assert ("the counterexample stands" in out, "the counterexample does not stand" in out) == (code == 0, code == 1)


@pytest.mark.usefixtures("mine")
def test_replay_finds_the_function_beside_the_file_or_above_it(ufm, tmp_path, monkeypatch):
    kept = sim.checks.refute.Kept(RARE, "mine.py:leads", -2.1, ("positive",), route="refutation", enclosure=(-2.2, -2.1))
    (tmp_path / "some" / "where").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = sim.checks.refute.write_instance(tmp_path / "some" / "where" / "leads.json", kept)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ufm("replay", str(file))[0] == 0
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    code, _, err = ufm("replay", str(file))
    assert (code, f"nor in {file.parent} or above it" in err) == (2, True)


def test_replay_says_that_a_tie_is_not_decided(ufm, tmp_path):
    """The condition is a tie in the first context: the share of the target is one half there."""
    (tmp_path / "half.py").write_text(
        "import jax.numpy as jnp\n"
        "def half(one): return jnp.min(jnp.where(one.p[:, 0] + one.p[:, 1] >= 0.5, -one.range, jnp.inf))\n"
    )
    kept = sim.checks.refute.Kept(RARE, "half.py:half", -2.1, ("positive",), route="refutation", enclosure=(-2.2, -2.1))
    sim.checks.refute.write_instance(tmp_path / "half.json", kept)
    code, out, _ = ufm("replay", "half.json")
    assert (code, "is neither confirmed nor disproved" in out) == (1, True)


def test_the_page_names_all_that_a_conjecture_can_need_and_be_made_of():
    page = PAGE.read_text()
    needs = {name for statement in REGISTRY.values() if statement.domain.name == "tables" for name in statement.hypotheses}
    assert all(f"| `{name}` |" in page for name in needs)
    assert all(f"`{name}`" in page or f"{name}," in page or f",{name}`" in page for name in FAMILIES)
    assert all(
        hasattr(Instance, name) or name in Instance.__annotations__
        for name in re.findall(r"^\| `(\w+)`", page.split("## Options")[0], re.M)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_every_false_twin_falls_by_the_command_and_is_replayed(monkeypatch, capsys, tmp_path, name):
    """With the search as users have it, not a short one."""
    monkeypatch.chdir(tmp_path)

    def ufm(*arguments):
        monkeypatch.setattr(sys, "argv", ["ufm", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().out

    code, out = ufm("refute", name, "--twin")
    assert (code, "refuted: confirmed" in out) == (1, True)
    code, out = ufm("replay", f"out/refute/{name}-twin.json")
    assert (code, "the counterexample stands" in out) == (0, True)


def test_curves_of_an_instance_on_which_steering_does_nothing_are_flat():
    constant = replace(RARE, p=(RARE.p[0], RARE.p[0]))
    shown = describe(constant, "flat", lambda instance: instance.p[0, 0], -1.0)
    assert shown["alpha"].attrs["units"] == "1"
    np.testing.assert_allclose(np.ptp(shown["curve"].values, axis=1), 0, atol=1e-12)
    assert r"steering strength $\alpha$" in [axes.get_xlabel() for axes in counterexample(shown).axes]


def test_a_false_twin_of_a_statement_about_norms_is_kept_in_floats(ufm, tmp_path):
    code, out, _ = ufm("refute", "N8.plateau", "--twin")
    assert code == 1
    assert "for exactly these floats" in out
    assert written(tmp_path) == ["N8.plateau-twin.json"]
    code, out, _ = ufm("replay", "out/refute/N8.plateau-twin.json")
    assert (code, "the counterexample stands" in out) == (0, True)


def test_a_false_twin_of_a_statement_about_tables_is_kept_in_fractions(ufm, tmp_path):
    """Under other hypotheses than the statement's, which replay takes from the file."""
    code, out, _ = ufm("refute", "theorem-3.3.order", "--twin", "--needs", "positive")
    assert code == 1
    assert "in exact fractions" in out
    assert "theorem-3.3.order-twin.pdf" in written(tmp_path)
    code, out, _ = ufm("replay", "out/refute/theorem-3.3.order-twin.json")
    assert (code, "the counterexample stands" in out) == (0, True)
    assert "positive" in out
    assert "separated" not in out


def test_families_that_break_a_hypothesis_serve_to_show_what_goes_wrong_without_it(ufm):
    """Rows that are mixtures have no a: what assumption 1 promises of them fails."""
    code, out, _ = ufm("refute", "N17", "--families", "mixed", "--needs", "positive")
    assert (code, "refuted: confirmed" in out) == (1, True)


@pytest.mark.usefixtures("bad")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unsupported", "expected operations with a rule in ball arithmetic, got the primitive eigh"),
        ("rounding", r"in exact arithmetic the margin is \[1.0000"),
    ],
)
def test_what_exact_arithmetic_does_not_confirm_is_said_to_be_so(ufm, tmp_path, name, words):
    code, out, _ = ufm("refute", f"bad.py:{name}")
    assert code == 0
    assert re.match(f"not confirmed: .*{words}", out)
    assert written(tmp_path) == []


@pytest.mark.usefixtures("bad", "mine")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.py:f"], r"expected a file that can be read, got 'nope.py' \(No such file"),
        (["bad.py"], "expected FILE.py:NAME, got 'bad.py'"),
        (["../dir:x"], "expected FILE.py:NAME, got '../dir:x'"),
        (["docs.txt:x"], "expected FILE.py:NAME, got 'docs.txt:x'"),
        ([":x"], "expected FILE.py:NAME, got ':x'"),
        (["mine.py:leads", "--needs", ""], "needs: expected names of hypotheses, or none if there are none, got ''"),
        (["syntax.py:f"], r"expected a file that imports, got SyntaxError: invalid syntax \(syntax.py, line 2\)"),
        (["import.py:f"], r"expected a file that imports, got KeyError: 'a' \(import.py, line 2\)"),
        (["exits.py:f"], r"expected a file that imports, got SystemExit: 3 \(exits.py, line 1\)"),
        (["mine.py:lead"], "expected a name in mine.py such as leads, got 'lead'"),
        (["bad.py:number"], "expected a function of an instance, got number, of type int"),
        (["bad.py:shape"], r"expected a function that returns a scalar, got shape \(6, 7\)"),
        (["bad.py:pair"], "expected a function that returns a scalar, got tuple"),
        (["bad.py:numpy"], r"gradients go through, got NumPy.* TracerArrayConversionError.* \(bad.py, line 9\)"),
        (["bad.py:python"], r"gradients go through, got .* a Python condition .* \(bad.py, line 10\)"),
        (["bad.py:floats"], r"gradients go through, got .* float\(\) .* \(bad.py, line 11\)"),
        (["bad.py:integer"], "expected a differentiable function, which returns floats, got int64"),
        (["bad.py:raises"], r"got ZeroDivisionError: division by zero \(bad.py, line 13\)"),
        (["bad.py:attribute"], r"got AttributeError: 'Instance' object has no attribute .* \(bad.py, line 14\)"),
        (["bad.py:two"], r"got TypeError: two\(\) missing 1 required positional argument"),
        (["bad.py:loop"], "expected a differentiable function, got ValueError: Reverse-mode"),
        (["bad.py:callback"], r"expected a differentiable function, got NotImplementedError: .* \(bad.py, line 17\)"),
        (["bad.py:nan"], "margin: expected a number or .inf on every instance, got NaN"),
        (["bad.py:vacuous"], "expected a claim about some instance, got .inf, or a hypothesis that fails, on all 64"),
        (["mine.py:leads", "--needs", "A3"], r"needs: expected some of .*A1.*, got A3"),
        (["mine.py:leads", "--families", "free,odd"], r"families: expected some of uniform, .*, got odd"),
        (["mine.py:leads", "--twin"], "twin: expected the id of a statement"),
        (["mine.py:leads", "--out", "mine.py"], "out: expected a folder that can be written"),
        (["theorem-3.4"], r"statement: expected a known id such as remark-3\.4"),
        (["N7", "--families", "free"], "families: expected none for statements about norms"),
        (
            ["N17", "--families", "free"],
            r"families: expected some on which N17 claims something under A2, .*A1.*, such as uniform, weighted, tied, "
            r"got free: .inf, or a hypothesis that fails, on all 64 random ones",
        ),
        (["N7", "--needs", "A1"], r"needs: expected some of not-parallel.*, got A1"),
    ],
)
def test_bad_input_is_one_line_with_its_cause(ufm, tmp_path, arguments, message):
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "import.py").write_text("def f(one): return one.range\n{}['a']\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    code, out, err = ufm("refute", *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert written(tmp_path) == []


@pytest.mark.parametrize("route", ["instances", "autodiff"])
def test_an_instance_that_a_route_has_kept_gives_its_margin_again(tmp_path, route):
    """Of which the two routes have different ones."""
    instance, claim = examples.toy_case().instance, REGISTRY["theorem-3.8"].claim
    margin = float(compiled_quickly(getattr(claim, route))(instance))
    kept = sim.checks.refute.Kept(instance, "theorem-3.8", margin, route=route)
    again = sim.checks.refute.replay(sim.checks.refute.write_instance(tmp_path / "worst.json", kept))
    assert again.floats["margin"] == pytest.approx(margin, rel=1e-6, abs=0)
    assert list(again.floats) == ["A2", "not-constant", "positive", "margin"]
    assert again.stands
    assert not replace(again, kept=replace(kept, margin=-margin)).stands


def test_every_kind_of_instance_comes_back_as_it_was(tmp_path):
    table = examples.toy_case().instance
    zero = replace(table, log_p=np.where(table.log_p < -3, -np.inf, table.log_p))
    for instance in (table, zero, norms.spread_out(), RARE):
        kept = sim.checks.refute.Kept(instance, "N1", -0.1, ("A2",), True, "refutation", 5, (-np.inf, -0.1), 256)
        again = sim.checks.refute.read_instance(sim.checks.refute.write_instance(tmp_path / "kept.json", kept))
        assert replace(again, instance=RARE) == replace(kept, instance=RARE)
        assert type(again.instance) is type(instance)
        for name, value in vars(instance).items():
            np.testing.assert_array_equal(getattr(again.instance, name), value)
            assert np.asarray(getattr(again.instance, name)).dtype.kind == np.asarray(value).dtype.kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("needs"), "file: expected the fields"),
        (lambda data: data.update(twin="yes"), "twin: expected true or false, got 'yes'"),
        (lambda data: data.update(enclosure=[1]), "enclosure: expected two numbers"),
        (lambda data: data.update(target="theorem-3.9"), "statement: expected a known id"),
        (lambda data: data.update(target="N7", needs=None), "instance: expected one of statements about norms"),
        (lambda data: data["instance"].update(type="Table"), "instance: expected a type in"),
        (lambda data: data["instance"]["fields"].pop("p"), "data: expected the fields"),
        (lambda data: data["instance"]["fields"].update(weights=["1/2"]), "weights: expected one for each row of p"),
    ],
)
def test_a_spoilt_file_is_refused_by_the_field(ufm, tmp_path, change, message):
    file = sim.checks.refute.write_instance(tmp_path / "kept.json", sim.checks.refute.Kept(RARE, "N1", 0.1))
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    code, out, err = ufm("replay", str(file))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_none_is_refused(ufm, tmp_path):
    (tmp_path / "empty.json").write_text("")
    assert "expected JSON" in ufm("replay", "empty.json")[2]
    assert "expected a file that can be read" in ufm("replay", "none.json")[2]


@pytest.mark.parametrize("identity", ["N13.slope", "N14.values", "N24", "N19.tilt"])
def test_an_instance_of_any_domain_is_read_as_it_was_written(identity, tmp_path):
    statement = REGISTRY[identity]
    instance = jax.tree.map(lambda leaf: leaf[0], routes.populate(jax.random.key(1), 1, statement.domain))
    path = sim.checks.refute.write_instance(tmp_path / "kept.json", sim.checks.refute.Kept(instance, identity, 0.0))
    again = jax.tree.map(jax.numpy.asarray, sim.checks.refute.read_instance(path).instance)
    assert type(again) is type(instance)
    assert float(statement.claim.instances(again)) == pytest.approx(float(statement.claim.instances(instance)), abs=1e-12)


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        (["1/2", "1/3", "1/6"], ["1/2", "1/3", "1/6"]),
        (["999/1000", "1/2000", "1/2000"], ["0.999", "0.0005", "0.0005"]),
        (["2999/3000", "1/6000", "1/6000"], ["0.999667", "1/6000", "1/6000"]),
        (["99999999/100000000", "1/200000000", "1/200000000"], ["1-1.0e-08", "5.0e-09", "5.0e-09"]),
        (["3333333/10000000", "3333333/10000000", "1666667/5000000"], ["0.333333", "0.333333", "0.333333"]),
    ],
)
def test_the_shown_entries_of_a_row_add_up_to_1(row, cells):
    assert shown_numbers(xr.Dataset({"fraction": (("context", "token"), [row])})) == [cells]

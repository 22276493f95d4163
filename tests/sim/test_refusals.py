"""What a caller of the toy, the attack and the verification may get wrong: the error is ours and names the argument."""

import pytest

from sim.checks import refute, verify
from sim.toy import curves as toy

TARGET = "theorem-3.6.target"
WRONG = [
    (verify.verify, {}, "ids", [TARGET, 3, [1], ["theorem-9"]]),
    (verify.verify, {}, "seed", ["a", 1.5, None, True, 10**400]),
    (verify.verify, {}, "instances", ["a", 0, -1, 1.5, None, 2**62]),
    (verify.verify, {}, "names", ["sweep", ["x"], [], 3]),
    (verify.verify, {}, "twins", ["a", 1, None]),
    (verify.verify, {}, "trained", ["a", 1]),
    (verify.verify, {}, "workers", ["a", 0, -1, 1.5]),
    (verify.train_examples, {}, "names", ["default", ["x"], 3]),
    (refute.conjecture, {}, "target", [3, None, "theorem-9"]),
    (refute.conjecture, {"target": TARGET}, "needs", ["positive", ["x"], 3]),
    (refute.conjecture, {"target": TARGET}, "twin", ["a", None]),
    (refute.refute, {"target": TARGET}, "families", ["uniform", ["x"], []]),
    (refute.refute, {"target": TARGET}, "seed", ["a", 1.5, None]),
    (refute.refute, {"target": TARGET}, "drawn", ["a", 0, -1, 2**62]),
    (refute.refute, {"target": TARGET}, "restarts", [0, None]),
    (refute.refute, {"target": TARGET}, "steps", [0, 2.5]),
    (refute.replay, {}, "path", [3, None]),
    (toy.run, {}, "default", [3, None, "a"]),
    (toy.next_token_curves, {"context": 0, "alphas": [0.0]}, "trained", [3, None]),
    (toy.agreement, {}, "trained", ["toy", None]),
    (toy.training, {}, "runs", [3, None, {}]),
]
CALLED = {"ids": "ids|statement", "names": "names|routes", "target": "target|statement"}


@pytest.mark.parametrize(
    ("function", "arguments", "argument", "values"),
    WRONG,
    ids=[f"{function.__name__}-{name}" for function, _, name, _ in WRONG],
)
def test_wrong_values_are_refused_by_the_name_of_the_argument(monkeypatch, tmp_path, function, arguments, argument, values):
    monkeypatch.chdir(tmp_path)
    for value in values:
        keywords = {**arguments, argument: value}
        if function is toy.run:
            keywords["toy"] = None
        with pytest.raises(ValueError, match=rf"^({CALLED.get(argument, argument)}): expected .*, got "):
            function(**keywords)

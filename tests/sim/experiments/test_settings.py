"""Settings: what presets say, what is refused, and how one is told from another."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sim.bridge.architectures import from_config
from sim.directions.texts import CONCEPTS
from sim.experiments.settings import (
    PRESETS,
    VARIANTS,
    ConceptProbability,
    CrossEntropy,
    ExperimentSettings,
    Mmlu,
    NextToken,
    Prompts,
    Recipe,
    Updates,
    Vectors,
    differences,
    from_json,
    grid,
)

SMOKE = PRESETS["smoke"]


def architecture(layers):
    sizes = {"vocab_size": 10, "n_embd": 8, "n_head": 2, "n_positions": 16}
    return from_config({"model_type": "gpt2", "n_layer": layers, **sizes})


def test_the_paper_is_as_it_says():
    paper = PRESETS["paper"]
    assert paper.concepts == CONCEPTS
    assert (paper.prompts.texts, paper.prompts.max_new_tokens) == (500, 300)
    assert (paper.next_token.strengths, paper.cross_entropy.strengths) == (1025, 129)
    assert paper.prompts.sampling.temperature == 0.9
    even = np.diff(paper.next_token.alphas(paper.main))
    np.testing.assert_allclose(even, even[0])
    assert paper.next_token.alphas(paper.main)[-1] == 200


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_strengths_of_both_signs_and_0(name):
    preset = PRESETS[name]
    every = [
        preset.concept.alphas,
        preset.cross_entropy.alphas,
        preset.mmlu.alphas,
        *map(preset.next_token.alphas, preset.steered),
    ]
    for alphas in every:
        assert alphas.size % 2 == 1
        assert alphas[alphas.size // 2] == 0
        assert (np.diff(alphas) > 0).all()
        np.testing.assert_allclose(alphas, -alphas[::-1])


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_strength_0_is_in_every_grid(spread):
    for count in range(3, 999, 2):
        alphas = grid(count, 7.0, spread)
        assert alphas.size == count
        assert alphas[count // 2] == 0
        assert (alphas[0], alphas[-1]) == (-7, 7)


def test_strengths_are_denser_in_the_middle():
    np.testing.assert_allclose(grid(5, 8.0, 0.0), [-8, -4, 0, 4, 8])
    np.testing.assert_allclose(grid(5, 8.0, 3.0), 8 * np.sinh([-3, -1.5, 0, 1.5, 3]) / np.sinh(3))
    normalised = NextToken(reach=2.0, normalised_reach=30.0).alphas(VARIANTS["normalised"])
    assert (normalised[0], normalised[-1]) == (-30, 30)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_json(name):
    preset = PRESETS[name]
    assert from_json(json.loads(json.dumps(preset.as_json()))) == preset
    assert differences(preset.as_json(), json.loads(json.dumps(preset.as_json()))) == []


def test_layers_become_numbers():
    def layers(count, *names):
        return replace(SMOKE, layers=names).for_model(architecture(count)).layers

    assert layers(30, "early", "middle", "last") == (7, 15, 29)
    assert layers(30, "last", 3, "early") == (3, 7, 29)
    # In a model of few blocks some are the same.
    assert layers(1, "early", "middle", "last") == (0,)
    assert layers(3, "early", "middle", 2, "last") == (0, 1, 2)
    assert replace(SMOKE, layers=(9, 1, 4)).middle == 4
    assert replace(SMOKE, layers=(9, 1)).middle == 1


@pytest.mark.parametrize("layer", [3, -1, "first"])
def test_layers_that_a_model_does_not_have(layer):
    with pytest.raises(ValueError, match=f"^layers: .*early, middle or last.*got {layer!r}$"):
        replace(SMOKE, layers=("last", layer)).for_model(architecture(3))


def test_variants_and_bootstrap_samples():
    laptop = PRESETS["laptop"]
    assert [variant.name for variant in laptop.steered] == [*VARIANTS, *(f"resampled {k}" for k in range(1, 6))]
    assert [variant.resample for variant in laptop.steered] == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    assert laptop.main == VARIANTS["random"]
    contrastive = replace(laptop, variants=("contrastive", "resampled"))
    assert {variant.negatives for variant in contrastive.steered} == {"contrastive"}
    assert [variant.name for variant in SMOKE.changed({"variants": ["random", "resampled"]}).steered] == ["random"]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("seed", 3, 3),
        ("seed", "3", 3),
        ("next_token.reach", "12", 12.0),
        ("next_token.reach", 12, 12.0),
        ("prompts.top_p", "0.5", 0.5),
        ("concepts", "evil", ("evil",)),
        ("concepts", '["evil", "joy"]', ("evil", "joy")),
        ("concepts", ["evil"], ("evil",)),
        ("concepts", "evil, joy", ("evil", "joy")),
        ("layers", "3,last", (3, "last")),
        ("layers", "3", (3,)),
        ("layers", '[3, "last"]', (3, "last")),
        ("layers", "last", ("last",)),
        ("layers", "-1,last", (-1, "last")),
        ("updates.layer", "3", 3),
        ("updates.layer", "last", "last"),
        ("updates.chat", "true", True),
    ],
)
def test_one_setting_is_changed(path, value, expected):
    changed = PRESETS["laptop"].changed({path: value})
    part = changed
    for name in path.split("."):
        part = getattr(part, name)
    assert part == expected
    assert type(part) is type(expected)
    (line,) = differences(PRESETS["laptop"].as_json(), changed.as_json())
    assert line.startswith(f"{path} ")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("speed", 1, "set: expected one of concepts, .*updates.*, got 'speed'"),
        ("next_token.speed", 1, "set: expected one of strengths, .*contexts.*, got 'next_token.speed'"),
        ("next_token", 1, "set: expected the name of one setting of next_token, got 'next_token'"),
        ("seed.x", 1, "set: expected the name of a setting, got 'seed.x'"),
        ("", 1, "set: expected one of concepts, .*, got ''"),
        ("updates.layer", 1.5, "set: expected a whole number or a name for updates.layer, got 1.5"),
        ("seed", np.float64(1.5), "set: expected a whole number for seed, got 1.5"),
        ("seed", np.int64(1), "set: expected a whole number for seed, got "),
        ("prompts.texts", {"a": 1}, "set: expected a whole number for prompts.texts, got {'a': 1}"),
        ("seed", "many", "set: expected a whole number for seed, got 'many'"),
        ("seed", 1.5, "set: expected a whole number for seed, got 1.5"),
        ("seed", True, "set: expected a whole number for seed, got True"),
        ("seed", "null", "set: expected a whole number for seed, got None"),
        ("seed", [1], r"set: expected a whole number for seed, got \[1\]"),
        ("seed", 2**32, r"seed: .*below 2\^32, got 4294967296"),
        ("next_token.reach", "1e30", r"next_token.reach: .*at most 1e\+06, got 1e\+30"),
        ("updates.vector.rate", 1e30, "rate: .*at most"),
        ("prompts.texts", 10**12, "prompts.texts: .*at most"),
        ("seed", -1, "seed: .*from 0 on.*, got -1"),
        ("updates.chat", "maybe", "set: expected true or false for updates.chat, got 'maybe'"),
        ("next_token.reach", "true", "set: expected a number for next_token.reach, got True"),
        ("next_token.reach", "[1]", r"set: expected a number for next_token.reach, got \[1\]"),
        ("next_token.strengths", "7.0", "set: expected a whole number for next_token.strengths, got 7.0"),
        ("concepts", 3, "set: expected a name for concepts, got 3"),
        ("concepts", '["joy", ["evil"]]', r"set: expected a name for concepts, got \['evil'\]"),
        ("concepts", "random", "concepts: expected names other than random, .*, got 'random'"),
        (
            "concepts",
            "not joy",
            "concepts: expected names other than random, and without \"not \" before them, got 'not joy'",
        ),
        ("concepts", "", "concepts: expected names other than random, .*, got ''"),
        ("variants", 3, "set: expected a name for variants, got 3"),
        ("variants", "{}", r"set: expected a name for variants, got \{\}"),
        ("variants", "odd", "variants: expected some of random, .*, resampled, got odd"),
        ("layers", "[[1]]", r"set: expected a whole number or a name for layers, got \[1\]"),
        ("layers", "true", "set: expected a whole number or a name for layers, got True"),
        ("layers", "1.5", "set: expected a whole number or a name for layers, got 1.5"),
    ],
)
def test_changes_that_are_refused(path, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        PRESETS["laptop"].changed({path: value})


@pytest.mark.parametrize("stage", ["next_token", "concept", "cross_entropy", "mmlu"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("strengths", 4, "an odd number from 3 on, so that 0 is among them.*, got 4"),
        ("strengths", 1, "an odd number from 3 on"),
        ("reach", 0.0, "a number above 0.*, got 0.0"),
        ("reach", 1e30, "a number above 0, at most 1e.*, got 1e"),
        ("strengths", 10**9 + 1, "an odd number .*at most 1e"),
        ("reach", float("nan"), "a number above 0.*, got nan"),
        ("reach", float("inf"), "a number above 0.*, got inf"),
        ("spread", -1.0, "a number from 0 to 99, got -1.0"),
        ("spread", 1000.0, "a number from 0 to 99, got 1000.0"),
        ("spread", float("nan"), "a number from 0 to 99, got nan"),
    ],
)
def test_bad_strengths(stage, name, value, message):
    with pytest.raises(ValueError, match=f"{stage}.{name}: expected {message}"):
        SMOKE.changed({f"{stage}.{name}": value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExperimentSettings(prompts=Prompts(texts=0)), "prompts.texts: .*at least 1.*, got 0"),
        (lambda: ExperimentSettings(prompts=Prompts(max_new_tokens=0)), "prompts.max_new_tokens: .*at least 1.*, got 0"),
        (lambda: ExperimentSettings(prompts=Prompts(batch=-1)), "prompts.batch: .*at least 1.*, got -1"),
        (lambda: ExperimentSettings(prompts=Prompts(top_k=0)), "prompts.top_k: .*at least 1.*, got 0"),
        (lambda: ExperimentSettings(prompts=Prompts(top_p=0.0)), "top_p: expected a probability above 0, got 0.0"),
        (lambda: ExperimentSettings(prompts=Prompts(temperature=-1.0)), "temperature: .*number of at least 0.*, got -1.0"),
        (
            lambda: ExperimentSettings(vectors=Vectors(resamples=-1)),
            "vectors.resamples: expected a number from 0 to 99, got -1",
        ),
        (lambda: ExperimentSettings(vectors=Vectors(batch=0)), "vectors.batch: .*at least 1.*, got 0"),
        (lambda: ExperimentSettings(next_token=NextToken(kept=0)), "next_token.kept: .*at least 1.*, got 0"),
        (
            lambda: ExperimentSettings(next_token=NextToken(normalised_reach=0.0)),
            "next_token.normalised_reach: expected a number above 0",
        ),
        (
            lambda: ExperimentSettings(concept=ConceptProbability(top_p=2.0)),
            "top_p: expected a probability above 0, got 2.0",
        ),
        (
            lambda: ExperimentSettings(concept=ConceptProbability(completions=0)),
            "concept.completions: .*at least 1.*, got 0",
        ),
        (lambda: ExperimentSettings(cross_entropy=CrossEntropy(part=0)), "cross_entropy.part: .*at least 1.*, got 0"),
        (lambda: ExperimentSettings(cross_entropy=CrossEntropy(tokens=1)), "cross_entropy.tokens: .*at least 2.*, got 1"),
        (lambda: ExperimentSettings(mmlu=Mmlu(shots=-1)), "mmlu.shots: expected a number from 0 to 99, got -1"),
        (lambda: ExperimentSettings(concepts=()), "concepts: expected at least one, got none"),
        (lambda: ExperimentSettings(layers=()), "layers: expected at least one, got none"),
        (lambda: ExperimentSettings(variants=()), "variants: expected at least one, got none"),
        (lambda: ExperimentSettings(concepts=("joy", "joy")), "concepts: expected different ones, got joy, joy"),
        (lambda: ExperimentSettings(layers=(1, 1)), "layers: expected different ones, got 1, 1"),
        (lambda: Updates(clip=-1.0), "updates.clip: .*a number above 0.*, got -1.0"),
        (lambda: Updates(scale=0.0), "updates.scale: .*a number above 0.*, got 0.0"),
        (lambda: Updates(beyond=float("inf")), "updates.beyond: .*a number above 0.*, got inf"),
        (lambda: Updates(law_reach=0.0), "updates.law_reach: .*a number above 0.*, got 0.0"),
        (lambda: Updates(weight_negative=-1.0), "updates.weight_negative: .*a number of at least 0.*, got -1.0"),
        (lambda: Updates(methods=("sft", "sft")), "updates.methods: expected different ones, got sft, sft"),
        (lambda: Updates(concepts=()), "updates.concepts: expected at least one, got none"),
        (lambda: Recipe(0.1, 1.0, 8.0, float("nan")), "theta: .*a number of at least 0.*, got nan"),
        (lambda: Recipe(0.0, 1.0, 8.0, 0.3), "rate: .*a number above 0.*, got 0.0"),
        (
            lambda: ExperimentSettings(updates=Updates(law_strengths=8)),
            "updates.law_strengths: expected an odd number from 3 on",
        ),
        (
            lambda: ExperimentSettings(variants=("random", "odd")),
            "variants: expected some of random, .*, resampled, got odd",
        ),
        (
            lambda: ExperimentSettings(variants=("resampled", "random")),
            "variants: expected another one than resampled at first",
        ),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_shots_and_no_bootstrap_samples_are_fine():
    assert SMOKE.changed({"mmlu.shots": 0, "vectors.resamples": 0}).mmlu.shots == 0


def test_settings_of_another_version_are_refused():
    with pytest.raises(ValueError, match=r"settings: .*got speed"):
        from_json(SMOKE.as_json() | {"speed": 1})
    odd = SMOKE.as_json()
    odd["mmlu"]["speed"] = 1
    with pytest.raises(ValueError, match=r"settings: .*got mmlu\.speed"):
        from_json(odd)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "1"}, "a whole number for seed, got '1'"),
        ({"seed": None}, "a whole number for seed, got None"),
        ({"layers": [1, 2.5]}, "a whole number or a name for layers, got 2.5"),
        ({"layers": 1}, "a.* for layers, got 1"),
        ({"mmlu": 1}, "an.* for mmlu, got 1"),
        ({"mmlu": {"shots": True}}, "a whole number for mmlu.shots, got True"),
        ({"updates": {"vector": {"rate": 1.0}}}, "those of this version, got no updates.vector.reach, .*"),
    ],
)
def test_stored_settings_of_another_type_are_named(change, message):
    with pytest.raises(ValueError, match=f"^settings: expected {message}$"):
        from_json(SMOKE.as_json() | change)


def test_stored_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"^mmlu\.strengths: .*odd.*got 2$"):
        from_json(SMOKE.as_json() | {"mmlu": {"strengths": 2}})


def test_differences_are_said_in_words():
    stored = {"a": 1, "b": {"c": 2.5, "d": "x"}, "e": list(range(50))}
    asked = {"a": 1, "b": {"c": 3.5, "d": "x"}, "f": None, "g": True}
    lines = differences(stored, asked)
    assert lines[0] == "b.c 2.5 there, 3.5 here"
    assert lines[1].startswith("e [0, 1, ")
    assert lines[1].endswith("... there, null here")
    assert len(lines[1]) < 90
    assert lines[2:] == ["g null there, true here"]
    assert differences(stored, stored) == []
    assert differences({"b": {"c": 1}}, {}) == ['b {"c": 1} there, null here']

import jax
import numpy as np
import pytest

from sim.toy import answers


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        return answers.run()


def test_both_models_are_trained_and_start_from_the_corpus(data):
    """Uniform: 0.95 of a concept's contexts is shared by its three tokens, 0.05 by the six others."""
    assert max(data.attrs["gaps"]) <= 1e-8
    for name in data.model.values:
        start = np.interp(0, data.strength, data.preference.sel(model=name))
        # Linear interpolation on the grid, and the distance of trained models from the corpus.
        assert start == pytest.approx(np.log((0.05 / 6) / (0.95 / 3)), abs=0.05)


def test_the_preference_of_a_ufm_is_affine(data):
    preference, m = data.preference.sel(model=answers.UFM).values, data.strength.values
    line = np.polynomial.Polynomial.fit(m, preference, 1)
    assert np.abs(preference - line(m)).max() < 1e-9
    # M of a token of the target less that of one of the opposite.
    assert line.convert().coef[1] == pytest.approx(2 * np.log((0.95 / 3) / (0.05 / 6)), rel=1e-3)


def test_the_preference_behind_a_norm_is_the_law(data):
    preference, law = data.preference.sel(model=answers.NORMALISED).values, data["law"].values
    assert np.abs(preference - law).max() < 1e-10
    # Flat at both ends, where the UFM's has the slope that it has everywhere.
    steep = np.abs(np.diff(preference) / np.diff(data.strength))
    assert steep[[0, -1]].max() < 3e-2 * steep.max()


def test_the_law_is_decay_of_a_line_with_the_exponent_one_half(data):
    """Divided by its decay, with the centre, width and exponent said, the law is a line; with another exponent it is not."""
    m, centre, width = data.strength.values, data.attrs["centre"], data.attrs["width"]
    assert data.attrs["exponent"] == 0.5

    def left_over(exponent):
        decay = (1 + ((m - centre) / width) ** 2) ** -exponent
        design = np.stack([m * decay, decay, np.ones_like(m)], axis=1)
        law = data["law"].values
        return np.abs(law - design @ np.linalg.lstsq(design, law)[0]).max()

    assert left_over(0.5) < 1e-10
    assert left_over(0.6) > 1e-2


def test_utility_is_of_the_two_answers(data):
    """Far out, either answer shares everything with the two other tokens of its concept."""
    assert np.isfinite(data.utility).all()
    ends = data.utility.sel(model=answers.UFM)[[0, -1]]
    # Far out, what training left of a difference between those three shows.
    np.testing.assert_allclose(ends, np.log(1 / 3 / (2 / 3)), atol=0.05)
    preference, utility = data.preference.values, data.utility.values
    # Two probabilities of these odds and this sum are those of one distribution.
    total = 1 / (1 + np.exp(-utility))
    assert (total < 1).all()
    assert (total / (1 + np.exp(-np.abs(preference))) < 1).all()

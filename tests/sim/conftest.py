"""One small reproduction, shared by the tests that look at what it leaves."""

import pytest

from sim.reproduce import reproduce

SOME = ("theorem-3.6.target", "theorem-3.8", "N1", "N7")


@pytest.fixture(scope="session")
def reproduction(tmp_path_factory):
    """A run with few random instances and one statement of each kind, and its folder."""
    folder = tmp_path_factory.mktemp("out")
    return reproduce(folder, seed=1, instances=60, statements=SOME), folder

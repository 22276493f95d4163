"""One small reproduction, shared by the tests that look at what it leaves."""

import pytest

from sim.reproduce import reproduce


@pytest.fixture(scope="session")
def reproduction(tmp_path_factory):
    """A whole run with few random instances, and its folder."""
    folder = tmp_path_factory.mktemp("out")
    return reproduce(folder, seed=1, instances=60), folder

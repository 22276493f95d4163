"""Fixtures that are dear to build, shared by all tests of a process."""

import os
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest

from tests import compilation

compilation.install()

import theory.examples  # noqa: E402
import ufm  # noqa: E402
from sim._garbage import collect_seldom  # noqa: E402
from theory import routes  # noqa: E402
from theory._compilation import release_programs  # noqa: E402
from theory.statement import TABLES  # noqa: E402

collect_seldom()

# Most of what tests cost is compilation. It is twice as fast without optimisation, and what was compiled is kept for the
# other processes and the next run; here, and in what a test starts.
JAX_SETTINGS: dict[str, bool | float | str] = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}
for setting, value in JAX_SETTINGS.items():
    os.environ[setting.upper()] = str(value)
    jax.config.update(setting, value)


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Compiled programs are let go before there are too many of them in a process."""
    yield
    release_programs(11_000)


@pytest.fixture(autouse=True)
def float64():
    # On the CPU device, wherever the tests run: exact bits are compared.
    with ufm.in_float64():
        yield


@pytest.fixture
def as_users_have_it():
    """Without the checks of types and shapes that tests add, which would refuse some values first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def population():
    """60 random tables."""
    with jax.enable_x64(True):
        return routes.populate(jax.random.key(7), 60, TABLES)


@pytest.fixture(scope="session")
def few(population):
    """Half of them."""
    return routes.subset(population, 30)


@pytest.fixture(scope="session")
def measured():
    """Every example corpus, trained until rounding and swept, by name."""
    with jax.enable_x64(True):
        cases = theory.examples.all_cases()
        fits = dict(theory.examples.train(cases))
        return {name: theory.examples.measure(case, fits[name].model) for name, case in cases.items()}


@pytest.fixture
def small_corpus():
    """Five contexts, four tokens, concepts of two tokens that are not neighbours; outside assumption 1."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=5)
    return ufm.from_table(p, [[0, 2], [3, 1]], [0, 0, 1, 1, 1], np.arange(1.0, 6.0))


@pytest.fixture
def small_model(small_corpus):
    """An untrained model of it."""
    return ufm.init(jax.random.key(3), small_corpus, 3, scale=1.0)


@pytest.fixture
def constant_instance():
    """All contexts share one distribution, so that M is constant (and 0)."""
    corpus = ufm.from_table(np.full((4, 4), 0.25), [[0, 1], [2, 3]], [0, 0, 1, 1])
    return theory.make_instance(corpus, [0, 1], [2, 3], target=0)

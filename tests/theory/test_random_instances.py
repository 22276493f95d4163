import jax
import numpy as np
import pytest

from theory import random_instances, routes
from theory.random_instances import FAMILIES, SEPARATED
from theory.statement import TABLES, hold_on, sample_all
from theory.statements.hypotheses import chosen

assemble = jax.jit(jax.vmap(random_instances.assemble))


def of(families, n=350):
    designs, parameters = sample_all(TABLES, tuple(families), jax.random.split(jax.random.key(3), n))
    batch = assemble(designs, parameters)
    return jax.tree.map(np.asarray, (designs, batch))


@pytest.fixture(scope="module")
def everything():
    with jax.enable_x64(True):
        return of(FAMILIES, 350)


def test_tables_contrasts_and_concepts_are_whole(everything):
    _, batch = everything
    p = np.exp(batch.log_p)
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-12)
    np.testing.assert_allclose(batch.weights.sum(axis=-1), 1, atol=1e-12)
    assert (batch.weights > 0).all()
    for contrast, concept, target in zip(batch.contrast, batch.concept, batch.target, strict=True):
        positive, negative = contrast > 0, contrast < 0
        assert (concept[positive] == target).all()
        assert (concept[negative] != target).all()
        np.testing.assert_allclose(contrast[positive], 1 / positive.sum())
        np.testing.assert_allclose(contrast[negative], -1 / negative.sum())
    # Every token is of one concept, where the last one is listed twice.
    covered = [len({tuple(row) for row in members}) for members in batch.members]
    assert set(covered) == {2, 3}
    assert (batch.members.any(axis=1)).all()


@pytest.mark.parametrize("family", SEPARATED)
def test_families_satisfy_what_the_proofs_use(family):
    _, batch = of([family])
    names = ["separated", "positive"] if family == "per-context-a" else ["separated", "positive", "A1"]
    assert hold_on(tuple(hypothesis.margin for hypothesis in chosen(*names).values()), batch).all()
    a_exact = hold_on((chosen("A1")["A1"].margin,), batch)
    assert a_exact.all() == (family != "per-context-a")


@pytest.mark.parametrize("family", ["per-context-b", "mixed", "free"])
def test_other_families_do_not(family):
    _, batch = of([family])
    assert hold_on((chosen("separated")["separated"].margin,), batch).mean() < 0.2


def test_instances_are_varied(everything):
    designs, batch = everything
    assert set(designs.family.tolist()) == set(range(len(FAMILIES)))
    assert set(batch.target.tolist()) == {0, 1, 2}
    counts = {(int((row > 0).sum()), int((row < 0).sum())) for row in batch.contrast}
    assert counts >= {(1, 1), (1, 2), (2, 1)}
    m = np.einsum("nj,njz->nz", batch.contrast, batch.log_p)
    ranges = np.ptp(m, axis=1)
    assert ranges.min() < 0.1
    assert ranges.max() > 10
    assert np.exp(batch.log_p).min() < 1e-6
    sizes = {tuple(sorted(set(members.sum(axis=1)))) for members in batch.members}
    assert len(sizes) > 5


def test_the_uniform_family_is_that_of_the_paper():
    _, batch = of(["uniform"])
    for k in range(20):
        p, members, concept = np.exp(batch.log_p[k]), batch.members[k], batch.concept[k]
        own = members[concept]
        inside = np.where(own, p, 0).sum(axis=1)
        np.testing.assert_allclose(inside, inside[0], rtol=1e-12)
        assert all(np.ptp(row[mask]) < 1e-12 for row, mask in zip(p, own, strict=True))


@pytest.mark.parametrize("families", [[], ["uniform", "unheard-of"]])
def test_unknown_families_are_refused(families):
    with pytest.raises(ValueError, match=r"^families: expected some of uniform, weighted, "):
        random_instances.sample(jax.random.key(0), families)


def test_peaks_are_those_of_each_table(few):
    instance = jax.tree.map(lambda leaf: leaf[11], few)
    m = np.asarray(instance.log_odds)
    for log_p, peaks in zip(np.asarray(instance.log_p), np.asarray(instance.peaks), strict=True):
        for z, peak in enumerate(peaks):
            if np.isfinite(peak):
                q = np.exp(log_p + peak * (m - m[z]))
                assert abs(q @ m / q.sum() - m[z]) < 1e-9 * np.ptp(m)
            else:
                assert np.isclose(m[z], m.max() if peak > 0 else m.min(), atol=1e-9 * np.ptp(m))


def test_gradients_are_finite():
    designs, parameters = sample_all(TABLES, FAMILIES, jax.random.split(jax.random.key(5), 64))

    def range_of(design, smooth):
        return random_instances.assemble(design, smooth).range

    slopes = jax.jit(jax.vmap(jax.grad(range_of, argnums=1)))(designs, parameters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert routes.populate(jax.random.key(0), 3, TABLES).log_p.shape[0] == 3

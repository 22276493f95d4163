import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ufm import Concepts, concept_log_probabilities

PARTITIONS = {
    "equal, consecutive": [0, 0, 0, 1, 1, 1],
    "equal, scattered": [0, 1, 0, 1, 0, 1],
    "unequal, consecutive": [0, 1, 1, 2, 2, 2],
    "unequal, scattered": [2, 0, 2, 1, 2, 1],
    "one concept": [0, 0, 0, 0, 0, 0],
    "singletons": [3, 0, 5, 1, 2, 4],
}


@pytest.mark.parametrize("of_token", PARTITIONS.values(), ids=PARTITIONS)
def test_members_sizes_and_blocks(of_token):
    concepts = Concepts(of_token)
    assert (concepts.vocabulary_size, concepts.count) == (6, max(of_token) + 1)
    for k in range(concepts.count):
        tokens = [z for z in range(6) if of_token[z] == k]
        assert concepts.members(k).tolist() == tokens
        assert concepts.sizes[k] == len(tokens)
        assert concepts.blocks[k].tolist() == tokens + [-1] * (concepts.blocks.shape[1] - len(tokens))


@pytest.mark.parametrize("of_token", PARTITIONS.values(), ids=PARTITIONS)
def test_concept_log_probabilities_to_50_digits(of_token):
    log_p = np.array([[-690.0, -691.5, -1.0, -700.0, -0.5, -3.0], [1.0, 20.0, -800.0, 3.0, -1000.0, 5.0]])
    got = np.asarray(concept_log_probabilities(jnp.asarray(log_p), Concepts(of_token)))
    for i, row in enumerate(log_p):
        for k in range(max(of_token) + 1):
            total = mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(x)) for x, c in zip(row, of_token, strict=True) if c == k))
            assert got[i, k] == pytest.approx(float(total), rel=1e-15)


def test_concept_log_probabilities_of_zeros_and_without_batch():
    log_p = jnp.log(jnp.asarray([0.0, 0.5, 0.5, 0.0]))
    np.testing.assert_allclose(concept_log_probabilities(log_p, Concepts([0, 1, 1, 0])), [-np.inf, 0.0], atol=1e-15)


def test_builders_agree():
    a, b = Concepts.from_sizes((2, 1, 3)), Concepts.from_lists([[1, 0], [2], [5, 3, 4]], 6)
    assert a == b == Concepts([0, 0, 1, 2, 2, 2])
    assert hash(a) == hash(b)
    assert a != Concepts([0, 1, 1, 2, 2, 2])
    assert a != "Concepts(V=6, G=3)"
    assert repr(a) == "Concepts(V=6, G=3)"


def test_a_partition_is_static_and_read_only():
    traced = []

    @jax.jit
    def f(x, concepts):
        traced.append(concepts)
        return x

    f = jax.jit(f.__wrapped__, static_argnames="concepts")
    for of_token in ([0, 1], [0, 1], [0, 0]):
        f(0.0, concepts=Concepts(of_token))
    assert len(traced) == 2
    with pytest.raises(ValueError, match="read-only"):
        Concepts([0, 1]).of_token[0] = 1


@pytest.mark.parametrize("wrong", [[0, 2], [1, 2], [-1, 0], [], np.array([[0, 1]])])
def test_refuses_skipped_and_empty_concepts(wrong):
    with pytest.raises(ValueError, match=r"of_token: expected .*, got "):
        Concepts(wrong)


@pytest.mark.parametrize("sizes", [(), (0, 3), (2, -1)])
def test_refuses_sizes(sizes):
    with pytest.raises(ValueError, match=r"sizes: expected at least one concept.*got \("):
        Concepts.from_sizes(sizes)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([[0, 1], [1, 2]], "disjoint concepts, got token 1 in concept 0 and in concept 1"),
        ([[0, 1], [2, 2]], "disjoint concepts, got token 2 twice in concept 1"),
        ([[0], [2]], r"cover the vocabulary, got tokens \[1\] in none"),
        ([[0, 1], [3]], r"tokens in 0\.\.2, got 3"),
        ([[0, 1], [-1]], r"tokens in 0\.\.2, got -1"),
        ([[0, 1, 2], []], "concepts of one token or more"),
    ],
)
def test_refuses_lists(members, message):
    with pytest.raises(ValueError, match="members: expected .*" + message):
        Concepts.from_lists(members, 3)


@pytest.mark.parametrize("concept", [-1, 2])
def test_refuses_members_of_no_concept(concept):
    with pytest.raises(ValueError, match=rf"concept: .*got {concept}"):
        Concepts([0, 1]).members(concept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Concepts.from_sizes([10**12, 3]), "sizes: .*at most 16777216, got 1000000000003"),
        (lambda: Concepts.from_lists([[0]], 10**13), "vocabulary_size: .*at most 16777216, got 10000000000000"),
    ],
)
def test_refuses_vocabularies_that_do_not_fit_in_memory(call, message):
    with pytest.raises(ValueError, match="^" + message):
        call()


@pytest.mark.parametrize("shape", [(2,), (3, 4)])
def test_concept_log_probabilities_refuse_other_tokens(shape):
    with pytest.raises(ValueError, match=r"^log_probabilities: expected a last axis of the 3 tokens of concepts, got shape"):
        concept_log_probabilities(jnp.zeros(shape), Concepts([0, 0, 1]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_concept_log_probabilities_of_half_types_are_in_float32(dtype):
    got = concept_log_probabilities(jnp.zeros(3, dtype), Concepts([0, 0, 1]))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [np.log(2), 0], rtol=1e-6)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("kind", [list, np.asarray, lambda x: np.asarray(x, np.uint64), jnp.asarray])
def test_numbers_of_concepts_are_not_cut_off(kind):
    """Of 2^32, 32 bits would leave 0."""
    with pytest.raises(ValueError, match=r"^of_token: expected concepts numbered .* got the numbers \[1, 4294967296\]"):
        Concepts(kind([2**32, 1]))

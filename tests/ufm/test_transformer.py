import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import softmax
from theory import arc
from theory._compilation import compiled_quickly
from ufm import Steerable, norm, probability_increase, steer
from ufm.transformer import PLACEMENTS, added, init_transformer

# NumPy arrays here: JAX arrays made at import would be of float32, and round v to seven digits.
TOKENS = np.asarray([[0, 3, 1, 5], [2, 2, 6, 4], [5, 0, 0, 1]])
T, D = 4, 6
V = np.asarray([0.3, -1.0, 0.5, 2.0, 0.1, -0.7])

KINDS = pytest.mark.parametrize("kind", ["rms", "layer"])
PLACED = pytest.mark.parametrize("placement", PLACEMENTS)


def draw(**options):
    return init_transformer(jax.random.key(4), jnp.asarray(TOKENS), 7, D, **({"biased": True} | options))


compiled = compiled_quickly(steer)


def steered(model, v, alpha):
    """Logits of all three contexts, v added at every position."""
    return compiled(model, jnp.arange(3), jnp.asarray(v), alpha)


def by_loops(model, j, blocks, added=0.0):
    """The residual stream [T, d] of context j after some blocks, one position and head at a time."""
    embedding, positions, layers = jax.tree.map(np.asarray, (model.embedding, model.positions, model.layers))
    x = [embedding[t] + positions[i] for i, t in enumerate(np.asarray(model.tokens)[j])]
    for index in range(blocks + 1):
        if index == model.cut:
            x = [row + np.asarray(added) for row in x]
        if index == blocks:
            return np.stack(x)

        def normed(row, k, index=index):
            row = row - row.mean() if model.kind == "layer" else row
            return layers.gamma[index, k] * row / np.sqrt(np.mean(row**2) + model.eps) + layers.bias[index, k]

        def attention(rows, index=index):
            q, k, v = (np.stack(rows) @ layers.qkv[index, i] for i in range(3))
            size, out = D // model.heads, np.zeros((T, D))
            for head in range(model.heads):
                part = slice(head * size, (head + 1) * size)
                for i in range(T):
                    scores = [q[i, part] @ k[s, part] / np.sqrt(size) for s in range(i + 1)]
                    out[i, part] = softmax(scores) @ v[: i + 1, part]
            return list(out @ layers.out[index])

        def mlp(rows, index=index):
            wide = [row @ layers.up[index] for row in rows]
            gelu = [x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2 for x in wide]
            return [row @ layers.down[index] for row in gelu]

        for k, f in enumerate((attention, mlp)):
            if model.placement == "pre":
                x = [row + new for row, new in zip(x, f([normed(row, k) for row in x]), strict=True)]
            elif model.placement == "branch":
                x = [row + normed(new, k) for row, new in zip(x, f(x), strict=True)]
            else:
                x = [normed(row + new, k) for row, new in zip(x, f(x), strict=True)]
    return None


@PLACED
@KINDS
def test_the_split_by_loops(placement, kind):
    model = draw(placement=placement, kind=kind, softcap=1.5)
    assert isinstance(model, Steerable)
    h = model.embed(jnp.arange(3))
    assert h.shape == (3, T, D)
    got = steered(model, V, 0.8)
    for j in range(3):
        np.testing.assert_allclose(h[j], by_loops(model, j, 1), atol=1e-12)
        last = by_loops(model, j, 2, 0.8 * V)[-1]
        logits = norm(jnp.asarray(last), model.gamma, model.bias, kind=kind, eps=model.eps) @ model.W.T
        np.testing.assert_allclose(got[j], 1.5 * np.tanh(logits / 1.5), atol=1e-12)


def test_where_it_is_cut_does_not_matter_unsteered():
    logits = [model.decode(model.embed(jnp.arange(3))) for model in (draw(cut=k) for k in range(3))]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-13)
    np.testing.assert_allclose(logits[2], logits[0], atol=1e-13)


def test_it_is_swept_like_any_other_model():
    model = draw()
    got = probability_increase(model, [0, 2], jnp.asarray(V), [-1.0, 0.0, 3.0])
    assert got.shape == (2, 3, 7)
    np.testing.assert_array_equal(got[:, 1], 0)
    before, after = (jax.nn.softmax(steered(model, V, alpha)[2]) for alpha in (0.0, 3.0))
    np.testing.assert_allclose(got[1, 2] + before, after)


@KINDS
def test_after_the_last_block_the_law_is_exact(kind):
    """N7 and N8 for a transformer: cut after its last block, what is left is the norm and the unembedding."""
    model = draw(cut=2, kind=kind)
    last = model.embed(jnp.asarray(1))[-1]
    path = arc.arc_of(model.W, model.gamma, model.bias, last, jnp.asarray(V), kind=kind, eps=model.eps)
    for alpha in (-30.0, 0.0, 1.4, 1e5):
        np.testing.assert_allclose(steered(model, V, alpha)[1], arc.logits_at(path, alpha), rtol=0, atol=1e-13)


# --- proposition 4.1 ------------------------------------------------------------------------------------------------


def distances(model, v, sizes, sign):
    """From the limit of proposition 4.1, largest over contexts and tokens, at each strength."""
    end = arc.limit(model.W, model.gamma, model.bias, jnp.asarray(v), sign, kind=model.kind, softcap=model.softcap)
    return np.asarray([np.max(np.abs(steered(model, v, sign * a) - end)) for a in sizes])


@KINDS
@pytest.mark.parametrize("placement", ["pre", "branch"])
@pytest.mark.parametrize(
    "options", [{}, {"biased": False, "eps": 0.0}, {"softcap": 1.5, "cut": 0}], ids=["", "plain", "cap"]
)
def test_steered_logits_go_to_those_of_the_direction(kind, placement, options):
    model = draw(kind=kind, placement=placement, **options)
    sizes = np.geomspace(10, 1e7, 7)
    for sign in (1, -1):
        far = distances(model, V, sizes, sign)
        slopes = np.diff(np.log(far[2:])) / np.diff(np.log(sizes[2:]))
        np.testing.assert_allclose(slopes, -1, atol=0.1)


@KINDS
@pytest.mark.parametrize("placement", ["pre", "branch"])
def test_an_explicit_bound(kind, placement):
    """The last norm is given alpha v, the state at the cut and at most `added`."""
    model = draw(kind=kind, placement=placement, cut=0)
    states = model.embed(jnp.arange(3))[:, -1]
    reach = jnp.max(jnp.linalg.norm(states, axis=-1)) + added(model)
    for sign in (1, -1):
        for a in (0.1, 3.0, 30.0, 1e4):
            bound = arc.limit_bound(model.W, model.gamma, jnp.asarray(V), a, reach, kind=kind, eps=model.eps)
            assert distances(model, V, [a], sign)[0] <= float(bound.max())


@pytest.mark.parametrize("placement", ["pre", "branch"])
def test_what_blocks_add_is_bounded(placement):
    model = draw(placement=placement, cut=1, heads=3)
    for size in (0.0, 1.0, 1e3, 1e6):
        for seed in range(5):
            j = seed % 3
            v = size * jax.random.normal(jax.random.key(seed), (D,))
            before = by_loops(model, j, 1) + np.asarray(v)
            moved = by_loops(model, j, 2, v) - before
            assert np.linalg.norm(moved, axis=-1).max() <= float(added(model))
    assert float(added(draw(placement=placement, cut=2))) == 0
    assert float(added(draw(placement="stream"))) == np.inf


def test_a_norm_of_the_stream_has_another_limit():
    model = draw(placement="stream", cut=0)
    far = distances(model, V, [1e5, 1e7], 1)
    assert far.min() > 0.05
    # It is the same for every context all the same, and reached.
    ends = [steered(model, V, a) for a in (1e6, 1e8)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)
    np.testing.assert_allclose(ends[1], np.tile(ends[1][0], (3, 1)), atol=1e-6)


def test_the_softcap_is_part_of_the_limit():
    capped = draw(softcap=0.5)
    without = dataclasses.replace(capped, softcap=None)
    end = arc.limit(without.W, without.gamma, without.bias, jnp.asarray(V), 1)
    far = steered(capped, V, 1e7)
    assert np.abs(far - end).max() > 0.1
    np.testing.assert_allclose(far, np.tile(0.5 * np.tanh(end / 0.5), (3, 1)), atol=1e-5)


def test_a_constant_vector_is_not_seen_by_layer_norm():
    model = draw(kind="layer")
    np.testing.assert_allclose(steered(model, np.ones(D), 1e4), steered(model, np.ones(D), 0.0), atol=1e-9)
    rms = draw(kind="rms")
    assert np.abs(steered(rms, np.ones(D), 1e4) - steered(rms, np.ones(D), 0.0)).max() > 0.1


def test_float32_loses_the_context():
    """At 1e9 the steered stream is alpha v to the last bit: every context has the same logits."""
    with jax.enable_x64(False):
        logits = steered(draw(dtype=jnp.float32), V, 1e9)
        assert logits.dtype == jnp.float32
        np.testing.assert_array_equal(logits[0], logits[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "batch"}, r"kind: expected one of \('rms', 'layer'\), got 'batch'"),
        ({"placement": "post"}, r"placement: expected one of \('pre', 'branch', 'stream'\), got 'post'"),
        ({"heads": 4}, "d: expected a multiple of the 4 heads, got 6"),
        ({"cut": 3}, "cut: expected a number of blocks between 0 and 2, got 3"),
        ({"cut": -1}, "cut: expected a number of blocks between 0 and 2, got -1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match="^" + message):
        draw(**options)


@pytest.mark.parametrize("tokens", [TOKENS + 2, TOKENS - 1])
def test_refuses_tokens(tokens):
    with pytest.raises(ValueError, match=r"^tokens: .*got others"):
        init_transformer(jax.random.key(0), jnp.asarray(tokens), 7, D)
    with pytest.raises(ValueError, match=r"^tokens: .*got shape \(0, 4\)"):
        init_transformer(jax.random.key(0), jnp.asarray(TOKENS[:0]), 7, D)

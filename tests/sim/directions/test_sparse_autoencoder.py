"""Sparse autoencoders against NumPy, and on states whose atoms are known; folders of SAELens; directions from features."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sim.directions.extraction import separation
from sim.directions.features import best_features, feature_vector, sae_vector
from sim.directions.sae_lens import read_sparse_autoencoder
from sim.directions.sparse_autoencoder import SparseAutoencoder, encoded, loss_of, train_sparse_autoencoder
from sim.directions.states import text_states, token_states
from sim.directions.texts import Pair
from tests.sim.bridge.test_model import letters

ATOMS, STATES = 32, 4000
TRAINING = {"features": 48, "sparsity": 0.6, "rate": 1e-2, "steps": 2000}
RNG = np.random.default_rng(0)
POSITIVE = RNG.integers(3, 30, size=(6, 7)).tolist()
NEGATIVE = RNG.integers(30, 60, size=(6, 7)).tolist()
UNEVEN = [POSITIVE[0][:6], *POSITIVE[1:]]
"""The last place counts a third of the others: five of six reach it."""


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def sparse_states(scale=1.0):
    """States that are sums of about two of 32 atoms, and these atoms."""
    rng = np.random.default_rng(0)
    atoms = unit(rng.normal(size=(ATOMS, 24)))
    codes = rng.uniform(1, 2, size=(STATES, ATOMS)) * (rng.random((STATES, ATOMS)) < 0.06)
    return scale * codes @ atoms, atoms


@pytest.fixture(scope="module")
def trained():
    with jax.enable_x64(False):
        return train_sparse_autoencoder(sparse_states()[0], layer=1, **TRAINING)


def random_autoencoder(d=5, f=7, seed=0, **others):
    rng = np.random.default_rng(seed)
    shapes = {"encoder": (d, f), "encoder_bias": (f,), "decoder": (f, d), "decoder_bias": (d,)}
    return SparseAutoencoder(**{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, **others)


def parts(sae):
    return [np.asarray(getattr(sae, name)[...], float) for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")]


@pytest.mark.parametrize("subtracts_bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_codes_and_loss_by_hand(activation, subtracts_bias):
    threshold = np.linspace(-1, 2, 7).astype(np.float32)
    sae = random_autoencoder(activation=activation, threshold=threshold, k=2, subtracts_bias=subtracts_bias)
    encoder, encoder_bias, decoder, decoder_bias = parts(sae)
    states = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    codes, total = np.zeros((6, 7)), 0.0
    for i, h in enumerate(states.astype(float)):
        values = [(h - decoder_bias * subtracts_bias) @ encoder[:, j] + encoder_bias[j] for j in range(7)]
        for j, value in enumerate(values):
            active = {"relu": True, "jumprelu": value > threshold[j], "topk": value >= sorted(values)[-2]}[activation]
            codes[i, j] = value if value > 0 and active else 0
        made = sum(codes[i, j] * decoder[j] for j in range(7)) + decoder_bias
        total += (np.sum((h - made) ** 2) / 2 + 0.3 * codes[i].sum()) / 6
    np.testing.assert_allclose(sae.encode(jnp.asarray(states)), codes, atol=1e-5)
    assert (codes > 0).any()
    assert float(loss_of(sae, jnp.asarray(states), 0.3)) == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(np.concatenate(list(encoded(sae, states))), codes, atol=1e-5)


def test_batches_of_codes(monkeypatch):
    sae, states = random_autoencoder(), np.random.default_rng(1).normal(size=(6, 5))
    monkeypatch.setattr("sim.directions.sparse_autoencoder.MOST_ACTIVATIONS", 30)
    batches = list(encoded(sae, states))
    assert [len(batch) for batch in batches] == [4, 2]
    np.testing.assert_allclose(np.concatenate(batches), sae.encode(jnp.asarray(states)), rtol=1e-5)


@pytest.mark.parametrize("normalization", ["center", "layer_norm", "constant_norm_rescale"])
def test_normalised_states(normalization):
    sae = random_autoencoder(normalization=normalization, subtracts_bias=False)
    encoder, encoder_bias, decoder, decoder_bias = parts(sae)
    states = 3 + 5 * np.random.default_rng(1).normal(size=(6, 5))
    for h, made in zip(states, np.asarray(sae(jnp.asarray(states, jnp.float32))), strict=True):
        mean = 0 if normalization == "constant_norm_rescale" else h.mean()
        scale = {"center": 1, "layer_norm": h.std(ddof=1), "constant_norm_rescale": np.sqrt(h @ h / 5)}[normalization]
        codes = np.maximum((h - mean) / scale @ encoder + encoder_bias, 0)
        np.testing.assert_allclose(made, (codes @ decoder + decoder_bias) * scale + mean, rtol=1e-3, atol=1e-4)


def test_training_recovers_the_atoms(trained):
    _, atoms = sparse_states()
    learned = np.asarray(trained.decoder[...])
    np.testing.assert_allclose(np.linalg.norm(learned, axis=1), 1, rtol=1e-5)
    assert (atoms @ learned.T).max(axis=1).min() > 0.95
    assert trained.layer == 1


def test_the_report_by_hand(trained):
    states, _ = sparse_states()
    encoder, encoder_bias, decoder, decoder_bias = parts(trained)
    codes = np.maximum((states - decoder_bias) @ encoder + encoder_bias, 0)
    errors, scale = np.sum((states - codes @ decoder - decoder_bias) ** 2, axis=1), np.sqrt(np.mean(states**2))
    report = trained.report
    assert report.loss == pytest.approx(np.mean(errors / 2 / scale**2 + 0.6 * codes.sum(axis=1) / scale), rel=1e-4)
    assert report.explained_variance == pytest.approx(
        1 - errors.sum() / np.sum((states - states.mean(axis=0)) ** 2), rel=1e-4
    )
    assert report.l0 == pytest.approx((codes > 1e-5).sum(axis=1).mean(), rel=1e-3)
    assert report.dead == (codes < 1e-5).all(axis=0).sum() > 0
    assert len(report.losses) == 2000
    assert report.losses[0] > 2 * report.losses[-1]
    often = np.flatnonzero((codes > 1e-5).sum(axis=0) > 20)
    means = codes.sum(axis=0)[often] / (codes > 1e-5).sum(axis=0)[often]
    np.testing.assert_allclose(np.asarray(trained.typical[...])[often], means, rtol=1e-2)
    assert often.size >= ATOMS


def test_at_the_end_there_is_nothing_left_to_descend():
    states, _ = sparse_states()
    start, end = (
        train_sparse_autoencoder(
            states[:500], features=12, sparsity=0.6, steps=steps, rate=1e-2, batch=500, decay=0.0
        ).report
        for steps in (1, 3000)
    )
    assert end.loss < start.loss
    # By rounding in float32 the last steps depend on the processor: between 0.0003 and 0.0012 of it are left.
    assert end.gradient < 4e-3 * start.gradient


def test_the_key_decides_and_nothing_else():
    states, _ = sparse_states()
    settings = {"features": 6, "steps": 20, "batch": 32}
    first, again, other = (
        train_sparse_autoencoder(states, key=jax.random.key(seed), **settings).decoder[...] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 0.1


def test_activations_are_in_units_of_the_states():
    settings = {"features": 8, "steps": 50, "batch": 64}
    small, large = (train_sparse_autoencoder(sparse_states(scale)[0], **settings) for scale in (1.0, 1024.0))
    np.testing.assert_allclose(small.decoder[...], large.decoder[...], atol=1e-4)
    np.testing.assert_allclose(1024 * small.typical[...], large.typical[...], rtol=1e-3)
    assert small.report.loss == pytest.approx(large.report.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": np.ones((5, 3))}, "^states: expected states that differ, got 5 alike"),
        ({"states": np.ones(3)}, r"^states: .*shape \(3,\)"),
        ({"states": np.full((5, 3), np.nan)}, "^states: .*NaN"),
        ({"states": np.zeros((0, 3))}, "^states: "),
        ({"features": 0}, "^features: "),
        ({"steps": 0}, "^steps: "),
        ({"batch": 2.5}, "^batch: "),
        ({"sparsity": -1.0}, "^sparsity: "),
        ({"rate": 0.0}, "^rate: expected a number above 0"),
        ({"rate": 1e30}, "^rate: expected one at which the loss stays finite"),
        ({"decay": float("nan")}, "^decay: "),
        ({"key": 0}, "^key: "),
        ({"layer": -1}, "^layer: "),
    ],
)
def test_bad_input_of_training(change, message):
    arguments = {"states": np.random.default_rng(0).normal(size=(9, 3)), "features": 2, "steps": 3} | change
    with pytest.raises(ValueError, match=message):
        train_sparse_autoencoder(arguments.pop("states"), **arguments)


# --- folders of SAELens ---------------------------------------------------------------------------------------------------

D, F = 32, 40
"""The width of the small model, and a number of features."""

CONFIG = {
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.12.1", "hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"},
    "architecture": "standard",
}
"""As version 6 of SAELens writes it."""

OLD = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": F,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": False,
    "finetuning_scaling_factor": False,
    "hook_point": "blocks.2.hook_resid_pre",
    "hook_point_head_index": None,
    "hook_point_layer": 2,
    "normalize_activations": False,
}
"""As older ones did."""


def tensors(**more):
    rng = np.random.default_rng(3)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} | more


def folder_of(tmp_path, config=CONFIG, weights=None):
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors() if weights is None else weights, tmp_path / "sae_weights.safetensors")
    return tmp_path


@pytest.mark.parametrize(("config", "bias"), [(CONFIG, 1), (OLD, 0)], ids=["of today", "old"])
def test_a_standard_folder(tmp_path, small, config, bias):
    sae = read_sparse_autoencoder(folder_of(tmp_path, config), small("llama"))
    assert (sae.layer, sae.width, sae.features) == (1, D, F)
    w, h = tensors(), np.random.default_rng(4).normal(size=(3, D)).astype(np.float32)
    codes = np.maximum((h - bias * w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    np.testing.assert_allclose(sae.encode(jnp.asarray(h)), codes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(jnp.asarray(h)), codes @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("log", [False, True])
def test_a_jumprelu_folder(tmp_path, log):
    threshold = np.linspace(0.5, 6, F).astype(np.float32)
    more = {"log_threshold": np.log(threshold)} if log else {"threshold": threshold}
    sae = read_sparse_autoencoder(folder_of(tmp_path, CONFIG | {"architecture": "jumprelu"}, tensors(**more)))
    w, h = tensors(), np.random.default_rng(4).normal(size=(3, D)).astype(np.float32)
    values = (h - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    assert ((values > 0) & (values < threshold)).any()
    np.testing.assert_allclose(sae.encode(jnp.asarray(h)), np.where(values > threshold, values, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_topk_folder(tmp_path, rescale):
    config = CONFIG | {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": rescale}
    sae = read_sparse_autoencoder(folder_of(tmp_path, config))
    w, h = tensors(), np.random.default_rng(4).normal(size=(5, D)).astype(np.float32)
    lengths = np.linalg.norm(w["W_dec"], axis=1) if rescale else 1
    values = ((h - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * lengths
    chosen = values >= np.sort(values, axis=1)[:, -3:-2]
    made = (np.where(chosen, np.maximum(values, 0), 0) / lengths) @ w["W_dec"] + w["b_dec"]
    np.testing.assert_allclose(sae(jnp.asarray(h)), made, rtol=1e-4, atol=1e-3)
    assert (np.asarray(sae.encode(jnp.asarray(h))) > 0).sum(axis=1).tolist() == [3] * 5


def test_an_old_topk_folder(tmp_path):
    sae = read_sparse_autoencoder(folder_of(tmp_path, OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}))
    assert (sae.activation, sae.k) == ("topk", 2)


def test_half_types_and_centred_states(tmp_path):
    halves = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors(scaling_factor=np.ones(F)).items()}
    config = CONFIG | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    sae = read_sparse_autoencoder(folder_of(tmp_path, config, halves))
    assert sae.normalization == "center"
    assert sae.decoder[...].dtype == jnp.float32
    np.testing.assert_allclose(sae.decoder[...], tensors()["W_dec"], rtol=1e-2)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "topk, rescaled"])
def test_folders_that_saelens_writes(tmp_path, architecture, normalization, bias):
    saelens, torch = pytest.importorskip("sae_lens"), pytest.importorskip("torch")
    config = {"d_in": D, "d_sae": F, "apply_b_dec_to_input": bias, "normalize_activations": normalization}
    config |= {"metadata": {"hook_name": "blocks.1.hook_resid_post"}, "architecture": architecture.split(",")[0]}
    if config["architecture"] == "topk":
        config |= {"k": 4, "rescale_acts_by_decoder_norm": "rescaled" in architecture}
    theirs = saelens.SAE.from_dict(config)
    more = {"threshold": np.full(F, 2, np.float32)} if architecture == "jumprelu" else {}
    theirs.load_state_dict({name: torch.tensor(value) for name, value in tensors(**more).items()})
    theirs.save_model(tmp_path)
    sae, h = read_sparse_autoencoder(tmp_path), 2 + np.random.default_rng(4).normal(size=(6, D)).astype(np.float32)
    with torch.no_grad():
        codes, made = theirs.encode(torch.tensor(h)).numpy(), theirs(torch.tensor(h)).numpy()
    assert (codes > 0).any()
    np.testing.assert_allclose(sae.encode(jnp.asarray(h)), codes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(jnp.asarray(h)), made, rtol=1e-4, atol=1e-3)


def hooked(hook, **more):
    return {"config": CONFIG | {"metadata": {"hook_name": hook} | more}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": CONFIG | {"architecture": "gated"}},
            "^architecture: expected one of standard, jumprelu, topk, got 'gated'",
        ),
        ({"config": OLD | {"activation_fn_str": "tanh-relu"}}, "^activation_fn: expected relu"),
        ({"config": CONFIG | {"normalize_activations": "expected_average_only_in"}}, "^normalize_activations: .*folded"),
        ({"config": OLD | {"normalize_activations": True}}, "^normalize_activations: .*folded"),
        ({"config": CONFIG | {"normalize_activations": "max"}}, "^normalize_activations: expected one of none"),
        ({"config": CONFIG | {"reshape_activations": "hook_z"}}, "^reshape_activations: expected none"),
        ({"config": CONFIG | {"apply_b_dec_to_input": 1}}, "^apply_b_dec_to_input: expected true or false"),
        ({"config": CONFIG | {"architecture": "topk"}}, "^k: "),
        ({"config": CONFIG | {"architecture": "topk", "k": 41}}, "^k: expected at most the 40 features, got 41"),
        ({"config": CONFIG | {"d_in": 16}}, "^d_in: expected 32, as in sae_weights"),
        ({"config": CONFIG | {"metadata": "none"}}, "^metadata: "),
        (hooked("blocks.1.hook_mlp_out"), "^hook_name: expected blocks.L.hook_resid_post"),
        (hooked("blocks.0.hook_resid_pre"), "^hook_name: .*before the first"),
        (hooked("blocks.1.hook_resid_post", hook_head_index=2), "^hook_head_index: "),
        (hooked("blocks.3.hook_resid_post"), "^sae: expected one for a block from 0 to 2, got block 3"),
        ({"config": {}}, "^hook_name: .*None"),
        ({"weights": tensors(threshold=np.ones(F, np.float32))}, "^sae_weights.safetensors: .*threshold besides"),
        ({"weights": {"W_enc": tensors()["W_enc"]}}, "^sae_weights.safetensors: .*no W_dec, b_dec, b_enc"),
        ({"weights": {"encoder": np.ones(3, np.float32)}}, "^sae_weights.safetensors: expected W_enc"),
        ({"config": CONFIG | {"architecture": "jumprelu"}}, "^sae_weights.safetensors: .*no threshold"),
        ({"weights": tensors(W_dec=np.ones((D, F), np.float32))}, r"^W_dec: expected shape \(40, 32\)"),
        ({"weights": tensors(b_dec=np.full(D, np.nan, np.float32))}, "^b_dec: expected finite numbers"),
        ({"weights": tensors(scaling_factor=np.full(F, 2, np.float32))}, "^scaling_factor: "),
    ],
)
def test_folders_that_are_refused(tmp_path, small, change, message):
    with pytest.raises(ValueError, match=message):
        read_sparse_autoencoder(folder_of(tmp_path, **change), small("llama"))


def test_another_width_and_missing_files(tmp_path, small):
    with pytest.raises(ValueError, match=r"^folder: .*none"):
        read_sparse_autoencoder(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"^folder: .*no cfg.json and no sae_weights.safetensors"):
        read_sparse_autoencoder(tmp_path)
    weights = {"W_enc": np.ones((8, 4)), "W_dec": np.ones((4, 8)), "b_enc": np.ones(4), "b_dec": np.ones(8)}
    folder = folder_of(tmp_path, CONFIG | {"d_in": 8, "d_sae": 4}, weights)
    with pytest.raises(ValueError, match=r"^sae: .*got width 8"):
        read_sparse_autoencoder(folder, small("llama"))
    (tmp_path / "cfg.json").write_text("[1")
    with pytest.raises(ValueError, match=r"^cfg.json: expected JSON"):
        read_sparse_autoencoder(folder)


# --- directions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(300, 300), (500, 100)])
def test_the_best_features_are_those_that_correlate_with_the_set(sizes):
    sae, rng = random_autoencoder(d=5, f=7), np.random.default_rng(5)
    shift = np.array([1.0, -1, 0.5, 0, 0])
    p, n = rng.normal(size=(sizes[0], 5)) + shift, rng.normal(size=(sizes[1], 5))
    codes = [np.asarray(sae.encode(jnp.asarray(side, jnp.float32)), float) for side in (p, n)]
    labels, weights = np.repeat([1.0, 0.0], sizes), np.repeat([1 / sizes[0], 1 / sizes[1]], sizes)
    expected = [np.cov(np.concatenate(codes)[:, j], labels, aweights=weights, ddof=0) for j in range(7)]
    expected = np.array([c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in expected])
    best = best_features(sae, p, n, 7)
    assert [feature.number for feature in best] == np.argsort(-np.abs(expected)).tolist()
    for feature in best:
        assert feature.correlation == pytest.approx(expected[feature.number], abs=1e-5)
        assert feature.positive == pytest.approx(codes[0][:, feature.number].mean(), rel=1e-5)
        assert feature.negative == pytest.approx(codes[1][:, feature.number].mean(), rel=1e-5)
    assert best_features(sae, p, n, 2) == best[:2]
    with pytest.raises(ValueError, match=r"^k: "):
        best_features(sae, p, n, 0)
    with pytest.raises(ValueError, match=r"^states: .*got width 3"):
        best_features(sae, p[:, :3], n[:, :3])


def test_a_feature_that_is_always_the_same_tells_nothing():
    sae = random_autoencoder(d=2, f=2)
    sae.encoder[...] = jnp.array([[1.0, 0], [0, 0]])
    sae.encoder_bias[...] = jnp.array([0.0, 7.0])
    sae.decoder_bias[...] = jnp.zeros(2)
    first, second = best_features(sae, np.array([[1.0, 0], [2, 0]]), np.array([[0.5, 0], [0, 0]]))
    assert (first.number, second.number, second.correlation) == (0, 1, 0)


def test_the_vector_of_a_feature(trained, small):
    vector = feature_vector(trained, 3)
    assert vector.layers == (1,)
    assert np.linalg.norm(vector[1]) == pytest.approx(float(trained.typical[...][3]), rel=1e-5)
    np.testing.assert_allclose(vector[1], trained.typical[...][3] * trained.decoder[...][3], rtol=1e-5)
    assert vector.extraction == {"way": "feature", "feature": 3, "of": "trained"}
    sae = random_autoencoder(d=D, f=F)
    vector = feature_vector(sae, 39, 2, small("llama"), name="mine")
    np.testing.assert_array_equal(vector[2], sae.decoder[...][39])
    assert (vector.name, vector.model.d_model) == ("mine", D)
    dead = int(np.argmin(np.asarray(trained.typical[...])))
    for message, arguments in {
        "^feature: expected a number from 0 to 47, got 48": (trained, 48),
        "^feature: .*dead": (trained, dead),
        "^layer: expected a block, got none": (sae, 0),
        "^sae: expected one for the model's width 32, got width 24": (trained, 3, 1, small("llama")),
    }.items():
        with pytest.raises(ValueError, match=message):
            feature_vector(*arguments)


def by_hand(lm, sae, layer):
    """States of texts without sinks, mean activations of texts, and atoms, from the parts."""
    states = text_states(lm, UNEVEN, NEGATIVE)
    sink = states.sinks[layer] / np.linalg.norm(states.sinks[layer])
    sides = [side[layer] - np.outer(side[layer] @ sink, sink) for side in (states.positive, states.negative)]
    codes = []
    for texts in (UNEVEN, NEGATIVE):
        ((tokens, of_text, weights),) = token_states(lm, texts, layer, places=states.places)
        values = np.asarray(sae.encode(jnp.asarray(tokens)))
        rows = [of_text == k for k in range(len(texts))]
        codes.append(np.stack([np.average(values[row], axis=0, weights=weights[row]) for row in rows]))
    atoms = np.asarray(sae.decoder[...], float)
    return sides, codes, unit(atoms - np.outer(atoms @ sink, sink))


@pytest.mark.parametrize("has_one", [True, False])
def test_the_way_of_the_autoencoder(small, has_one):
    lm = small("llama")
    training = {"features": 24, "steps": 300, "sparsity": 0.3}
    ((tokens, *_),) = token_states(lm, [*UNEVEN, *NEGATIVE], 1)
    sae = random_autoencoder(d=D, f=F, layer=1) if has_one else train_sparse_autoencoder(tokens, layer=1, **training)
    vector = sae_vector(lm, UNEVEN, NEGATIVE, 1, **({"sae": sae} if has_one else {"training": training}))
    (p, n), (of_p, of_n), atoms = by_hand(lm, sae, 1)

    def correlations(rows):
        both = np.concatenate([of_p[rows], of_n[rows]])
        labels = np.repeat([1.0, -1.0], len(both) // 2)
        spread = both.std(axis=0)
        return np.where(spread > 1e-6, (both.T @ labels) / len(both) / np.where(spread > 1e-6, spread, 1), 0)

    def made(rows):
        u = atoms[np.argmax(np.abs(correlations(rows)))]
        return (u @ (p[rows].mean(axis=0) - n[rows].mean(axis=0))) * u

    np.testing.assert_allclose(vector[1], made(slice(None)), rtol=1e-3, atol=1e-5)
    diagnosis = vector.diagnosis[1]
    assert diagnosis.sink_share < 1e-12
    assert 0 < diagnosis.removed_share < 1
    expected = separation(made, p, n)
    assert (diagnosis.halves_cosine, diagnosis.accuracy, diagnosis.effect_size) == pytest.approx(expected, rel=1e-3)
    facts = vector.extraction
    assert facts["way"] == "sparse-autoencoder"
    assert facts["features"] == sae.features
    assert facts["correlation"] == pytest.approx(correlations(slice(None))[facts["feature"]], rel=1e-3)
    assert facts["autoencoder"] == ("" if has_one else "trained")
    assert ("explained_variance" in facts) != has_one
    assert vector.layers == (1,)
    assert vector.scales[1] == pytest.approx(text_states(lm, UNEVEN, NEGATIVE).scales[1])


def test_what_comes_after_the_cut_has_no_say(small):
    lm, sae = small("llama"), random_autoencoder(d=D, f=F, layer=1)
    longer = [[*text, *RNG.integers(3, 60, size=9).tolist()] for text in POSITIVE]
    vectors = [sae_vector(lm, texts, NEGATIVE, sae=sae) for texts in (POSITIVE, longer)]
    np.testing.assert_allclose(vectors[0][1], vectors[1][1], atol=1e-5)
    assert vectors[0].extraction["correlation"] == pytest.approx(vectors[1].extraction["correlation"], abs=1e-4)


def test_the_way_from_pairs_and_from_iterators(small):
    lm, sae = replace(small("llama"), tokenizer=letters()), random_autoencoder(d=D, f=F, layer=1)
    texts, others = ["ABCD", "IJKL"], ["EFGH", "MNOP"]
    plain = sae_vector(lm, texts, others, sae=sae)
    np.testing.assert_array_equal(sae_vector(lm, iter(texts), iter(others), sae=sae)[1], plain[1])
    pairs = [Pair("", *sides) for sides in zip(texts, others, strict=True)]
    np.testing.assert_array_equal(sae_vector(lm, pairs=pairs, sae=sae)[1], plain[1])
    answers = sae_vector(lm, pairs=[pair._replace(question="Q") for pair in pairs], sae=sae, chat=True)
    assert answers.extraction["answers"]
    assert np.abs(answers[1] - plain[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": None}, "^layer: expected a block, got none"),
        ({"layer": 3}, "^layer: expected a block from 0 to 2, got 3"),
        ({"layer": 2, "sae": random_autoencoder(d=D, f=F, layer=1)}, "^sae: expected one for block 2, got block 1"),
        ({"sae": random_autoencoder(d=8)}, "^sae: expected one for the model's width 32"),
        ({"sae": random_autoencoder(d=D), "training": {"steps": 2}}, "^training: expected none beside an autoencoder"),
        ({"training": {"steps": 0}}, "^steps: "),
        ({"training": {"step": 5}}, "^training: expected settings among features, .*, got 'step'"),
        ({"negative": POSITIVE, "sae": random_autoencoder(d=D)}, "^texts: expected two sets that a feature tells apart"),
        ({"positive": []}, "^positive: "),
        ({"positive": None}, "^positive: expected two sets of texts, or pairs"),
        ({"pairs": [Pair("", "A", "B")]}, "^pairs: .*beside them"),
    ],
)
def test_bad_input_of_the_way(small, change, message):
    with pytest.raises(ValueError, match=message):
        sae_vector(small("llama"), **{"positive": POSITIVE, "negative": NEGATIVE, "layer": 1} | change)

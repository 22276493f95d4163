"""Each hidden hypothesis of proposition 4.1, by an instance that shows what happens without it."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import REGISTRY, blocks, routes
from theory._compilation import compiled_quickly
from theory.statements import n11_forgetting

KINDS = pytest.mark.parametrize("kind", ["rms", "layer"])
FAR = 1e7

logits = compiled_quickly(lambda instance, alpha: instance.decode(alpha))


@cache
def drawn():
    """A random instance with two prompts that share no token, as NumPy arrays."""
    tokens, instance = compiled_quickly(blocks.sample)(jax.random.key(2))
    return jax.tree.map(np.asarray, blocks.assemble(jnp.arange(tokens.size).reshape(tokens.shape), instance))


def draw(kind="rms", v=None, **changes):
    """The instance with changes to its model, in the precision of the moment."""
    instance = jax.tree.map(jnp.asarray, drawn())
    model = replace(instance.model, kind=kind, **changes)
    return replace(instance, model=model, v=instance.v if v is None else jnp.asarray(v))


def applies(instance):
    return routes.within(REGISTRY["proposition-4.1"], instance)


def apart(instance, alpha, end):
    return float(jnp.max(jnp.abs(logits(instance, alpha) - end)))


@KINDS
def test_with_all_hypotheses_both_prompts_end_at_the_limit_within_the_bound(kind):
    instance = draw(kind)
    assert applies(instance)
    assert float(jnp.ptp(logits(instance, 0.0), axis=0).max()) > 0.1

    @compiled_quickly
    def shares(instance, times):
        """Of the bound, that the distance from the limit uses up."""
        at = [(sign, sign * times * instance.scale) for sign in (1, -1)]
        return jnp.stack(
            [jnp.abs(instance.decode(alpha) - instance.limit(sign)) / instance.bound(alpha) for sign, alpha in at]
        )

    used = np.stack([shares(instance, times) for times in (2.0, 30.0, 1e4)])
    assert used.max() <= 1
    # Nor is it a hundred times too large.
    assert used.max() > 0.01


@KINDS
def test_the_derivative_by_the_prompt_vanishes_like_one_over_alpha(kind):
    instance = draw(kind)
    towards = instance.states[1] - instance.states[0]

    @compiled_quickly
    def along(h, alpha):
        return jax.jvp(lambda h: instance.model.decode(h + alpha * instance.v), (h,), (towards,))[1]

    near, far = (along(instance.states[0], times * instance.scale) for times in (1e3, 1e5))
    np.testing.assert_allclose(far * 100, near, rtol=0.05, atol=1e-3 * np.abs(near).max())


def test_a_constant_vector_does_nothing_under_layer_norm():
    instance = draw("layer", v=np.full(blocks.WIDTH, 1.7))
    assert not applies(instance)
    np.testing.assert_allclose(logits(instance, 1e3), logits(instance, 0.0), atol=1e-10)
    assert apart(replace(instance, model=replace(instance.model, kind="rms")), 1e3, logits(instance, 0.0)) > 0.1


def test_rounding_may_still_move_a_constant_vector_and_must_not_count():
    """A vector that is constant but for rounding is refused like a constant one."""
    v = np.full(blocks.WIDTH, 0.1)
    v[0] += 1e-15
    assert not applies(draw("layer", v=v))
    assert not applies(draw("rms", v=np.zeros(blocks.WIDTH)))


@KINDS
def test_the_two_limits_are_opposite_without_a_bias_only(kind):
    biased = draw(kind)
    plain = draw(kind, bias=jnp.zeros(blocks.WIDTH))
    np.testing.assert_allclose(logits(plain, FAR), -logits(plain, -FAR), atol=1e-4)
    both = logits(biased, FAR) + logits(biased, -FAR)
    np.testing.assert_allclose(both, np.tile(2 * biased.model.W @ biased.model.bias, (2, 1)), atol=1e-4)
    assert np.abs(both).max() > 0.1


def test_a_softcap_caps_the_limit():
    instance = draw(softcap=0.5)
    free = draw().limit(1)
    assert apart(instance, FAR, free) > 0.1
    assert apart(instance, FAR, 0.5 * jnp.tanh(free / 0.5)) < 1e-4
    assert applies(instance)


@KINDS
def test_a_norm_of_the_stream_has_another_limit(kind):
    instance = draw(kind, placement="stream")
    assert not applies(instance)
    assert apart(instance, FAR, instance.limit(1)) > 0.1
    # It is a limit all the same, the same for both prompts.
    assert apart(instance, FAR, logits(instance, 100 * FAR)[0]) < 1e-4


def test_a_norm_of_each_branch_has_the_limit_of_the_proposition():
    instance = draw(placement="branch")
    assert applies(instance)
    assert apart(instance, FAR, instance.limit(1)) < 1e-4


def test_at_the_last_position_only_the_limit_stays_and_the_coefficient_goes():
    """N11 needs v at every position, proposition 4.1 at the last."""
    instance = draw()
    last = replace(instance, where=jnp.arange(blocks.LENGTH) == blocks.LENGTH - 1)
    assert applies(last)
    assert routes.within(REGISTRY["N11"], instance)
    assert not routes.within(REGISTRY["N11"], last)
    assert routes.check("N11", last) == ("the theorem says nothing here", np.inf)
    assert apart(last, FAR, last.limit(1)) < 1e-4

    def scaled(instance):
        return 1e5 * instance.scale * (logits(instance, 1e5 * instance.scale) - instance.limit(1))

    coefficient = n11_forgetting._coefficient(instance, 1)
    size = float(jnp.max(jnp.abs(coefficient)))
    assert float(jnp.max(jnp.abs(scaled(instance) - coefficient))) < 1e-3 * size
    assert float(jnp.max(jnp.abs(scaled(last) - coefficient))) > 0.05 * size


def test_float32_loses_the_prompt_before_the_limit_is_exact():
    def differs(instance):
        first, second = np.asarray(logits(instance, 1e9))
        return (first != second).any()

    assert differs(draw())
    with jax.enable_x64(False):
        instance = draw()
        assert logits(instance, 1e9).dtype == jnp.float32
        assert not differs(instance)

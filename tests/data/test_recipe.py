"""The recipe's schedule step by step, by hand, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.data.recipe import Recipe


def _rates(recipe, steps_per_epoch):
    """Returns the learning rate of every step of the training."""
    schedule = recipe.learning_rates(steps_per_epoch)
    steps = range(recipe.total_epochs * steps_per_epoch)
    return np.array([float(schedule(tf.constant(step, tf.int64))) for step in steps])


def test_papers_schedule():
    """The paper: 0.1, ×0.2 at epochs 50, 100 and 150 of 200."""
    rates = _rates(Recipe(), 1)
    wanted = np.repeat([0.1, 0.02, 0.004, 0.0008], 50)
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


def test_drop_takes_effect_with_the_first_step_of_its_epoch():
    # 4 epochs of 3 steps, ×.5 after half of them, so from step 6 on.
    recipe = Recipe(epochs=4, learning_rate=1.0, milestones=(0.5,), decay_factor=0.5)
    np.testing.assert_allclose(_rates(recipe, 3), [1.0] * 6 + [0.5] * 6)


def test_two_cycles_run_the_schedule_twice():
    recipe = Recipe(epochs=2, cycles=2, learning_rate=1.0, milestones=(0.5,), decay_factor=0.1)
    np.testing.assert_allclose(_rates(recipe, 2), [1, 1, 0.1, 0.1] * 2, rtol=1e-6)
    assert recipe.total_epochs == 4


@pytest.mark.parametrize("cycles", [1, 2])
def test_without_milestones_the_rate_is_constant(cycles):
    recipe = Recipe(epochs=2, cycles=cycles, learning_rate=1e-4, milestones=())
    np.testing.assert_allclose(_rates(recipe, 3), [1e-4] * (6 * cycles))


def test_milestones_of_short_trainings_are_rounded_to_epochs():
    # .25·3 = .75 → 1, .5·3 = 1.5 → 2 (to even), .75·3 = 2.25 → 2: both drops at epoch 2.
    recipe = Recipe(epochs=3, learning_rate=1.0, decay_factor=0.5)
    np.testing.assert_allclose(_rates(recipe, 1), [1.0, 0.5, 0.125])


@pytest.mark.parametrize("cycles", [1, 2])
@pytest.mark.parametrize(("epochs", "rates"), [(1, [1.0]), (2, [1.0, 0.25])])
def test_a_cycle_begins_with_the_rate_however_short(epochs, cycles, rates):
    # .25·2 and .25·1 round to epoch 0, which has no drop: with 2 epochs two drops come at epoch 1.
    recipe = Recipe(epochs=epochs, cycles=cycles, learning_rate=1.0, decay_factor=0.5)
    np.testing.assert_allclose(_rates(recipe, 1), rates * cycles)


def test_cosine_falls_from_the_rate_to_its_share():
    # ½·(1 + cos(π·t/4)) at t = 0 … 3, between 1 and .1; then the cycle begins anew.
    recipe = Recipe(epochs=2, cycles=2, learning_rate=1.0, schedule="cosine", decay_factor=0.1)
    cycle = [0.1 + 0.9 * half for half in (1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2)]
    np.testing.assert_allclose(_rates(recipe, 2), cycle * 2, rtol=1e-5)


def test_optimizer_is_sgd_on_the_schedule():
    optimizer = Recipe(epochs=4, learning_rate=0.3, momentum=0.8, nesterov=False).optimizer(5)
    assert isinstance(optimizer, tf.keras.optimizers.SGD)
    assert (optimizer.momentum, optimizer.nesterov) == (0.8, False)
    assert optimizer.weight_decay is None  # the penalty is the loss's
    weight = tf.Variable(1.0)
    optimizer.apply_gradients([(tf.constant(1.0), weight)])
    assert weight.numpy() == pytest.approx(0.7)  # 1 - .3·1


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_only_float16_scales_the_loss(precision):
    scaled = Recipe(precision=precision).optimizer(1)
    wrapper = tf.keras.mixed_precision.LossScaleOptimizer
    assert isinstance(scaled, wrapper) == (precision == "mixed_float16")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("cycles", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
        ("milestones", (0.5, 0.25)),
        ("milestones", (0.0, 0.5)),
        ("milestones", (0.5, 1.0)),
        ("milestones", (50, 100)),
        ("schedule", "linear"),
        ("decay_factor", 0.0),
        ("embedding_rate", 1.5),
        ("precision", "float16"),
    ],
)
def test_bad_option_is_named(name, value):
    with pytest.raises(InputError) as caught:
        Recipe(**{name: value})
    assert f"Recipe.{name}={value!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_milestones_may_be_a_list():
    recipe = Recipe(milestones=[0.5])
    assert recipe == Recipe(milestones=(0.5,))
    assert hash(recipe) == hash(Recipe(milestones=(0.5,)))

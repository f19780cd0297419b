"""Time shared out over trainings: none is starved, and what is left over is given on."""

import pytest

from autoseg.rules.recipe import STEP_SHARE
from autoseg.rules.shares import (
    LEAST_FOLD_S,
    configurations_within,
    fold_seconds,
    reserve,
    trainings_within,
)
from autoseg.rules.timed import LEAST_USEFUL

PLANNED = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
EVEN = dict.fromkeys(PLANNED, 0.1)


@pytest.mark.parametrize("step_s", [None, EVEN])
@pytest.mark.parametrize(
    ("hours", "kept"),
    [
        (1, ("3d_fullres",)),
        (4, ("3d_fullres",)),
        (5, ("3d_fullres",)),  # a cascade without its low resolution would be worth nothing
        (7.5, ("3d_lowres", "3d_fullres", "3d_cascade_fullres")),
        (10, PLANNED),
    ],
)
def test_configurations_are_given_up_where_time_is_short(hours: float, kept, step_s) -> None:
    found = configurations_within(PLANNED, hours * 3600, 5, step_s)
    assert found.value == kept
    assert len(kept) == 1 or hours * 3600 / (5 * len(kept)) >= LEAST_FOLD_S
    assert ("3d_cascade_fullres" in kept) <= ("3d_lowres" in kept)


def test_slow_steps_give_up_more() -> None:
    slow = EVEN | {"2d": 0.9}
    assert configurations_within(PLANNED, 36000, 5, slow).value == PLANNED[1:]
    assert configurations_within(PLANNED, None, 5, slow).value == PLANNED


def test_no_limit_trains_everything() -> None:
    assert configurations_within(PLANNED, None, 5).value == PLANNED
    found = trainings_within(PLANNED, None, 5, EVEN)
    assert (found.value.names, found.value.folds, found.value.count) == (PLANNED, 5, 20)


def test_images_that_are_flat_have_one_configuration() -> None:
    assert configurations_within(("2d",), 60, 5).value == ("2d",)


@pytest.mark.parametrize("minutes", [5, 12, 30, 60, 240, 600])
@pytest.mark.parametrize("step_s", [0.01, 0.1, 0.4, 2.0])
def test_every_training_on_a_card_has_enough_steps_or_is_the_only_one(
    minutes: float, step_s: float
) -> None:
    total = minutes * 60
    found = trainings_within(PLANNED, total, 5, dict.fromkeys(PLANNED, step_s)).value
    steps = fold_seconds(total, 0, found.count) * STEP_SHARE / step_s
    assert steps >= LEAST_USEFUL or found.count == 1
    if found.folds < 5:
        assert found.names == ("3d_fullres",)
        more = fold_seconds(total, 0, found.count + 1) * STEP_SHARE / step_s
        assert more < LEAST_USEFUL


def test_fewer_folds_are_said_and_a_cascade_has_all() -> None:
    found = trainings_within(PLANNED, 1800, 5, dict.fromkeys(PLANNED, 0.3))
    assert found.value.folds == 2
    assert "Of 5 folds 2 are trained: a step takes 0.3 s" in found.why
    one = trainings_within(PLANNED, 600, 5, dict.fromkeys(PLANNED, 1.0))
    assert one.value.folds == 1
    assert "A single fold says little" in one.why
    names = ("3d_lowres", "3d_cascade_fullres")
    chosen = trainings_within(names, 600, 5, dict.fromkeys(names, 1.0), chosen=True).value
    assert (chosen.names, chosen.folds) == (names, 5)
    both = trainings_within(("2d", "3d_fullres"), 1800, 5, EVEN, chosen=True).value
    assert both.names == ("2d", "3d_fullres") and both.folds == 3


def test_on_cores_all_folds_are_trained() -> None:
    assert trainings_within(PLANNED, 60, 5).value.folds == 5


@pytest.mark.parametrize("slow", [0.5, 1.0, 1.3])
def test_shares_use_up_the_time_whatever_the_trainings_take(slow: float) -> None:
    total, spent = 3600.0, 40.0
    for left in range(5, 0, -1):
        share = fold_seconds(total, spent, left)
        spent += share * (slow if left > 2 else 1.0)
    assert spent == pytest.approx(total - reserve(total))

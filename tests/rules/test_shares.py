"""Time shared out over trainings: none is starved, and what is left over is given on."""

import pytest

from autoseg.rules.shares import LEAST_FOLD_S, configurations_within, fold_seconds, reserve

PLANNED = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")


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
def test_configurations_are_given_up_where_time_is_short(hours: float, kept) -> None:
    found = configurations_within(PLANNED, hours * 3600, 5, on_cores=True)
    assert found.value == kept
    assert len(kept) == 1 or hours * 3600 / (5 * len(kept)) >= LEAST_FOLD_S
    assert ("3d_cascade_fullres" in kept) <= ("3d_lowres" in kept)


def test_a_card_or_no_limit_trains_everything() -> None:
    assert configurations_within(PLANNED, None, 5, on_cores=True).value == PLANNED
    assert configurations_within(PLANNED, 60, 5, on_cores=False).value == PLANNED


def test_images_that_are_flat_have_one_configuration() -> None:
    assert configurations_within(("2d",), 60, 5, on_cores=True).value == ("2d",)


@pytest.mark.parametrize("slow", [0.5, 1.0, 1.3])
def test_shares_use_up_the_time_whatever_the_trainings_take(slow: float) -> None:
    total, spent = 3600.0, 40.0
    for left in range(5, 0, -1):
        share = fold_seconds(total, spent, left)
        spent += share * (slow if left > 2 else 1.0)
    assert spent == pytest.approx(total - reserve(total))

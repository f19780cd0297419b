"""Imbalance decisions on phantoms; the chance of meeting a class against counting patches."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from autoseg.rules.sampling import (
    LARGEST_SHARE,
    LEAST_SHARE,
    ClassStatistics,
    Exposure,
    Scene,
    batch_dice,
    class_weights,
    exposure,
    foreground_share,
    sampling,
)


def phantom(edge: int = 100, patch: int = 40, cases: int = 4, **lesions: int) -> Scene:
    """Cubic cases of one geometry, each with one cubic lesion of the given voxels a class."""
    classes = {
        name: ClassStatistics((vox,) * cases, (float(vox),) * cases)
        for name, vox in lesions.items()
    }
    return Scene(
        (patch,) * 3, (1.0, 1.0, 1.0), ((edge,) * 3,) * cases, classes, 2, batch_dice=False
    )


def counted(shape: tuple[int, ...], patch: tuple[int, ...], lesion: tuple[int, ...]) -> float:
    """The share of all pairs of patch and lesion position that overlap, by enumeration."""
    starts = [range(n - p + 1) for n, p in zip(shape, patch)]
    places = [range(n - e + 1) for n, e in zip(shape, lesion)]
    hits = total = 0
    for place in itertools.product(*places):
        volume = np.zeros(shape, dtype=bool)
        volume[tuple(slice(a, a + e) for a, e in zip(place, lesion))] = True
        for start in itertools.product(*starts):
            total += 1
            hits += bool(volume[tuple(slice(a, a + p) for a, p in zip(start, patch))].any())
    return hits / total


@pytest.mark.parametrize(
    ("shape", "patch", "edge"), [((6, 7, 5), (3, 2, 5), 2), ((8, 5, 6), (2, 2, 3), 1)]
)
def test_met_equals_enumeration(shape: tuple[int, ...], patch: tuple[int, ...], edge: int) -> None:
    lesion = ClassStatistics((edge**3,), (float(edge**3),))
    scene = Scene(patch, (1.0, 1.0, 1.0), (shape,), {"a": lesion}, 2, False)
    assert exposure(scene, "a").met == pytest.approx(counted(shape, patch, (edge,) * 3))


def test_met_follows_spacing_and_flat_images() -> None:
    # A 27 mm^3 cube in voxels of 3 x 1 x 1 mm spans 1 x 3 x 3 voxels.
    cube = ClassStatistics((9,), (9.0,))
    scene = Scene((2, 4, 4), (3.0, 1.0, 1.0), ((5, 9, 9),), {"a": cube}, 2, False)
    assert exposure(scene, "a").met == pytest.approx(counted((5, 9, 9), (2, 4, 4), (1, 3, 3)))
    flat = Scene((1, 3, 3), (999.0, 1.0, 1.0), ((1, 9, 8),), {"a": ClassStatistics((4,), (4.0,))},
                 2, False)  # fmt: skip
    assert exposure(flat, "a").met == pytest.approx(counted((9, 8), (3, 3), (2, 2)))


def test_met_counts_components_and_absent_cases() -> None:
    one = ClassStatistics((8, 0), (8.0,))
    two = ClassStatistics((16, 0), (8.0, 8.0))
    scene = Scene((4, 4, 4), (1.0,) * 3, ((10, 10, 10),) * 2, {"one": one, "two": two}, 2, False)
    single = 2 * exposure(scene, "one").met
    assert 2 * exposure(scene, "two").met == pytest.approx(1 - (1 - single) ** 2)
    assert exposure(scene, "two").fill == pytest.approx(16 / 2000)
    with pytest.raises(ValueError, match="2 cases counted, 1 shapes given"):
        exposure(replace(scene, shapes_vox=((10, 10, 10),)), "one")


@pytest.mark.parametrize("patch", [20, 40, 100])
def test_phantoms_of_unlike_share_get_unlike_decisions(patch: int) -> None:
    common = sampling(phantom(patch=patch, lesion=100_000))
    rare = sampling(phantom(patch=patch, lesion=100))
    assert rare.foreground_share.value > common.foreground_share.value + 0.15
    assert "1:10 of the voxels" in common.foreground_share.why
    assert "1:10,000 of the voxels" in rare.foreground_share.why
    assert (common.batch_dice.value, rare.batch_dice.value) == (False, True)
    assert common.class_weights.why != rare.class_weights.why


def test_share_is_bounded_and_grows_with_rarity() -> None:
    sizes = [1_000_000, 100_000, 10_000, 1000, 100, 10, 1]
    shares = [sampling(phantom(lesion=n)).foreground_share.value for n in sizes]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(LEAST_SHARE)
    assert LEAST_SHARE <= shares[1] < shares[-1] <= LARGEST_SHARE
    everywhere = {"a": Exposure(met=1.0, fill=0.5)}
    assert foreground_share(everywhere, {"a": 1.0}).value == pytest.approx(LEAST_SHARE)
    nowhere = {"a": Exposure(met=1e-9, fill=1e-9)}
    assert foreground_share(nowhere, {"a": 1.0}).value == pytest.approx(LARGEST_SHARE)


def test_balanced_classes_are_drawn_alike() -> None:
    found = sampling(phantom(edge=40, patch=40, anterior=1500, posterior=1400)).class_weights
    assert found.value == {"anterior": 0.5, "posterior": 0.5}
    assert "drawn alike" in found.why


def test_rarer_class_is_drawn_more_often_within_bounds() -> None:
    # 0.8 is met 16 times as often as 0.05: sqrt(16 / 2) = 2.83 times as often drawn.
    weights = class_weights({"liver": Exposure(0.8, 0.1), "tumour": Exposure(0.05, 1e-4)}).value
    assert weights["tumour"] / weights["liver"] == pytest.approx(8**0.5)
    assert sum(weights.values()) == pytest.approx(1.0)
    extreme = class_weights({"liver": Exposure(1.0, 0.1), "tumour": Exposure(1e-6, 1e-7)}).value
    assert extreme == pytest.approx({"liver": 0.2, "tumour": 0.8})


def test_absent_classes_are_never_drawn() -> None:
    absent = Exposure(0.0, 0.0)
    assert class_weights({"a": Exposure(0.5, 0.1), "b": absent}).value == {"a": 1.0, "b": 0.0}
    mixed = sampling(phantom(lesion=10_000, never=0))
    assert mixed.class_weights.value == {"lesion": 1.0, "never": 0.0}
    assert mixed.foreground_share == sampling(phantom(lesion=10_000)).foreground_share
    empty = sampling(phantom(lesion=0))
    assert empty.class_weights.value == {"lesion": 0.0}
    assert empty.foreground_share.value == 0.0
    assert empty.batch_dice.value is False


@pytest.mark.parametrize(
    ("general", "met", "component", "expected", "reason"),
    [
        (True, 1.0, 5000.0, True, "nnU-Net's rule"),
        (False, 1.0, 5000.0, False, "stable"),
        (False, 1.0, 150.0, True, "has 150 voxels"),
        (False, 0.1, 5000.0, True, "60% of the samples but only 36% of the batches of 2"),
    ],
)
def test_batch_dice_where_single_samples_are_unstable(
    general: bool, met: float, component: float, expected: bool, reason: str
) -> None:
    scene = replace(phantom(lesion=int(component)), batch_dice=general)
    found = batch_dice(scene, {"lesion": Exposure(met, 0.01)}, {"lesion": 1.0}, share=1 / 3)
    assert found.value is expected
    assert reason in found.why

"""Metrics against naive re-implementations and figures of other packages."""

import math
import warnings
from itertools import permutations, product

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.spatial import distance

from autoseg.image.metrics import (
    dimensions_of,
    measure_labels,
    surfel_sizes,
    without_surfaces,
)

DISTANCES = ("hd_mm", "hd95_mm", "assd_mm")


def ellipsoids(shape, *parts):
    """The union of ellipsoids (centre, radii), in voxels."""
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    inside = [sum(((g - c) / r) ** 2 for g, c, r in zip(grid, *part)) < 1 for part in parts]
    return np.any(inside, axis=0)


def measure_mask(predicted, reference, spacing_mm, **how):
    """The scores of one mask against another: `measure_labels` of a single structure."""
    maps = [mask.view(np.uint8) if mask.dtype == bool else mask for mask in (predicted, reference)]
    return measure_labels(*maps, {"mask": (1,)}, spacing_mm, **how)["mask"]


def noise(seed, shape=(7, 9, 8), share=0.4):
    return np.random.default_rng(seed).random(shape) < share


# name: shape, spacing_mm, tolerance_mm, predicted, reference, figures of surface-distance 0.1
# (DeepMind; numpy 2 patched in) for these masks, 2D without the slice axis. ASSD is the mean of its
# distances of both directions, weighted with its surfel areas. MONAI 1.6.1's compute_surface_dice
# (use_subvoxels=True) gives the same nsd within 1e-7.
PUBLISHED = {
    "iso": (
        (20, 24, 22), (1.0, 1.0, 1.0), 1.0,
        [((9, 12, 11), (6, 8, 7))],
        [((10, 11, 11), (6, 8, 6))],
        {"dice": 0.8173228346456692, "hd_mm": 1.7320508075688772, "hd95_mm": 1.4142135623730951,
         "assd_mm": 0.6212047543197248, "nsd": 0.9249435718071256},
    ),
    "thick slices": (
        (12, 40, 40), (5.0, 0.8, 0.8), 1.0,
        [((6, 20, 20), (3.5, 12, 10))],
        [((6, 21, 18), (3.2, 12, 11)), ((2, 5, 5), (1.5, 2.5, 2.5))],
        {"dice": 0.8244487859335752, "hd_mm": 16.899704139422088, "hd95_mm": 10.85357084097211,
         "assd_mm": 1.0807965111847677, "nsd": 0.7209521488467986},
    ),
    "three spacings": (
        (16, 30, 26), (2.5, 0.7, 1.3), 2.0,
        [((8, 14, 12), (6, 9, 7)), ((8, 24, 20), (2.5, 3.5, 3.5))],
        [((7, 15, 13), (5, 10, 6.5))],
        {"dice": 0.7538817310868847, "hd_mm": 7.505997601918082, "hd95_mm": 5.0,
         "assd_mm": 1.1377257113759547, "nsd": 0.8177182476516714},
    ),
    "plane": (
        (1, 40, 44), (3.0, 1.5, 0.5), 1.2,
        [((0, 20, 20), (1, 11, 14))],
        [((0, 21, 22), (1, 11, 12)), ((0, 3, 40), (1, 2.2, 2.2))],
        {"dice": 0.864804469273743, "hd_mm": 15.443445211480501, "hd95_mm": 13.647344063956181,
         "assd_mm": 2.0014114202554976, "nsd": 0.5125929030057942},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_of_surface_distance(name):
    shape, spacing, tolerance, predicted, reference, figures = PUBLISHED[name]
    scores = measure_mask(
        ellipsoids(shape, *predicted),
        ellipsoids(shape, *reference),
        spacing,
        dimensions=dimensions_of(shape),
        tolerance_mm=tolerance,
    )
    assert {m: scores.values[m] for m in figures} == pytest.approx(figures, rel=1e-6)
    assert (scores.outcome, scores.undefined) == ("both", {})


@pytest.mark.parametrize("name", PUBLISHED)
def test_monai_surface_dice(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("monai.metrics")
        import torch

        shape, spacing, tolerance, predicted, reference, _ = PUBLISHED[name]
        first = 3 - dimensions_of(shape)
        masks = [ellipsoids(shape, *predicted), ellipsoids(shape, *reference)]
        tensors = [torch.from_numpy(m.reshape(1, 1, *shape[first:])) for m in masks]
        expected = metrics.compute_surface_dice(
            *tensors,
            [tolerance],
            include_background=True,
            spacing=list(spacing[first:]),
            use_subvoxels=True,
        ).item()
    scores = measure_mask(*masks, spacing, dimensions=3 - first, tolerance_mm=tolerance)
    assert scores.values["nsd"] == pytest.approx(expected, abs=1e-6)


# ---- the size of surface elements

# Areas of surface-distance's table at unit spacing, by the neighbourhood up to rotation,
# reflection and complement (printed from MONAI 1.6.1's copy, six digits).
AREAS = {
    "00000000": 0.0, "00000001": 0.216506, "00000011": 0.707107, "00000110": 0.433013,
    "00000111": 1.149519, "00001111": 1.0, "00010110": 0.649519, "00010111": 1.299038,
    "00011000": 0.433013, "00011001": 0.923613, "00011011": 1.573132, "00011110": 1.366025,
    "00111100": 1.414214, "01101001": 0.866025,
}  # fmt: skip


def canonical(cube):
    seen = (
        side.transpose(order)[flips]
        for side in (cube, 1 - cube)
        for order in permutations(range(3))
        for flips in product((slice(None), slice(None, None, -1)), repeat=3)
    )
    return min("".join(map(str, c.ravel())) for c in seen)


def cube_of(code):
    return np.asarray([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)


def test_surfel_areas_equal_the_published_table():
    sizes = surfel_sizes((1.0, 1.0, 1.0))
    expected = [AREAS[canonical(cube_of(code))] for code in range(256)]
    np.testing.assert_allclose(sizes, expected, atol=1e-6)


def test_surfel_areas_follow_the_axes():
    spacing = (3.0, 0.5, 1.25)
    sizes = surfel_sizes(spacing)
    for order in permutations(range(3)):
        permuted = surfel_sizes(tuple(spacing[axis] for axis in order))
        for code in range(256):
            moved = cube_of(code).transpose(order).ravel()
            there = sum(int(v) << bit for bit, v in enumerate(moved))
            assert permuted[there] == pytest.approx(sizes[code], rel=1e-6)


def surfels(mask, spacing):
    """Naive: the size of the surface element at every corner point, by a loop over the points."""
    padded = np.pad(mask, 1)
    table = surfel_sizes(spacing)
    sizes = np.zeros([n - 1 for n in padded.shape])
    for corner in np.ndindex(sizes.shape):
        around = padded[tuple(slice(c, c + 2) for c in corner)].ravel()
        sizes[corner] = table[sum(int(v) << bit for bit, v in enumerate(around))]
    return sizes


def test_the_surface_of_a_box_is_that_of_a_bevelled_box():
    (a, b, c), (x, y, z) = (4, 3, 5), (2.0, 0.5, 1.25)
    sizes = surfels(np.ones((a, b, c), bool), (x, y, z))
    faces = 2 * ((a - 1) * (b - 1) * x * y + (a - 1) * (c - 1) * x * z + (b - 1) * (c - 1) * y * z)
    edges = 4 * (
        (a - 1) * x * math.hypot(y, z) / 2
        + (b - 1) * y * math.hypot(x, z) / 2
        + (c - 1) * z * math.hypot(x, y) / 2
    )
    corners = 8 * math.sqrt((x * y) ** 2 + (y * z) ** 2 + (x * z) ** 2) / 8
    assert sizes.sum() == pytest.approx(faces + edges + corners, rel=1e-6)


def test_the_outline_of_a_rectangle_is_that_of_a_bevelled_rectangle():
    sizes = surfels(np.ones((4, 6), bool), (2.0, 0.5))
    assert sizes.sum() == pytest.approx(2 * (3 * 2.0 + 5 * 0.5) + 4 * math.hypot(2.0, 0.5) / 2)


def test_outlines_cut_a_diagonal_pair_apart():
    """The complement of a diagonal pair is one, so both are two cut corners."""
    sizes = surfel_sizes((2.0, 0.5))
    corner = math.hypot(2.0, 0.5) / 2
    assert sizes[[0b0001, 0b1110, 0b0110, 0b1001]] == pytest.approx(
        [corner, corner, 2 * corner, 2 * corner]
    )


# ---- distances


def naive_distances(predicted, reference, spacing, tolerance):
    """By distance maps of the whole grid and lists, without cropping."""
    sizes = [surfels(mask, spacing) for mask in (predicted, reference)]
    maps = [distance_transform_edt(s == 0, sampling=spacing) for s in sizes]
    pairs = []
    for here, there in ((0, 1), (1, 0)):
        on = sizes[here] > 0
        pairs.append(sorted(zip(maps[there][on].tolist(), sizes[here][on].tolist())))
    hd95 = []
    for direction in pairs:
        whole, reached = sum(size for _, size in direction), 0.0
        for found, size in direction:
            reached += size
            if reached >= 0.95 * whole:
                hd95.append(found)
                break
    every = pairs[0] + pairs[1]
    whole = sum(size for _, size in every)
    return {
        "hd_mm": max(found for found, _ in every),
        "hd95_mm": max(hd95),
        "assd_mm": sum(found * size for found, size in every) / whole,
        "nsd": sum(size for found, size in every if found <= tolerance) / whole,
    }


@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_equal_the_naive_ones(seed):
    spacing, tolerance = (2.5, 0.7, 1.3), 0.75
    predicted, reference = noise(seed, share=0.05), noise(seed + 50, share=0.08)
    scores = measure_mask(predicted, reference, spacing, tolerance_mm=tolerance).values
    expected = naive_distances(predicted, reference, spacing, tolerance)
    assert {m: scores[m] for m in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_in_the_plane_equal_the_naive_ones(seed):
    predicted, reference = noise(seed, (1, 13, 17), 0.1), noise(seed + 50, (1, 13, 17), 0.06)
    scores = measure_mask(
        predicted, reference, (9.0, 0.7, 1.3), dimensions=2, tolerance_mm=0.8
    ).values
    expected = naive_distances(predicted[0], reference[0], (0.7, 1.3), 0.8)
    assert {m: scores[m] for m in expected} == pytest.approx(expected, rel=1e-9)


def test_a_shift_by_one_voxel():
    reference = np.zeros((12, 12, 12), bool)
    reference[3:9, 3:9, 3:9] = True
    spacing = (1.0000001, 1.0, 1.0)  # as a header stores 1 mm
    shifted = np.roll(reference, 1, axis=0)
    scores = measure_mask(shifted, reference, spacing, tolerance_mm=1.0).values
    assert scores["hd_mm"] == scores["hd95_mm"] == pytest.approx(1.0, abs=1e-6)
    assert scores["nsd"] == 1.0
    assert measure_mask(shifted, reference, spacing, tolerance_mm=0.99).values["nsd"] < 0.7


@pytest.mark.parametrize("spacing", [(1.0, a, b) for a in (0.5, 0.8, 1.3) for b in (0.6, 1.1)])
def test_exactly_95_percent_is_enough_whatever_the_rounding(spacing):
    """Of twenty equal dots one lies elsewhere: 76 of 80 equal elements agree."""
    reference = np.zeros((1, 20, 25), bool)
    reference[0, 1:17:4, 1:25:5] = True
    assert reference.sum() == 20
    predicted = reference.copy()
    predicted[0, 1, 1], predicted[0, 18, 1] = False, True
    scores = measure_mask(predicted, reference, spacing, dimensions=2).values
    assert scores["hd95_mm"] == 0.0
    assert scores["hd_mm"] > 2.0


def test_an_image_is_not_a_volume_of_one_slice():
    """As a volume the tops and bottoms agree wherever the areas do, which flatters the outline."""
    shape, spacing, _, predicted, reference, figures = PUBLISHED["plane"]
    masks = ellipsoids(shape, *predicted), ellipsoids(shape, *reference)
    flat = measure_mask(*masks, spacing, dimensions=2, tolerance_mm=1.2).values
    slab = measure_mask(*masks, spacing, dimensions=3, tolerance_mm=1.2).values
    assert flat["nsd"] == pytest.approx(figures["nsd"])
    assert slab["nsd"] > flat["nsd"] + 0.2
    assert slab["dice"] == flat["dice"]
    assert (dimensions_of((1, 40, 44)), dimensions_of((40, 1, 44))) == (2, 3)


def test_laws_of_the_surface_distances():
    predicted, reference, spacing = noise(1), noise(2), (3.0, 0.5, 1.25)
    scores = measure_mask(predicted, reference, spacing).values
    swapped = measure_mask(reference, predicted, spacing).values
    turned = measure_mask(
        predicted.transpose(2, 0, 1)[::-1], reference.transpose(2, 0, 1)[::-1], (1.25, 3.0, 0.5)
    ).values
    doubled = measure_mask(predicted, reference, (6.0, 1.0, 2.5), tolerance_mm=2.0).values
    for metric in (*DISTANCES, "nsd", "dice"):
        assert swapped[metric] == pytest.approx(scores[metric], rel=1e-12)
        assert turned[metric] == pytest.approx(scores[metric], rel=1e-6)
        factor = 2 if metric in DISTANCES else 1
        assert doubled[metric] == pytest.approx(factor * scores[metric], rel=1e-12)


def test_empty_space_around_changes_only_what_counts_it():
    predicted, reference = noise(3), noise(4)
    tight = measure_mask(predicted, reference, (2.0, 1.0, 1.0)).values
    wide = measure_mask(np.pad(predicted, 9), np.pad(reference, 9), (2.0, 1.0, 1.0)).values
    assert {m for m in tight if tight[m] != wide[m]} == {"tn", "specificity", "accuracy"}


# ---- overlap and size


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_scipy_and_counting(seed):
    predicted, reference = noise(seed), noise(seed + 9, share=0.3)
    scores = measure_mask(predicted, reference, (2.0, 0.5, 0.5), surfaces=False).values
    p, r = predicted.ravel(), reference.ravel()
    assert scores["dice"] == pytest.approx(1 - distance.dice(p, r))
    assert scores["iou"] == pytest.approx(1 - distance.jaccard(p, r))
    assert scores["accuracy"] == pytest.approx(1 - distance.hamming(p, r))
    assert scores["precision"] == pytest.approx(np.mean(r[p]))
    assert scores["recall"] == pytest.approx(np.mean(p[r]))
    assert scores["specificity"] == pytest.approx(np.mean(~p[~r]))
    assert scores["volume_difference_mm3"] == pytest.approx(0.5 * (int(p.sum()) - int(r.sum())))
    assert scores["relative_volume_difference"] == pytest.approx(p.sum() / r.sum() - 1)
    assert sum(scores[m] for m in ("tp", "fp", "fn", "tn")) == p.size
    assert not any(m.startswith(("hd", "assd", "nsd")) for m in scores)


def test_an_image_has_an_area():
    predicted, reference = noise(1, (1, 9, 9)), noise(2, (1, 9, 9))
    scores = measure_mask(predicted, reference, (7.0, 2.0, 0.5), dimensions=2).values
    difference = int(predicted.sum()) - int(reference.sum())
    assert scores["area_difference_mm2"] == pytest.approx(difference)
    assert scores["relative_area_difference"] == pytest.approx(difference / reference.sum())
    assert "volume_difference_mm3" not in scores


# ---- what does not exist

BLOCK = ellipsoids((6, 8, 10), ((3, 4, 5), (2, 3, 3)))
NOTHING = np.zeros_like(BLOCK)
DIAGONAL = math.sqrt((6 * 2.0) ** 2 + 8**2 + 10**2)


def same(value, expected):
    return value == expected or (math.isnan(value) and math.isnan(expected))


@pytest.mark.parametrize(
    ("predicted", "reference", "outcome", "expected"),
    [
        (NOTHING, NOTHING, "absent", {
            "dice": math.nan, "iou": math.nan, "precision": math.nan, "recall": math.nan,
            "specificity": 1.0, "accuracy": 1.0, "volume_difference_mm3": 0.0,
            "relative_volume_difference": math.nan, "hd95_mm": math.nan, "assd_mm": math.nan,
            "hd_mm": math.nan, "nsd": math.nan, "hd95_penalised_mm": math.nan,
            "hd_penalised_mm": math.nan, "assd_penalised_mm": math.nan}),
        (NOTHING, BLOCK, "missed", {
            "dice": 0.0, "iou": 0.0, "precision": math.nan, "recall": 0.0,
            "specificity": 1.0, "volume_difference_mm3": -2.0 * BLOCK.sum(),
            "relative_volume_difference": -1.0, "hd95_mm": math.inf, "assd_mm": math.inf,
            "hd_mm": math.inf, "nsd": 0.0, "hd95_penalised_mm": DIAGONAL,
            "hd_penalised_mm": DIAGONAL, "assd_penalised_mm": DIAGONAL}),
        (BLOCK, NOTHING, "spurious", {
            "dice": 0.0, "iou": 0.0, "precision": 0.0, "recall": math.nan,
            "specificity": (BLOCK.size - BLOCK.sum()) / BLOCK.size,
            "volume_difference_mm3": 2.0 * BLOCK.sum(),
            "relative_volume_difference": math.nan, "hd95_mm": math.inf, "assd_mm": math.inf,
            "hd_mm": math.inf, "nsd": 0.0, "hd95_penalised_mm": DIAGONAL,
            "hd_penalised_mm": DIAGONAL, "assd_penalised_mm": DIAGONAL}),
        (BLOCK, BLOCK, "both", {
            "dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0, "specificity": 1.0,
            "volume_difference_mm3": 0.0, "relative_volume_difference": 0.0, "hd95_mm": 0.0,
            "assd_mm": 0.0, "hd_mm": 0.0, "nsd": 1.0, "hd95_penalised_mm": 0.0,
            "hd_penalised_mm": 0.0, "assd_penalised_mm": 0.0}),
    ],
)  # fmt: skip
def test_empty_masks(predicted, reference, outcome, expected):
    scores = measure_mask(predicted, reference, (2.0, 1.0, 1.0))
    assert scores.outcome == outcome
    wrong = {m: scores.values[m] for m in expected if not same(scores.values[m], expected[m])}
    assert wrong == {}
    undefined = {m for m, value in scores.values.items() if not math.isfinite(value)}
    assert scores.undefined == dict.fromkeys(undefined, outcome)


def test_a_mask_that_fills_the_image_has_no_specificity():
    full = np.ones((3, 4, 5), bool)
    scores = measure_mask(full, full, (1.0, 1.0, 1.0))
    assert math.isnan(scores.values["specificity"])
    assert scores.undefined == {"specificity": "no background"}
    assert (scores.values["nsd"], scores.values["accuracy"]) == (1.0, 1.0)


# ---- voxels that are not looked at


def test_voxels_outside_valid_change_nothing():
    valid = ~ellipsoids((7, 9, 8), ((3, 4, 1), (3, 3, 3)))
    predicted, reference = noise(1), noise(2)
    other = np.where(valid, predicted, noise(3))
    scores = measure_mask(predicted, reference, (2.0, 1.0, 1.0), valid=valid).values
    assert measure_mask(other, reference, (2.0, 1.0, 1.0), valid=valid).values == scores
    assert sum(scores[m] for m in ("tp", "fp", "fn", "tn")) == valid.sum()
    inside = predicted[valid], reference[valid]
    assert scores["dice"] == pytest.approx(1 - distance.dice(*inside))


def test_no_surface_is_made_where_looking_ends():
    """Both masks are cut by the same ignored half; the cut itself is no agreement."""
    reference = ellipsoids((10, 12, 20), ((5, 6, 9.5), (4, 5, 8)))
    predicted = np.roll(reference, 2, axis=1)
    valid = np.ones(reference.shape, bool)
    valid[..., 10:] = False
    scores = measure_mask(predicted, reference, (1.0, 1.0, 1.0), valid=valid, tolerance_mm=0)
    # cut before the ignored half, the cut is a surface that agrees exactly
    cut = measure_mask(
        predicted[..., :10], reference[..., :10], (1.0, 1.0, 1.0), tolerance_mm=0
    ).values
    assert scores.values["nsd"] < cut["nsd"] - 0.1
    assert scores.values["hd_mm"] == cut["hd_mm"] == 2.0


@pytest.mark.parametrize("reference", [BLOCK, NOTHING])
def test_surfaces_may_be_left_undefined_with_a_reason(reference):
    spacing = (1.0, 1.0, 1.0)
    plain = measure_mask(BLOCK, reference, spacing, surfaces=False)
    whole = measure_mask(BLOCK, reference, spacing)
    found = without_surfaces(plain, "for a reason")
    assert found.values.keys() == whole.values.keys()
    surfaces = whole.values.keys() - plain.values.keys()
    assert {m for m, reason in found.undefined.items() if reason == "for a reason"} == surfaces
    assert all(math.isnan(found.values[m]) for m in surfaces)
    assert found.undefined.items() - dict.fromkeys(surfaces, "for a reason").items() == set(
        plain.undefined.items()
    )


def test_all_valid_is_as_without():
    masks, spacing = (noise(5), noise(6)), (1.5, 1.0, 1.0)
    valid = np.ones(masks[0].shape, bool)
    assert measure_mask(*masks, spacing, valid=valid) == measure_mask(*masks, spacing)


def test_a_surface_may_lie_wholly_out_of_sight():
    predicted, reference = NOTHING.copy(), BLOCK.copy()
    predicted[3, 4, 5] = True
    valid = NOTHING.copy()
    valid[2:5, 3:6, 4:7] = True  # inside the block: its surface is not seen
    assert reference[valid].all()
    scores = measure_mask(predicted, reference, (1.0, 1.0, 1.0), valid=valid)
    assert scores.undefined["hd95_mm"] == scores.undefined["nsd"] == "no surface"
    assert scores.undefined["specificity"] == "no background"
    assert scores.values["dice"] == pytest.approx(2 / 28)


# ---- label maps


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_label_maps_are_measured_like_their_masks(dtype):
    values = np.asarray([0, 1, 3, 7], dtype)
    rng = np.random.default_rng(0)
    predicted, reference = (values[rng.integers(0, 4, (6, 7, 8))] for _ in range(2))
    predicted[predicted == 7] = 0
    labels = {"one": (1,), "three": (3,), "seven": (7,), "region": (3, 1), "none": (200,)}
    scores = measure_labels(predicted, reference, labels, (2.0, 1.0, 1.0))
    for name, parts in labels.items():
        masks = np.isin(predicted, parts), np.isin(reference, parts)
        alone = measure_mask(*masks, (2.0, 1.0, 1.0))
        assert repr(scores[name]) == repr(alone)
    assert [scores[name].outcome for name in labels] == ["both", "both", "missed", "both", "absent"]


def test_classes_outside_the_crop_count_as_background():
    classes = np.full((4, 5, 6), -1, np.int16)
    classes[1:3, 1:4, 2:5] = 1
    scores = measure_labels(classes, np.maximum(classes, 0), {"a": (1,)}, (1.0, 1.0, 1.0))
    assert (scores["a"].values["dice"], scores["a"].values["tn"]) == (1.0, 120 - 18)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": np.zeros((2, 3, 4), bool)}, "one shape"),
        ({"predicted": NOTHING[0], "reference": NOTHING[0]}, "three axes"),
        ({"predicted": NOTHING.astype(float)}, "must be integer"),
        ({"spacing_mm": (1.0, 1.0)}, "three positive lengths"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "three positive lengths"),
        ({"tolerance_mm": math.inf}, "tolerance"),
        ({"tolerance_mm": -1.0}, "tolerance"),
        ({"dimensions": 2}, "cannot be measured in 2D"),
        ({"valid": np.ones((1, 1, 1), bool)}, "one shape"),
    ],
)
def test_misuse(change, message):
    arguments = {"predicted": BLOCK, "reference": NOTHING, "spacing_mm": (1.0, 1.0, 1.0)}
    with pytest.raises(ValueError, match=message):
        measure_mask(**(arguments | change))


def test_background_is_no_structure():
    maps = BLOCK.astype(np.uint8), NOTHING.astype(np.uint8)
    with pytest.raises(ValueError, match="above 0"):
        measure_labels(*maps, {"background": (0,)}, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="integer"):
        measure_labels(maps[0], maps[1].astype(float), {"a": (1,)}, (1.0, 1.0, 1.0))

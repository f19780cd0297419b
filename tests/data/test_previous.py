import dataclasses
import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.data.augment import Sample, SampleParameters, _moved, apply
from autoseg.data.batches import (
    Batches,
    BatchSpec,
    packed,
    read_step,
    unpacked,
    validation_batches,
)
from autoseg.data.prepare import prepare
from autoseg.data.previous import one_hot, prepare_previous
from autoseg.data.spoiling import spoilt
from autoseg.data.store import StoredCases, open_case, read_previous
from autoseg.data.writing import write_case
from autoseg.documents.dataset import Case
from autoseg.documents.labels import LabelSet
from autoseg.documents.plan import Augmentation, ChannelScale, Preparation, Previous, Sampling
from autoseg.errors import AutosegError

LIVELY = Augmentation(
    rotation_degrees=(30, 30, 30), mirror_axes=(0, 1, 2), rotation_p=0.7, scale_p=0.5, noise_p=1,
    blur_p=0.5, brightness_p=1, contrast_p=0.5, low_resolution_p=0.5, gamma_p=1,
)  # fmt: skip
SPEC = BatchSpec(
    patch_vox=(8, 10, 12),
    batch_size=3,
    sampling=Sampling(foreground_share=1 / 3, class_weights=(0.5, 0.5), class_first=False),
    augmentation=LIVELY,
    seed=17,
    masked_channels=(1,),
    previous_classes=2,
)
FLAT = dataclasses.replace(
    SPEC,
    patch_vox=(10, 12),
    augmentation=LIVELY.model_copy(update={"mirror_axes": (0, 1), "rotation_degrees": (180.0,)}),
)
SLICED = dataclasses.replace(
    SPEC,
    augmentation=LIVELY.model_copy(update={"dummy_2d": True, "rotation_degrees": (180.0,)}),
)
SPOILING = Previous(
    configuration="3d_lowres", morphology_p=1, morphology_class_p=1, morphology_radius_vox=(1, 3),
    drop_p=1, drop_class_p=1, drop_share=0.6,
)  # fmt: skip


def blobs(shape, classes=3, seed=0, sigma=2.0):
    """A label map of smooth blobs that touch, border included."""
    rng = np.random.default_rng(seed)
    fields = [
        ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for _ in range(classes + 1)
    ]
    return np.argmax(fields, axis=0).astype(np.int8)


@pytest.fixture
def cascade(tmp_path, phantom):
    """Three cases whose earlier stage saw exactly the labels, none of which touches a border."""
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    for k, shape in enumerate([(9, 14, 12), (8, 20, 15), (12, 11, 16)]):
        folder = tmp_path / f"case_{k}"
        folder.mkdir()
        image, labels = phantom(shape, channels=2, seed=k)
        write_case(folder, image, labels, {"case": folder.name})
        np.save(earlier / f"case_{k}.npy", labels.astype(np.int8 if k else np.int16))
    return StoredCases(tmp_path, ["case_0", "case_1", "case_2"], previous=earlier)


def test_one_hot_has_a_channel_for_each_class_but_background():
    labels = np.array([[0, 1, 3], [3, 2, 0]], np.int8)
    found = one_hot(labels, 4)
    assert (found.dtype, found.shape) == (np.float32, (3, 2, 3))
    np.testing.assert_array_equal(found, np.eye(4, dtype=np.float32)[labels].transpose(2, 0, 1)[1:])


@pytest.mark.parametrize("spec", [SPEC, FLAT, SLICED], ids=["3d", "2d", "dummy_2d"])
def test_the_earlier_label_map_moves_exactly_as_the_labels_do(cascade, spec):
    moved = 0
    for images, labels in Batches(cascade, spec, 0, 8):
        assert images.shape == (3, 4, *spec.patch_vox)
        assert images.dtype == torch.float32
        for c in (1, 2):
            assert torch.equal(images[:, 1 + c], (labels == c).float())
            moved += int((labels == c).sum())
    assert moved > 500


def test_a_group_of_earlier_label_maps_equals_each_alone(cascade):
    """A card moves samples with boxes of many sizes at once."""
    raw = [s for step in range(6) for s in read_step(cascade, SPEC, step)]
    raw = [s for s in raw if s.parameters.matrix is not None]
    samples = unpacked(packed(raw))
    drawn = [s.parameters for s in raw]
    assert len({s.labels.shape for s in samples}) > 5
    _, together = _moved(samples, drawn, SPEC.patch_vox, cascade=True)
    for i, (sample, p) in enumerate(zip(samples, drawn, strict=True)):
        _, alone = _moved([sample], [p], SPEC.patch_vox, cascade=True)
        assert together[i].shape == (2, *SPEC.patch_vox)
        assert (together[i] != alone[0]).float().mean() < 0.002
        assert torch.equal(together[i, 0].clamp(min=0), together[i, 1].clamp(min=0))


@pytest.mark.parametrize("spec", [SPEC, FLAT])
def test_image_channels_and_labels_do_not_know_of_the_cascade(cascade, spec):
    plain = dataclasses.replace(spec, previous_classes=0)
    spoiling = dataclasses.replace(spec, spoiling=SPOILING)
    changed = 0
    for (images, labels), (a, la), (b, lb) in zip(
        Batches(cascade, plain, 0, 6),
        Batches(cascade, spec, 0, 6),
        Batches(cascade, spoiling, 0, 6),
        strict=True,
    ):
        assert images.shape[1] == 2
        assert torch.equal(a[:, :2], images)
        assert torch.equal(b[:, :2], images)
        assert torch.equal(la, labels)
        assert torch.equal(lb, labels)
        assert set(b[:, 2:].unique().tolist()) <= {0.0, 1.0}
        assert float(b[:, 2:].sum(1).max()) == 1.0
        changed += int((a[:, 2:] != b[:, 2:]).sum())
    assert changed > 100


def test_what_is_read_is_spoilt_as_the_sample_is_told(cascade):
    spoiling = dataclasses.replace(SLICED, spoiling=SPOILING)
    plain, other = read_step(cascade, SLICED, 4), read_step(cascade, spoiling, 4)
    for j, (one, two) in enumerate(zip(plain, other, strict=True)):
        expected = spoilt(one.previous, 2, SPOILING, 17, 4, j, planar=True)
        np.testing.assert_array_equal(two.previous, expected)
        np.testing.assert_array_equal(two.labels, one.labels)


def test_validation_shows_the_earlier_label_map_as_it_is(cascade):
    spoiling = dataclasses.replace(SPEC, spoiling=SPOILING)
    for images, labels in validation_batches(cascade, spoiling, 4):
        np.testing.assert_array_equal(
            images[:, 2:].numpy(), np.stack([one_hot(case, 3) for case in labels.numpy()])
        )


@pytest.mark.parametrize(("workers", "here"), [(2, False), (0, True)])
def test_batches_of_a_cascade_are_the_same_whoever_makes_them(cascade, workers, here):
    spec = dataclasses.replace(SPEC, spoiling=SPOILING)
    expected = list(Batches(cascade, spec, 0, 5))
    with Batches(cascade, spec, 0, 5, workers, augment_here=here) as batches:
        for (images, labels), (images2, labels2) in zip(batches, expected, strict=True):
            assert torch.equal(images, images2)
            assert torch.equal(labels, labels2)


def test_samples_come_apart_as_they_were_packed(cascade):
    samples = read_step(cascade, SPEC, 0)
    for one, two in zip(samples, unpacked(packed(samples)), strict=True):
        np.testing.assert_array_equal(one.previous, two.previous.numpy())
        np.testing.assert_array_equal(one.labels, two.labels.numpy())
        np.testing.assert_array_equal(one.image, two.image.numpy())
    plain = read_step(cascade, dataclasses.replace(SPEC, previous_classes=0), 0)
    assert [s.previous for s in unpacked(packed(plain))] == [None] * 3


def test_background_and_outside_are_one_to_the_earlier_label_map():
    """Between a class of weight 0.4, background and the outside of 0.3 each, background wins."""
    previous = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], np.int8)
    wide, patch = np.pad(previous.astype(float), 4), (30, 30)
    sample = Sample(
        torch.zeros(1, 2, 4), torch.zeros(2, 4, dtype=torch.int8), (14, 13),
        torch.from_numpy(previous),
    )  # fmt: skip
    fine = SampleParameters(matrix=((0.1, 0.03), (-0.03, 0.15)))
    images, _ = apply([sample], [fine], patch, previous_classes=1)
    offset = np.array([14.5, 14.5]) - np.array(fine.matrix) @ [14.5, 14.5] - [14, 13] + 4
    share = ndimage.affine_transform(
        wide, np.array(fine.matrix), offset, output_shape=patch, order=1
    )
    clear = np.abs(share - 0.5) > 1e-4
    np.testing.assert_array_equal(images[0, 1].numpy()[clear], share[clear] > 0.5)
    assert ((share > 0.3) & (share < 0.5)).sum() > 30


def test_a_patch_of_the_earlier_label_map_is_background_beyond_the_border(cascade):
    case = cascade[1]
    padded = np.pad(np.asarray(case.previous), 30)
    for lower, size in [((-2, 3, -1), (4, 9, 3)), ((6, 18, 12), (5, 5, 5)), ((1, 0, 2), (1, 4, 4))]:
        box = tuple(slice(a + 30, a + 30 + n) for a, n in zip(lower, size, strict=True))
        found = read_previous(case, lower, size, 2)
        np.testing.assert_array_equal(found, padded[box])
        assert found.flags.writeable


def test_the_earlier_label_maps_are_held_and_travel_like_the_cases(cascade):
    size = cascade.bytes_on_disk()
    maps = sum(f.stat().st_size for f in cascade.previous.iterdir())
    assert size == StoredCases(cascade.folder, cascade.ids).bytes_on_disk() + maps
    assert isinstance(cascade[1].previous, np.memmap)
    held = StoredCases(cascade.folder, cascade.ids, size, cascade.previous)
    assert not isinstance(held[1].previous, np.memmap)
    there = pickle.loads(pickle.dumps(cascade))
    np.testing.assert_array_equal(there[2].previous, cascade[2].previous)
    assert StoredCases(cascade.folder, cascade.ids)[0].previous is None


def test_missing_and_damaged_earlier_label_maps_are_named(cascade):
    file = cascade.previous / "case_1.npy"
    whole, again = file.read_bytes(), r"case_1 is damaged.*the same command makes it again"
    file.unlink()
    with pytest.raises(AutosegError, match=r"of 1 cases are missing.*case_1; train the earlier"):
        StoredCases(cascade.folder, cascade.ids, previous=cascade.previous)
    file.write_bytes(whole[:-20])
    with pytest.raises(AutosegError, match=again):
        open_case(cascade.folder / "case_1", previous=file)
    np.save(file, np.zeros((8, 20, 14), np.int8))
    with pytest.raises(AutosegError, match=again):
        list(Batches(cascade, SPEC, 0, 9))
    np.save(file, np.zeros((8, 20, 15), np.float32))
    with pytest.raises(AutosegError, match=again):
        open_case(cascade.folder / "case_1", previous=file)
    for strange in (3, -1):
        np.save(file, np.full((8, 20, 15), strange, np.int8))
        with pytest.raises(AutosegError, match=rf"holds class {strange}, .*{again[-30:]}"):
            list(Batches(cascade, SPEC, 0, 9))


def test_a_cascade_without_its_earlier_stage_is_a_wrong_use(cascade):
    without = StoredCases(cascade.folder, cascade.ids)
    with pytest.raises(ValueError, match="opened with `previous`"):
        list(Batches(without, SPEC, 0, 1))
    bare = Sample(torch.zeros(1, 2, 2), torch.zeros(2, 2, dtype=torch.int8), (0, 0))
    with pytest.raises(ValueError, match="lacks the label map"):
        apply([bare], [SampleParameters()], (2, 2), previous_classes=1)


def scan(folder, image, labels, spacing_mm):
    """A case of NIfTI files whose arrays, arranged to SAR, are those given."""
    affine = np.diag([*reversed(spacing_mm), 1.0])
    for name, array in (("scan_0000", image), ("scan", labels)):
        nib.save(nib.Nifti1Image(array.T, affine), folder / f"{name}.nii.gz")
    return Case(id="scan", images=(folder / "scan_0000.nii.gz",), label=folder / "scan.nii.gz")


def preparation(spacing_mm, crop="nonzero"):
    return Preparation(
        axes="SAR",
        spacing_mm=spacing_mm,
        crop=crop,
        channels=(ChannelScale(scheme="zscore"),),
        labels=LabelSet(names=("background", "a", "b", "c"), values=(0, 1, 2, 3)),
    )


@pytest.mark.parametrize(
    ("spacing_mm", "target_mm"),
    [((2.0, 1.0, 1.0), (1.3, 0.8, 1.4)), ((5.0, 1.0, 1.0), (4.0, 0.8, 0.8)), ((2, 1, 1),) * 2],
)
@pytest.mark.parametrize("crop", ["nonzero", "none"])
def test_an_earlier_label_map_is_prepared_as_a_label_file_is(tmp_path, spacing_mm, target_mm, crop):
    rng = np.random.default_rng(1)
    image = np.zeros((12, 18, 16), np.float32)
    image[1:11, 2:17, 3:] = rng.uniform(1, 2, (10, 15, 13))  # all that is left after the crop
    labels = np.zeros(image.shape, np.uint8)
    labels[1:11, 2:17, 3:] = blobs((10, 15, 13))
    plan = preparation(target_mm, crop)
    made = prepare(scan(tmp_path, image, labels, spacing_mm), plan)
    found = prepare_previous(labels.astype(np.int32), made.info, plan)
    assert (found.dtype, found.shape) == (np.int8, made.image.shape[1:])
    np.testing.assert_array_equal(found, np.maximum(made.labels, 0))
    assert set(np.unique(found).tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="scan: "):
        prepare_previous(labels[1:], made.info, plan)


def test_what_is_outside_the_mask_is_background_to_the_earlier_stage(tmp_path):
    rng = np.random.default_rng(2)
    labels = blobs((12, 18, 16)).astype(np.uint8)
    image = np.where(labels == 0, 0, rng.uniform(1, 2, labels.shape)).astype(np.float32)
    plan = preparation((1.3, 0.8, 1.4))
    made = prepare(scan(tmp_path, image, labels, (2.0, 1.0, 1.0)), plan)
    assert (made.labels == -1).mean() > 0.1
    # background and outside compete where both meet a class; nowhere else do the two differ
    found = prepare_previous(labels, made.info, plan)
    assert (found != np.maximum(made.labels, 0)).mean() < 0.01


def test_many_classes_are_kept_in_wider_numbers():
    plan = preparation((1.0, 1.0, 1.0))
    names = ("background", *(f"c{i}" for i in range(1, 201)))
    wide = plan.model_copy(update={"labels": LabelSet(names=names, values=tuple(range(201)))})
    labels = np.zeros((4, 5, 6), np.int16)
    labels[1:3, 1:3, 1:3] = 200
    info = {
        "case": "x", "arranged_shape": [4, 5, 6], "box": [[0, 4], [0, 5], [1, 6]],
        "cropped_shape": [4, 5, 5], "spacing_mm": [1.0] * 3, "target_mm": [1.0] * 3,
    }  # fmt: skip
    found = prepare_previous(labels, info, wide)
    np.testing.assert_array_equal(found, labels[:, :, 1:])
    assert found.dtype == np.int16

"""Resampling with torch against the numpy one, which is checked against skimage."""

import numpy as np
import pytest
import torch

from autoseg.image import resample
from autoseg.infer.resample import OnDevice, resample_image, resampling_on
from tests.card import FULL

ISO = (1.0, 1.0, 1.0)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no card is here"))]  # fmt: skip


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(20, 33, 17), (9, 12, 140), (90, 9, 14), (10, 20, 14)])
def test_all_axes_together(shape: tuple[int, int, int], order: int, device: str) -> None:
    image = noise((2, 10, 20, 14))
    grids = {"spacing_mm": ISO, "target_mm": ISO, "order": order}
    out = resample_image(torch.from_numpy(image).to(device), shape, **grids)
    assert (out.dtype, out.device.type) == (torch.float32, device)
    expected = resample.resample_image(image, shape, **grids)
    np.testing.assert_allclose(out.cpu().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order_z", [0, 1, 3])
@pytest.mark.parametrize("coarse", [5, 6, 17])
def test_a_coarse_axis_goes_apart(axis: int, order_z: int, coarse: int, device: str) -> None:
    spacing = tuple(5.0 if a == axis else 1.0 for a in range(3))
    shape = tuple(coarse if a == axis else n for a, n in enumerate((15, 9, 13)))
    image = noise((1, *(6 if a == axis else n for a, n in enumerate((10, 12, 11)))))
    grids = {"spacing_mm": spacing, "target_mm": ISO, "order_z": order_z}
    out = resample_image(torch.from_numpy(image).to(device), shape, **grids)
    expected = resample.resample_image(image, shape, **grids)
    np.testing.assert_allclose(out.cpu().numpy(), expected, atol=1e-5)
    together = resample_image(
        torch.from_numpy(image).to(device), shape, **grids, separate_z_above=None
    )
    expected = resample.resample_image(image, shape, **grids, separate_z_above=None)
    np.testing.assert_allclose(together.cpu().numpy(), expected, atol=1e-5)


def test_the_precision_of_networks_is_left_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        resample_image(torch.ones(1, 2, 2, 2), (3, 3, 3), spacing_mm=ISO, target_mm=ISO)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_arrays_are_sent_and_fetched_and_a_full_card_leaves_it_to_the_processor(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise((2, 6, 7, 8))
    grids = {"spacing_mm": ISO, "target_mm": ISO}
    expected = resample.resample_image(image, (9, 5, 8), **grids)
    on_device = OnDevice(torch.device("cpu"))
    np.testing.assert_allclose(on_device(image[..., ::1], (9, 5, 8), **grids), expected, atol=1e-5)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr("autoseg.infer.resample.resample_image", full)
    np.testing.assert_array_equal(on_device(image, (9, 5, 8), **grids), expected)


def test_three_spatial_axes_are_asked_for() -> None:
    with pytest.raises(ValueError, match="three spatial axes"):
        resample_image(torch.ones(1, 2, 2), (3, 3), spacing_mm=ISO, target_mm=ISO)


def test_scans_are_resampled_where_the_networks_run() -> None:
    assert resampling_on(torch.device("cpu")) is resample.resample_image
    on_card = resampling_on(torch.device("cuda"))
    assert isinstance(on_card, OnDevice) and on_card.device.type == "cuda"

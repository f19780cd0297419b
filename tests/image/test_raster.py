"""Pictures of every mode against Pillow and tifffile."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image

from autoseg.errors import BadData
from autoseg.image.raster import read_raster, read_raster_header, write_raster

KINDS = {".png": "png", ".jpg": "jpeg", ".bmp": "bmp", ".tif": "tiff"}


def noise(*shape: int, top: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def read(path: Path, *, labels: bool = False) -> tuple[np.ndarray, list[str]]:
    """Pixels (C, H, W) of one page, checked against the header read alone."""
    kind = KINDS[path.suffix]
    array, header = read_raster(path, "a", kind, labels=labels)
    assert not header.grid.placed
    assert header.grid.spacing_mm == (1.0, 1.0, 1.0)
    assert header.grid.shape == array.shape[1:]
    if not labels:
        alone = read_raster_header(path, "a", kind)
        assert (alone.grid, alone.channels, alone.dtype) == (
            header.grid,
            header.channels,
            header.dtype,
        )
    return array[..., 0].transpose(0, 2, 1), [problem.what for problem in header.problems]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_grey_and_colour(tmp_path: Path, suffix: str) -> None:
    grey, colour = noise(5, 7), noise(5, 7, 3)
    Image.fromarray(grey).save(tmp_path / f"grey{suffix}")
    Image.fromarray(colour).save(tmp_path / f"colour{suffix}")
    np.testing.assert_array_equal(read(tmp_path / f"grey{suffix}")[0], grey[None])
    np.testing.assert_array_equal(read(tmp_path / f"colour{suffix}")[0], colour.transpose(2, 0, 1))


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(16, 24, 3)).save(path)
    np.testing.assert_array_equal(read(path)[0], np.asarray(Image.open(path)).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path: Path, suffix: str) -> None:
    grey = noise(5, 7, top=65536, dtype="uint16")
    Image.fromarray(grey).save(tmp_path / f"a{suffix}")
    pixels = read(tmp_path / f"a{suffix}")[0]
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, grey[None])


def test_sixteen_bit_colour_png_is_not_cut_to_eight(tmp_path: Path) -> None:
    colour = noise(5, 7, 3, top=65536, dtype="uint16")
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / "a.png"))
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0], colour.transpose(2, 0, 1))


def test_sixteen_bit_transparency_is_dropped_in_colour_and_refused_in_grey(tmp_path: Path) -> None:
    pixels = noise(5, 7, 4, top=65536, dtype="uint16")
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    found, problems = read(tmp_path / "a.png")
    np.testing.assert_array_equal(found, pixels[..., :-1].transpose(2, 0, 1))
    assert problems == ["transparency is dropped"]
    grey = sitk.GetImageFromArray(pixels[..., 2:], isVector=True)
    sitk.WriteImage(grey, str(tmp_path / "b.png"))
    for attempt in (read_raster, read_raster_header):
        with pytest.raises(BadData, match="16-bit grey with transparency"):
            attempt(tmp_path / "b.png", "b", "png")


def test_a_palette_is_colour_in_an_image_and_numbers_in_a_label_map(tmp_path: Path) -> None:
    numbers = noise(5, 7, top=3)
    picture = Image.fromarray(numbers)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for suffix in (".png", ".bmp", ".tif"):
        picture.save(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read(tmp_path / f"a{suffix}", labels=True)[0], numbers[None])
        colours = np.stack([255 * (numbers == 1), 255 * (numbers == 2), 0 * numbers])
        np.testing.assert_array_equal(read(tmp_path / f"a{suffix}")[0], colours)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparency_is_dropped_and_told_if_it_hid_something(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    pixels = noise(5, 7, len(mode))
    pixels[..., -1] = 255
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels, mode=None).save(path)
    found, problems = read(path)
    np.testing.assert_array_equal(found, pixels[..., :-1].transpose(2, 0, 1))
    assert problems == []
    pixels[0, 0, -1] = 0
    Image.fromarray(pixels, mode=None).save(path)
    assert read(path)[1] == ["transparency is dropped"]


def test_black_and_white_is_zero_and_one(tmp_path: Path) -> None:
    mask = noise(5, 7, top=2).astype(bool)
    for suffix in (".png", ".tif"):
        Image.fromarray(mask).save(tmp_path / f"a{suffix}")
        pixels = read(tmp_path / f"a{suffix}")[0]
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels[0], mask)


def test_packed_tiffs_are_read_without_further_codecs(tmp_path: Path) -> None:
    pages = noise(3, 9, 8)
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        path = tmp_path / f"{packing}.tif"
        first, *rest = (Image.fromarray(page) for page in pages)
        first.save(path, save_all=True, append_images=rest, compression=packing)
        array, header = read_raster(path, "a", "tiff")
        np.testing.assert_array_equal(array[0].transpose(2, 1, 0), pages)
        assert read_raster_header(path, "a", "tiff").grid == header.grid


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_tiffs_of_both_layouts(tmp_path: Path, planar: str) -> None:
    colour = noise(5, 7, 3)
    stored = colour if planar == "contig" else colour.transpose(2, 0, 1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ascontiguousarray(stored), photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read(path)[0], colour.transpose(2, 0, 1))


def test_a_tiff_of_more_than_a_volume_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(2, 3, 5, 7), photometric="minisblack")
    with pytest.raises(BadData, match="4D"):
        read_raster(tmp_path / "a.tif", "a", "tiff")
    with pytest.raises(BadData, match="4D"):
        read_raster_header(tmp_path / "a.tif", "a", "tiff")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_comes_back(tmp_path: Path, suffix: str, channels: int) -> None:
    array = noise(channels, 7, 5, 1)
    write_raster(tmp_path / f"a{suffix}", array)
    np.testing.assert_array_equal(
        read_raster(tmp_path / f"a{suffix}", "a", KINDS[suffix])[0], array
    )

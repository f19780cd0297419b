"""Reads tiny files of every format with single bytes changed, cut short or drawn anew.

    python damaged.py FOLDER SHARE SEED

A program of its own, within limits of time and memory: a decoder that dies takes it along. Prints a
line of JSON for each file before and after it is read, so that the last line names what was fatal.
"""

import gzip
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image

from autoseg.errors import AutosegError
from autoseg.image.reading import read_header, read_image, read_labels

HEADER = 400
LIMIT_BYTES, LIMIT_S = 3 << 30, 10


def peak_kb() -> int:
    """The most memory of this process; what ru_maxrss tells begins with that of its parent."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(
        int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")
    )


def originals(folder: Path) -> list[Path]:
    """A tiny file of each format and packing."""
    folder.mkdir()
    volume = np.arange(6 * 7 * 5, dtype=np.int16).reshape(6, 7, 5)
    nib.save(nib.Nifti1Image(volume, np.diag([1, 2, 3, 1])), folder / "a.nii")
    nib.save(nib.Nifti2Image(volume, np.diag([1, 2, 3, 1])), folder / "b.nii")
    (folder / "c.nii.gz").write_bytes(gzip.compress((folder / "a.nii").read_bytes(), mtime=0))
    image = sitk.GetImageFromArray(volume)
    for name, packed in (("d.nrrd", True), ("e.nrrd", False), ("f.mha", True), ("g.mha", False),
                         ("h.gipl", False)):  # fmt: skip
        sitk.WriteImage(image, str(folder / name), packed)
    picture = (np.arange(9 * 11 * 3) % 251).astype(np.uint8).reshape(9, 11, 3)
    Image.fromarray(picture).save(folder / "i.png")
    Image.fromarray(picture[..., 0]).convert("P").save(folder / "j.png")
    sitk.WriteImage(sitk.GetImageFromArray(picture.astype(np.uint16), True), str(folder / "k.png"))
    Image.fromarray(picture).save(folder / "l.jpg")
    Image.fromarray(picture).save(folder / "m.bmp")
    Image.fromarray(picture[..., 0]).save(folder / "n.bmp")
    for name, packing in (("o.tif", None), ("p.tif", "zlib")):
        tifffile.imwrite(folder / name, volume, compression=packing, photometric="minisblack")
    for name, packing in (("q.tif", "tiff_lzw"), ("r.tif", "jpeg"), ("s.tif", "packbits")):
        Image.fromarray(picture).save(folder / name, compression=packing)
    tifffile.imwrite(folder / "t.tif", volume, imagej=True)
    tifffile.imwrite(folder / "u.tif", np.zeros((64, 64), np.uint8), tile=(16, 16), bigtiff=True)
    return sorted(folder.iterdir())


def changes(raw: bytes, share: float, draw: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for at in range(min(len(raw), HEADER)):
        for value in (0, 1, 127, 255, raw[at] ^ 1, raw[at] ^ 128):
            if draw.random() < share and value != raw[at]:
                yield f"byte {at} is {value}", raw[:at] + bytes([value]) + raw[at + 1 :]
    for at in range(0, len(raw), 7):
        if draw.random() < share:
            yield f"{at} bytes are left", raw[:at]
    for number in range(40):
        if draw.random() < share:
            other = bytearray(raw)
            for at in draw.integers(0, len(raw), 12):
                other[at] = draw.integers(256)
            yield f"12 bytes drawn, number {number}", bytes(other)


def main(folder: Path, share: float, seed: int) -> None:
    files = originals(folder / "whole")
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    for path in files:
        assert len(read_image([path], "stored:ijk")[0].array) >= 1, path
    draw = np.random.default_rng(seed)
    for path in files:
        for what, raw in changes(path.read_bytes(), share, draw):
            changed = folder / path.name
            changed.write_bytes(raw)
            print(json.dumps({"file": path.name, "change": what}), flush=True)
            signal.alarm(LIMIT_S)
            begun, out = time.monotonic(), "read"
            try:
                for read in (read_header, read_labels, read_image):
                    given = [changed] if read is read_image else changed
                    read(*((given,) if read is read_header else (given, "stored:ijk")))
            except AutosegError as error:
                out = "refused"
                assert "\n" in str(error)
            except Exception as error:  # what the test is about
                out = f"{type(error).__name__}: {error}"
            signal.alarm(0)
            took = round(time.monotonic() - begun, 2)
            peak = peak_kb()
            print(json.dumps({"out": out, "s": took, "peak_kb": peak}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

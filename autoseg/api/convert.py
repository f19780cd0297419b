"""Data of others, brought to where datasets lie: layouts, lists, tables, stacks, DICOM, arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.api.job import processes, several

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from autoseg.report.datasets import ConvertedDataset


def convert(
    kind: str,
    source: Path,
    dataset: str,
    *,
    channels: tuple[str, ...] = (),
    labels: str = "",
    values: str = "",
    images: str = "",
    masks: str = "",
    spacing: str = "",
    series: tuple[str, ...] = (),
    paint_over: bool = False,
    accept_uneven: bool = False,
    link: str = "",
    overwrite: bool = False,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> ConvertedDataset:
    """Make a dataset of data in the layout of others; repeated, it goes on with what is new.

    Kinds: msd (a task of the decathlon), nnunet_v1 (TaskNNN_Name), folders (images/ and labels/,
    paired by name), csv (a table of files), monai (a JSON datalist), bids, stack (folders of
    pictures, each a slice), dicom (series with RTSTRUCT or DICOM-SEG). All files are looked at
    first, and everything wrong is told at once; the dataset appears when its last case is there.

    kind: msd, nnunet_v1, folders, csv, monai, bids, stack or dicom
    source: the folder, or the file of a table or list
    dataset: number and name of the new one, as 12_Liver
    channels: names, as CT; with the endings of their files, as T1=_t1 FLAIR=_flair
    labels: names and values, as background=0,tumour=1, or a table (CSV) of them; of dicom the
        structures, as tumour=GTV*,lung=Lung L+Lung R
    values: what values of the source become, as 0=0,255=1 or 0-127=0,128-255=1
    images: folder of the images (default: images); of a monai list what its paths begin at
    masks: folder of the labels (default: labels)
    spacing: of a stack, in mm between slices, rows and columns, as 5,0.7,0.7
    series: of dicom, which series each channel is
    paint_over: where structures overlap, later labels lie over earlier ones
    accept_uneven: of dicom, take slices with gaps as evenly spaced
    link: hard or soft, to link files that need no change (default: copy)
    overwrite: make a converted dataset again whose source changed
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.flow.datasets import Asked, convert_source
    from autoseg.report.datasets import ConvertedDataset
    from autoseg.workspace import open_workspace

    asked = Asked(
        several(channels), labels, values, images, masks, spacing, several(series), paint_over,
        accept_uneven, link, overwrite, processes(workers),
    )  # fmt: skip
    made = convert_source(open_workspace(root), kind, source, dataset, asked)
    return ConvertedDataset(made.converted)


def write_case(
    dataset: str,
    case: str,
    image: ArrayLike,
    labels: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
    test: bool = False,
    overwrite: bool = False,
    root: Path | None = None,
) -> list[Path]:
    """Write arrays as a case of a dataset (12_Liver), there or new; the files. Not a verb.

    A volume is (X, Y, Z) or (C, X, Y, Z) and has an `affine` to RAS+ mm or `spacing_mm` (x, y, z); a
    picture is (H, W) or (C, H, W) and has neither (more in `autoseg.interop.conversion.arrays`).
    dataset.json is yours to write. Raises AutosegError for what cannot be a case, and for one that
    is there already unless `overwrite` is set.
    """
    from autoseg.documents.conversion import dataset_name
    from autoseg.interop.conversion.arrays import Arrays
    from autoseg.interop.conversion.arrays import write_case as write
    from autoseg.workspace import open_workspace

    folder = open_workspace(root).places(dataset_name(dataset)).raw
    given = Arrays(image, labels, affine, spacing_mm)
    return write(folder, case, given, test=test, overwrite=overwrite)

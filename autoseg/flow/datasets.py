"""From what others give to a dataset in raw: public archives, folders on disk, layouts of others."""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.documents.conversion import (
    Converted,
    Draft,
    Link,
    dataset_name,
    labels_of,
    ranges_of,
    with_background,
)
from autoseg.documents.dataset import read_dataset
from autoseg.documents.spec import DatasetSpec
from autoseg.errors import AutosegError, nearest
from autoseg.files import Lock, explaining, read_json, sha256_json, write_json
from autoseg.interop.conversion import layout_folders, layout_lists, layout_spec, layout_table
from autoseg.interop.conversion.archives import unpack
from autoseg.interop.conversion.convert import MARK, Manner, convert, refuse_others
from autoseg.interop.dicom import convert as dicom
from autoseg.pool import cores
from autoseg.stages.fetch import archive_name, fetch
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)

FETCHED = "fetched.json"
FILES = ("channels", "labels", "values", "link", "overwrite")
OPTIONS: dict[str, tuple[str, ...]] = {
    "msd": FILES,
    "nnunet_v1": FILES,
    "folders": (*FILES, "images", "masks", "paint_over"),
    "csv": FILES,
    "monai": (*FILES, "images"),
    "bids": FILES,
    "stack": (*FILES, "images", "masks", "spacing"),
    "dicom": ("channels", "labels", "series", "paint_over", "accept_uneven"),
}
"""The kinds of source, and which options mean something for each."""


@dataclass(frozen=True)
class Asked:
    """The options of `autoseg convert` as they were given; what was not is empty."""

    channels: tuple[str, ...] = ()
    labels: str = ""
    values: str = ""
    images: str = ""
    masks: str = ""
    spacing: str = ""
    series: tuple[str, ...] = ()
    paint_over: bool = False
    accept_uneven: bool = False
    link: str = ""
    overwrite: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A converted dataset, how many files each pattern took, and the counts that were expected."""

    converted: Converted
    patterns: Mapping[str, int] | None = None
    expected: tuple[int, int | None] | None = None


def fetch_dataset(
    workspace: Workspace, spec: DatasetSpec, to: Path | None, *, keep: bool, asked: Asked
) -> Outcome:
    """A public dataset in raw, fetched, verified, unpacked and converted; what stands is left.

    Raises AutosegError, with the way to get the data, where nobody may fetch them freely.
    """
    refuse_access(spec)
    folder = _place(workspace, spec.name)
    if _is_fetched(folder, spec, asked):
        return Outcome(_standing(folder))
    downloads = to or workspace.models.parent / "downloads"
    with Lock(downloads / f".{spec.name}.lock", f"the download of {spec.name}"):
        # another process may have made it meanwhile
        if _is_fetched(folder, spec, asked):
            return Outcome(_standing(folder))
        return _fetched(folder, spec, downloads / spec.name, keep=keep, asked=asked)


def _is_fetched(folder: Path, spec: DatasetSpec, asked: Asked) -> bool:
    """Whether the dataset was made by this specification. Raises AutosegError for other data there."""
    mark = folder / MARK / FETCHED
    if mark.exists() and read_json(mark) == _origin(spec) and not asked.overwrite:
        return True
    refuse_others(folder)
    if folder.exists() and not asked.overwrite:
        raise AutosegError(
            f"{folder} was made from other data, or by another specification; repeat the command "
            "with --overwrite to fetch and make it again"
        )
    return False


def _fetched(
    folder: Path, spec: DatasetSpec, downloads: Path, *, keep: bool, asked: Asked
) -> Outcome:
    log.info("%s: licence %s; cite %s", spec.name, spec.licence or "unknown", spec.citation)
    unpacked = []
    for archive in spec.archives:
        path = fetch(archive, downloads)
        unpacked.append(unpack(path, downloads / f"unpacked_{archive_name(archive)}"))
    # on one disk the files of the dataset are those that were unpacked, not copies of them
    outcome = _by_patterns(folder, spec, unpacked, replace(asked, link=asked.link or "hard"))
    write_json(folder / MARK / FETCHED, _origin(spec))
    if not keep:
        shutil.rmtree(downloads, ignore_errors=True)
    return outcome


def refuse_access(spec: DatasetSpec) -> None:
    """Raises AutosegError, saying where the data are and how to get them, if they cannot be fetched."""
    if spec.archives and spec.source_layout is not None:
        return
    way = f" ({spec.how_to_get.rstrip('.')})" if spec.how_to_get else ""
    reason = (
        f"access is by {spec.access}{way}"
        if spec.access != "free"
        else f"access is free{way}, but not as an archive at a fixed address"
    )
    then = (
        f"then `autoseg datasets convert {spec.name} FOLDER`"
        if spec.source_layout is not None
        else f"then prepare them: {spec.preparation}"
    )
    raise AutosegError(
        f"{spec.name} cannot be fetched: {reason}; licence: {spec.licence or 'unknown'}. Get the "
        f"data from {spec.landing_page}, {then}"
    )


def _origin(spec: DatasetSpec) -> dict[str, str]:
    """What stands for the archives and the conversion of a specification."""
    dumped = spec.dump()
    keys = ("archives", "source_layout", "labels", "regions_class_order", "channels", "file_ending")
    return {"made_from": sha256_json({key: dumped.get(key) for key in keys})}


def _standing(folder: Path) -> Converted:
    dataset, _ = read_dataset(folder)
    labels = read_json(folder / "dataset.json")["labels"]
    return Converted(
        folder, len(dataset.cases), len(dataset.test_cases), 0, dataset.channels, labels
    )


def convert_public(workspace: Workspace, spec: DatasetSpec, source: Path, asked: Asked) -> Outcome:
    """A public dataset that a person got by hand, unpacked or as an archive, in raw.

    Raises AutosegError.
    """
    folder = _place(workspace, spec.name)
    if not source.is_file() or spec.source_layout is None:
        return _by_patterns(folder, spec, [source], asked)
    if asked.link == "soft":
        raise AutosegError(
            "--link soft would lead to what is removed again; unpack the archive first"
        )
    refuse_others(folder)
    scratch = workspace.models.parent / "downloads" / spec.name / f"unpacked_{source.name}"
    unpack(source, scratch)
    outcome = _by_patterns(folder, spec, [scratch], replace(asked, link="hard"))
    shutil.rmtree(scratch, ignore_errors=True)
    return outcome


def _by_patterns(folder: Path, spec: DatasetSpec, sources: list[Path], asked: Asked) -> Outcome:
    matched = layout_spec.draft_of(spec, sources)
    for pattern, count in matched.counts.items():
        log.info("files that match %s: %d", pattern, count)
    if matched.strangers:
        log.info("files that match no pattern and are left out: %d", matched.strangers)
    made = convert(matched.draft, folder, _manner(asked, pack=layout_spec.packs(spec)))
    return Outcome(made, matched.counts, (spec.cases, spec.test_cases))


def convert_source(
    workspace: Workspace, kind: str, source: Path, name: str, asked: Asked
) -> Outcome:
    """A source in the layout of others as the dataset `name` (12_Liver) in raw. Raises AutosegError."""
    if kind not in OPTIONS:
        raise AutosegError(f"there is no kind of source {kind!r}" + nearest(kind, list(OPTIONS)))
    _refuse_options(kind, asked)
    if not source.exists():
        raise AutosegError(f"{source} does not exist; name the folder or file that holds the data")
    folder = _place(workspace, dataset_name(name))
    if kind == "dicom":
        return Outcome(_dicom(source, folder, asked))
    return Outcome(convert(_draft(kind, source, asked), folder, _manner(asked, pack=False)))


def _refuse_options(kind: str, asked: Asked) -> None:
    """Raises AutosegError for options that mean nothing for this kind of source."""
    given = {key for key, value in asdict(asked).items() if value and key != "workers"}
    strange = sorted(given - set(OPTIONS[kind]))
    if strange:
        known = ", ".join("--" + name.replace("_", "-") for name in OPTIONS[kind])
        option = "--" + strange[0].replace("_", "-")
        raise AutosegError(f"{option} means nothing for {kind}; it takes {known}")
    if kind == "stack" and not asked.spacing:
        raise AutosegError(
            "pictures do not say how far apart their slices are; give --spacing in mm: between "
            "slices, rows and columns, as --spacing 5,0.7,0.7"
        )


def _draft(kind: str, source: Path, asked: Asked) -> Draft:
    """What the source would become, by its layout and by what the person says of it."""
    wanted, labels = _wanted(asked)
    if kind == "msd":
        draft = layout_lists.msd(source)
    elif kind == "nnunet_v1":
        draft = layout_lists.nnunet_v1(source)
    elif kind == "monai":
        draft = layout_lists.monai(source, Path(asked.images) if asked.images else None)
    elif kind == "csv":
        draft = layout_table.table(source, wanted)
    elif kind == "bids":
        draft = layout_folders.bids(source, wanted)
    elif kind == "stack":
        draft = layout_folders.stack(source, wanted, _spacing(asked.spacing))
    else:
        draft = layout_folders.folders(source, wanted)
    if wanted.channels:
        draft = replace(draft, channels=wanted.channels)
    if labels:
        draft = replace(draft, labels=with_background(labels))
    return replace(draft, ranges=ranges_of(asked.values)) if asked.values else draft


def _wanted(asked: Asked) -> tuple[layout_folders.Wanted, dict[str, Any]]:
    """The options as the layouts take them, and the labels. Raises AutosegError."""
    pairs = [entry.partition("=") for entry in asked.channels]
    endings = tuple(ending for _, sign, ending in pairs if sign)
    if endings and len(endings) != len(pairs):
        raise AutosegError(
            "--channels: give each channel its ending, as T1=_t1 FLAIR=_flair, or none"
        )
    labels: dict[str, Any] = {}
    if asked.labels:
        table = Path(asked.labels)
        is_table = table.suffix.lower() in (".csv", ".tsv")
        labels = dict(layout_table.label_table(table)) if is_table else labels_of(asked.labels)
    single = tuple((name, v) for name, v in labels.items() if isinstance(v, int) and v)
    wanted = layout_folders.Wanted(
        tuple(name for name, _, _ in pairs), endings, single,
        asked.images or "images", asked.masks or "labels",
    )  # fmt: skip
    return wanted, labels


def _spacing(text: str) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(0 < mm < 1000 for mm in numbers):
        raise AutosegError(
            f"--spacing: {text!r} is none; give three numbers in mm, between slices, rows and "
            "columns, as 5,0.7,0.7"
        )
    return numbers


def _dicom(source: Path, folder: Path, asked: Asked) -> Converted:
    """The scans and structures of a folder or zip of DICOM. Raises AutosegError."""
    if folder.exists() and not (folder / dicom.KEPT).is_dir():
        raise AutosegError(
            f"{folder} exists and was not made from DICOM; choose another name or move it away"
        )
    # beside the dataset until the last case is there
    target = folder if folder.exists() else folder.with_name(f".converting-{folder.name}")
    made = dicom.convert_dicom(
        source,
        target,
        labels=_structures(asked.labels) if asked.labels else None,
        series=asked.series,
        channel_names=asked.channels,
        paint_over=asked.paint_over,
        accept_uneven=asked.accept_uneven,
        workers=asked.workers or cores(),
    )
    if target != folder:
        with explaining(folder, "write"):
            os.replace(target, folder)
    values = {"background": 0, **made.labels}
    channels = tuple(read_json(folder / "dataset.json")["channel_names"].values())
    return Converted(
        folder, len(made.labelled), len(made.unlabelled), made.redone, channels, values,
        made.problems,
    )  # fmt: skip


def _structures(text: str) -> dict[str, list[str]]:
    """Label -> names of structures of `tumour=GTV*,lung=Lung L+Lung R`. Raises AutosegError."""
    labels: dict[str, list[str]] = {}
    for entry in text.split(","):
        name, sign, patterns = entry.partition("=")
        if not sign or not name.strip() or not patterns.strip() or name.strip() in labels:
            raise AutosegError(
                f"--labels: {entry.strip()!r} is no label; write which structures make it, as "
                "tumour=GTV*,liver=Liver (several with +: lung=Lung L+Lung R)"
            )
        labels[name.strip()] = [part.strip() for part in patterns.split("+")]
    return labels


def _manner(asked: Asked, *, pack: bool) -> Manner:
    """How files are brought. Raises AutosegError for an unknown kind of link."""
    kinds: dict[str, Link] = {"": "", "hard": "hard", "soft": "soft"}
    if asked.link not in kinds:
        raise AutosegError(f"--link: there is no {asked.link!r}; choose hard or soft")
    if asked.link and os.name != "posix":
        log.warning("links are not made on this system; files are copied")
        return Manner("", asked.overwrite, asked.paint_over, pack, asked.workers or cores())
    return Manner(
        kinds[asked.link], asked.overwrite, asked.paint_over, pack, asked.workers or cores()
    )


def _place(workspace: Workspace, name: str) -> Path:
    """Where a new dataset lies. Raises AutosegError where its number is another's."""
    number = int(name[7:].split("_")[0])
    others = [
        other
        for other in workspace.datasets()
        if int(other[7:].split("_")[0]) == number and other != name
    ]
    if others:
        raise AutosegError(f"{others[0]} has the number {number} already; choose another one")
    return workspace.places(name).raw

"""A folder of labelled scans in nnU-Net v2's layout, as it is: dataset.json, imagesTr, labelsTr.

Only names and paths live here; no pixel is read. Files are listed once; everything wrong with the
names comes back as a list of Problems.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.errors import AutosegError, Problem
from autoseg.files import explaining, named, printable, read_json

SUFFIXES = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl",
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff",
)  # fmt: skip
COMPANIONS = (".raw", ".zraw", ".json", ".txt", ".md")
"""Files that lie beside images without being one: detached data, notes."""

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Case:
    """One patient's scan: its image files, in the order of the channels, and its label file."""

    id: str
    images: tuple[Path, ...]
    label: Path | None

    def __post_init__(self) -> None:
        """Raises AutosegError for an id that cannot be the name of a file: paths are made with it."""
        named(self.id, "the case id")


@dataclass(frozen=True)
class Dataset:
    """What dataset.json and the folders beside it say."""

    folder: Path
    channels: tuple[str, ...]
    labels: LabelSet
    file_ending: str
    cases: tuple[Case, ...]
    test_cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """`Dataset004_Hippocampus`."""
        return self.folder.name

    def case(self, case_id: str) -> Case:
        """The training or test case of this id. Raises AutosegError."""
        for case in (*self.cases, *self.test_cases):
            if case.id == case_id:
                return case
        raise AutosegError(f"{self.name} has no case {case_id!r}")


def suffix_of(name: str) -> str:
    """The known suffix that a file name ends with, in its own spelling, else an empty string."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[len(name) - len(suffix) :]
    return ""


def read_dataset(folder: Path) -> tuple[Dataset, list[Problem]]:
    """The dataset in `folder` and what is wrong with its names.

    Raises AutosegError if dataset.json itself cannot be used.
    """
    document = read_json(folder / "dataset.json")
    if not isinstance(document, dict):
        raise AutosegError(f"{folder / 'dataset.json'} holds no JSON object")
    channels = _channels(document, folder)
    if "labels" not in document:
        raise AutosegError(f'{folder / "dataset.json"} has no "labels"; declare names and values')
    labels = parse_labels(document["labels"], document.get("regions_class_order"))
    ending = str(document.get("file_ending", ".nii.gz"))
    problems: list[Problem] = []
    if "dataset" in document:
        cases = tuple(_mapped(document["dataset"], folder))
    else:
        images, found = find_images(folder / "imagesTr")
        problems += found
        cases = tuple(
            Case(case, files, label)
            for case, files, label in _with_labels(images, folder / "labelsTr", ending, problems)
        )
    test: tuple[Case, ...] = ()
    if (folder / "imagesTs").is_dir():
        images, found = find_images(folder / "imagesTs")
        problems += found
        has_labels = (folder / "labelsTs").is_dir()
        test = tuple(
            Case(case, files, label)
            for case, files, label in _with_labels(
                images, folder / "labelsTs", ending, [] if not has_labels else problems
            )
        )
    if not cases:
        raise AutosegError(
            f"{folder / 'imagesTr'} holds no image; expected files such as CASE_0000{ending}"
        )
    problems += _missing_channels(cases + test, len(channels))
    dataset = Dataset(
        folder=folder,
        channels=channels,
        labels=labels,
        file_ending=ending,
        cases=tuple(sorted(cases, key=lambda c: c.id)),
        test_cases=tuple(sorted(test, key=lambda c: c.id)),
    )
    return dataset, problems


def _channels(document: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    names = document.get("channel_names", document.get("modality"))
    if isinstance(names, Mapping) and names:
        try:
            ordered = sorted(names.items(), key=lambda pair: int(pair[0]))
        except ValueError:
            raise AutosegError(
                f'{folder / "dataset.json"}: the keys of "channel_names" must be "0", "1", …; '
                f"found {list(names)}"
            ) from None
        return tuple(str(name) for _, name in ordered)
    if isinstance(names, list) and names:
        return tuple(str(name) for name in names)
    raise AutosegError(
        f'{folder / "dataset.json"} has no "channel_names"; say what each channel is, as '
        '{"0": "CT"} or {"0": "T1", "1": "FLAIR"}'
    )


def find_images(folder: Path) -> tuple[dict[str, tuple[Path, ...]], list[Problem]]:
    """Case id -> image files in channel order, for a folder of CASE_0000.ext files.

    Raises AutosegError if the folder is missing or unreadable.
    """
    with explaining(folder, "list"):
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    found: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    problems = []
    for name in names:
        if name.startswith(".") or name.lower().endswith(COMPANIONS):
            continue
        suffix = suffix_of(name)
        if not suffix:
            problems.append(
                Problem(
                    name,
                    "a file has an unknown extension",
                    f"{folder / name}",
                    f"convert it to one of {' '.join(SUFFIXES)}, or move it out of the folder",
                )
            )
            continue
        match = CHANNEL.match(name[: -len(suffix)])
        if match is None:
            problems.append(
                Problem(
                    name,
                    "an image's name has no channel number",
                    f"{folder / name}",
                    f"rename it to CASE_0000{suffix} (0000 is the first channel)",
                )
            )
            continue
        try:
            named(match["case"], "the case id")
        except AutosegError as error:
            fix = f"rename {printable(name)}, and its label with it"
            problems.append(Problem(printable(name), "an id cannot be used", str(error), fix))
            continue
        found[match["case"]][int(match["channel"])].append(folder / name)
    images = {}
    for case, by_channel in found.items():
        twice = [files for files in by_channel.values() if len(files) > 1]
        if twice:
            problems.append(
                Problem(
                    case,
                    "two files claim to be the same channel of one case",
                    " and ".join(str(p.name) for p in twice[0]),
                    "keep one of them, or give the second patient another id",
                )
            )
        numbers = sorted(by_channel)
        if numbers != list(range(len(numbers))):
            lost = sorted(set(range(numbers[-1] + 1)) - set(numbers))
            problems.append(
                Problem(
                    case,
                    "a case lacks a channel",
                    f"found channels {numbers}, no {', '.join(f'_{n:04d}' for n in lost)}",
                    "add the missing file, or remove the case",
                )
            )
        images[case] = tuple(by_channel[n][0] for n in numbers)
    return images, problems


def _with_labels(
    images: Mapping[str, tuple[Path, ...]], folder: Path, ending: str, problems: list[Problem]
) -> Iterator[tuple[str, tuple[Path, ...], Path | None]]:
    found: dict[str, list[Path]] = defaultdict(list)
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            suffix = suffix_of(entry.name)
            if suffix and not entry.name.startswith("."):
                found[entry.name[: -len(suffix)]].append(entry)
    for case, files in images.items():
        labels = found.pop(case, [])
        preferred = [path for path in labels if path.name.endswith(ending)] or labels
        if len(preferred) > 1:
            problems.append(
                Problem(
                    case,
                    "two label files claim to be one case",
                    " and ".join(p.name for p in preferred),
                    "keep one of them",
                )
            )
        if not preferred:
            problems.append(
                Problem(
                    case,
                    "an image has no label",
                    f"{folder / (case + ending)} does not exist",
                    "add the label file, or move the image to imagesTs",
                )
            )
        yield case, files, preferred[0] if preferred else None
    for case, extra in found.items():
        problems.append(
            Problem(
                case,
                "a label has no image",
                f"{extra[0]}",
                "add the image, or remove the label",
                fatal=False,
            )
        )


def _mapped(mapping: Any, folder: Path) -> Iterator[Case]:
    """Cases of dataset.json's optional `dataset` entry: id -> {images: […], label: …}."""
    if not isinstance(mapping, Mapping):
        raise AutosegError(f'{folder / "dataset.json"}: "dataset" must map ids to files')

    def place(text: str) -> Path:
        path = Path(os.path.expandvars(text))
        return path if path.is_absolute() else (folder / path)

    for case, entry in mapping.items():
        if not isinstance(entry, Mapping) or not entry.get("images"):
            raise AutosegError(
                f'{folder / "dataset.json"}: "dataset" entry {case!r} needs "images" and "label"'
            )
        images = tuple(place(str(p)) for p in entry["images"])
        label = place(str(entry["label"])) if entry.get("label") else None
        for path in (*images, *((label,) if label else ())):
            if not path.is_file():
                raise AutosegError(
                    f"{folder / 'dataset.json'}: case {case!r} names {path}, which does not exist"
                )
        yield Case(str(case), images, label)


def _missing_channels(cases: tuple[Case, ...], channels: int) -> Iterator[Problem]:
    """One file may hold several channels (RGB), so only one-file cases of plain volumes can tell."""
    for case in cases:
        if 1 < len(case.images) < channels or len(case.images) > channels:
            yield Problem(
                case.id,
                "a case has the wrong number of channels",
                f"{len(case.images)} files for {channels} channels",
                "add the missing channel files, or mend channel_names in dataset.json",
            )

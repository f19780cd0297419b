"""A folder of labelled scans in nnU-Net v2's layout, as it is: dataset.json, imagesTr, labelsTr.

Only names and paths live here; no pixel is read. Files are listed once; everything wrong with the
names comes back as a list of Problems.
"""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.errors import AutosegError, Problem, raise_fatal
from autoseg.files import explaining, named, printable, read_json

SUFFIXES = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl",
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff",
)  # fmt: skip
COMPANIONS = (".raw", ".zraw", ".json", ".txt", ".md")
"""Files that lie beside images without being one: detached data, notes."""

STRANGERS = ("csv", "db", "doc", "docx", "htm", "html", "ini", "lnk", "log", "pdf", "tsv", "url",
             "xls", "xlsx", "xml")  # fmt: skip
"""Endings of files that lie beside scans and are never one, whatever else their name says."""

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$", re.DOTALL)


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
        cases = tuple(_mapped(document["dataset"], folder, problems))
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
                images, folder / "labelsTs", ending, problems if has_labels else [], needed=False
            )
        )
    if not cases:
        raise_fatal(problems)
        raise AutosegError(
            f"{folder / 'imagesTr'} holds no image; expected files such as CASE_0000{ending}"
        )
    problems += _missing_channels(cases + test, len(channels))
    problems += _counted_otherwise(document, folder, len(cases))
    problems += _in_both(cases, test)
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
        names = sorted(os.listdir(folder))
    found: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    problems = []
    for name in names:
        if name.startswith(".") or name.lower().endswith(COMPANIONS):
            continue
        suffix = suffix_of(name)
        if not suffix:
            if (folder / name).is_file():
                problems.append(_unknown(folder, name))
            continue
        fault = not_a_file(folder / name)
        if fault is not None:
            problems.append(fault)
            continue
        match = CHANNEL.match(name[: -len(suffix)])
        if match is None:
            problems.append(
                Problem(
                    shown(name),
                    "an image's name has no channel number",
                    str(folder / shown(name)),
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


def shown(name: str) -> str:
    """A file's name as it is, or on one line and in quotes where it could write over a terminal."""
    return name if name.isprintable() else printable(name)


def not_a_file(path: Path) -> Problem | None:
    """What is wrong with a path that is named as an image and is no regular file; it is not opened."""
    what = "a file that is named as an image is none"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        found = "leads to a file that is not there" if path.is_symlink() else "does not exist"
        what, fix = "a file is missing", "restore the file or the share that held it"
    except OSError as error:
        found = f"cannot be opened: {error.strerror or error}"
        fix = "restore the file, or its rights"
    else:
        if stat.S_ISREG(mode):
            return None
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        found, fix = f"is a {kinds.get(stat.S_IFMT(mode), 'device')}", "move it out of the folder"
    return Problem(shown(path.name), what, f"{path.parent / shown(path.name)} {found}", fix)


def _unknown(folder: Path, name: str) -> Problem:
    """What is said of a file of unknown kind; it stops nothing unless it is named as a scan is."""
    plain, _, ending = name.rpartition(".")
    scan = bool(CHANNEL.match(plain)) and ending.lower() not in STRANGERS
    return Problem(
        shown(name),
        "a file has an unknown extension",
        str(folder / shown(name)),
        f"convert it to one of {' '.join(SUFFIXES)}, or move it out of the folder",
        fatal=scan,
    )


def _label_files(folder: Path, problems: list[Problem]) -> dict[str, list[Path]]:
    """Case id -> the files named as its label map; what is none of these is told."""
    found: dict[str, list[Path]] = defaultdict(list)
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for name in names:
        suffix = suffix_of(name)
        if not suffix or name.startswith("."):
            continue
        fault = not_a_file(folder / name)
        if fault is None:
            found[name[: -len(suffix)]].append(folder / name)
        else:
            problems.append(fault)
    return found


def _with_labels(
    images: Mapping[str, tuple[Path, ...]],
    folder: Path,
    ending: str,
    problems: list[Problem],
    *,
    needed: bool = True,
) -> Iterator[tuple[str, tuple[Path, ...], Path | None]]:
    """Each case with its label map; `needed` says whether one without is at fault or only told."""
    spoilt = {problem.case for problem in problems}
    found = _label_files(folder, problems)
    # the near names of labels, in which another program has put something behind the id
    near = {case: [f for name in (case, f"{case}_0000", f"{case}.seg", f"{case}_seg",
                                  f"{case}-label") for f in found.get(name, [])]
            for case in images}  # fmt: skip
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
            problems.append(_no_label(case, folder, ending, near[case], needed=needed))
            for path in near[case]:
                found.pop(path.name[: -len(suffix_of(path.name))], None)
        yield case, files, preferred[0] if preferred else None
    for case, extra in found.items():
        if any(name.startswith(f"{case}_") for name in spoilt):
            continue  # of its image something was said already
        problems.append(
            Problem(
                shown(case),
                "a label has no image",
                str(folder / shown(extra[0].name)),
                "add the image, or remove the label",
                fatal=False,
            )
        )


def _no_label(case: str, folder: Path, ending: str, near: list[Path], *, needed: bool) -> Problem:
    wanted = f"{case}{ending}"
    if near:
        found = f"{folder} holds {near[0].name}, not {wanted}"
        same = near[0].name.lower().endswith(ending) and ".seg." not in near[0].name
        fix = (
            "rename the label files to the case id alone"
            if same
            else (f"save the label maps as CASE{ending}, one number a voxel and without layers")
        )
        return Problem(case, "a label is named otherwise", found, fix, fatal=needed)
    found = f"{folder / wanted} does not exist"
    if needed:
        fix = "add the label file, or move the image to imagesTs"
        return Problem(case, "an image has no label", found, fix)
    fix = "nothing, or add the label: without it this scan is not scored"
    return Problem(case, "a test scan has no label", found, fix, fatal=False)


def _counted_otherwise(document: Mapping[str, Any], folder: Path, cases: int) -> Iterator[Problem]:
    """A warning where dataset.json counts other cases than there are: a copy may be incomplete."""
    counted = document.get("numTraining")
    if isinstance(counted, int) and not isinstance(counted, bool) and counted != cases:
        yield Problem(
            folder.name,
            "dataset.json counts other cases than there are",
            f'"numTraining" is {counted}, {cases} training cases are there',
            "copy the missing cases, or correct the number",
            fatal=False,
        )


def _in_both(cases: tuple[Case, ...], test: tuple[Case, ...]) -> Iterator[Problem]:
    """A warning for an id of a training and a test case: results of one would be taken for the other's."""
    for case in sorted({c.id for c in cases} & {c.id for c in test}):
        yield Problem(
            case,
            "a training and a test case have one id",
            "it is in imagesTr and in imagesTs",
            "give one of them another id, or remove the copy",
            fatal=False,
        )


def _mapped(mapping: Any, folder: Path, problems: list[Problem]) -> Iterator[Case]:
    """Cases of dataset.json's optional `dataset` entry: id -> {images: […], label: …}.

    Files that cannot be used, and cases without a label, are told.
    """
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
        given = entry["images"]
        images = tuple(place(str(p)) for p in ([given] if isinstance(given, str) else given))
        label = place(str(entry["label"])) if entry.get("label") else None
        found = Case(str(case), images, label)
        faults = [f for path in (*images, *([label] if label else [])) if (f := not_a_file(path))]
        problems += [replace(fault, case=found.id) for fault in faults]
        if label is None:
            problems.append(
                Problem(
                    found.id,
                    "an image has no label",
                    f'its entry under "dataset" in {folder / "dataset.json"} names none',
                    'name its "label", or take the entry out',
                )
            )
        if not faults:
            yield found


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

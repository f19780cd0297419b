"""Which files make which case, where a JSON file lists them: MSD, MONAI, and nnU-Net's first version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.documents.conversion import Draft, Source, SourceCase, with_background
from autoseg.errors import AutosegError, Problem
from autoseg.files import read_json
from autoseg.interop.conversion.layout_files import (
    Paired,
    by_channel,
    case_name,
    folders_in,
    images_in,
    is_there,
    require_folder,
    stem_of,
    told_apart,
    without_image,
)

LISTS = ("training", "validation", "test", "testing")
KNOWN = ("name", "description", "reference", "licence", "release")


def msd(folder: Path) -> Draft:
    """A task of the Medical Segmentation Decathlon: dataset.json beside imagesTr, labelsTr, imagesTs.

    Files of the Mac (`._…`) are passed over; every file must lie in the folder. Raises AutosegError.
    """
    path = _described(folder)
    document = _object(path)
    if "training" not in document:
        raise AutosegError(
            f'{path} has no "training", the list of cases of the decathlon; a dataset of nnU-Net v2 '
            "needs no conversion, only its place in raw/; for nnU-Net v1's use the kind nnunet_v1, "
            "for other lists monai"
        )
    return _draft(document, path, folder, inside=True)


def monai(path: Path, base: Path | None = None) -> Draft:
    """A datalist as MONAI reads it: training, validation and test with image (one or several), label.

    Paths are those below `base`, by default the list's own folder. What is in `validation`, and the
    number of a fold, stands in cases.csv. Raises AutosegError.
    """
    if path.is_dir():
        found = [p for p in sorted(path.glob("*.json")) if not p.name.startswith(".")]
        if len(found) != 1:
            raise AutosegError(f"{path} holds {len(found)} JSON files; name the list itself")
        path = found[0]
    return _draft(_object(path), path, base or path.parent, inside=False)


def _described(folder: Path) -> Path:
    """The dataset.json of a folder. Raises AutosegError, naming folders inside it that have one."""
    require_folder(folder)
    path = folder / "dataset.json"
    if not path.exists():
        inner = [p.name for p in folders_in(folder) if (p / path.name).exists()]
        there = f"; name {folder / inner[0]}" if inner else "; name the folder of the task"
        raise AutosegError(f"{folder} holds no dataset.json{there}")
    return path


def _object(path: Path) -> Mapping[str, Any]:
    document = read_json(path)
    if not isinstance(document, Mapping):
        raise AutosegError(
            f'{path} holds no JSON object; write one with the cases under "training" and "test"'
        )
    return document


def _draft(document: Mapping[str, Any], path: Path, base: Path, *, inside: bool) -> Draft:
    problems: list[Problem] = []
    cases: list[SourceCase] = []
    facts = "validation" in document or _folds(document)
    for part in LISTS:
        entries = document.get(part, [])
        if not isinstance(entries, list):
            raise AutosegError(f'{path}: "{part}" is no list')
        for entry in entries:
            case = _case(entry, part, base, inside, problems, facts=facts)
            if case is not None:
                cases.append(case)
    known = {key: document[key] for key in KNOWN if isinstance(document.get(key), str)}
    return Draft(
        cases=tuple(told_apart(cases)),
        channels=_channels(document, path),
        labels=_labels(document.get("labels"), path),
        facts=known,
        problems=tuple(problems),
    )


def _folds(document: Mapping[str, Any]) -> bool:
    entries = document.get("training", [])
    return isinstance(entries, list) and any(
        isinstance(e, Mapping) and "fold" in e for e in entries
    )


def _case(
    entry: Any, part: str, base: Path, inside: bool, problems: list[Problem], *, facts: bool
) -> SourceCase | None:
    """The case of an entry; None, with a problem, for what cannot be one."""
    test = part in ("test", "testing")
    given = entry if isinstance(entry, Mapping) else {"image": entry}
    images = given.get("image")
    texts: list[Any] = images if isinstance(images, list) else [images]
    label: Any = given.get("label")
    if not texts or not all(isinstance(t, str) and t for t in texts):
        found, fix = f"an entry of {part}: {str(entry)[:80]}", 'give it an "image"'
        problems.append(Problem("?", "an entry of the list names no image", found, fix))
        return None
    if any(Path(t).name.startswith("._") for t in texts):
        return None
    paths = [base / t for t in texts]
    name = case_name(paths)
    if label is not None and not isinstance(label, str):
        found, fix = f"its label is {str(label)[:60]}", "name one file as the label"
        problems.append(Problem(name, "a label is not one file", found, fix))
        return None
    files = [*paths, *([base / label] if label else [])]
    for path in files:
        problems += _place(name, path, base, inside)
    if label is None and not test:
        found = f'it is in "{part}" without a "label"; it has {", ".join(map(str, given))}'
        fix = "add its label, or list it under test"
        problems.append(Problem(name, "an image has no label", found, fix))
    cells = {}
    if facts:
        cells = {"split": part}
        if "fold" in given:
            cells["fold"] = str(given["fold"])
    source = Source((base / label,)) if label else None
    return SourceCase(name, tuple(Source((p,)) for p in paths), source, test=test, facts=cells)


def _place(case: str, path: Path, base: Path, inside: bool) -> list[Problem]:
    """What is wrong with where a file lies."""
    if not is_there(path):
        fix = "restore the file, or take the entry out of the list"
        return [Problem(case, "a listed file is missing", str(path)[:300], fix)]
    if inside and not path.resolve().is_relative_to(base.resolve()):
        fix = "the files of a task lie in its folder; look who made this list"
        return [Problem(case, "a listed file lies outside of the folder", str(path), fix)]
    return []


def _channels(document: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The names of the channels; empty where the list does not say."""
    found = document.get("modality", document.get("channel_names"))
    if isinstance(found, Mapping) and found:
        if not all(str(key).isdecimal() for key in found):
            raise AutosegError(f"{path}: the keys of the channels must be 0, 1, …: {list(found)}")
        return tuple(str(found[key]) for key in sorted(found, key=int))
    if isinstance(found, list):
        return tuple(str(name) for name in found)
    return (found,) if isinstance(found, str) and found else ()


def _labels(found: Any, path: Path) -> dict[str, Any] | None:
    """The labels as ours, name -> value; None where the list does not say."""
    if not isinstance(found, Mapping) or not found:
        return None
    turned: dict[str, Any] = {}
    for key, value in found.items():
        name, number = (value, key) if isinstance(value, str) else (key, value)
        if isinstance(number, str):
            number = int(number) if number.strip().isdecimal() else number
        if name in turned:
            raise AutosegError(f"{path}: two labels are called {name!r}; rename one of them")
        turned[name] = number
    return with_background(turned)


def nnunet_v1(folder: Path) -> Draft:
    """A TaskNNN_Name of nnU-Net's first version: CASE_0000.nii.gz, and its dataset.json."""
    path = _described(folder)
    document = _object(path)
    problems: list[Problem] = []
    cases: list[SourceCase] = []
    channels = _channels(document, path)
    for part, test in (("Tr", False), ("Ts", True)):
        images = folder / f"images{part}"
        if test and not images.is_dir():
            continue
        paired = by_channel(images_in(images), ())
        labels = _label_files(folder / f"labels{part}")
        problems += [*paired.problems, *paired.complete(len(channels) or 1)]
        problems += without_image(labels, paired.images)
        for case in sorted(paired.images):
            cases.append(_numbered(case, paired, labels.get(case), test, problems))
    known = {key: document[key] for key in KNOWN if isinstance(document.get(key), str)}
    return Draft(
        cases=tuple(cases),
        channels=channels,
        labels=_labels(document.get("labels"), path),
        facts=known,
        problems=tuple(problems),
    )


def _label_files(folder: Path) -> dict[str, Path]:
    return {stem_of(path): path for path in images_in(folder)} if folder.is_dir() else {}


def _numbered(
    case: str, paired: Paired, label: Path | None, test: bool, problems: list[Problem]
) -> SourceCase:
    if label is None and not test:
        fix = "add the label file, or move the image to imagesTs"
        problems.append(Problem(case, "an image has no label", f"labelsTr holds no {case}", fix))
    files = paired.images[case]
    source = Source((label,)) if label is not None else None
    return SourceCase(case, tuple(Source((files[n],)) for n in sorted(files)), source, test=test)

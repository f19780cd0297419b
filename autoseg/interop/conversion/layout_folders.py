"""Which files make which case, where folders and names tell: images beside labels, BIDS, stacks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from autoseg.documents.conversion import Draft, Source, SourceCase
from autoseg.errors import AutosegError, Problem, nearest, raise_fatal
from autoseg.interop.conversion.layout_files import (
    PICTURES,
    by_channel,
    every_file,
    folders_in,
    images_in,
    number_key,
    require_folder,
    stem_of,
    twice,
    without_image,
    without_label,
)

ENDINGS = ("_mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt", "_dseg")
"""What names of labels may have and those of images have not."""
SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?:_.*)?_([A-Za-z0-9]+)$")


@dataclass(frozen=True)
class Wanted:
    """What a person says of a source: names of channels, their endings, names of labels.

    `labels` are names and values in their order, for masks a structure; empty: as they are found.
    """

    channels: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    labels: tuple[tuple[str, int], ...] = ()
    images: str = "images"
    masks: str = "labels"


def folders(source: Path, wanted: Wanted) -> Draft:
    """A folder with one of images and one of labels, paired by their names.

    Labels are one file a case, or a mask a structure: `labels/CASE/liver.nii.gz` or
    `labels/liver/CASE.nii.gz`. Raises AutosegError.
    """
    require_folder(source)
    images, labels = _inside(source, wanted.images), _inside(source, wanted.masks)
    paired = by_channel(images_in(images), wanted.endings)
    if not paired.images:
        raise_fatal(paired.problems)
        raise AutosegError(f"{images} holds no image")
    problems = [*paired.problems]
    channels = len(wanted.endings) or 1 + max(max(have) for have in paired.images.values())
    problems += paired.complete(channels)
    found, values = _labels(labels, list(paired.images), wanted, problems)
    if found and not set(found) & set(paired.images):
        raise AutosegError(
            f"no label of {labels} is called as an image of {images}: {min(found)} and "
            f"{min(paired.images)}; name them alike, or list the pairs in a table (kind csv)"
        )
    problems += [*without_image(found, paired.images), *without_label(paired.images, found)]
    cases = [
        SourceCase(
            case,
            tuple(Source((have[n],)) for n in sorted(have)),
            found.get(case),
            test=case not in found,
        )
        for case, have in sorted(paired.images.items())
    ]
    declared = {"background": 0, **values} if values else None
    return Draft(tuple(cases), wanted.channels, declared, problems=tuple(problems))


def _inside(source: Path, name: str) -> Path:
    folder = source / name
    if not folder.is_dir():
        there = [path.name for path in folders_in(source)]
        raise AutosegError(
            f"{source} has no folder {name!r}{nearest(name, there)}; say which it is with --images "
            "or --masks, or list files that lie in other ways in a table (kind csv)"
        )
    return folder


def _labels(
    folder: Path, cases: Sequence[str], wanted: Wanted, problems: list[Problem]
) -> tuple[dict[str, Source], dict[str, int]]:
    """Case -> its label, and the values of structures where each has a mask of its own."""
    inner = folders_in(folder)
    files = images_in(folder)
    if files and inner:
        raise AutosegError(f"{folder} holds label files and folders; keep one kind of them")
    if not inner:
        return _single(files, cases, problems), {}
    masks: dict[str, dict[str, Path]] = {}
    by_case = len({p.name for p in inner} & set(cases)) > 0
    for one in inner:
        for path in images_in(one):
            stem = stem_of(path)
            case, structure = (one.name, stem) if by_case else (_case_of(stem, cases), one.name)
            have = masks.setdefault(case, {})
            if structure in have:
                problems.append(twice(case, have[structure], path))
            have[structure] = path
    names = sorted({name for have in masks.values() for name in have})
    values = dict(wanted.labels) or {name: n for n, name in enumerate(names, start=1)}
    values = {name: value for name, value in values.items() if value}
    if not wanted.labels:
        problems += [_unused(folder)] if not names else []
    elif missing := [name for name in values if name not in names]:
        raise AutosegError(f"{folder} holds no mask of {missing[0]!r}" + nearest(missing[0], names))
    sources = {}
    for case, have in masks.items():
        kept = [name for name in values if name in have]
        if kept:
            paths = tuple(have[name] for name in kept)
            sources[case] = Source(paths, "structures", tuple(values[name] for name in kept))
    return sources, values


def _unused(folder: Path) -> Problem:
    fix = "look whether these are the masks"
    return Problem("all", "there is no mask", f"the folders in {folder} hold no image", fix)


def _single(
    files: Sequence[Path], cases: Sequence[str], problems: list[Problem]
) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for path in files:
        case = _case_of(stem_of(path), cases)
        if case in found:
            problems.append(twice(case, found[case].files[0], path))
        found[case] = Source((path,))
    return found


def _case_of(stem: str, cases: Sequence[str]) -> str:
    """The case that a label's name means: the same name, or with an ending such as _mask."""
    if stem in cases:
        return stem
    for ending in ENDINGS:
        if stem.lower().endswith(ending) and stem[: -len(ending)] in cases:
            return stem[: -len(ending)]
    return stem


def stack(source: Path, wanted: Wanted, spacing_mm: tuple[float, float, float]) -> Draft:
    """A folder with images/CASE/*.png and labels/CASE/*.png, each a slice; or TIFF, JPEG, BMP.

    Slices are ordered by the numbers in their names. Raises AutosegError.
    """
    require_folder(source)
    images, labels = _inside(source, wanted.images), _inside(source, wanted.masks)
    problems: list[Problem] = []
    found = {one.name: _slices(one, problems) for one in folders_in(images)}
    masks = {one.name: _slices(one, problems) for one in folders_in(labels)}
    if not found:
        raise AutosegError(f"{images} holds no folder of slices; expected {images}/CASE/001.png")
    problems += [*without_image(masks, found), *without_label(found, masks)]
    for case in sorted(set(found) & set(masks)):
        if len(found[case]) != len(masks[case]):
            told = f"{len(found[case])} slices, {len(masks[case])} masks"
            fix = "give each slice its mask, empty ones too"
            problems.append(Problem(case, "slices and masks differ in number", told, fix))
    cases = [
        SourceCase(
            case,
            (Source(tuple(paths), "slices"),),
            Source(tuple(masks[case]), "slices") if case in masks else None,
            test=case not in masks,
        )
        for case, paths in sorted(found.items())
        if paths
    ]
    return Draft(
        tuple(cases), wanted.channels, label_ending=".nii.gz", spacing_mm=spacing_mm,
        problems=tuple(problems),
    )  # fmt: skip


def _slices(folder: Path, problems: list[Problem]) -> list[Path]:
    """The slices of a stack in order; gaps in their numbers are told."""
    paths = sorted(images_in(folder), key=number_key)
    strange = [p.name for p in paths if not p.name.lower().endswith(PICTURES)]
    if strange or not paths:
        found = f"{folder}: {strange[0] if strange else 'no picture'}"
        fix = f"a stack holds pictures only: {' '.join(PICTURES)}"
        problems.append(Problem(folder.name, "a stack holds something else", found, fix))
    numbers = [parts[-1] for p in paths if (parts := re.findall(r"\d+", p.name))]
    if len(numbers) == len(paths) and len(paths) > 1:
        known = sorted(int(n) for n in numbers)
        steps = {b - a for a, b in pairwise(known)}
        if len(steps) > 1:
            found = f"{folder}: numbers {known[0]} to {known[-1]} for {len(paths)} slices"
            what, fix = "slices are missing or there twice", "restore them; the spacing is even"
            problems.append(Problem(folder.name, what, found, fix))
    return paths


def bids(source: Path, wanted: Wanted) -> Draft:
    """A BIDS dataset: sub-*/[ses-*]/anat/*_T1w.nii.gz and, under derivatives, *_dseg or *_mask.

    A case is a subject, or a session of one; `channels` are the suffixes of its images (default:
    the one that there is). Subjects stand in cases.csv. Raises AutosegError.
    """
    images: dict[str, dict[str, list[Path]]] = {}
    labels: dict[str, list[Path]] = {}
    for name, path in every_file(source):
        if not name.lower().endswith((".nii", ".nii.gz")):
            continue
        match = SUBJECT.match(stem_of(path))
        if match is None:
            continue
        case = "_".join(part for part in match.groups()[:2] if part)
        if match[3] in ("dseg", "mask"):
            labels.setdefault(case, []).append(path)
        elif not name.startswith("derivatives/") and "/anat/" in f"/{name}":
            images.setdefault(case, {}).setdefault(match[3], []).append(path)
    if not images:
        raise AutosegError(
            f"{source} holds no image sub-*/anat/*.nii.gz; name the top folder of the BIDS dataset"
        )
    return _bids_draft(source, images, labels, wanted)


def _bids_draft(
    source: Path,
    images: dict[str, dict[str, list[Path]]],
    labels: dict[str, list[Path]],
    wanted: Wanted,
) -> Draft:
    suffixes = sorted({suffix for have in images.values() for suffix in have})
    asked = wanted.endings or wanted.channels or tuple(suffixes)
    if not wanted.channels and len(suffixes) > 1:
        raise AutosegError(
            f"{source} holds images of {len(suffixes)} kinds: {', '.join(suffixes)}; choose with "
            f"--channels {suffixes[0]}, or several, which are then the channels of each case"
        )
    unknown = [suffix for suffix in asked if suffix.lstrip("_") not in suffixes]
    if unknown:
        raise AutosegError(f"no image ends with {unknown[0]!r}" + nearest(unknown[0], suffixes))
    problems: list[Problem] = []
    cases = []
    for case, have in sorted(images.items()):
        chosen = [
            _only(case, have.get(suffix.lstrip("_"), []), problems, suffix) for suffix in asked
        ]
        label = _only_label(case, labels.get(case, []), problems)
        if all(path is not None for path in chosen):
            sources = tuple(Source((path,)) for path in chosen if path is not None)
            subject = {"patient": case.split("_")[0]}
            own = Source((label,)) if label else None
            cases.append(SourceCase(case, sources, own, test=label is None, facts=subject))
    problems += [*without_image(labels, images), *without_label(images, labels)]
    channels = wanted.channels or tuple(asked)
    return Draft(tuple(cases), channels, problems=tuple(problems))


def _only(case: str, paths: list[Path], problems: list[Problem], suffix: str) -> Path | None:
    if len(paths) > 1:
        problems.append(twice(case, paths[0], paths[1]))
    if not paths:
        found, fix = f"no image ends with {suffix}", "add it, or choose other --channels"
        problems.append(Problem(case, "a case lacks a channel", found, fix))
    return paths[0] if paths else None


def _only_label(case: str, paths: list[Path], problems: list[Problem]) -> Path | None:
    """A case's one label: a dseg goes before masks, of which there may be one."""
    preferred = [p for p in paths if stem_of(p).endswith("_dseg")] or paths
    if len(preferred) > 1:
        problems.append(twice(case, preferred[0], preferred[1]))
    return preferred[0] if preferred else None

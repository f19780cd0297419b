"""Which files of a public dataset's source make which case: the patterns of its specification."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autoseg.documents.conversion import Draft, Source, SourceCase
from autoseg.documents.spec import DatasetSpec, Files
from autoseg.errors import AutosegError, Problem
from autoseg.interop.conversion.layout_files import Paired, every_file, twice, without_image

Role = Literal["images", "labels", "test_images", "test_labels", "field_of_view"]
ROLES: tuple[Role, ...] = ("images", "labels", "test_images", "test_labels", "field_of_view")


@dataclass
class _Claimed:
    """What the patterns of one role took: case -> channel -> files, in order."""

    files: dict[str, dict[int, list[Path]]] = field(default_factory=dict)
    reads: dict[str, Files] = field(default_factory=dict)


@dataclass(frozen=True)
class Matched:
    """A draft, and how many files each pattern took."""

    draft: Draft
    counts: dict[str, int]
    strangers: int


def draft_of(spec: DatasetSpec, folders: Sequence[Path]) -> Matched:
    """The dataset that the files below `folders` make, by the patterns of the specification.

    Cases that lack something and files that claim the same are problems of the draft. Raises
    AutosegError where patterns cannot tell, or match nothing at all.
    """
    if spec.source_layout is None:
        raise AutosegError(
            f"{spec.name} cannot be converted by patterns: {spec.preparation}; see "
            f"{spec.landing_page}"
        )
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    claimed = {role: _Claimed() for role in ROLES}
    strangers = 0
    for folder in folders:
        for name, path in every_file(folder):
            taken = _claim(spec, name, path, claimed, counts, problems)
            strangers += not taken
    if not claimed["images"].files:
        wanted = ", ".join(files.pattern for files in spec.source_layout.images)
        raise AutosegError(
            f"{folders[0]} holds no image of {spec.name}: {strangers} files, and none matches "
            f"{wanted}; name the folder that holds the unpacked source"
        )
    draft = Draft(
        cases=tuple(_cases(spec, claimed, problems)),
        channels=spec.channels,
        labels=_plain(spec.labels),
        order=spec.regions_class_order,
        ranges=spec.source_layout.ranges,
        label_ending=spec.file_ending,
        facts=_facts(spec),
        problems=tuple(problems),
    )
    return Matched(draft, dict(counts), strangers)


def packs(spec: DatasetSpec) -> bool:
    """Whether `.nii` files are compressed on the way."""
    return spec.file_ending == ".nii.gz"


def _plain(labels: Any) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in labels.items()}


def _facts(spec: DatasetSpec) -> dict[str, Any]:
    return {
        "name": spec.name.split("_", 1)[1],
        "description": spec.title,
        "reference": spec.citation,
        "licence": spec.licence or "unknown",
        "source": spec.landing_page,
    }


def _claim(
    spec: DatasetSpec,
    name: str,
    path: Path,
    claimed: dict[Role, _Claimed],
    counts: Counter[str],
    problems: list[Problem],
) -> bool:
    """Give a file to all that its path says it is; whether it is anything."""
    taken = False
    for role in ROLES:
        for files in getattr(spec.source_layout, role):
            found = files.claim(name)
            if found is None:
                continue
            taken = True
            counts[files.pattern] += 1
            case, channel = found
            at = claimed[role]
            have = at.files.setdefault(case, {}).setdefault(channel, [])
            if have and files.reads in ("file", "frames"):
                problems.append(twice(case, have[0], path))
                continue
            at.reads[case] = files
            have.append(path)
    return taken


def _cases(
    spec: DatasetSpec, claimed: dict[Role, _Claimed], problems: list[Problem]
) -> list[SourceCase]:
    """All cases in order; what they lack joins the problems."""
    wanted: tuple[tuple[Role, Role, bool], ...] = (
        ("images", "labels", False), ("test_images", "test_labels", True),
    )  # fmt: skip
    cases: list[SourceCase] = []
    for images, labels, test in wanted:
        problems += without_image(claimed[labels].files, claimed[images].files)
        problems += _incomplete(claimed[images], claimed[labels], test)
        for case in sorted(claimed[images].files):
            label = _source(claimed[labels], case)
            view = _source(claimed["field_of_view"], case)
            cases.append(
                SourceCase(
                    case,
                    _images(claimed[images], case),
                    label,
                    view if label is not None else None,
                    test=test or label is None,
                    facts=_patient(spec, case),
                )
            )
    return cases


def _images(claimed: _Claimed, case: str) -> tuple[Source, ...]:
    reads = claimed.reads[case].reads
    channels = claimed.files[case]
    if reads == "dicom":
        return tuple(Source(tuple(channels[n]), "dicom") for n in sorted(channels))
    return tuple(Source((channels[n][0],)) for n in sorted(channels))


def _source(claimed: _Claimed, case: str) -> Source | None:
    if case not in claimed.files:
        return None
    reads = claimed.reads[case].reads
    files = tuple(claimed.files[case][0])
    if reads == "slices" or reads == "parts":
        return Source(files, reads)
    return Source(files[:1])


def _incomplete(images: _Claimed, labels: _Claimed, test: bool) -> list[Problem]:
    """The cases that lack a channel, told as problems."""
    found = []
    for case in sorted(images.files):
        layout = images.reads[case].channels
        paired = Paired({case: {n: files[0] for n, files in images.files[case].items()}})
        if layout:
            found += list(paired.complete(len(layout)))
    if not test and labels.files:
        missing = sorted(set(images.files) - set(labels.files))
        what = "an image has no label and becomes a test case"
        fix = "nothing if its label is not published; else restore the label file"
        found += [Problem(case, what, "no label file", fix, fatal=False) for case in missing]
    return found


def _patient(spec: DatasetSpec, case: str) -> dict[str, str]:
    """The cell of cases.csv that says whose scan it is."""
    if spec.patient_pattern is None:
        return {}
    match = re.search(spec.patient_pattern, case)
    return {"patient": match[1] if match else case}

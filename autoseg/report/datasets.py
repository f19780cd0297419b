"""The public datasets that autoseg knows, as a person reads them: all in a list, or one in full."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoseg.documents.conversion import Converted
from autoseg.documents.spec import Archive, DatasetSpec, Files, ReferenceScore, SourceLayout
from autoseg.errors import counted, grouped
from autoseg.report.text import aligned

UNKNOWN = "unknown"
HEAD = ("dataset", "modality", "dims", "cases", "test", "access", "licence", "structures")
LONGEST_LICENCE = 24
WIDTH = 100
INDENT = 14
ANSWERS = {True: "yes", False: "no, or not for every purpose", None: UNKNOWN}


@dataclass(frozen=True)
class KnownDatasets:
    """All datasets with a specification."""

    datasets: tuple[DatasetSpec, ...]

    def lines(self) -> Iterator[str]:
        """One aligned line a dataset, its licence cut to the first words."""
        rows = [list(HEAD), *(list(row(spec)) for spec in self.datasets)]
        licence = HEAD.index("licence")
        for cells in rows:
            cells[licence] = textwrap.shorten(cells[licence], LONGEST_LICENCE, placeholder="…")
        yield from aligned(rows)
        yield ""
        yield "`autoseg datasets NAME` shows one of them in full: number, word or alias"


@dataclass(frozen=True)
class ShownDataset:
    """One dataset, with everything that its specification says."""

    dataset: DatasetSpec

    def lines(self) -> Iterator[str]:
        """The specification in words, wrapped; what no source told is `unknown`."""
        spec = self.dataset
        also = f" (also {', '.join(spec.aliases)})" if spec.aliases else ""
        yield f"{spec.name}{also}"
        yield spec.title
        yield ""
        for title, texts in _sections(spec):
            for n, text in enumerate(texts):
                yield from _wrapped("" if n else title, text)


@dataclass(frozen=True)
class ConvertedDataset:
    """A dataset that was made of the data of others.

    `patterns` says how many files each pattern of a specification took, `expected` how many cases
    (to train, to test) the specification counts.
    """

    converted: Converted
    patterns: Mapping[str, int] | None = None
    expected: tuple[int, int | None] | None = None

    def lines(self) -> Iterator[str]:
        """What was made, what was odd about it, and what to do next."""
        made = self.converted
        yield (
            f"{made.folder.name}: {counted(made.labelled, 'case')} to train, {made.test} to test, in "
            f"{made.folder}" + (f"; {made.made} made now" if made.made else "; nothing to do")
        )
        yield f"channels {', '.join(made.channels)}; labels " + ", ".join(
            f"{name} {value}" for name, value in made.labels.items()
        )
        for pattern, count in (self.patterns or {}).items():
            yield f"  {counted(count, 'file')} matched by {pattern}"
        yield from self._missing()
        if made.problems:
            yield grouped(made.problems)
        yield f"next: `autoseg check -d {int(made.folder.name[7:].split('_')[0])}`"

    def _missing(self) -> Iterator[str]:
        """Where the counts are not those of the specification."""
        if self.expected is None:
            return
        train, test = self.expected
        made = self.converted
        if made.labelled != train or (test is not None and made.test != test):
            told = "unknown" if test is None else str(test)
            yield (
                f"the specification counts {counted(train, 'case')} to train and {told} to test: something is "
                "missing, or the source has changed"
            )


def row(spec: DatasetSpec) -> tuple[str, ...]:
    """The cells of a dataset in the list, in the order of HEAD."""
    return (
        spec.name,
        ", ".join(spec.modality),
        f"{spec.dimensions}D",
        str(spec.cases),
        UNKNOWN if spec.test_cases is None else str(spec.test_cases),
        spec.access,
        spec.licence or UNKNOWN,
        _structures(spec),
    )


def _structures(spec: DatasetSpec) -> str:
    names = list(spec.label_set.structures)
    if len(names) <= 4:
        return ", ".join(names)
    return f"{len(names)}: {', '.join(names[:3])}, …"


def _sections(spec: DatasetSpec) -> Iterator[tuple[str, Sequence[str]]]:
    yield "modality", [f"{', '.join(spec.modality)}, {spec.dimensions}D"]
    yield "channels", [", ".join(spec.channels)]
    yield "labels", list(_labels(spec))
    test = UNKNOWN if spec.test_cases is None else str(spec.test_cases)
    yield "cases", [f"{spec.cases} to train, {test} to test; {spec.published_cases} labelled"]
    if spec.patient_pattern:
        yield (
            "patients",
            [f"several cases a patient: autoseg split --pattern '{spec.patient_pattern}'"],
        )
    yield "files", [", ".join(spec.layout)]
    yield "geometry", [f"{spec.geometry} ({spec.geometry_is})"]
    yield "preparation", [spec.preparation]
    yield "licence", [spec.licence or UNKNOWN]
    yield "passed on?", [ANSWERS[spec.may_be_passed_on]]
    yield "access", [f"{spec.access}{': ' if spec.how_to_get else ''}{spec.how_to_get}"]
    yield "archives", [text for archive in spec.archives for text in _archive(archive)]
    if spec.source_layout is not None:
        yield "conversion", list(_conversion(spec.source_layout))
    yield "citation", [spec.citation]
    yield "landing page", [spec.landing_page]
    yield "facts from", spec.facts_from
    yield "reference", [text for score in spec.reference for text in _score(score)]
    yield "notes", [spec.notes] if spec.notes else []


def _labels(spec: DatasetSpec) -> Iterator[str]:
    paint = {region.name: region.paint for region in spec.label_set.regions}
    for name, value in spec.labels.items():
        values = value if isinstance(value, tuple) else (value,)
        painted = f", painted {spec.label_set.values[paint[name]]}" if name in paint else ""
        yield f"{' '.join(map(str, values))} {name}{painted}"


def _archive(archive: Archive) -> Iterator[str]:
    yield from archive.urls
    if archive.size_bytes is not None:
        yield f"  {archive.size_bytes:,} bytes"
    for kind, value in (("sha256", archive.sha256), ("md5", archive.md5)):
        if value is not None:
            yield f"  {kind} {value} (by {archive.checksum_from})"
    if not archive.checksum_from:
        yield "  no checksum known"


def _conversion(layout: SourceLayout) -> Iterator[str]:
    for role, several in (
        ("image", layout.images), ("label", layout.labels), ("test image", layout.test_images),
        ("test label", layout.test_labels), ("field of view", layout.field_of_view),
    ):  # fmt: skip
        for files in several:
            yield f"{role}: {files.pattern} -> {_target(files)}"
    if layout.values:
        yield "values: " + ", ".join(
            f"{source} -> {ours}" for source, ours in layout.values.items()
        )


def _target(files: Files) -> str:
    channels = ", ".join(f"{text} {index}" for text, index in files.channels.items())
    how = "" if files.reads == "file" else f" ({files.reads})"
    return f"{files.case}{how}{f', channels {channels}' if channels else ''}"


def _score(score: ReferenceScore) -> Iterator[str]:
    each = ", ".join(f"{name} {value:.4g}" for name, value in score.per_class.items())
    yield f"{score.metric} {score.value:.4g}{f' ({each})' if each else ''}: {score.method}"
    yield f"  {score.protocol}; {score.source}"
    yield f"  comparable: {score.comparable}"


def _wrapped(title: str, text: str) -> list[str]:
    inner = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text.strip(), WIDTH, initial_indent=f"{title:<{INDENT}}{inner}",
        subsequent_indent=" " * INDENT + inner, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip

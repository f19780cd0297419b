"""Public datasets that autoseg knows by name: what they hold, where they come from, what is allowed.

The specifications are the JSON files of `datasets_spec/`, which lies beside the package in a
checkout and inside it once installed. Nothing here fetches or converts anything: a specification
says where the data are, under which licence, and how the source's files become our layout. What no
source told stays null. `schema.json` beside them is `schema()`, for editors.
"""

import difflib
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from autoseg.documents.dataset import SUFFIXES
from autoseg.documents.document import Document, Frozen
from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.errors import AutosegError, PlanError

Modality = Literal[
    "CT", "MR", "dermoscopy", "endoscopy", "fundus photography", "histology", "microscopy"
]
Access = Literal["free", "registration", "application"]
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]

PIECE = re.compile(r"\*\*/|\*|\{([a-z]+)(?::([dw]))?\}")
KINDS = {None: r"[^/]+", "d": r"\d+", "w": r"[A-Za-z0-9-]+"}
RANGE = re.compile(r"^(\d+)(?:-(\d+))?$")


class Sparse(Document):
    """A document that is written without what equals its default, so that a person can read it."""

    @model_serializer(mode="wrap")
    def _sparse(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = write(self)
        fields = type(self).model_fields
        return {
            key: value
            for key, value in found.items()
            if fields[key].is_required()
            or key == "schema_version"
            or getattr(self, key) != fields[key].get_default(call_default_factory=True)
        }


class ReferenceScore(Sparse):
    """A published figure to hold one's own against."""

    method: str
    metric: str = Field(description="what the value is, as 'Dice'")
    value: float = Field(description="mean over what is scored", ge=0, le=1)
    per_class: Frozen[str, float] = Field(default_factory=dict)
    protocol: str = Field(description="which cases were judged by models trained on which")
    source: str = Field(min_length=1)
    comparable: str = Field(description="what stands between this figure and one of one's own")


class Archive(Sparse):
    """A file of the source that may be fetched without registration."""

    urls: tuple[Url, ...] = Field(min_length=1, description="the same bytes at each of them")
    size_bytes: int | None = Field(default=None, gt=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    checksum_from: str = Field(default="", description="who states the checksum")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if bool(self.sha256 or self.md5) != bool(self.checksum_from):
            raise ValueError("a checksum and checksum_from, who states it, belong together")
        return self


class Files(Sparse):
    """Files of the source that become images, labels or masks, told by a pattern of their paths.

    A pattern is a path below the folder that holds the unpacked source. `*` is anything within a
    name, `**/` any folders or none, `{word}` a part of a name: any text, digits with `{word:d}`,
    letters, digits and hyphens with `{word:w}`; the same word twice is the same text. Files whose
    name, or a folder of whose, begins with a dot, and those of `__MACOSX`, match no pattern.
    """

    pattern: str
    case: str = Field(default="{case}", description="the case's name, of the pattern's words")
    reads: Literal["file", "frames", "dicom", "slices", "parts"] = Field(
        default="file",
        description="file: one image; frames: the last axis of a 4D file are the channels; dicom: "
        "the files of a case are a series; slices: the n-th file of a case, by number in its name, "
        "belongs to the n-th file of its image; parts: masks of single objects, to be joined",
    )
    channels: Frozen[str, int] = Field(
        default_factory=dict, description="what {channel} says -> index; other texts match nothing"
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        words = set(self.regex.groupindex)
        strange = sorted(set(re.findall(r"\{([^}]*)\}", self.case)) - words)
        if strange:
            raise ValueError(f"case names {', '.join(strange)}, no word of {self.pattern!r}")
        if bool(self.channels) != ("channel" in words):
            raise ValueError("{channel} in a pattern and the indices in channels belong together")
        return self

    @property
    def regex(self) -> re.Pattern[str]:
        """The pattern as a regular expression with a named group a word."""
        text, at = "", 0
        known: set[str] = set()
        for piece in PIECE.finditer(self.pattern):
            text += re.escape(self.pattern[at : piece.start()])
            at, word = piece.end(), piece[1]
            if word is None:
                text += r"(?:[^/]+/)*" if piece[0] == "**/" else r"[^/]*"
            else:
                text += f"(?P={word})" if word in known else f"(?P<{word}>{KINDS[piece[2]]})"
                known.add(word)
        return re.compile(text + re.escape(self.pattern[at:]))

    def claim(self, path: str) -> tuple[str, int] | None:
        """The case and channel that a file, a path with `/`, belongs to; None for a stranger."""
        if any(part.startswith(".") or part == "__MACOSX" for part in path.split("/")):
            return None
        found = self.regex.fullmatch(path)
        if found is None:
            return None
        words = found.groupdict()
        channel = self.channels.get(words["channel"]) if self.channels else 0
        return None if channel is None else (self.case.format(**words), channel)


class SourceLayout(Sparse):
    """How the files of the unpacked source become imagesTr, labelsTr, imagesTs and labelsTs.

    A case of `images` that has no label goes to imagesTs. A picture's components beyond the
    channels (alpha) are dropped.
    """

    images: tuple[Files, ...] = Field(min_length=1)
    labels: tuple[Files, ...] = Field(min_length=1)
    test_images: tuple[Files, ...] = ()
    test_labels: tuple[Files, ...] = ()
    field_of_view: tuple[Files, ...] = Field(
        default=(), description="masks outside of which (0) the ignore label is written"
    )
    values: Frozen[str, int] = Field(
        default_factory=dict,
        description="value of the source, or a range as 128-255, -> ours; a value in none of them "
        "is an error; empty: the values are ours",
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        last = -1
        for low, high, _ in sorted(self.ranges):
            if not last < low <= high:
                raise ValueError(f"values: {low}-{high} is upside down, or overlaps another range")
            last = high
        return self

    @property
    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """(lowest, highest, ours) of each entry of `values`."""
        return tuple(_ranges(self.values))


def _ranges(values: Any) -> Iterator[tuple[int, int, int]]:
    for text, ours in values.items():
        found = RANGE.match(text)
        if found is None:
            raise ValueError(f"values: {text!r} is neither a value nor a range as 128-255")
        yield int(found[1]), int(found[2] or found[1]), ours


class DatasetSpec(Sparse):
    """One public dataset in nnU-Net v2's layout."""

    schema_version: Literal[2] = 2
    name: str = Field(pattern=r"^Dataset\d{3}_[A-Za-z0-9]+$")
    aliases: tuple[str, ...] = Field(default=(), description="other names that it is found by")
    title: str
    modality: tuple[Modality, ...] = Field(min_length=1)
    dimensions: Literal[2, 3]
    channels: tuple[str, ...] = Field(min_length=1)
    labels: Frozen[str, int | tuple[int, ...]] = Field(
        description="structure -> value in the label maps; several values make a region"
    )
    regions_class_order: tuple[int, ...] | None = Field(
        default=None, description="the value that each region is painted with, as in nnU-Net"
    )
    cases: int = Field(description="training cases in the layout below", gt=0)
    test_cases: int | None = Field(description="cases in imagesTs; null: unknown", ge=0)
    published_cases: int = Field(description="labelled cases of the source", gt=0)
    patient_pattern: str | None = Field(
        default=None, description="regular expression; its first group is the patient of a case"
    )
    file_ending: str
    layout: tuple[str, ...] = Field(description="patterns of files, relative to the folder")
    geometry: str = Field(description="sizes, spacings and orientations")
    geometry_is: Literal["measured", "published", "unknown"]
    preparation: str = Field(description="how the layout is made from the source")
    licence: str | None = Field(description="null: unknown")
    may_be_passed_on: bool | None = Field(
        description="whether anybody may redistribute images and labels for any purpose; false if "
        "only for some purposes; null: unknown"
    )
    access: Access = Field(
        description="free: without an account; registration: an account or a form; application: "
        "somebody decides"
    )
    how_to_get: str = ""
    archives: tuple[Archive, ...] = Field(default=(), description="what may be fetched freely")
    source_layout: SourceLayout | None = Field(
        default=None, description="null: patterns cannot tell how to convert it"
    )
    citation: str
    landing_page: Url
    facts_from: tuple[str, ...] = Field(default=(), description="where the facts above were read")
    reference: tuple[ReferenceScore, ...] = Field(
        default=(), description="empty if nothing published is comparable"
    )
    notes: str = ""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        labels = self.label_set
        if self.cases > self.published_cases:
            raise ValueError("more cases than were published")
        if self.file_ending not in SUFFIXES:
            raise ValueError(f"file_ending {self.file_ending!r} is none of {' '.join(SUFFIXES)}")
        for score in self.reference:
            strange = sorted(set(score.per_class) - {*labels.structures, *labels.names})
            if strange:
                raise ValueError(f"a reference score names {', '.join(strange)}, no label")
        if self.archives and self.access != "free":
            raise ValueError(f"archives may be fetched by nobody where access is {self.access!r}")
        self._fits(labels)
        return self

    def _fits(self, labels: LabelSet) -> None:
        """Raises ValueError where the conversion makes what the labels or channels do not know."""
        if self.patient_pattern is not None and re.compile(self.patient_pattern).groups < 1:
            raise ValueError("patient_pattern has no group")
        if self.source_layout is None:
            return
        strange = {ours for _, _, ours in self.source_layout.ranges} - set(labels.allowed)
        if strange:
            raise ValueError(f"values: {sorted(strange)} are no values of the labels")
        if self.source_layout.field_of_view and labels.ignore is None:
            raise ValueError("field_of_view needs a label called ignore")
        for files in (*self.source_layout.images, *self.source_layout.test_images):
            if files.channels and set(files.channels.values()) != set(range(len(self.channels))):
                raise ValueError(f"the channels of {files.pattern!r} are not {len(self.channels)}")

    @property
    def number(self) -> int:
        """104 of Dataset104_HippocampusFull."""
        return int(self.name[7:10])

    @property
    def label_set(self) -> LabelSet:
        """The classes and regions that a dataset.json with these labels has."""
        try:
            return parse_labels(self.labels, self.regions_class_order)
        except AutosegError as error:
            raise ValueError(str(error).removeprefix("dataset.json: ")) from error


def _folder() -> Traversable:
    """`datasets_spec/`: inside the package if it was installed, else beside it in the checkout."""
    installed = resources.files("autoseg") / "datasets_spec"
    if installed.is_dir():
        return installed
    return Path(__file__).parents[2] / "datasets_spec"


def list_specs() -> tuple[str, ...]:
    """The names of the known datasets, in order."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(n[:-5] for n in names if n.startswith("Dataset") and n.endswith(".json")))


def read_spec(wanted: str) -> DatasetSpec:
    """The specification of `Dataset104_HippocampusFull`, also found as `104`, `HippocampusFull` or
    by an alias, as `Task04_Hippocampus`.

    Raises AutosegError, with the nearest known name, if there is none.
    """
    known = list_specs()
    by_word = {word: name for name in known for word in _words(name)}
    key = wanted.strip().lower().lstrip("0")
    if key in by_word:
        return _read(by_word[key])
    specs = [_read(name) for name in known]
    by_alias = {alias.lower(): spec for spec in specs for alias in spec.aliases}
    if key in by_alias:
        return by_alias[key]
    names = [*known, *(a for s in specs for a in s.aliases), *(n.split("_")[1] for n in known)]
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; `autoseg datasets` lists them"
    raise AutosegError(f"no specification of a dataset {wanted!r}{hint}")


def _read(name: str) -> DatasetSpec:
    with resources.as_file(_folder() / f"{name}.json") as path:
        spec = DatasetSpec.read(path)
    if spec.name != name:
        raise PlanError(f"{name}.json holds the specification of {spec.name}; rename one of them")
    return spec


def _words(name: str) -> tuple[str, str, str]:
    number, word = name.removeprefix("Dataset").split("_", 1)
    return name.lower(), number.lstrip("0"), word.lower()


def schema() -> dict[str, Any]:
    """The JSON schema of a specification, as it stands in `datasets_spec/schema.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **DatasetSpec.model_json_schema(),
    }

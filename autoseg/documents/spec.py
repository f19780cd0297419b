"""Public datasets that autoseg knows by name: what they hold, where they come from, what is allowed.

The specifications are the JSON files of `datasets_spec/`, which lies beside the package in a
checkout and inside it once installed. Nothing here fetches anything: a specification says where a
person gets the data, and under which licence. `schema.json` beside them is `schema()`, for editors.
"""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from autoseg.documents.dataset import SUFFIXES
from autoseg.documents.document import Document, Frozen
from autoseg.errors import AutosegError, PlanError, nearest


class ReferenceScore(Document):
    """A published figure to hold one's own against."""

    method: str
    metric: str = Field(description="what the value is, as 'Dice'")
    value: float = Field(description="mean over the foreground classes", ge=0, le=1)
    per_class: Frozen[str, float] = Field(default_factory=dict)
    protocol: str = Field(description="which cases were judged by models trained on which")
    source: str
    comparable: str = Field(description="what stands between this figure and one of one's own")


class DatasetSpec(Document):
    """One public dataset in nnU-Net v2's layout."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^Dataset\d{3}_[A-Za-z0-9]+$")
    title: str
    modality: Literal["MR", "CT", "microscopy"]
    dimensions: Literal[2, 3]
    channels: tuple[str, ...] = Field(min_length=1)
    labels: Frozen[str, int] = Field(description="structure -> value in the label maps")
    cases: int = Field(description="training cases in the layout below", gt=0)
    published_cases: int = Field(description="labelled cases of the source", gt=0)
    file_ending: str
    layout: tuple[str, ...] = Field(description="patterns of files, relative to the folder")
    geometry: str = Field(description="sizes, spacings and orientations as they were measured")
    preparation: str = Field(description="how the layout was made from the source")
    licence: str
    may_be_passed_on: bool = Field(description="whether images and labels may be redistributed")
    citation: str
    landing_page: str = Field(pattern=r"^https?://")
    reference: tuple[ReferenceScore, ...] = Field(
        default=(), description="empty if nothing published is comparable"
    )
    notes: str = ""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.labels.get("background") != 0 or len(set(self.labels.values())) < 2:
            raise ValueError("labels need background = 0 and at least one structure")
        if len(set(self.labels.values())) != len(self.labels):
            raise ValueError("two labels share one value")
        if self.cases > self.published_cases:
            raise ValueError("more cases than were published")
        if self.file_ending not in SUFFIXES:
            raise ValueError(f"file_ending {self.file_ending!r} is none of {' '.join(SUFFIXES)}")
        for score in self.reference:
            strange = sorted(set(score.per_class) - set(self.labels))
            if strange:
                raise ValueError(f"a reference score names {', '.join(strange)}, no label")
        return self


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
    """The specification of `Dataset004_Hippocampus`, also found as `4`, `004` or `Hippocampus`.

    Raises AutosegError, with the nearest known name, if there is none.
    """
    known = list_specs()
    by_word = {word: name for name in known for word in _words(name)}
    name = by_word.get(wanted.strip().lower().lstrip("0"))
    if name is None:
        raise AutosegError(
            f"no specification of a dataset {wanted!r}{nearest(wanted, list(known))}"
        )
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

"""What is done to a label map after the network: steps as data, and why each was kept or not."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from autoseg.documents.document import Document

EVERYTHING = "*"
"""In the place of a structure's name: all foreground together."""

CAVEAT = (
    "The steps were chosen on the same cross-validation whose score they then change, so `after` is "
    "optimistic. `held_out` is what is left where each case is cleaned by steps chosen without it."
)


class KeepLargest(Document):
    """Only the largest connected piece stays; voxels that touch by a corner are connected."""

    kind: Literal["keep_largest"] = "keep_largest"
    of: str
    """The name of a structure (class or region), or `*` for all foreground together."""

    @property
    def phrase(self) -> str:
        return f"keep the largest piece of {_name(self.of)}"


class MinimumSize(Document):
    """Connected pieces of a smaller volume go."""

    kind: Literal["minimum_size"] = "minimum_size"
    of: str
    mm3: PositiveFloat
    """In 2D the thickness of the slice counts as well."""

    @property
    def phrase(self) -> str:
        return f"drop pieces of {_name(self.of)} below {self.mm3:g} mm³"


class FillHoles(Document):
    """Background that a structure encloses becomes the structure.

    In a hole of `*` it becomes the nearest structure.
    """

    kind: Literal["fill_holes"] = "fill_holes"
    of: str

    @property
    def phrase(self) -> str:
        return f"fill the holes of {_name(self.of)}"


class DenseCRF(Document):
    """Mean field of a conditional random field with Gaussian kernels in a window.

    Krähenbühl & Koltun 2011 (arXiv 1210.5644), its kernels cut off at a radius as in Teichmann &
    Cipolla 2018 (arXiv 1805.04777). Lengths are mm, intensities those of the normalised image.
    """

    kind: Literal["crf"] = "crf"
    iterations: PositiveInt = 5
    radius_mm: PositiveFloat
    smooth_weight: NonNegativeFloat = 1.0
    smooth_mm: PositiveFloat
    bilateral_weight: NonNegativeFloat = 2.0
    bilateral_mm: PositiveFloat
    bilateral_intensity: PositiveFloat = 0.5

    @property
    def phrase(self) -> str:
        return (
            f"refine by a dense CRF (weights {self.smooth_weight:g} over {self.smooth_mm:g} mm and "
            f"{self.bilateral_weight:g} over {self.bilateral_mm:g} mm and "
            f"{self.bilateral_intensity:g} of intensity, {self.iterations} iterations)"
        )


Cleaning = KeepLargest | MinimumSize | FillHoles
"""The steps that need the label map alone."""

Step = Annotated[KeepLargest | MinimumSize | FillHoles | DenseCRF, Field(discriminator="kind")]


class Tried(Document):
    """One step that was tried on the cross-validation, and what came of it."""

    step: Step
    kept: bool
    before: float | None
    """Mean foreground Dice without it."""
    after: float | None
    why: str


class Postprocessing(Document):
    """The steps in the order of their application, and everything that was tried.

    `before` and `after` are the mean foreground Dice of `cases` cases of the cross-validation.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    steps: tuple[Step, ...] = ()
    tried: tuple[Tried, ...] = ()
    cases: int = 0
    before: float | None = None
    after: float | None = None
    held_out: float | None = None
    """The mean Dice where each case is cleaned by steps that were chosen without it: what new cases
    may expect. None where nothing was kept, or the cases are too few."""
    note: str = CAVEAT

    @model_validator(mode="after")
    def _ordered(self) -> "Postprocessing":
        if any(step.kind == "crf" for step in self.steps[1:]):
            raise ValueError(
                "a dense CRF works on probabilities, so it can be the first step alone"
            )
        return self

    def lines(self) -> Iterator[str]:
        """What was kept and what it changed, then every step that was tried, as text."""
        kept = "; ".join(step.phrase for step in self.steps) or "nothing"
        yield f"postprocessing: {kept}"
        if self.steps and self.before is not None and self.after is not None:
            honest = "" if self.held_out is None else f" ({self.held_out:.4f} held out)"
            yield (
                f"mean Dice {self.before:.4f} before, {self.after:.4f} after{honest}, "
                f"{self.cases} cases"
            )
        for tried in self.tried:
            yield f"  {'kept' if tried.kept else 'not kept'}: {tried.step.phrase}: {tried.why}"


def _name(of: str) -> str:
    return "all foreground" if of == EVERYTHING else of

"""What the planner knows of a network before it is one, and what a preset is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from autoseg.documents.networks.family import NetworkSpec

PUBLISHED_FIRST = 32
"""The first width at which a preset has the size that was published."""


def adamw(lr: float, weight_decay: float = 0.05, **rest: float | str) -> dict[str, float | str]:
    """AdamW with a warm-up and a cosine, as attention and large depthwise kernels are trained."""
    return {
        "optimiser": "adamw",
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": weight_decay,
        "schedule": "cosine",
        "warmup_share": 0.03,
        "clip_norm": 1.0,
        **rest,
    }


@dataclass(frozen=True)
class Shape:
    """Channels, classes, and one entry a level, finest first; the first stride is all ones.

    Raises ValueError where the numbers do not fit together.
    """

    in_channels: int
    classes: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.strides) == len(self.kernels) >= 2:
            raise ValueError(
                f"{len(self.features)} features, {len(self.strides)} strides and "
                f"{len(self.kernels)} kernels: each needs one for each of at least two levels"
            )
        if any(len(x) != self.dimensions for x in (*self.strides, *self.kernels)):
            raise ValueError(f"strides and kernels need {self.dimensions} numbers at each level")

    @property
    def dimensions(self) -> int:
        return len(self.strides[0])

    @property
    def levels(self) -> int:
        return len(self.strides)

    def scaled(self, published: int, multiple: int = 1) -> int:
        """A published width on the scale of this shape: as it is where the first width is 32.

        Rounded to a multiple of `multiple`, which it is at least.
        """
        wished = published * self.features[0] / PUBLISHED_FIRST
        return max(1, round(wished / multiple)) * multiple


@dataclass(frozen=True)
class Preset:
    """A network of the literature: how it is made, where from, and how often it halves at most.

    `make(name, shape)` gives the document; `most_levels` counts the finest level too. `training`
    holds fields of the plan's `train` as the authors had them, where nnU-Net's would not serve.
    """

    make: Callable[[str, Shape], NetworkSpec]
    about: str
    most_levels: int | None = None
    training: Mapping[str, float | str] = field(default_factory=dict)


def per_level(numbers: Sequence[int], level: int) -> int:
    """The number of a level, finest first; deeper levels repeat the last."""
    return numbers[min(level, len(numbers) - 1)]

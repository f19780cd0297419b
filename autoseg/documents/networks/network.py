"""What the document of every network says, whatever its family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Literal

from pydantic import Field, PositiveInt

from autoseg.documents.document import Document

Spatial = tuple[PositiveInt, ...]


class Network(Document, ABC):
    """The fields and answers that all families share.

    A family's document adds `family`, a literal by which it is told apart, and its own fields.
    """

    preset: str
    in_channels: PositiveInt
    classes: PositiveInt
    norm: Literal["instance", "batch", "group", "none"] = "instance"
    activation: Literal["relu", "leaky_relu", "prelu", "mish", "gelu"] = "leaky_relu"
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    recompute: bool = False
    """Whether training keeps only what enters each part and computes the rest again when going
    back (activation checkpointing): less memory, about a third more time."""

    @property
    @abstractmethod
    def strides(self) -> tuple[Spatial, ...]:
        """The step of each level from the one above, finest first; the first is all ones."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first, as a person should see them."""

    @property
    def dimensions(self) -> int:
        return len(self.strides[0])

    @property
    def divisor(self) -> tuple[int, ...]:
        """What each axis of a patch must be a multiple of."""
        return tuple(prod(steps) for steps in zip(*self.strides, strict=True))

    @property
    def output_strides(self) -> tuple[Spatial, ...]:
        """The grid of each supervised output as a fraction of the image's, finest first."""
        return ((1,) * self.dimensions,)

    @property
    def output_weights(self) -> tuple[float, ...]:
        """What each supervised output counts in the loss; they sum to 1."""
        return halved_weights(len(self.output_strides))


def halved_weights(outputs: int) -> tuple[float, ...]:
    """nnU-Net's weights of the outputs, finest first: halved each time, the last 0; sum 1."""
    raw = [0.5**level for level in range(outputs)]
    if outputs > 1:
        raw[-1] = 0.0
    return tuple(w / sum(raw) for w in raw)


def accumulated(strides: Sequence[Spatial]) -> tuple[Spatial, ...]:
    """The step of each level from the image."""
    return tuple(
        tuple(prod(steps) for steps in zip(*strides[: level + 1], strict=True))
        for level in range(len(strides))
    )

"""Documents of the networks whose encoder is a transformer: Swin UNETR, UNETR, Primus."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from autoseg.documents.document import Document
from autoseg.documents.networks.network import Network, Spatial


class Rung(Document):
    """One resolution: `width` channels, `stride` from the one above, `kernel` of convolutions."""

    width: PositiveInt
    stride: Spatial
    kernel: Spatial


class Transformer(Network):
    """Levels, finest first; the strides down to where the tokens lie make up a token."""

    levels: tuple[Rung, ...] = Field(min_length=2)
    mlp: PositiveFloat = 4.0
    """How many times as wide as a token the hidden layer of the MLPs is."""

    @model_validator(mode="after")
    def _fits(self) -> "Transformer":
        sizes = {len(x) for level in self.levels for x in (level.stride, level.kernel)}
        if len(sizes) != 1 or not sizes <= {2, 3}:
            raise ValueError("kernels and strides must all have 2 or all have 3 numbers")
        if any(s != 1 for s in self.levels[0].stride):
            raise ValueError("the finest level's stride must be all ones")
        if any(k % 2 == 0 for level in self.levels for k in level.kernel):
            raise ValueError("kernels must be odd")
        return self

    @property
    def strides(self) -> tuple[Spatial, ...]:
        return tuple(level.stride for level in self.levels)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(level.width for level in self.levels)


class SwinUNETRSpec(Transformer):
    """Window transformers between the levels below the finest, a residual decoder.

    `depths` and `heads` have one entry for each stage of blocks: one stands before each level from
    the third on, and one at the second if there are two levels only. `convolved` puts a residual
    block before each stage, as version 2 has it.
    """

    family: Literal["swin_unetr"] = "swin_unetr"
    depths: tuple[PositiveInt, ...]
    heads: tuple[PositiveInt, ...]
    window: PositiveInt = 7
    convolved: bool = False

    @model_validator(mode="after")
    def _staged(self) -> "SwinUNETRSpec":
        stages = max(1, len(self.levels) - 2)
        if not len(self.depths) == len(self.heads) == stages:
            raise ValueError(
                f"{len(self.levels)} levels have {stages} stages of blocks, "
                f"found {len(self.depths)} depths and {len(self.heads)} numbers of heads"
            )
        widths = self.widths[1 : 1 + stages]
        if any(w % h for w, h in zip(widths, self.heads, strict=True)):
            raise ValueError(f"the heads {self.heads} must divide the widths {widths}")
        return self


class VisionTransformer(Transformer):
    """A plain transformer on the tokens of the coarsest level, whose width is theirs.

    `positions` is the grid on which a learnt vector is added to each token; on another grid it is
    interpolated, so that a network fits patches of any size.
    """

    depth: PositiveInt
    heads: PositiveInt
    positions: Spatial

    @model_validator(mode="after")
    def _placed(self) -> "VisionTransformer":
        if len(self.positions) != self.dimensions:
            raise ValueError(f"positions needs {self.dimensions} numbers")
        if self.widths[-1] % self.heads:
            raise ValueError(
                f"{self.heads} heads must divide the tokens' {self.widths[-1]} channels"
            )
        return self


class UNETRSpec(VisionTransformer):
    """`taps`: after how many blocks each level between finest and coarsest is fed, finest first."""

    family: Literal["unetr"] = "unetr"
    taps: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _tapped(self) -> "UNETRSpec":
        if len(self.taps) != len(self.levels) - 2 or any(t > self.depth for t in self.taps):
            raise ValueError(
                f"{len(self.levels)} levels need {len(self.levels) - 2} taps of at most {self.depth} "
                f"blocks, found {self.taps}"
            )
        return self


class PrimusSpec(VisionTransformer):
    """The finest level's width is the number of classes: transposed convolutions lead up to it.

    `scale` is where LayerScale starts, `path` how often the last block is left out in training,
    the blocks before it in proportion to their depth.
    """

    family: Literal["primus"] = "primus"
    mlp: PositiveFloat = 8 / 3
    scale: PositiveFloat = 0.1
    path: float = Field(0.2, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _ends(self) -> "PrimusSpec":
        if self.widths[0] != self.classes:
            raise ValueError(
                f"the finest level's width must be the {self.classes} classes, "
                f"found {self.widths[0]}"
            )
        return self

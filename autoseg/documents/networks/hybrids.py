"""Networks of convolutions and a transformer: TransUNet and TransFuse."""

from typing import Literal

from pydantic import PositiveInt, model_validator

from autoseg.documents.networks.network import Network, Spatial

FUSED = 3
"""How many of the coarsest grids TransFuse fuses at most."""


class Hybrid(Network):
    """A residual encoder over the grids of a plan, and a transformer on the coarsest of them.

    `steps` and `kernels` have an entry a level, finest first. `encoder_depths` are the blocks of a
    ResNet's layers, the first of which stands on the second grid below the image's; layers
    beyond the last grid leave it alone. `hidden`, `depth` and `heads` are the transformer's.
    """

    steps: tuple[Spatial, ...]
    kernels: tuple[Spatial, ...]
    encoder_width: PositiveInt
    encoder_depths: tuple[PositiveInt, ...]
    hidden: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    positions: Spatial
    """The grid of tokens for which positions are learnt; on others they are interpolated."""

    @model_validator(mode="after")
    def _fitting(self) -> "Hybrid":
        if len(self.steps) < 2 or len(self.steps) != len(self.kernels):
            raise ValueError(
                f"found {len(self.steps)} steps and {len(self.kernels)} kernels; each needs one for "
                "each of at least two levels"
            )
        if {len(x) for x in (*self.steps, *self.kernels, self.positions)} not in ({2}, {3}):
            raise ValueError("kernels, steps and positions must all have 2 or all have 3 numbers")
        if any(s != 1 for s in self.steps[0]):
            raise ValueError("the first step must be all ones")
        if any(set(step) == {1} for step in self.steps[1:]):
            raise ValueError("every step but the first must make some axis coarser")
        if any(k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ValueError("kernels must be odd")
        if len(self.encoder_depths) != max(1, len(self.steps) - 2):
            raise ValueError(
                f"{len(self.steps)} levels need {max(1, len(self.steps) - 2)} encoder_depths, "
                f"found {len(self.encoder_depths)}"
            )
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} must be a multiple of heads {self.heads}")
        return self

    @property
    def strides(self) -> tuple[Spatial, ...]:
        return self.steps


class TransUNetSpec(Hybrid):
    """`decoder_widths` are those of all grids but the coarsest, finest first.

    `entry_width` is what the transformer's tokens are brought to before the way up.
    """

    family: Literal["transunet"] = "transunet"
    entry_width: PositiveInt
    decoder_widths: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _joined(self) -> "TransUNetSpec":
        if len(self.decoder_widths) != len(self.steps) - 1:
            raise ValueError(
                f"{len(self.steps)} levels need {len(self.steps) - 1} decoder_widths, found "
                f"{len(self.decoder_widths)}"
            )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the decoder's grids, then the transformer's."""
        return (*self.decoder_widths, self.hidden)


class TransFuseSpec(Hybrid):
    """Fused on its coarsest grids; three supervised outputs, all on the grid of the image."""

    family: Literal["transfuse"] = "transfuse"

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the encoder's grids; it has none on the grid of the image."""
        layers = (self.encoder_width * 2**i for i in range(len(self.encoder_depths)))
        return (self.encoder_width, *layers)[1 - len(self.steps) :]

    @property
    def fused(self) -> int:
        """On how many grids the branches meet."""
        return min(FUSED, len(self.steps) - 1)

    @property
    def output_strides(self) -> tuple[Spatial, ...]:
        return ((1,) * self.dimensions,) * 3

    @property
    def output_weights(self) -> tuple[float, ...]:
        """Of the fused output, the transformer's own, and the coarsest fusion's."""
        return (0.5, 0.3, 0.2)

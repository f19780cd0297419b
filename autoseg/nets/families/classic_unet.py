"""U-Nets whose way down is an image classifier and whose way up is nnU-Net's."""

from torch import Tensor, nn

from autoseg.documents.networks.classic import EncoderUNetSpec
from autoseg.documents.networks.network import accumulated
from autoseg.nets.families.encoders.table import encoder_of, kit_of
from autoseg.nets.families.unet import Decode, ascend
from autoseg.nets.joins import Concat
from autoseg.nets.kit import initialise
from autoseg.nets.network import Network
from autoseg.nets.units.plain import plain

DEPTH = 2
"""Units of a level of the decoder."""


class EncoderUNet(Network):
    """An encoder's features, the last on each grid, joined by concatenation on the way up.

    An encoder that has none on the image's grid gets one plain unit there, where others leave the
    finest skip out: single voxels count in medical images (Iglovikov and Shvets 2018,
    arXiv:1801.05746, whose VGG has such features of its own).
    """

    def __init__(self, spec: EncoderUNetSpec) -> None:
        super().__init__(spec)
        kit = kit_of(spec)
        self.encoder = encoder_of(spec)
        grids = accumulated(spec.steps)
        # later features win: those of reductions that did not step
        last = {stride: i for i, stride in enumerate(self.encoder.strides)}
        self.kept = [last.get(grid) for grid in grids]
        width = spec.decoder[0]
        without = self.kept[0] is None
        self.finest = plain(kit.at(spec.kernels[0]), spec.in_channels, width) if without else None
        self.decode = nn.ModuleList()
        self.head = nn.ModuleList()
        for i, width in enumerate(spec.decoder):
            below = spec.decoder[i + 1] if i + 1 < len(spec.decoder) else self.encoder.widths[-1]
            index = self.kept[i]
            kept = width if index is None else self.encoder.widths[index]
            at = kit.at(spec.kernels[i])
            units = [plain(at, kept + width if j == 0 else width, width) for j in range(DEPTH)]
            up = kit.transposed(below, width, spec.steps[i + 1])
            self.decode.append(Decode(up, Concat(at, kept, width), nn.Sequential(*units)))
            self.head.append(kit.conv(width, spec.classes, 1))
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.encoder(x, self.run)
        kept = [x if i is None else features[i] for i in self.kept]
        if self.finest is not None:
            kept[0] = self.run(self.finest, x)
        del features
        return ascend(self.run, self.decode, self.head, kept, self.training)[1]

"""UNet++: the sentence whose skips are rows of decoder levels, one more for each coarser level."""

import torch
from torch import Tensor, nn

from autoseg.documents.networks.compound import NestedSpec
from autoseg.nets.families.unet import decoding, encoder, kit_of, modules
from autoseg.nets.kit import initialise
from autoseg.nets.network import Network


class Nested(Network):
    """X[i][j] = units([X[i][0], ..., X[i][j-1], up(X[i+1][j-1])]); X[i][0] is the encoder's.

    While training the logits of X[0][L], ..., X[0][1], the deepest first; in evaluation their mean
    or the deepest, of the columns that are asked. Zhou et al. 2018, arXiv:1807.10165.
    """

    def __init__(self, spec: NestedSpec) -> None:
        super().__init__(spec)
        rows, kit = len(spec.decoder), kit_of(spec)
        self.columns = spec.columns or rows
        self.averages = spec.vote == "mean"
        self.encode = encoder(spec, spec.in_channels)
        self.node = nn.ModuleDict(
            {f"{i}_{j}": decoding(spec, i, j) for i in range(rows) for j in range(1, rows - i + 1)}
        )
        self.head = modules(kit.conv(spec.widths[0], spec.classes, 1) for _ in range(rows))
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        asked = len(self.head) if self.training else self.columns
        rows: list[list[Tensor]] = []
        for depth in range(asked + 1):
            x = self.run(self.encode[depth], x)
            rows.append([x])
            for i in reversed(range(depth)):
                below, row = rows[i + 1][-1], rows[i]
                row.append(self.run(self.node[f"{i}_{depth - i}"], below, *row))
        speaking = range(asked) if self.training or self.averages else [asked - 1]
        logits = [self.head[j](rows[0][j + 1]) for j in reversed(speaking)]
        if self.training or len(logits) == 1:
            return logits
        return [torch.stack(logits).mean(0)]

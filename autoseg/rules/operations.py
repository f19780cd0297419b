"""The multiply-adds of a plain U-Net, worked out on paper.

Any other network is counted by running it without numbers (`nets.cost`). That needs torch, whose
loading takes longer than all of the planning.
"""

from collections.abc import Sequence
from math import prod

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.networks.sentence import DecoderLevel, Skip, UNetSpec
from autoseg.documents.networks.word import Word


def plain_operations(network: NetworkSpec, patch_vox: Sequence[int]) -> int | None:
    """Multiply-adds of one forward pass of one patch, heads of all levels too.

    None if the network is anything but a U-Net of plain units, strided and transposed convolutions.
    """
    if not isinstance(network, UNetSpec) or not _plain(network):
        return None
    grids = [tuple(patch_vox)]
    for level in network.levels[1:]:
        grids.append(tuple(-(-n // s) for n, s in zip(grids[-1], level.stride, strict=True)))
    total, cin = 0, network.in_channels
    for level, grid in zip(network.levels, grids, strict=True):
        # the step down is one of the units, on the level's own grid
        into = cin * level.width + (level.depth - 1) * level.width**2
        total += prod(grid) * prod(level.kernel) * into
        cin = level.width
    for index, beside in enumerate(network.decoder):
        width, below = network.widths[index], network.levels[index + 1]
        up = prod(grids[index + 1]) * prod(below.stride) * below.width * width
        units = 2 * width**2 + (beside.depth - 1) * width**2
        head = width * network.classes
        total += up + prod(grids[index]) * (prod(beside.kernel) * units + head)
    return total


def _plain(network: UNetSpec) -> bool:
    says_so = (network.down, network.up, network.skip, network.stem) == (
        Word(word="strided"), Word(word="transposed"), Skip(join=Word(word="concat")), None,
    )  # fmt: skip
    return says_so and all(_plain_level(level) for level in (*network.levels, *network.decoder))


def _plain_level(level: DecoderLevel) -> bool:
    part = level.part
    return part.unit == Word(word="plain") and not (part.wraps or level.then or level.step)

"""How long do the held-out cases of a fold take, once its training has ended?

The network looks at tiles, whose seconds are measured in the trained precision, which is also that
of the prediction. Then each case is restored to its own grid, written, read and scored: seconds for
each million of its voxels, by outputs and structures. Restoring is measured, on the device that does
it; the rest is reckoned from figures of one core (`bench/held_out.py`), more where a core is slower.
"""

import time
from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch.nn.functional import one_hot

from autoseg.device import is_card, synchronise
from autoseg.documents.labels import LabelSet
from autoseg.documents.plan import Configuration
from autoseg.infer.restore import classes_on
from autoseg.infer.volume import patches_to_predict

MARGIN = 1.15
"""Tiles take so much longer than one patch in a loop: they are cut out, added up and handed on."""
LOADING_S = 3.0
"""For loading the network and writing the report."""
CASE_S = 0.08
"""For each case, however small."""
RESTORE_S, WRITE_S, READ_S = 0.026, 0.006, 0.003
"""Seconds of a core for a million voxels of a scan: to restore one output, to write a label map, and
to read one."""
SCORE_S, STRUCTURE_S = 0.045, 0.006
"""The same, to score a label map: of all structures together, and of each."""
SLOWEST = 4.0
"""A core is taken to be at most so many times as slow as the one that was measured."""
TRIED_VOX, FINER = (8, 384, 384), 1.25
"""The scan that restoring is measured on, and how much wider the voxels of its prepared grid are."""

Shape = Sequence[int]


def tiles_s(shapes_vox: Iterable[Shape], configuration: Configuration, one_patch_s: float) -> float:
    """Seconds of the network for prepared cases (Z, Y, X), by those of one patch."""
    patches = sum(patches_to_predict(shape, configuration) for shape in shapes_vox)
    mirrored = configuration.predict.mirror
    views = 2 ** len(configuration.augmentation.mirror_axes) if mirrored else 1
    return MARGIN * patches * views * one_patch_s


def cases_s(scans_vox: Sequence[Shape], labels: LabelSet, restore_s: float, slow: float) -> float:
    """Seconds of what else is done with cases of these shapes, one after the other.

    `restore_s` are those for a million voxels and one output; the rest takes a core that is `slow`
    times as slow as the one that was measured.
    """
    each = labels.outputs * restore_s
    structures = len(labels.structures)
    each += slow * (WRITE_S + 2 * READ_S + SCORE_S + STRUCTURE_S * structures)
    return CASE_S * len(scans_vox) + each * sum(prod(shape) for shape in scans_vox) / 1e6


def restoring_s(labels: LabelSet, device: torch.device) -> float:
    """Seconds to restore a million voxels of one output here: the least of two tries."""
    small = [round(n / FINER) for n in TRIED_VOX]
    z, y, x = (torch.linspace(-1, 1, n, device=device) for n in small)
    ball = z.view(-1, 1, 1) ** 2 + y.view(-1, 1) ** 2 + x**2 < 0.5
    band = 1 + ((x + 1) / 2.001 * (labels.outputs - 1)).long()
    logits = 6 * one_hot(ball * band, labels.outputs).movedim(-1, 0).float()
    box = [(0, n) for n in TRIED_VOX]
    took = []
    for _ in range(2):
        synchronise(device)
        began = time.perf_counter()
        classes_on(
            [(slice(0, small[0]), logits)], small, box, TRIED_VOX, (FINER,) * 3, (1.0,) * 3,
            labels=labels,
        )  # fmt: skip
        took.append(time.perf_counter() - began)
    return min(took) / (labels.outputs * prod(TRIED_VOX) / 1e6)


def reserve_s(
    prepared_vox: Sequence[Shape],
    scans_vox: Sequence[Shape],
    configuration: Configuration,
    one_patch_s: float,
    device: torch.device,
) -> float:
    """Seconds to keep for the held-out cases: of their prepared shapes and those of the scans."""
    labels = configuration.preparation.labels
    measured = restoring_s(labels, device)
    slow, restore = 1.0, measured
    if not is_card(device):
        slow = min(SLOWEST, max(1.0, measured / RESTORE_S))
        restore = RESTORE_S * slow
    tiles = tiles_s(prepared_vox, configuration, one_patch_s)
    return tiles + cases_s(scans_vox, labels, restore, slow) + LOADING_S

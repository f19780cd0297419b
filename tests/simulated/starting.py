"""Plans for cards of any size, and whether their training starts within what the card has.

The step is the loop's own, on fake tensors under a card's rules; `Memory` ends where the card does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from autoseg.documents.fingerprint import CaseSummary, Fingerprint, Intensity, LabelSummary
from autoseg.documents.plan import Configuration, Plan
from autoseg.learn.losses import loss_of
from autoseg.learn.trial import trial_step
from autoseg.learn.variants import Variant
from autoseg.nets.cost.blank import blank
from autoseg.nets.cost.cards import CardRules
from autoseg.nets.cost.storages import go_back
from autoseg.nets.scan import arranged_for
from autoseg.rules.memory import OVERHEADS, usable_bytes
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask
from autoseg.stages.plan import Request, device_for
from tests.card import Memory, card, simulated

CARDS_GB = (8, 24, 80)


def fingerprint(
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    channels: tuple[str, ...],
    structures: Mapping[str, tuple[int, int]],
    cases: int,
) -> Fingerprint:
    """A dataset of equal cases; `structures` are label -> (voxels, components) of each case."""
    dimensions = 2 if shape[-1] == 1 else 3
    case = {
        "dimensions": dimensions, "orientation": "LPS", "shape": shape, "spacing_mm": spacing_mm,
        "cropped_shape": shape,
        "label_voxels": tuple(v for v, _ in structures.values()),
        "label_components": tuple(n for _, n in structures.values()),
        "label_component_vox": tuple(v / n for v, n in structures.values()),
        "intensity_ranges": ((-1000.0, 1000.0),) * len(channels),
    }  # fmt: skip
    intensity = {
        "mean": 50.0, "median": 50.0, "std": 40.0, "min": -500.0, "max": 500.0,
        "percentile_00_5": -100.0, "percentile_05": -50.0, "percentile_95": 150.0,
        "percentile_99_5": 200.0,
    }  # fmt: skip
    return Fingerprint(
        dataset="Dataset900_Made",
        dimensions=dimensions,
        channels=channels,
        cases=tuple(CaseSummary(case=f"c{i:04d}", digest=f"{i}", **case) for i in range(cases)),
        intensities=tuple(Intensity(channel=name, **intensity) for name in channels),
        labels=tuple(
            LabelSummary(
                name=name, value=value, cases=cases, share_of_voxels=voxels / prod(shape),
                median_volume_mm3=voxels * prod(spacing_mm), median_components=float(parts),
                median_component_mm3=voxels / parts * prod(spacing_mm),
                smallest_component_mm3=voxels / parts * prod(spacing_mm),
            )
            for value, (name, (voxels, parts)) in enumerate(structures.items(), 1)
        ),
        median_crop_share=1.0,
        imbalance=10.0,
        cases_without_label=(),
        outliers=(),
    )  # fmt: skip


DATASETS = {
    "brats": fingerprint(
        (138, 170, 140), (1.0, 1.0, 1.0), ("T1", "T1c", "T2", "FLAIR"),
        {"edema": (60_000, 4), "necrosis": (10_000, 6), "enhancing": (15_000, 6)}, 484,
    ),
    "liver": fingerprint(
        (512, 512, 432), (0.7676, 0.7676, 1.0), ("CT",),
        {"liver": (2_700_000, 1), "tumour": (60_000, 8)}, 131,
    ),
    "hippocampus": fingerprint(
        (35, 50, 36), (1.0, 1.0, 1.0), ("MRI",),
        {"anterior": (1500, 1), "posterior": (1400, 1)}, 260,
    ),
    "pictures": fingerprint(
        (512, 512, 1), (1.0, 1.0, 1.0), ("red", "green", "blue"), {"nucleus": (20_000, 40)}, 600
    ),
}  # fmt: skip
"""Sizes as in the Medical Segmentation Decathlon (Antonelli et al. 2022, arXiv:2106.05735), and
photographs of cells."""


def planned(
    patch: pytest.MonkeyPatch,
    network: str,
    memory_gb: float,
    dataset: str,
    *,
    use_memory: bool = False,
    **pins: Any,
) -> Plan:
    """The plan of a network for a card that is there; it fills the card where that is asked for."""
    with simulated(patch, card(memory_gb)):
        asked = Request(network=network, pins=pins, use_memory=use_memory)
        ask = Ask(
            network=network, pins=pins, use_memory=use_memory, device=device_for(asked, "cuda")
        )
        return make_plan(DATASETS[dataset], ask)


@contextmanager
def fake_card(fake: FakeTensorMode, limit: int) -> Iterator[Memory]:
    """Tensors without numbers on a card whose memory ends at `limit`."""
    memory = Memory(limit)

    def backward(value: Tensor, *_: Any, **__: Any) -> None:
        go_back(value)

    with pytest.MonkeyPatch.context() as patch, arranged_for("cuda"), CardRules():
        # see `go_back`: torch's own method hides what is computed again
        patch.setattr(Tensor, "backward", backward)
        with fake, memory:
            yield memory


@dataclass(frozen=True)
class Started:
    """The first steps of a training on a card: the most bytes alive, and what ended them if any."""

    peak: int
    planned: int
    """What the planner may give to a step on this card."""
    batch: int
    """Bytes of images and labels: a trial holds them from step to step, which a step is not."""
    refused: str = ""

    @property
    def as_planned(self) -> bool:
        return not self.refused and self.peak <= self.planned + self.batch


def start(configuration: Configuration, memory_gb: float, steps: int = 2) -> Started:
    """The first steps of a plan in its own precision, on a card of `memory_gb` with its context.

    What is refused is beyond the card's memory less the fixed part of `rules.memory.OVERHEADS`; the
    share that the rule keeps for the allocator's gaps, in which no tensor fits, is there.
    """
    spec, train = configuration.network, configuration.train
    precision = card(memory_gb).precision if train.precision == "auto" else train.precision
    shape = (spec.in_channels, *configuration.patch_vox)
    labels = configuration.preparation.labels
    loss = loss_of(train, labels)
    limit = int((memory_gb - OVERHEADS["card"].fixed_gb) * 2**30)
    floats, integers = 4 * spec.in_channels, 8
    batch = (floats + integers) * train.batch_size * prod(configuration.patch_vox)
    refused = ""
    fake = FakeTensorMode()
    net = blank(spec, fake)
    with fake_card(fake, limit) as memory:
        memory.hold([*net.parameters(), *net.buffers()])
        try:
            step = trial_step(net, train, shape, labels.count, Variant(precision), loss)
            for _ in range(steps):
                step()
        except torch.OutOfMemoryError as error:
            refused = str(error)
    return Started(memory.peak, int(usable_bytes(memory_gb)), batch, refused)

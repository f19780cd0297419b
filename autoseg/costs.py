"""What a training step of a network costs: bytes as computed on shapes, seconds as measured.

The one place where a network meets the loss and the optimiser that it would be trained with before
there is a training. Rules and stages are given these functions; torch is imported when they run.
"""

import gc
import logging
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from autoseg.documents.labels import LabelSet, Region
from autoseg.documents.model import Precision
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Training
from autoseg.rules.operations import plain_operations
from autoseg.rules.recipe import CORE_TRAINING

log = logging.getLogger(__name__)

COSTLY = (
    "optimiser",
    "momentum",
    "ema_share",
    "precision",
    "dice_weight",
    "ce_weight",
    "batch_dice",
)
"""Fields of the training that change how many bytes a step needs."""


@dataclass(frozen=True)
class StepBytes:
    """Peak bytes of training steps on a card, as they are computed on shapes.

    Called with (network, patch, batch). Counted in `precision`, with the loss for `labels` and the
    fields of `recipe` (the network's authors' optimiser), unless a person pinned others.
    """

    pins: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "bfloat16"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    labels: LabelSet | None = None
    """None: as many classes as the network has outputs."""

    def __call__(self, network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
        train = training_of(network, batch, self.pins, self.recipe)
        precision = self.precision if train.precision == "auto" else train.precision
        labels = self.labels or labels_for(network)
        return TrainedBytes(train, labels, precision, on_card=True)(network, patch_vox, batch)


def labels_for(network: NetworkSpec) -> LabelSet:
    """Labels that give a network its outputs: a class each, or for a single output one region."""
    count = max(2, network.classes)
    names = ("background", *(f"class {k}" for k in range(1, count)))
    regions = (Region(name="region", classes=(1,), paint=1),) if network.classes == 1 else ()
    return LabelSet(names=names, values=tuple(range(count)), regions=regions)


def training_of(
    network: NetworkSpec, batch: int, pins: Mapping[str, Any], recipe: Mapping[str, Any]
) -> Training:
    """What of the training decides memory and time, in whatever configuration.

    A value that is pinned for one configuration counts for all; of several precisions the widest.
    Raises PlanError for a pinned value that cannot be.
    """
    pinned: dict[str, Any] = {}
    for key, value in pins.items():
        head, _, name = key.rpartition(".")
        wider = pinned.get(name) == "float32"
        if "train" in head.split(".") and name in COSTLY and not wider:
            pinned[name] = value
    given = {"steps": 1, "batch_size": batch, "supervision": network.output_weights}
    return Training.parse({**recipe, **pinned, **given}, "the pinned training")


@dataclass(frozen=True)
class TrainedBytes:
    """Peak bytes of the steps of a training as it stands in a run, on a card or on cores.

    Called with (network, patch, batch). All of `train` is counted with it but its batch.
    """

    train: Training
    labels: LabelSet
    precision: Precision
    on_card: bool

    def __call__(self, network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
        from autoseg.learn.losses import deeply, loss_of
        from autoseg.learn.optimisers import optimiser
        from autoseg.nets.cost import training_bytes

        return training_bytes(
            network,
            patch_vox,
            batch,
            precision=self.precision,
            loss=deeply(loss_of(self.train, self.labels), self.train.supervision),
            optimiser=partial(optimiser, self.train),
            average=self.train.ema_share > 0,
            rules="cuda" if self.on_card else "cpu",
        )


def operations(network: NetworkSpec, patch_vox: tuple[int, ...]) -> int:
    """Multiply-adds of one forward pass of one patch."""
    known = plain_operations(network, patch_vox)
    if known is not None:
        return known
    from autoseg.nets.cost import multiply_adds

    return multiply_adds(network, patch_vox)


class StepTimes:
    """Seconds of training steps on this machine's cores or on a card, measured in a child process.

    A child, so that this process stays free of torch, its threads and what it keeps of a card. Use
    as a context manager. Called with (network, patch, batch). On a card (`device` as `--device`
    names it) the step is that of the plan: its `precision`, what is pinned of its training and the
    network's authors' `recipe`. Where a card has no room for it, it takes infinitely long.
    """

    def __init__(
        self,
        device: str = "cpu",
        precision: Precision = "float32",
        pins: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
        labels: LabelSet | None = None,
    ) -> None:
        self.device, self.precision, self.labels = device, precision, labels
        self.pins, self.recipe = pins or {}, recipe or {}
        self.pool: ProcessPoolExecutor | None = None
        self.known: dict[tuple[NetworkSpec, tuple[int, ...], int], float] = {}

    def __enter__(self) -> "StepTimes":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
        asked = network, patch_vox, batch
        if asked not in self.known:
            if self.pool is None:
                self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            measure = self._on_cores if self.device == "cpu" else self._on_card
            seconds = self.known[asked] = measure(self.pool, *asked)
            log.info("a step of width %d takes %.2f s here", network.widths[0], seconds)
        return self.known[asked]

    def _on_cores(
        self, pool: ProcessPoolExecutor, network: NetworkSpec, patch: tuple[int, ...], batch: int
    ) -> float:
        labels = self.labels or labels_for(network)
        return pool.submit(timed_step, network, patch, batch, labels).result()

    def _on_card(
        self, pool: ProcessPoolExecutor, network: NetworkSpec, patch: tuple[int, ...], batch: int
    ) -> float:
        """Infinite where the card, its driver or the child fails: a plan can do without."""
        train = training_of(network, batch, self.pins, self.recipe)
        precision = self.precision if train.precision == "auto" else train.precision
        labels = self.labels or labels_for(network)
        ask = pool.submit(timed_step_on_card, network, patch, train, labels, self.device, precision)
        try:
            return ask.result()
        except Exception as error:
            log.warning("a step could not be timed on %s: %s", self.device, first_line(error))
            if isinstance(error, BrokenExecutor):
                self.pool = None
            return inf


def timed_step(
    network: NetworkSpec, patch_vox: tuple[int, ...], batch: int, labels: LabelSet
) -> float:
    """Seconds of one training step of a network on all cores, as `train` would do it."""
    from torch import device

    from autoseg.learn.cores import usable_cores
    from autoseg.learn.losses import loss_of
    from autoseg.learn.trial import seconds_per_step, trial_step
    from autoseg.learn.variants import Variant
    from autoseg.nets.build import build

    train = Training(steps=1, batch_size=batch, supervision=network.output_weights, **CORE_TRAINING)
    shape, cpu = (network.in_channels, *patch_vox), device("cpu")
    # where others use the cores too, one thread can be faster than all
    variants = [Variant("float32", "channels_last", n) for n in {usable_cores(), 1}]
    return min(
        seconds_per_step(
            trial_step(build(network), train, shape, labels.count, v, loss_of(train, labels)),
            v,
            cpu,
        )
        for v in variants
    )


def timed_step_on_card(
    network: NetworkSpec,
    patch_vox: tuple[int, ...],
    train: Training,
    labels: LabelSet,
    device: str,
    precision: Precision,
) -> float:
    """Seconds of one training step on a card in its faster layout; infinite where neither fits."""
    from autoseg.device import out_of_memory, pick_device, release_card_memory
    from autoseg.learn.losses import loss_of
    from autoseg.learn.trial import seconds_per_step, trial_step
    from autoseg.learn.variants import Layout, Variant
    from autoseg.nets.build import build

    place, least = pick_device(device), inf
    shape = (network.in_channels, *patch_vox)
    layouts: tuple[Layout, ...] = ("channels_last", "contiguous")
    for layout in layouts:
        variant = Variant(precision, layout)
        try:
            step = trial_step(
                build(network).to(place), train, shape, labels.count, variant,
                loss_of(train, labels),
            )  # fmt: skip
            least = min(least, seconds_per_step(step, variant, place))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            log.info("no room for a step in %s", layout)
        step = _nothing  # the network goes before the next is built
        gc.collect()
        release_card_memory()
    return least


def _nothing() -> None:
    """A step that holds no network."""


def first_line(error: Exception) -> str:
    """What went wrong, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def parameter_count(network: NetworkSpec) -> int:
    """How many numbers a network learns."""
    from torch import device

    from autoseg.nets.build import build
    from autoseg.nets.cost import parameters

    with device("meta"):
        return parameters(build(network))


def prediction_bytes(network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> int:
    """Peak bytes of a forward pass on a card, in mixed precision."""
    from autoseg.nets.cost import inference_bytes

    return inference_bytes(network, patch_vox, batch, precision="bfloat16")

"""A whole CT through a network, from an array in main memory to a label map on the scan's grid.

The volume is made up and the weights are random: what is measured is time and memory alone.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.card.parts import Asked, Row
from bench.inputs import image

SHAPE, SPACING, PATCH, WIDTHS = (
    (512, 512, 300),
    (0.8, 0.8, 1.0),
    (128, 128, 128),
    (32, 64, 128, 256, 320, 320),
)
DRY = ((40, 36, 32), (0.8, 0.8, 1.0), (16, 16, 16), (4, 8))
LONGER = 10
"""All mirrored copies take so many times as long as one, at most."""


def rows(asked: Asked) -> Iterator[Row]:
    from autoseg.api.predictor import Predictor
    from autoseg.device import is_card, measured_on_card, pick_device

    shape, spacing, patch, widths = DRY if asked.dry else (SHAPE, SPACING, PATCH, WIDTHS)
    device, scan = pick_device(asked.device), 200 * image(shape) + 50
    took = 0.0
    for mirror in (False, True):
        row: Row = {"key": "all mirrored copies" if mirror else "one view", "shape": list(shape)}
        if row["key"] in asked.done:
            continue
        if mirror and asked.left() < LONGER * took:
            yield row | {"skipped": "no time was left"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = model_of(Path(folder), patch, widths, spacing[::-1], mirror)
            with Predictor(model, device=asked.device) as predictor:
                start = time.perf_counter()

                def segment(of: Predictor = predictor) -> Any:
                    return of.segment(scan, spacing_mm=spacing)

                if is_card(device):
                    labels, row["card_bytes"] = measured_on_card(device, segment)
                else:
                    labels = segment()
                took = time.perf_counter() - start
        yield row | {"seconds": took, "labels": sorted(map(int, set(labels[::8, ::8, ::8].flat)))}


def model_of(
    folder: Path,
    patch: Sequence[int],
    widths: Sequence[int],
    spacing: Sequence[float],
    mirror: bool,
) -> Path:
    """A package of one plain network with random weights, for CT."""
    import torch

    from autoseg import __version__
    from autoseg.documents.labels import LabelSet
    from autoseg.documents.model import Member, ModelSpec, Weights
    from autoseg.documents.plan import (
        Augmentation,
        ChannelScale,
        Configuration,
        Prediction,
        Preparation,
        Sampling,
        Training,
    )
    from autoseg.documents.presets.table import network_spec
    from autoseg.files import sha256_file
    from autoseg.learn.weights import save_weights
    from autoseg.nets.build import build
    from autoseg.stages.package import export

    levels = len(widths)
    net = network_spec("plain", 1, 3, widths, [(1, 1, 1), *[(2, 2, 2)] * (levels - 1)],
                       [(3, 3, 3)] * levels)  # fmt: skip
    labels = LabelSet(names=("background", "organ", "lesion"), values=(0, 1, 2))
    scale = ChannelScale(
        scheme="ct", mean=50.0, std=200.0, percentile_00_5=-500.0, percentile_99_5=600.0
    )
    configuration = Configuration(
        preparation=Preparation(axes="stored", spacing_mm=spacing, channels=(scale,), labels=labels),
        patch_vox=patch, median_shape_vox=(300, 512, 512), network=net,
        sampling=Sampling(foreground_share=0.33, class_weights=(0.5, 0.5)),
        augmentation=Augmentation(rotation_degrees=(30, 30, 30), mirror_axes=(0, 1, 2)),
        train=Training(steps=1, batch_size=2, supervision=net.output_weights),
        predict=Prediction(mirror=mirror),
    )  # fmt: skip
    torch.manual_seed(3)
    path = folder / "weights.safetensors"
    save_weights(path, build(net), {})
    weights = Weights(fold="0", file=path.name, sha256=sha256_file(path), size=path.stat().st_size)
    member = Member(name="3d_fullres", plan="card", run="card", configuration=configuration,
                    weights=(weights,))  # fmt: skip
    spec = ModelSpec(
        name="card", dataset="Dataset999_Card", dimensions=3, channels=("CT",), labels=labels,
        members=(member,), intensity_ranges=(None,), spacing_ranges_mm=((0.1, 10.0),) * 3,
        version=__version__,
    )  # fmt: skip
    export(spec, folder, folder / "model.autoseg", card="Random weights.\n", overwrite=True)
    return folder / "model.autoseg"


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Seconds of a scan."""
    return {row["key"]: row["seconds"] for row in rows if "seconds" in row}

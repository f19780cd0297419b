"""A model of three tiny networks with random weights, for the tests of packages and cards."""

import json
from pathlib import Path
from typing import Any

import torch

from autoseg.documents.model import Member, ModelSpec, Weights
from autoseg.documents.plan import Configuration
from autoseg.documents.postprocessing import KeepLargest, MinimumSize
from autoseg.documents.presets.table import network_spec
from autoseg.documents.report import CaseScores, label_scores, summarise
from autoseg.files import sha256_file
from autoseg.learn.weights import save_weights
from autoseg.nets.build import build

GOLDEN = Path(__file__).parents[1] / "golden" / "plans" / "v1_ct_card.json"
LABELS = {"names": ["background", "liver", "tumour_a"], "values": [0, 1, 4]}
FOLDERS = "patient_Meier/run_of_Smith"
"""Where the weights lie before they are exported."""


def configuration(previous: str | None = None, width: int = 4) -> Configuration:
    """A network of two levels on patches of 8 x 16 x 16 voxels."""
    plan = json.loads(GOLDEN.read_text(encoding="utf-8"))
    document: dict[str, Any] = next(
        c for c in plan["configurations"].values() if len(c["patch_vox"]) == 3
    )
    inputs = len(document["preparation"]["channels"]) + (2 if previous else 0)
    net = network_spec(
        "plain", inputs, 3, (width, 2 * width, 4 * width), [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3
    )  # fmt: skip
    document["preparation"]["labels"] = LABELS
    document |= {"network": net.dump(), "patch_vox": [8, 16, 16], "previous": previous}
    document["sampling"]["class_weights"] = [0.5, 0.5]
    document["augmentation"]["rotation_degrees"] = [30.0, 30.0, 30.0]
    document["augmentation"]["dummy_2d"] = False
    document["train"]["supervision"] = list(net.output_weights)
    return Configuration.parse(document, "the tiny configuration")


def member(root: Path, name: str, folds: int, *, previous: str | None = None) -> Member:
    """Trained folds below `root`, each with other random weights."""
    made = configuration(previous)
    weights = []
    for fold in range(folds):
        torch.manual_seed(sum(map(ord, name)) + fold)
        file = f"{FOLDERS}/{name}/fold_{fold}/weights.safetensors"
        save_weights(root / file, build(made.network), {"step": 8, "score": 0.5})
        path = root / file
        weights.append(
            Weights(
                fold=str(fold), file=file, sha256=sha256_file(path), size=path.stat().st_size
            )
        )  # fmt: skip
    return Member(
        name=name, plan="default", run="a", configuration=made, weights=tuple(weights),
        layouts={"cpu": "contiguous"},
    )  # fmt: skip


def tiny_model(root: Path, *, scored: bool = True) -> ModelSpec:
    """Two members, one of which refines a stage that is the other: 2 + 1 folds of weights."""
    low = member(root, "3d_lowres", 2)
    cascade = member(root, "3d_cascade_fullres", 1, previous="3d_lowres")
    cases = [
        CaseScores(
            case=f"Meier_{i}",
            labels={
                "liver": label_scores("both", {"dice": 0.9 + i / 100, "hd95_mm": 2.0 + i}, {}),
                "tumour_a": label_scores("missed", {"dice": 0.0, "hd95_mm": float("inf")},
                                         {"hd95_mm": "missed"}),
            },
        )
        for i in range(4)
    ]  # fmt: skip
    channels = low.configuration.preparation.channels
    return ModelSpec(
        name="hippo",
        dataset="Dataset900_Made",
        dimensions=3,
        channels=tuple(f"CT{i or ''}" for i in range(len(channels))),
        labels=low.configuration.preparation.labels,
        members=(cascade, low),
        stages=(low,),
        postprocessing=(KeepLargest(of="liver"), MinimumSize(of="*", mm3=12.5)),
        intensity_ranges=((-1000.0, 1500.0),) * len(channels),
        spacing_ranges_mm=((0.7, 5.0), (0.5, 1.0), (0.5, 1.0)),
        cross_validation=summarise(cases) if scored else None,
        version="0.1.0",
    )


def one_network(root: Path) -> ModelSpec:
    """One fold of one member of it, without mirroring and postprocessing."""
    document = tiny_model(root).dump()
    low = document["stages"][0]
    low["weights"] = low["weights"][:1]
    low["configuration"]["predict"]["mirror"] = False
    document |= {"members": [low], "stages": [], "postprocessing": []}
    return ModelSpec.parse(document, "the tiny model")

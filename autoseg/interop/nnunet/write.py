"""A model of ours as a folder with which nnU-Net v2 predicts: plans.json, dataset.json, checkpoints.

    FOLDER/nnUNetTrainer__PLAN__3d_fullres/{plans.json,dataset.json,fold_0/checkpoint_final.pth}

nnU-Net knows a file's axes in their stored order, or turned to RAS, and never flips one; what it
cannot say is refused in one line.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from autoseg.documents.labels import LabelSet
from autoseg.documents.model import Member, ModelSpec, Weights
from autoseg.documents.networks.sentence import UNetSpec
from autoseg.documents.plan import SEPARATE_Z_ABOVE, Configuration, Preparation
from autoseg.errors import AutosegError, PlanError
from autoseg.files import replacing_folder, sha256_file, write_json
from autoseg.interop.nnunet.commands import INSTRUCTIONS, commands
from autoseg.interop.nnunet.folder import DATASET, FINAL, INFORMATION, PLANS
from autoseg.interop.nnunet.network import aliases, architecture_of, foreign_names
from autoseg.interop.nnunet.plan import PLANNERS, SCHEMES
from autoseg.interop.nnunet.plan import READERS as READER_OF
from autoseg.interop.nnunet.read import BACKWARDS, NOTHING, SPLINE
from autoseg.learn.weights import load_weights
from autoseg.nets.build import build
from autoseg.rules import grid

log = logging.getLogger(__name__)

TRAINER = "nnUNetTrainer"
EPOCHS = 1000
TURNING = {".nii.gz": "NibabelIOWithReorient", ".nii": "NibabelIOWithReorient"}
"""Readers that turn scans to RAS, by the ending of the files; SimpleITK's for the others."""
LOSSY = (".jpg", ".jpeg")
PICTURES = (".tif", ".tiff", *LOSSY)
STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")


def write_model(
    spec: ModelSpec,
    folder: Path,
    output: Path,
    *,
    ending: str,
    orientation: str | None,
    overwrite: bool = False,
) -> list[Path]:
    """The model folders, one a configuration, written below `output` in one step.

    The weights lie below `folder`. `ending` is that of the images; `orientation` is how all scans of
    the training set are stored, None where they differ or nobody knows. Raises AutosegError for a
    model that nnU-Net cannot express, or an output that is there unless `overwrite` is set.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
        raise AutosegError(f"{output} exists; name another folder, or replace it with --overwrite")
    written = Written(spec, ending, orientation)
    places = {title: output / name for title, name in written.folders.items()}
    said = commands(spec, places)
    with replacing_folder(output) as half:
        for title, member in written.members.items():
            home = half / written.folders[title]
            home.mkdir()
            plans = written.plans(plans_name(member))
            write_json(home / PLANS, plans)
            write_json(home / DATASET, written.dataset)
            for weights in member.weights:
                place = home / f"fold_{weights.fold}" / FINAL
                place.parent.mkdir()
                torch.save(_checkpoint(member, weights, folder, plans, written.dataset), place)
        if len(places) > 1:
            write_json(half / INFORMATION, written.information)
        text = "\n".join([*(f"# {line}" for line in written.lost()), *said])
        (half / INSTRUCTIONS).write_text(f"{text}\n", encoding="utf-8")
    for line in written.lost():
        log.warning("%s", line)
    log.info("to predict with nnU-Net, as %s says:", output / INSTRUCTIONS)
    for line in said:
        log.info("  %s", line)
    return list(places.values())


def _planner(c: Configuration) -> str:
    """nnU-Net's planner of such networks; it reads no more than the name from it."""
    preset = c.network.preset
    usual = "resenc_m" if preset.startswith("resenc") else "plain"
    return PLANNERS.get(preset, PLANNERS[usual])[0]


def plans_name(member: Member) -> str:
    """The name of a member's plan as nnU-Net may call it; other runs are other plans there."""
    run = "" if member.run == "default" or member.run.startswith(TRAINER) else f"_{member.run}"
    return f"{member.plan}{run}".replace("__", "_")


class Written:
    """What a model's documents become."""

    def __init__(self, spec: ModelSpec, ending: str, orientation: str | None) -> None:
        self.spec = spec
        self.lossy = ending.lower() in LOSSY
        self.ending = ".png" if self.lossy else ending
        self.members: dict[str, Member] = {}
        self.folders: dict[str, str] = {}
        self.configurations: dict[str, dict[str, Any]] = {}
        self.firsts: dict[str, Member] = {}
        for member in spec.every_member():
            self._take(member)
        self.readers = {
            name: reader_and_order(
                first.configuration.preparation.axes, ending, orientation, spec.dimensions
            )
            for name, first in self.firsts.items()
        }
        if len({reader for reader, _ in self.readers.values()}) > 1:
            raise PlanError(
                "nnU-Net would read the scans of some members turned and of others as stored, and "
                "cannot average these; export one with -c"
            )

    def _take(self, member: Member) -> None:
        """Keep what is written of a member; one that is a stage and speaks as well is there once."""
        known, name = self.members.get(member.title), plans_name(member)
        folder = f"{TRAINER}__{name}__{member.name}"
        if known is not None and known.weights == member.weights:
            return
        if folder in self.folders.values():
            raise PlanError(f"two members would both be {folder} in nnU-Net; export one with -c")
        self.members[member.title], self.folders[member.title] = member, folder
        first = self.firsts.setdefault(name, member).configuration.preparation.axes
        own = member.configuration.preparation.axes
        if own != first:
            raise PlanError(f"the members of {name} have the axes {first} and {own}; export one")
        group = self.configurations.setdefault(name, {})
        group[member.name] = configuration_as(member.name, member.configuration)
        before = group[member.name].get("previous_stage")
        if before is not None:
            stage = self.spec.stage(before)
            group.setdefault(before, configuration_as(before, stage.configuration))
            group[before]["next_stage"] = member.name

    def plans(self, name: str) -> dict[str, Any]:
        """The plans.json of one plan."""
        known, (reader, order) = self.configurations[name], self.readers[name]
        first = self.firsts[name].configuration
        median = [(low + high) / 2 for low, high in self.spec.spacing_ranges_mm]
        return {
            "dataset_name": self.spec.dataset,
            "plans_name": name,
            "original_median_spacing_after_transp": median,
            "original_median_shape_after_transp": list(first.median_shape_vox),
            "image_reader_writer": reader,
            "transpose_forward": list(order),
            "transpose_backward": list(grid.inverse_order(order)),
            "configurations": known,
            "experiment_planner_used": _planner(first),
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(channel): _statistics(scale.model_dump())
                for channel, scale in enumerate(first.preparation.channels)
            },
        }

    @property
    def dataset(self) -> dict[str, Any]:
        """The dataset.json."""
        return {
            "channel_names": {str(i): name for i, name in enumerate(self.spec.channels)},
            **labels_as(self.spec.labels),
            "numTraining": 0,
            "file_ending": self.ending,
            "name": self.spec.dataset,
        }

    @property
    def information(self) -> dict[str, Any]:
        """Which models speak together, where nnU-Net's own choice would stand."""
        chosen = [
            {"configuration": m.name, "trainer": TRAINER, "plans_identifier": plans_name(m)}
            for m in self.spec.members
        ]
        return {"best_model_or_ensemble": {"selected_model_or_models": chosen}}

    def lost(self) -> Iterator[str]:
        """What of the model nnU-Net has to be told, or cannot do."""
        if self.lossy:
            yield "nnU-Net takes no jpg: convert pictures to .png"
        for step in self.spec.postprocessing:
            yield f"nnU-Net does not do the postprocessing by itself: {step.phrase}"
        for member in self.spec.every_member():
            predict = member.configuration.predict
            if predict.whole_up_to or predict.sigma_scale != 0.125:
                yield f"{member.name}: nnU-Net weighs tiles in its own way; labels differ a little"


def reader_and_order(
    axes: str, ending: str, orientation: str | None, dimensions: int = 3
) -> tuple[str, tuple[int, int, int]]:
    """nnU-Net's reader and `transpose_forward` for a plan's axes. Raises PlanError for none."""
    usual = reader_of(ending, dimensions)
    if axes.startswith("stored"):
        letters = axes.partition(":")[2] or BACKWARDS["file"]
        return usual, _places(letters, BACKWARDS["file"])
    picture = usual in ("NaturalImage2DIO", "Tiff3DIO")
    if set(axes) == set(BACKWARDS["turned"]) and not picture:
        reader = TURNING.get(ending.lower(), "SimpleITKIOWithReorient")
        return reader, _places(axes, BACKWARDS["turned"])
    stored = "RAS" if picture else orientation
    if stored is None or set(stored) != set(axes):
        found = "in several ways" if stored is None else f"as {stored}"
        raise PlanError(
            f"the model sees scans along {axes}, the training set is stored {found}, and nnU-Net never "
            "flips an axis; plan again with --planner nnunet --set axes=stored and train, or use -o"
        )
    if not picture:
        log.warning("nnU-Net will not turn scans: it segments those that are stored as %s", stored)
    return usual, _places(axes, stored[::-1])


def reader_of(ending: str, dimensions: int) -> str:
    """nnU-Net's reader of files with an ending; tif files are pictures or volumes."""
    if ending.lower() in PICTURES:
        return "NaturalImage2DIO" if dimensions == 2 else "Tiff3DIO"
    return READER_OF.get(ending.lower(), "SimpleITKIO")


def _places(letters: str, backwards: str) -> tuple[int, int, int]:
    a, b, c = (backwards.index(letter) for letter in letters)
    return (a, b, c)


def configuration_as(name: str, c: Configuration) -> dict[str, Any]:
    """A configuration under nnU-Net's keys. Raises PlanError for one that it cannot have."""
    p = c.preparation
    if p.crop != "nonzero":
        raise PlanError(f"{name} does not crop scans to what is not zero, nnU-Net always does")
    flat = c.dimensions == 2
    spacing = [mm for mm in p.spacing_mm if mm is not None] or [1.0] * c.dimensions
    if len(spacing) != c.dimensions:
        raise PlanError(f"{name} has the spacing {p.spacing_mm}, which nnU-Net cannot have")
    found: dict[str, Any] = {
        "data_identifier": f"autoseg_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": c.train.batch_size,
        "patch_size": list(c.patch_vox),
        "median_image_size_in_voxels": [float(n) for n in c.median_shape_vox[int(flat) :]],
        "spacing": spacing,
        "normalization_schemes": [SCHEMES[channel.scheme] for channel in p.channels],
        "use_mask_for_norm": [channel.use_mask for channel in p.channels],
        **_resampling(p),
        "architecture": architecture_of(c.network, name),
        "batch_dice": c.train.batch_dice,
    }
    if c.previous is not None:
        found["previous_stage"] = c.previous.configuration
    return found


def _resampling(p: Preparation) -> dict[str, Any]:
    never = all(mm is None for mm in p.spacing_mm)
    rule: dict[str, Any] = {"force_separate_z": False if p.separate_z_above is None else None}
    if p.separate_z_above not in (None, SEPARATE_Z_ABOVE):
        rule["separate_z_anisotropy_threshold"] = p.separate_z_above
    orders: dict[str, dict[str, Any]] = {
        "data": {"is_seg": False, "order": p.image_order, "order_z": p.image_order_z},
        "seg": {"is_seg": True, "order": p.label_order, "order_z": p.label_order_z},
        "probabilities": {"is_seg": False, "order": 1, "order_z": 0},
    }
    found: dict[str, Any] = {}
    for what, options in orders.items():
        found[f"resampling_fn_{what}"] = NOTHING if never else SPLINE
        found[f"resampling_fn_{what}_kwargs"] = {} if never else {**options, **rule}
    return found


def labels_as(labels: LabelSet) -> dict[str, Any]:
    """The entries of dataset.json that say what labels mean. Raises PlanError for gaps in values."""
    highest = max(labels.values)
    if not labels.regions and sorted(labels.values) != list(range(highest + 1)):
        raise PlanError(
            f"the labels have the values {list(labels.values)}; nnU-Net needs 0, 1, 2, … without gaps"
        )
    if labels.regions:
        named: dict[str, Any] = {
            r.name: [labels.values[c] for c in r.classes] for r in labels.regions
        }
    else:
        named = dict(zip(labels.names[1:], labels.values[1:], strict=True))
    found: dict[str, Any] = {"labels": {"background": 0, **named}}
    if labels.ignore == highest + 1:
        found["labels"]["ignore"] = labels.ignore
    if labels.regions:
        found["regions_class_order"] = [labels.values[r.paint] for r in labels.regions]
    return found


def _statistics(scale: Mapping[str, Any]) -> dict[str, float]:
    known = {name: 0.0 if scale[name] is None else float(scale[name]) for name in STATISTICS}
    low, high = known["percentile_00_5"], known["percentile_99_5"]
    return known | {"median": known["mean"], "min": low, "max": high}


def _checkpoint(
    member: Member,
    weights: Weights,
    folder: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
) -> dict[str, Any]:
    """What nnU-Net keeps of a trained fold: tensors and plain values."""
    c = member.configuration
    path = folder / weights.file
    if sha256_file(path) != weights.sha256:
        raise AutosegError(f"{path} changed since the model was put together; export again")
    mirrored = c.augmentation.mirror_axes if c.predict.mirror else ()
    return {
        "network_weights": foreign_weights(path, c),
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": EPOCHS,
        "init_args": {
            "plans": dict(plans),
            "configuration": member.name,
            "fold": weights.fold if weights.fold == "all" else int(weights.fold),
            "dataset_json": dict(dataset),
        },
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": tuple(mirrored) or None,
    }


def foreign_weights(path: Path, configuration: Configuration) -> dict[str, torch.Tensor]:
    """The weights in a file of ours under every name that nnU-Net has for them."""
    spec = configuration.network
    if not isinstance(spec, UNetSpec):
        raise ValueError(f"{spec.preset} is no network of nnU-Net")
    net = build(spec)
    load_weights(path, net)
    state, found = net.state_dict(), dict[str, torch.Tensor]()
    for ours, theirs in foreign_names(spec).items():
        tensor = state[ours].detach().contiguous()
        for name in (theirs, *aliases(spec, theirs)):
            found[name] = tensor
    return found

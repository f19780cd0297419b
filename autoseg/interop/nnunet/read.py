"""What does a `plans.json` of nnU-Net say in our words: configurations, and a plan made of them.

nnU-Net reads a file's axes backwards and transposes them: our `stored:` axes, or letters where its
reader turns every scan to RAS. Plans of 2.0 to 2.2 name their network by flat keys.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.documents.plan import Configuration, Plan
from autoseg.errors import AutosegError, PlanError, nearest
from autoseg.files import explaining, read_json
from autoseg.interop.nnunet.network import architecture_in, kind_of, network_of, shown
from autoseg.interop.nnunet.plan import SCHEMES

log = logging.getLogger(__name__)

LONGEST = 64 << 20
"""Bytes of a JSON file; with the spacings of a hundred thousand cases it has a tenth of it."""
STEPS = 250_000
"""1000 epochs of 250 steps."""
TURNED = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
"""Readers that turn every scan to RAS before its axes are read backwards."""
READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO", *TURNED)
BACKWARDS = {"file": "kji", "turned": "SAR"}

SPLINE = "resample_data_or_seg_to_shape"
LINEAR = ("resample_torch_fornnunet", "resample_torch_simple")
NOTHING = "no_resampling_hack"
RULE = 3.0
"""nnU-Net resamples slices apart where they are more than so many times thicker than pixels."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises AutosegError if there is none."""
    with explaining(path, "read"):
        if path.stat().st_size > LONGEST:
            raise AutosegError(f"{path} has more than {LONGEST} bytes; nnU-Net's files are smaller")
    try:
        found = read_json(path)
    except (RecursionError, ValueError) as error:
        # brackets inside brackets, and numbers of thousands of digits
        raise AutosegError(f"{path} is no JSON of nnU-Net: {str(error)[:80]}") from error
    if not isinstance(found, dict):
        raise AutosegError(f"{path} holds no JSON object; give the file that nnU-Net wrote")
    return found


class NNUNetPlans:
    """A `plans.json` with the `dataset.json` that belongs to it."""

    def __init__(self, plans: Mapping[str, Any], dataset: Mapping[str, Any], where: str) -> None:
        self.plans, self.dataset, self.where = plans, dataset, where
        for key in ("configurations", "transpose_forward", "image_reader_writer"):
            if key not in plans:
                raise PlanError(f"{where} has no {key}; it is no plans.json of nnU-Net v2")
        if not isinstance(plans["configurations"], Mapping) or not plans["configurations"]:
            raise PlanError(f"{where} has no configuration; restore the file")
        if not isinstance(dataset.get("labels"), Mapping):
            raise AutosegError(f'the dataset.json beside {where} has no "labels"; restore the file')
        self.labels: LabelSet = parse_labels(dataset["labels"], dataset.get("regions_class_order"))
        self.channels = _channels(dataset, where)
        self.order = _order(plans["transpose_forward"], where)

    @property
    def name(self) -> str:
        return str(self.plans.get("dataset_name") or self.dataset.get("name") or "nnU-Net")[:100]

    @property
    def plans_name(self) -> str:
        return str(self.plans.get("plans_name") or "nnUNetPlans")[:100]

    @property
    def reader(self) -> str:
        reader = str(self.plans["image_reader_writer"])
        if reader not in READERS:
            raise PlanError(
                f"{self.where} reads images with {reader!r}, which is not known here"
                + nearest(reader, list(READERS))
            )
        return reader

    @property
    def axes(self) -> str:
        """The order of our arrays' axes, as the plan's `axes` says it."""
        if self.reader in TURNED:
            return "".join(BACKWARDS["turned"][axis] for axis in self.order)
        letters = "".join(BACKWARDS["file"][axis] for axis in self.order)
        return "stored" if letters == BACKWARDS["file"] else f"stored:{letters}"

    @property
    def flat(self) -> bool:
        """Whether the dataset holds single slices."""
        return self._slices() < 1.5

    def _slices(self) -> float:
        """The median length of axis 0 over the training set."""
        key = "original_median_shape_after_transp"
        shape = self.plans.get(key, [2])
        return _number(shape[0] if isinstance(shape, list) and shape else None, key, self.where)

    @property
    def median_mm(self) -> tuple[float, ...] | None:
        """The median spacing of the training set in our axes, where it is known."""
        found = self.plans.get("original_median_spacing_after_transp")
        return None if found is None else _lengths(found, 3, "the median spacing", self.where)

    def said(self, name: str, passed: tuple[str, ...] = ()) -> dict[str, Any]:
        """One configuration with what it inherits. Raises PlanError naming those that there are."""
        known = self.plans["configurations"]
        if name not in known or not isinstance(known[name], Mapping):
            raise PlanError(
                f"{self.where} has no configuration {name!r}{nearest(name, list(known))}"
            )
        if name in passed:
            raise PlanError(f"{self.where}: {name} inherits from itself")
        own = dict(known[name])
        parent = own.get("inherits_from")
        return own if parent is None else {**self.said(str(parent), (*passed, name)), **own}

    def previous(self, name: str) -> str | None:
        """The configuration that a cascade's refines."""
        found = self.said(name).get("previous_stage")
        return None if found is None else str(found)

    def configuration(self, name: str, mirror_axes: Sequence[int] | None = None) -> Configuration:
        """A configuration in our words; `mirror_axes` None: all axes, as nnU-Net trains.

        Raises PlanError for what cannot be said so.
        """
        said = self.said(name)
        where = f"{self.where}, {name}"
        patch = _sizes(said, "patch_size", where)
        before = said.get("previous_stage")
        inputs = len(self.channels) + (self.labels.count - 1 if before else 0)
        architecture = architecture_in(said, where)
        network = network_of(
            architecture, inputs, self.labels.outputs, self._preset(architecture, where), where
        )
        if any(axis >= len(patch) for axis in mirror_axes or ()):
            raise PlanError(f"{where}: mirroring axis {max(mirror_axes or ())} of a 2D network")
        every = tuple(range(len(patch)))
        document: dict[str, Any] = {
            "preparation": self._preparation(said, where),
            "patch_vox": patch,
            "median_shape_vox": self._median_shape(said, len(patch)),
            "network": network.dump(),
            "sampling": _sampling(self.labels),
            "augmentation": _augmentation(patch, every if mirror_axes is None else mirror_axes),
            "train": {
                "steps": STEPS,
                "batch_size": int(_number(said.get("batch_size", 2), "batch_size", where)),
                "batch_dice": bool(said.get("batch_dice", False)),
                "supervision": network.output_weights,
            },
        }
        if before:
            document["previous"] = str(before)
        return Configuration.parse(document, where)

    def _preset(self, architecture: Mapping[str, Any], where: str) -> str:
        """The preset that a network comes from; only a name."""
        if kind_of(architecture, where) == "plain":
            return "plain"
        planner = str(self.plans.get("experiment_planner_used", ""))
        return next((f"resenc_{s.lower()}" for s in ("XL", "L") if planner.endswith(s)), "resenc_m")

    def _preparation(self, said: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {
            "axes": self.axes,
            "spacing_mm": _spacing(said, where),
            "channels": self._scales(said, where),
            "labels": self.labels.dump(),
            **_resampling(said, where),
        }

    def _scales(self, said: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """How each channel is normalised."""
        names, masks = said.get("normalization_schemes"), said.get("use_mask_for_norm")
        count = len(self.channels)
        if not isinstance(names, list) or len(names) != count:
            raise PlanError(f"{where} normalises another number of channels than {count}")
        masks = masks if isinstance(masks, list) and len(masks) == count else [False] * count
        ours = {theirs: mine for mine, theirs in SCHEMES.items()}
        found: list[dict[str, Any]] = []
        for channel, (name, mask) in enumerate(zip(names, masks, strict=True)):
            if not isinstance(name, str) or name not in ours:
                raise PlanError(
                    f"{where} normalises with {str(name)[:60]!r}, which is not known here"
                    + nearest(str(name), list(ours))
                )
            scale: dict[str, Any] = {"scheme": ours[name]}
            if ours[name] == "zscore":
                scale["use_mask"] = bool(mask)
            if ours[name] == "ct":
                scale |= self._statistics(channel, where)
            found.append(scale)
        return found

    def _statistics(self, channel: int, where: str) -> dict[str, float]:
        for key in ("foreground_intensity_properties_per_channel",
                    "foreground_intensity_properties_by_modality"):  # fmt: skip
            every = self.plans.get(key)
            found = every.get(str(channel)) if isinstance(every, Mapping) else None
            if isinstance(found, Mapping):
                return {
                    name: _number(found.get(name), name, where)
                    for name in ("mean", "std", "percentile_00_5", "percentile_99_5")
                }
        raise PlanError(
            f"{where} normalises CT, but the plans hold no intensities of channel {channel}"
        )

    def _median_shape(self, said: Mapping[str, Any], dimensions: int) -> list[int]:
        key = "median_image_size_in_voxels"
        found = said.get(key)
        shape = [_number(n, key, self.where) for n in found] if isinstance(found, list) else []
        if dimensions == 2 and len(shape) == 2:
            shape = [self._slices(), *shape]
        return [max(1, round(n)) for n in shape] if len(shape) == 3 else [1, 1, 1]


def plan_of(found: NNUNetPlans, name: str, dataset: str, channels: Sequence[str]) -> Plan:
    """All configurations of a plans.json as a plan of ours, under its name.

    Raises AutosegError for what cannot be said so.
    """
    configurations = {each: found.configuration(each) for each in found.plans["configurations"]}
    why = f"as nnU-Net's plans {found.plans_name} say it."
    document = {
        "schema": 1,
        "name": name,
        "dataset": dataset,
        "planner": "nnunet",
        "dimensions": 2 if found.flat else 3,
        "channels": channels,
        "labels": found.labels.dump(),
        "gpu_memory_gb": None,
        "train_minutes": None,
        "configurations": {each: made.dump() for each, made in configurations.items()},
        "why": {f"configurations.{each}": why for each in configurations},
    }
    return Plan.parse(document, found.where)


# ---- parts of a configuration


def _spacing(said: Mapping[str, Any], where: str) -> list[float | None]:
    """The target spacing, None along axes that keep their own."""
    if str(said.get("resampling_fn_data", SPLINE)) == NOTHING:
        return [None, None, None]
    found = _lengths(said.get("spacing"), None, "spacing", where)
    return [None, *found] if len(found) == 2 else list(found)


def _resampling(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The orders of the splines, and when slices go apart."""
    image, apart = _orders(said, "data", 3, where)
    label, label_apart = _orders(said, "seg", 1, where)
    logits, logits_apart = _orders(said, "probabilities", 1, where)
    if logits != (1, 0):
        raise PlanError(
            f"{where} resamples probabilities with order {logits[0]}, order_z {logits[1]}; here it is "
            "1 and 0 always"
        )
    if len({apart, label_apart, logits_apart}) > 1:
        raise PlanError(f"{where} resamples images and labels by different rules for coarse slices")
    if image[0] not in (0, 1, 3) or image[1] not in (0, 1, 3):
        raise PlanError(f"{where} resamples images with order {image}; here it is 0, 1 or 3")
    if label[0] not in (0, 1) or label[1] != 0:
        raise PlanError(f"{where} resamples labels with order {label}; here it is 0 or 1, and 0")
    found: dict[str, Any] = {
        "image_order": image[0], "image_order_z": image[1], "label_order": label[0],
    }  # fmt: skip
    return found if apart == RULE else found | {"separate_z_above": apart}


def _orders(
    said: Mapping[str, Any], what: str, usual: int, where: str
) -> tuple[tuple[int, int], float | None]:
    """(order, order between slices) and the ratio above which slices go apart; None: never."""
    function = str(said.get(f"resampling_fn_{what}", SPLINE))
    given = said.get(f"resampling_fn_{what}_kwargs")
    options = dict(given) if isinstance(given, Mapping) else {}
    forced = options.get("force_separate_z")
    ratio = _number(options.get("separate_z_anisotropy_threshold", RULE), "threshold", where)
    apart = ratio if forced is None else 0.0 if forced else None
    if function == NOTHING:
        return (usual, 0), RULE
    if function == LINEAR[1]:
        return (1, 0), None
    if function == LINEAR[0]:
        mode = options.get("mode", "linear"), options.get("aniso_axis_mode", "nearest-exact")
        if mode != ("linear", "nearest-exact"):
            raise PlanError(f"{where} resamples in the modes {mode}, which are not known here")
        return (1, 0), apart
    if function != SPLINE:
        raise PlanError(
            f"{where} resamples with {function!r}, which is not known here"
            + nearest(function, [SPLINE, *LINEAR, NOTHING])
        )
    orders = options.get("order", usual), options.get("order_z", 0)
    if any(type(order) is not int for order in orders):
        raise PlanError(
            f"{where} has resampling orders {orders[0]!s:.20}, {orders[1]!s:.20}; expected whole numbers"
        )
    return orders, apart


def _sampling(labels: LabelSet) -> dict[str, Any]:
    count = labels.count - 1
    return {"foreground_share": 1 / 3, "class_weights": [1 / count] * count, "class_first": False}


def _augmentation(patch: Sequence[int], mirror_axes: Sequence[int]) -> dict[str, Any]:
    """nnU-Net's angles: any in a plane, few where a patch is long or has depth."""
    flat = len(patch) == 3 and patch[0] * 3 < min(patch[1:])
    if len(patch) == 3 and not flat:
        degrees: list[float] = [30.0, 30.0, 30.0]
    else:
        degrees = [15.0 if max(patch[-2:]) > 1.5 * min(patch[-2:]) and not flat else 180.0]
    return {"rotation_degrees": degrees, "dummy_2d": flat, "mirror_axes": list(mirror_axes)}


def _sizes(said: Mapping[str, Any], key: str, where: str) -> list[int]:
    found = said.get(key)
    if not isinstance(found, list) or len(found) not in (2, 3):
        raise PlanError(f"{where}: {key} is {shown(found)}; expected 2 or 3 numbers")
    return [int(_number(n, key, where)) for n in found]


def _lengths(found: Any, count: int | None, what: str, where: str) -> tuple[float, ...]:
    if not isinstance(found, list) or len(found) not in ((2, 3) if count is None else (count,)):
        raise PlanError(f"{where}: {what} is {shown(found)}; expected lengths in mm")
    lengths = tuple(_number(n, what, where) for n in found)
    if min(lengths) <= 0:
        raise PlanError(f"{where}: {what} is {lengths}; lengths are positive")
    return lengths


def _number(found: Any, what: str, where: str) -> float:
    # written so that NaN is refused as well
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) <= 1e12:
        raise PlanError(f"{where}: {what} is {shown(found)}; expected a number")
    return float(found)


def _order(found: Any, where: str) -> tuple[int, int, int]:
    if not isinstance(found, list) or sorted(map(str, found)) != ["0", "1", "2"]:
        raise PlanError(
            f"{where}: transpose_forward is {shown(found)}; expected 0, 1, 2 in some order"
        )
    a, b, c = (int(axis) for axis in found)
    return (a, b, c)


def _channels(dataset: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = dataset.get("channel_names", dataset.get("modality"))
    if isinstance(names, Mapping) and names and all(str(key).isdecimal() for key in names):
        return tuple(str(name) for _, name in sorted(names.items(), key=lambda p: int(p[0])))
    if isinstance(names, list) and names:
        return tuple(map(str, names))
    raise AutosegError(f"the dataset.json beside {where} has no channel_names; restore the file")

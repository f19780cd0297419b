"""What the values of a label map mean: names, values, regions, and the class index of each.

Label values need not be consecutive: classes are numbered 0 (background), 1, 2, … in the order of
their values, and everything after the reader works with class indices. Written label maps hold
the values again. Overlapping structures (BraTS) are regions: sets of classes, each with an output
of its own, painted back one over the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from autoseg.documents.document import Document
from autoseg.errors import AutosegError

LARGEST_VALUE = 2**31 - 1
"""Label maps are read and written in 32 bits at most."""
OUTSIDE = -1
"""The class index of voxels outside the nonzero region that a scan was cropped to."""

IGNORE = -2
"""The class index of voxels that nobody labelled: they count neither in training nor in scores."""

UNKNOWN = -3
"""Among class indices, what is no label's value."""

AT_ONCE = 1 << 18
"""So many voxels are looked up together."""

IGNORED = "ignore"
"""The name that makes a label the ignore label, as in nnU-Net."""


def without_empty(written: dict[str, Any]) -> dict[str, Any]:
    """A dumped document without `regions` and `ignore` where there are none."""
    rare = ("regions", "ignore")
    return {k: v for k, v in written.items() if k not in rare or v not in (None, [], ())}


class Region(Document):
    """A structure made of several classes, which may be part of other structures too.

    `classes` and `paint` are class indices; `paint` is what its voxels become in a label map.
    """

    name: str
    classes: tuple[int, ...]
    paint: int


class LabelSet(Document):
    """The classes of a dataset. `names[i]` and `values[i]` belong to class index i; 0 is background.

    With `regions`, in the order in which they are painted (later ones over earlier ones), a network
    has one output a region. `ignore` is the value, in files, of voxels that nobody labelled.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    regions: tuple[Region, ...] = ()
    ignore: int | None = None

    @model_validator(mode="after")
    def _sound(self) -> "LabelSet":
        if len(self.names) != len(self.values) or len(set(self.values)) != len(self.values):
            raise ValueError("each class needs one name and one value of its own")
        if len(self.names) < 2 or self.values[0] != 0:
            raise ValueError("labels must hold background = 0 and at least one structure")
        known = range(1, len(self.names))
        for region in self.regions:
            strangers = sorted({*region.classes, region.paint} - set(known))
            if strangers or not region.classes:
                raise ValueError(f"region {region.name!r} is made of classes {region.classes}")
        if len({region.name for region in self.regions}) != len(self.regions):
            raise ValueError("two regions have one name")
        if self.ignore in self.values:
            raise ValueError(f"the ignore value {self.ignore} is the value of a class, too")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # most datasets have neither, and what was made before they existed keeps its hash
        return without_empty(write(self))

    @property
    def foreground(self) -> tuple[str, ...]:
        """The names of the classes 1, 2, …"""
        return self.names[1:]

    @property
    def count(self) -> int:
        """How many classes a voxel may have, background included."""
        return len(self.names)

    @property
    def outputs(self) -> int:
        """The channels of the network's output: one a class (softmax), or one a region (sigmoid)."""
        return len(self.regions) or len(self.names)

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is scored: each structure's name and the values that it has in a label map."""
        if self.regions:
            return {r.name: tuple(self.values[c] for c in r.classes) for r in self.regions}
        return {n: (v,) for n, v in zip(self.names[1:], self.values[1:], strict=True)}

    @property
    def allowed(self) -> tuple[int, ...]:
        """Every value that a label map of the dataset may hold.

        The ignore value comes before background, so that it differs from a class of that value.
        """
        return self.values if self.ignore is None else (self.ignore, *self.values)

    @property
    def members(self) -> npt.NDArray[np.bool_]:
        """(regions, classes): whether a class belongs to a region."""
        table = np.zeros((len(self.regions), self.count), bool)
        for row, region in zip(table, self.regions, strict=True):
            row[list(region.classes)] = True
        return table

    def to_classes(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
        """Label values as class indices, IGNORE where nobody labelled.

        Raises ValueError for a value that is not declared.
        """
        numbers, indices = self._known()
        flat = values.reshape(-1)
        classes = np.empty(flat.shape, np.int16)
        # each looked up once, however many labels there are
        for start in range(0, flat.size, AT_ONCE):
            part = flat[start : start + AT_ONCE].astype(np.int64)
            at = np.minimum(np.searchsorted(numbers, part), len(numbers) - 1)
            classes[start : start + AT_ONCE] = np.where(numbers[at] == part, indices[at], UNKNOWN)
        unknown = classes == UNKNOWN
        if unknown.any():
            raise ValueError(f"undeclared label values {np.unique(flat[unknown])[:5].tolist()}")
        return classes.reshape(values.shape)

    def _known(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
        """The declared values, ascending, and their class indices."""
        pairs = [(value, index) for index, value in enumerate(self.values)]
        pairs += [] if self.ignore is None else [(self.ignore, IGNORE)]
        found = np.array(sorted(pairs), np.int64)
        return found[:, 0], found[:, 1].astype(np.int16)

    def to_values(self, classes: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Class indices (0, 1, …; outside and unlabelled count as background) as label values."""
        table = np.asarray(self.values, np.int32)
        found: npt.NDArray[np.int32] = table[np.maximum(classes, 0)]
        return found


def parse_labels(declared: Mapping[str, Any], order: Sequence[int] | None = None) -> LabelSet:
    """The LabelSet of a `labels` entry of dataset.json, `order` being its `regions_class_order`.

    A list of several values makes a region, and then every structure is one; a label called
    `ignore` marks what nobody labelled. Raises AutosegError with the reason.
    """
    if not isinstance(declared, Mapping) or not declared:
        raise AutosegError(
            'dataset.json: "labels" must map names to values, as {"background": 0, "tumour": 1}'
        )
    found: dict[str, tuple[int, ...]] = {}
    for name, value in declared.items():
        # nnU-Net's first version spelled it the other way round: {"0": "background"}
        if isinstance(value, str) and name.lstrip("-").isdecimal():
            name, value = value, int(name)
        # nnU-Net knows it in small letters alone; in others it would silently be a structure
        name = IGNORED if name.lower() == IGNORED else name
        if name in found:
            raise AutosegError(f'dataset.json: two labels are called "{name}"; rename one of them')
        found[name] = _whole_numbers(name, value)
    ignore = _ignore_value(found)
    lowest = min((min(values) for values in found.values()), default=None)
    if (0,) not in found.values() or lowest != 0:
        raise AutosegError(
            f"dataset.json: the lowest label value is {lowest}; background must be declared as 0"
        )
    structures = {name: values for name, values in found.items() if values != (0,)}
    if len(found) != len(structures) + 1 or not structures:
        raise AutosegError(
            'dataset.json: "labels" needs background, one name with the value 0, and at least one '
            f"structure; found {dict(declared)}"
        )
    background = next(name for name, values in found.items() if values == (0,))
    if any(len(values) > 1 for values in structures.values()):
        return _with_regions(background, structures, order, ignore)
    pairs = sorted((values[0], name) for name, values in structures.items())
    numbers = (0, *(value for value, _ in pairs))
    if len(set(numbers)) != len(numbers):
        raise AutosegError(
            f'dataset.json: each of "labels" needs a value of its own; found {dict(declared)}'
        )
    return LabelSet(names=(background, *(name for _, name in pairs)), values=numbers, ignore=ignore)


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """The values of a declared label, one or several."""
    several = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not several or any(isinstance(v, bool) or not isinstance(v, int) for v in several):
        raise AutosegError(
            f'dataset.json: label "{name}" has the value {value!r}; it must be an integer, or a list '
            "of integers for a region"
        )
    strange = next((v for v in several if abs(v) > LARGEST_VALUE), None)
    if strange is not None:
        raise AutosegError(
            f'dataset.json: label "{name}" has the value {strange}, which no label map can hold; number '
            "the labels 0, 1, 2, …"
        )
    return tuple(sorted(set(several)))


def _ignore_value(found: dict[str, tuple[int, ...]]) -> int | None:
    """The value of the ignore label, which is taken out of `found`; None if there is none."""
    values = found.pop(IGNORED, None)
    if values is None:
        return None
    highest = max((max(v) for v in found.values()), default=0)
    if len(values) != 1 or values[0] <= highest:
        raise AutosegError(
            f'dataset.json: the label "{IGNORED}" must have one value above all others, as '
            f"{highest + 1}; found {list(values)}"
        )
    return values[0]


def _with_regions(
    background: str,
    structures: Mapping[str, tuple[int, ...]],
    order: Sequence[int] | None,
    ignore: int | None,
) -> LabelSet:
    """The labels of a dataset whose structures are sets of values. Raises AutosegError."""
    values = (0, *sorted({v for several in structures.values() for v in several} - {0}))
    mixed = [name for name, several in structures.items() if 0 in several]
    if mixed:
        raise AutosegError(
            f'dataset.json: region "{mixed[0]}" holds 0, the background; regions are made of values '
            "above 0"
        )
    paint = _painted_with(structures, order)
    index = {value: i for i, value in enumerate(values)}
    alone = {several[0]: name for name, several in structures.items() if len(several) == 1}
    names = (background, *(alone.get(v, f"label {v}") for v in values[1:]))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise AutosegError(
            f'dataset.json: "{twice}" is also the name of a value; call it otherwise'
        )
    regions = tuple(
        Region(name=name, classes=tuple(index[v] for v in several), paint=index[paint[name]])
        for name, several in structures.items()
    )
    return LabelSet(names=names, values=values, regions=regions, ignore=ignore)


def _painted_with(
    structures: Mapping[str, tuple[int, ...]], order: Sequence[int] | None
) -> dict[str, int]:
    """The value that each region is painted with. Raises AutosegError where one would be lost."""
    names = "[" + ", ".join(f'"{name}"' for name in structures) + "]"
    if not isinstance(order, (list, tuple)) or len(order) != len(structures):
        raise AutosegError(
            'dataset.json: regions need "regions_class_order", the value that each of '
            f"{names} is painted with, later ones over earlier ones; found {order}"
        )
    paint = dict(zip(structures, order, strict=True))
    for name, value in paint.items():
        if value not in structures[name]:
            raise AutosegError(
                f'dataset.json: "regions_class_order" paints "{name}" with {value!r}, but it is made '
                f"of {list(structures[name])}; give one of these values for each of {names}, in this "
                "order"
            )
    listed = list(structures.items())
    for at, (name, values) in enumerate(listed):
        for later, covering in listed[at + 1 :]:
            if set(values) <= set(covering):
                raise AutosegError(
                    f'dataset.json: "{later}", listed after "{name}", would be painted over all of '
                    "it; list large regions before those inside them, and "
                    '"regions_class_order" likewise'
                )
    return paint

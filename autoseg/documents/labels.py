"""What the values of a label map mean: names, values, and the class index of each.

Label values need not be consecutive: classes are numbered 0 (background), 1, 2, … in the order of
their values, and everything after the reader works with class indices. Written label maps hold
the values again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from autoseg.documents.document import Document
from autoseg.errors import AutosegError

OUTSIDE = -1
"""The class index of voxels outside the nonzero region that a scan was cropped to."""


class LabelSet(Document):
    """The classes of a dataset. `names[i]` and `values[i]` belong to class index i; 0 is background."""

    names: tuple[str, ...]
    values: tuple[int, ...]

    @model_validator(mode="after")
    def _sound(self) -> "LabelSet":
        if len(self.names) != len(self.values) or len(set(self.values)) != len(self.values):
            raise ValueError("each class needs one name and one value of its own")
        if len(self.names) < 2 or self.values[0] != 0:
            raise ValueError("labels must hold background = 0 and at least one structure")
        return self

    @property
    def foreground(self) -> tuple[str, ...]:
        """The names of the classes 1, 2, …"""
        return self.names[1:]

    @property
    def count(self) -> int:
        """How many classes, background included: the channels of the network's output."""
        return len(self.names)

    def to_classes(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
        """Label values as class indices. Raises ValueError for a value that is not declared."""
        classes = np.zeros(values.shape, np.int16)
        known = np.zeros(values.shape, bool)
        for index, value in enumerate(self.values):
            here = values == value
            classes[here] = index
            known |= here
        if not known.all():
            raise ValueError(f"undeclared label values {np.unique(values[~known])[:5].tolist()}")
        return classes

    def to_values(self, classes: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Class indices (0, 1, …; outside counts as background) as label values."""
        table = np.asarray(self.values, np.int32)
        found: npt.NDArray[np.int32] = table[np.maximum(classes, 0)]
        return found


def parse_labels(declared: Mapping[str, Any]) -> LabelSet:
    """The LabelSet of a `labels` entry of dataset.json. Raises AutosegError with the reason."""
    if not isinstance(declared, Mapping) or not declared:
        raise AutosegError(
            'dataset.json: "labels" must map names to values, as {"background": 0, "tumour": 1}'
        )
    if "ignore" in declared or any(isinstance(v, (list, tuple)) for v in declared.values()):
        raise AutosegError(
            'dataset.json: "labels" declares regions or an ignore label, which this version does '
            "not train yet; give each voxel one class"
        )
    pairs = []
    for name, value in declared.items():
        # nnU-Net's first version spelled it the other way round: {"0": "background"}
        if isinstance(value, str) and name.lstrip("-").isdigit():
            name, value = value, int(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise AutosegError(
                f'dataset.json: label "{name}" has the value {value!r}; it must be an integer'
            )
        pairs.append((value, name))
    pairs.sort()
    if pairs[0][0] != 0:
        raise AutosegError(
            f"dataset.json: the lowest label value is {pairs[0][0]}; background must be declared as 0"
        )
    if len({value for value, _ in pairs}) != len(pairs) or len(pairs) < 2:
        raise AutosegError(
            'dataset.json: "labels" needs background and at least one structure, each with a value '
            f"of its own; found {dict(declared)}"
        )
    return LabelSet(names=tuple(n for _, n in pairs), values=tuple(v for v, _ in pairs))

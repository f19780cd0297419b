"""One scan prepared by autoseg: read, cropped, normalised, resampled."""

from pathlib import Path

import numpy as np

from autoseg.data.prepare import prepare
from autoseg.documents.dataset import Case
from autoseg.documents.labels import LabelSet
from autoseg.documents.plan import ChannelScale, Preparation
from bench.clock import asked, measured, tell

given = asked()
scale = ChannelScale(scheme="ct", **given["intensities"])
files = tuple(map(Path, given["files"]))
preparation = Preparation(
    axes="stored", spacing_mm=given["spacing_mm"], channels=(scale,) * len(files),
    labels=LabelSet(names=("background", "structure"), values=(0, 1)),
)  # fmt: skip
case = Case("scan", files, None)
found, cost = measured(lambda: prepare(case, preparation))
np.save(given["save"], found.image)
tell(**cost, shape=list(found.image.shape))

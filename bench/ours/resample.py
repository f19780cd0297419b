"""An array brought to another grid by autoseg."""

import numpy as np

from autoseg.image.resample import resample_image
from autoseg.image.resample_labels import resample_labels
from bench.clock import asked, measured, tell
from bench.inputs import image, label_map

given = asked()
grid = {"spacing_mm": (1.0, 1.0, 1.0), "target_mm": given["target_mm"]}
if given["labels"]:
    source = label_map(given["shape"], given["labels"])
    found, cost = measured(lambda: resample_labels(source, given["new"], **grid))
else:
    source = image(given["shape"])[None]
    found, cost = measured(lambda: resample_image(source, given["new"], **grid)[0])
np.save(given["save"], found)
tell(**cost)

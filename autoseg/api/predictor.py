"""A model loaded once, for programs that segment arrays and files in process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


class Predictor:
    """What `autoseg predict` does, without files or start-up for every scan.

        with Predictor("hippo.autoseg") as predictor:
            labels = predictor.segment(image, affine)

    `model` is a package, its folder or an installed name; else `dataset` and the others choose among
    trained folds, as in `autoseg predict`. `labels` maps the names of the structures to their values
    in a label map. Raises AutosegError as `predict` does. Not for several threads at a time.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dataset: str | None = None,
        configuration: tuple[str, ...] | str = (),
        fold: tuple[str, ...] | str = (),
        plan: str | None = None,
        run: str | None = None,
        fast: bool = False,
        precision: str | None = None,
        skip_air: bool = False,
        device: str | None = None,
        root: Path | None = None,
    ) -> None:
        from autoseg.api.job import several
        from autoseg.device import pick_device
        from autoseg.documents.onnx import is_onnx
        from autoseg.flow.ask import precision_of
        from autoseg.flow.choose import Wish, wished
        from autoseg.infer.resample import resampling_on
        from autoseg.models.members import narrowed
        from autoseg.models.segment import Segmenter
        from autoseg.workspace import open_workspace

        wish = Wish(dataset, several(configuration), several(fold), plan, run)
        # a package that was unpacked for this may go once its weights are loaded
        with ExitStack() as files:
            chosen = files.enter_context(
                wished(open_workspace(root), wish, None if model is None else str(model))
            )
            chosen = narrowed(chosen, fast=fast, precision=precision_of(precision))
            own = "cpu" if is_onnx(chosen.spec) else None
            place = pick_device(device or own)
            self._segmenter, self._resample = Segmenter(chosen, place), resampling_on(place)
        self.spec, self._skip_air = chosen.spec, skip_air

    @property
    def labels(self) -> dict[str, tuple[int, ...]]:
        """The values of each structure in a label map; several for a region."""
        return self.spec.labels.structures

    def segment(
        self,
        image: ArrayLike,
        affine: ArrayLike | None = None,
        *,
        spacing_mm: Sequence[float] | None = None,
    ) -> NDArray[np.int32]:
        """Label values, of the shape of the image without its channels.

        3D: (X, Y, Z) or (C, X, Y, Z) with the 4x4 `affine` from voxel to RAS+ mm, as nibabel gives
        them; without one, `spacing_mm` (x, y, z) of axes that run to the right, front and top. 2D:
        (H, W) or (C, H, W). Raises AutosegError for another shape, or neither affine nor spacing.
        """
        from autoseg.models.scans import scan_of_array

        scan = scan_of_array(image, affine, spacing_mm, self.spec)
        grid, classes, axes = self._classes(scan)
        return self._in_order(classes, axes, grid)

    def segment_files(
        self, images: Sequence[Path | str], output: Path | str | None = None
    ) -> NDArray[np.int32]:
        """Label values (X, Y, Z) of the scan in a file, or one file a channel; `output` keeps them."""
        from autoseg.documents.dataset import Case
        from autoseg.errors import raise_fatal
        from autoseg.image.reading import case_of
        from autoseg.models.scans import check_inputs, scan_of_case
        from autoseg.models.segment import write_classes

        paths = tuple(Path(p) for p in ([images] if isinstance(images, (str, Path)) else images))
        case = Case(case_of(paths[0]), paths, None)
        raise_fatal(check_inputs([case], self.spec))
        grid, classes, axes = self._classes(scan_of_case(case))
        if output is not None:
            write_classes(Path(output), classes, self.spec.labels, axes, grid)
        return self._in_order(classes, axes, grid)

    def _classes(self, scan: Any) -> tuple[Any, Any, str]:
        from autoseg.image.volume import Grid
        from autoseg.models.scans import made_ready

        ready = made_ready(scan, self.spec, air=self._skip_air, resample=self._resample)
        info = ready.first.info
        return Grid.from_dict(dict(info["grid"])), self._segmenter.classes(ready), info["axes"]

    def _in_order(self, classes: Any, axes: str, grid: Any) -> NDArray[np.int32]:
        """Label values in the order of the file's axes; a picture as (H, W)."""
        import numpy as np

        from autoseg.image.geometry import restore

        values = self.spec.labels.to_values(classes)
        stored = restore(values[None], grid.arrangement(axes))[0]
        flat = self.spec.dimensions == 2
        return np.ascontiguousarray(stored[:, :, 0].T if flat else stored)

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._segmenter

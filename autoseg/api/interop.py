"""What other programs made, brought here: models and plans of nnU-Net."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.api.job import several

if TYPE_CHECKING:
    from autoseg.documents.model import Installed
    from autoseg.documents.plan import Plan


def import_nnunet(
    input: Path,
    output: str | None = None,
    *,
    dataset: str | None = None,
    configuration: tuple[str, ...] = (),
    fold: tuple[str, ...] = (),
    checkpoint: str = "checkpoint_final.pth",
    raw: bool = False,
    overwrite: bool = False,
    root: Path | None = None,
    json: bool = False,
) -> Installed | Plan:
    """Keep a model of nnU-Net v2 under models, where `predict --model NAME` finds it.

    A cascade takes the stage that it refines along. No code of the files is run. Of a plans.json
    alone, with a dataset, it makes a plan to train with.

    input: model folder (with plans.json and fold_0), results folder of a dataset, zip of
        nnUNetv2_export_model_to_zip, or a plans.json
    output: name of the model or plan (default: the dataset's; of a plan: nnunet)
    dataset: number or name, for a plans.json
    configuration: one, or several whose probabilities are averaged (default: what nnU-Net chose)
    fold: default: all that are there
    checkpoint: which one of each fold, as checkpoint_best.pth
    raw: without the postprocessing that nnU-Net found on its cross-validation
    overwrite: replace an installed model of this name
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.errors import AutosegError
    from autoseg.flow import convert
    from autoseg.interop.nnunet.model import Wanted
    from autoseg.workspace import open_workspace

    workspace = open_workspace(root)
    if input.suffix == ".json":
        if dataset is None:
            raise AutosegError(
                f"{input} is a plan: name its dataset with -d, or give the folder of a trained model"
            )
        return convert.import_plan(workspace.dataset(dataset), input, output or "nnunet")
    wanted = Wanted(several(configuration), several(fold), checkpoint, not raw)
    return convert.import_model(workspace, input, output, wanted, overwrite=overwrite)

"""What other programs made, brought here: models and plans of nnU-Net."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.api.job import named, several

if TYPE_CHECKING:
    from autoseg.documents.model import Installed
    from autoseg.documents.plan import Plan

log = logging.getLogger(__name__)


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
    configuration: one, or several whose probabilities are averaged; where several trainers have one,
        the name of its folder (default: what nnU-Net chose)
    fold: which ones (default: all that are there)
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
    wanted = Wanted(several(configuration), several(fold), checkpoint, not raw)
    if input.suffix == ".json":
        if dataset is None:
            raise AutosegError(
                f"{input} is a plan: name its dataset with -d, or give the folder of a trained model"
            )
        if wanted != Wanted() or overwrite:
            raise AutosegError(
                f"{input} is a plan, which is taken as a whole: leave out -c, -f, --checkpoint, --raw "
                "and --overwrite"
            )
        name = named(output or "nnunet", "plan")
        plan = convert.import_plan(workspace.dataset(dataset), input, name)
        known = plan.configurations
        first = "3d_fullres" if "3d_fullres" in known else next(iter(known))
        log.info("next: `autoseg train %s %s 0 --plan %s`", dataset, first, plan.name)
        return plan
    if dataset is not None:
        raise AutosegError(
            f"-d {dataset} belongs to a plans.json; {input} brings its own dataset.json"
        )
    try:
        model = convert.import_model(workspace, input, output, wanted, overwrite=overwrite)
    except AutosegError as error:
        if "--name" not in str(error):
            raise
        # a model's name is an option of another name where a package is installed
        raise AutosegError(str(error).replace("--name", "-o")) from error
    log.info("next: `autoseg predict --model %s -i IN -o OUT`", model.name)
    return model

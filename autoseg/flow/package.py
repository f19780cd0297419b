"""The chosen model as one file, and such files put where `predict` finds them."""

from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.documents.onnx import is_onnx
from autoseg.errors import AutosegError
from autoseg.flow.choose import Wish, chosen_model, wished
from autoseg.flow.make import Job
from autoseg.report.card import model_card
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.interop.onnx import Exported
    from autoseg.models.members import Model


def export(job: Job, output: Path, *, overwrite: bool = False) -> Path:
    """Write what was chosen for the job's plan and run as a package.

    Raises AutosegError where nothing was chosen yet.
    """
    model = chosen_model(job.places, Wish(plan=job.plan, run=job.run))
    if model is None:
        raise AutosegError(
            f"nothing was chosen for plan {job.plan} of {job.places.name}, run {job.run}; run "
            f"`autoseg find_best_configuration -d {job.places.name}` first, or name a configuration"
        )
    return _written(model, output, overwrite)


def export_wish(
    workspace: Workspace, wish: Wish, output: Path, model: str | None = None, *, overwrite: bool
) -> Path:
    """Write the model that `predict` would use as a package."""
    with wished(workspace, wish, model) as chosen:
        return _written(chosen, output, overwrite)


def onnx_of(
    workspace: Workspace, wish: Wish, output: Path, model: str | None = None, *, overwrite: bool
) -> "Exported":
    """Write the model that `predict` would use as a folder of ONNX files."""
    from autoseg.interop.onnx import export as write

    with wished(workspace, wish, model) as chosen:
        return write(chosen, output, card=model_card(chosen.spec), overwrite=overwrite)


def _written(model: "Model", output: Path, overwrite: bool) -> Path:
    from autoseg.stages.package import export as write

    if is_onnx(model.spec):
        raise AutosegError(
            f"{model.folder} is an ONNX export; export the model that it was made from"
        )
    return write(model.spec, model.folder, output, card=model_card(model.spec), overwrite=overwrite)

"""Models as files: written, installed, listed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.api.job import several

if TYPE_CHECKING:
    from autoseg.documents.model import Installed, Models


def export(
    dataset: str | None = None,
    output: Path | None = None,
    *,
    configuration: tuple[str, ...] = (),
    fold: tuple[str, ...] = (),
    plan: str | None = None,
    run: str | None = None,
    overwrite: bool = False,
    root: Path | None = None,
) -> str:
    """Write a model as one file that predicts by itself; it names no case and holds no scan.

    It is the model that `predict` would use: plan, weights of all folds, postprocessing, names of
    the labels, and a card with the cross-validation.

    dataset: number or name (default: the one dataset that has models)
    output: the file, as hippo.autoseg
    configuration: one, or several whose probabilities are averaged (default: what was chosen)
    fold: default: all that are trained
    plan: default: the plan of the best configuration
    run: default: the run of the best configuration
    overwrite: replace a file that is there
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    """
    from autoseg.errors import AutosegError
    from autoseg.flow.choose import Wish
    from autoseg.flow.package import export_wish
    from autoseg.workspace import open_workspace

    if output is None:
        raise AutosegError("`autoseg export` needs output (-o), as hippo.autoseg")
    wish = Wish(dataset, several(configuration), several(fold), plan, run)
    path = export_wish(open_workspace(root), wish, output, overwrite=overwrite)
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB"


def install(
    input: Path,
    *,
    name: str | None = None,
    overwrite: bool = False,
    root: Path | None = None,
    json: bool = False,
) -> Installed:
    """Check a package and keep it under models, where `predict --model NAME` finds it.

    input: the package, as hippo.autoseg
    name: another name than its own
    overwrite: replace an installed model of this name
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.stages.package import install as install_package
    from autoseg.workspace import open_workspace

    return install_package(input, open_workspace(root).models, name=name, overwrite=overwrite)


def models(*, root: Path | None = None, json: bool = False) -> Models:
    """List the installed models: what they segment, from what, and how well.

    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.stages.package import installed
    from autoseg.workspace import open_workspace

    return installed(open_workspace(root).models)

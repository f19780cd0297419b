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
    model: str | None = None,
    nnunet: Path | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    root: Path | None = None,
) -> str:
    """Write a model as one file that predicts by itself; it names no case and holds no scan.

    It is the model that `predict` would use: plan, weights of all folds, postprocessing, names of
    the labels, and a card with the cross-validation.

    dataset: number or name (default: the one dataset that has models)
    output: the file, as hippo.autoseg; with --onnx a folder
    configuration: one, or several whose probabilities are averaged (default: what was chosen)
    fold: which ones (default: all that are trained)
    plan: name of the plan (default: that of the best configuration)
    run: name of the run (default: that of the best configuration)
    model: instead of trained folds a package: a file, a folder, or the name of an installed one
    nnunet: a folder to write nnU-Net v2's model folders into instead, with the commands that use them
    onnx: write a folder of ONNX files instead, each held against torch, with a manifest
    overwrite: replace what is there
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    """
    from autoseg.errors import AutosegError
    from autoseg.flow.choose import Wish
    from autoseg.flow.package import export_wish, onnx_of
    from autoseg.workspace import open_workspace

    wish = Wish(dataset, several(configuration), several(fold), plan, run)
    if nnunet is not None:
        from autoseg.flow.convert import export_model

        if output is not None or onnx:
            raise AutosegError(
                "`autoseg export` writes one thing a call: give --nnunet alone, or -o (with --onnx)"
            )
        folders = export_model(open_workspace(root), wish, nnunet, model, overwrite=overwrite)
        return "\n".join(map(str, folders))
    if output is None:
        raise AutosegError(
            "`autoseg export` needs output (-o), as " + ("hippo_onnx" if onnx else "hippo.autoseg")
        )
    if onnx:
        made = onnx_of(open_workspace(root), wish, output, model, overwrite=overwrite)
        return "\n".join(made.lines())
    path = export_wish(open_workspace(root), wish, output, model, overwrite=overwrite)
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

"""What is done with a model and with label maps: segmenting, averaging, cleaning, scoring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.api.job import job_of, processes, several

if TYPE_CHECKING:
    from autoseg.documents.report import Report
    from autoseg.stages.ensemble import Averaged
    from autoseg.stages.postprocess import Applied
    from autoseg.stages.predict import Predicted


def predict(
    input: Path | None = None,
    output: Path | None = None,
    *,
    dataset: str | None = None,
    model: str | None = None,
    configuration: tuple[str, ...] = (),
    fold: tuple[str, ...] = (),
    plan: str | None = None,
    run: str | None = None,
    fast: bool = False,
    precision: str | None = None,
    runtime: str | None = None,
    save_probabilities: bool = False,
    uncertainty: bool = False,
    skip_air: bool = False,
    series: tuple[str, ...] = (),
    format: str = "nifti",
    accept_uneven: bool = False,
    profile: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    device: str | None = None,
    root: Path | None = None,
    json: bool = False,
) -> Predicted:
    """Segment the scans of a folder; what is done is skipped.

    Uses what find_best_configuration chose, with its ensemble and postprocessing; before that, all
    trained folds of the best validated configuration. A cascade's first stage is asked by itself.
    Several such commands with one output folder share the scans.

    input: folder of CASE_0000.ext files, or folder or zip of DICOM (default: imagesTs)
    output: folder for the label maps
    dataset: number or name (default: the one dataset that has models)
    model: a package: a file, a folder, or the name of an installed one
    configuration: one, or several whose probabilities are averaged (default: what was chosen)
    fold: which ones (default: all of the model)
    plan: name of the plan (default: that of the best configuration)
    run: name of the run (default: that of the best configuration)
    fast: one fold and no mirroring: several times faster, a little worse
    precision: float32, bfloat16 or float16 (default: as trained on a card, float32 on the processor)
    runtime: torch, or onnx for a folder of `autoseg export --onnx` (default: what the model is for)
    save_probabilities: keep them in OUTPUT/probabilities, for `autoseg ensemble`
    uncertainty: keep maps of it in OUTPUT/uncertainty, and one score a case
    skip_air: do not look at tiles that hold only air: faster on scans with much of it
    series: of DICOM, which series: its number, UID or description, one a channel; all for each
    format: of DICOM, the results' form: nifti, dicom-seg or rtstruct
    accept_uneven: of DICOM, take slices with gaps as evenly spaced
    profile: write into OUTPUT/profile where the time went
    strict: treat a scan unlike the training set as an error
    overwrite: replace label maps in OUTPUT that were drawn or corrected by hand, too
    workers: processes that share the scans
    device: cpu, cuda or cuda:1, or several as cuda:0,cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from dataclasses import replace

    from autoseg.flow import use
    from autoseg.flow.ask import precision_of
    from autoseg.flow.choose import Wish, places_of, wished
    from autoseg.models.members import narrowed
    from autoseg.models.onnx import checked_runtime
    from autoseg.stages.predict import Keep
    from autoseg.workspace import open_workspace

    output = _label_folder(input, output)
    wish = Wish(dataset, several(configuration), several(fold), plan, run)
    number = precision_of(precision)
    workspace = open_workspace(root)
    places = None
    if model is None or (input is None and dataset is not None):
        places = places_of(workspace, dataset)
        wish = replace(wish, dataset=places.name)
    given = {"--series": series, "--format": format != "nifti", "--accept-uneven": accept_uneven}
    clinical = _is_clinical(input, [name for name, value in given.items() if value])
    with wished(workspace, wish, model) as chosen:
        checked_runtime(chosen, runtime)
        speaker = narrowed(chosen, fast=fast, precision=number)
        how: dict[str, Any] = {
            "device": device, "workers": workers, "keep": Keep(save_probabilities, uncertainty),
            "strict": strict, "skip_air": skip_air, "profile": profile,
            "overwrite": overwrite,
        }  # fmt: skip
        if clinical and input is not None:
            from autoseg.flow.dicom import segmented

            how |= {"series": several(series), "form": format, "accept_uneven": accept_uneven}
            return segmented(speaker, input, output, **how)
        return use.predictions(speaker, use.input_cases(input, places), output, **how)


def _label_folder(input: Path | None, output: Path | None) -> Path:
    """Where label maps go. Raises AutosegError where that is not said, is no folder, or the scans'."""
    from autoseg.errors import AutosegError

    if output is None:
        raise AutosegError("`autoseg predict` needs output (-o)")
    if output.exists() and not output.is_dir():
        raise AutosegError(f"{output} is a file; name a folder for the label maps (-o)")
    if input is not None and output.resolve() == input.resolve():
        raise AutosegError(f"{output} holds the scans; name another folder for the label maps (-o)")
    return output


def _is_clinical(input: Path | None, options: Sequence[str]) -> bool:
    """Whether the scans are DICOM. Raises AutosegError for options of DICOM where they are not."""
    from autoseg.flow import use
    from autoseg.interop.dicom.source import holds_dicom

    clinical = input is not None and not use.holds_images(input) and holds_dicom(input)
    if options and not clinical:
        raise use.no_dicom(input, options)
    return clinical


def ensemble(
    input: tuple[Path, ...], output: Path, *, overwrite: bool = False, json: bool = False
) -> Averaged:
    """Average folders of probabilities into label maps, case by case; what is done is skipped.

    The folders are outputs of `predict --save-probabilities`, of any models with the same labels.

    input: folders
    output: folder for the label maps
    overwrite: replace label maps in OUTPUT that were drawn or corrected by hand, too
    json: print JSON
    """
    from autoseg.flow import use

    return use.averaged([Path(folder) for folder in input], output, overwrite=overwrite)


def postprocess(
    input: Path,
    output: Path,
    *,
    dataset: str | None = None,
    model: str | None = None,
    plan: str | None = None,
    run: str | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    root: Path | None = None,
    json: bool = False,
) -> Applied:
    """Clean label maps with the steps that find_best_configuration kept, or those of a package.

    input: folder of label maps
    output: folder for the cleaned ones
    dataset: number or name (default: the one dataset that has models)
    model: a package: a file, a folder, or the name of an installed one
    plan: name of the plan (default: that of the choice)
    run: name of the run (default: that of the choice)
    overwrite: replace label maps in OUTPUT that were drawn or corrected by hand, too
    workers: processes (default: one for each core)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.flow import use
    from autoseg.flow.choose import Wish, wished
    from autoseg.workspace import open_workspace

    wish = Wish(dataset, plan=plan, run=run)
    with wished(open_workspace(root), wish, model) as chosen:
        return use.cleaned_up(chosen.spec, input, output, processes(workers), overwrite=overwrite)


def evaluate(
    input: Path,
    reference: Path | None = None,
    *,
    dataset: str | None = None,
    tolerance_mm: float | None = None,
    partial: bool = False,
    output: Path | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> Report:
    """Score label maps against references: Dice, IoU, precision, recall, volumes, surfaces.

    input: folder of predicted label maps
    reference: folder of reference label maps (default: the dataset's labelsTs, then labelsTr)
    dataset: number or name; says what the label values mean
    tolerance_mm: tolerance of the surface Dice, NSD (default: 1, or two voxels where that is less)
    partial: score what is there where predictions are missing
    output: also write the report to this JSON file
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.errors import AutosegError
    from autoseg.flow import use

    if output is not None and output.is_dir():
        raise AutosegError(f"{output} is a folder; name a JSON file for the report (-o)")
    places = None if dataset is None else job_of(dataset, root).places
    report = use.evaluation(
        input, reference, places, tolerance_mm, processes(workers), partial=partial
    )
    if output is not None:
        report.write(output)
    return report

"""The phantom dataset, and every stage on it."""

from autoseg.documents.dataset import read_dataset
from autoseg.documents.settings import seconds_of
from autoseg.flow.choose import Wish, choose_model
from autoseg.flow.make import Job, fold, prepared, validation
from autoseg.flow.use import evaluation, input_cases, predictions
from autoseg.report.overlay import DemoResult, draw_overlay
from autoseg.stages.demo import make_phantom
from autoseg.stages.plan import Request
from autoseg.workspace import Workspace

CONFIGURATION = "3d_fullres"


def demo(workspace: Workspace, *, run: bool, time: str) -> DemoResult:
    """The phantom; with `run` also its plan, a trained fold, test scores and an overlay picture."""
    seconds = seconds_of(time)
    folder = make_phantom(workspace.raw[0])
    if not run:
        return DemoResult(folder, None, None)
    places = workspace.places(folder.name)
    job = Job(places, configuration=CONFIGURATION)
    prepared(job, (CONFIGURATION,), Request(minutes=seconds / 60))
    job, dataset = fold(job, time_s=seconds)
    validation(job, dataset)
    output = places.results / "demo"
    model = choose_model(workspace, Wish(places.name))
    predictions(model, input_cases(None, places), output)
    report = evaluation(output, None, places, None, None)
    dataset, _ = read_dataset(places.raw)
    overlay = output / "overlay.png"
    scans = [
        (case.id, case.images, case.label, output / f"{case.id}{dataset.file_ending}")
        for case in dataset.test_cases
    ]
    draw_overlay(
        scans,
        dataset.labels.names[1:],
        dataset.labels.values[1:],
        overlay,
        title="synthetic phantom: no anatomy, nothing learnt here is of clinical use",
    )
    dice = {name: s.metrics["dice"].mean for name, s in report.summary.labels.items()}
    return DemoResult(folder, dice, overlay)

"""Models and plans of other programs, brought to where ours lie, and ours to where theirs do."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg.documents.dataset import read_dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.model import Installed
from autoseg.documents.onnx import is_onnx
from autoseg.documents.plan import Plan
from autoseg.errors import AutosegError, Stale
from autoseg.flow.choose import Wish, wished
from autoseg.interop.nnunet.folder import DATASET, unpack_model
from autoseg.interop.nnunet.model import Wanted, model_from
from autoseg.interop.nnunet.read import NNUNetPlans, plan_of, read_object
from autoseg.interop.nnunet.write import write_model
from autoseg.models.members import Model
from autoseg.report.card import model_card
from autoseg.stages.package import export, install
from autoseg.workspace import DatasetPlaces, Workspace

log = logging.getLogger(__name__)


def import_model(
    workspace: Workspace, source: Path, name: str | None, wanted: Wanted, *, overwrite: bool
) -> Installed:
    """A model of nnU-Net, in a folder or a zip, as an installed model.

    Raises AutosegError for a file that is damaged, hostile, or says what cannot be done here.
    """
    with tempfile.TemporaryDirectory(prefix="autoseg-") as scratch:
        place = Path(scratch)
        with _unpacked(source, place / "zip", wanted.checkpoint) as folder:
            spec = model_from(folder, place / "model", name, wanted)
        package = place / "model.autoseg"
        export(spec, place / "model", package, card=model_card(spec))
        return install(package, workspace.models, name=name, overwrite=overwrite)


@contextmanager
def _unpacked(source: Path, into: Path, checkpoint: str) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise AutosegError(f"{source} does not exist; name a folder or a zip of nnU-Net")
    unpack_model(source, into, checkpoint)
    if next(into.rglob("plans.json"), None) is None:
        raise AutosegError(f"{source} holds no model of nnU-Net v2: there is no plans.json in it")
    try:
        yield into
    except AutosegError as error:
        # what was unpacked is gone when the message is read
        raise type(error)(str(error).replace(str(into), str(source))) from error


def import_plan(places: DatasetPlaces, source: Path, name: str) -> Plan:
    """A plans.json of nnU-Net as a plan of a dataset; an equal one that is there stays.

    Raises Stale where the name is another plan's.
    """
    dataset, _ = read_dataset(places.raw)
    found = NNUNetPlans(read_object(source), read_object(places.raw / DATASET), str(source))
    plan = plan_of(found, name, places.name, dataset.channels)
    path = places.plan(name)
    if path.exists() and read_object(path) != plan.dump():
        raise Stale(
            f"{places.name} has another plan {name!r}; choose another name with -o, or remove {path}"
        )
    plan.write(path)
    return plan


def export_model(
    workspace: Workspace, wish: Wish, output: Path, package: str | None = None, *, overwrite: bool
) -> list[Path]:
    """The model that `predict` would use, as folders of nnU-Net below `output`.

    Raises AutosegError for a model that nnU-Net cannot express.
    """
    with wished(workspace, wish, package) as model:
        return _exported(workspace, model, output, overwrite)


def _exported(workspace: Workspace, model: Model, output: Path, overwrite: bool) -> list[Path]:
    if is_onnx(model.spec):
        raise AutosegError(
            f"{model.folder} is an ONNX export; export the model that it was made from"
        )
    ending = ".png" if model.spec.dimensions == 2 else ".nii.gz"
    orientation = None
    if model.spec.dataset in workspace.datasets():
        places = workspace.places(model.spec.dataset)
        ending = read_dataset(places.raw)[0].file_ending
        if places.fingerprint.exists():
            ways = Fingerprint.read(places.fingerprint).orientation_counts
            orientation = next(iter(ways)) if len(ways) == 1 else None
    return write_model(
        model.spec,
        model.folder,
        output,
        ending=ending,
        orientation=orientation,
        overwrite=overwrite,
    )

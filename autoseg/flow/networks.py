"""Which grid the networks are compared on: a dataset's own, or one that is given."""

from collections.abc import Sequence

from autoseg.documents.plan import Configuration, Plan
from autoseg.documents.presets.table import PRESETS
from autoseg.errors import AutosegError
from autoseg.flow import make
from autoseg.flow.make import Job
from autoseg.pool import cores
from autoseg.rules.decision import Size
from autoseg.rules.recipe import NNUNET_STEPS
from autoseg.stages.networks import Grid, Networks, costs
from autoseg.stages.plan import Request, device_for

GIVEN_CHANNELS, GIVEN_CLASSES, GIVEN_BATCH = 1, 3, 2


def networks(
    job: Job | None,
    *,
    patch: Size | None,
    batch: int | None,
    names: Sequence[str],
    measure: Sequence[str],
    workers: int | None,
) -> Networks:
    """The costs of the networks on the grid of a dataset's plan, or on a patch at 1 mm."""
    if job is not None:
        make.check_plan_name(job)
        grid = _grid_of(make.plan(job)[2], job.configuration, patch, batch)
    elif patch is not None:
        spacing = (1.0,) * len(patch)
        grid = Grid(patch, spacing, batch or GIVEN_BATCH, GIVEN_CHANNELS, GIVEN_CLASSES)
    else:
        raise AutosegError("say for which grid: `-d` and a dataset, or `--patch` as 128,128,128")
    wanted = list(names or measure or PRESETS)
    wanted += [name for name in measure if name not in wanted]
    card = device_for(Request(), None).card
    processes = cores() if workers is None else workers
    return Networks(grid, tuple(costs(grid, wanted, measure, processes, card)), card)


def _grid_of(plan: Plan, name: str, patch: Size | None, batch: int | None) -> Grid:
    """The grid of one configuration (the last 3D one, else 2d), with what is given instead."""
    chosen = name or next((n for n in ("3d_fullres", "2d") if n in plan.configurations), "")
    made: Configuration = plan.configuration(chosen)
    spacing = made.preparation.spacing_mm[-made.dimensions :]
    if patch is not None and len(patch) != made.dimensions:
        raise AutosegError(
            f"--patch has {len(patch)} numbers, {chosen} has {made.dimensions} dimensions; "
            "choose another with -c"
        )
    return Grid(
        patch or made.patch_vox,
        tuple(mm for mm in spacing if mm is not None),
        batch or made.train.batch_size,
        made.network.in_channels,
        made.network.classes,
        made.network.widths[0],
        NNUNET_STEPS if plan.gpu_memory_gb is None else made.train.steps,
    )

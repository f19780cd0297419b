"""What may a fold cost? By default about what nnU-Net's own plan for the same data costs.

nnU-Net fits patch and batch to a budget of a fixed size whatever the card (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z; the residual presets: Isensee et al. 2024, arXiv:2404.09556), so
that its plan is a measure of work. Other networks are held to the samples of its plain plan.
"""

from math import prod

from autoseg.errors import PlanError
from autoseg.rules import nnunet
from autoseg.rules.budget import Budget, batch_size, fit_patch
from autoseg.rules.card import LARGEST_SHARE, Work
from autoseg.rules.draft import Draft
from autoseg.rules.recipe import NNUNET_STEPS
from autoseg.rules.setting import Setting
from autoseg.rules.topology import topology_for
from autoseg.rules.work import PASSES

PLAIN_GB = nnunet.PRESETS["plain"].memory_gb


def nnunet_preset(network: str) -> nnunet.Preset:
    """Raises PlanError for a network that nnU-Net does not know."""
    if network not in nnunet.PRESETS:
        raise PlanError(
            f"nnU-Net's planner knows no {network}; take one of {', '.join(nnunet.PRESETS)}, or "
            "--planner autoseg, which plans every network"
        )
    return nnunet.PRESETS[network]


def element_budget(
    setting: Setting, preset: nnunet.Preset, memory_gb: float | None = None
) -> Budget:
    """nnU-Net's budget for a configuration, on a card of `memory_gb` or of the preset's own."""
    channels, labels = len(setting.fingerprint.channels), setting.world.labels
    # nnU-Net reckons with the labels that dataset.json names, not with the network's outputs
    named = (len(labels.regions) + 1 if labels.regions else labels.count) + (
        labels.ignore is not None
    )
    memory = memory_gb or preset.memory_gb
    return nnunet.element_budget(preset, len(setting.spacing_mm), channels, named, memory)


def nnunet_work(setting: Setting) -> Work | None:
    """Patch and batch of nnU-Net's own plan for a configuration; None where it has none.

    Its residual presets, which show any share of the voxels at once (a hippocampus in batches of 58
    to 183, at up to twenty times the cost for no Dice), are held to 5 % for each 8 GB of their own.
    """
    preset = nnunet.PRESETS.get(setting.ask.network, nnunet.PRESETS["plain"])
    budget = element_budget(setting, preset)
    try:
        topology = fit_patch(setting.spacing_mm, setting.median_vox, budget).value
    except PlanError:
        return None
    share = min(preset.largest_share, LARGEST_SHARE * preset.memory_gb / PLAIN_GB)
    batch = batch_size(topology, budget, setting.case.dataset_vox, share).value
    return Work(topology.patch_vox, batch, share)


def nnunet_exaflop(setting: Setting, work: Work) -> float | None:
    """Operations of a fold of nnU-Net's own plan, with its network where it knows it, else plain."""
    operations_of = setting.ask.device.operations_of
    if operations_of is None:
        return None
    known = setting.ask.network if setting.ask.network in nnunet.PRESETS else "plain"
    outputs = setting.world.labels.outputs
    draft = Draft(known, setting.inputs, outputs, setting.spacing_mm)
    network = draft.network(topology_for(work.patch_vox, setting.spacing_mm))
    forward = operations_of(network, work.patch_vox)
    return 2 * PASSES * forward * work.batch * NNUNET_STEPS / 1e18


def reference_batch(work: Work, patch_vox: tuple[int, ...]) -> int:
    """The batch that nnU-Net's rate belongs to: its own, or a larger one where patches are smaller."""
    return max(work.batch, int(work.voxels / prod(patch_vox)))

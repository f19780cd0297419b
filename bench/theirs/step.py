"""A training step of nnU-Net's plain network by nnU-Net, on random numbers."""

from types import SimpleNamespace

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from bench.clock import asked, measured, tell

given = asked()
patch, channels, classes = given["patch_vox"], given["channels"], given["classes"]
axes, levels = len(patch), len(given["features"])
arguments = {
    "n_stages": levels, "features_per_stage": given["features"],
    "conv_op": f"torch.nn.modules.conv.Conv{axes}d", "kernel_sizes": [[3] * axes] * levels,
    "strides": [[1] * axes, *[[2] * axes] * (levels - 1)], "n_conv_per_stage": [2] * levels,
    "n_conv_per_stage_decoder": [2] * (levels - 1), "conv_bias": True,
    "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None,
    "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
torch.manual_seed(0)
device = torch.device(given["device"])
net = get_network_from_plans(
    "dynamic_network_architectures.architectures.unet.PlainConvUNet", arguments,
    ["conv_op", "norm_op", "dropout_op", "nonlin"], channels, classes, deep_supervision=True,
).to(device)  # fmt: skip
# the trainer's own methods on what they read of a trainer, so that no data set need be there
scales = [[1 / 2**level] * axes for level in range(levels - 1)]
trainer = SimpleNamespace(
    network=net, device=device, is_ddp=False, enable_deep_supervision=True, initial_lr=1e-6,
    weight_decay=3e-5, num_epochs=1000,
    label_manager=SimpleNamespace(has_regions=False, ignore_label=None),
    configuration_manager=SimpleNamespace(batch_dice=False), _do_i_compile=lambda: False,
    _get_deep_supervision_scales=lambda: scales,
    grad_scaler=torch.amp.GradScaler("cuda") if device.type == "cuda" else None,
)  # fmt: skip
trainer.loss = nnUNetTrainer._build_loss(trainer)
trainer.optimizer, _ = nnUNetTrainer.configure_optimizers(trainer)
image = torch.randn(given["batch"], channels, *patch)
target = [
    torch.randint(
        0, classes, (given["batch"], 1, *[int(np.ceil(n * s)) for n, s in zip(patch, of)])
    )
    for of in scales
]


def steps(count: int) -> None:
    for _ in range(count):
        nnUNetTrainer.train_step(trainer, {"data": image, "target": target})


net.train()
steps(1)
_, cost = measured(lambda: steps(given["steps"]))
cost |= {key: cost[key] / given["steps"] for key in ("wall_s", "cpu_s")}
tell(**cost)

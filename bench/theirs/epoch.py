"""Steps of training on a card with loading and augmentation, by nnU-Net: blosc2, workers, trainer."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from bench.clock import asked, measured, tell
from bench.inputs import image, label_map

given = asked()
patch, shape, levels = given["patch_vox"], given["shape"], len(given["features"])
device = torch.device(given["device"])
arguments = {
    "n_stages": levels, "features_per_stage": given["features"],
    "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": [[3] * 3] * levels,
    "strides": [[1] * 3, *[[2] * 3] * (levels - 1)], "n_conv_per_stage": [2] * levels,
    "n_conv_per_stage_decoder": [2] * (levels - 1), "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None,
    "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
scales = [[1 / 2**level] * 3 for level in range(levels - 1)]
angle = (-np.pi / 6, np.pi / 6)


def stored(folder: str) -> None:
    for number in range(given["cases"]):
        data = np.stack([image(shape, 10 * number + c) for c in range(given["channels"])])
        seg = label_map(shape, 4, number)[None]
        blocks, chunks = comp_blosc2_params(data.shape, tuple(patch), 4)
        seg_blocks, seg_chunks = comp_blosc2_params(seg.shape, tuple(patch), 2)
        places = {
            c: np.argwhere(seg == c)[::50] for c in (1, 2, 3)
        }  # (n, 4) with a channel in front, as the loader expects them
        nnUNetDatasetBlosc2.save_case(
            data, seg, {"class_locations": places}, str(Path(folder) / f"case{number}"),
            chunks=chunks, blocks=blocks, chunks_seg=seg_chunks, blocks_seg=seg_blocks,
        )  # fmt: skip


def main() -> None:
    net = get_network_from_plans(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet", arguments,
        ["conv_op", "norm_op", "dropout_op", "nonlin"], given["channels"], 4, deep_supervision=True,
    ).to(device)  # fmt: skip
    wish = os.environ.get("nnUNet_compile", "true").lower()  # noqa: SIM112
    compiles = device.type == "cuda" and wish in ("t", "true", "1")
    trainer = SimpleNamespace(
        network=torch.compile(net) if compiles else net, device=device, is_ddp=False,
        enable_deep_supervision=True, initial_lr=0.01, weight_decay=3e-5, num_epochs=1000,
        label_manager=SimpleNamespace(has_regions=False, ignore_label=None),
        configuration_manager=SimpleNamespace(batch_dice=False), _do_i_compile=lambda: compiles,
        _get_deep_supervision_scales=lambda: scales,
        grad_scaler=torch.amp.GradScaler("cuda") if device.type == "cuda" else None,
    )  # fmt: skip
    trainer.loss = nnUNetTrainer._build_loss(trainer)
    trainer.optimizer, _ = nnUNetTrainer.configure_optimizers(trainer)
    transforms = nnUNetTrainer.get_training_transforms(
        np.array(patch), angle, scales, (0, 1, 2), False
    )
    enlarged = get_patch_size(patch, angle, angle, angle, (0.85, 1.25))
    with TemporaryDirectory() as folder:
        stored(folder)
        labels = SimpleNamespace(all_labels=[0, 1, 2, 3], has_ignore_label=False)
        loader = nnUNetDataLoader(
            nnUNetDatasetBlosc2(folder), given["batch"], enlarged, patch, labels,
            oversample_foreground_percent=0.33, transforms=transforms,
        )  # fmt: skip
        if given["workers"]:
            batches = NonDetMultiThreadedAugmenter(
                loader, None, num_processes=given["workers"],
                num_cached=max(6, given["workers"] // 2), pin_memory=device.type == "cuda",
                wait_time=0.002,
            )  # fmt: skip
        else:
            batches = SingleThreadedAugmenter(loader, None)

        def steps(count: int) -> None:
            for _ in range(count):
                nnUNetTrainer.train_step(trainer, next(batches))

        net.train()
        steps(given["warm_up"])
        _, cost = measured(lambda: steps(given["steps"]))
        if given["workers"]:
            batches._finish()
    card = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    tell(**cost, card_bytes=card)


if __name__ == "__main__":
    main()

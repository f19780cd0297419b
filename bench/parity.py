"""Are imported models of nnU-Net the same as in nnU-Net? Writes bench/results/parity.json and docs.

    python -m bench.parity --work /some/folder            # everything; each step is resumable
    python -m bench.parity --work /some/folder --only hippocampus_3d_plain

nnU-Net (in an environment of its own, `make bench-env`) plans, prepares and trains small networks
for some seconds each, and writes its own checkpoints. They are imported here, and both programs
segment the same held-out scans, in one thread: label maps and, computed by nnU-Net in 32 bits, the
logits on the prepared grid are compared. Mirroring on and off is one network with two checkpoints,
as its trainers with and without mirroring write them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

JOBS: dict[str, dict[str, Any]] = {
    "hippocampus_3d_plain": {"data": "Dataset004_Hippocampus", "configuration": "3d_fullres",
                             "planner": "ExperimentPlanner", "patch": [24, 32, 24], "steps": 450},
    "hippocampus_3d_resenc": {"data": "Dataset004_Hippocampus", "configuration": "3d_fullres",
                              "planner": "nnUNetPlannerResEncM", "patch": [24, 32, 24], "steps": 1300},
    "hippocampus_2d_plain": {"data": "Dataset004_Hippocampus", "configuration": "2d",
                             "planner": "ExperimentPlanner", "patch": [40, 32], "steps": 1300},
    "lung_3d_plain": {"data": "Dataset005_LungNodule", "configuration": "3d_fullres",
                      "planner": "ExperimentPlanner", "patch": [12, 64, 64], "steps": 120},
    "lung_3d_resenc": {"data": "Dataset005_LungNodule", "configuration": "3d_fullres",
                       "planner": "nnUNetPlannerResEncM", "patch": [12, 64, 64], "steps": 150},
    "nuclei_2d_plain": {"data": "Dataset006_Nuclei", "configuration": "2d",
                        "planner": "ExperimentPlanner", "patch": [128, 128], "steps": 120},
    "nuclei_2d_resenc": {"data": "Dataset006_Nuclei", "configuration": "2d",
                         "planner": "nnUNetPlannerResEncM", "patch": [128, 128], "steps": 100},
    "glioma_3d_plain": {"data": "Dataset007_LowerGradeGlioma", "configuration": "3d_fullres",
                        "planner": "ExperimentPlanner", "patch": [16, 96, 96], "steps": 60},
    "glioma_3d_resenc": {"data": "Dataset007_LowerGradeGlioma", "configuration": "3d_fullres",
                         "planner": "nnUNetPlannerResEncM", "patch": [16, 96, 96], "steps": 50},
}  # fmt: skip
TRAINED_ON, STAGES = 12, 4
TESTED_ON = {"Dataset007_LowerGradeGlioma": 1}
"""Scans; of the others four."""
FEATURES = [8, 16, 32, 64]
CHECKPOINTS = {"on": "checkpoint_final.pth", "off": "checkpoint_best.pth"}


# ---- what nnU-Net's own Python runs


def rival(step: str, name: str, work: Path) -> None:
    """One step on nnU-Net's side: train, or predict and keep the logits of one scan."""
    os.environ |= {f"nnUNet_{kind}": str(work / name / kind)
                   for kind in ("raw", "preprocessed", "results")}  # fmt: skip
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    import torch

    torch.set_num_threads(1)
    if step == "train":
        _rival_train(JOBS[name])
    else:
        _rival_predict(work / name)


def _rival_train(job: dict[str, Any]) -> None:
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
    from nnunetv2.experiment_planning import plan_and_preprocess_api as steps
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    number, configuration = int(job["data"][7:10]), job["configuration"]
    steps.extract_fingerprints([number], num_processes=1)
    plans_name = steps.plan_experiments([number], job["planner"])
    path = Path(str(nnUNet_preprocessed)) / job["data"] / f"{plans_name}.json"
    plans = load_json(str(path))
    said = plans["configurations"][configuration]
    said["patch_size"], said["batch_size"] = job["patch"], 2
    said["data_identifier"] = f"{plans_name}_{configuration}"
    kwargs = said["architecture"]["arch_kwargs"]
    kwargs |= {"n_stages": STAGES, "features_per_stage": FEATURES}
    for key in ("kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"):
        if key in kwargs:
            kwargs[key] = kwargs[key][:STAGES]
    kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: STAGES - 1]
    save_json(plans, str(path), sort_keys=False)
    steps.preprocess_dataset(number, plans_name, [configuration], [1])
    dataset = load_json(str(path.parent / "dataset.json"))
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # batches in this very process
    torch.manual_seed(1)
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, configuration, "all", dataset, torch.device("cpu"))
    trainer.num_epochs = 1
    trainer.on_train_start()
    trainer.network.train()
    for step in range(job["steps"]):
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        if step % 20 == 0:
            print(f"step {step}: loss {loss:.3f}", flush=True)
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / CHECKPOINTS["on"]))
    trainer.inference_allowed_mirroring_axes = None
    trainer.save_checkpoint(str(folder / CHECKPOINTS["off"]))


def _rival_predict(home: Path) -> None:
    import inspect
    from functools import partial

    import numpy as np
    import torch
    from nnunetv2.inference import predict_from_raw_data as module

    facts = {}
    model = str(model_folder(home))
    for mirrored, checkpoint in CHECKPOINTS.items():
        predictor = module.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(model, ("all",), checkpoint)
        output = home / f"rival_{mirrored}"
        output.mkdir(exist_ok=True)
        start = time.process_time()
        predictor.predict_from_files_sequential(str(home / "test"), str(output))
        facts[mirrored] = round(time.process_time() - start, 2)
        # the same in 32 bits: sums and weights of tiles are otherwise kept in 16
        files = sorted((home / "test").iterdir())
        first = files[0].name.rsplit("_", 1)[0]
        images = [str(f) for f in files if f.name.rsplit("_", 1)[0] == first]
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        data, _, _ = preprocessor.run_case(
            images, None, predictor.plans_manager, predictor.configuration_manager,
            predictor.dataset_json,
        )  # fmt: skip
        half, weights = torch.half, module.compute_gaussian
        torch.half = torch.float32
        module.compute_gaussian = partial(inspect.unwrap(weights), dtype=torch.float32)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).float()
        torch.half, module.compute_gaussian = half, weights
        np.savez(home / f"logits_{mirrored}.npz", logits=logits.numpy(), image=data)
    (home / "rival.json").write_text(json.dumps(facts))


# ---- our side


def model_folder(home: Path) -> Path:
    """The one model folder that nnU-Net trained in a job."""
    return next((home / "results").glob("*/nnUNetTrainer__*"))


def copied(name: str, data: Path, home: Path) -> None:
    """A few cases to train with, and others to segment."""
    source = data / JOBS[name]["data"]
    target = home / "raw" / source.name
    said = json.loads((source / "dataset.json").read_text())
    images = sorted((source / "imagesTr").iterdir())
    channels = len({f.name.rsplit("_", 1)[1] for f in images})
    tested = TESTED_ON.get(source.name, 4)
    cases = sorted({f.name.rsplit("_", 1)[0] for f in images})[: TRAINED_ON + tested]
    for folder in (target / "imagesTr", target / "labelsTr", home / "test"):
        folder.mkdir(parents=True, exist_ok=True)
    for at, case in enumerate(cases):
        for channel in range(channels):
            file = f"{case}_{channel:04d}{said['file_ending']}"
            to = target / "imagesTr" if at < TRAINED_ON else home / "test"
            shutil.copy(source / "imagesTr" / file, to)
        if at < TRAINED_ON:
            shutil.copy(source / "labelsTr" / (case + said["file_ending"]), target / "labelsTr")
    (target / "dataset.json").write_text(json.dumps({**said, "numTraining": TRAINED_ON}))


def predicted(home: Path, mirrored: str) -> float:
    """Import the model, segment the scans; CPU seconds of segmenting."""
    from autoseg.api import import_nnunet
    from autoseg.api.predictor import Predictor

    root, name = home / "root", f"parity_{mirrored}"
    import_nnunet(
        model_folder(home), name, checkpoint=CHECKPOINTS[mirrored], overwrite=True, root=root
    )
    output = home / f"ours_{mirrored}"
    output.mkdir(exist_ok=True)
    cases: dict[str, list[Path]] = {}
    for file in sorted((home / "test").iterdir()):
        cases.setdefault(file.name.rsplit("_", 1)[0], []).append(file)
    with Predictor(name, root=root) as predictor:
        start = time.process_time()
        for case, files in cases.items():
            ending = "".join(Path(files[0].name).suffixes)
            predictor.segment_files(files, output / (case + ending))
        return time.process_time() - start


def logit_gap(home: Path, mirrored: str) -> tuple[float, float]:
    """The largest difference of prepared images, and of logits, on the first scan."""
    import numpy as np
    import torch

    from autoseg.data.prepare import prepare
    from autoseg.documents.dataset import Case
    from autoseg.infer.volume import logit_slabs
    from autoseg.learn.weights import load_weights
    from autoseg.nets.build import build
    from autoseg.stages.package import read_model

    folder = home / "root" / "models" / f"parity_{mirrored}"
    member = read_model(folder).members[0]
    c = member.configuration
    nets = [build(c.network).eval() for _ in member.weights]
    for net, weights in zip(nets, member.weights, strict=True):
        load_weights(folder / weights.file, net)
    files = sorted((home / "test").iterdir())
    first = files[0].name.rsplit("_", 1)[0]
    images = tuple(f for f in files if f.name.rsplit("_", 1)[0] == first)
    image = prepare(Case(first, images, None), c.preparation).image
    with torch.inference_mode():
        slabs = [slab for _, slab in logit_slabs(
            nets, image, c.patch_vox, c.preparation.labels.outputs, c.predict,
            c.augmentation.mirror_axes, "cpu", c.network.divisor)]  # fmt: skip
    ours = torch.cat(slabs, -3).numpy()
    theirs = np.load(home / f"logits_{mirrored}.npz")
    if ours.shape != theirs["logits"].shape:
        raise SystemExit(f"{home.name}: logits {ours.shape}, in nnU-Net {theirs['logits'].shape}")
    image_gap = float(np.abs(image - theirs["image"]).max())
    return image_gap, float(np.abs(ours - theirs["logits"]).max())


def compared(home: Path, mirrored: str) -> dict[str, Any]:
    """How equal the label maps of all scans are, and how many voxels the rarest label has."""
    import numpy as np

    from autoseg.image.reading import read_labels

    same = total = 0
    both: dict[int, list[int]] = {}
    for path in sorted((home / f"ours_{mirrored}").iterdir()):
        ours = read_labels(path, "stored")[0].array
        theirs = read_labels(home / f"rival_{mirrored}" / path.name, "stored")[0].array
        same += int((ours == theirs).sum())
        total += ours.size
        for label in set(np.unique(theirs)) | set(np.unique(ours)):
            if label > 0:
                a, b = ours == label, theirs == label
                sums = both.setdefault(int(label), [0, 0, 0])
                for at, count in enumerate(((a & b).sum(), a.sum(), b.sum())):
                    sums[at] += int(count)
    dice = {label: 2 * s[0] / (s[1] + s[2]) for label, s in both.items()}
    return {
        "voxels_equal": same / total,
        "dice": {str(label): round(d, 6) for label, d in dice.items()},
        "least_voxels": min(s[2] for s in both.values()) if both else 0,
    }


def run(names: list[str], work: Path, data: Path, python: Path) -> None:
    from bench.places import keep

    for name in names:
        prepared(name, work, data, python)
    for name in names:
        home = work / name
        seconds = json.loads((home / "rival.json").read_text())
        for mirrored in CHECKPOINTS:
            if (home / f"row_{mirrored}.json").exists():
                continue
            row = {"model": name, **JOBS[name], "mirroring": mirrored}
            ours_s = predicted(home, mirrored)
            image_gap, gap = logit_gap(home, mirrored)
            row |= compared(home, mirrored) | {
                "image_gap": image_gap, "logit_gap": gap, "cpu_s": round(ours_s, 2),
                "rival_cpu_s": seconds[mirrored],
            }  # fmt: skip
            (home / f"row_{mirrored}.json").write_text(json.dumps(row))
            print(json.dumps(row), flush=True)
    rows = [json.loads(p.read_text()) for n in JOBS for p in sorted((work / n).glob("row_*.json"))]
    keep("parity", rows, "python -m bench.parity")
    written(rows)


def prepared(name: str, work: Path, data: Path, python: Path) -> None:
    """All that nnU-Net does in a job; a step that is done is skipped."""
    home = work / name
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "test").exists():
        copied(name, data, home)
    for step, mark in (("train", "trained"), ("predict", "rival.json")):
        if (home / mark).exists():
            continue
        command = [str(python), str(Path(__file__).resolve()), "--rival", step, name]
        foreign = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with open(home / f"{step}.log", "w") as log:
            subprocess.run(
                [*command, "--work", str(work)], stdout=log, stderr=log, check=True, env=foreign
            )
        if step == "train":
            (home / mark).touch()


LEAST_VOXELS = 200
"""Of each label in nnU-Net's maps, or a row says nothing of label maps."""


def written(rows: list[dict[str, Any]]) -> None:
    """Put the table into docs/nnunet.md, between its two marks."""
    path = Path(__file__).resolve().parent.parent / "docs" / "nnunet.md"
    text = path.read_text(encoding="utf-8")
    begin, end = "<!-- parity -->\n", "<!-- /parity -->"
    if begin not in text:
        return
    lines = [
        "| model | data | mirroring | voxels equal | least Dice | rarest label, voxels | "
        "logits differ by | CPU s here | in nnU-Net |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row["least_voxels"] < LEAST_VOXELS:
            continue  # maps without structures are equal whatever was imported
        kind = "ResEnc" if "ResEnc" in row["planner"] else "plain"
        lines.append(
            f"| {row['configuration']}, {kind} | {row['data'][7:].replace('_', ' ')} | "
            f"{row['mirroring']} | {100 * row['voxels_equal']:.4f} % | "
            f"{min(row['dice'].values(), default=1):.5f} | {row['least_voxels']} | "
            f"{row['logit_gap']:.1e} | {row['cpu_s']:.1f} | {row['rival_cpu_s']:.1f} |"
        )
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    path.write_text(before + begin + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rival", nargs=2, metavar=("STEP", "JOB"))
    given = parser.parse_args()
    if given.rival:
        rival(*given.rival, given.work)
        return
    from bench.places import DATA, NNUNET

    run(given.only, given.work.resolve(), DATA, NNUNET / "bin" / "python")


if __name__ == "__main__":
    sys.exit(main())

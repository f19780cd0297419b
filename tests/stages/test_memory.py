"""A training step that does not fit into memory: told with a plan that is computed to, or taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg.errors import OutOfMemory
from autoseg.flow.make import Job
from autoseg.flow.shrink import Failure, smaller_job
from autoseg.workspace import open_workspace

REPOSITORY = Path(__file__).parents[2]
LIMITED = """
import logging, resource, sys
import torch
from autoseg import cli
import autoseg.stages.train, autoseg.stages.plan, autoseg.stages.fingerprint, autoseg.stages.preprocess
import autoseg.report.curves, scipy.special, scipy.ndimage
torch.set_num_threads(1)
unlimited = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20, unlimited[1]))

class Freed(logging.Handler):
    def emit(self, record):
        if "out of memory" in record.getMessage():
            resource.setrlimit(resource.RLIMIT_AS, unlimited)

logging.getLogger("autoseg").addHandler(Freed())
logging.getLogger("autoseg").addHandler(cli._Lines())
sys.exit(cli.main(sys.argv[2:]))
"""
"""A command with so many MiB of address space to itself, beyond what is loaded, until it says that
this does not suffice: what a process has freed stays in its address space, unlike on a card."""


def limited(root: Path, mib: int, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(mib), *line.split(), "--root", str(root)],
        capture_output=True, text=True, timeout=200, check=False, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
             "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by Linux's means")
def test_out_of_memory_is_told_with_a_smaller_plan_and_taken_when_asked(shell, tiny: Path) -> None:
    plan = (
        "autoseg plan -d 1 --name big --set width=16 --set 3d_fullres.patch_vox=[64,64,64] "
        "--set steps=1 --set train.threads=1 --set train.precision=float32 "
        "--set train.layout=contiguous --set train.validation_batches=1 --set predict.mirror=false"
    )
    assert shell(plan).code == 0
    command = "train 1 3d_fullres 0 --plan big --workers 0"
    said = limited(tiny, 300, command)
    assert said.returncode == 2, said.stderr[-2000:]
    told = said.stderr.strip().splitlines()[-1]
    assert "out of memory with 2 patches of 64 x 64 x 64 voxels" in told
    assert "`autoseg plan -d Dataset001_Phantom --name big_s1 --network plain" in told
    assert "--auto-shrink" in told
    proposed = told.split("`")[1]
    assert shell(proposed).code == 0

    again = limited(tiny, 300, f"{command} --auto-shrink")
    assert "plan big_s1, which was computed before, fits and is taken" in again.stderr
    if "does not recover" in again.stderr:  # where memory ends is not the same in every process
        repeat = again.stderr.strip().splitlines()[-1].split("`")[1]
        again = limited(tiny, 8192, repeat.removeprefix("autoseg ") + " --workers 0")
    assert again.returncode == 0, again.stderr[-2000:]
    runs = sorted((tiny / "results" / "Dataset001_Phantom").iterdir())
    trained = [r for r in runs if (r / "3d_fullres/default/fold_0/weights.safetensors").exists()]
    assert [r.name for r in trained] == ["big_s1"]
    plans = tiny / "preprocessed" / "Dataset001_Phantom" / "plans"
    networks = [
        json.loads((plans / name / "plan.json").read_text())["configurations"]["3d_fullres"]
        for name in ("big", "big_s1")
    ]
    assert [n["network"]["recompute"] for n in networks] == [False, True]
    assert networks[0]["patch_vox"] == networks[1]["patch_vox"] == [64, 64, 64]


def test_a_process_that_cannot_compute_any_more_says_how_to_go_on(shell, tiny: Path) -> None:
    assert shell("autoseg plan -d 1 --name big --set 3d_fullres.patch_vox=[32,32,32]").code == 0
    job = Job(open_workspace(tiny).dataset("1"), plan="big", configuration="3d_fullres")
    failure = Failure("no room", "3d_fullres", lasting=True, attempt=0)
    with pytest.raises(OutOfMemory, match=r"3d_fullres 0 --plan big_s1 --auto-shrink`"):
        smaller_job(job, failure, auto=True)
    assert job.places.plan("big_s1").exists()


def test_a_plan_written_by_hand_is_told_what_to_change(shell, tiny: Path) -> None:
    path = tiny / "preprocessed" / "Dataset001_Phantom" / "plans" / "default" / "plan.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["3d_fullres"]["train"]["batch_size"] = 3
    path.write_text(json.dumps(plan))
    job = Job(open_workspace(tiny).dataset("1"), configuration="3d_fullres")
    failure = Failure("no room", "3d_fullres", lasting=False, attempt=0)
    with pytest.raises(OutOfMemory, match=r"written by hand.*3d_fullres\.train\.batch_size=2"):
        smaller_job(job, failure, auto=True)

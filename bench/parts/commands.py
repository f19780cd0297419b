"""The commands around a data set: starting, fingerprint, plan, preprocessing; each from nothing."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.pairs import OURS, RIVAL, Row
from bench.places import DATA, HIPPOCAMPUS, ROOT
from bench.sides import OURS as AUTOSEG
from bench.sides import Result, Side, command, rival_is_there, their

HERE = ROOT / "commands"
CASES = 200
"""Of data set 4."""
CORES = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def pair(ours: Side, theirs: Side) -> dict[str, Side]:
    """Both sides; ours alone where nnU-Net is not installed."""
    return {OURS: ours, RIVAL: theirs} if rival_is_there() else {OURS: ours}


def afresh(folder: Path, argv: list[str], environment: Mapping[str, str]) -> Result:
    """The command after `folder` was removed."""
    shutil.rmtree(folder, ignore_errors=True)
    return command(argv, environment)


@dataclass(frozen=True)
class Work:
    """Data set 4, or its first cases, and where both programs keep what they make of it."""

    raw: Path = DATA
    here: Path = HERE

    @property
    def our_folder(self) -> Path:
        return self.here / "ours" / "preprocessed" / HIPPOCAMPUS

    @property
    def their_folder(self) -> Path:
        return self.here / "theirs" / "preprocessed" / HIPPOCAMPUS

    def ours(self, verb: str, *rest: str, without: str = "") -> Side:
        """A verb of autoseg, after the folder `without` of what it made was removed; "": all."""
        root = self.here / "ours"
        argv = [*AUTOSEG, verb, "-d", "4", *rest, "--root", str(root)]
        folder = self.our_folder / without if without else root
        return partial(afresh, folder, argv, {"nnUNet_raw": str(self.raw)})

    def theirs(self, program: str, *rest: str, without: str = "") -> Side:
        """A program of nnU-Net, after the folder or file `without` was removed."""
        made = self.here / "theirs"
        environment = {
            "nnUNet_raw": str(self.raw), "nnUNet_preprocessed": str(made / "preprocessed"),
            "nnUNet_results": str(made / "results"),
        }  # fmt: skip
        argv = [their(program), "-d", "4", *rest]
        return partial(afresh, self.their_folder / without, argv, environment)


def start(_: bool) -> list[Row]:
    program = their("nnUNetv2_train")
    return [
        Row(
            "help", "`--help`",
            pair(partial(command, [*AUTOSEG, "--help"]), partial(command, [program, "-h"])),
            {OURS: "autoseg --help", RIVAL: "nnUNetv2_train -h"}, {OURS: {"wall_s": 1 / 15}},
            pairs=5, pair_s=9,
        )
    ]  # fmt: skip


def fingerprinted(name: str, cases: int, work: Work, pairs: int, pair_s: float) -> Row:
    program = "nnUNetv2_extract_fingerprint"
    return Row(
        name, f"fingerprint, {cases} cases of {HIPPOCAMPUS}",
        pair(work.ours("fingerprint"), work.theirs(program, "-np", CORES)),
        {OURS: "autoseg fingerprint -d 4", RIVAL: f"{program} -d 4 -np {CORES}"},
        pairs=pairs, pair_s=pair_s, size={"cases": cases},
    )  # fmt: skip


def fingerprint(_: bool) -> list[Row]:
    return [fingerprinted("fingerprint", CASES, Work(), pairs=3, pair_s=24)]


def plan(_: bool) -> list[Row]:
    """Each is shown the fingerprint that it made before."""
    program, work = "nnUNetv2_plan_experiment", Work()
    first = work.theirs("nnUNetv2_extract_fingerprint", "-np", CORES)
    return [
        Row(
            "plan", f"plan, {HIPPOCAMPUS}",
            pair(after(work.ours("fingerprint"), work.our_folder / "fingerprint",
                       work.ours("plan", without="plans")),
                 after(first, work.their_folder / "dataset_fingerprint.json",
                       work.theirs(program, without="nnUNetPlans.json"))),
            {OURS: "autoseg plan -d 4", RIVAL: f"{program} -d 4"}, pair_s=6,
        )
    ]  # fmt: skip


CHAIN, LAST = "nnUNetv2_plan_and_preprocess", ("-c", "2d", "3d_fullres", "-np", CORES, CORES)
WHOLE = (*LAST, "-npfp", CORES, "--no_pbar")


def chained(
    name: str, cases: int, work: Work, pairs: int, pair_s: float, *, wanted: bool = False
) -> Row:
    """Fingerprint, plan and preparation from nothing by one command."""
    return Row(
        name, f"fingerprint + plan + preprocess, {cases} cases of {HIPPOCAMPUS}",
        pair(work.ours("plan_and_preprocess"), work.theirs(CHAIN, *WHOLE)),
        {OURS: "autoseg plan_and_preprocess -d 4", RIVAL: f"{CHAIN} -d 4 {' '.join(WHOLE)}"},
        {OURS: {"wall_s": 1 / 4}} if wanted else {}, pairs=pairs, pair_s=pair_s,
        size={"cases": cases}, note="2d and 3d_fullres, by as many processes as cores",
    )  # fmt: skip


def preprocess(_: bool) -> list[Row]:
    """The chain from nothing, and then the last of it alone."""
    program, work = "nnUNetv2_preprocess", Work()
    return [
        chained("chain", CASES, work, pairs=2, pair_s=42, wanted=True),
        Row(
            "preprocess", f"preprocess alone, {HIPPOCAMPUS}",
            pair(after(work.ours("plan_and_preprocess"), work.our_folder / "plans",
                       work.ours("preprocess", without="prepared")),
                 after(work.theirs(CHAIN, *WHOLE), work.their_folder / "nnUNetPlans.json",
                       work.theirs(program, *LAST, without="nnUNetPlans_3d_fullres"))),
            {OURS: "autoseg preprocess -d 4", RIVAL: f"{program} -d 4 {' '.join(LAST)}"},
            pairs=1, pair_s=26,
        ),
    ]  # fmt: skip


def after(first: Side, made: Path, then: Side) -> Side:
    """`then`; before that `first`, which does not count, where what it makes is not there."""

    def run() -> Result:
        if not made.exists():
            first()
        return then()

    return run

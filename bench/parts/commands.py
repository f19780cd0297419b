"""The commands around a data set: starting, fingerprint, plan, preprocessing; each from nothing."""

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from bench.pairs import OURS, RIVAL, Row
from bench.places import DATA, HIPPOCAMPUS, ROOT
from bench.sides import OURS as AUTOSEG
from bench.sides import Result, Side, command, rival_is_there, their

HERE = ROOT / "commands"
THEIR_ENVIRONMENT = {
    "nnUNet_raw": str(DATA), "nnUNet_preprocessed": str(HERE / "theirs" / "preprocessed"),
    "nnUNet_results": str(HERE / "theirs" / "results"),
}  # fmt: skip
OUR_FOLDER = HERE / "ours" / "preprocessed" / HIPPOCAMPUS
THEIR_FOLDER = HERE / "theirs" / "preprocessed" / HIPPOCAMPUS
CORES = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def pair(ours: Side, theirs: Side) -> dict[str, Side]:
    """Both sides; ours alone where nnU-Net is not installed."""
    return {OURS: ours, RIVAL: theirs} if rival_is_there() else {OURS: ours}


def afresh(folder: Path, argv: list[str], environment: Mapping[str, str]) -> Result:
    """The command after `folder` was removed."""
    shutil.rmtree(folder, ignore_errors=True)
    return command(argv, environment)


def ours(verb: str, *rest: str, without: str = "") -> Side:
    """A verb of autoseg on data set 4, after the folder `without` of it was removed."""
    root = HERE / "ours"
    argv = [*AUTOSEG, verb, "-d", "4", *rest, "--root", str(root)]
    folder = OUR_FOLDER / without if without else root
    return partial(afresh, folder, argv, {"nnUNet_raw": str(DATA)})


def theirs(program: str, *rest: str, without: str = "") -> Side:
    """A program of nnU-Net on data set 4, after the folder or file `without` was removed."""
    argv = [their(program), "-d", "4", *rest]
    folder = THEIR_FOLDER / without if without else THEIR_FOLDER
    return partial(afresh, folder, argv, THEIR_ENVIRONMENT)


def start(_: bool) -> list[Row]:
    program = their("nnUNetv2_train")
    return [
        Row(
            "help", "`--help`",
            pair(partial(command, [*AUTOSEG, "--help"]), partial(command, [program, "-h"])),
            {OURS: "autoseg --help", RIVAL: "nnUNetv2_train -h"}, {OURS: {"wall_s": 1 / 15}},
        )
    ]  # fmt: skip


def fingerprint(_: bool) -> list[Row]:
    program = "nnUNetv2_extract_fingerprint"
    return [
        Row(
            "fingerprint", f"fingerprint, {HIPPOCAMPUS}",
            pair(ours("fingerprint"), theirs(program, "-np", CORES)),
            {OURS: "autoseg fingerprint -d 4", RIVAL: f"{program} -d 4 -np {CORES}"},
        )
    ]  # fmt: skip


def plan(_: bool) -> list[Row]:
    """Each is shown the fingerprint that it made before."""
    program, first = (
        "nnUNetv2_plan_experiment",
        theirs("nnUNetv2_extract_fingerprint", "-np", CORES),
    )
    return [
        Row(
            "plan", f"plan, {HIPPOCAMPUS}",
            pair(after(ours("fingerprint"), OUR_FOLDER / "fingerprint", ours("plan", without="plans")),
                 after(first, THEIR_FOLDER / "dataset_fingerprint.json",
                       theirs(program, without="nnUNetPlans.json"))),
            {OURS: "autoseg plan -d 4", RIVAL: f"{program} -d 4"},
        )
    ]  # fmt: skip


def preprocess(_: bool) -> list[Row]:
    """The chain from nothing, and then the last of it alone."""
    program, chain = "nnUNetv2_preprocess", "nnUNetv2_plan_and_preprocess"
    last = ["-c", "2d", "3d_fullres", "-np", CORES, CORES]
    whole = [*last, "-npfp", CORES, "--no_pbar"]
    ours_whole, theirs_whole = ours("plan_and_preprocess"), theirs(chain, *whole)
    ours_last = ours("preprocess", without="prepared")
    theirs_last = theirs(program, *last, without="nnUNetPlans_3d_fullres")
    return [
        Row(
            "chain", f"fingerprint + plan + preprocess, {HIPPOCAMPUS}",
            pair(ours_whole, theirs_whole),
            {OURS: "autoseg plan_and_preprocess -d 4", RIVAL: f"{chain} -d 4 {' '.join(whole)}"},
            {OURS: {"wall_s": 1 / 4}},
            note="200 cases, 2d and 3d_fullres, by as many processes as cores",
        ),
        Row(
            "preprocess", f"preprocess alone, {HIPPOCAMPUS}",
            pair(after(ours_whole, OUR_FOLDER / "plans", ours_last),
                 after(theirs_whole, THEIR_FOLDER / "nnUNetPlans.json", theirs_last)),
            {OURS: "autoseg preprocess -d 4", RIVAL: f"{program} -d 4 {' '.join(last)}"},
        ),
    ]  # fmt: skip


def after(first: Side, made: Path, then: Side) -> Side:
    """`then`; before that `first`, which does not count, where what it makes is not there."""

    def run() -> Result:
        if not made.exists():
            first()
        return then()

    return run

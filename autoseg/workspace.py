"""Where each artefact lies: paths, and nothing else.

`--root` goes before `AUTOSEG_ROOT`, before `./autoseg_data`. nnU-Net's three variables are
honoured: raw data is also looked for in `nnUNet_raw`; `nnUNet_preprocessed` and `nnUNet_results`
serve where neither `--root` nor `AUTOSEG_ROOT` says otherwise.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import AutosegError, nearest
from autoseg.files import explaining, named

DATASET = re.compile(r"^Dataset(\d{3,})_(.+)$")


@dataclass(frozen=True)
class Fold:
    """Where one trained fold lies."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run.json"

    @property
    def stamp(self) -> Path:
        return self.folder / "stamp.json"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def begun(self) -> Path:
        """The stamp that the fold will have, from its first step on."""
        return self.folder / "begun.json"

    @property
    def last(self) -> Path:
        """The state that training goes on from."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def weights(self) -> Path:
        """What predict loads: the final weights (averaged ones where the plan says so)."""
        return self.folder / "weights.safetensors"

    @property
    def history(self) -> Path:
        return self.folder / "history.jsonl"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def validation(self) -> Path:
        return self.folder / "validation"

    def probabilities(self, case: str) -> Path:
        """What an ensemble averages, of a held-out case."""
        return self.validation / "probabilities" / named(f"{case}.npy", "the case id")


@dataclass(frozen=True)
class DatasetPlaces:
    """Where everything of one dataset lies."""

    name: str
    raw: Path
    preprocessed: Path
    results: Path

    @property
    def fingerprint_folder(self) -> Path:
        return self.preprocessed / "fingerprint"

    @property
    def fingerprint(self) -> Path:
        return self.fingerprint_folder / "fingerprint.json"

    @property
    def measured(self) -> Path:
        """One file a case: what was measured of it."""
        return self.fingerprint_folder / "cases"

    @property
    def checks(self) -> Path:
        return self.fingerprint_folder / "checks.json"

    @property
    def plans(self) -> Path:
        return self.preprocessed / "plans"

    def plan(self, name: str) -> Path:
        return self.plans / named(name, "the plan's name") / "plan.json"

    def plan_stamp(self, name: str) -> Path:
        return self.plans / named(name, "the plan's name") / "stamp.json"

    def prepared(self, key: str) -> Path:
        return self.preprocessed / "prepared" / named(key, "the key")

    def fold(self, plan: str, configuration: str, run: str, fold: str) -> Fold:
        return Fold(self._run(plan, configuration, run) / named(f"fold_{fold}", "the fold"))

    def previous(self, plan: str, configuration: str, run: str) -> Path:
        """One file a case: what a cascade refines, on the grid of its prepared cases."""
        return self._run(plan, configuration, run) / "previous"

    def final(self, plan: str, run: str) -> Path:
        """What was chosen from the folds: ensemble, postprocessing, report."""
        name = "final" if run == "default" else named(f"final_{run}", "the run's name")
        return self.results / named(plan, "the plan's name") / name

    def _run(self, plan: str, configuration: str, run: str) -> Path:
        whose = {"plan": plan, "configuration": configuration, "run": run}
        return self.results.joinpath(*(named(n, f"the {what}'s name") for what, n in whose.items()))

    def plan_names(self) -> list[str]:
        if not self.plans.is_dir():
            return []
        return sorted(p.parent.name for p in self.plans.glob("*/plan.json"))


@dataclass(frozen=True)
class Workspace:
    """The folders of raw data (several may be searched), prepared data, results, and models."""

    raw: tuple[Path, ...]
    preprocessed: Path
    results: Path
    models: Path
    """One folder for each model that was installed from a package."""

    def model_names(self) -> list[str]:
        """The names of what lies among the installed models."""
        if not self.models.is_dir():
            return []
        return sorted(p.name for p in self.models.iterdir() if not p.name.startswith("."))

    def datasets(self) -> list[str]:
        """Names of all datasets, raw or already worked on, in the order of their numbers."""
        names = set()
        for folder in (*self.raw, self.preprocessed, self.results):
            if folder.is_dir():
                with explaining(folder, "list"):
                    names |= {
                        p.name for p in folder.iterdir() if DATASET.match(p.name) and p.is_dir()
                    }
        return sorted(names, key=lambda n: (int(n[7:].split("_")[0]), n))

    def dataset(self, wanted: str | int) -> DatasetPlaces:
        """The places of a dataset given by number or name. Raises AutosegError listing the others."""
        names = self.datasets()
        text = str(wanted).strip()
        if text.isdigit():
            found = [n for n in names if int(n[7:].split("_")[0]) == int(text)]
        else:
            found = [n for n in names if text in (n, n.split("_", 1)[1])]
        if len(found) > 1:
            raise AutosegError(f"dataset {text} could be {' or '.join(found)}; give the whole name")
        if not found:
            folders = " and ".join(str(p) for p in self.raw)
            raise AutosegError(
                f"no dataset {text!r} in {folders}" + nearest(text, names)
                if names
                else f"no dataset {text!r}: {folders} holds none; put DatasetNNN_Name there, "
                "choose another --root, or make a phantom with `autoseg demo`"
            )
        return self.places(found[0])

    def places(self, name: str) -> DatasetPlaces:
        """The places of a dataset by its whole name, whether it exists or not."""
        raw = next((p / name for p in self.raw if (p / name).is_dir()), self.raw[0] / name)
        return DatasetPlaces(name, raw, self.preprocessed / name, self.results / name)


def open_workspace(root: Path | None = None) -> Workspace:
    """The workspace that `--root`, the environment and the current folder give."""
    chosen = root or (Path(os.environ["AUTOSEG_ROOT"]) if os.environ.get("AUTOSEG_ROOT") else None)
    base = (chosen or Path("autoseg_data")).absolute()
    theirs = {
        key: Path(value).absolute()
        for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        if (value := os.environ.get(key))
    }
    raw = [base / "raw", *([theirs["nnUNet_raw"]] if "nnUNet_raw" in theirs else [])]
    if chosen is None and "nnUNet_raw" in theirs:
        raw.reverse()
    free = chosen is None
    return Workspace(
        raw=tuple(raw),
        preprocessed=theirs.get("nnUNet_preprocessed", base / "preprocessed")
        if free
        else base / "preprocessed",
        results=theirs.get("nnUNet_results", base / "results") if free else base / "results",
        models=base / "models",
    )

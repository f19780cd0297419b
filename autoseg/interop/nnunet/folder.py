"""Where do nnU-Net's trained models lie: in a folder of results, or in a zip of `nnUNetv2_export_model_to_zip`?

    nnUNetTrainer__nnUNetPlans__3d_fullres/{plans.json,dataset.json,fold_0/checkpoint_final.pth,…}

That is one model. A folder of a dataset holds several, and says in `inference_information.json`
which of them nnU-Net found the best.
"""

import re
import shutil
import stat
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from autoseg.errors import AutosegError, nearest
from autoseg.files import BLOCK, explaining
from autoseg.interop.nnunet.checkpoint import archive_in
from autoseg.interop.nnunet.read import read_object

FINAL = "checkpoint_final.pth"
PLANS, DATASET, FINGERPRINT = "plans.json", "dataset.json", "dataset_fingerprint.json"
INFORMATION = "inference_information.json"
NEEDED = (PLANS, DATASET, FINGERPRINT, INFORMATION, "postprocessing.json", "postprocessing.pkl")
FOLD = re.compile(r"fold_(all|\d{1,4})")
DEEPEST = 3
"""Folders below the one that was named in which models are looked for."""

MOST_ENTRIES = 200_000
TEXT_LIMIT = 64 << 20
CHECKPOINT_LIMIT = 16 << 30
MOST_SWELLING = 200.0
"""Weights hardly shrink; texts of nnU-Net shrink to a twentieth."""
DAMAGE = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, LookupError, RuntimeError)


@dataclass(frozen=True)
class Trained:
    """The folder of one trained configuration, and what its name says."""

    folder: Path
    trainer: str
    plans: str
    configuration: str
    """Empty where the folder was renamed: the checkpoint knows it."""

    @property
    def title(self) -> str:
        return f"{self.configuration or self.folder.name} ({self.trainer}, {self.plans})"

    def folds(self, checkpoint: str) -> dict[str, Path]:
        """Fold -> its checkpoint; `all` last."""
        found = {}
        for path in self.folder.glob(f"fold_*/{checkpoint}"):
            if match := FOLD.fullmatch(path.parent.name):
                found[match[1]] = path
        return dict(sorted(found.items(), key=lambda p: (p[0] == "all", p[0].zfill(4))))


def trained_in(folder: Path) -> list[Trained]:
    """Every trained configuration in a folder, or the folder itself. Raises AutosegError for none."""
    found = [_trained(at) for at in _with_plans(folder, DEEPEST)]
    if not found:
        home = folder.absolute().parent
        if FOLD.fullmatch(folder.absolute().name) and (home / PLANS).is_file():
            raise AutosegError(f"{folder} is one fold of a model; give {folder.parent}, with -f")
        raise AutosegError(
            f"{folder} holds no model of nnU-Net v2; expected a folder with {PLANS}, {DATASET} and "
            f"fold_0/{FINAL}, or one that holds such folders"
        )
    return sorted(found, key=lambda t: (t.configuration, t.trainer, t.plans))


def no_checkpoint(wanted: str, others: Collection[str]) -> str:
    """What to tell of a model that has no checkpoint of the wanted name, but `others`."""
    if not others:
        return f"holds no fold_*/{wanted}; name a folder, or copy it again with its checkpoints"
    there = ", ".join(sorted(others))
    return f"holds no fold_*/{wanted}; there is {there}: name it with --checkpoint"


def _with_plans(folder: Path, deeper: int) -> Iterator[Path]:
    if (folder / PLANS).is_file() and (folder / DATASET).is_file():
        yield folder
    elif deeper and folder.is_dir():
        with explaining(folder, "list"):
            inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
        for one in inner:
            if one.name != "ensembles":
                yield from _with_plans(one, deeper - 1)


def _trained(folder: Path) -> Trained:
    words = folder.absolute().name.split("__")
    trainer, plans, configuration = words if len(words) == 3 else ("", "", "")
    return Trained(folder, trainer or "nnUNetTrainer", plans or "nnUNetPlans", configuration)


def chosen_of(
    found: Sequence[Trained], folder: Path, wanted: Sequence[str]
) -> tuple[list[Trained], Path | None]:
    """The models that speak together, and the file of their postprocessing where there is one.

    `wanted` names configurations, or folders where one configuration is there several times; else
    what nnU-Net's own choice names, else the only one. Raises AutosegError listing what there is.
    """
    if wanted:
        chosen = [_named(found, folder, name) for name in dict.fromkeys(wanted)]
    else:
        chosen = list(found) if len(found) == 1 else _best(found, folder)
    if chosen:
        return chosen, _postprocessing(chosen, folder)
    words = [_word(one, found, folder) for one in found]
    first = next((w for w in words if not w.endswith("3d_lowres")), words[0])
    raise AutosegError(
        f"{folder} holds {len(found)} models: {', '.join(words)}; choose one with -c, as -c {first}, "
        "or several that are averaged"
    )


def _word(one: Trained, found: Sequence[Trained], folder: Path) -> str:
    """How a model is called where it is to be told from the others: the shortest of its names."""
    every = [_names(other, folder) for other in found]
    own = _names(one, folder)
    return next((w for w in own if w and sum(w in names for names in every) == 1), own[-1])


def _names(one: Trained, folder: Path) -> tuple[str, str, str]:
    """Its configuration, the name of its folder, and where that lies."""
    place = one.folder.relative_to(folder) if one.folder.is_relative_to(folder) else one.folder
    return one.configuration, one.folder.name, place.as_posix()


def _named(found: Sequence[Trained], folder: Path, name: str) -> Trained:
    hits = [one for one in found if name in _names(one, folder)]
    if len(hits) == 1:
        return hits[0]
    words = [_word(one, found, folder) for one in hits or found]
    if hits:
        raise AutosegError(
            f"{name} is there {len(hits)} times; choose with -c one of: {', '.join(words)}"
        )
    raise AutosegError(f"there is no trained {name!r}{nearest(name, words)}")


def _best(found: Sequence[Trained], folder: Path) -> list[Trained]:
    """What `inference_information.json` names, where all of it is there."""
    homes = dict.fromkeys([folder, *(t.folder.parent for t in found)])
    path = next((h / INFORMATION for h in homes if (h / INFORMATION).is_file()), None)
    if path is None:
        return []
    said: Any = read_object(path).get("best_model_or_ensemble")
    models = said.get("selected_model_or_models") if isinstance(said, dict) else None
    best = []
    for model in models if isinstance(models, list) else ():
        key = tuple(model.get(k) for k in ("trainer", "plans_identifier", "configuration"))
        best += [t for t in found if (t.trainer, t.plans, t.configuration) == key]
    return best if isinstance(models, list) and len(best) == len(models) else []


def _postprocessing(chosen: Sequence[Trained], folder: Path) -> Path | None:
    """The postprocessing of one model, or of an ensemble of two."""
    if len(chosen) == 1:
        return _beside(chosen[0])
    parts = {f"{t.trainer}__{t.plans}__{t.configuration}" for t in chosen}
    for home in dict.fromkeys([folder, *(t.folder.parent for t in chosen)]):
        for path in sorted(home.glob("ensembles/ensemble___*")):
            if set(path.name.split("___")[1:-1]) == parts:
                return _file_in(path)
    return None


def _beside(one: Trained) -> Path | None:
    """The postprocessing that nnU-Net found on the cross-validation of a model."""
    for home in (*sorted(one.folder.glob("crossval_results_folds_*")), one.folder):
        if found := _file_in(home):
            return found
    return None


def _file_in(folder: Path) -> Path | None:
    names = ("postprocessing.json", "postprocessing.pkl")
    return next((folder / n for n in names if (folder / n).is_file()), None)


def stage_of(one: Trained, name: str, found: Sequence[Trained]) -> Trained:
    """The model that a cascade refines: beside it, with its trainer and plans. Raises AutosegError."""
    home = one.folder.absolute().parent
    beside = [*found, *(_trained(p) for p in sorted(home.glob(f"*__*__{name}")))]
    for other in beside:
        if other.configuration == name and (other.trainer, other.plans) == (one.trainer, one.plans):
            return other
    raise AutosegError(
        f"{one.title} refines {name}, which is not beside it; give the folder that holds "
        f"{one.trainer}__{one.plans}__{name} as well"
    )


# ---- zips


def is_foreign(path: Path) -> bool:
    """Whether a folder or a zip looks like a model of nnU-Net: there is a plans.json in it."""
    if path.is_dir():
        return any(next(path.glob(where), None) for where in (PLANS, f"*/{PLANS}"))
    if not path.is_file():
        return False
    try:
        with archive_in(path) as (archive, _):
            return any(PurePosixPath(name).name == PLANS for name in archive.namelist())
    except (AutosegError, *DAMAGE):
        return False


def unpack_model(path: Path, into: Path, checkpoint: str) -> None:
    """Unpack what is needed of a model zip below `into`.

    Raises AutosegError for a damaged or hostile file: names that leave the folder, links, entries
    that swell absurdly or are longer than they say.
    """
    try:
        with archive_in(path) as (archive, length):
            infos = archive.infolist()
            if len(infos) > MOST_ENTRIES:
                _refuse(path, f"it holds {len(infos)} files")
            if any(PurePosixPath(info.filename).name == "data.pkl" for info in infos):
                raise AutosegError(
                    f"{path} is a checkpoint alone; give the folder above its fold, with {PLANS}"
                )
            taken = [info for info in infos if _is_needed(info, path, checkpoint)]
            others = {p.name for p in map(_checkpoint_place, infos) if p is not None}
            if others and checkpoint not in others:
                raise AutosegError(f"{path} {no_checkpoint(checkpoint, others)}")
            if len({info.filename.lower() for info in taken}) != len(taken):
                _refuse(path, "two of its files have one name")
            if sum(info.compress_size for info in taken) > length:
                _refuse(path, "its files overlap, so that it would swell when it is unpacked")
            _fits(path, into, sum(info.file_size for info in taken))
            for info in taken:
                _unpacked(archive, info, into, path)
    except DAMAGE as error:
        raise AutosegError(
            f"{path} is no zip, or a damaged one ({str(error)[:100]}); copy or download it again"
        ) from error


def _checkpoint_place(info: zipfile.ZipInfo) -> PurePosixPath | None:
    """The name of an entry that is the checkpoint of a fold."""
    place = PurePosixPath(info.filename)
    held = place.match("*.pth") and FOLD.fullmatch(place.parent.name) is not None
    return place if held else None


def _refuse(path: Path, found: str) -> None:
    raise AutosegError(f"{path} is refused: {found}; ask its maker for another")


def _is_needed(info: zipfile.ZipInfo, path: Path, checkpoint: str) -> bool:
    """Whether an entry belongs to a model; raises AutosegError for one that nobody may unpack."""
    place = PurePosixPath(info.filename)
    shown = info.filename[:80]
    if place.is_absolute() or ".." in place.parts or "\\" in info.filename or ":" in info.filename:
        _refuse(path, f"it holds {shown!r}, a name that leaves its folder")
    is_checkpoint = place.name == checkpoint and FOLD.fullmatch(place.parent.name) is not None
    if info.is_dir() or not (is_checkpoint or place.name in NEEDED):
        return False
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.flag_bits & 1:
        _refuse(path, f"{shown!r} is a link or encrypted")
    limit = CHECKPOINT_LIMIT if is_checkpoint else TEXT_LIMIT
    swells = info.file_size > MOST_SWELLING * max(info.compress_size, 1)
    if info.file_size > limit or (swells and info.file_size > BLOCK):
        _refuse(path, f"{shown!r} would have {info.file_size} bytes once it is unpacked")
    return True


def _fits(path: Path, into: Path, needed: int) -> None:
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    if free < needed:
        raise AutosegError(
            f"{path} needs {needed / 1e9:.2f} GB in {into}, the disk has {free / 1e9:.2f} GB left; "
            "free some space, or set TMPDIR to a larger disk"
        )


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, into: Path, path: Path) -> None:
    target = into.joinpath(*PurePosixPath(info.filename).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(info) as source, open(target, "xb") as file:
        while piece := source.read(BLOCK):
            written += len(piece)
            if written > info.file_size:
                _refuse(path, f"{info.filename[:80]!r} is longer than it says")
            file.write(piece)

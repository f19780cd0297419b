"""Which files lie in a folder, and which of them belong together: what all layouts of others share."""

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoseg.documents.conversion import SourceCase
from autoseg.documents.dataset import CHANNEL, suffix_of
from autoseg.errors import AutosegError, Problem
from autoseg.files import explaining

MOST_FILES = 5_000_000
MARKS = "_-. "
NAMELESS = ("image", "img", "imaging", "ct", "mri", "mr", "volume", "scan")
"""Files called so are told apart by their folders."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")


@dataclass
class Paired:
    """Images found for each case, channel by channel, and what could not be placed."""

    images: dict[str, dict[int, Path]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, case: str, channel: int, path: Path) -> None:
        """Give a file to a case; a second one for the same channel is a problem."""
        have = self.images.setdefault(case, {})
        if channel in have:
            self.problems.append(twice(case, have[channel], path))
        else:
            have[channel] = path

    def complete(self, channels: int) -> Iterator[Problem]:
        """The cases that lack a channel."""
        for case, have in self.images.items():
            lost = sorted(set(range(channels)) - set(have))
            if lost:
                found = f"no channel {', '.join(str(n) for n in lost)}; it has {len(have)} of {channels}"
                fix = "add the missing file, or take the case out"
                yield Problem(case, "a case lacks a channel", found, fix)


def every_file(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path below the folder, with /, and the file) of all files in it, in order of their names.

    Hidden files and folders and `__MACOSX` are left out. Raises AutosegError.
    """
    require_folder(folder)
    count = 0
    for at, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        for name in sorted(names):
            if name.startswith("."):
                continue
            count += 1
            if count > MOST_FILES:
                raise AutosegError(f"{folder} holds more than {MOST_FILES} files")
            path = Path(at) / name
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    with explaining(Path(str(error.filename)), "list"):
        raise error


def require_folder(folder: Path) -> None:
    """Raises AutosegError unless the folder is there."""
    if not folder.is_dir():
        there = folder.exists()
        what = "is a file, not a folder" if there else "does not exist"
        first = "unpack it first if it is an archive, and " if there else ""
        raise AutosegError(f"{folder} {what}; {first}name the folder that holds the data")


def images_in(folder: Path) -> list[Path]:
    """The image files right in a folder, in order; hidden ones and other kinds are left out."""
    require_folder(folder)
    with explaining(folder, "list"):
        found = sorted(folder.iterdir())
    return [p for p in found if not p.name.startswith(".") and p.is_file() and is_image(p)]


def folders_in(folder: Path) -> list[Path]:
    """The folders right in a folder, in order, without hidden ones."""
    with explaining(folder, "list"):
        found = sorted(p for p in folder.iterdir() if p.is_dir())
    return [p for p in found if not p.name.startswith(".") and p.name != "__MACOSX"]


def is_there(path: Path) -> bool:
    """Whether a file that a list names exists; false for what can be no path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_image(path: Path) -> bool:
    """Whether the name is that of an image."""
    return bool(suffix_of(path.name)) or path.name.lower().endswith(".gif")


def stem_of(path: Path) -> str:
    """The name without the ending of an image."""
    if path.name.lower().endswith(".gif"):
        return path.name[:-4]
    suffix = suffix_of(path.name)
    return path.name[: len(path.name) - len(suffix)]


def by_channel(paths: Iterable[Path], endings: Sequence[str]) -> Paired:
    """Files as cases and channels, by the ending of their names (`_t1`), or nnU-Net's `_0000`.

    Without either, each file is a case.
    """
    files = list(paths)
    paired = Paired()
    numbered = bool(files) and all(CHANNEL.match(stem_of(p)) for p in files)
    for path in files:
        stem = stem_of(path)
        match = CHANNEL.match(stem)
        if endings:
            fits = [n for n, ending in enumerate(endings) if stem.endswith(ending)]
            if not fits:
                found = f"{path.name} ends with none of {' '.join(endings)}"
                fix = "name the endings of all channels, or move the file away"
                paired.problems.append(Problem(stem, "a file is of no channel", found, fix))
                continue
            at = max(fits, key=lambda n: len(endings[n]))
            paired.add(stem[: len(stem) - len(endings[at])].rstrip("_-. "), at, path)
        elif numbered and match is not None:
            paired.add(match["case"], int(match["channel"]), path)
        else:
            paired.add(stem, 0, path)
    return paired


def twice(case: str, first: Path, second: Path) -> Problem:
    """Two files that claim to be the same thing."""
    found = f"{first} and {second}"
    fix = "keep one of them, or name the folder that holds only one"
    return Problem(case, "two files claim to be the same", found, fix)


def without_image(labels: Iterable[str], images: Mapping[str, object]) -> list[Problem]:
    """Warnings for labels that no image has."""
    fix = "add the image, or take the label away; names must agree"
    return [
        Problem(case, "a label has no image", f"no image is called {case}", fix, fatal=False)
        for case in labels
        if case not in images
    ]


def without_label(images: Iterable[str], labels: Mapping[str, object]) -> list[Problem]:
    """Warnings for images that no label has; they become test cases."""
    fix = "nothing if it is a test case; otherwise add the label, named as the image"
    what = "an image has no label and becomes a test case"
    return [
        Problem(case, what, f"no label is called {case}", fix, fatal=False)
        for case in images
        if case not in labels
    ]


def number_key(path: Path) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: slice_2 before slice_10."""
    return [
        (int(part), "") if part.isdecimal() else (0, part)
        for part in re.split(r"(\d+)", path.name)
        if part
    ]


def case_name(paths: Sequence[Path]) -> str:
    """The name of a case: its image's, or what the names of its channels begin with."""
    stems = [stem_of(path) for path in paths]
    name = stems[0]
    if len(set(stems)) > 1:
        prefix = os.path.commonprefix(stems)  # noqa: RUF071 - of names, letter by letter
        whole = all(len(s) == len(prefix) or s[len(prefix)] in MARKS for s in stems)
        # else back to the last mark between words: t1 and t2 are not both called t
        end = len(prefix) if whole else max(prefix.rfind(mark) for mark in MARKS)
        name = prefix[: max(end, 0)].rstrip(MARKS)
    elif name.lower() in NAMELESS:
        name = ""
    return (name or paths[0].parent.name).removesuffix("_0000")


def told_apart(cases: Iterable[SourceCase], given: Container[str] = ()) -> list[SourceCase]:
    """The cases, in order; those that share a name are called as the nearest folder that differs.

    Names that a person gave, and those of cases whose folders do not differ, stay.
    """
    listed = list(cases)
    alike: dict[str, list[int]] = {}
    for at, case in enumerate(listed):
        alike.setdefault(case.id, []).append(at)
    for name, places in alike.items():
        if len(places) == 1 or name in given:
            continue
        folders = [listed[at].images[0].files[0].parts[-2::-1] for at in places]
        level = next((names for names in zip(*folders) if len(set(names)) == len(names)), None)
        for at, called in zip(places, level or ()):
            listed[at] = replace(listed[at], id=called)
    return listed

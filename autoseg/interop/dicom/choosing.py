"""Which series is meant: never guessed where several fit, but listed, so that a person chooses."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import AutosegError, Problem
from autoseg.files import sha256_json
from autoseg.interop.dicom.series import Found, Series, drawn_on

ALL = "all"


@dataclass(frozen=True)
class Scan:
    """One case: the series of each channel, on one grid."""

    case: str
    channels: tuple[Series, ...]

    @property
    def digest(self) -> str:
        """A hash of what the scan is made of: names, sizes and times of its files, and frames."""
        return sha256_json(
            [
                [
                    identity(s.source, sorted({f.instance.name for f in s.frames})),
                    # one file may hold several volumes
                    [[f.instance.name, f.index] for f in s.frames],
                ]
                for s in self.channels
            ]
        )


def identity(source: Path, names: Sequence[str]) -> str:
    """A hash of names, sizes and times of files; an archive stands for all that it holds."""
    paths = [source / name for name in names] if source.is_dir() else [source]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return sha256_json([list(names), [list(fact) for fact in facts]])


def choose(
    found: Found, wanted: Sequence[str] = (), *, drawn: bool = False
) -> tuple[list[Scan], list[Problem]]:
    """The scans that are meant, one a patient and study, and what was left out.

    `wanted` names the series of each channel: a UID, a number of the list that the error shows, or
    a part of the description; ("all",) takes every series that fits as a case of its own. Without
    it each patient and study must hold one series that fits: localizers never do, single slices and
    pictures only where there is no volume. With `drawn` the series that structures were drawn on
    are meant, each a case, where a patient has such. Raises AutosegError, with a list, where that
    fails.
    """
    people = _people(found)
    if not people:
        raise AutosegError(f"{found.path} holds no DICOM image, only what was drawn on others")
    scans: list[Scan] = []
    problems: list[Problem] = []
    names = _names(found.path, people, one_of_many=drawn)
    every = tuple(wanted) == (ALL,)
    for person, series_list in people.items():
        fitting, left_out = _fitting(names[person], series_list, chosen=bool(wanted) and not every)
        problems += left_out
        if not fitting:
            continue
        if _all_elsewhere(found, series_list, wanted):
            what, fix = "a patient was left out", "nothing: the series that were named are others'"
            shown = f"{len(series_list)} series, none of which was named"
            problems.append(Problem(names[person], what, shown, fix, fatal=False))
            continue
        with_structures = [s for s in series_list if drawn and drawn_on(found.structures, s)]
        if every or (with_structures and not wanted):
            fitting = with_structures or fitting
            several = len(fitting) > 1
            scans += [
                Scan(f"{names[person]}_{n + 1}" if several else names[person], (series,))
                for n, series in enumerate(fitting)
            ]
        elif wanted:
            picked = tuple(_one(found.path, names[person], series_list, term) for term in wanted)
            scans.append(Scan(names[person], picked))
        elif len(fitting) > 1:
            raise AutosegError(
                f"{found.path}: {len(fitting)} series of {names[person]} could be meant; "
                + _which(series_list, fitting)
            )
        else:
            scans.append(Scan(names[person], (fitting[0],)))
    if not scans:
        raise AutosegError(
            f"{found.path} holds nothing to segment but localizers:\n{listed(found)}"
        )
    return scans, problems


def listed(found: Found) -> str:
    """The series of a source as text, a paragraph a patient, with the numbers to choose by."""
    people = _people(found)
    names = _names(found.path, people)
    return "\n".join(
        f"{names[person]}\n{_rows(series, series)}" for person, series in people.items()
    )


def _people(found: Found) -> dict[tuple[str, str], list[Series]]:
    """The series of each patient and study, studies of a patient in order of time."""
    people: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for series in found.series:
        people[series.person].append(series)
    return dict(sorted(people.items(), key=lambda each: (each[0][0], _day(each[1]), each[0][1])))


def _day(series_list: Sequence[Series]) -> str:
    """The first day of a study, as 20200131; empty where none is known."""
    days = [series.frames[0].instance.taken[:10] for series in series_list]
    return min((day for day in days if day), default="").replace("-", "")


def _all_elsewhere(found: Found, series_list: Sequence[Series], wanted: Sequence[str]) -> bool:
    """Whether every word of the user is the UID of a series, and all are those of other people."""
    uids, own = {s.uid for s in found.series}, {s.uid for s in series_list}
    words = {word.strip() for word in wanted}
    return bool(words) and words <= uids and not words & own


def _rows(every: Sequence[Series], shown: Sequence[Series]) -> str:
    rows = (f"  {n + 1:3d}  {s.described}" for n, s in enumerate(every) if s in shown)
    return "\n".join(rows)


def _which(every: Sequence[Series], shown: Sequence[Series]) -> str:
    return "say which by its number, its UID or a part of its description (--series):\n" + _rows(
        every, shown
    )


def _one(path: Path, name: str, every: Sequence[Series], term: str) -> Series:
    """The series that a word of the user means. Raises AutosegError for none or several."""
    word = term.strip().lower()
    if word.isdecimal() and 0 < int(word) <= len(every):
        return every[int(word) - 1]
    matching = [series for series in every if word and series.uid == term.strip()]
    matching = matching or [series for series in every if word and word in _words(series)]
    if len(matching) == 1:
        return matching[0]
    how_many = f"{len(matching)} series fit" if matching else "no series fits"
    raise AutosegError(f"{path}: {how_many} {term!r} in {name}; {_which(every, matching or every)}")


def _words(series: Series) -> str:
    first = series.frames[0].instance
    return f"{first.modality}, {first.description}, {series.part}".lower()


def _fitting(
    name: str, series_list: Sequence[Series], *, chosen: bool
) -> tuple[list[Series], list[Problem]]:
    """The series that could be segmented, and a warning for each kind that is left out."""
    if chosen:
        return list(series_list), []
    fitting = [s for s in series_list if not s.frames[0].instance.localizer]
    fitting = [s for s in fitting if not s.frames[0].instance.mosaic] or fitting
    if any(series.kind == "volume" for series in fitting):
        fitting = [series for series in fitting if series.kind == "volume"]
    problems = [
        Problem(
            name,
            "a series was left out",
            series.described,
            "nothing, if it is a localizer or a picture; otherwise choose it by --series",
            fatal=False,
        )
        for series in series_list
        if series not in fitting
    ]
    return fitting, problems


def _names(
    path: Path, people: dict[tuple[str, str], list[Series]], *, one_of_many: bool = False
) -> dict[tuple[str, str], str]:
    """A name for each patient and study: the top folder where it has one of its own, else the id.

    Several studies of one id are told apart by their days, and where these are equal by numbers.
    A source of one patient and study gives it the source's name, unless it is `one_of_many`: the
    cases of a dataset keep their names when others join them.
    """
    plain = path.name if path.is_dir() else path.stem
    if len(people) == 1 and not one_of_many:
        return dict.fromkeys(people, _safe(plain or path.resolve().name))
    tops = {person: {series.folder for series in group} for person, group in people.items()}
    everyone = [top for folders in tops.values() for top in folders]
    days: dict[str, list[str]] = defaultdict(list)
    for (patient, _), group in people.items():
        days[patient].append(_day(group))
    names: dict[tuple[str, str], str] = {}
    for person, folders in tops.items():
        (top, *more) = sorted(folders)
        own = not more and top and everyone.count(top) == 1
        name = _safe(top if own else person[0] or plain)
        day = _day(people[person])
        if not own and day and days[person[0]].count(day) == 1 and len(days[person[0]]) > 1:
            name = f"{name}_{day}"
        while name in names.values():
            number = re.search(r"_(\d+)$", name)
            name = (
                f"{name}_2" if number is None else f"{name[: number.start()]}_{int(number[1]) + 1}"
            )
        names[person] = name
    return names


def _safe(text: str) -> str:
    """The text as a case id: letters, digits, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("._-")[:64] or "scan"

"""Rows that show what the cost of a part grows with, beside those that are measured anyway.

One pair of runs each: what counts is the slope over all sizes. With `quick` the smallest alone.
"""

from bench.pairs import OURS, RIVAL, Row
from bench.parts.arrays import SMALL, counted, prepared, resampled, text
from bench.parts.commands import HERE as COMMANDS
from bench.parts.commands import Work, chained, fingerprinted, pair
from bench.parts.models import hippocampus
from bench.parts.predicting import evaluated, predicted
from bench.parts.specimens import channels_of, moved_cases, moved_phantoms, phantom, some_cases
from bench.parts.training import CHANNELS_64, VOXELS_1, augmented
from bench.sides import side

EDGES = (64, 96, 144)
CHANNELS = (1, 2, 4)
CASES = (25, 50, 100)
MANY_CHANNELS_EDGE = 96
PATCH = (40, 56, 40)
"""Of the model that predicts."""
TILES = (1, 2, 3)
"""Along each axis."""


def _work(count: int) -> Work:
    return Work(some_cases(count), COMMANDS / f"cases{count}")


def _volumes() -> list[tuple[int, int, dict[str, float]]]:
    """(edge, channels, size) of phantoms: more voxels with one channel, more channels of one size."""
    of = f"channels of {MANY_CHANNELS_EDGE}³"
    found = []
    for edge in EDGES:
        size: dict[str, float] = {VOXELS_1: edge**3}
        found.append((edge, 1, size | ({of: 1} if edge == MANY_CHANNELS_EDGE else {})))
    return found + [(MANY_CHANNELS_EDGE, count, {of: count}) for count in CHANNELS[1:]]


def fingerprint(quick: bool) -> list[Row]:
    rows = [
        fingerprinted(f"cases{n}", n, _work(n), pairs=1, pair_s=18)
        for n in (CASES[:1] if quick else CASES)
    ]
    for edge, channels, size in _volumes()[: 1 if quick else None]:
        arguments = {"dataset": str(phantom([edge] * 3, channels))}
        rows.append(Row(
            f"case{edge}_{channels}", f"fingerprint of one case, {edge}³, {counted(channels, 'channel')}",
            pair(side("ours", "fingerprint_case", arguments),
                 side("theirs", "fingerprint_case", arguments)),
            {OURS: "bench/ours/fingerprint_case.py", RIVAL: "bench/theirs/fingerprint_case.py"},
            pairs=1, pair_s=13, size=size,
        ))  # fmt: skip
    return rows


def preprocess(quick: bool) -> list[Row]:
    rows = [
        chained(f"chain{n}", n, _work(n), pairs=1, pair_s=28)
        for n in (CASES[:1] if quick else CASES)
    ]
    for edge, channels, size in _volumes()[: 1 if quick else None]:
        files = channels_of(phantom([edge] * 3, channels))
        what = f"a phantom of {edge}³, {counted(channels, 'channel')}"
        rows.append(prepared(f"phantom{edge}_{channels}", files, (0.8, 0.8, 0.8), what, pairs=1,
                             pair_s=16, size=size))  # fmt: skip
    return rows


def resample(quick: bool) -> list[Row]:
    return [
        resampled(f"labels_small{n}", *SMALL, labels=n, pairs=1, pair_s=12, size={"labels": n})
        for n in ((2,) if quick else (2, 20))
    ]


def augmentation(quick: bool) -> list[Row]:
    if quick:
        return []
    return [
        augmented("cube128", [128] * 3, 1, 10, pairs=1, size={VOXELS_1: 128**3}),
        augmented("cube64_8", [64] * 3, 8, 15, pairs=1, size={CHANNELS_64: 8}),
    ]


def predict(quick: bool) -> list[Row]:
    """Scans that take 1, 8, 27, … tiles, each half a patch from the next; no mirroring."""
    model, rows = hippocampus(quick), []
    for along in TILES[:1] if quick else TILES:
        shape, count = [n + (along - 1) * n // 2 for n in PATCH], along**3
        folder = phantom(shape, 1) / "imagesTr"
        rows.append(predicted(
            f"tiles{count}", f"predict a phantom of {text(shape)}, {counted(count, 'tile')}, no mirroring", model,
            folder, pair_s=14 + count, size={"tiles": count},
        ))  # fmt: skip
    return rows


def evaluate(quick: bool) -> list[Row]:
    def maps(name: str, edge: int, labels: int, size: dict[str, float]) -> Row:
        what = f"2 label maps of {edge}³ with {labels} labels"
        return evaluated(name, what, moved_phantoms(2, edge, labels), labels, size=size)

    edges, counts = ((64,), ()) if quick else ((64, 96, 160), (12, 48))
    rows = [] if quick else [
        evaluated(f"cases{n}", f"{n} label maps of data set 4", moved_cases(n), 2, size={"cases": n})
        for n in (15, 30, 120)
    ]  # fmt: skip
    return [
        *rows,
        *(maps(f"edge{n}", n, 3, {"voxels": n**3} | ({"labels": 3} if n == 96 else {})) for n in edges),
        *(maps(f"labels{n}", 96, n, {"labels": n}) for n in counts),
    ]  # fmt: skip

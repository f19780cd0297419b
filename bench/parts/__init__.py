"""The parts that are compared: what each measures, in the order of the work.

A part is a function from `quick` to its rows; it may first make what they need.
"""

from collections.abc import Callable
from dataclasses import replace

from bench.pairs import OURS, Row
from bench.parts import arrays, commands, growth, predicting, training
from bench.sides import side

Part = Callable[[bool], list[Row]]


def ceilings(_: bool) -> list[Row]:
    """What the machine can do at most, by one thread and by all."""
    note = "the best of five: copying 256 MiB, a product of 1536², 32 channels of 48³ by 3³"
    return [
        Row(name, f"ceilings of this machine, {words}",
            {OURS: side("ours", "ceilings", {"threads": threads})}, note=note, pairs=1, pair_s=6)
        for name, words, threads in (("one", "one thread", 1), ("all", "all cores", 0))
    ]  # fmt: skip


def gpu(quick: bool) -> list[Row]:
    """What needs a card; nothing where there is none."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [*training.card(quick), *predicting.card(quick)]


def _grown(main: Part, aside: Part) -> Part:
    """The rows of a part, and after them those that only show its growth."""

    def rows(quick: bool) -> list[Row]:
        return [*main(quick), *(replace(row, aside=True) for row in aside(quick))]

    return rows


def preprocess(quick: bool) -> list[Row]:
    return [*commands.preprocess(quick), *arrays.scan(quick)]


PARTS: dict[str, Part] = {
    "ceilings": ceilings,
    "start": commands.start,
    "fingerprint": _grown(commands.fingerprint, growth.fingerprint),
    "plan": commands.plan,
    "preprocess": _grown(preprocess, growth.preprocess),
    "resample": _grown(arrays.resample, growth.resample),
    "augmentation": _grown(training.augmentation, growth.augmentation),
    "loading": training.loading,
    "step": training.step,
    "predict": _grown(predicting.predict, growth.predict),
    "export": predicting.export,
    "evaluate": _grown(predicting.evaluate, growth.evaluate),
    "raw": predicting.raw,
    "gpu": gpu,
}

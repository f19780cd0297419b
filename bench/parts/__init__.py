"""The parts that are compared: what each measures, in the order of the work.

A part is a function from `quick` to its rows; it may first make what they need.
"""

from collections.abc import Callable

from bench.pairs import OURS, Row
from bench.parts import arrays, commands, predicting, training
from bench.sides import side


def ceilings(_: bool) -> list[Row]:
    """What the machine can do at most, by one thread and by all."""
    note = "the best of five: copying 256 MiB, a product of 1536², 32 channels of 48³ by 3³"
    return [
        Row(name, f"ceilings of this machine, {words}",
            {OURS: side("ours", "ceilings", {"threads": threads})}, note=note)
        for name, words, threads in (("one", "one thread", 1), ("all", "all cores", 0))
    ]  # fmt: skip


def gpu(quick: bool) -> list[Row]:
    """What needs a card; nothing where there is none."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [*training.card(quick), *predicting.card(quick)]


def preprocess(quick: bool) -> list[Row]:
    return [*commands.preprocess(quick), *arrays.scan(quick)]


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "ceilings": ceilings,
    "start": commands.start,
    "fingerprint": commands.fingerprint,
    "plan": commands.plan,
    "preprocess": preprocess,
    "resample": arrays.resample,
    "augmentation": training.augmentation,
    "loading": training.loading,
    "step": training.step,
    "predict": predicting.predict,
    "export": predicting.export,
    "evaluate": predicting.evaluate,
    "raw": predicting.raw,
    "gpu": gpu,
}

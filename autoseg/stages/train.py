"""Prepared cases × configuration × fold → weights, history, journal.

A fold goes on from its last saved state, step by step the same as if it had never stopped. What
was decided on the way (the variant of the step, the number of steps that the time allows) stands
in the journal before it is used, and is read from there when the run goes on.
"""

import logging
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from autoseg.data.batches import Batches, BatchSpec, validation_batches
from autoseg.data.store import StoredCases
from autoseg.documents.plan import Training
from autoseg.documents.run import RunSpec, append_line, keep_until, lines
from autoseg.errors import AutosegError, Interrupted, Stale
from autoseg.files import Lock, sha256_json, sweep
from autoseg.infer.tiles import count_tiles
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.loop import advance
from autoseg.learn.optimisers import optimiser
from autoseg.learn.pace import Pace, paced_rate
from autoseg.learn.scores import smoothed_scores, volume_dice
from autoseg.learn.state import Average, Run, load_state, save_state
from autoseg.learn.variants import Timing, Variant, candidates, fastest, measure
from autoseg.learn.weights import save_weights
from autoseg.nets.build import build
from autoseg.stage import Stamp, differences, read_stamp
from autoseg.workspace import DatasetPlaces, Fold

log = logging.getLogger(__name__)

VERSION = 1
VARIANT_S = 12.0
"""At most so long (and at most 1 % of the time given) is spent on choosing the step's variant."""
DECIDE_EVERY_S = 10.0
SLACK = 0.01
"""A new estimate of the steps left is acted upon if it differs by more than this."""
SAFETY_S = 4.0
ENDLESS = 2**31
"""Where the batches end: the pace, which may be decided anew, ends the run before."""


def pick_device(wanted: str | None) -> torch.device:
    """The device asked for, else the first card, else the CPU. Raises AutosegError."""
    if wanted in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(wanted))
    except RuntimeError:
        raise AutosegError(f"--device {wanted!r} is unknown; use cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AutosegError(f"--device {wanted}: this torch sees no card; use --device cpu")
    return device


def fold_stamp(spec: RunSpec, digests: dict[str, str]) -> Stamp:
    """What a trained fold was made from: its cases' contents, and the configuration it reads."""
    cases = {case: digests[case] for case in (*spec.train_cases, *spec.validation_cases)}
    configuration = spec.configuration.dump()
    configuration.pop("predict")
    return Stamp(
        "train",
        VERSION,
        {"cases": sha256_json(cases)},
        {"configuration": configuration, "fold": [spec.train_cases, spec.validation_cases]},
    )


@dataclass
class Clock:
    """The time that a run may take, counted over all its processes; None is without end."""

    began: float
    spent_before: float = 0.0
    total_s: float | None = None
    reserve_s: float = 0.0

    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.began

    def left(self) -> float:
        """Seconds left for steps, the final validation set aside."""
        assert self.total_s is not None
        return self.total_s - self.spent() - self.reserve_s - SAFETY_S


@dataclass
class Watch:
    """What happens beside the steps: history, validation, saving, the deadline, signals."""

    fold: Fold
    train: Training
    clock: Clock
    pace: Pace
    score: Callable[[], float | None]
    bar: Any
    stopped: threading.Event
    unwritten: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)
    decided_at: float = field(default_factory=time.monotonic)
    paced: tuple[float, int] = (0.0, 0)
    finished: bool = False

    def after_step(self, run: Run, loss: torch.Tensor) -> bool:
        """Called by the loop after each step; False ends the loop."""
        self.unwritten.append((run.step, loss))
        if loss.device.type == "cpu" or len(self.unwritten) >= 25:
            self.write_losses()
        self.bar.update(run.step - self.bar.n)
        now = time.monotonic()
        if run.step % self.train.validate_every == 0 or run.step == self.pace.total:
            self.validate(run)
        if self.clock.total_s is not None and now - self.decided_at >= DECIDE_EVERY_S:
            self.decide(run)
        self.finished = run.step >= self.pace.total or self.should_stop_early()
        if self.finished or self.stopped.is_set() or now - self.saved_at >= self.train.save_every_s:
            self.save(run)
        return not (self.finished or self.stopped.is_set())

    def write_losses(self) -> None:
        for step, loss in self.unwritten:
            append_line(self.fold.history, {"step": step, "loss": float(loss)})
        if self.unwritten:
            self.bar.set_postfix(loss=f"{float(self.unwritten[-1][1]):.3f}", dice=self._dice())
        self.unwritten.clear()

    def _dice(self) -> str:
        last = next((s for s in reversed(self.scores) if s is not None), None)
        return "–" if last is None else f"{last:.3f}"

    def validate(self, run: Run) -> None:
        self.write_losses()
        score = self.score()
        self.scores.append(score)
        append_line(
            self.fold.history,
            {"step": run.step, "dice": score, "lr": run.optimiser.param_groups[0]["lr"],
             "seconds": round(self.clock.spent(), 2)},
        )  # fmt: skip
        smooth = smoothed_scores(self.scores)
        if (
            smooth
            and smooth[-1] is not None
            and smooth[-1] >= max(s for s in smooth if s is not None)
        ):
            save_weights(self.fold.best, run.speaker, {"step": run.step, "score": smooth[-1]})

    def should_stop_early(self) -> bool:
        patience = self.train.early_stop
        smooth = [s for s in smoothed_scores(self.scores) if s is not None]
        if patience is None or len(smooth) <= patience:
            return False
        return max(smooth[-patience:]) <= max(smooth[:-patience])

    def decide(self, run: Run) -> None:
        """Fit the steps that are left to the time that is left, and write it down first."""
        now = time.monotonic()
        since, step = self.paced
        if run.step - step < 3:
            return
        seconds = (now - since) / (run.step - step)
        self.decided_at = now
        self.paced = (now, run.step)
        left = max(1, int(self.clock.left() / seconds))
        total = run.step + left
        if abs(total - self.pace.total) <= SLACK * max(1, self.pace.total - run.step):
            return
        append_line(
            self.fold.journal,
            {"event": "pace", "step": run.step, "total": total,
             "why": f"{seconds:.3f} s a step, {self.clock.left():.0f} s left for steps"},
        )  # fmt: skip
        self.pace.decide(run.step, total)
        self.bar.total = total

    def save(self, run: Run) -> None:
        self.write_losses()
        save_state(self.fold.last, run)
        append_line(
            self.fold.journal,
            {"event": "saved", "step": run.step, "spent_s": round(self.clock.spent(), 2)},
        )
        self.saved_at = time.monotonic()


@contextmanager
def signals_noted() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set instead of ending the process; a second one ends it."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        log.warning("stopping: the state is saved after this step")

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin(fold: Fold, spec: RunSpec, stamp: Stamp, *, redo: bool) -> bool:
    """Make the fold's folder ready; False if the fold is trained already.

    Raises Stale if it was begun or made from something else and `redo` is not given.
    """
    begun = fold.folder / "begun.json"
    done, started = read_stamp(fold.stamp), read_stamp(begun)
    name = f"fold {spec.fold} of {spec.dataset} {spec.configuration_name} ({spec.plan}/{spec.run})"
    if redo and (done or started):
        for entry in fold.folder.iterdir():
            if entry.name != fold.lock.name:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        done = started = None
    if done == stamp:
        return False
    other = done or started
    if other is not None and other != stamp:
        state = "was trained" if done else "is half trained"
        reasons = "; ".join(differences(other, stamp)[:4])
        raise Stale(
            f"{name} {state} from something else ({reasons}); train it again with --redo, or under "
            "another name with --run NAME"
        )
    sweep(fold.folder)
    spec.write(fold.run)
    stamp.write(begun)
    return True


def new_run(spec: RunSpec, device: torch.device) -> Run:
    """A freshly initialised network and its optimiser; the weights depend on the seed alone."""
    train = spec.configuration.train
    torch.manual_seed(train.seed)
    net = build(spec.configuration.network).to(device)
    run = Run(net, optimiser(train, net))
    if train.ema_decay > 0:
        run.average = Average(net, train.ema_decay)
    return run


def choose_variant(
    spec: RunSpec, fold: Fold, device: torch.device, time_s: float | None
) -> Variant:
    """The step's variant: from the journal, else the fastest measured now, written to the journal."""
    train = spec.configuration.train
    for entry in lines(fold.journal):
        if entry["event"] == "variant":
            return Variant(entry["precision"], entry["layout"], entry["threads"])
    choices = candidates(device.type, train.precision, train.layout, train.threads)
    timings = [Timing(choices[0], None, "the only candidate")]
    variant = choices[0]
    if len(choices) > 1:
        limit = VARIANT_S if time_s is None else min(VARIANT_S, 0.01 * time_s)
        timings = measure(lambda v: _trial(spec, device, v), choices, limit)
        variant = fastest(timings)
    append_line(
        fold.journal,
        {"event": "variant", "precision": variant.precision, "layout": variant.layout,
         "threads": variant.threads, "device": str(device), "torch": torch.__version__,
         "machine": platform.processor() or platform.machine(),
         "timings_s": [[t.variant.precision, t.variant.layout, t.variant.threads,
                        None if t.seconds is None else round(t.seconds, 4), t.why]
                       for t in timings]},
    )  # fmt: skip
    return variant


def _trial(spec: RunSpec, device: torch.device, variant: Variant) -> Callable[[], object]:
    """One step on random numbers, as a function to be timed."""
    configuration = spec.configuration
    run = new_run(spec, device)
    shape = (configuration.train.batch_size, configuration.network.in_channels)
    image = torch.randn(*shape, *configuration.patch_vox)
    labels = torch.randint(0, configuration.network.classes, (shape[0], *configuration.patch_vox))
    loss = deeply(dice_ce(configuration.train), configuration.train.supervision)

    def step() -> object:
        return advance(
            run, [(image, labels)], loss=loss, lr_at=lambda _: 1e-6, stop=run.step + 1, seed=0,
            variant=variant, clip_norm=configuration.train.clip_norm,
        )  # fmt: skip

    return step


def _restored_pace(fold: Fold, train: Training, step: int) -> tuple[Pace, float, float | None]:
    """The pace decided so far, the seconds spent so far, and the time given before."""
    pace, spent, total_s = Pace(train.steps), 0.0, None
    for entry in lines(fold.journal):
        if entry["event"] == "pace" and entry["step"] <= step:
            pace.decide(entry["step"], entry["total"])
        elif entry["event"] == "saved" and entry["step"] <= step:
            spent = max(spent, entry["spent_s"])
        elif entry["event"] == "deadline":
            total_s = entry["total_s"]
    return pace, spent, total_s


def _reserve(
    spec: RunSpec, cases: StoredCases, run: Run, variant: Variant, device: torch.device
) -> float:
    """Seconds that the final validation will take: tiles times mirrored views times one forward."""
    configuration = spec.configuration
    predict = configuration.predict
    patch = configuration.patch_vox
    tiles = sum(count_tiles(case.shape, patch, predict.tile_step) for case in cases)
    views = 2 ** len(configuration.augmentation.mirror_axes) if predict.mirror else 1
    image = torch.zeros(1, configuration.network.in_channels, *patch, device=device)
    net = run.net.eval()
    speak = variant.speaking(net)
    with variant.pinned():
        speak(image)
        start = time.monotonic()
        speak(image)
        speak(image)
        if device.type == "cuda":
            torch.cuda.synchronize()
    seconds = (time.monotonic() - start) / 2
    return tiles * views * seconds * 1.15 + 0.08 * len(cases) + 3.0


def train(
    places: DatasetPlaces,
    fold: Fold,
    spec: RunSpec,
    digests: dict[str, str],
    *,
    device: str | None = None,
    workers: int | None = None,
    time_s: float | None = None,
    began: float | None = None,
    redo: bool = False,
) -> bool:
    """Train the fold to its end; False if it was trained already.

    `began` is the monotonic time from which `time_s` counts. Raises Busy if another process trains
    it, Stale if it was made from something else, Interrupted after a signal.
    """
    began = time.monotonic() if began is None else began
    name = f"fold {spec.fold} of {spec.dataset} {spec.configuration_name}"
    stamp = fold_stamp(spec, digests)
    with Lock(fold.lock, name):
        if not begin(fold, spec, stamp, redo=redo):
            return False
        with signals_noted() as stopped:
            _train(places, fold, spec, pick_device(device), workers, time_s, began, stopped)
        stamp.write(fold.stamp)
    return True


def _train(
    places: DatasetPlaces,
    fold: Fold,
    spec: RunSpec,
    device: torch.device,
    workers: int | None,
    time_s: float | None,
    began: float,
    stopped: threading.Event,
) -> None:
    configuration = spec.configuration
    recipe = configuration.train
    prepared = places.prepared(configuration.preparation.key)
    seen = StoredCases(prepared, spec.train_cases)
    held_out = StoredCases(prepared, spec.validation_cases)
    variant = choose_variant(spec, fold, device, time_s)
    run = new_run(spec, device)
    if device.type == "cuda" and variant.precision == "float16":
        run.scaler = torch.amp.GradScaler("cuda")
    if fold.last.exists():
        load_state(fold.last, run)
        log.info("going on from step %d", run.step)
    _warn_if_elsewhere(fold, device)
    pace, spent, earlier_s = _restored_pace(fold, recipe, run.step)
    clock = Clock(began, spent, time_s if time_s is not None else earlier_s)
    scores = [e.get("dice") for e in keep_until(fold.history, run.step) if "dice" in e]
    if clock.total_s is not None:
        clock.reserve_s = _reserve(spec, held_out, run, variant, device)
        _set_deadline(spec, fold, run, variant, device, clock, pace)
    pairs = [
        (image, labels)
        for image, labels in validation_batches(held_out, configuration, recipe.validation_batches)
    ]

    def score() -> float | None:
        return volume_dice(variant, run.speaker, pairs, configuration.network.classes, device)

    batches = Batches(
        seen, BatchSpec.of(configuration), run.step, ENDLESS, _workers(workers, device), device
    )
    bar = tqdm(
        total=pace.total, initial=run.step, desc=f"fold {spec.fold}", unit="step", disable=None
    )
    watch = Watch(fold, recipe, clock, pace, score, bar, stopped, scores=scores)
    watch.paced = (time.monotonic(), run.step)
    try:
        if run.step < pace.total:
            advance(
                run,
                batches,
                loss=deeply(dice_ce(recipe), recipe.supervision),
                lr_at=paced_rate(recipe, pace),
                stop=ENDLESS,
                seed=recipe.seed,
                variant=variant,
                clip_norm=recipe.clip_norm,
                on_step=watch.after_step,
            )
    finally:
        batches.close()
        bar.close()
    if stopped.is_set() and not watch.finished and run.step < pace.total:
        raise Interrupted(
            f"stopped at step {run.step} of {pace.total}, state saved; the same command goes on"
        )
    save_weights(fold.weights, run.speaker, {"step": run.step})


def _workers(wanted: int | None, device: torch.device) -> int:
    """On a card, processes that prepare the batches; on the CPU none, the cores are busy training."""
    if wanted is not None:
        return wanted
    from autoseg.pool import cores

    return min(8, max(1, cores() - 1)) if device.type == "cuda" else 0


def _warn_if_elsewhere(fold: Fold, device: torch.device) -> None:
    entry = next((e for e in lines(fold.journal) if e["event"] == "variant"), None)
    if entry is None:
        return
    here = {"torch": torch.__version__, "device": str(device)}
    changed = [f"{k} {entry[k]} → {v}" for k, v in here.items() if entry[k] != v]
    threads = entry["threads"]
    if threads and threads > (torch.get_num_threads() if device.type == "cpu" else threads):
        changed.append(f"threads {threads} → {torch.get_num_threads()}")
    if changed:
        log.warning(
            "this run goes on elsewhere (%s): it will not be bit-identical to one that never "
            "stopped", ", ".join(changed)
        )  # fmt: skip


def _set_deadline(
    spec: RunSpec,
    fold: Fold,
    run: Run,
    variant: Variant,
    device: torch.device,
    clock: Clock,
    pace: Pace,
) -> None:
    """Write down the time given and, at the start, how many steps it should hold."""
    append_line(
        fold.journal,
        {"event": "deadline", "step": run.step, "total_s": clock.total_s,
         "reserve_s": round(clock.reserve_s, 1), "spent_s": round(clock.spent(), 1)},
    )  # fmt: skip
    if run.step > 0:
        return
    trial = _trial(spec, device, variant)
    with variant.pinned():
        trial()
        start = time.monotonic()
        trial()
        trial()
        seconds = (time.monotonic() - start) / 2 * 1.1
    if clock.left() <= 0:
        raise AutosegError(
            f"--time {clock.total_s:.0f} s is too short: start-up and the final validation alone "
            f"take about {clock.spent() + clock.reserve_s:.0f} s here"
        )
    total = max(1, int(clock.left() / seconds))
    append_line(
        fold.journal,
        {"event": "pace", "step": 0, "total": total,
         "why": f"{seconds:.3f} s a step with its batch, {clock.left():.0f} s left for steps"},
    )  # fmt: skip
    pace.decide(0, total)

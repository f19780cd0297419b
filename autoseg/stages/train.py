"""Prepared cases × configuration × fold → weights, history, journal.

A fold goes on from its last saved state, step by step the same as if it had never stopped. What
was decided on the way (the variant of the step, the number of steps that the time allows) stands
in the journal before it is used, and is read from there when the run goes on.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from autoseg.data.batches import Batches, BatchSpec, item_bytes
from autoseg.data.held_out import HeldOut, amount
from autoseg.data.ring import SLOTS
from autoseg.data.store import StoredCases
from autoseg.device import is_card, out_of_memory, pick_device
from autoseg.documents.plan import Training
from autoseg.documents.run import RunSpec, append_line, forget_after, keep_until, lines
from autoseg.errors import AutosegError, Interrupted, OutOfMemory, counted
from autoseg.files import Lock
from autoseg.learn.begin import begin
from autoseg.learn.loop import advance
from autoseg.learn.losses import deeply, loss_of
from autoseg.learn.manner import Manner
from autoseg.learn.optimisers import optimiser
from autoseg.learn.pace import Pace, paced_rate
from autoseg.learn.patches import OnStep, PatchSchedule, Stage, in_stages, measured_seconds
from autoseg.learn.remembered import Memory, kind_of_step, memory_folder
from autoseg.learn.scaling import scale_losses
from autoseg.learn.scores import volume_dice
from autoseg.learn.signals import signals_noted
from autoseg.learn.state import Average, Run, decay_over, load_state, state_bytes
from autoseg.learn.step import choose_forward, choose_variant, warn_if_elsewhere
from autoseg.learn.trace import StepsProfile
from autoseg.learn.trial import seconds_per_step, trial_step
from autoseg.learn.variants import Variant
from autoseg.learn.watch import Clock, Watch
from autoseg.learn.weights import save_weights
from autoseg.models.reserve import reserve_s
from autoseg.nets.build import build
from autoseg.nets.cost import parameters
from autoseg.pool import cores, free_bytes
from autoseg.stage import Stamp
from autoseg.timing import part
from autoseg.workspace import DatasetPlaces, Fold

log = logging.getLogger(__name__)

LOADING = 1.1
"""A step with its batch against one on numbers that are there already, before it was measured."""
RAM_PART = 4
"""Training cases are held in memory where they fit into this part of what is free."""
NO_CODE = "could not create a primitive"
"""What oneDNN says when it finds no room for code; it then refuses in that thread for ever."""
NO_RAM = ("DefaultCPUAllocator", "could not create a memory", NO_CODE)
"""What torch's and oneDNN's messages say when the machine's own memory is at its end."""
MOST_WORKERS = 8
FEW_STEPS = 50
"""A time that holds fewer is told."""
ENDLESS = 2**31
"""Where the batches end: the pace, which may be decided anew, ends the run before."""


@contextmanager
def memory_watched(name: str, spec: RunSpec) -> Iterator[None]:
    """Raises OutOfMemory in the place of what torch or numpy raise when memory is at its end."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, MemoryError) or out_of_memory(error)
        if not known and not any(said in str(error) for said in NO_RAM):
            raise
        c = spec.configuration
        told = OutOfMemory(
            f"{name} is out of memory with {c.train.batch_size} patches of "
            f"{' x '.join(map(str, c.patch_vox))} voxels a step"
        )
        told.lasting = NO_CODE in str(error)
        told.configuration = spec.configuration_name
        raise told from error


def new_run(spec: RunSpec, device: torch.device) -> Run:
    """A freshly initialised network and its optimiser; the weights depend on the seed alone."""
    train = spec.configuration.train
    torch.manual_seed(train.seed)
    net = build(spec.configuration.network)
    if spec.encoder_weights is not None:
        from autoseg.nets.weights import load_encoder

        log.info("encoder: %s", load_encoder(net, Path(spec.encoder_weights.path)))
    net = net.to(device)
    run = Run(net, optimiser(train, net))
    if train.ema_share > 0:
        run.average = Average(net, decay_over(train.ema_share * train.steps))
    return run


def open_run(spec: RunSpec, fold: Fold, device: torch.device, variant: Variant) -> Run:
    """The run as it was last saved, or a new one."""
    if fold.last.exists():
        # what the encoder began with is in the saved state; the file may be gone
        spec = spec.model_copy(update={"encoder_weights": None})
    run = new_run(spec, device)
    scale_losses(run, variant, device)
    if fold.last.exists():
        load_state(fold.last, run)
        log.info("going on from step %d", run.step)
    warn_if_elsewhere(fold, device)
    return run


def _trial(
    spec: RunSpec, device: torch.device, variant: Variant, stage: Stage | None = None
) -> Callable[[], object]:
    """One step on random numbers, as a function to be timed; of a smaller patch and its batch."""
    configuration = spec.configuration
    patch, batch = stage or (configuration.patch_vox, configuration.train.batch_size)
    recipe = Training.parse(configuration.train.dump() | {"batch_size": batch}, "the recipe")
    net = build(configuration.network).to(device)
    shape = (configuration.network.in_channels, *patch)
    labels = configuration.preparation.labels
    return trial_step(net, recipe, shape, labels.count, variant, loss_of(recipe, labels))


def first_total(fold: Fold, train: Training) -> int:
    """How many steps the run was decided to have when it began: by its time, else by the plan."""
    decided = (e["total"] for e in lines(fold.journal) if e["event"] == "pace" and e["step"] == 0)
    return next(decided, train.steps)


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
    """Seconds that the held-out cases will take, the network's tiles timed as they are computed."""
    configuration = spec.configuration
    shape = configuration.network.in_channels, *configuration.patch_vox
    # noise, since zeros become denormal numbers on their way, which are many times slower
    image = torch.randn(1, *shape, device=device)
    speak = variant.speaking(run.net.eval())
    seconds = seconds_per_step(lambda: speak(image), variant, device)
    held_out = [cases[i] for i in range(len(cases))]
    with variant.pinned():
        return reserve_s(
            [case.shape for case in held_out],
            [case.info["arranged_shape"] for case in held_out],
            configuration, seconds, device,
        )  # fmt: skip


def train(
    places: DatasetPlaces,
    fold: Fold,
    spec: RunSpec,
    stamp: Stamp,
    *,
    device: str | None = None,
    workers: int | None = None,
    time_s: float | None = None,
    began: float | None = None,
    redo: bool = False,
    manner: Manner | None = None,
) -> bool:
    """Train the fold to its end; False if it was trained already.

    `began` is the monotonic time from which `time_s` counts. Raises Busy if another process trains
    it, Stale if it was made from something else, Interrupted after a signal.
    """
    began = time.monotonic() if began is None else began
    name = f"fold {spec.fold} of {spec.dataset} {spec.configuration_name}"
    with Lock(fold.lock, name):
        manner = manner or Manner()
        if not begin(fold, spec, stamp, redo=redo):
            if manner.profile:
                log.warning("%s is trained already, there are no steps to profile", name)
            elif time_s is not None:
                log.info("%s is trained already; --redo trains it anew", name)
            return False
        with signals_noted() as stopped, memory_watched(name, spec):
            _train(places, fold, spec, pick_device(device), workers, time_s, began, stopped,
                   manner)  # fmt: skip
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
    manner: Manner,
) -> None:
    configuration = spec.configuration
    recipe, labels = configuration.train, configuration.preparation.labels
    readers = _workers(workers, device, spec)
    seen, held_out = _cases(places, spec, readers)
    kind = kind_of_step(configuration, device, explicit=_explicit(spec))
    memory = Memory(memory_folder(places.results.parent), kind)
    variant, run = _variant_and_run(fold, spec, device, memory, time_s, manner)
    patches, clock = _pace_and_clock(spec, fold, run, variant, device, held_out, began, time_s)
    pace = patches.pace

    def left_s() -> float:
        steps = (pace.total - run.step) * _seconds(spec, device, variant, memory)
        steps *= patches.seconds_ahead(run.step) / patches.seconds[-1]
        return steps if clock.total_s is None else min(steps, clock.left())

    forward = choose_forward(fold, configuration, run, variant, memory, manner.compile, left_s)
    shown = BatchSpec.of(configuration)
    scored = HeldOut(held_out, shown, recipe.validation_batches, configuration.network.in_channels,
                     ahead=is_card(device))  # fmt: skip

    def score() -> float | None:
        return volume_dice(variant, run.speaker, scored.batches(), labels, device)

    bar = tqdm(
        total=pace.total, initial=run.step, desc=f"fold {spec.fold}", unit="step", disable=None
    )
    scores = [e.get("dice") for e in keep_until(fold.history, run.step) if "dice" in e]
    watch = Watch(fold, recipe, clock, pace, score, bar, stopped, scores=scores, patches=patches)
    watch.paced = (time.monotonic(), run.step)
    profile = _profile(fold, spec, run, variant, watch, device) if manner.profile else None

    def advance_in(stage: int, on_step: OnStep) -> None:
        patch, batch = patches.stages[stage]
        what = replace(shown, patch_vox=patch, batch_size=batch)
        with Batches(seen, what, run.step, ENDLESS, readers, device) as batches:
            advance(
                run, batches, loss=deeply(loss_of(recipe, labels), recipe.supervision),
                lr_at=paced_rate(recipe, pace), stop=ENDLESS, seed=recipe.seed, variant=variant,
                clip_norm=recipe.clip_norm, forward=forward, on_step=on_step,
            )  # fmt: skip

    on_step = watch.after_step if profile is None else profile.beside(watch.after_step)
    try:
        if not watch.over(run):
            in_stages(run, patches, on_step, advance_in, watch.stage_begun)
    finally:
        scored.close()
        watch.writer.close()
        bar.close()
        if profile is not None:
            profile.close()
    if stopped.is_set() and not watch.over(run):
        raise Interrupted(
            f"stopped at step {run.step} of {pace.total}, state saved; the same command goes on"
        )
    save_weights(fold.weights, run.speaker, {"step": run.step})


def _variant_and_run(
    fold: Fold,
    spec: RunSpec,
    device: torch.device,
    memory: Memory,
    time_s: float | None,
    manner: Manner,
) -> tuple[Variant, Run]:
    """How a step is computed, as remembered or measured now, and the run where it was saved last."""
    with part("choosing the variant"):
        variant = choose_variant(
            fold, spec.configuration, device, memory, lambda v: _trial(spec, device, v), time_s,
            again=manner.measure_again, explicit=_explicit(spec),
        )  # fmt: skip
    with part("opening the run"):
        return variant, open_run(spec, fold, device, variant)


def _explicit(spec: RunSpec) -> bool:
    """Whether the precision was asked for in the command, and is not only the plan's."""
    return "train.precision" in spec.overrides


def _cases(places: DatasetPlaces, spec: RunSpec, readers: int) -> tuple[StoredCases, StoredCases]:
    """The cases to train on, held in memory where they fit into it, and those that are held out."""
    configuration = spec.configuration
    prepared = places.prepared(configuration.preparation.key)
    beside = _bytes_beside(spec)
    held = max(0, free_bytes() - beside) // RAM_PART // (1 + readers)
    earlier = None
    if configuration.previous is not None:
        earlier = places.previous(spec.plan, spec.configuration_name, spec.run)
    seen = StoredCases(prepared, spec.train_cases, held, previous=earlier)
    return seen, StoredCases(prepared, spec.validation_cases, previous=earlier)


def _bytes_beside(spec: RunSpec) -> int:
    """What else lies in this machine's memory: the patches to score by and the copy of the state."""
    configuration, network = spec.configuration, spec.configuration.network
    train, shown = configuration.train, BatchSpec.of(configuration)
    with torch.device("meta"):
        state = state_bytes(train, parameters(build(network)))
    return amount(shown, train.validation_batches, network.in_channels).nbytes + state


def _pace_and_clock(
    spec: RunSpec,
    fold: Fold,
    run: Run,
    variant: Variant,
    device: torch.device,
    held_out: StoredCases,
    began: float,
    time_s: float | None,
) -> tuple[PatchSchedule, Clock]:
    """How many steps there are to be, of what, as decided before or now, and the time they have."""
    recipe = spec.configuration.train
    forget_after(fold.journal, run.step)
    pace, spent, earlier_s = _restored_pace(fold, recipe, run.step)
    patches = PatchSchedule(spec.configuration, pace)
    clock = Clock(began, spent, time_s if time_s is not None else earlier_s)
    if clock.total_s is not None:
        clock.reserve_s = _reserve(spec, held_out, run, variant, device)
        if run.step == 0 or len(patches.stages) > 1:
            patches.seconds = measured_seconds(
                fold.journal, patches,
                lambda s: seconds_per_step(_trial(spec, device, variant, s), variant, device),
                again=run.step == 0,
            )  # fmt: skip
        _set_deadline(fold, run, clock, patches)
    if run.average is not None:
        run.average.decay = decay_over(recipe.ema_share * first_total(fold, recipe))
    return patches, clock


def _profile(
    fold: Fold, spec: RunSpec, run: Run, variant: Variant, watch: Watch, device: torch.device
) -> StepsProfile:
    """A profile of the run's steps, with one validation and one saving of what it is then."""
    recipe = spec.configuration.train

    def once() -> None:
        with part("validation"):
            watch.score()
        watch.save(run)
        watch.writer.wait()

    facts = {
        "fold": f"{spec.dataset} {spec.configuration_name} fold {spec.fold} ({spec.plan}/{spec.run})",
        "patch": " x ".join(map(str, spec.configuration.patch_vox)),
        "batch size": recipe.batch_size,
        "step": f"{variant.precision} {variant.layout}",
        "threads": variant.threads or torch.get_num_threads(),
        "validation": f"every {recipe.validate_every} steps, here once beside the others",
        "saving": f"every {recipe.save_every_s:g} s, here once beside the others",
    }
    return StepsProfile(fold.folder / "profile", device, once, facts)


def _seconds(spec: RunSpec, device: torch.device, variant: Variant, memory: Memory) -> float:
    """Seconds of a step with its batch: as remembered, else measured now."""
    kept = memory.choice()
    known = kept.seconds if kept is not None and kept.variant == variant else None
    return LOADING * (known or seconds_per_step(_trial(spec, device, variant), variant, device))


def _workers(wanted: int | None, device: torch.device, spec: RunSpec) -> int:
    """On a card, processes that read, as many as half of the free memory holds with their items.

    On the CPU none, the cores are busy training.
    """
    if wanted is not None:
        return wanted
    if not is_card(device):
        return 0
    item = item_bytes(BatchSpec.of(spec.configuration), spec.configuration.network.in_channels)
    # those in shared memory, and the one that is being read
    room = free_bytes() // 2 // max(1, (SLOTS + 1) * item)
    return max(1, min(MOST_WORKERS, cores() - 1, room))


def _set_deadline(fold: Fold, run: Run, clock: Clock, patches: PatchSchedule) -> None:
    """Write down the time given and, at the start, how many steps it should hold.

    Raises AutosegError, and writes nothing, where it would hold none.
    """
    seconds = 0.0
    if run.step == 0:
        seconds = patches.seconds_ahead(0) * LOADING
        if clock.left() <= 0:
            raise AutosegError(
                f"--time {clock.total_s:.0f} s is too short: start-up and the final validation "
                f"alone take about {clock.spent() + clock.reserve_s:.0f} s here"
            )
    append_line(
        fold.journal,
        {"event": "deadline", "step": run.step, "total_s": clock.total_s,
         "reserve_s": round(clock.reserve_s, 1), "spent_s": round(clock.spent(), 1)},
    )  # fmt: skip
    if run.step > 0:
        return
    total = max(1, int(clock.left() / seconds))
    if total < FEW_STEPS:
        more = math.ceil((FEW_STEPS - total) * seconds)
        log.warning("--time %.0f s holds only %s, too few to learn much; %d s more hold %d",
                    clock.total_s, counted(total, "step"), more, FEW_STEPS)  # fmt: skip
    append_line(
        fold.journal,
        {"event": "pace", "step": 0, "total": total,
         "why": f"{seconds:.3f} s a step with its batch, {clock.left():.0f} s left for steps"},
    )  # fmt: skip
    patches.pace.decide(0, total)

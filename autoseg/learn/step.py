"""How the steps of a run are computed: as its journal says, else decided now and written there.

Both decisions change the last bits of what is learned, so a run that goes on keeps them.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from autoseg.device import card_facts, is_card
from autoseg.documents.plan import Configuration
from autoseg.documents.run import append_line, lines
from autoseg.learn.compiling import (
    Compiler,
    Decision,
    compiled,
    compiler_of_torch,
    mostly_untraced,
    worthwhile,
)
from autoseg.learn.loop import Forward
from autoseg.learn.manner import Wish
from autoseg.learn.precision import resolved_precision
from autoseg.learn.remembered import Memory, choose, processor
from autoseg.learn.state import Run
from autoseg.learn.variants import Variant
from autoseg.workspace import Fold

log = logging.getLogger(__name__)

VARIANT_S, VARIANT_SHARE = 15.0, 0.03
"""At most so long, and at most this share of the time given (but 4 s), goes to choosing one."""


def choose_variant(
    fold: Fold,
    configuration: Configuration,
    device: torch.device,
    memory: Memory,
    make_step: Callable[[Variant], Callable[[], object]],
    time_s: float | None,
    *,
    again: bool = False,
    explicit: bool = False,
) -> Variant:
    """The step's variant: from the journal, else remembered or measured, written to the journal.

    `make_step` builds what one step of a variant does. With `again` what is remembered of other
    runs does not count. With `explicit` the precision was asked for in this command, and
    AutosegError is raised where it cannot be computed. Raises torch.OutOfMemoryError where no
    variant fits into a card.
    """
    begun = _journalled(fold)
    if begun is not None:
        if again:
            log.warning("this run keeps the variant of the step that it began with")
        return _as_begun(fold, begun, device)
    _, warning = resolved_precision(configuration.train.precision, device, explicit=explicit)
    if warning:
        log.warning("%s", warning)
    limit = VARIANT_S if time_s is None else min(VARIANT_S, max(4.0, VARIANT_SHARE * time_s))
    choice = choose(
        memory, configuration, device, make_step, limit, again=again, explicit=explicit
    )  # fmt: skip
    if choice.source == "measured":
        log.info(
            "a step takes %s", ", ".join(
                f"{t.seconds:.3g} s {t.variant.precision} {t.variant.layout}"
                + (f" {t.variant.threads} threads" if t.variant.threads else "")
                for t in choice.timings if t.seconds is not None
            )
        )  # fmt: skip
    append_line(
        fold.journal,
        {"event": "variant", "device": str(device), "torch": torch.__version__,
         "machine": _machine(device),
         "remembered_in": str(memory.path) if choice.source == "remembered" else None}
        | choice.facts(),
    )  # fmt: skip
    return choice.variant


def _journalled(fold: Fold) -> dict[str, Any] | None:
    """How the run's steps were last decided to be computed."""
    return next(
        (e for e in reversed(list(lines(fold.journal))) if e["event"] == "variant"), None
    )  # fmt: skip


def _machine(device: torch.device) -> str:
    """The name of the card or of the processor."""
    return card_facts(device).name if is_card(device) else processor()


def _as_begun(fold: Fold, entry: dict[str, Any], device: torch.device) -> Variant:
    """The journal's variant; where the run goes on elsewhere, as this device can compute it."""
    kept = Variant(entry["precision"], entry["layout"], entry["threads"])
    if entry["device"] == str(device) and entry.get("machine") in (None, _machine(device)):
        return kept
    precision, warning = resolved_precision(kept.precision, device)
    if precision == kept.precision:
        return kept
    log.warning("this run was begun in %s: %s", kept.precision, warning)
    changed = {"precision": precision, "device": str(device), "machine": _machine(device)}
    append_line(fold.journal, entry | changed | {"torch": torch.__version__, "source": "elsewhere"})
    return replace(kept, precision=precision)


def warn_if_elsewhere(fold: Fold, device: torch.device) -> None:
    """Say so where a run goes on with another torch, device or card, or fewer threads."""
    entry = next((e for e in lines(fold.journal) if e["event"] == "variant"), None)
    if entry is None:
        return
    here = {"torch": torch.__version__, "device": str(device)}
    if is_card(device) and entry.get("machine"):
        here["machine"] = card_facts(device).name
    changed = [f"{k} {entry[k]} → {v}" for k, v in here.items() if entry[k] != v]
    threads = entry["threads"]
    if threads and threads > (threads if is_card(device) else torch.get_num_threads()):
        changed.append(f"threads {threads} → {torch.get_num_threads()}")
    if changed:
        log.warning(
            "this run goes on elsewhere (%s): it will not be bit-identical to one that never "
            "stopped", ", ".join(changed)
        )  # fmt: skip


def choose_forward(
    fold: Fold,
    configuration: Configuration,
    run: Run,
    variant: Variant,
    memory: Memory,
    wish: Wish,
    left_s: Callable[[], float],
    compiler: Compiler = compiler_of_torch,
) -> Forward:
    """The network of `run`, or what a compiler makes of it: as the journal says, or as it is worth.

    `left_s` tells how many seconds of steps lie ahead. Written to the journal before it is used.
    """
    device = next(run.net.parameters()).device
    entries = [e for e in lines(fold.journal) if e["event"] == "compile"]
    begun = bool(entries) and bool(entries[-1]["compiled"])
    if wish == "auto" and (entries or run.step):
        decided = Decision(begun, "as the run began")
    elif wish == "auto" and mostly_untraced(run.net):
        decided = Decision(False, "scans, which are not compiled, are most of the network")
    else:
        on_card = is_card(device)
        seconds = left_s() if wish == "auto" and on_card else 0.0
        known = memory.recall().get("compile")
        decided = worthwhile(wish, "cuda" if on_card else "cpu", seconds, known)
    if not decided.compiled:
        if begun or not entries:
            _write_down(fold, run, decided)
        return run.net

    def failed(why: str) -> None:
        log.warning("compiling the network failed, the run goes on without: %s", why)
        _write_down(fold, run, Decision(False, why))

    shape = (configuration.network.in_channels, *configuration.patch_vox)
    image = torch.randn(configuration.train.batch_size, *shape, device=device)
    forward, cost_s, gain = compiled(run.net, image, variant, failed, compiler=compiler)
    # what failed or gains nothing is not tried again by itself
    memory.keep({"compile": {"cost_s": round(cost_s, 3), "gain": round(gain or 0.0, 4)}})
    if gain is None:
        return run.net
    slower = wish == "auto" and not begun and gain <= 0
    why = f"{decided.why}; it is no faster" if slower else decided.why
    _write_down(fold, run, Decision(not slower, why, cost_s, gain))
    return run.net if slower else forward


def _write_down(fold: Fold, run: Run, decided: Decision) -> None:
    append_line(fold.journal, {"event": "compile", "step": run.step, **decided.facts()})

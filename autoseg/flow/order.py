"""Which artefact needs which: the one place where the order of everything stands.

`run` walks it, `status` tells where it is, and a cascade finds here what it waits for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autoseg.documents.plan import Plan

Kind = Literal["fingerprint", "plan", "prepared", "fold", "validation", "previous", "final",
               "package"]  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """Something that lies on disk once it was made."""

    kind: Kind
    configuration: str = ""
    fold: str = ""

    @property
    def title(self) -> str:
        if self.kind in ("fold", "validation"):
            return f"{self.kind} {self.fold} of {self.configuration}"
        return f"{self.kind} of {self.configuration}" if self.configuration else self.kind


@dataclass(frozen=True)
class Scope:
    """What is wanted of a plan: some of its configurations, and which folds there are."""

    plan: Plan
    configurations: tuple[str, ...]
    folds: tuple[str, ...]


def _every(kind: Kind, configurations: Sequence[str], scope: Scope) -> tuple[Artefact, ...]:
    return tuple(Artefact(kind, name, fold) for name in configurations for fold in scope.folds)


def needs(what: Artefact, scope: Scope) -> tuple[Artefact, ...]:
    """What must be there before an artefact can be made."""
    name = what.configuration
    match what.kind:
        case "fingerprint":
            return ()
        case "plan":
            return (Artefact("fingerprint"),)
        case "prepared":
            return (Artefact("plan"),)
        case "previous":
            # a cascade learns from what the earlier stage said of cases that it was not trained on
            before = scope.plan.configuration(name).previous
            stages = () if before is None else (before.configuration,)
            return (Artefact("prepared", name), *_every("validation", stages, scope))
        case "fold":
            cascade = scope.plan.configuration(name).previous is not None
            earlier = (Artefact("previous", name),) if cascade else ()
            return (Artefact("prepared", name), *earlier)
        case "validation":
            return (Artefact("fold", name, what.fold),)
        case "final":
            return _every("validation", scope.configurations, scope)
        case "package":
            return (Artefact("final"),)


def ordered(goal: Artefact, scope: Scope) -> list[Artefact]:
    """Everything that `goal` needs, itself last; each once, and after all that it needs."""
    found: dict[Artefact, None] = {}

    def visit(what: Artefact) -> None:
        if what in found:
            return
        for need in needs(what, scope):
            visit(need)
        found[what] = None

    visit(goal)
    return list(found)

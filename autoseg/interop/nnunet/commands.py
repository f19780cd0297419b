"""Which commands of nnU-Net v2 make the label maps of a model that was exported to it?"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from autoseg.documents.model import Member, ModelSpec

INSTRUCTIONS = "inference_instructions.txt"
"""As nnU-Net calls them."""
INPUT, OUTPUT = "IN", "OUT"


def commands(spec: ModelSpec, folders: Mapping[str, Path]) -> list[str]:
    """The commands, one after the other, that segment the scans in IN into OUT.

    `folders` are the model folders by the title of their member. A cascade is predicted after the
    stage that it refines; of several members the probabilities are kept and averaged.
    """
    order: dict[str, Member] = {}
    for member in spec.members:
        order |= {one.title: one for one in _chain(spec, member)}
    speaking = {member.title for member in spec.members}
    names = [member.name for member in order.values()]
    targets = {
        title: OUTPUT
        if len(speaking) == 1 and title in speaking
        else f"{OUTPUT}_{member.name}"
        if names.count(member.name) == 1
        else f"{OUTPUT}_{folders[title].name}"
        for title, member in order.items()
    }
    lines = []
    for title, member in order.items():
        words = ["nnUNetv2_predict_from_modelfolder", "-i", INPUT, "-o", targets[title]]
        words += ["-m", str(folders[title]), "-f", *(w.fold for w in member.weights)]
        predict, before = member.configuration.predict, member.configuration.previous
        if predict.tile_step != 0.5:
            words += ["-step_size", f"{predict.tile_step:g}"]
        if before is not None:
            stage = spec.stage(before.configuration)
            words += ["-prev_stage_predictions", targets[stage.title]]
        if len(speaking) > 1 and title in speaking:
            words.append("--save_probabilities")
        lines.append(shlex.join(words))
    if len(speaking) > 1:
        parts = [targets[title] for title in order if title in speaking]
        lines.append(shlex.join(["nnUNetv2_ensemble", "-i", *parts, "-o", OUTPUT]))
    return lines


def _chain(spec: ModelSpec, member: Member) -> Iterator[Member]:
    """What a member refines, the first stage first, and the member itself."""
    before = member.configuration.previous
    if before is not None:
        yield from _chain(spec, spec.stage(before.configuration))
    yield member

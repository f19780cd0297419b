"""The model card: what a model is for, how good it was found to be, and what it must not be used for.

Markdown, made of the model's document alone: it names no case.
"""

import re
from collections.abc import Iterator, Sequence

from autoseg.costs import parameter_count
from autoseg.documents.model import Member, ModelSpec
from autoseg.documents.plan import ChannelScale
from autoseg.documents.postprocessing import (
    EVERYTHING,
    DenseCRF,
    FillHoles,
    KeepLargest,
    MinimumSize,
    Step,
)
from autoseg.documents.report import LabelSummary, Spread, Summary

COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("Dice", "dice", 4),
    ("HD95 mm", "hd95_mm", 2),
    ("HD95\\* mm", "hd95_penalised_mm", 2),
    ("NSD", "nsd", 4),
)
"""Header, metric, digits; a column whose metric nobody measured is not shown."""

SPECIAL = re.compile(r"[\\`*{}\[\]<>#|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What means something to Markdown; an underscore inside a word means nothing."""

SCHEMES = {
    "ct": "clipped to the foreground's 0.5 to 99.5 percentiles, then shifted and scaled by its "
    "mean and standard deviation",
    "zscore": "shifted and scaled by the scan's own mean and standard deviation",
    "rescale_to_0_1": "scaled to 0 … 1 by the scan's own least and greatest value",
    "rgb_to_0_1": "divided by 255",
    "none": "taken as they are",
}


def model_card(spec: ModelSpec) -> str:
    """The card of a model as Markdown."""
    sections = (_uses(spec), _scans(spec), _scores(spec), _networks(spec), _after(spec), _limits())
    body = "\n\n".join("\n".join(section) for section in sections)
    return f"# {escaped(spec.name)}\n\n{body}\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a table as well."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def _uses(spec: ModelSpec) -> Iterator[str]:
    structures = ", ".join(escaped(name) for name in spec.labels.structures)
    channels = ", ".join(escaped(name) for name in spec.channels)
    yield (
        f"Segments **{structures}** in {spec.dimensions}D images of {channels}. Trained on "
        f"{escaped(spec.dataset)} with autoseg {escaped(spec.version)}."
    )
    yield ""
    yield "```"
    yield "autoseg predict --model FILE -i IN -o OUT"
    yield "```"
    yield ""
    number = len(spec.channels)
    yield (
        "`FILE` is this package, `IN` a folder of images, "
        + (
            "one file a case"
            if number == 1
            else f"{number} files a case whose names end with _0000 to _{number - 1:04d}, in the "
            "order of the channels above"
        )
        + ", and `OUT` a folder for the label maps. A label map holds:"
    )
    yield ""
    yield "| value | structure |"
    yield "|---:|---|"
    for name, value in zip(spec.labels.names, spec.labels.values, strict=True):
        yield f"| {value} | {escaped(name)} |"
    if spec.labels.regions:
        yield ""
        for name, values in spec.labels.structures.items():
            yield f"- {escaped(name)} is {' + '.join(map(str, values))}"


def _scans(spec: ModelSpec) -> Iterator[str]:
    yield "## What it was trained on"
    yield ""
    scored = _cases(spec.cross_validation)
    if scored:
        yield f"- {scored} labelled cases, each of which was held back once for the scores below"
    ranges = " × ".join(_range(low, high) for low, high in spec.spacing_ranges_mm)
    axes = ", ".join(dict.fromkeys(m.configuration.preparation.axes for m in spec.every_member()))
    yield f"- voxels of {ranges} mm (axes {axes})"
    for name, found in zip(spec.channels, spec.intensity_ranges, strict=True):
        if found is not None:
            yield f"- {escaped(name)}: intensities of {_range(*found)}"
    if spec.labels.ignore is not None:
        yield f"- voxels of value {spec.labels.ignore} were not labelled, and neither learnt nor scored"
    yield ""
    yield "Images beyond these ranges are foreign to it; `predict` warns of them."


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"


def _cases(summary: Summary | None) -> int:
    return max((s.cases for s in summary.labels.values()), default=0) if summary else 0


def _scores(spec: ModelSpec) -> Iterator[str]:
    yield "## Cross-validated scores"
    yield ""
    summary = spec.cross_validation
    if summary is None:
        yield "None: it was exported before it was cross-validated. Score it on your own data."
        return
    measured = {metric for label in summary.labels.values() for metric in label.metrics}
    columns = [column for column in COLUMNS if column[1] in measured]
    yield "| structure | cases | missed | spurious | " + " | ".join(c[0] for c in columns) + " |"
    yield "|---|---:|---:|---:|" + "---:|" * len(columns)
    for name, label in summary.labels.items():
        cells = [_spread(label.metrics.get(metric), digits) for _, metric, digits in columns]
        counts = [str(n) for n in (label.cases, *_failures(label))]
        yield f"| {escaped(name)} | {' | '.join([*counts, *cells])} |"
    yield ""
    mean = "not defined" if summary.mean_dice is None else f"{summary.mean_dice:.4f}"
    yield f"Mean Dice of the structures: **{mean}**."
    yield ""
    yield (
        "Each case was segmented by networks that had not seen it. Mean ± standard deviation over "
        "the cases where a score is defined; missed: labelled but not found, spurious: found but "
        "not labelled."
    )
    if "hd95_penalised_mm" in measured:
        yield ""
        yield r"HD95\*: a missed or spurious structure counts as the diagonal of the image."


def _failures(label: LabelSummary) -> Sequence[int]:
    return label.outcomes.get("missed", 0), label.outcomes.get("spurious", 0)


def _spread(spread: Spread | None, digits: int) -> str:
    if spread is None or spread.mean is None or spread.std is None:
        return "-"
    return f"{spread.mean:.{digits}f} ± {spread.std:.{digits}f}"


def _networks(spec: ModelSpec) -> Iterator[str]:
    yield "## How it works"
    yield ""
    if len(spec.members) > 1:
        yield "The probabilities of these configurations are averaged on the image's own grid:"
    else:
        yield "One configuration:"
    yield ""
    for member in spec.members:
        yield _member(member)
    if spec.stages:
        yield ""
        yield "They refine what these found before:"
        yield ""
        for member in spec.stages:
            yield _member(member)
    scales = spec.members[0].configuration.preparation.channels
    yield ""
    for name, scale in zip(spec.channels, scales, strict=True):
        yield f"- {escaped(name)}: {_scaled(scale)}"


def _member(member: Member) -> str:
    c = member.configuration
    target = " × ".join("own" if mm is None else f"{mm:.4g}" for mm in c.preparation.spacing_mm)
    folds = len(member.weights)
    before = f", refines {escaped(c.previous.configuration)}" if c.previous else ""
    mirrored = c.predict.mirror and c.augmentation.mirror_axes
    return (
        f"- **{escaped(member.name)}**: network {escaped(c.network.preset)} of "
        f"{parameter_count(c.network) / 1e6:.2f} million parameters, {folds} "
        f"fold{'s' if folds != 1 else ''} whose logits are averaged, patches of "
        f"{' × '.join(map(str, c.patch_vox))} voxels at {target} mm, "
        f"{'mirrored and averaged' if mirrored else 'not mirrored'}, trained in {member.precision}{before}"
    )


def _scaled(scale: ChannelScale) -> str:
    inside = " inside the nonzero region" if scale.use_mask else ""
    return f"intensities {SCHEMES[scale.scheme]}{inside}"


def _after(spec: ModelSpec) -> Iterator[str]:
    yield "## Postprocessing"
    yield ""
    if not spec.postprocessing:
        yield "None."
    for number, step in enumerate(spec.postprocessing, 1):
        yield f"{number}. {in_words(step)}"
    if spec.held_out_dice is not None:
        yield ""
        yield (
            "These steps were chosen on the cross-validation whose scores stand above. Where each case "
            f"is cleaned by steps that were chosen without it, the mean Dice is {spec.held_out_dice:.4f}."
        )


def in_words(step: Step) -> str:
    """What a step of postprocessing does, in one sentence."""
    if isinstance(step, DenseCRF):
        return (
            f"Probabilities are smoothed by a dense conditional random field ({step.iterations} "
            f"iterations within {step.radius_mm:g} mm)."
        )
    of = "all structures together" if step.of == EVERYTHING else escaped(step.of)
    if isinstance(step, KeepLargest):
        return f"Only the largest connected piece of {of} is kept."
    if isinstance(step, MinimumSize):
        return f"Connected pieces of {of} of less than {step.mm3:g} mm³ are removed."
    assert isinstance(step, FillHoles)
    return f"Holes in {of} are filled."


def _limits() -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield (
        "- Not a medical device: not approved for diagnosis or treatment. A person who can judge "
        "them must look at the label maps."
    )
    yield (
        "- The scores hold for images like those it was trained on. Another scanner, protocol, "
        "population or disease can lower them without a warning: check it on your own data first."
    )
    yield "- It names the structures above in any image, also in one that shows something else."

"""Networks that speak one sentence more than once: nested, in series, side by side, by modality."""

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from autoseg.documents.networks.network import Spatial, accumulated, halved_weights
from autoseg.documents.networks.sentence import Level, Part, Sentence, UNetSpec
from autoseg.documents.networks.word import Word


class NestedSpec(Sentence):
    """UNet++: each skip of the sentence is a row of decoder levels (Zhou et al. 2018).

    The head of every column but the first speaks at full resolution and counts the same
    (arXiv:1807.10165). In evaluation the first `columns` of them are asked, None: all; their
    logits are averaged ("mean"), or the last speaks alone ("last"). What stands in no asked column
    is not computed: the paper's pruning, which needs no second training.
    """

    family: Literal["nested"] = "nested"
    columns: PositiveInt | None = None
    vote: Literal["mean", "last"] = "mean"

    @model_validator(mode="after")
    def _rows(self) -> "NestedSpec":
        if self.skip.join.word == "add":
            raise ValueError("a row of features is joined by 'concat' or a gate, not by 'add'")
        if self.columns is not None and self.columns > len(self.decoder):
            raise ValueError(f"columns is {self.columns}, of {len(self.decoder)} that there are")
        return self

    @property
    def output_strides(self) -> tuple[Spatial, ...]:
        return ((1,) * self.dimensions,) * len(self.decoder)

    @property
    def output_weights(self) -> tuple[float, ...]:
        return (1 / len(self.decoder),) * len(self.decoder)


class SerialSpec(Sentence):
    """Two U-Nets one after the other: the second sees the image and the first's probabilities.

    After DoubleU-Net (Jha et al. 2020, arXiv:2006.04868), which multiplies image and first mask:
    given side by side, nothing of the image is lost where the first is wrong. All levels of both
    are supervised. The second has widths of its own, one for each level.
    """

    family: Literal["serial"] = "serial"
    second_widths: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _widths(self) -> "SerialSpec":
        if len(self.second_widths) != len(self.levels):
            raise ValueError(
                f"second_widths has {len(self.second_widths)} numbers for {len(self.levels)} levels"
            )
        return self

    @property
    def first(self) -> UNetSpec:
        return UNetSpec(**_fields(self))

    @property
    def second(self) -> UNetSpec:
        levels = [
            Level(**{**dict(level), "width": width})
            for level, width in zip(self.levels, self.second_widths, strict=True)
        ]
        stem = self.stem and {**dict(self.stem), "width": self.second_widths[0]}
        changed = {"encoder": levels[:-1], "bottleneck": levels[-1], "stem": stem}
        channels = self.in_channels + self.classes
        return UNetSpec(**{**_fields(self), **changed, "in_channels": channels})

    @property
    def output_strides(self) -> tuple[Spatial, ...]:
        """At each level the second network's output, then the first's."""
        return tuple(stride for stride in accumulated(self.strides)[:-1] for _ in range(2))

    @property
    def output_weights(self) -> tuple[float, ...]:
        """Both networks count the same."""
        return tuple(w / 2 for w in halved_weights(len(self.decoder)) for _ in range(2))


class ParallelSpec(Sentence):
    """Two U-Nets side by side that exchange their skips; the second has `other` for its units.

    After TMD-Unet (Tran et al. 2021, doi:10.3390/healthcare9010054), three U-Nets of dilated
    convolutions whose nodes are connected; here two, connected by 1x1 convolutions. The finest
    logits are the mean of both ("mean"), or a 1x1 convolution of the features of both ("concat").
    """

    family: Literal["parallel"] = "parallel"
    other: Part
    merge: Literal["mean", "concat"] = "mean"

    @property
    def first(self) -> UNetSpec:
        return UNetSpec(**_fields(self))

    @property
    def second(self) -> UNetSpec:
        """The sentence with `other` in the place of every level's part."""
        said = _fields(self)
        levels = [{**dict(level), "part": self.other} for level in self.levels]
        decoder = [{**dict(level), "part": self.other} for level in self.decoder]
        changed = {"encoder": levels[:-1], "bottleneck": levels[-1], "decoder": decoder}
        return UNetSpec(**{**said, **changed})

    @property
    def output_strides(self) -> tuple[Spatial, ...]:
        """The merged output, then the first's and the second's at each level."""
        levels = accumulated(self.strides)[:-1]
        return (levels[0], *(stride for stride in levels for _ in range(2)))

    @property
    def output_weights(self) -> tuple[float, ...]:
        """The merged output counts as much as both networks, which count the same."""
        return (0.5, *(w / 4 for w in halved_weights(len(self.decoder)) for _ in range(2)))


class ModalitySpec(Sentence):
    """One encoder for each image channel, fused at each level, and one decoder.

    `fuse` is a 1x1 convolution with norm and activation of all modalities' features ("concat") or
    their mean ("mean": HeMIS, Havaei et al. 2016, arXiv:1607.05194, without its variance). With one
    channel it is the sentence's U-Net.
    """

    family: Literal["modalities"] = "modalities"
    fuse: Literal["concat", "mean"] = "concat"


class HyperDenseSpec(Sentence):
    """One path for each image channel, whose layers see all earlier layers of all paths.

    Dolz et al. 2018, arXiv:1804.02967. Their network keeps one resolution and sees patches of 27
    voxels; here the paths go down as in their IVD-Net (arXiv:1811.08305), all earlier features
    pooled by their maximum, and the sentence's decoder leads back. `depth` is the number of layers
    of each path. Their order of concatenation, another for each path, is left out: the layers that
    read it can learn any order.
    """

    family: Literal["hyperdense"] = "hyperdense"
    down: Word = Word(word="pooled")

    @model_validator(mode="after")
    def _paths(self) -> "HyperDenseSpec":
        steps = [self.down, *(level.step for level in self.levels if level.step is not None)]
        if self.stem is not None or any(step != Word(word="pooled") for step in steps):
            raise ValueError("hyper-dense paths have no stem, and no way down but 'pooled'")
        return self


def _fields(spec: Sentence) -> dict[str, Any]:
    """What a sentence says apart from its family."""
    return {name: getattr(spec, name) for name in Sentence.model_fields}

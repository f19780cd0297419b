"""The U-Net as a sentence: which parts stand at encoder, skips, bottleneck and decoder."""

from typing import Any, Literal

from pydantic import PositiveInt, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from autoseg.documents.document import Document
from autoseg.documents.networks.network import Network, Spatial, accumulated
from autoseg.documents.networks.word import Word


class Part(Document):
    """A unit, and the wraps around it, innermost first."""

    unit: Word
    wraps: tuple[Word, ...] = ()


class DecoderLevel(Document):
    """One resolution on the way up: `depth` units of `part`, then one of each part of `then`.

    Width and stride are those of the encoder level beside it. `step` is the way into the level,
    where it is not the sentence's own.
    """

    part: Part
    then: tuple[Part, ...] = ()
    depth: PositiveInt
    kernel: Spatial
    step: Word | None = None

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = handler(self)
        if not self.then:
            del said["then"]
        if self.step is None:
            del said["step"]
        return said


class Level(DecoderLevel):
    """One resolution on the way down: `width` channels, `stride` from the level above.

    The step down takes the place of the first of the `depth` units, but at the finest level.
    """

    width: PositiveInt
    stride: Spatial


class Stem(Document):
    """What goes before the first level, `width` channels wide; a number alone is a plain unit."""

    part: Part = Part(unit=Word(word="plain"))
    width: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, value: Any) -> Any:
        return {"width": value} if isinstance(value, int) else value


class Skip(Document):
    """What a level's features go through on their way to the decoder: parts, a join, parts.

    `join` is the one word with two inputs. A document may give the join alone.
    """

    before: tuple[Part, ...] = ()
    join: Word
    after: tuple[Part, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, value: Any) -> Any:
        alone = isinstance(value, (str, Word)) or (isinstance(value, dict) and "word" in value)
        return {"join": value} if alone else value

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> Any:
        said: dict[str, Any] = handler(self)
        return said if self.before or self.after else said["join"]


class Sentence(Network):
    """Encoder levels finest first, bottleneck, decoder levels finest first, and how they meet."""

    encoder: tuple[Level, ...]
    bottleneck: Level
    decoder: tuple[DecoderLevel, ...]
    stem: Stem | None = None
    down: Word = Word(word="strided")
    up: Word = Word(word="transposed")
    skip: Skip = Skip(join=Word(word="concat"))

    @model_validator(mode="after")
    def _sound(self) -> "Sentence":
        if len(self.decoder) != len(self.encoder) or not self.encoder:
            raise ValueError(
                f"{len(self.encoder)} encoder levels need as many decoder levels, "
                f"found {len(self.decoder)}"
            )
        sizes = {len(x) for level in self.levels for x in (level.kernel, level.stride)}
        sizes |= {len(level.kernel) for level in self.decoder}
        if len(sizes) != 1 or not sizes <= {2, 3}:
            raise ValueError("kernels and strides must all have 2 or all have 3 numbers")
        if any(s != 1 for s in self.encoder[0].stride) or self.encoder[0].step is not None:
            raise ValueError("the finest level's stride must be all ones, and no step leads there")
        if any(k % 2 == 0 for level in (*self.levels, *self.decoder) for k in level.kernel):
            raise ValueError("kernels must be odd")
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        """Encoder levels and the bottleneck, finest first."""
        return (*self.encoder, self.bottleneck)

    @property
    def strides(self) -> tuple[Spatial, ...]:
        return tuple(level.stride for level in self.levels)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(level.width for level in self.levels)

    @property
    def output_strides(self) -> tuple[Spatial, ...]:
        """Every level of the decoder is supervised."""
        return accumulated(self.strides)[:-1]


class UNetSpec(Sentence):
    """The U-Net whose levels are joined one to one."""

    family: Literal["unet"] = "unet"

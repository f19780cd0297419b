"""Pickles of strangers are data: nothing is imported, called or set, and damage is told in a line."""

import collections
import io
import os
import pickle
import shutil
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.errors import AutosegError
from autoseg.interop.nnunet.checkpoint import read_checkpoint, tensors_of
from autoseg.interop.nnunet.model import Wanted, model_from
from autoseg.interop.nnunet.pickle import Foreign, View, read_pickle
from tests.interop.nnunet_files import PLAIN, changed, kwargs

PLAIN_VALUES = {
    "text": "Käse", "numbers": [0, 1, -5, 2**40, 3.5, True, None], "nested": {"a": (1, (2, 3), [])},
    "bytes": b"\x00\xff", 7: {"empty": {}},
}  # fmt: skip


class Evil:
    """What a pickle can do to those who load it."""

    def __init__(self, call, *arguments) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(protocol: int) -> None:
    expected = PLAIN_VALUES if protocol > 2 else {**PLAIN_VALUES, "bytes": None}
    given = {**PLAIN_VALUES, "bytes": None} if protocol <= 2 else PLAIN_VALUES
    assert read_pickle(pickle.dumps(given, protocol), "x") == expected


def test_names_become_stand_ins_that_do_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = {
        "system": Evil(os.system, f"touch {mark}"),
        "eval": Evil(eval, f"open({str(mark)!r}, 'w')"),
        "nested": [Evil(getattr, Evil(__import__, "os"), "system")],
        "numpy": np.float64(3.0),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, b=2),
        "path": Path("x"),
        "set": {1, 2},
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found = read_pickle(pickle.dumps(hostile, protocol), "x")
        assert isinstance(found["system"], Foreign)
        assert found["system"].name.endswith(" system")
        assert isinstance(found["eval"], Foreign)
        assert isinstance(found["numpy"], Foreign)
        assert isinstance(found["path"], Foreign)
        assert (found["ordered"], found["default"]) == ({"a": 1}, {"b": 2})
    assert not mark.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cos\nsystem\n(S'touch RAN'\ntR.",
        b"(S'touch RAN'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch RAN'\no.",
        b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x00RAN1\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch RAN\x85R.",
        b"\x80\x02cos\nsystem\n)\x81}b.",
        b"\x80\x02}(ccopyreg\n_reconstructor\nK\x01u}b.",
    ],
)
def test_hand_written_programs_are_inert(raw: bytes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    read_pickle(raw, "x")
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"\x80\x02]q\x00",  # no end
        b"\x80\x02K\x01K\x02.",  # two values
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text longer than the file
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",  # bytes of 2**63
        b"\x80\x02h\x05.",  # nothing was kept there
        b"\x80\x02t.",  # a tuple without its beginning
        b"\x80\x02N\x82\x01.",  # an extension
        b"P1\n.",  # a persistent id as a text
        b"\x80\x02}(K\x01u.",  # a key without a value
        b"\x80\x04K\x01K\x02\x93.",  # a name that is a number
        b"\xff\xfe\x00",
        b"I99999999999999999999x\n.",
        b"L" + b"9" * 5000 + b"L\n.",  # a number of more digits than Python reads
    ],
)
def test_damaged_pickles_are_told_in_a_line(raw: bytes) -> None:
    with pytest.raises(AutosegError, match=r"weights\.pth is no pickle of plain values") as told:
        read_pickle(raw, "weights.pth")
    assert "\n" not in str(told.value)


def test_any_cut_or_flipped_byte_is_told_or_harmless() -> None:
    whole = pickle.dumps(PLAIN_VALUES, 4)
    for at in range(len(whole)):
        with pytest.raises(AutosegError):
            read_pickle(whole[:at], "x")
    draw = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.integers(len(whole))] ^= int(draw.integers(1, 256))
        try:
            read_pickle(bytes(damaged), "x")
            outcomes.add("read")
        except AutosegError:
            outcomes.add("told")
    assert outcomes == {"read", "told"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a place in memory beyond any list
        b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",  # lists inside lists
        b"\x80\x02K\x01" + b"2\x86" * 5_000 + b".",  # a value that doubles at each step
        b"\x80\x02]" + b"2(2ccollections\nOrderedDict\n\x85Re" * 1_000 + b".",
    ],
)
def test_bombs_stay_small(raw: bytes) -> None:
    tracemalloc.start()
    try:
        found = None
        try:
            found = read_pickle(raw, "x")
        except AutosegError as error:
            assert "\n" not in str(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
    while isinstance(found, list) and found:  # taken apart from outside in, or Python recurses
        found = found.pop()


# ---- checkpoints


def saved(path: Path, weights: object, **rest: object) -> Path:
    torch.save({"network_weights": weights, "init_args": {"configuration": "2d"}, **rest}, path)
    return path


def test_a_genuine_checkpoint_is_read_as_torch_reads_it() -> None:
    theirs = torch.load(PLAIN.checkpoint, weights_only=False)
    found = read_checkpoint(PLAIN.checkpoint)
    assert (found.configuration, found.trainer) == ("3d_fullres", "nnUNetTrainer")
    assert found.mirror_axes == (0, 2)
    assert found.weights.keys() == theirs["network_weights"].keys()
    with tensors_of(found) as tensors:
        for name, tensor in theirs["network_weights"].items():
            array = tensors.read(name, tuple(tensor.shape))
            assert array is not None
            assert np.array_equal(array, tensor.numpy())
        assert tensors.read("none such", (1,)) is None


def test_foreign_values_matter_in_weights_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pth", {"a": torch.ones(2)}, logging=Evil(os.system, "true"),
                 epoch=np.float64(1), grad_scaler_state=collections.OrderedDict())  # fmt: skip
    assert list(read_checkpoint(path).weights) == ["a"]
    saved(path, {"a": Evil(os.system, f"touch {tmp_path / 'ran'}")})
    with pytest.raises(AutosegError, match=r"the weight 'a' is no tensor but made by '\w+ system'"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    saved(path, {"a": torch.nn.Parameter(torch.ones(2))})
    assert isinstance(read_checkpoint(path).weights["a"], View)


def rewritten(path: Path, change, compression: int = zipfile.ZIP_STORED) -> Path:
    """The golden checkpoint with its records changed: name -> bytes."""
    with zipfile.ZipFile(PLAIN.checkpoint) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist()}
    change(records)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def cut_numbers(records: dict[str, bytes]) -> None:
    name = next(n for n in records if n.endswith("data/0"))
    records[name] = records[name][:-4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [r.pop(n) for n in list(r) if n.endswith("data.pkl")], "no data.pkl in it"),
        (lambda r: r.update({n: b"big" for n in r if n.endswith("byteorder")}), "big-endian"),
        (lambda r: r.update({n: b"\x80\x02}." for n in r if n.endswith("pkl")}),
         "holds no network_weights"),
        (lambda r: r.update({n: r[n][:900] for n in r if n.endswith("pkl")}), "no pickle of plain"),
        (cut_numbers, "numbers are expected"),
        (lambda r: [r.pop(n) for n in list(r) if n.endswith("data/0")], "has no numbers in the file"),
    ],
)  # fmt: skip
def test_damaged_checkpoints_are_told(tmp_path: Path, change, message: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(PLAIN.model, folder)
    rewritten(folder / "fold_0" / "checkpoint_final.pth", change)
    with pytest.raises(AutosegError, match=message):
        model_from(folder, tmp_path / "w", None, Wanted())


def test_other_files_are_told_from_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    for content, message in [
        (b"", "it is empty"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (b"<html>", "is no file of torch"),
        (PLAIN.checkpoint.read_bytes()[:30_000], "truncated or damaged"),
    ]:
        path.write_bytes(content)
        with pytest.raises(AutosegError, match=message):
            read_checkpoint(path)
    rewritten(path, lambda r: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(AutosegError, match="compressed or encrypted; torch never does so"):
        read_checkpoint(path)


def hostile_view(storage_count: int, offset: int, shape: tuple, strides: tuple) -> bytes:
    """The pickle of a checkpoint with one weight that is read so from its numbers."""
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.said if isinstance(obj, Stored) else None

    class Stored:
        said = ("storage", torch.FloatStorage, "0", "cpu", storage_count)

    view = Evil(torch._utils._rebuild_tensor_v2, Stored(), offset, shape, strides, False,
                collections.OrderedDict())  # fmt: skip
    Pickler(buffer, 2).dump({"network_weights": {"a": view}})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides"),
    [
        (4, 0, (5,), (1,)),
        (4, 2, (4,), (1,)),
        (4, 0, (2, 2), (100, 1)),
        (4, 0, (1 << 20, 1 << 20), (0, 0)),
        (4, 0, (2, 2), (2,)),
        (1 << 40, 0, (2,), (1,)),
        (8, 0, (4,), (1,)),
        (4, 2**61, (1,), (1,)),
        (2**62 - 1, 0, (2,), (2**61,)),
    ],
)
def test_weights_never_reach_beyond_their_numbers(
    tmp_path: Path, count: int, offset: int, shape: tuple, strides: tuple
) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c/data.pkl", hostile_view(count, offset, shape, strides))
        archive.writestr("c/data/0", np.arange(4, dtype=np.float32).tobytes())
    checkpoint = read_checkpoint(path)
    with (
        tensors_of(checkpoint) as tensors,
        pytest.raises(AutosegError, match="copy the checkpoint"),
    ):
        tensors.read("a", shape)


def test_a_sound_view_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c/data.pkl", hostile_view(4, 0, (2, 2), (1, 2)))
        archive.writestr("c/data/0", np.arange(4, dtype=np.float32).tobytes())
    with tensors_of(read_checkpoint(path)) as tensors:
        found = tensors.read("a", (2, 2))
        assert found is not None
        assert found.tolist() == [[0, 2], [1, 3]]
        with pytest.raises(AutosegError, match=r"has the shape \(2, 2\), the network"):
            tensors.read("a", (4,))


def test_weights_that_share_numbers_do_not_fill_the_memory(tmp_path: Path) -> None:
    """A small file whose one storage would be a large network many times over."""

    def widen(plans: dict) -> None:
        kwargs(plans)["features_per_stage"] = [320] * len(kwargs(plans)["features_per_stage"])

    folder = changed(PLAIN, tmp_path, "plans.json", widen)
    tracemalloc.start()
    try:
        with pytest.raises(
            AutosegError, match=r"has \d+ bytes, the network of plans.json \d+ weig"
        ):
            model_from(folder, tmp_path / "w", None, Wanted())
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("widths", [10**9, 2**62, 10**30])
def test_networks_beyond_reason_take_no_memory(tmp_path: Path, widths: int) -> None:
    def widen(plans: dict) -> None:
        kwargs(plans)["features_per_stage"] = [widths] * len(kwargs(plans)["features_per_stage"])

    folder = changed(PLAIN, tmp_path, "plans.json", widen)
    with pytest.raises(AutosegError) as told:
        model_from(folder, tmp_path / "w", None, Wanted())
    assert len(str(told.value)) < 600

"""Reading safetensors without trust, held against the library that writes them."""

import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from autoseg.documents.tensors import (
    Form,
    NotTensors,
    differing,
    pieces,
    private_fact,
    read_header,
)

KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

TENSORS = st.dictionaries(
    st.text("abc._", min_size=1, max_size=6),
    st.tuples(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 4), max_size=4)),
    min_size=1,
    max_size=6,
)


@given(TENSORS)
def test_what_the_library_writes_is_read_and_passed_on_unchanged(
    made: dict[str, tuple[str, list[int]]],
) -> None:
    data = save({n: torch.ones(shape, dtype=KINDS[k]) for n, (k, shape) in made.items()})
    wanted = {n: Form(k, tuple(shape)) for n, (k, shape) in made.items()}
    header = read_header(io.BytesIO(data), len(data))
    assert dict(header.tensors) == wanted
    assert b"".join(pieces(io.BytesIO(data), len(data), wanted)) == data


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.0])
def test_only_numbers_pass(kind: str, value: float) -> None:
    tensor = torch.ones(300_000, dtype=KINDS[kind])
    tensor[-1] = value
    data = save({"w": tensor})
    read = pieces(io.BytesIO(data), len(data), {"w": Form(kind, (300_000,))})
    if torch.isfinite(tensor).all():
        found = list(read)
        assert b"".join(found) == data
        assert max(map(len, found)) <= 1 << 20
    else:
        with pytest.raises(NotTensors, match="'w' holds NaN or infinity"):
            list(read)


def test_the_first_difference_is_named() -> None:
    wanted = {"a": Form("F32", (2, 3)), "b": Form("I64", ())}
    assert differing(wanted, wanted) == ""
    assert differing({"a": wanted["a"]}, wanted) == "it lacks 'b' (I64 of one number)"
    assert differing({**wanted, "a": Form("F32", (3, 2))}, wanted) == (
        "'a' is F32 3x2, in the network F32 2x3"
    )
    assert "holds 'c', which is not in the network" in differing({**wanted, "c": Form("F32", ())}, wanted)  # fmt: skip


@pytest.mark.parametrize("length", [0, 3, 8, 20, 60])
def test_an_early_end_is_told(length: int) -> None:
    data = save({"w": torch.ones(8)})
    wanted = {"w": Form("F32", (8,))}
    with pytest.raises(NotTensors, match=r"no safetensors|too early|tells of"):
        list(pieces(io.BytesIO(data[:length]), length, wanted))
    with pytest.raises(NotTensors, match=r"no safetensors|too early|tells of"):
        list(pieces(io.BytesIO(data[:length]), len(data), wanted))


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, ""),
        ({"format": "pt"}, ""),
        ({"autoseg": json.dumps({"step": 3, "score": None, "plan": "default"})}, ""),
        ({"autoseg": json.dumps({"file": "/home/x"})}, "'file': '/home/x'"),
        ({"autoseg": json.dumps({"case": "Meier, H"})}, "'case': 'Meier, H'"),
        ({"autoseg": json.dumps({"Meier, H": 1})}, "'Meier, H': 1"),
        ({"autoseg": json.dumps({"cases": [1]})}, "'cases': [1]"),
        ({"autoseg": "not JSON"}, "'autoseg': 'not JSON'"),
        ({"note": "C:\\data"}, "'note': 'C:\\\\data'"),
    ],
)
def test_a_header_that_could_name_a_person_is_told(metadata: dict[str, str], told: str) -> None:
    assert private_fact(metadata) == told

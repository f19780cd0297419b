"""The selective scan against the recurrence written out, and what it keeps in memory."""

from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoseg.nets import scan
from autoseg.nets.scan import arranged_for, scan_bytes, selective_scan

NAMES = ["x", "delta", "A", "B", "C", "D"]


def inputs(batch, length, width, state, dtype=torch.float32, seed=0):
    """Steps as a fresh Mamba block has them, a decay of all speeds."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    tensors = [
        normal(batch, length, width),
        F.softplus(normal(batch, length, width) - 2),
        -normal(width, state).exp(),
        normal(batch, length, state),
        normal(batch, length, state),
        normal(width),
    ]
    return [z.to(dtype).requires_grad_() for z in tensors]


def sequential(x, delta, A, B, C, D, softplus=False, reverse=False):
    """One step after another, as the recurrence is written."""
    delta = F.softplus(delta) if softplus else delta
    h = x.new_zeros(x.shape[0], *A.shape)
    ys = [None] * x.shape[1]
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        fed = (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        h = torch.exp(delta[:, t, :, None] * A) * h + fed
        ys[t] = (h * C[:, t, None]).sum(-1) + D * x[:, t]
    return torch.stack(ys, 1)


CUTS = [(7, 3, 1), (12, 4, 10**6), (13, 4, 24), (5, 16, 10**6), (16, 1, 60)]
"""Length, chunk, and numbers that step together: with and without rests, one and several tiles."""


@pytest.mark.parametrize(("length", "chunk", "row"), CUTS)
@pytest.mark.parametrize(("softplus", "reverse"), list(product([False, True], repeat=2)))
def test_values_and_gradients_are_those_of_the_recurrence(
    length, chunk, row, softplus, reverse, monkeypatch
):
    monkeypatch.setitem(scan.ROWS, "cpu", row)
    given = inputs(2, length, 3, 2, torch.float64)
    y = selective_scan(*given, softplus=softplus, reverse=reverse, chunk=chunk)
    want = sequential(*given, softplus, reverse)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    toward = torch.randn_like(y)
    found = torch.autograd.grad(y, given, toward)
    for name, a, b in zip(NAMES, found, torch.autograd.grad(want, given, toward), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_by_finite_differences(reverse):
    given = inputs(1, 5, 2, 2, torch.float64)

    def scanned(*z):
        return selective_scan(*z, softplus=True, reverse=reverse, chunk=2)

    assert torch.autograd.gradcheck(scanned, given)


@pytest.mark.parametrize("reverse", [False, True])
def test_float32_is_exact_to_a_millionth(reverse):
    given = inputs(2, 500, 24, 16)
    want = sequential(*(z.double() for z in given), reverse=reverse)
    y = selective_scan(*given, reverse=reverse)
    assert y.dtype == torch.float32
    assert (y - want).abs().max() < 1e-6 * want.abs().max()
    one_by_one = sequential(*given, reverse=reverse)
    assert (y - one_by_one).abs().max() < 1e-6 * want.abs().max()


def test_neither_forgetting_at_once_nor_never_overflows():
    given = inputs(1, 300, 4, 3)
    with torch.no_grad():
        given[1][:, ::2] = 1e4  # exp(-1e4 ..) is 0, and its inverse infinite
        given[1][:, 1::3] = 0
    y = selective_scan(*given)
    want = sequential(*(z.double() for z in given))
    assert (y - want).abs().max() < 1e-6 * want.abs().max()
    y.sum().backward()
    assert all(torch.isfinite(z.grad).all() for z in given)


def test_autocast_and_half_precision_compute_in_float32():
    given = inputs(1, 70, 8, 4)
    want = selective_scan(*given)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(*given)
        grads = torch.autograd.grad(y.square().sum(), given)
    assert torch.equal(y, want)
    for a, b in zip(grads, torch.autograd.grad(want.square().sum(), given), strict=True):
        assert torch.equal(a, b)
    half = [z.detach().bfloat16().requires_grad_() for z in given]
    y = selective_scan(*half)
    assert y.dtype == torch.bfloat16
    exact = selective_scan(*(z.float() for z in half))
    assert torch.equal(y, exact.bfloat16())
    y.float().sum().backward()
    assert [z.grad.dtype for z in half] == [torch.bfloat16] * 6


def test_strided_inputs_and_no_gradient():
    given = inputs(2, 40, 6, 3)
    want = selective_scan(*given)
    strided = [z.detach().transpose(0, -1).contiguous().transpose(0, -1) for z in given]
    assert torch.equal(selective_scan(*strided), want)
    assert not selective_scan(*strided).requires_grad


def test_what_is_kept_is_the_inputs_and_one_state_a_chunk():
    given = inputs(2, 1000, 8, 16)
    kept = {}

    def keep(z):
        kept[z.data_ptr()] = z.numel() * 4
        return z

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda z: z):
        selective_scan(*given)
    of_inputs = {z.data_ptr() for z in given}
    extra = sum(n for where, n in kept.items() if where not in of_inputs)
    assert extra == scan_bytes(2, 1000, 8, 16).kept == 4 * 2 * 32 * 8 * 16
    assert extra < 4 * 2 * 1000 * 8 * 16 / 30  # of what all states would be


class Counting(TorchDispatchMode):
    """The peak of the storages that live, all but those known from before."""

    def __init__(self, known):
        super().__init__()
        self.known = {StorageWeakRef(z.untyped_storage()).cdata for z in known}
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for z in tree_leaves(out):
            if isinstance(z, torch.Tensor):
                ref = StorageWeakRef(z.untyped_storage())
                if ref.cdata not in self.known:
                    self.live[ref.cdata] = (ref, z.untyped_storage().nbytes())
        self.live = {key: pair for key, pair in self.live.items() if not pair[0].expired()}
        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self):
        return sum(n for ref, n in self.live.values() if not ref.expired())


def counted(sizes):
    """Bytes beside inputs: the forward's peak, what is left after it, the backward's peak."""
    given = inputs(*sizes)
    toward = torch.empty(sizes[:3])
    with Counting([*given, toward]) as forward:
        y = selective_scan(*given)
    left = forward.now
    with Counting([*given, toward, y]) as backward:
        grads = torch.autograd.grad(y, given, toward)
    del grads
    return forward.peak, left, backward.peak


@pytest.mark.parametrize("sizes", [(1, 4096, 16, 16), (2, 1030, 40, 8), (1, 300, 640, 16)])
def test_memory_is_what_the_formula_says_also_on_fake_tensors(sizes):
    batch, length, width, state = sizes
    said = scan_bytes(*sizes)
    output = 4 * batch * length * width
    grads = 4 * (2 * batch * length * (width + state) + width * state + width)
    want = (said.forward + said.kept + output, said.kept + output, said.backward + grads)
    for mode in (None, FakeTensorMode()):
        if mode is None:
            found = counted(sizes)
        else:
            with mode:
                found = counted(sizes)
        assert found[1] == want[1]
        assert found[0] == pytest.approx(want[0], rel=0.03)
        assert found[2] == pytest.approx(want[2], rel=0.03)


def test_fake_tensors_run_no_steps():
    class Ops(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        given = [z.detach().requires_grad_() for z in (torch.empty(1, 10**6, 64),
                 torch.empty(1, 10**6, 64), torch.empty(64, 16), torch.empty(1, 10**6, 16),
                 torch.empty(1, 10**6, 16), torch.empty(64))]  # fmt: skip
        with Ops() as ops:
            y = selective_scan(*given)
            y.sum().backward()
        assert y.shape == (1, 10**6, 64)
        assert [z.grad.shape for z in given] == [z.shape for z in given]
    assert ops.count < 100


def test_tiles_of_a_card_can_be_asked_for():
    with FakeTensorMode(), arranged_for("cuda"):
        given = inputs_without_values(1, 32768, 128, 16)
        with Counting(given) as forward:
            y = selective_scan(*given)
        assert y.shape == (1, 32768, 128)
    said = scan_bytes(1, 32768, 128, 16, device="cuda")
    assert said.forward > 3 * scan_bytes(1, 32768, 128, 16).forward
    assert forward.peak == pytest.approx(said.forward + said.kept + 4 * 32768 * 128, rel=0.03)


def inputs_without_values(batch, length, width, state):
    shapes = [(batch, length, width)] * 2 + [(width, state)] + [(batch, length, state)] * 2
    return [torch.empty(shape, requires_grad=True) for shape in [*shapes, (width,)]]


@pytest.mark.slow
def test_a_quarter_of_a_million_tokens_train_in_two_gigabytes():
    given = inputs(1, 262_144, 128, 16)
    with Counting([]) as counting:
        y = selective_scan(*given)
        y.square().mean().backward()
    of_inputs = 4 * (2 * 262_144 * (128 + 16) + 128 * 16 + 128)
    assert counting.peak + of_inputs < 2 * 2**30
    assert all(torch.isfinite(z.grad).all() for z in given)

"""Counting storages: how many bytes of tensors are alive, and how many were at most.

Here belongs the accounting alone: which operations run, on which tensors, is the affair of others.
Tensors may be real or fake; views, and what is written in place, share a storage and count once.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from autoseg.nets.cost.inside import INSIDE

aten = torch.ops.aten

WITHOUT_RESULT = {aten._fused_sgd_.default}
"""Operations in place that torch cannot run on fake tensors."""


def go_back(value: Tensor) -> None:
    """Gradients of `value`, as its own method computes them.

    That method is itself subject to modes that override torch's functions, which would then not see
    what is computed again going back; and `Storages` knows autograd's own sums by this function.
    """
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (value,), (torch.ones_like(value),), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


class _Sum(NamedTuple):
    """A sum that may have taken the place of its first term; `live` are the bytes if it has not."""

    first: weakref.ref[torch.UntypedStorage]
    live: int
    by_engine: bool


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the `live` and, at most, `peak` bytes of the tensors made while it is entered.

    Every storage is rounded up to a multiple of `granule`. Of what an operation allocates and frees
    inside only `INSIDE` is known. A number that is read from a fake tensor is 1.
    """

    def __init__(self, granule: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.granule = granule
        self.live = self._peak = 0
        self._alive: dict[int, tuple[int, object]] = {}
        self._makes: dict[Any, bool] = {}
        self._sum: _Sum | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch puts a function of its own between the caller and this mode

    def rounded(self, nbytes: int) -> int:
        return -(-nbytes // self.granule) * self.granule

    @property
    def peak(self) -> int:
        """The most bytes that were alive since the last restart."""
        self._settle()
        return self._peak

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._meet(tensor)
        self._note(self.live)

    def restart(self) -> None:
        """Forget the peak so far."""
        self._settle()
        self._peak = self.live

    def _note(self, nbytes: int) -> None:
        self._peak = max(self._peak, nbytes)

    def size(self, tensors: Iterable[Tensor]) -> int:
        """The bytes of the storages of tensors, each counted once."""
        found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        return sum(self.rounded(nbytes) for nbytes in found.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for thousands of times
        with torch._C.DisableTorchFunction():
            self._settle(func)
            if func is aten._local_scalar_dense.default:
                return 1.0 if args[0].is_floating_point() else 1
            if func in WITHOUT_RESULT:
                return None
            out = func(*args, **(kwargs or {}))
            if self._allocates(func):
                for tensor in out if isinstance(out, (tuple, list)) else (out,):
                    if isinstance(tensor, Tensor):
                        self._meet(tensor)
            if func is aten.add.Tensor:
                by_engine = sys._getframe(1).f_code is go_back.__code__
                first = weakref.ref(args[0].untyped_storage())
                self._sum = _Sum(first, self.live, by_engine)
            else:
                inside = INSIDE[func](args, self.rounded) if func in INSIDE else 0
                self._note(self.live + inside)
        return out

    def _allocates(self, func: Any) -> bool:
        """Whether some result of an operation is neither a view nor written in place."""
        if func not in self._makes:
            self._makes[func] = any(r.alias_info is None for r in func._schema.returns)
        return self._makes[func]

    def _settle(self, func: object = None) -> None:
        """Judge the last sum, now that the next operation, `func`, is known.

        Autograd adds two gradients in place where no one else holds the first, and attention its
        mask; not so with fake tensors, of which they make a third. If the first term was gone
        before anything else happened, it would have been reused.
        """
        if self._sum is not None:
            in_place = self._sum.by_engine or func is aten._safe_softmax.default
            if not in_place or self._sum.first() is not None:
                self._note(self._sum.live)
            self._sum = None

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            nbytes = self.rounded(storage.nbytes())
            self._alive[key] = nbytes, weakref.ref(storage, self._farewell(key))
            self.live += nbytes

    def _farewell(self, key: int) -> Callable[[object], None]:
        def gone(_: object) -> None:
            self.live -= self._alive.pop(key)[0]

        return gone

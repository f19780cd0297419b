"""What does a pickle of a stranger hold? It is read as data: nothing in it is imported, called or set.

A pickle is a little program. Here it runs on a machine of its own that knows plain values (numbers,
texts, lists, dicts) and the words with which torch describes tensors. Every other name becomes a
`Foreign`, which stands for what would have been made and does nothing. Opcodes are told apart by
Python's own table; what they hold is bounded by the length of the file.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autoseg.errors import AutosegError

MOST_OPCODES = 3_000_000
"""A checkpoint of the largest networks has about a hundred thousand."""
MOST_KEY = 2**62
"""Of numbers as keys of dicts; Python's own hash is a number's value up to there."""

DICTS = {"collections OrderedDict", "collections defaultdict", "builtins dict"}
VIEWS = {"torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"}
WRAPPED = {
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._tensor _rebuild_from_type_v2",
}


@dataclass(frozen=True)
class Foreign:
    """What a name that is not known here would have made; it does nothing."""

    name: str
    """Module and name, as `numpy dtype`."""


@dataclass(frozen=True)
class Storage:
    """Numbers in a file of their own: `key` names the file, `kind` is torch's class."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: how some numbers of a storage are read. Nothing of it was checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where a group of values begins on the stack."""


_MARK = _Mark()


def read_pickle(raw: bytes, what: str) -> Any:
    """The value of a pickle, made of plain values, `View`, `Storage` and `Foreign`.

    Raises AutosegError, naming `what`, if it is damaged or says what pickles of data never say.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(raw))):
            if count > MOST_OPCODES:
                raise ValueError(f"more than {MOST_OPCODES} steps")
            machine.step(opcode.name, argument)
        return machine.result()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AssertionError) as error:
        raise AutosegError(
            f"{what} is no pickle of plain values and tensors ({str(error)[:120]}); copy the file "
            "again from where it was made"
        ) from error


class _Machine:
    """The stack and the memory of a running pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.ended = False

    def result(self) -> Any:
        if not self.ended or len(self.stack) != 1:
            raise ValueError("it ends too early")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says. Raises ValueError for one that data never needs."""
        if name in IDLE:
            return
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            self.stack.append(argument)
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        else:
            raise ValueError(f"the step {name} is not known")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def group(self) -> list[Any]:
        """What was put onto the stack since the last mark."""
        found: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            found.append(value)
        return found[::-1]

    def put(self, value: Any) -> None:
        self.stack.append(value)


# ---- what single opcodes do


def _stop(machine: _Machine, _: Any) -> None:
    machine.ended = True


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        machine.put(tuple(machine.pop() for _ in range(count))[::-1])

    return act


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.group()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(values)


def _setitem(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _fill(machine.stack[-1], [key, value])


def _setitems(machine: _Machine, _: Any) -> None:
    values = machine.group()
    _fill(machine.stack[-1], values)


def _fill(target: Any, values: list[Any]) -> None:
    """Put keys and values, one after the other, into a dict; keys of odd kinds are left out."""
    if isinstance(target, dict):
        for key, value in zip(values[::2], values[1::2], strict=True):
            number = isinstance(key, int) and abs(key) < MOST_KEY
            if number or isinstance(key, str) or key is None:
                target[key] = value


def _dict(machine: _Machine, _: Any) -> None:
    values, made = machine.group(), dict[Any, Any]()
    _fill(made, values)
    machine.put(made)


def _global(machine: _Machine, name: Any) -> None:
    machine.put(Foreign(str(name)))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("a name is no text")
    machine.put(Foreign(f"{module} {name}"[:200]))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, called = machine.pop(), machine.pop()
    machine.put(_made(called, arguments))


def _instance(machine: _Machine, name: Any) -> None:
    machine.group()
    machine.put(Foreign(str(name)))


def _object(machine: _Machine, _: Any) -> None:
    called, *_arguments = machine.group()
    machine.put(_stand_in(called))


def _newobj_ex(machine: _Machine, _: Any) -> None:
    machine.pop(), machine.pop()
    machine.put(_stand_in(machine.pop()))


def _build(machine: _Machine, _: Any) -> None:
    machine.pop()  # a state that would be set; what stands below stays as it is


def _stored(machine: _Machine, _: Any) -> None:
    """A tuple of torch that names a file of numbers."""
    said = machine.pop()
    if not (isinstance(said, tuple) and len(said) >= 5 and said[0] == "storage"):
        machine.put(Foreign("a persistent id"))
        return
    kind, key, count = said[1], said[2], said[4]
    known = isinstance(kind, Foreign) and isinstance(key, str) and type(count) is int
    machine.put(Storage(key, kind.name, count) if known else Foreign("a storage"))


def _remember(machine: _Machine, place: Any) -> None:
    machine.memory[int(place)] = machine.stack[-1]


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memory[len(machine.memory)] = machine.stack[-1]


def _recall(machine: _Machine, place: Any) -> None:
    machine.put(machine.memory[int(place)])


def _duplicate(machine: _Machine, _: Any) -> None:
    machine.put(machine.stack[-1])


def _drop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _drop_group(machine: _Machine, _: Any) -> None:
    machine.group()


def _add_items(machine: _Machine, _: Any) -> None:
    machine.group()  # a set's members are nothing that a checkpoint is asked for


def _frozen(machine: _Machine, _: Any) -> None:
    machine.group()
    machine.put(Foreign("builtins frozenset"))


def _made(called: Any, arguments: Any) -> Any:
    """What calling a name would give: a dict, a tensor's description, or something foreign."""
    name = called.name if isinstance(called, Foreign) else ""
    if name in DICTS and (arguments == () or name == "collections defaultdict"):
        return {}
    if name in VIEWS and isinstance(arguments, tuple) and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, Storage) and _counts(offset) and _all_counts(shape, strides):
            return View(storage, offset, shape, strides)
    if name in WRAPPED and isinstance(arguments, tuple):
        inside = [part for part in arguments if isinstance(part, View)]
        if name.endswith("_from_type_v2") and len(arguments) > 2:
            inside = [_made(arguments[0], arguments[2])]
        if len(inside) == 1:
            return inside[0]
    return _stand_in(called)


def _stand_in(called: Any) -> Foreign:
    return called if isinstance(called, Foreign) else Foreign("a call")


def _counts(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _all_counts(*values: Any) -> bool:
    return all(isinstance(v, tuple) and len(v) <= 16 and all(map(_counts, v)) for v in values)


IDLE = {"PROTO", "FRAME"}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Foreign("builtins set"),
    "MARK": lambda: _MARK,
}
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "STOP": _stop,
    "TUPLE": lambda machine, _: machine.put(tuple(machine.group())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": lambda machine, _: machine.put(machine.group()),
    "DICT": _dict,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "ADDITEMS": _add_items,
    "FROZENSET": _frozen,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _build,
    "BINPERSID": _stored,
    "PUT": _remember,
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": _memoize,
    "GET": _recall,
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "DUP": _duplicate,
    "POP": _drop,
    "POP_MARK": _drop_group,
}

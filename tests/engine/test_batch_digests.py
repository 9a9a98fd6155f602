"""A batch of any kind is known by what it holds; what cannot be known is named."""

import collections
import dataclasses
import datetime
import decimal
import threading
import types

import attrs
import numpy
import pytest
import torch

from altcore.engine import batch_digests
from altcore.engine.batch_digests import batch_digest


@dataclasses.dataclass
class Data:
    x: object
    more: object = None


@attrs.define
class Slots:
    x: object


class Plain:
    def __init__(self, x):
        self.x = x


class OwnList(list):
    """Keeps its numbers beside its entries."""


class Dictionary(collections.UserDict):
    """As transformers.BatchEncoding is one."""


Named = collections.namedtuple("Named", "x")


def own_list(x):
    made = OwnList([1])
    made.x = x
    return made


def itself(x):
    made = Plain(x)
    made.itself = [made]
    return made


FORMS = {
    "a tensor": lambda x: torch.tensor(x),
    "nested": lambda x: torch.nested.nested_tensor([torch.tensor([x]), torch.ones(2)]),
    "conjugated": lambda x: torch.tensor([x + 1j]).conj(),
    "an array": lambda x: {"x": numpy.full((2, 3), x)},
    "turned": lambda x: numpy.asfortranarray(numpy.array([[x, 1], [2, 3]])),
    "a number of numpy": lambda x: numpy.float32(x),
    "an array of objects": lambda x: numpy.array([None, {"x": x}], dtype=object),
    "masked": lambda x: numpy.ma.array([1, 2], mask=[x == 1, False]),
    "a dataclass": lambda x: Data(1, torch.tensor(x)),
    "attrs": lambda x: Slots(numpy.array(x)),
    "an object": lambda x: [Plain(x)],
    "a namedtuple": lambda x: Named(Data(x)),
    "a UserDict": lambda x: Dictionary({"x": torch.tensor(x)}),
    "a namespace": lambda x: types.SimpleNamespace(x=x),
    "a deque": lambda x: collections.deque([x]),
    "a list of its own": own_list,
    "what holds itself": itself,
    "a set": lambda x: {x, 2.0, 4.0},
    "a view": lambda x: memoryview(bytes([int(x)])),
    "bytes": lambda x: bytearray([int(x)]),
    "a date": lambda x: datetime.date(2000, 1, int(x)),
    "a decimal": decimal.Decimal,
    "a range": lambda x: range(int(x)),
    "a key": lambda x: {x: 0},
    "a method": lambda x: Plain(x).__init__,
    "packed": lambda x: torch.nn.utils.rnn.pack_sequence([torch.tensor([x])]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_other_contents_have_another_digest(make):
    """What is made again has the same one."""
    first, unknown = batch_digest(make(1.0))
    assert unknown == []
    assert batch_digest(make(1.0)) == (first, [])
    assert batch_digest(make(5.0))[0] != first


def test_what_looks_alike_has_other_digests():
    """Types, shapes, nesting and classes count."""
    values = (
        torch.arange(6).view(2, 3).T,
        torch.arange(6).view(3, 2),
        torch.empty(0),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor([True]),
        {"a": torch.ones(1)},
        torch.ones(3).to_sparse(),
        [torch.ones(1), "x", None],
        *(numpy.arange(6, dtype=kind) for kind in ("<i4", ">i4", "<f4")),
        Data(1),
        Slots(1),
        Plain(1),
        Data,
        max,
        torch.float32,
    )
    assert len({batch_digest(value)[0] for value in values}) == len(values)
    assert batch_digest({8, 0}) == batch_digest({0, 8})  # which lie in another order


UNKNOWN = {
    "a lock": (lambda: Data(1, threading.Lock()), "batch.more (_thread.lock)"),
    "a generator": (lambda: {"x": [0, (x for x in ())]}, "batch['x'][1] (generator)"),
    "a function of nowhere": (lambda: Slots(lambda: 1), "batch.x (function)"),
    "a module": (lambda: types, "batch (module)"),
    "a tensor without data": (lambda: [torch.empty(1, device="meta")], "batch[0] (torch.Tensor)"),
    "in a set": (lambda: {Plain, lambda: 1}, "batch (function)"),
}


@pytest.mark.parametrize(("make", "name"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_has_no_digest_is_named(make, name):
    assert batch_digest(make())[1] == [name]


def test_a_batch_may_be_deep_or_hold_very_much(monkeypatch):
    """What lies too deep or comes too late is named, and the rest is known."""
    deep = [0]
    for _ in range(9000):
        deep = [deep]
    (name,) = batch_digest([deep])[1]
    assert name.startswith("batch[0][0][0]")
    monkeypatch.setattr(batch_digests, "MOST", 2)
    assert batch_digest([1.0, *(Plain(x) for x in range(3))])[1][0].endswith("Plain)")

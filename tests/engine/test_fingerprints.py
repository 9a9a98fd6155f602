"""What the state of an object is known by: changes at any depth, and only these, are seen."""

import collections
import functools
import io
import itertools
import random
import threading
import types

import numpy
import pytest
import torch
from torch import nn

from altcore.engine.fingerprints import MOST, fingerprint
from altcore.engine.hidden_state import changed_in


class Slots:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0


class Counting:
    def __init__(self):
        self.n = 0

    def __call__(self):
        self.n += 1


class Refusing(Counting):
    """What pickle cannot write."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def closure():
    n = 0

    def count():
        nonlocal n
        n += 1

    return count


def steps():
    yield from range(9)


def itself():
    held = types.SimpleNamespace(n=0)
    held.itself = held
    return held


def moved(of):
    """Return what changes an average as a loop may write it: past the tensor's version."""
    return lambda held: of(held).data.mul_(0.5)


def added(name):
    return lambda held: setattr(held, name, getattr(held, name) + 1)


def deep(held):
    held[0][0][0][0][0][0].append(1)


CHANGES = {
    "a module outside the model": (lambda: nn.Linear(2, 2), moved(lambda m: m.weight)),
    "modules in a list": (lambda: [nn.BatchNorm1d(2)], moved(lambda m: m[0].running_var)),
    "past the version": (lambda: torch.ones(3), moved(lambda x: x)),
    "bfloat16": (lambda: torch.ones(3).bfloat16(), moved(lambda x: x)),
    "a large tensor": (lambda: torch.ones(70_000), lambda x: x[69_999].zero_()),
    "sparse": (lambda: torch.eye(3).to_sparse(), lambda x: x.mul_(2)),
    "an array": (lambda: numpy.ones(3), lambda x: x.__setitem__(0, 2)),
    "a view of memory": (lambda: memoryview(bytearray(3)), lambda x: x.__setitem__(0, 2)),
    "bytes": (lambda: bytearray(1), lambda x: x.append(1)),
    "a callable object": (Counting, lambda x: x()),
    "slots": (Slots, added("n")),
    "what cannot be pickled": (Refusing, lambda x: x()),
    "a variable of a closure": (closure, lambda x: x()),
    "a default": (lambda: lambda x=[]: x, lambda x: x().append(1)),
    "a partial function": (lambda: functools.partial(print, []), lambda x: x.args[0].append(1)),
    "keys": (lambda: {1: 1}, lambda x: x.update({2: x.pop(1)})),
    "many levels": (lambda: [[[[[[[]]]]]]], deep),
    "what holds itself": (itself, added("n")),
    "a deque": (lambda: collections.deque([1]), lambda x: x.append(1)),
    "torch's generator": (torch.Generator, lambda x: torch.rand(1, generator=x)),
    "Python's generator": (random.Random, lambda x: x.random()),
    "numpy's generator": (lambda: numpy.random.default_rng(1), lambda x: x.random()),
    "a generator": (steps, next),
    "an iterator": (lambda: iter([1, 2]), next),
    "a counter": (itertools.count, next),
    "an iterator of unknown length": (lambda: itertools.cycle([1, 2]), next),
    "an open file": (lambda: io.StringIO("a\nb\n"), lambda x: x.readline()),
    "the end of much": (lambda: [bytes(2**20 + i) for i in range(9)], lambda x: x.append(1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    held = CHANGES[name][0]()
    before = fingerprint(held)
    if name != "an iterator of unknown length":  # it never says that it stayed
        assert fingerprint(held) == before
    CHANGES[name][1](held)
    assert fingerprint(held) != before
    assert fingerprint(held)


def test_what_is_the_same_is_known_by_the_same():
    """An object that is made again is no change, nor is what checkpoints have."""
    assert fingerprint([object()]) != fingerprint([None])
    for make in (lambda: [torch.ones(2)], lambda: Counting(), lambda: closure(), lambda: {"a": 1}):
        assert fingerprint(make()) == fingerprint(make())
    layer = nn.Linear(2, 2)
    own = {id(layer), layer.weight.untyped_storage().data_ptr()}
    held = [layer, layer.weight[0]]
    before = fingerprint(held, own)
    moved(lambda m: m.weight)(layer)
    assert fingerprint(held, own) == before != fingerprint(held[::-1], own)
    assert fingerprint(layer, own) == fingerprint(layer.weight, own) == ()


def test_parameters_may_be_looked_up_once():
    """They are in checkpoints, but another choice of them later is a change."""
    layer = nn.Linear(2, 2)
    own = {x.untyped_storage().data_ptr() for x in layer.parameters()}
    parameters = list(layer.parameters())
    for held in (parameters, {"a": parameters}, dict(layer.named_parameters())):
        before, now = {"x": fingerprint(None)}, {"x": fingerprint(held, own)}
        assert changed_in(before, now) == []
        assert changed_in({"x": fingerprint([])}, now) == ["x"]
    first, second = ({"x": fingerprint(parameters[:n], own)} for n in (1, 2))
    assert changed_in(first, second) == ["x"]
    assert changed_in(before, {"x": fingerprint([*parameters, 1], own)}) == ["x"]


def test_a_collection_may_hold_itself():
    """And lie as deep as pickle goes; each part is looked at once."""
    held = []
    held.append(held)
    before = fingerprint(held)
    assert before == fingerprint(held)
    held.append(1)
    assert fingerprint(held) != before
    deep = [0]
    for _ in range(90):
        deep = [deep]
    before = fingerprint(deep)
    assert before == fingerprint(deep) != fingerprint([deep])


def test_others_data_costs_little():
    """Not all of it is hashed."""
    data = [bytes(2**20) + i.to_bytes(1) for i in range(2 * MOST // 2**20)]
    before = fingerprint(data)
    data[-1] = b""
    assert fingerprint(data) == before

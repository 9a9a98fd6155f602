"""Random states: what is kept is what comes back."""

import random

import pytest
import torch

from altcore.engine import random_state, set_random_state

CPU = torch.device("cpu")


@pytest.fixture(params=["cuda", "xpu", "mps"])
def device(request):
    return torch.device(request.param, 1)


@pytest.fixture
def devices(device, monkeypatch):
    """Three devices, as far as their random states go."""
    states = [torch.tensor([i], dtype=torch.uint8) for i in range(3)]
    module = torch.get_device_module(device)
    monkeypatch.setattr(module, "device_count", lambda: len(states))
    monkeypatch.setattr(module, "get_rng_state", lambda i: states[i].clone())
    monkeypatch.setattr(module, "set_rng_state", lambda own, i: states.__setitem__(i, own))
    return states


def test_what_is_drawn_comes_again():
    state = random_state(CPU)
    drawn = [(torch.rand(2).tolist(), random.random()) for _ in range(2)]
    set_random_state(state, CPU)
    assert [(torch.rand(2).tolist(), random.random()) for _ in range(2)] == drawn


def test_every_device_is_kept(device, devices):
    """A model may be spread over devices, and draw on each."""
    state = random_state(device)
    for own in devices:
        own += 100
    set_random_state(state, device)
    assert [int(own) for own in devices] == [0, 1, 2]


def test_a_run_may_go_on_with_fewer_devices(device, devices):
    state = random_state(device)
    del devices[2]
    devices[0] += 100
    set_random_state(state, device)
    assert [int(own) for own in devices] == [0, 1]

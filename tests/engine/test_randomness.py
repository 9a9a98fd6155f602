"""Random states: what is kept is what comes back."""

import random

import pytest
import torch

from altcore.engine import random_state, set_random_state

CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture
def devices(monkeypatch):
    """Three CUDA devices, as far as their random states go."""
    states = [torch.tensor([i], dtype=torch.uint8) for i in range(3)]
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(cuda, "get_rng_state_all", lambda: [s.clone() for s in states])
    monkeypatch.setattr(cuda, "set_rng_state", lambda own, i: states.__setitem__(i, own))
    return states


def test_what_is_drawn_comes_again():
    state = random_state(CPU)
    drawn = [(torch.rand(2).tolist(), random.random()) for _ in range(2)]
    set_random_state(state, CPU)
    assert [(torch.rand(2).tolist(), random.random()) for _ in range(2)] == drawn


def test_every_cuda_device_is_kept(devices):
    """A model may be spread over devices, and draw on each."""
    state = random_state(CUDA)
    for own in devices:
        own += 100
    set_random_state(state, CUDA)
    assert [int(own) for own in devices] == [0, 1, 2]


def test_a_run_may_go_on_with_fewer_devices(devices):
    state = random_state(CUDA)
    del devices[2]
    devices[0] += 100
    set_random_state(state, CUDA)
    assert [int(own) for own in devices] == [0, 1]

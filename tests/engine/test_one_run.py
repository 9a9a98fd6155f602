"""A process trains one run at a time: its threads share random states and flags."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from helpers import events, metrics_bytes, weights_sha256
from helpers_crashes import forked

import altcore
from altcore.engine import only_run
from altcore.errors import BadInput


def coins(split, step, micro):
    """Return tokens that nobody can predict: 0 or 1, in three sequences of 8."""
    key = 1000 * step + (split == "val")
    tokens = torch.randint(2, (3, 9), generator=torch.Generator().manual_seed(key))
    return tokens[:, :-1], tokens[:, 1:]


def test_a_second_run_in_another_thread_is_refused(start):
    """The first one goes on as if it were alone, and says that it hears no signals."""
    refused = []

    def train(name, data=coins):
        return altcore.train(start.config(name=name, gpt__dropout=0.3), data=data)

    def data(split, step, micro):
        if (split, step) == ("train", 2):
            refused.append(threads.submit(train, "other").exception())
        return coins(split, step, micro)

    alone = train("alone").run_directory
    with ThreadPoolExecutor() as threads:
        run = threads.submit(train, "r", data).result().run_directory
    assert [type(error) for error in refused] == [BadInput]
    assert "another thread of this process trains a run" in str(refused[0])
    assert not (start.runs / "other").exists()
    assert weights_sha256(run) == weights_sha256(alone)
    assert metrics_bytes(run) == metrics_bytes(alone)
    deaf = [[e for e in events(r, "warning") if "no signals" in e["message"]] for r in (alone, run)]
    assert list(map(len, deaf)) == [0, 1]


def test_a_run_within_anothers_data_changes_nothing_of_it(start):
    """As a function of data may train what makes the data; they share the random states."""

    def data(split, step, micro):
        if (split, step) == ("train", 2):
            altcore.train(start.config(name="inner", seed=7, gpt__dropout=0.3), data=coins)
        return coins(split, step, micro)

    config = partial(start.config, gpt__dropout=0.3, recipe="pure")
    alone = altcore.train(config(name="alone"), data=coins).run_directory
    run = altcore.train(config(name="r"), data=data).run_directory
    assert weights_sha256(run) == weights_sha256(alone)
    assert metrics_bytes(run) == metrics_bytes(alone)


def test_a_thread_may_train_within_its_own_run_and_a_child_for_itself():
    """A hook may train another run; a forked child has none of the parent's threads."""
    begun, done = threading.Event(), threading.Event()

    def hold():
        with only_run(), only_run():
            begun.set()
            done.wait()

    def act():
        with only_run():
            pass

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    try:
        with pytest.raises(BadInput, match="another thread"):
            act()
        assert forked(act) == 0
    finally:
        done.set()
        thread.join()
    act()

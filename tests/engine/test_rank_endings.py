"""How the ranks of a run end: what one of them alone meets there counts for all."""

import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from attrs import define
from helpers import PluginShelf, Starter, events
from helpers_distributed import by_torchrun

from altcore import hookimpl, setting
from altcore.errors import LostRank, PluginError
from altcore.runs import summary_of


@define(eq=False)
class Acting:
    """Does something as the run ends."""

    what: str = setting("", help="what it does")

    @hookimpl
    def run_end(self, run, summary):
        if self.what == f"fails on {run.rank}":
            raise ValueError("planted")
        if self.what == "hangs" and run.rank == 1:
            torch.distributed.barrier()
        if self.what == "slow" and run.rank == 0:
            time.sleep(4)


@define(eq=False)
class Looking(Acting):
    """The same, as a diagnostic."""


def ended(rank, folder, corpus):
    site = Path(tempfile.mkdtemp(dir=folder))
    sys.path.insert(0, str(site))
    shelf = PluginShelf(site, pytest.MonkeyPatch())
    shelf.install("intervention", "acting", Acting)
    shelf.install("diagnostic", "looking", Looking)
    start = Starter(folder / "runs", corpus)

    def engine(plugin, what, **keys):
        keys[f"{plugin}__what"] = what
        return start.engine([plugin], name=what.replace(" ", "-"), max_steps=1, **keys)

    failed = "acting .*failed in run_end: "
    for who in (0, 1):
        planted = f"{failed}ValueError: planted"
        told = planted if rank == who else f"^rank {who} failed: PluginError: .*{planted}"
        one = engine("acting", f"fails on {who}")
        with pytest.raises(PluginError if rank == who else LostRank, match=told):
            one.train()
        if rank == 0:
            summary = summary_of(one.run.directory)
            assert summary["status"] == "failed"
            assert "acting" in summary["error"]

    # A reporter that takes longer than the other rank waits spoils nothing that is done.
    slow = engine("acting", "slow", rank_timeout=2)
    assert slow.train()["status"] == "finished"

    broken = engine("looking", "fails on 1", runs_dir=str(folder / "others"))
    assert broken.train()["degraded"] == ["looking"]
    if rank == 0:
        assert summary_of(broken.run.directory)["degraded"] == ["looking"]
        (event,) = events(broken.run.directory, "degraded")
        assert event["message"].startswith("on rank 1 diagnostic looking (")

    hanging = engine("acting", "hangs", rank_timeout=2)
    with pytest.raises((PluginError, LostRank), match=failed):
        hanging.train()
    if rank == 0:
        assert summary_of(hanging.run.directory)["status"] == "failed"


@pytest.mark.slow
def test_what_one_rank_meets_as_the_run_ends_counts_for_all(tmp_path, corpus):
    """A summary says finished if all did."""
    by_torchrun(ended, tmp_path, corpus)

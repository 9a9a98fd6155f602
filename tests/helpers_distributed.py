"""What tests of several processes share: two ranks, a model, and what they compare.

Ranks meet over gloo on the loopback interface. What must hold is asserted in them.
"""

import multiprocessing
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

# Ranks are forks of a process that has imported what takes long.
multiprocessing.set_forkserver_preload(
    ["pytest", "altcore.engine", "altcore_workloads.gpt", "torch.distributed.fsdp", "torch._dynamo"]
)


def in_ranks(folder, function, *args):
    """Call a function in two processes, with their rank before its own arguments."""
    torch.multiprocessing.start_processes(
        _in_rank, (str(folder), function, args), nprocs=2, start_method="forkserver"
    )


def _in_rank(rank, folder, function, args):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    join(rank, f"{folder}/{function.__name__}")
    function(rank, *args)
    dist.destroy_process_group()


def torchruns_store():
    """Return a store as torchrun's agent keeps one: it outlives the ranks."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def by_torchrun(function, *args, codes=(0, 0), store=None, restarts=0):
    """Call a function in two processes that find each other as torchrun's do.

    ``codes`` are the exit codes that the processes must have; minus the number of the signal that
    killed one. torchrun gives the ones that it starts anew the same ``store``, and the number of
    ``restarts``.
    """
    store = store or torchruns_store()
    context = multiprocessing.get_context("forkserver")
    given = (len(codes), store.port, restarts, function, args)
    ranks = [context.Process(target=_by_torchrun, args=(i, *given)) for i in range(len(codes))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        rank.kill()
        rank.join()
    ended = tuple(rank.exitcode for rank in ranks)
    assert ended == codes


def _by_torchrun(rank, ranks, port, restarts, function, args):
    torch.set_num_threads(1)
    os.environ |= {
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "GROUP_WORLD_SIZE": "1",
    }
    function(rank, *args)


def join(rank, path):
    """Meet the other rank."""
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{path}", limit, world_size=2, rank=rank)


class Own(nn.Module):
    """A product that no layer of torch's makes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 6) / 3)

    def forward(self, x):
        return torch.einsum("bi,oi->bo", x, self.table)


class Net(nn.Module):
    """An embedding, two Linears and what is none, and a branch that may be left out."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 6)
        self.first, self.own = nn.Linear(6, 6), Own()
        self.branch = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids, branch=True):
        x = self.own(torch.tanh(self.first(self.embed(ids))))
        return self.head(self.branch(x) if branch else x)


def loss_of(model, rank, step, **given):
    """The loss of a rank's samples of a step."""
    draw = torch.Generator().manual_seed(10 * step + rank)
    ids, targets = (torch.randint(n, (6,), generator=draw) for n in (11, 5))
    return nn.functional.cross_entropy(model(ids, **given), targets)


def gathered(x):
    """A tensor of each rank."""
    x = x.detach().contiguous()
    both = [torch.empty_like(x) for _ in range(2)]
    dist.all_gather(both, x)
    return both

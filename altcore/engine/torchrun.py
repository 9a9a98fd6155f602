"""The ranks of a run that torchrun started in several processes, and how they talk."""

from __future__ import annotations

import itertools
import os
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from altcore.engine import lost_ranks
from altcore.engine.buffer_forms import BufferForms, forms_of
from altcore.engine.losses import check_same_measures, means
from altcore.engine.randomness import seed_all
from altcore.engine.ranks import Ranks
from altcore.engine.sending import as_bytes, put_bytes
from altcore.engine.shares import Drawn, check_drawn, share_of
from altcore.errors import AltcoreError, BadInput, Interrupted, LostRank, shown
from altcore.hook_clock import timing
from altcore.hooks import Action, Proposal
from altcore.log import log
from altcore.quantization import Quantization, amax_histories, random_key, share_amax
from altcore.signals import not_waiting

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds after which a process that waits for the others says so."""

PLACES = 64
"""Loss and measures in one message, padded: a rank with another number of them finds out, where
messages of two lengths would abort a process, or never arrive."""

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which torchrun tells a process of the others."""


_NUMBERS = itertools.count()
"""Of the runs that this process takes part in: a script may make several, and torch leaves the
addresses of a process group in the store."""


def _attempt() -> str:
    """Return how often torchrun began anew, with a store that may have the addresses of the dead.

    Of several machines each counts its own.
    """
    is_one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_one_machine else "0"


@contextmanager
def _told_while_waiting() -> Iterator[None]:
    """Say for whom this process waits, if they do not come soon: torch waits for half an hour."""
    rank, size, *_, address, port = (os.environ[name] for name in TORCHRUN)
    told = f"rank {rank} of {size} waits for the others at {address}:{port}"
    hint = "start all of them with torchrun; for one process unset RANK and WORLD_SIZE"
    timer = threading.Timer(PATIENCE, log.warning, (told,), {"hint": hint})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class TorchrunRanks(Ranks):
    """One of several processes."""

    def __init__(self, device: str, timeout: float | None = None) -> None:
        missing = [name for name in TORCHRUN if name not in os.environ]
        if missing:
            raise BadInput(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {missing[0]} is not set")
        self.store: Store | None = None
        self.is_own_group = not dist.is_initialized()
        if self.is_own_group:
            own = torch.device(self.device(device))
            # A device that is not here is refused later, by name.
            is_cuda = own.type == "cuda" and (own.index or 0) < torch.cuda.device_count()
            if is_cuda:
                torch.cuda.set_device(own)
            backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
            with not_waiting(), _told_while_waiting(), self.lost_named():
                common, self.rank, self.world_size = next(iter(rendezvous("env://")))
                self.store = PrefixStore(f"altcore/{_attempt()}/{next(_NUMBERS)}", common)
                lost_ranks.tell_process(self.store, self.rank)
                limit = None if timeout is None else timedelta(seconds=timeout)
                known: Mapping[str, Any] = {"rank": self.rank, "world_size": self.world_size}
                dist.init_process_group(backend, timeout=limit, store=self.store, **known)
        else:
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.parallel: DistributedDataParallel | None = None
        self.drawn: list[Drawn] = []
        """The micro-batches that the ranks did not compare yet."""
        self.measures: list[str] = []
        """The names of the last step's loss and measures, in the order in which they are sent."""
        self.forms: BufferForms
        self.have_more = 0
        """How many ranks have measures that the last message had no place for, if this one has."""
        self.met_nonfinite: Tensor
        """Whether this rank's loss or quantizers did in the step, before all have the sums."""

    def device(self, name: str) -> str:
        """Return ``cuda:LOCAL_RANK`` for ``cuda``."""
        if name.startswith("cuda:"):
            raise BadInput(
                f"{name} is one device, and there are several processes",
                key="device",
                hint="cuda gives each process the device of its LOCAL_RANK",
            )
        is_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return f"cuda:{os.environ['LOCAL_RANK']}" if is_cuda else "cpu"

    def follow(self, model: nn.Module) -> None:
        """Take rank 0's weights, and let torch's DDP average gradients.

        Only its reducer is used: the model itself is called, by whatever methods a workload likes,
        and may be run and differentiated in a probe before the backward pass.
        """
        with self.message():
            self.parallel = DistributedDataParallel(
                model, find_unused_parameters=True, init_sync=False
            )
            for name, x in (*model.named_parameters(), *model.named_buffers()):
                _take({name: x})
        self.forms = BufferForms(forms_of(dict(model.named_buffers())))

    def seed(self, seed: int) -> None:
        """Seed the ranks but the first by a number of their own."""
        if self.rank:
            seed_all(random_key(seed, 0, 0, f"rank {self.rank}"))

    def share(self, workload: Any, batch: Any) -> Any:
        """Return this rank's items of a micro-batch, or what the workload's ``shard`` returns."""
        own = getattr(workload, "shard", None)
        if own is not None:
            return own(batch, self.rank, self.world_size)
        share = share_of(batch, self.rank, self.world_size)
        self.drawn.append(Drawn.of(batch))
        return share

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Let DDP's reducer see the backward pass of the last micro-batch."""
        assert self.parallel is not None
        if not is_last:
            super().backward(loss, is_last=False)
            return
        reducer = self.parallel.reducer

        def begin(_: Tensor) -> None:
            reducer._rebuild_buckets()
            reducer.prepare_for_backward([loss])

        # Within the pass, where torch makes Python's of its warnings: a model may have parameters
        # that some step does not use, and DDP complains if there are none.
        with self.lost_named(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="find_unused_parameters=True")
            handle = loss.register_hook(begin)
            super().backward(loss, is_last=True)
            handle.remove()
            self._share_buffers(self.parallel.module)

    def _share_buffers(self, model: nn.Module) -> None:
        """Take rank 0's buffers, such as the running means of a batch norm."""
        buffers = dict(model.named_buffers())
        if self.store is not None:
            self.forms.check(buffers, self.store, self.rank, self.world_size)
        alike: dict[Any, dict[str, Tensor]] = {}
        for name, buffer in buffers.items():
            alike.setdefault((buffer.dtype, buffer.device), {})[name] = buffer
        for own in alike.values():
            _take(own)

    def average(
        self,
        losses: Sequence[dict[str, Tensor]],
        items: Sequence[int],
        quantization: Quantization,
    ) -> dict[str, Tensor]:
        """Sum over the ranks, in one message unless measures are many; weights count once."""
        own, counters = means(losses, items), quantization.counters
        self.met_nonfinite = ~torch.isfinite(own["loss"]) | (counters.nonfinite() > 0)
        # Each rank may have them in an order of its own.
        self.measures = names = ["loss", *sorted(own.keys() - {"loss"})]
        # Measures may be on the CPU while the loss is on a GPU.
        flat = [own[name].double().to(own["loss"].device) for name in names]
        values = torch.stack(flat) / self.world_size
        first, *others = nn.functional.pad(values, (0, -len(values) % PLACES)).split(PLACES)
        parts = [counters.counts.double(), counters.errors]
        for counted in parts if self.rank else ():
            counted[counters.of_weights] = 0
        first, counts, errors = self._sum(first, *parts, has_more=bool(others))
        counters.counts.copy_(counts)
        counters.errors.copy_(errors)
        summed = [first]
        for number, places in enumerate(others, 1):
            if self.have_more < self.world_size:
                break  # with other names on some rank, by which the step fails
            summed += self._sum(places, has_more=number < len(others))
        found = dict(zip(names, torch.cat(summed), strict=False))
        return {name: found.get(name, value).to(value.dtype) for name, value in own.items()}

    def _sum(self, *parts: Tensor, has_more: bool) -> list[Tensor]:
        """Sum over the ranks, in one message, and with it how many ranks have another to send."""
        total = torch.cat([*(part.flatten() for part in parts), parts[0].new_full((1,), has_more)])
        with self.message():
            dist.all_reduce(total)
        *summed, more = total.split([*(part.numel() for part in parts), 1])
        if has_more:  # the number costs a wait for the device, which the others need not have
            self.have_more = int(more)
        return [own.view_as(part) for own, part in zip(summed, parts, strict=True)]

    def agree(
        self, proposals: int, signal: int, norm: Tensor, quantization: Quantization
    ) -> dict[str, Any]:
        """Take the largest number of any rank, in one message."""
        norm = norm.detach().double()
        is_bad, norm = (~torch.isfinite(norm)).double(), norm.nan_to_num()
        checksums = [torch.as_tensor(drawn.checksum).to(norm) for drawn in self.drawn]
        names = zlib.crc32(repr(self.measures).encode())
        numbers = norm.new_tensor([proposals, signal, names])
        same = torch.stack([numbers[2], norm, *checksums])
        # The largest is that of the first rank.
        bad_ranks = self.met_nonfinite.double() * (self.world_size - self.rank)
        own = [numbers[:2], is_bad[None], bad_ranks[None]]
        said = torch.cat([*own, same, -same])
        histories = amax_histories(quantization)
        largest = torch.cat([said, *histories])
        with self.message():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        said, *shared = largest.split([len(said), *map(len, histories)])
        for history, part in zip(histories, shared, strict=True):
            history.copy_(part)
        # A largest number and a largest negative that are not opposite are of two ranks.
        apart = said[4:].view(2, -1).sum(0)
        keys = ("proposals", "signal", "is_bad", "bad_ranks")
        others = ("other_measures", "other_gradients", "other_batches")
        found = (*said[:4], apart[0], apart[1], apart[2:].sum())
        return dict(zip((*keys, *others), found, strict=True))

    def check_step(self, who: str, host: Mapping[str, Any]) -> None:
        """Compare, and forget the step's micro-batches."""
        super().check_step(who, host)
        self.drawn.clear()

    def check_batches(self) -> None:
        """Gather what each rank drew."""
        own = [str(drawn) for drawn in self.drawn]
        self.drawn.clear()
        check_drawn(self.gather(own))

    def check_measures(self, who: str) -> None:
        """Gather the names of each rank's."""
        check_same_measures(who, self.gather(self.measures))

    def everybodys(self, proposals: list[Proposal]) -> list[Proposal]:
        """Gather them, by rank. Reasons may tell of a rank's own numbers, and do not count."""
        found: list[Proposal] = []
        seen: list[tuple[str, Action]] = []
        for proposal in itertools.chain.from_iterable(self.gather(proposals)):
            key = proposal.plugin, attrs.evolve(proposal.action, reason="any")
            if key not in seen:
                seen.append(key)
                found.append(proposal)
        return found

    def gather(self, own: T) -> list[T]:
        """Pickle, and unpickle what the others have."""
        found: list[Any] = [None] * self.world_size
        with self.message():
            dist.all_gather_object(found, own)
        return found

    def ends(
        self, error: str | None, broken: Mapping[str, str]
    ) -> tuple[list[str], list[Mapping[str, str]]]:
        """Gather them, or read them in the store: the others may be gone before rank 0 is."""
        if self.store is None:
            return super().ends(error, broken)
        lost_ranks.tell_end(self.store, self.rank, error)
        try:
            return super().ends(error, broken)
        except LostRank as lost:
            if self.rank:  # rank 0 writes how the run ended
                return [], [broken]
            known = (self.store, self.rank, self.world_size)
            told = lost_ranks.told_errors(*known) or lost_ranks.told_ends(*known, lost)
            return told, [broken]

    def check_replicas(self, model: nn.Module) -> None:
        """Compare the sum of each weight's and each buffer's bits."""
        weights = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
        buffers = dict(model.named_buffers(remove_duplicate=False))
        held = {f"weight {k}": v for k, v in weights.items() if k not in buffers}
        held |= {f"buffer {name}": value for name, value in buffers.items()}
        sums = [as_bytes(name, x).long().sum() for name, x in held.items()]
        own = dict(zip(held, torch.stack(sums).tolist() if sums else [], strict=True))
        for rank, other in enumerate(self.gather(own)):
            if other != own:
                name = next(n for n in (*own, *other) if own.get(n) != other.get(n))
                ranks = f"rank {self.rank} and rank {rank}"
                cause = "whatever changes gradients, weights or buffers must do the same on each"
                raise AltcoreError(
                    f"the replicas differ: {name} is not the same on {ranks}"
                    + self.why(f"{cause} rank")
                )

    def share_amax(self, quantization: Quantization) -> None:
        """Send each amax to the others, in one message a tensor."""

        def largest(amax: Tensor) -> Tensor:
            shared = amax.clone()
            with self.message():
                dist.all_reduce(shared, dist.ReduceOp.MAX)
            return shared

        share_amax(quantization, largest)

    @contextmanager
    def message(self) -> Iterator[None]:
        """Let the clock that watches report a message for which this rank waits too long."""
        with timing(f"rank {self.rank}", "a message to the other ranks"), self.lost_named():
            yield

    @contextmanager
    def lost_named(self) -> Iterator[None]:
        """Name the rank that is gone if a message fails, and its error if it told it."""
        try:
            yield
        except RuntimeError as error:
            if not lost_ranks.is_of_messages(error):
                raise
            known = (self.store, self.rank, self.world_size)
            raise lost_ranks.lost_rank_named(*known, error) from None  # all of use is in it

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Wait until rank 0 has written everything, and end a process group of the run's own."""
        if error is None or isinstance(error, Interrupted):  # on which all agreed
            with suppress(LostRank):  # too late to matter
                self.gather(None)
        self._leave(error)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Keep an error in the store, and close the connections for which the others wait."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Interrupted):
                self._leave(error)
            raise

    def _leave(self, error: BaseException | None) -> None:
        if error is not None and self.store:
            lost_ranks.tell_error(self.store, self.rank, error)
        self.parallel = None  # it holds the connections, too
        if self.is_own_group and dist.is_initialized():
            dist.destroy_process_group()


def _take(own: Mapping[str, Tensor]) -> None:
    """Let tensors of one type and device be as they are on rank 0, in one message."""
    sent = [as_bytes(name, x) for name, x in own.items()]
    flat = torch.cat(sent)
    dist.broadcast(flat, 0)
    for x, part in zip(own.values(), flat.split([len(own) for own in sent]), strict=True):
        put_bytes(x, part)


def world_size() -> int:
    """Return how many processes torchrun started, this one included."""
    said = os.environ.get("WORLD_SIZE", "1")
    if not said.isdecimal():
        raise BadInput(f"the environment variable WORLD_SIZE is {shown(said)}, not a number")
    return int(said) if dist.is_available() else 1


def join(device: str, timeout: float | None = None) -> Ranks:
    """Join the other processes that torchrun started, if there are any.

    ``timeout`` is for how many seconds one waits for the others; by default as long as torch does.
    """
    return TorchrunRanks(device, timeout) if world_size() > 1 else Ranks()

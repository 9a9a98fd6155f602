"""The processes that train one run together, as torchrun starts them; usually there is one.

Every rank has the whole model and makes every step, on its share of each micro-batch. Whatever
decides how the run goes on is agreed before anyone acts on it, so that the replicas stay equal:

- gradients are averaged inside the backward pass of a step's last micro-batch;
- then one sum a step makes the losses' mean, and the counts of all ranks;
- before the step's host read, one maximum a step says whether any rank met something that is not
  finite, has a proposal, or was sent a signal; delayed scales share it;
- only if it does, proposals are gathered. `arbitrate` is a pure function: all find one verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from altcore.engine.losses import means
from altcore.errors import AltcoreError, BadInput
from altcore.hooks import Proposal
from altcore.quantization import Quantization

T = TypeVar("T")


class Ranks:
    """A process that trains alone: nothing is sent, and nothing is read."""

    rank = 0
    world_size = 1
    unlike = ""
    """What may make the bits of the ranks differ, as another CPU does; empty if nothing does."""

    def device(self, name: str) -> str:
        """Return the device of this process, by the configuration's name."""
        return name

    def follow(self, model: nn.Module) -> None:
        """Take the model's weights from rank 0, and its gradients from all ranks from now on."""

    def seed(self, seed: int) -> None:
        """Give this rank random numbers of its own, for samples that are its own."""

    def share(self, workload: Any, batch: Any) -> Any:
        """Return this rank's share of a micro-batch."""
        return batch

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Run the backward pass; in that of a step's last micro-batch gradients are averaged."""
        loss.backward()

    def average(
        self,
        losses: Sequence[dict[str, Tensor]],
        items: Sequence[int],
        quantization: Quantization,
    ) -> dict[str, Tensor]:
        """Return the means of loss and measures, by name, and let counts be those of all ranks.

        ``losses`` has them for each micro-batch, and ``items`` how many items that has.
        """
        return means(losses, items)

    def agree(
        self, proposals: int, signal: int, norm: Tensor, quantization: Quantization
    ) -> dict[str, Any]:
        """Return what any rank has to say, for the step's host read: numbers, or 0-dim tensors.

        ``bad_ranks`` counts the ranks from the first that met what is not finite; 0 if none did.

        Args:
            proposals: how many this rank's interventions made.
            signal: the number of the signal that asked it to leave, or 0.
            norm: of the final gradients, 0-dim. Gradients are the same on all ranks.
            quantization: its delayed scales are from now on those of all ranks.
        """
        others = ("other_measures", "other_gradients", "other_batches")
        nothing = dict.fromkeys(("is_bad", "bad_ranks", *others), 0)
        return {"proposals": proposals, "signal": signal, **nothing}

    def check_step(self, who: str, host: Mapping[str, Any]) -> None:
        """Raise `AltcoreError` if ranks have other gradients, batches or measures.

        Args:
            who: gave the loss and its measures, for errors.
            host: what `agree` returned, as the step's host read found it.
        """
        if host["other_batches"]:
            self.check_batches()
        if host["other_measures"]:
            self.check_measures(who)
        if host["other_gradients"]:
            raise AltcoreError(
                "the final gradients differ between the ranks"
                + self.why(
                    "an intervention that changes the loss, its scale or gradients must do the "
                    "same on each rank"
                )
            )

    def why(self, otherwise: str) -> str:
        """Return the likely cause if ranks differ, for an error."""
        unlike = f", probably because they are not alike: {self.unlike}"
        return unlike if self.unlike else f"; {otherwise}"

    def everybodys(self, proposals: list[Proposal]) -> list[Proposal]:
        """Return the proposals of all ranks; the same by one plugin on several ranks is one."""
        return proposals

    def gather(self, own: T) -> list[T]:
        """Return what each rank has, by rank: picklable."""
        return [own]

    def ends(
        self, error: str | None, broken: Mapping[str, str]
    ) -> tuple[list[str], list[Mapping[str, str]]]:
        """Return the errors with which other ranks end, and by rank what plugins it disabled."""
        found = self.gather((error, broken))
        failed = [(rank, e) for rank, (e, _) in enumerate(found) if e and rank != self.rank]
        return [f"rank {rank} failed: {e}" for rank, e in failed], [own for _, own in found]

    def check_same(self, what: str, own: Any) -> None:
        """Raise `BadInput` unless all ranks have the same."""
        for rank, other in enumerate(self.gather(own)):
            if other != own:
                raise BadInput(f"rank {self.rank} has {what} {own!r}, and rank {rank} {other!r}")

    def check_batches(self) -> None:
        """Raise `AltcoreError` unless all ranks drew the same micro-batches since it was asked."""

    def check_measures(self, who: str) -> None:
        """Raise `PluginError` unless the step's loss has the same measures on all ranks."""

    def check_replicas(self, model: nn.Module) -> None:
        """Raise `AltcoreError` unless all ranks have the same weights."""

    def share_amax(self, quantization: Quantization) -> None:
        """Let activations and gradients be scaled by their amax over all ranks."""

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Leave the other ranks: together, or at once if it is for an error."""

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the other ranks of an error at once: they wait for this one."""
        yield

"""The reporter ``tensorboard``: event files that TensorBoard shows, without a server of its own."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import attrs
from attrs import field

from altcore.plugin import RunRecord
from altcore_reporters.tracked import lines_of

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary


@attrs.define(eq=False)
class TensorBoardTracker:
    """Writes reports/tensorboard: scalars, histograms of lists, and texts.

    ``tensorboard --logdir runs`` shows all runs.
    """

    file: IO[bytes] | None = field(init=False, default=None)
    """The event file, open for appending."""

    def start(self, record: RunRecord) -> None:
        """Write what is recorded so far, unless that is what the event file has."""
        assert record.directory is not None
        folder = record.directory / "reports" / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(record.config, indent=1, default=str)
        wanted = [*opening(), event(0, [text("config", f"```\n{config}\n```")])]
        wanted += [event(step, summaries(values), when) for step, values, when in lines_of(record)]
        found = sorted(folder.glob("*tfevents*"))
        if len(found) != 1 or not holds(found[0], wanted):
            # TensorBoard goes on with the file whose name is last.
            new = folder / f"events.out.tfevents.{time.time_ns()}"
            part = folder / "part"
            part.write_bytes(b"".join(map(framed, wanted)))
            part.replace(new)
            for path in found:
                path.unlink()
            found = [new]
        self.file = found[0].open("ab")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the values of a step."""
        self._append(event(step, summaries(values)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()

    def _append(self, entry: Event) -> None:
        assert self.file is not None
        self.file.write(framed(entry))
        self.file.flush()


# What an event file holds ------------------------------------------------------------------


def opening() -> list[Event]:
    """Return the events that a file begins with.

    The second makes a TensorBoard that is open forget what it read in an earlier file.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    start = SessionLog(status=SessionLog.START)
    return [Event(file_version="brain.Event:2"), Event(step=0, session_log=start)]


def event(step: int, values: Iterable[Summary.Value], when: float | None = None) -> Event:
    """Return the event that holds a step's values."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    seconds = time.time() if when is None else when
    return Event(step=step, wall_time=seconds, summary=Summary(value=values))


def summaries(values: Mapping[str, Any]) -> Iterator[Summary.Value]:
    """Yield a scalar for each number, a histogram for each list, a text for each word."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    for tag, value in values.items():
        if isinstance(value, str):
            yield text(tag, value)
        elif not isinstance(value, list):
            yield Summary.Value(tag=tag, simple_value=value)
        elif all(0 <= number < math.inf for number in value):
            yield Summary.Value(tag=tag, histo=histogram(value))
        else:  # no heights of bars
            yield from summaries({f"{tag}/{i}": number for i, number in enumerate(value)})


def histogram(heights: Sequence[float]) -> HistogramProto:
    """Return a histogram with a bar of these heights over 0 to 1, 1 to 2, and so on."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    middles = [i + 0.5 for i in range(len(heights))]
    return HistogramProto(
        min=0,
        max=len(heights),
        num=sum(heights),
        sum=sum(h * x for h, x in zip(heights, middles, strict=True)),
        sum_squares=sum(h * x**2 for h, x in zip(heights, middles, strict=True)),
        bucket_limit=[0, *range(1, len(heights) + 1)],
        bucket=[0, *heights],
    )


def text(tag: str, words: str) -> Summary.Value:
    """Return a text, which TensorBoard reads as Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype="DT_STRING", string_val=[words.encode()], tensor_shape=shape)
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)


# Its bytes ---------------------------------------------------------------------------------


FRAME = 16
"""Bytes around an event: its length, and a checksum of this and of its bytes."""


def framed(entry: Event) -> bytes:
    """Return an event as it lies in a file."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    data = entry.SerializeToString()
    size = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (size, data)]
    return size + sums[0] + data + sums[1]


def holds(path: Path, wanted: Sequence[Event]) -> bool:
    """Whether a file holds these events and nothing else, whatever their times."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    def timeless(entry: Event) -> Event:
        entry.ClearField("wall_time")
        return entry

    found = list(RawEventFileLoader(str(path)).Load())
    is_whole = sum(len(data) + FRAME for data in found) == path.stat().st_size
    copies = (entry.SerializeToString() for entry in wanted)
    first, second = ([timeless(Event.FromString(d)) for d in some] for some in (found, copies))
    return is_whole and first == second

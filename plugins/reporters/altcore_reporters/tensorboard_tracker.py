"""The reporter ``tensorboard``: event files that TensorBoard shows, without a server of its own."""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

import attrs
from attrs import field

from altcore.plugin import RunRecord
from altcore_reporters.extras import check_installed
from altcore_reporters.tracking import TrackerReporter

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary


@attrs.define(eq=False)
class TensorBoardTracker(TrackerReporter):
    """Writes reports/tensorboard: scalars, histograms of lists, and texts.

    ``tensorboard --logdir runs`` shows all runs.
    """

    file: IO[bytes] | None = field(init=False, default=None)
    when: float = field(init=False, default=0.0)
    """The time of the last row, at first that of the run's beginning."""

    def __attrs_post_init__(self) -> None:
        check_installed("tensorboard")

    def start(self, record: RunRecord) -> None:
        """Begin an event file in the place of those that are there."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder = self.folder(record)
        self.address = str(folder)
        self.when = datetime.fromisoformat(record.environment["started"]).timestamp()
        earlier = sorted(folder.glob("*tfevents*"))
        # An open TensorBoard goes on with the file whose name is last...
        self.file = (folder / f"events.out.tfevents.{time.time_ns()}").open("wb")
        self._write(Event(file_version="brain.Event:2"))
        # ... and this makes it forget what it has read.
        self._write(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        self._write_text(0, "config", as_code(record.config))
        for path in earlier:
            if path.stat().st_size:
                # It may be open in a TensorBoard, which never gets over a file that is gone.
                os.truncate(path, 0)
            else:
                path.unlink()

    def log(self, step: int, values: Mapping[str, Any], when: float) -> None:
        """Write the values of a step."""
        self.when = when
        self._write_values(step, summaries(values))

    def event(self, step: int, event: Mapping[str, Any]) -> None:
        """Write an event as a text."""
        told = {k: v for k, v in event.items() if k not in ("step", "event")}
        self._write_text(step, f"events/{event['event']}", as_code(told))

    def finish(self, record: RunRecord) -> None:
        """Write the summary, as a text."""
        self._write_text(record.summary["steps"], "summary", as_code(record.summary))
        assert self.file is not None
        self.file.close()

    def holds(self, record: RunRecord) -> bool:
        """Whether nobody removed the event file."""
        return any(path.stat().st_size for path in self.folder(record).glob("*tfevents*"))

    def _write_text(self, step: int, tag: str, words: str) -> None:
        self._write_values(step, [text(tag, words)])

    def _write_values(self, step: int, values: Iterable[Summary.Value]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        assert self.file is not None
        event.wall_time = self.when
        self.file.write(framed(event.SerializeToString()))
        self.file.flush()


def framed(data: bytes) -> bytes:
    """Return a record of an event file: the length, the bytes, and a checksum of each."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    size = struct.pack("<Q", len(data))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (size, data))


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
    """Return a histogram with bars of these heights over 0 to 1, 1 to 2, and so on."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    middles = [i + 0.5 for i in range(len(heights))]
    return HistogramProto(
        min=0,
        max=len(heights),
        num=sum(heights),
        sum=sum(h * x for h, x in zip(heights, middles, strict=True)),
        sum_squares=sum(h * x**2 for h, x in zip(heights, middles, strict=True)),
        bucket_limit=range(len(heights) + 1),
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


def as_code(values: Mapping[str, Any]) -> str:
    """Return values as Markdown that is shown as it is."""
    lines = json.dumps(dict(values), indent=1, default=str).splitlines()
    return "".join(f"    {line}\n" for line in lines)

"""Results on their way to the host, while the devices compute what comes next.

    tensor on a GPU --a stream of its own--> pinned memory --wait for the event--> numbers

On the stream that computes, a copy would hold up the batch that is queued behind it.
"""

from __future__ import annotations

import torch


class HostCopies:
    """Copies in the host's memory of tensors of one batch, from any number of devices.

    Parameters
    ----------
    streams : of each device, the stream that copies; filled here, and kept from batch to batch.
    """

    def __init__(self, streams: dict[torch.device, torch.cuda.Stream]) -> None:
        self._streams = streams
        self._events: dict[torch.device, torch.cuda.Event] = {}
        self._copied: list[torch.Tensor] = []  # whose memory nobody may write to until then

    def copy(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor on the host; if it was on a GPU, to be read after `wait`."""
        device = values.device
        if device.type != "cuda":
            return values.cpu()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            copy.copy_(values, non_blocking=True)
        self._events[device] = stream.record_event()
        self._copied.append(values)
        return copy

    def wait(self) -> None:
        """Wait for the copies from all devices."""
        for event in self._events.values():
            event.synchronize()
        self._copied.clear()

"""Side streams of a layer: two per thread and main stream."""

from __future__ import annotations

import threading

import torch

from dsv4core.runtime import new_stream


class SideStreams:
    """Hands out the side streams that belong to a main stream.

    What a side stream allocated is used again only behind a later fork of the same pair, which waits for the
    main stream and so for every reader there; that is why pairs are not shared between threads or streams.
    """

    def __init__(self) -> None:
        self._own = threading.local()

    def of(self, main: torch.Stream) -> tuple[torch.Stream, torch.Stream]:
        """The two streams beside `main` for this thread."""
        held: dict[tuple[torch.device, int], tuple[torch.Stream, torch.Stream]] | None = getattr(
            self._own, "held", None
        )
        if held is None:
            held = self._own.held = {}
        key = (main.device, main.stream_id)  # every device's default stream has the number 0
        if key not in held:
            held[key] = (new_stream(main.device), new_stream(main.device))
        return held[key]

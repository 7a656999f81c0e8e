"""The launch that runs on the host, and how its threads meet: in warps, groups, blocks and clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

from host_device import Block, Device, Phase
from host_numbers import Int32, larger


@dataclass
class Launch:
    """What is launched, and the blocks that run side by side."""

    device: Device = field(default_factory=lambda: Device(0))
    grid: tuple[int, int, int] = (1, 1, 1)
    threads: int = 0
    cluster: list[Block] = field(default_factory=list)


launched = Launch()
CLUSTER = -1
"""Where the first block has the cluster's barrier."""


def launch(kernel: Any, blocks: tuple[int, int, int], size: int, shared: int, arguments: Any) -> None:
    """Run the blocks of a grid, those of one y and z side by side."""
    launched.grid, launched.threads = blocks, size
    for y, z in product(range(blocks[1]), range(blocks[2])):
        launched.cluster = [Block((x, y, z), shared, x) for x in range(blocks[0])]
        launched.cluster[0].phases[CLUSTER] = Phase(blocks[0] * size, blocks[0] * size)
        launched.device.run(launched.cluster, size, lambda: kernel(*arguments))


def of_warp(what: Any, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
    warp, lane = divmod(launched.device.now.index, 32)
    return launched.device.meet(("warp", warp), 32, lane, what, value, combine)


def of_group(what: Any, value: Any, combine: Callable[[list[Any]], Any] | None = None) -> Any:
    group, member = divmod(launched.device.now.index, 128)
    return launched.device.meet(("group", group), 128, member, what, value, combine)


def named(wait: bool) -> Callable[..., None]:
    def barrier(barrier_id: int, number_of_threads: int) -> None:
        what = ("barrier", number_of_threads)
        launched.device.meet(barrier_id, number_of_threads, launched.device.now.index, what, 0, None, wait)

    return barrier


def reduced(value: Any, kind: str) -> Any:
    function = {"add": sum, "max": max, "min": min}[kind]
    return of_warp(kind, value, lambda all_: [Int32(function(map(int, all_)))] * 32)


def of_block() -> None:
    launched.device.meet("block", launched.threads, launched.device.now.index, "sync", 0, None)


def cluster_arrive() -> None:
    phase = launched.cluster[0].phases[CLUSTER]
    phase.pending -= 1
    launched.device.settle(phase)


def cluster_wait() -> None:
    """Of a thread's next round: it has waited for all before."""
    phase, thread = launched.cluster[0].phases[CLUSTER], launched.device.now
    parity, thread.rounds = thread.rounds % 2, thread.rounds + 1
    while phase.parity == parity:
        phase.waiting.append(thread)
        launched.device.wait()


def ballot(votes: list[bool]) -> list[Any]:
    return [Int32(sum(vote << lane for lane, vote in enumerate(votes)))] * 32


arch = SimpleNamespace(
    thread_idx=lambda: (Int32(launched.device.now.index),),
    block_idx=lambda: tuple(map(Int32, launched.device.now.block.index)),
    grid_dim=lambda: tuple(map(Int32, launched.grid)),
    lane_idx=lambda: Int32(launched.device.now.index % 32),
    make_warp_uniform=lambda x: x,
    sync_threads=of_block,
    cluster_arrive=cluster_arrive,
    cluster_arrive_relaxed=cluster_arrive,
    cluster_wait=cluster_wait,
    fence_view_async_shared=lambda: None,
    sync_warp=lambda: of_warp("sync", 0, lambda all_: all_),
    setmaxregister_decrease=lambda n: of_group(("registers", n), 0),
    setmaxregister_increase=lambda n: of_group(("registers", n), 0),
    shuffle_sync=lambda x, i: of_warp("shuffle", (x, int(i)), lambda a: [a[i][0] for _, i in a]),
    shuffle_sync_down=lambda x, n: of_warp(("down", n), x, lambda a: [a[min(i + n, 31)] for i in range(32)]),
    shuffle_sync_bfly=lambda x, n: of_warp(("bfly", n), x, lambda a: [a[i ^ n] for i in range(32)]),
    warp_redux_sync=reduced,
    vote_ballot_sync=lambda p: of_warp("vote", p, ballot),
    fmax=lambda a, b: larger(a, b),
    popc=lambda x: Int32((int(x) & 0xFFFFFFFF).bit_count()),
    barrier=named(True),
    barrier_arrive=named(False),
)

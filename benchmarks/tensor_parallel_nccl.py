"""A V4-Flash layer shared by the devices of one host: is it right, and how long does a step take.

torchrun --nproc-per-node 2 benchmarks/tensor_parallel_nccl.py --backend cuda
torchrun --nproc-per-node 2 benchmarks/tensor_parallel_nccl.py --backend cpu --preset tiny   # gloo
torchrun --nproc-per-node 2 benchmarks/tensor_parallel_nccl.py --one-device --no-times   # gloo, one GPU

Every rank draws the same weights and keeps its share, and also runs the whole layer. What the ranks share and
what one device computes are each held against float64 on some rows (`dsv4core_conformance.reference`, on the
host), within 5e-3 of it over equal cache codes, and against each other, within what a product
may be off. The latter says something only where both sides attend by the same kernels: on NVIDIA devices set
DSV4CORE_CUDA_ATTENTION to triton or flashmla, because the automatic choice may take one kernel for all the
heads of a layer and another for half of them. Times are medians of the slowest rank, the sum over the ranks
among them; lines without # are CSV.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, TensorParallel, get_backend
from dsv4core.attention import DeepseekV4Attention
from dsv4core.backend import Backend
from dsv4core.bench.timing import Timer, timer
from dsv4core.numerics import block_fp8
from dsv4core.runtime import device_name
from dsv4core.synthetic import hash_normal
from dsv4core.tensor_names import RELEASED, SCALE
from dsv4core_conformance.reference import Options, ReferenceConfig, ReferenceLayer

MATMUL = 4e-3  # between two ways of the same product
LAYER = 5e-3  # from float64 over equal cache codes: the weights of attention and its output in bf16
SAME_KERNELS = ("triton", "flashmla")  # settings that give any number of heads to one library
TINY = {"num_attention_heads": 8, "o_groups": 4, "o_lora_rank": 128}


def weights_of(config: AttentionConfig, layer: int, device: torch.device, format: str) -> AttentionWeights:
    """Random weights, their released projections quantised as a checkpoint has them."""
    tensors = AttentionWeights.random(config, layer).state_dict()
    for name in RELEASED if format == "fp8_block" else ():
        if name in tensors:
            tensors[name], tensors[name + SCALE] = block_fp8.quantise(tensors[name], "ue8m0")
    return AttentionWeights.from_state_dict(tensors).to(device)


def run(
    attention: DeepseekV4Attention, hidden: Tensor, steps: list[int], device: torch.device
) -> tuple[Tensor, dict[str, str]]:
    """Outputs of a prefill and decode steps, and the digest of the cache behind them."""
    layer = attention.layer.index
    cache = PagedCache.allocate(attention.config, [layer], 8192, str(device))
    outputs = [attention(part, cache, cache.plan({"a": len(part)})) for part in hidden.split(steps)]
    return torch.cat(outputs), cache.digest("a")


def exact_rows(
    config: AttentionConfig, layer: int, weights: AttentionWeights, hidden: Tensor
) -> tuple[list[int], Tensor]:
    """Some rows of the layer in float64, of those whose every entry is selected: which, and their output.

    Rounded is what makes queries and cache rows: projections and norms in bf16, rows as they are stored.
    """
    c, ratio = config, config.layer(layer).ratio
    sizes = ReferenceConfig(
        c.hidden_size, c.num_attention_heads, c.q_lora_rank, c.o_groups, c.o_lora_rank, c.index_n_heads,
        c.index_topk, eps=c.rms_norm_eps, theta=c.rope_theta, compress_theta=c.compress_rope_theta,
    )  # fmt: skip
    arrays = {name: t.float().cpu().numpy() for name, t in weights.dequantised().state_dict().items()}
    options = replace(Options.preset("vllm"), p_dtype="fp32")  # the weights of attention are not rounded
    reference = ReferenceLayer(sizes, ratio, arrays, options)
    most = ratio * (c.index_topk + 1) - 1 if ratio == 4 else len(hidden)
    last = min(len(hidden), most) - 1
    rows = sorted({0, last // 7, last // 2, last - 2, last - 1, last})
    return rows, torch.from_numpy(reference.run(hidden.double().cpu().numpy(), rows)["out"])


def error(out: Tensor, wanted: Tensor) -> float:
    """Relative L2."""
    return float((out.double() - wanted).norm() / wanted.norm())


def slowest_ms(
    call: Callable[[], object], clock: Timer, place: TensorParallel, device: torch.device
) -> float:
    """Median time of a step that every rank runs, on the slowest of them."""
    times: list[float] = []
    for _ in range(23):
        dist.barrier(group=place.group)
        times.append(clock(call, 1) * 1e3)
    found = torch.tensor(median(times[3:]), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=place.group)
    return float(found)


def compare(args: argparse.Namespace, backend: Backend, place: TensorParallel, device: torch.device) -> bool:
    """Distance from float64 and from one device, equal cache bytes, bytes held, times."""
    overrides = TINY if args.preset == "tiny" else {}
    config = AttentionConfig.preset(args.preset, **overrides)
    chosen = os.environ.get("DSV4CORE_CUDA_ATTENTION", "auto")
    alike = backend.device_type != "cuda" or chosen in SAME_KERNELS
    good = True
    for layer in args.layers:
        whole = weights_of(config, layer, device, args.format)
        share = whole.sharded(place)
        attention = backend.attention(config, layer, share, place)
        hidden = hash_normal((args.tokens + 4, config.hidden_size), 0, "h", 1.0).bfloat16().to(device)
        steps = [args.tokens, 1, 1, 2]
        out, digest = run(attention, hidden, steps, device)
        digests: list[object] = [None] * place.size
        dist.all_gather_object(digests, digest, group=place.group)
        alone, expected = run(backend.attention(config, layer, whole), hidden, steps, device)
        same = all(found == expected for found in digests)
        held = [sum(w.nbytes for w in weights.flat().values()) / 2**20 for weights in (share, whole)]
        apart = error(out, alone.double())
        good = good and same and (apart <= MATMUL or not alike)
        if place.rank == 0:
            rows, exact = exact_rows(config, layer, whole, hidden)
            shared, one = (error(found[rows].cpu(), exact) for found in (out, alone))
            good = good and max(shared, one) <= LAYER
            judged = f"bound {MATMUL:.0e}" if alike else f"not judged: attention is chosen by {chosen!r}"
            bytes_are = "equal" if same else "DIFFERENT"
            print(
                f"# layer {layer}: from float64 {shared:.2e} shared and {one:.2e} alone (bound {LAYER:.0e}),"
                f" apart {apart:.2e} ({judged}); cache bytes of ranks and of one device {bytes_are},"
                f" {held[0]:.2f} of {held[1]:.2f} MiB of weights held",
                flush=True,
            )
        if not args.no_times:
            time_steps(backend, config, layer, (share, whole), place, hidden, device)
    return good


def time_steps(
    backend: Backend, config: AttentionConfig, layer: int, weights: tuple[AttentionWeights, AttentionWeights],
    place: TensorParallel, hidden: Tensor, device: torch.device,
) -> None:  # fmt: skip
    """Prefill and decode, shared and alone: from idle to idle, and decode as a graph where there are any."""
    steps = {"decode of 1": 1, "decode of 64": 64, "prefill": len(hidden)}
    plans = [("wall", name) for name in steps]
    plans += [("graph", name) for name in steps if name != "prefill" and device.type != "cpu"]
    for how, name in plans:
        found: list[float] = []
        for held, parallel in zip(weights, (place, None), strict=True):
            attention = backend.attention(config, layer, held, parallel)
            cache = PagedCache.allocate(
                config, [layer], 64 * 1024, str(device), max_requests=64, max_chunk=len(hidden)
            )
            count = steps[name]
            requests = {f"r{i}": 1 for i in range(count)} if count <= 64 else {"r": count}
            step = partial(attention, hidden[:count], cache, cache.plan(requests))
            found.append(slowest_ms(step, timer(how, device.type), place, device))
        if place.rank == 0:
            ms = ",".join(f"{value:.3f}" for value in found)
            print(f"{layer},{name},{how},{place.size},{ms}", flush=True)


def main() -> int:
    """Join the group, compare, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--preset", default="v4-flash")
    parser.add_argument("--format", default="fp8_block", choices=("fp8_block", "bf16"))
    parser.add_argument("--layers", type=int, nargs="+", default=None)
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--one-device", action="store_true", help="every rank on the first device, over gloo")
    args = parser.parse_args()
    args.layers = args.layers or ([0, 1, 2] if args.preset == "tiny" else [2, 3])
    args.tokens = args.tokens or (139 if args.preset == "tiny" else 2048)
    index = 0 if args.one_device else int(os.environ["LOCAL_RANK"])
    if args.backend == "cpu":
        torch.set_num_threads(1)
    else:  # before the backend is made, which looks at the current device
        torch.accelerator.set_device_index(index)
    backend = get_backend(args.backend)
    kind = backend.device_type
    device = torch.device("cpu") if kind == "cpu" else torch.device(kind, index)
    gloo = kind == "cpu" or args.one_device  # NCCL refuses two ranks on one device
    own = None if gloo else device
    dist.init_process_group("gloo" if gloo else {"cuda": "nccl", "xpu": "xccl"}[kind], device_id=own)
    place = TensorParallel.of()
    if place.rank == 0:
        count = "" if args.one_device else f" x {place.size}"
        print(f"# {device_name(device)}{count}, torch {torch.__version__}, {' '.join(sys.argv)}")
        print("layer,step,clock,ranks,ms_shared,ms_alone", flush=True)
    good = compare(args, backend, place, device)
    dist.destroy_process_group()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""`dsv4core demo`: the three kinds of layer in V4-Flash dimensions, run and checked."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from dsv4core.checkpoint import Checkpoint
from dsv4core.config import AttentionConfig
from dsv4core.demo import check
from dsv4core.demo.run import LayerRun, run_layer
from dsv4core.demo.story import SEED, Story, tell
from dsv4core.errors import ConfigError, WeightsError
from dsv4core.progress import Progress
from dsv4core.selection import get_backend
from dsv4core.weights import AttentionWeights

WIDTH = 28
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the subcommand."""
    parser.add_argument(
        "--backend", help="run on this backend (default: DSV4CORE_BACKEND, else the best available)"
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="text to embed (default: the one of the package)"
    )
    parser.add_argument("--corrupt", action="store_true", help="flip one bit of a page: the check must fail")
    parser.add_argument(
        "--weights", type=Path, metavar="DIR|FILE", help="a safetensors checkpoint, sharded or one file"
    )
    parser.add_argument("--layer", type=int, metavar="N", help="the layer to take from --weights")
    parser.add_argument(
        "--preset", help="model dimensions (default: those of --weights' config.json, else v4-flash)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the layers and return 0 when every check holds, else 1."""
    if (args.weights is None) != (args.layer is None):
        raise ConfigError("--weights and --layer go together: type --weights DIR --layer 2")
    start = time.perf_counter()
    config, dimensions = _config(args.preset, args.weights)
    backend = get_backend(args.backend)
    story = _story(args.text)
    say = _silent_line if args.json else _line
    bar = _silent if args.json else _bar
    rows = story.lengths
    say(
        f"dsv4core demo: {dimensions} dimensions, backend {backend.name}, "
        f"{rows['long']} + {rows['short']} tokens"
    )
    default = args.text is None and args.weights is None and dimensions == "v4-flash"
    report: dict[str, Any] = {
        "backend": backend.name,
        "provenance": dict(backend.ops.provenance),
        "layers": {},
    }
    failures: list[str] = []
    for layer in _layers(config) if args.layer is None else (args.layer,):
        began = time.perf_counter()
        weights = _weights(args.weights, config, layer, bar)
        generated = time.perf_counter() - began
        result = run_layer(
            backend,
            config,
            layer,
            weights,
            story,
            corrupt=args.corrupt,
            progress=bar,
        )
        reference = check.against_reference(config, layer, weights, story, result)
        problems = _problems(config, result, reference, check.pinned() if default else None)
        failures += problems
        report["layers"][str(layer)] = _layer_report(result, reference, problems, generated)
        _show(say, result, reference, backend.ops.provenance, check.pinned() if default else None)
    per_token = check.token_bytes(config)
    published = ", published 3850.25 (fp8 rows + fp8 index keys)" if dimensions == "v4-flash" else ""
    say(f"\ncache of the whole model: {per_token:.2f} B/token{published}")
    if dimensions == "v4-flash" and per_token != check.TOKEN_BYTES["fp8_ds_mla+index_fp8"]:
        failures.append(f"byte model: {per_token} B/token, published 3850.25")
    seconds, gib = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for failure in failures:
        say(f"FAILED {failure}")
    say(f"{'FAILED' if failures else 'ok'}: {seconds:.0f} s, peak {gib:.1f} GiB")
    if args.json:
        print(json.dumps({**report, "failures": failures, "seconds": seconds, "peak_gib": gib}, indent=1))
    return 1 if failures else 0


def _layers(config: AttentionConfig) -> tuple[int, ...]:
    """The first layer of each kind: 0, 2 and 3 of V4-Flash."""
    ratios = config.compress_ratios
    return tuple(sorted(ratios.index(ratio) for ratio in set(ratios)))


def _story(path: Path | None) -> Story:
    try:
        return tell(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--text: {error}") from None


def _config(preset: str | None, weights: Path | None) -> tuple[AttentionConfig, str]:
    """The model, and what to call it."""
    if preset is None and weights is not None:
        folder = weights if weights.is_dir() else weights.parent
        if (folder / "config.json").is_file():
            return _open(weights).config(), f"{folder.name}/config.json"
    preset = preset or "v4-flash"
    return AttentionConfig.preset(preset), preset


def _weights(path: Path | None, config: AttentionConfig, layer: int, progress: Progress) -> AttentionWeights:
    if path is None:
        return AttentionWeights.random(config, layer, SEED)
    return _open(path).attention(config, layer, progress=progress)


def _open(path: Path) -> Checkpoint:
    try:
        return Checkpoint.open(path)
    except WeightsError as error:  # nothing that could be a checkpoint: a wrong option, not a failed run
        raise ConfigError(f"--weights: {path} cannot be read: {error}") from None


def _problems(
    config: AttentionConfig, run: LayerRun, reference: check.ReferenceCheck, pins: dict[str, str] | None
) -> list[str]:
    """Everything that does not hold, in words."""
    name = f"layer {run.layer} ({run.kind})"
    found: list[str] = []
    for key, sha in run.digests.items():
        if run.one_shot_digests[key] != sha:
            found.append(f"{name}: cache {key} differs between chunks and one prefill")
        if pins is not None and pins.get(key) != sha:
            found.append(f"{name}: cache {key} is {sha[:12]}, pinned {pins.get(key, 'nothing')[:12]}")
    if not run.decode_error <= check.DECODE_BOUND:
        found.append(f"{name}: decode against prefill {run.decode_error:.1e} > {check.DECODE_BOUND:.0e}")
    if not reference.error <= check.REFERENCE_BOUND:
        found.append(f"{name}: against the reference {reference.error:.1e} > {check.REFERENCE_BOUND:.1e}")
    for group, size in run.bytes_per_entry.items():
        if config.index_layout == "index_fp8" and size != check.ENTRY_BYTES[group]:
            found.append(f"{name}: {group} takes {size} B per entry, published {check.ENTRY_BYTES[group]}")
    return found


def _layer_report(
    run: LayerRun, reference: check.ReferenceCheck, problems: list[str], generated: float
) -> dict[str, Any]:
    return {
        "kind": run.kind,
        "seconds": {"weights": generated, **run.seconds, "reference": reference.seconds},
        "stages": run.stages,
        "caches": run.digests,
        "bytes_per_entry": run.bytes_per_entry,
        "decode_error": run.decode_error,
        "reference_error": reference.error,
        "selection_overlap": reference.selection_overlap,
        "failures": problems,
    }


def _show(
    say: Any, run: LayerRun, reference: check.ReferenceCheck, provenance: Any, pins: dict[str, str] | None
) -> None:
    spent = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in run.seconds.items())
    say(f"\nlayer {run.layer} ({run.kind}): {spent}, reference {reference.seconds:.1f} s")
    for phase, ops in run.stages.items():
        for op, seconds in sorted(ops.items(), key=lambda item: -item[1]):
            say(f"  {phase:8} {op:38} {seconds * 1e3:9.1f} ms  {provenance.get(op, '')}".rstrip())
    for key, sha in run.digests.items():
        state = (
            "not pinned for this text"
            if pins is None
            else "as pinned"
            if pins.get(key) == sha
            else "NOT as pinned"
        )
        say(f"  cache    {key:24} {sha[:16]}  {state}")
    sizes = ", ".join(
        f"{g} {b:g} (published {check.ENTRY_BYTES[g]:g})" for g, b in run.bytes_per_entry.items()
    )
    say(f"  bytes per entry: {sizes}")
    say(f"  decode against prefill {run.decode_error:.1e} (bound {check.DECODE_BOUND:.0e})")
    chosen = (
        "" if reference.selection_overlap is None else f", own top-k shared {reference.selection_overlap:.3f}"
    )
    say(f"  against float64 reference {reference.error:.1e} on {reference.rows} rows{chosen}")


def _bar(what: str, done: int, total: int) -> None:
    """One line on stderr, redrawn on a terminal."""
    filled = WIDTH * done // max(total, 1)
    count = f"{done}/{total}" if total < MIB else f"{done / MIB:.1f}/{total / MIB:.1f} MiB"
    line = f"{what:18} [{'#' * filled}{'.' * (WIDTH - filled)}] {count}"
    if sys.stderr.isatty():
        print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total:
        print(line, file=sys.stderr, flush=True)


def _line(text: str) -> None:
    print(text)


def _silent_line(text: str) -> None:
    """No text where another program reads."""


def _silent(what: str, done: int, total: int) -> None:
    """No bar where another program reads."""

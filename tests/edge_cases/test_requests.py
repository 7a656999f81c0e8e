"""Edge cases 20-22: several tokens in a step, rejected drafts, prefixes resumed inside a window."""

from __future__ import annotations

import pytest
import torch
from harness import ALL_CANDIDATES, Rig, assert_same_bytes, differing_rows, relative, rig
from torch import Tensor

from dsv4core import CacheError, PagedCache, RequestExport

KINDS = ("swa", "csa", "hca")
# A request counts as decode up to the threshold, so drafts take both ways through the layer.
THRESHOLDS = (1, 8)
# Lengths before a step: every phase of 4, both sides of a window of 128, and of the ring's wrap.
STARTS = (1, 2, 3, 4, 7, 124, 125, 126, 127, 128, 131, 253, 255, 256)
LENGTH = 272


def layer_of(kind: str, threshold: int = 1, profile: str = "vllm") -> Rig:
    return rig(kind, profile, index_topk=ALL_CANDIDATES, decode_threshold=threshold)


def dirty(layer: Rig, requests: int = 6, tokens: int = 1024) -> PagedCache:
    """A cache whose pages hold what somebody else left there."""
    cache = layer.cache(tokens, requests)
    for tensor in layer.storage(cache):
        tensor.view(torch.uint8).fill_(0x5A)
    return cache


def straight(layer: Rig, hidden: Tensor) -> PagedCache:
    cache = layer.cache()
    layer.run(hidden, cache=cache)
    return cache


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_20_several_tokens_in_one_step(kind: str, count: int, threshold: int) -> None:
    """A step of 2 to 8 tokens equals so many steps; 5 and 8 complete two windows of 4."""
    layer = layer_of(kind, threshold)
    hidden = layer.hidden(LENGTH)
    for start in STARTS:
        one, many = dirty(layer), dirty(layer)
        for cache in (one, many):
            layer.run(hidden[:start], cache=cache)
        new = hidden[start : start + count]
        singly = layer.run(new, [1] * count, one)
        together = layer.step(many, {"a": new})
        assert_same_bytes(many.snapshot("a"), one.snapshot("a"))
        assert relative(together, singly) < 2e-3, start


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_20_a_token_sees_no_later_one_of_its_step(kind: str, threshold: int) -> None:
    """Changing token k of a step changes its outputs from k on: a window it completes is seen by the next."""
    layer = layer_of(kind, threshold)
    hidden = layer.hidden(LENGTH)
    for start in (3, 125, 252):
        for changed in range(8):
            other = hidden[start : start + 8].clone()
            other[changed] *= -1
            results: list[Tensor] = []
            for new in (hidden[start : start + 8], other):
                cache = dirty(layer)
                layer.run(hidden[:start], cache=cache)
                results.append(layer.step(cache, {"a": new}))
            assert differing_rows(*results) == list(range(changed, 8)), (start, changed)


@pytest.mark.parametrize("kind", KINDS)
def test_20_the_state_survives_every_accept_length(kind: str) -> None:
    """From every start, 8 drafts of which 0 to 8 are accepted; then the request goes on."""
    layer = layer_of(kind, threshold=8)
    hidden, drafts = layer.hidden(LENGTH), layer.hidden(LENGTH, stream=3)
    for start in STARTS:
        want = straight(layer, hidden[: start + 12]).snapshot("a")
        for accepted in range(9):
            cache = dirty(layer)
            layer.run(hidden[:start], cache=cache)
            new = hidden[start : start + 8].clone()
            new[accepted:] = drafts[:8][accepted:]
            layer.step(cache, {"a": new})
            cache.truncate("a", start + accepted)
            layer.step(cache, {"a": hidden[start + accepted : start + 12]})
            assert_same_bytes(cache.snapshot("a"), want)


@pytest.mark.parametrize(("drafts", "accepted"), [(2, 1), (5, 1), (8, 1), (5, 3), (9, 8), (8, 7), (3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_21_rollback_at_every_phase(kind: str, drafts: int, accepted: int) -> None:
    """Step after step ends in rejected drafts; one accepted token passes every phase of 4 and 128."""
    layer = layer_of(kind, threshold=8)
    hidden, wrong = layer.hidden(LENGTH), layer.hidden(LENGTH + 10, stream=3)
    cache, other = dirty(layer), wrong[:7]
    layer.step(cache, {"b": other})  # a neighbour whose pages nobody may touch
    neighbour = cache.digest("b")
    done = 0
    while done < 264:
        new = torch.cat([hidden[done : done + accepted], wrong[done : done + drafts - accepted]])
        layer.step(cache, {"a": new})
        cache.truncate("a", done + accepted)
        done += accepted
        assert cache.length("a") == done
        if done % 33 == 0 or done in (4, 128, 256):
            assert_same_bytes(cache.snapshot("a"), straight(layer, hidden[:done]).snapshot("a"))
    assert_same_bytes(cache.snapshot("a"), straight(layer, hidden[:done]).snapshot("a"))
    assert cache.digest("b") == neighbour
    cache.check_invariants()


@pytest.mark.parametrize("kind", KINDS)
def test_21_rejected_entries_are_dropped(kind: str) -> None:
    """Entries that the remaining tokens do not complete are gone, and so is what the drafts left anywhere."""
    layer = layer_of(kind, threshold=8)
    hidden, wrong = layer.hidden(LENGTH), layer.hidden(LENGTH, stream=3)
    for length in (120, 126, 128, 250, 256):
        for drafts in (1, 4, 8):
            cache = dirty(layer)
            layer.run(hidden[:length], cache=cache)
            layer.step(cache, {"a": wrong[:drafts]})
            cache.truncate("a", length)
            assert_same_bytes(cache.snapshot("a"), straight(layer, hidden[:length]).snapshot("a"))
            out = layer.step(cache, {"a": hidden[length : length + 1]})
            clean = dirty(layer)
            layer.run(hidden[:length], cache=clean)
            assert torch.equal(out, layer.step(clean, {"a": hidden[length : length + 1]}))


@pytest.mark.parametrize("kind", KINDS)
def test_21_further_back_than_is_kept(kind: str) -> None:
    layer = layer_of(kind)
    cache = dirty(layer)
    layer.run(layer.hidden(140), [130, 10], cache=cache)
    before = cache.digest("a")
    with pytest.raises(CacheError, match="132 is the least"):
        cache.truncate("a", 131)
    assert cache.digest("a") == before and cache.length("a") == 140


def resumed(layer: Rig, source: PagedCache, length: int, way: str) -> PagedCache:
    """A cache in which request "r" begins with the first `length` tokens of "a", in another slot."""
    if way == "fork":
        source.fork("a", "r", length=length)
        return source
    target = dirty(layer)
    layer.step(target, {"x": layer.hidden(9, stream=4), "y": layer.hidden(130, stream=5)})
    target.free("x")  # the seat and pages that "r" takes were another's
    target.import_(RequestExport.from_bytes(source.export("a", length=length).to_bytes()), "r")
    return target


@pytest.mark.parametrize("way", ["fork", "export"])
@pytest.mark.parametrize("profile", ["vllm", "math"])
@pytest.mark.parametrize("kind", KINDS)
def test_22_a_prefix_resumed_inside_a_window(kind: str, profile: str, way: str) -> None:
    """At every phase of 4 and on both sides of 128: outputs and bytes as of an uninterrupted run."""
    layer = layer_of(kind, profile=profile)
    hidden, other = layer.hidden(LENGTH), layer.hidden(LENGTH, stream=2)
    lengths = [1, 2, 3, 4, 5, 64, 126, 127, 128, 129, 130, 131, 200, 254, 255, 256, 257, 259]
    source = dirty(layer, requests=3)
    layer.run(hidden[:260], cache=source)
    held = source.digest("a")
    for length in lengths:
        cache = resumed(layer, source, length, way)
        plain = dirty(layer)
        layer.step(plain, {"r": hidden[:length]})
        for new in (other[:1], other[1:6], other[6:7]):
            assert torch.equal(layer.step(cache, {"r": new}), layer.step(plain, {"r": new})), length
        assert_same_bytes(cache.snapshot("r"), plain.snapshot("r"))
        cache.free("r")
        if way == "fork":  # the next plan gives rows of "a" back: start again
            assert source.digest("a") == held
            source.free("a")
            layer.run(hidden[:260], cache=source)


@pytest.mark.parametrize("kind", KINDS)
def test_22_both_branches_go_on_alone(kind: str) -> None:
    """A fork and its source diverge in one batch; each equals its own tokens run alone."""
    layer = layer_of(kind)
    hidden, other, wrong = (layer.hidden(LENGTH + 20, stream=stream) for stream in (1, 2, 3))
    for length in (127, 128, 130, 256):
        cache = dirty(layer)
        layer.run(hidden[:length], cache=cache)
        cache.fork("a", "b")
        tails, done = {"a": hidden[length:], "b": other}, 0
        for accepted, drafts in ((0, 3), (1, 2), (3, 5), (2, 8)):
            step = {r: torch.cat([t[done : done + accepted], wrong[:drafts]]) for r, t in tails.items()}
            layer.step(cache, step)
            done += accepted
            for request in tails:
                cache.truncate(request, length + done)
        for request, tail in tails.items():
            tokens = torch.cat([hidden[:length], tail[:done]])
            assert_same_bytes(cache.snapshot(request), straight(layer, tokens).snapshot("a"))
        cache.check_invariants()


@pytest.mark.parametrize("kind", KINDS)
def test_22_an_illegal_boundary_is_refused(kind: str) -> None:
    layer = layer_of(kind)
    cache = dirty(layer)
    layer.run(layer.hidden(260), [250, 10], cache=cache)
    low, high = cache.resume_range("a")
    assert high == 260 and low <= 252  # max_rollback tokens back at least
    before = cache.digest("a")
    for length in (5, 64, 128, low - 1, 261):
        with pytest.raises(CacheError, match=rf"Legal lengths are {low} to {high}"):
            cache.fork("a", "b", length=length)
    assert cache.requests == ("a",) and cache.digest("a") == before

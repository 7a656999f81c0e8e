"""Edge cases 20-22: several tokens in a step, rejected drafts, prefixes resumed inside a window."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

import pytest
import torch
from harness import ALL_CANDIDATES, Rig, assert_same_bytes, differing_rows, relative, rig
from torch import Tensor

from dsv4core import CacheError, PagedCache, RequestExport

KINDS = ("swa", "csa", "hca")
# A request counts as decode up to the threshold, so drafts take both ways through the layer.
THRESHOLDS = (1, 8)
LENGTH = 272


def layer_of(kind: str, threshold: int = 1, profile: str = "vllm") -> Rig:
    return rig(kind, profile, index_topk=ALL_CANDIDATES, decode_threshold=threshold)


def dirty(layer: Rig, requests: int = 3, tokens: int = 600) -> PagedCache:
    """A cache whose pages hold what somebody else left there."""
    cache = layer.cache(tokens, requests)
    for tensor in layer.storage(cache):
        tensor.view(torch.uint8).fill_(0x5A)
    return cache


@cache
def alone(kind: str) -> tuple[Tensor, list[dict[str, str]]]:
    """Outputs of a request that comes one token a step, and its hashes at every length."""
    layer = layer_of(kind)
    pages, outputs = layer.cache(), []
    hashes = [dict.fromkeys((f"{group}.{layer.layer}" for group in layer.specs), sha256(b"").hexdigest())]
    for token in layer.hidden(LENGTH).split(1):
        outputs.append(layer.step(pages, {"a": token}))
        hashes.append(pages.digest("a"))
    return torch.cat(outputs), hashes


@pytest.mark.parametrize(("count", "threshold"), [(2, 1), (3, 8), (4, 8), (5, 1), (8, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_20_several_tokens_in_one_step(kind: str, count: int, threshold: int) -> None:
    """Steps of 2 to 8 tokens, at every phase, equal steps of one; 8 tokens complete two windows of 4."""
    layer = layer_of(kind, threshold)
    hidden, (outputs, hashes) = layer.hidden(LENGTH), alone(kind)
    for first in range(1, 1 + min(count, 4)):
        pages = dirty(layer)
        layer.step(pages, {"a": hidden[:first]})
        for start in range(first, LENGTH - count, count):
            got = layer.step(pages, {"a": hidden[start : start + count]})
            assert relative(got, outputs[start : start + count]) < 2e-3, start
            if start % 5 == 0 or start in range(120, 132) or start > 248:
                assert pages.digest("a") == hashes[start + count], start


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_20_a_token_sees_no_later_one_of_its_step(kind: str, threshold: int) -> None:
    """Changing token k of a step changes its outputs from k on: a window it completes is seen by the next."""
    layer = layer_of(kind, threshold)
    hidden = layer.hidden(LENGTH)
    for start in (3, 125, 252):
        pages = dirty(layer)
        layer.step(pages, {"a": hidden[:start]})
        plain = layer.step(pages, {"a": hidden[start : start + 8]})
        for changed in range(8):
            other = hidden[start : start + 8].clone()
            other[changed] *= -1
            pages.truncate("a", start)
            got = layer.step(pages, {"a": other})
            assert differing_rows(plain, got) == list(range(changed, 8)), (start, changed)


@pytest.mark.parametrize("kind", KINDS)
def test_20_the_state_survives_every_accept_length(kind: str) -> None:
    """At every phase of 4, around 128 and 256: 8 drafts of which 0 to 8 are accepted."""
    layer, (_, hashes) = layer_of(kind, threshold=8), alone(kind)
    hidden, drafts = layer.hidden(LENGTH), layer.hidden(LENGTH, stream=3)
    pages = dirty(layer)
    at = 0
    for start in (1, 2, 3, 4, 7, 120, 121, 124, 126, 127, 128, 131, 250, 252, 255, 257):
        layer.step(pages, {"a": hidden[at:start]})
        at = start
        for accepted in range(9):
            new = torch.cat([hidden[start : start + accepted], drafts[: 8 - accepted]])
            layer.step(pages, {"a": new})
            pages.truncate("a", start + accepted)
            assert pages.digest("a") == hashes[start + accepted], (start, accepted)
            pages.truncate("a", start)


@pytest.mark.parametrize(("drafts", "accepted"), [(8, 1), (5, 3), (9, 8), (8, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_21_rollback_at_every_phase(kind: str, drafts: int, accepted: int) -> None:
    """Step after step ends in rejected drafts; 1, 3 and 7 accepted tokens pass every phase of 4 and 128."""
    layer, (_, hashes) = layer_of(kind, threshold=8), alone(kind)
    hidden, wrong = layer.hidden(LENGTH), layer.hidden(LENGTH + 10, stream=3)
    pages = dirty(layer)
    layer.step(pages, {"b": wrong[:7]})  # a neighbour whose pages nobody may touch
    neighbour = pages.digest("b")
    done = 0
    while done < 264:
        new = torch.cat([hidden[done : done + accepted], wrong[done : done + drafts - accepted]])
        layer.step(pages, {"a": new})
        done += accepted
        pages.truncate("a", done)
        if accepted > 1 or done % 7 == 0 or done in (4, 127, 128, 129, 256):
            assert pages.digest("a") == hashes[done], done
    assert pages.digest("b") == neighbour
    pages.check_invariants()


@pytest.mark.parametrize("kind", KINDS)
def test_21_rejected_entries_are_dropped(kind: str) -> None:
    """Entries that the remaining tokens do not complete are gone, and so is what the drafts left anywhere."""
    layer = layer_of(kind, threshold=8)
    hidden, wrong = layer.hidden(LENGTH), layer.hidden(LENGTH, stream=3)
    for length in (120, 126, 128, 256):
        clean = dirty(layer)
        layer.run(hidden[:length], cache=clean)
        want = layer.step(clean, {"a": hidden[length : length + 1]})
        for drafts in (1, 4, 8):
            pages = dirty(layer)
            layer.run(hidden[:length], cache=pages)
            layer.step(pages, {"a": wrong[:drafts]})
            pages.truncate("a", length)
            assert pages.digest("a") == alone(kind)[1][length]
            assert torch.equal(layer.step(pages, {"a": hidden[length : length + 1]}), want)


@pytest.mark.parametrize("kind", KINDS)
def test_21_further_back_than_is_kept(kind: str) -> None:
    layer = layer_of(kind)
    pages = dirty(layer)
    layer.run(layer.hidden(140), [130, 10], cache=pages)
    before = pages.digest("a")
    with pytest.raises(CacheError, match="132 is the least"):
        pages.truncate("a", 131)
    assert pages.digest("a") == before and pages.length("a") == 140


PREFIXES = (1, 2, 3, 4, 5, 64, 126, 127, 128, 129, 130, 131, 200, 254, 255, 256, 257, 259)


def resumed(layer: Rig, source: PagedCache, length: int, way: str) -> PagedCache:
    """A cache in which request "r" begins with the first `length` tokens of "a", in another slot."""
    if way == "fork":
        source.fork(("prefix", length), "r")
        return source
    target = dirty(layer)
    layer.step(target, {"x": layer.hidden(9, stream=4), "y": layer.hidden(2, stream=5)})
    target.free("x")  # the seat and pages that "r" takes were another's
    target.import_(RequestExport.from_bytes(source.export(("prefix", length)).to_bytes()), "r")
    return target


@pytest.mark.parametrize("way", ["fork", "export"])
@pytest.mark.parametrize("kind", KINDS)
def test_22_a_prefix_resumed_inside_a_window(kind: str, way: str) -> None:
    """At every phase of 4 and on both sides of 128: outputs and bytes as of an uninterrupted run."""
    layer = layer_of(kind)
    hidden, other = layer.hidden(LENGTH), layer.hidden(LENGTH, stream=2)
    source = dirty(layer, requests=len(PREFIXES) + 2, tokens=4096)
    layer.run(hidden[:260], cache=source)
    for length in PREFIXES:  # kept while their rows are there, resumed when "a" has long gone on
        source.fork("a", ("prefix", length), length=length)
    layer.step(source, {"a": hidden[260:]})
    held = source.digest("a")
    for length in PREFIXES:
        pages, plain = resumed(layer, source, length, way), dirty(layer)
        layer.step(plain, {"r": hidden[:length]})
        for new in (other[:1], other[1:6], other[6:7]):
            assert torch.equal(layer.step(pages, {"r": new}), layer.step(plain, {"r": new})), length
        assert_same_bytes(pages.snapshot("r"), plain.snapshot("r"))
        pages.free("r")
        assert source.digest(("prefix", length)) == alone(kind)[1][length]
    assert source.digest("a") == held == alone(kind)[1][LENGTH]


@pytest.mark.parametrize("kind", KINDS)
def test_22_both_branches_go_on_alone(kind: str) -> None:
    """A fork and its source diverge in one batch; each equals its own tokens run alone."""
    layer = layer_of(kind)
    hidden, other, wrong = (layer.hidden(LENGTH + 20, stream=stream) for stream in (1, 2, 3))
    for length in (127, 128, 130, 256):
        pages = dirty(layer)
        layer.run(hidden[:length], cache=pages)
        pages.fork("a", "b")
        tails, done = {"a": hidden[length:], "b": other}, 0
        for accepted, drafts in ((0, 3), (1, 2), (3, 5), (2, 8)):
            step = {r: torch.cat([t[done : done + accepted], wrong[:drafts]]) for r, t in tails.items()}
            layer.step(pages, step)
            done += accepted
            for request in tails:
                pages.truncate(request, length + done)
        for request, tail in tails.items():
            plain = dirty(layer)
            layer.run(torch.cat([hidden[:length], tail[:done]]), cache=plain)
            assert_same_bytes(pages.snapshot(request), plain.snapshot("a"))
        pages.check_invariants()


@pytest.mark.parametrize("kind", KINDS)
def test_22_an_illegal_boundary_is_refused(kind: str) -> None:
    layer = layer_of(kind)
    pages = dirty(layer)
    layer.run(layer.hidden(260), [250, 10], cache=pages)
    low, high = pages.resume_range("a")
    assert high == 260 and low <= 252  # max_rollback tokens back at least
    before = pages.digest("a")
    for length in (5, 64, 128, low - 1, 261):
        with pytest.raises(CacheError, match=rf"Legal lengths are {low} to {high}"):
            pages.fork("a", "b", length=length)
    assert pages.requests == ("a",) and pages.digest("a") == before

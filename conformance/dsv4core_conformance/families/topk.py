"""Cases of the family TOPK: one defined list for every row of scores, also where they tie."""

from __future__ import annotations

import numpy as np
import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import INDEX_LAYOUTS, between, refused, same_bytes, value_checks
from dsv4core_conformance.families._lists import exact_list
from dsv4core_conformance.hosts import cloned, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.reference.ops.indexer_topk import chosen
from dsv4core_conformance.subject import Subject

TOPK, INDEXER = "indexer_topk", "sparse_indexer"
KINDS = (
    "normal", "negative", "ties", "equal", "zeros", "near", "bin", "negative_bin", "ascending", "descending",
    "huge", "infinite",
)  # fmt: skip
CHOICES = (1, 8, 63, 64, 512, 1024, 2048)
RANKED = ("D9", "L2", "L4", "L8", "L9")


@case("op/indexer_topk/topk/{kind}/{k}", ops=(TOPK,), kind=KINDS, k=CHOICES, catches=RANKED)
def kinds(s: Subject, kind: str, k: int) -> None:
    """The k best of every row, ascending and unique, a tie to the lower index, -1 behind the last."""
    s.check(TOPK, make(TOPK, kind=kind, k=k, tokens=3, width=2 * k + 77, lens=[2 * k + 77, 2 * k, k + 1]))


@case(
    "op/indexer_topk/topk/more_than_2048/{kind}", ops=(TOPK,), kind=("normal", "ties", "bin"), catches=RANKED
)
def larger_choices(s: Subject, kind: str) -> None:
    """A k that no released model has: nothing is cut off."""
    s.check(TOPK, make(TOPK, kind=kind, k=3000, tokens=3, width=7000, lens=[7000, 3001, 2999]))


@case("op/indexer_topk/topk/few/{k}", ops=(TOPK,), k=(8, 512, 2048), catches=("D7", "D8"))
def fewer_than_k(s: Subject, k: int) -> None:
    """As many candidates as k, one more, fewer, one, none: all of them in order, then -1."""
    for kind in ("normal", "equal", "infinite"):
        lens = [k, k + 1, k - 1, k // 2, 1, 0]
        s.check(TOPK, make(TOPK, kind=kind, k=k, tokens=6, width=k + 9, lens=lens, behind=np.inf))
    s.check(TOPK, make(TOPK, k=k, tokens=2, width=5, lens="full"))


@case(
    "op/indexer_topk/topk/behind/{behind}",
    ops=(TOPK,),
    behind=("nan", "inf", "-inf", "3e38"),
    catches=("D8", "D13", "N7"),
)
def behind_the_context(s: Subject, behind: str) -> None:
    """Cells at and behind a context, and columns beside the rows, are never chosen, whatever they hold."""
    for k in (4, 64):
        arguments = make(TOPK, tokens=6, width=200, lens="mixed", k=k, behind=float(behind))
        arguments["logits"] = between(arguments["logits"], float(behind))
        s.check(TOPK, arguments)


@case(
    "op/indexer_topk/topk/threshold/{ties}",
    ops=(TOPK,),
    ties=(2, 3, 64, 300, 1030, 4000),
    catches=("D9", "L4", "L8"),
)
def tie_at_the_threshold(s: Subject, ties: int) -> None:
    """More equal scores than room for them: the leftmost are taken, the better ones around them all."""
    for k in (8, 512):
        arguments = make(TOPK, tokens=2, width=4600, lens="full", k=k, kind="near")
        row = arguments["logits"]
        where = torch.from_numpy(Draws("ties", ties).permutation(4600)[:ties])
        better = k // 2 if ties > k // 2 else k - 1
        row[:] = torch.minimum(row, torch.tensor(1.2))
        row[:, where] = 1.5
        row[:, torch.arange(0, 4600, 4600 // better)[:better]] = 1.75
        s.check(TOPK, arguments)


@case("op/indexer_topk/topk/one_ulp", ops=(TOPK,), catches=("L8", "D9"))
def one_ulp_apart(s: Subject) -> None:
    """Scores that differ in the last bit alone are told apart, around either zero and powers of two."""
    for centre in (1.0, 1.2345, -1.0, -7.5, 2.0**-126, -(2.0**-126), 65504.0, -3.0e38):
        word = int(np.float32(centre).view(np.int32))
        steps = Draws("steps").permutation(600) - 300
        values = (word + steps).astype(np.int32).view(np.float32)
        for k in (1, 100, 599):
            arguments = make(TOPK, tokens=1, width=600, lens="full", k=k)
            arguments["logits"] = torch.from_numpy(values.reshape(1, 600).copy())
            s.check(TOPK, arguments)


@case("op/indexer_topk/topk/rows/{tokens}", ops=(TOPK,), tokens=(1, 65, 513), catches=("L2", "L6"))
def many_rows(s: Subject, tokens: int) -> None:
    """Many rows of different lengths at once."""
    for kind in ("normal", "ties"):
        s.check(TOPK, make(TOPK, kind=kind, tokens=tokens, width=300, lens="mixed", k=64, behind=np.nan))


@case(
    "op/indexer_topk/topk/long/{width}",
    ops=(TOPK,),
    width=(16_384, 65_536, 262_144),
    catches=("G9", "D9", "L8"),
)
def long_context(s: Subject, width: int) -> None:
    """One long row of each difficult kind: random, a flood of equal scores, scores in one coarse bin."""
    for kind, k in (("normal", 1024), ("equal", 512), ("bin", 512), ("ties", 2048)):
        s.check(TOPK, make(TOPK, kind=kind, tokens=1, width=width, lens="full", k=k))


@case(
    "op/indexer_topk/topk/long_rows/{width}",
    ops=(TOPK,),
    width=(16_384, 65_536),
    level="extended",
    catches=("G9", "L2"),
)
def long_rows(s: Subject, width: int) -> None:
    """Many long rows."""
    s.check(TOPK, make(TOPK, tokens=1024 * 16_384 // width // 4, width=width, lens="mixed", k=1024))


@case("op/indexer_topk/topk/needle/{k}", ops=(TOPK,), k=(1, 8, 512), catches=("L1", "G9"))
def needle(s: Subject, k: int) -> None:
    """One score above all others is chosen wherever it stands, the last visible cell included."""
    for place in (0, 1, 63, 64, 511, 512, 1023, 4095, 4998, 4999):
        arguments = make(TOPK, tokens=1, width=5_003, lens=5_000, k=k, kind="negative")
        arguments["logits"][0, place] = 1e-30
        got = s.check(TOPK, arguments).results[0]
        assert got is not None
        require(place in got[0].tolist(), f"{TOPK}: the best score, at {place}, is not in the list")


@case("op/indexer_topk/topk/nan", ops=(TOPK,), catches=("D8",))
def nan_score(s: Subject) -> None:
    """A visible NaN is refused in checked mode; unchecked, the list is ascending, unique and in range."""
    arguments = make(TOPK, tokens=4, width=90, lens=[90, 90, 90, 7], k=12)
    arguments["logits"][1, 3:80], arguments["logits"][2], arguments["logits"][3, 2] = np.nan, np.nan, np.nan
    with value_checks(True):
        refused(s, TOPK, cloned(arguments), "NaN among the visible scores", "logits")
    with value_checks(False):
        got = s.call(TOPK, arguments)[0]
    assert got is not None
    require(tuple(got.shape) == (4, 12), f"{TOPK}: shape {list(got.shape)}")
    require(
        got[0].tolist() == chosen(to_numpy(arguments["logits"])[0], 90, 12).tolist(),
        f"{TOPK}: NaN in another row changed row 0",
    )
    for row, visible in zip(got.tolist(), (90, 90, 90, 7), strict=True):
        live = [i for i in row if i != -1]
        require(
            live == sorted(set(live))
            and all(0 <= i < visible for i in live)
            and row == live + [-1] * (12 - len(live)),
            f"{TOPK}: a row with NaN scores gave {row}: unwritten or out of range",
        )


@case(
    "op/sparse_indexer/topk/margin/{layout}",
    ops=(INDEXER,),
    layout=INDEX_LAYOUTS,
    catches=("A1", "A3", "L1", "L7"),
)
def chosen_by_margin(s: Subject, layout: str) -> None:
    """More candidates than k: no entry is left out for one whose score is lower by more than the bounds."""
    for weights in ("both", "negative", "positive"):
        s.check(
            INDEXER,
            make(
                INDEXER,
                layout=layout,
                lens=[400, 64, 333, 65],
                k=48,
                weights=weights,
                place={"lead": 36, "gap": 64},
            ),
        )


@case(
    "op/sparse_indexer/topk/exact/{layout}",
    ops=(INDEXER,),
    layout=INDEX_LAYOUTS,
    catches=("A3", "L4", "L7", "L8"),
)
def chosen_exactly(s: Subject, layout: str) -> None:
    """Scores that need no rounding and often tie: the list is that of the exact scores, index for index."""
    for k in (1, 16, 200):
        exact_list(s, make(INDEXER, layout=layout, kind="dyadic", lens=[300, 65, 1, 0, 299], k=k))


@case(
    "op/sparse_indexer/topk/flood/{what}",
    ops=(INDEXER,),
    what=("zero_weights", "zero_queries", "same_keys"),
    catches=("D9", "L4"),
)
def score_flood(s: Subject, what: str) -> None:
    """Every score equal: the first k visible entries."""
    arguments = make(
        INDEXER, kind="dyadic", lens=[900, 513, 512, 40], k=512, physical=1 if what == "same_keys" else None
    )
    if what == "zero_weights":
        arguments["weights"].zero_()
    elif what == "zero_queries":
        arguments["q"].view(torch.uint8).zero_()
    else:
        arguments["k_cache"].view(torch.uint8)[:, : 64 * 128] = 0x38  # e4m3 1.0 in every channel of every row
        arguments["k_cache"][:, 64 * 128 : 64 * 132].view(torch.float32).fill_(1.0)
    got = exact_list(s, arguments)
    for row, visible in zip(got.tolist(), (900, 513, 512, 40), strict=True):
        count = min(visible, 512)
        require(
            row == [*range(count), *[-1] * (512 - count)],
            f"{INDEXER}: equal scores must give the first entries",
        )


@case("op/sparse_indexer/topk/relu", ops=(INDEXER, "indexer_logits"), catches=("A3",))
def relu_matters(s: Subject) -> None:
    """Negative products count as nothing: without ReLU the order would be another."""
    arguments = make(INDEXER, heads=8, kind="dyadic", lens=[256, 256], k=32, weights="positive")
    q = to_numpy(arguments["q"]).astype(np.uint8)
    q[:, 1::2] = q[:, 0::2] ^ 0x80  # every second head is the opposite of the one before
    arguments["q"] = torch.from_numpy(q).view(torch.float8_e4m3fn)
    arguments["weights"][:, 1::2] = arguments["weights"][:, 0::2]  # without ReLU each pair cancels
    exact_list(s, arguments)
    s.check(
        "indexer_logits",
        {**{n: v for n, v in arguments.items() if n not in ("k", "workspace_bytes")}, "max_len": 260},
    )


@case(
    "op/sparse_indexer/topk/workspace/{layout}",
    ops=(INDEXER,),
    layout=("index_fp8", "index_mxfp4"),
    catches=("N1", "L3", "L6"),
)
def independent_of_workspace(s: Subject, layout: str) -> None:
    """The list does not depend on the size of the workspace, that is, on how scores are cut into chunks."""
    options = {"layout": layout, "lens": [1500, 700, 65, 1], "k": 130}
    for kind in ("dyadic", "normal"):
        wide = s.check(INDEXER, make(INDEXER, kind=kind, **options)).results
        for workspace in (1 << 18, 300_001, 1 << 20):
            small = make(INDEXER, kind=kind, workspace_bytes=workspace, **options)
            same_bytes(f"{INDEXER}: workspace of {workspace:,} bytes", s.check(INDEXER, small).results, wide)


@case("op/sparse_indexer/topk/short/{k}", ops=(INDEXER,), k=(4, 64, 512), catches=("A1", "A7", "D7"))
def short_contexts(s: Subject, k: int) -> None:
    """Contexts of k, one more and one less: all visible entries while they fit, a choice from one more on."""
    exact_list(s, make(INDEXER, kind="dyadic", lens=[k, k + 1, k - 1, 1, 0], k=k))


@case("op/sparse_indexer/topk/needle", ops=(INDEXER,), catches=("L1", "A1", "A2", "G2"))
def needle_in_pages(s: Subject) -> None:
    """An entry whose key is the query itself is chosen, wherever in the pages it is."""
    for place in (0, 63, 64, 127, 1000, 1410, 2047):
        arguments = make(INDEXER, tokens=1, requests=1, kind="dyadic", lens=[2048], k=4, weights="positive")
        arguments["weights"].fill_(1.0)
        arguments["q"] = torch.full((1, 4, 128), 2.0).to(torch.float8_e4m3fn)
        page, row = int(arguments["block_table"][0, place // 64]), place % 64
        cache = arguments["k_cache"]
        cache[page, row * 128 : (row + 1) * 128] = 0x7E  # 448 in every channel
        cache[page, 64 * 128 + row * 4 : 64 * 128 + row * 4 + 4].view(torch.float32).fill_(2.0)
        got = exact_list(s, arguments)
        require(place in got[0].tolist(), f"{INDEXER}: entry {place}, which stands out, is not in the list")


@case(
    "op/sparse_indexer/topk/long/{context}",
    ops=(INDEXER,),
    context=(16_384,),
    level="extended",
    catches=("G9", "L1", "L3"),
)
def long_pages(s: Subject, context: int) -> None:
    """A long context over pages, by exact scores and by margin."""
    for kind in ("dyadic", "normal"):
        s.check(
            INDEXER,
            make(INDEXER, tokens=2, requests=1, heads=8, kind=kind, lens=[context, context - 1], k=1024),
        )


@case("op/sparse_indexer/topk/k/{k}", ops=(INDEXER,), k=(1, 512, 1024, 2048), catches=("L9",))
def choices(s: Subject, k: int) -> None:
    """Every k of the released models, and one."""
    exact_list(s, make(INDEXER, tokens=2, requests=1, heads=2, kind="dyadic", lens=[k + 300, k + 1], k=k))

"""Plain-Python models that the tests of caches and plans compare with; no tensor arithmetic in here."""

from __future__ import annotations

ROWS = {"swa": 64, "c4": 64, "indexer": 64, "state_c4": 4, "state_indexer": 4, "c128": 2, "state_c128": 8}
ENTRY_RATIO = {"c4": 4, "indexer": 4, "c128": 128}
GROUPS_OF = {
    0: ["swa"],
    4: ["swa", "c4", "indexer", "state_c4", "state_indexer"],
    128: ["swa", "c128", "state_c128"],
}


def slot_of(table, rows, index):
    """The slot of logical row `index`, -1 where its page is not mapped."""
    page = table[index // rows]
    return -1 if page < 0 else page * rows + index % rows


def plain_plan(queries, lengths, tables, *, rows=ROWS, window=128, threshold=1, chunk=4, pad_to=None):
    """Everything a plan holds, written down token by token."""
    caller_first = [sum(queries[:i]) for i in range(len(queries))]
    order = [i for i, n in enumerate(queries) if n <= threshold]
    decodes = len(order)
    order += [i for i, n in enumerate(queries) if n > threshold]
    out = {
        name: [] for name in ("permutation", "positions", "token_to_req", "is_valid", "swa_slots", "swa_lens")
    }
    out.update(order=order, decodes=decodes, query_start_loc=[0], seq_lens=[lengths[i] for i in order])
    slots = {name: [] for name in tables}
    visible = {r: [] for r in (4, 128) if f"c{r}" in tables}
    c128 = []
    for new, old in enumerate(order):
        for k in range(queries[old]):
            p = lengths[old] - queries[old] + k
            own = slot_of(tables["swa"][old], rows["swa"], p)
            valid = own >= 0
            out["permutation"].append(caller_first[old] + k)
            out["positions"].append(p)
            out["token_to_req"].append(new)
            out["is_valid"].append(valid)
            for name in tables:
                if name not in ENTRY_RATIO:
                    slots[name].append(slot_of(tables[name][old], rows[name], p))
                elif valid and (p + 1) % ENTRY_RATIO[name] == 0:
                    slots[name].append(slot_of(tables[name][old], rows[name], p // ENTRY_RATIO[name]))
                else:
                    slots[name].append(-1)
            seen = [q for q in range(p + 1) if q > p - window] if valid else []
            row = [slot_of(tables["swa"][old], rows["swa"], q) for q in seen]
            out["swa_slots"].append(row + [-1] * (window - len(row)))
            out["swa_lens"].append(len(row))
            for r in visible:
                visible[r].append((p + 1) // r if valid else 0)
            if 128 in visible:
                c128.append(
                    [slot_of(tables["c128"][old], rows["c128"], j) for j in range((p + 1) // 128)]
                    if valid
                    else []
                )
        out["query_start_loc"].append(len(out["positions"]))
    tokens = len(out["positions"])
    total = tokens if pad_to is None else pad_to
    for row in range(tokens, total):
        out["permutation"].append(row)
        out["positions"].append(0)
        out["token_to_req"].append(0)
        out["is_valid"].append(False)
        out["swa_slots"].append([-1] * window)
        out["swa_lens"].append(0)
        for name in tables:
            slots[name].append(-1)
        for r in visible:
            visible[r].append(0)
        c128.append([])
    longest = max([lengths[i] for i in order if queries[i]], default=0)
    width = 64
    while width < longest // 128:
        width += 64
    decode_tokens = sum(queries[i] for i in order[:decodes])
    out.update(
        slots=slots,
        context_lens=visible,
        max_context_lens={r: longest // r for r in visible},
        num_tokens=total,
        num_padding=total - tokens,
        num_decode_tokens=total if decodes == len(order) else decode_tokens,
        num_prefill_tokens=tokens - decode_tokens,
        max_position=max(longest - 1, 0),
        chunks=[],
    )
    # A list of all entries for each row that attends over pages; prefill rows attend over gathered ones.
    out["c128_slots"] = [row + [-1] * (width - len(row)) for row in c128[: out["num_decode_tokens"]]]
    at = decodes
    while at < len(order):
        members = order[at : at + chunk]
        gather = [queries[i] + min(lengths[i] - queries[i], window - 1) for i in members]
        entries = {r: [lengths[i] // r for i in members] for r in visible}
        out["chunks"].append(
            {
                "requests": (at, at + len(members)),
                "tokens": (out["query_start_loc"][at], out["query_start_loc"][at + len(members)]),
                "gather": gather,
                "entries": entries,
                "N": {0: 0, **{r: max(entries[r]) for r in visible}},
                "M": {0: max(gather), **{r: max(entries[r]) + max(gather) for r in visible}},
            }
        )
        at += len(members)
    return out


def assert_plan(plan, expected):
    """Compare every field of a BatchPlan with `plain_plan`."""
    for name in ("num_tokens", "num_padding", "num_decode_tokens", "num_prefill_tokens", "max_position"):
        assert getattr(plan, name) == expected[name], name
    assert (plan.num_decodes, plan.num_requests) == (expected["decodes"], len(expected["order"]))
    assert plan.num_prefills == len(expected["order"]) - expected["decodes"]
    assert list(plan.request_order) == expected["order"]
    permutation = expected["permutation"]
    if permutation == list(range(len(permutation))):
        assert plan.permutation is None and plan.inverse is None
    else:
        assert plan.permutation.tolist() == permutation
        assert [permutation[i] for i in plan.inverse.tolist()] == list(range(len(permutation)))
    for name in (
        "positions",
        "token_to_req",
        "is_valid",
        "swa_slots",
        "swa_lens",
        "query_start_loc",
        "seq_lens",
    ):
        assert getattr(plan, name).tolist() == expected[name], name
    assert {name: t.tolist() for name, t in plan.slots.items()} == expected["slots"]
    assert {r: t.tolist() for r, t in plan.context_lens.items()} == expected["context_lens"]
    assert dict(plan.max_context_lens) == expected["max_context_lens"]
    if 128 in expected["context_lens"]:
        assert plan.c128_slots.tolist() == expected["c128_slots"]
        assert plan.c128_lens.tolist() == expected["context_lens"][128]
    else:
        assert plan.c128_slots is None and plan.c128_lens is None
    assert len(plan.prefill_chunks) == len(expected["chunks"])
    for chunk, want in zip(plan.prefill_chunks, expected["chunks"], strict=True):
        start, end = want["requests"]
        assert (chunk.request_start, chunk.request_end, chunk.num_requests) == (start, end, end - start)
        assert (chunk.token_start, chunk.token_end) == want["tokens"]
        assert chunk.num_tokens == want["tokens"][1] - want["tokens"][0]
        assert chunk.gather_lens.tolist() == want["gather"]
        assert chunk.seq_lens.tolist() == expected["seq_lens"][start:end]
        assert chunk.query_start_loc.tolist() == expected["query_start_loc"][start : end + 1]
        assert {r: t.tolist() for r, t in chunk.entry_lens.items()} == want["entries"]
        assert (dict(chunk.N), dict(chunk.M)) == (want["N"], want["M"])


def books(cache):
    """A deep copy of everything a cache knows besides bytes of pages."""
    ledger = cache._ledger
    groups = {}
    for name, group in ledger.groups.items():
        table = [row[: max(group.count)] for row in group.table.tolist()]
        groups[name] = (list(group.free), list(group.first), list(group.count), table)
    held = {i: (r.seat, r.length, r.peak) for i, r in ledger.requests.items()}
    return held, list(ledger.requests), list(ledger.vacant), groups

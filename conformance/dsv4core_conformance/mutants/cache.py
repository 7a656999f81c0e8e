"""Pages, prefixes, hand-over and speculation (rows H, I5, J, K)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_FORK = "dsv4core.cache.allocator:PageGroup.prepare_fork"
_PUT = "dsv4core.cache.transfer:put_rows"
_FUSED = "dsv4core.ops.fused_qnorm_rope_kv_insert:fused_qnorm_rope_kv_insert"

MUTANTS = (
    Mutant(
        "prefix_without_its_last_rows",
        ("K1", "K8"),
        "resume",
        "layer/hca/resume/fork",
        "a resumed prefix shares its full pages and leaves the rows of the last one behind",
        (
            Edit(
                _FORK,
                "copies = list(zip(partial, fresh, strict=False))",
                "copies: list[tuple[int, int]] = []",
            ),
        ),
    ),
    Mutant(
        "shared_pages_in_tokens",
        ("K4", "K5"),
        "resume",
        "layer/csa/resume/after_drafts",
        "the ratio is left out where full pages are counted: an open page is shared and written by two",
        (
            Edit(
                _FORK,
                "full, count = length // self.tokens_per_row // self.rows, self.pages_for(length)",
                "count = self.pages_for(length)\n        full = min(length // self.rows, count)",
            ),
        ),
    ),
    Mutant(
        "any_boundary_resumed",
        ("K7", "K2"),
        "resume",
        "layer/swa/resume/illegal",
        "a prefix is accepted although the window before it is gone",
        (
            Edit(
                "dsv4core.cache.seating:resume_length",
                "    if low <= wanted <= high:",
                "    if min(low, 0) <= wanted <= high:",
            ),
        ),
    ),
    Mutant(
        "import_in_pages_of_the_exporter",
        ("K12",),
        "xfer",
        "layer/csa/xfer/small_pages",
        "rows are put where they were in the exporter's pages",
        (
            Edit(
                _PUT,
                "    shift = seat.first * spec.rows\n",
                "    shift = max(seat.first * spec.rows, blob.start // blob.rows * blob.rows)\n",
            ),
        ),
    ),
    Mutant(
        "export_without_the_window",
        ("K13", "K1"),
        "xfer",
        "layer/swa/xfer/small_pages",
        "the window rows of a request are not handed over",
        (
            Edit(
                _PUT,
                "    if blob.start == blob.end:",
                '    if blob.start == blob.end or spec.group == "swa":',
            ),
        ),
    ),
    Mutant(
        "layouts_not_compared_on_import",
        ("A16", "A13"),
        "xfer",
        "layer/csa/xfer/refused",
        "pages of another layout are taken for ours because their size fits",
        (
            Edit(
                "dsv4core.cache.transfer:check_fits",
                '("ratio", "layout", "version", "fingerprint", "row_values", "start", "end")',
                '("ratio", "start", "end")',
            ),
        ),
    ),
    Mutant(
        "checksum_not_compared",
        ("K13",),
        "xfer",
        "layer/csa/xfer/refused",
        "damaged pages are imported",
        (
            Edit(
                "dsv4core.cache.export:_same_checksum",
                "    if expected != got:",
                "    if len(expected) != len(got):",
            ),
        ),
    ),
    Mutant(
        "export_of_adjacent_pages",
        ("A11", "A12"),
        "xfer",
        "layer/swa/xfer/strided",
        "an export assumes that block N is at N * page bytes",
        (
            Edit(
                "dsv4core.cache.rows:read_rows",
                '    if spec.dtype == "f32":',
                '    if spec.dtype == "u8":\n'
                "        storage = storage.as_strided(storage.shape, (spec.page_bytes, 1))\n"
                '    if spec.dtype == "f32":',
            ),
        ),
    ),
    Mutant(
        "pages_taken_for_adjacent",
        ("K9", "A12"),
        "pageperm",
        "layer/swa/pageperm/own_tables",
        "the window of a request is looked for behind its first page",
        (
            Edit(
                "dsv4core.plan.build:_window",
                "    return _narrow(slots), lens.to(torch.int32)",
                "    start = slots[:, :1] - slots[:, :1] % rows + first % rows\n"
                "    slots = torch.where(slots >= 0, start + column, slots)\n"
                "    return _narrow(slots), lens.to(torch.int32)",
            ),
        ),
    ),
    Mutant(
        "recycled_rows_not_written",
        ("J5", "K9"),
        "pageperm",
        "layer/swa/pageperm/drafts_stay_home",
        "a row that is not zero is taken for written: a recycled page keeps its previous owner's keys",
        (
            Edit(
                _FUSED,
                "    live, slots = live_rows(slot_mapping)\n",
                "    live, slots = live_rows(slot_mapping)\n"
                "    fresh = (target.read(k_cache, slots, rows) == 0).all(-1)\n"
                "    live, slots = live[fresh], slots[fresh]\n",
            ),
        ),
    ),
    Mutant(
        "tables_shared_between_steps",
        ("I5", "J4", "H6"),
        "race",
        "layer/swa/race/planned_ahead",
        "the window tables of a plan lie in a buffer that the next plan fills",
        (
            Edit(
                "dsv4core.cache.allocator:PageGroup.preview",
                "        table = _unmapped(len(seats), width)\n",
                "        table = _unmapped(len(seats), width)\n"
                '        if self.name == "swa":\n'
                '            kept = self.__dict__.setdefault("_kept", table.new_empty((64, 4096)))\n'
                "            table = kept[: len(seats), :width].fill_(-1)\n",
            ),
        ),
    ),
    Mutant(
        "ring_of_the_window_alone",
        ("J1",),
        "spec",
        "suite/spec/plan_drafts",
        "the window ring has no room for drafts: the last of them overwrites what the first still reads",
        (
            Edit(
                "dsv4core.plan.build:_window",
                "    first = (positions + 1 - lens)[:, None]\n",
                "    newest = positions.new_zeros(int(req.max()) + 1 if len(req) else 1)\n"
                '    newest = newest.scatter_reduce(0, req, positions, "amax")[req]\n'
                "    lens = torch.minimum(lens, (positions + window - newest).clamp(min=0))\n"
                "    first = (positions + 1 - lens)[:, None]\n",
            ),
        ),
    ),
    Mutant(
        "tail_of_a_tile_lost",
        ("J10",),
        "chunk",
        "op/fused_qnorm_rope_kv_insert/chunk/300",
        "keys are inserted in tiles of 128 tokens; what does not fill the last one is overwritten",
        (
            Edit(
                _FUSED,
                "    live, slots = live_rows(slot_mapping)\n",
                "    live, slots = live_rows(slot_mapping)\n"
                "    if len(live) > 128:\n"
                "        live, slots = live[: len(live) // 128 * 128], slots[: len(live) // 128 * 128]\n",
            ),
        ),
    ),
    Mutant(
        "window_one_short",
        ("F4", "J6"),
        "predec",
        "layer/hca/predec/draft_layer",
        "decode sees one key less of the window than prefill",
        (
            Edit(
                "dsv4core.plan.build:_window",
                "(positions + 1).clamp(max=window), 0)",
                "(positions + 1).clamp(max=window - 1), 0)",
            ),
        ),
    ),
)

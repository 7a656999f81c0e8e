"""What a backend says about itself, and the memory it takes (rows M, N, A14, A17, B12)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_INDEXER = "dsv4core.ops.sparse_indexer:sparse_indexer"

MUTANTS = (
    Mutant(
        "requirements_not_looked_at",
        ("M3", "M2"),
        "caps",
        "suite/caps/requirements",
        "a backend counts as available although a package it needs is not there",
        (
            Edit(
                "dsv4core.probe:unmet", "    for need in spec.requires:", "    for need in spec.requires[:0]:"
            ),
        ),
    ),
    Mutant(
        "unknown_layout_accepted",
        ("A17", "M7"),
        "caps",
        "suite/caps/resolve",
        "a configuration is made although nothing knows its layout",
        (
            Edit(
                "dsv4core.config:_layout_problems",
                "        if got not in known:",
                '        if got not in known and got != "auto":',
            ),
        ),
    ),
    Mutant(
        "silent_fallback",
        ("A14", "M10"),
        "caps",
        "suite/caps/no_silent_fallback",
        "an op that a backend lacks is filled in and counted as its own",
        (
            Edit(
                "dsv4core.ops._bind:OpTable.__init__",
                'if own is None and fallback == "error":',
                'if own is None and fallback == "never":',
            ),
            Edit(
                "dsv4core.ops._bind:OpTable.__init__",
                "BoundOp(op, PORTABLE, op.body), PORTABLE",
                "BoundOp(op, PORTABLE, op.body), backend",
            ),
        ),
    ),
    Mutant(
        "workspace_bound_ignored",
        ("N1",),
        "work",
        "op/sparse_indexer/work/bounded",
        "scores of all entries are held at once, whatever the workspace",
        (
            Edit(
                _INDEXER,
                "entries = min(longest, MAXIMUM_ENTRIES, (workspace_bytes - heads * row) // per_entry)",
                "entries = longest",
            ),
        ),
    ),
    Mutant(
        "too_little_workspace_accepted",
        ("N3", "G8"),
        "work",
        "op/sparse_indexer/work/too_little",
        "a workspace that is one byte short is accepted",
        (Edit(_INDEXER, "    if workspace_bytes < least:", "    if workspace_bytes < least // 2:"),),
    ),
    Mutant(
        "workspace_without_entries",
        ("N2", "G8"),
        "work",
        "layer/csa/work/scratch",
        "the reported workspace has no room for the gathered entries",
        (
            Edit(
                "dsv4core.plan.limits:prefill_workspace_rows",
                "limits.max_seq_len // ratio if ratio else 0",
                "0",
            ),
        ),
    ),
    Mutant(
        "judge_looks_at_the_first_page",
        ("B12",),
        "mutant",
        "suite/mutant/page/fp8_ds_mla/last",
        "the suite compares the first bytes of a storage only",
        (
            Edit(
                "dsv4core_conformance.compare:same_storage",
                "wrong = np.flatnonzero(mine != expected)",
                "wrong = np.flatnonzero(mine[:64] != expected[:64])",
            ),
        ),
    ),
    Mutant(
        "judge_takes_the_median",
        ("B12", "C10"),
        "mutant",
        "suite/mutant/attention/sparse_decode/one_head",
        "the suite looks at the median of all heads: one wrong head does not show",
        (
            Edit(
                "dsv4core_conformance.compare:worst_head",
                "    i = int(np.argmax(ratio))\n",
                "    ratio = np.full_like(ratio, np.median(ratio))\n    i = int(np.argmax(ratio))\n",
            ),
        ),
    ),
)

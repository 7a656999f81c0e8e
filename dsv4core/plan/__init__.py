"""What one step does, as tensors: slots, tables, lengths, and the split into decode and prefill rows."""

from dsv4core.plan.batch import BatchPlan, PrefillChunk
from dsv4core.plan.groups import GROUPS, Group, groups_of_ratio
from dsv4core.plan.limits import Limits, prefill_workspace_rows

__all__ = [
    "GROUPS",
    "BatchPlan",
    "Group",
    "Limits",
    "PrefillChunk",
    "groups_of_ratio",
    "prefill_workspace_rows",
]

"""Who owns which page: paged byte caches of all layers, one page table per group and request."""

from dsv4core.cache.admission import Admission
from dsv4core.cache.export import RequestExport
from dsv4core.cache.paged import PagedCache
from dsv4core.cache.sizes import CacheLimits, page_counts
from dsv4core.cache.specs import CacheSpec, cache_specs
from dsv4core.cache.storage import LayerCache

__all__ = [
    "Admission",
    "CacheLimits",
    "CacheSpec",
    "LayerCache",
    "PagedCache",
    "RequestExport",
    "cache_specs",
    "page_counts",
]

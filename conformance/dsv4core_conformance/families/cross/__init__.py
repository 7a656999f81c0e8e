"""Cases of the family CROSS: what one backend writes another one reads, and no id is taken for another.

With a single backend here, its bytes are held against hashes of the reference's bytes that were pinned when
the vectors were made: they are what every other backend writes.
"""

from dsv4core_conformance.families.cross import frozen, pages, refusals  # noqa: F401

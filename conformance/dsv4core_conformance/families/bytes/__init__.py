"""Cases of the family BYTES: every byte of a storage after a writer, and every byte that a reader can meet.

Pages lie in a canvas of 0xA5, so a byte that should not have been touched shows as well as a wrong one.
"""

from dsv4core_conformance.families.bytes import readers, states, writers  # noqa: F401

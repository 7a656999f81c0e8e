"""Whether CuTeDSL's kernels can be used: by architecture and what is installed, nothing imported."""

from __future__ import annotations

from packaging.version import Version

from dsv4core.probe import installed_version

ARCHITECTURES = {(9, 0): "sm_90a", (10, 0): "sm_100a", (10, 3): "sm_103a", (12, 0): "sm_120a"}
"""Compute capabilities that the kernels are compiled for; each runs on exactly its own."""

PACKAGE = "nvidia-cutlass-dsl-libs-base"
"""The distribution of the compiler itself; nvidia-cutlass-dsl only requires it and a library."""
OLDEST, BEFORE = "4.8", "4.9"
HINT = f'python -m pip install "nvidia-cutlass-dsl[cu13]>={OLDEST},<{BEFORE}"'


def reason_against(architecture: tuple[int, int]) -> str:
    """Why the kernels are not for a device, or "" where they are."""
    major, minor = architecture
    if architecture not in ARCHITECTURES:
        return f"CuTeDSL kernels are not compiled for SM{major}{minor}"
    version = installed_version(PACKAGE)
    if version is None:
        return f"CuTeDSL is not installed ({HINT})"
    if not Version(OLDEST) <= Version(version) < Version(BEFORE):
        return f"CuTeDSL {version} is installed, >={OLDEST},<{BEFORE} is wanted ({HINT})"
    return ""

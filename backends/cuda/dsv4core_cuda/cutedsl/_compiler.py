"""The one place that calls CuTeDSL's compiler; importing it imports `cutlass`."""

from tempfile import TemporaryDirectory
from typing import Any

import cutlass
from cutlass import cute
from cutlass.base_dsl.compiler import DumpDir, GPUArch, KeepCUBIN, KeepPTX

TYPES = {"q": cutlass.Int64, "i": cutlass.Int32, "f": cutlass.Float32}


def machine_code(kernel: Any, program: Any, arch: str) -> tuple[bytes, str]:
    """The cubin of a `_build.Program` and its PTX: no device is looked at.

    CuTeDSL compiles a host function that launches; its grid is never used, since `_driver` launches.
    """
    shape = {"grid": [program.cluster, 1, 1], "block": [program.threads, 1, 1]}
    if program.shared:
        shape["smem"] = program.shared
    if program.alone:
        shape["min_blocks_per_mp"] = 1
    if program.cluster > 1:
        shape["cluster"] = [program.cluster, 1, 1]

    @cute.jit
    def host(*arguments):
        kernel(*arguments, *program.constants).launch(**shape)

    examples = [TYPES[letter](0) for letter in program.arguments]
    with TemporaryDirectory() as dumps:  # it hands out machine code only where it also writes a file
        options = (GPUArch(arch), KeepCUBIN(True), KeepPTX(True), DumpDir(dumps))
        built = cute.compile[options](host, *examples)
    return built.__cubin__, built.__ptx__

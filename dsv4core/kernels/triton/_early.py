"""A kernel that takes its place beside the one before it, and waits there (NVIDIA, from SM90 on).

Only launches with `launch_pdl` start early; a kernel of such launches waits before it touches memory.
That one ended says that those before it did only where it waited or started in order. FlashMLA's combination
starts early and ends at once where no list was split, so what follows attention (inverse RoPE) does not.
"""

import triton
import triton.language as tl


@triton.jit
def let_next_start():
    """The next kernel may take its place beside this one."""
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def wait_for_last():
    """What kernels before have written is there, and what they read may be written."""
    tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def start_early(EARLY: tl.constexpr):
    """First of all in a kernel: wait for those before, and let the next one take its place."""
    if EARLY:
        wait_for_last()
        let_next_start()

"""A stand-in for aiter on a CPU: the functions that dsv4core calls, computed in torch.

It takes arguments in aiter's documented form alone and refuses everything else with the place in aiter's
source. What the real kernels leave unwritten is NaN here. It is no aiter: only tests put it on the path.
"""

FAKE = True

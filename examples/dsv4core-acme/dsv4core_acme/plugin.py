"""The acme backend as data: every process reads this file, so it imports neither torch nor ops."""

from dsv4core.hookspecs import hookimpl
from dsv4core.spec import BackendSpec, Deviation, Requirement

SPEC = BackendSpec(
    name="acme",
    device_type="cpu",  # the device of torch that your kernels run on
    priority=5,  # below cpu (10): it is chosen only by name
    factory="dsv4core_acme.backend:AcmeBackend",
    requires=(Requirement("torch", version=">=2.8", hint='python -m pip install "torch>=2.8"'),),
    layouts=("state_f32",),
    settings=("device",),  # DSV4CORE_ACME_DEVICE; a mistyped one is warned about
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``acme``."""
    return [SPEC]


@hookimpl
def dsv4core_deviations(spec: BackendSpec) -> list[Deviation] | None:
    """Declare what acme is known not to do; each line is reported as `declared`, never as a pass."""
    if spec.name != SPEC.name:
        return None
    return [
        Deviation(
            case="op/inverse_rope/bigoff/*",
            kind="notimpl",
            reason="acme's inverse_rope counts elements in 32 bits and refuses views over more",
            raises="OpArgumentError",
        )
    ]

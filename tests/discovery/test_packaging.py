"""What the distribution declares, and that every extra resolves."""

import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dsv4core

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "dsv4core",
    "dsv4core_cpu",
    "dsv4core_cuda",
    "dsv4core_rocm",
    "dsv4core_xpu",
    "dsv4core_conformance",
)
GROUPS = {
    "cpu": (
        "constraints.txt",
        ("cpu", "cuda-slim", "rocm", "xpu", "bench", "conformance", "test", "dev"),
        "2.13.0",
    ),
    "cuda": ("constraints-cuda.txt", ("cuda", "cuda-slim", "flashmla"), "2.15.0"),
    "ipex": (None, ("ipex",), "2.8."),
}


def requirements(extra: str | None) -> dict[str, Requirement]:
    lines = map(Requirement, importlib.metadata.requires("dsv4core") or [])
    linux = {"platform_system": "Linux", "platform_machine": "x86_64", "python_version": "3.11"}
    return {
        line.name: line
        for line in lines
        if (line.marker is None or line.marker.evaluate({**linux, "extra": extra or ""}))
        and (extra is None or "extra" in str(line.marker))
    }


def test_base_requirements() -> None:
    base = requirements(None)
    assert {name: str(line.specifier) for name, line in base.items() if line.marker is None} == {
        "torch": ">=2.8",
        "pluggy": ">=1.5",
        "pydantic": ">=2.7",
        "packaging": "",
        "safetensors": "",
    }


@pytest.mark.parametrize("extra", ["cpu", "cuda-slim", "rocm", "xpu"])
def test_extras_that_add_nothing(extra: str) -> None:
    assert requirements(extra) == {}


@pytest.mark.parametrize(
    "extra", [None, "cpu", "rocm", "xpu", "cuda", "cuda-slim", "flashmla", "ipex", "conformance", "test"]
)
def test_no_extra_names_triton(extra: str | None) -> None:
    assert not [name for name in requirements(extra) if "triton" in name]


def test_the_extras_with_kernels() -> None:
    assert {name: str(line.specifier) for name, line in requirements("cuda").items()} == {
        "sgl-flash-mla": "<2,>=1",
        "nvidia-cutlass-dsl": "<4.9,>=4.8",
    }
    assert requirements("cuda")["nvidia-cutlass-dsl"].extras == {"cu13"}
    assert set(requirements("flashmla")) == {"sgl-flash-mla"}
    assert {name: str(line.specifier) for name, line in requirements("ipex").items()} == {
        "torch": "==2.8.*",
        "intel-extension-for-pytorch": "==2.8.*",
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


def test_public_names_resolve() -> None:
    assert all(getattr(dsv4core, name) is not None for name in dsv4core.__all__)
    assert set(dsv4core.__all__) <= set(dir(dsv4core))
    with pytest.raises(AttributeError, match="no attribute 'get_bakend'"):
        dsv4core.get_bakend  # noqa: B018


def test_every_extra_is_in_a_group_that_is_resolved() -> None:
    declared = importlib.metadata.metadata("dsv4core").get_all("Provides-Extra")
    assert set(declared or ()) == {extra for _, extras, _ in GROUPS.values() for extra in extras}


@pytest.mark.network
@pytest.mark.parametrize("group", GROUPS)
def test_extras_resolve(group: str, tmp_path: Path) -> None:
    """Resolve extras together: a solution for all of them is one for each.

    fast-deps reads the metadata inside a wheel by range requests where the index does not offer it apart.
    """
    constraints, extras, torch = GROUPS[group]
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--use-feature=fast-deps",
    ]
    command += ["-c", str(ROOT / constraints)] if constraints else []
    command += ["--quiet", "--report", str(report), f"{ROOT}[{','.join(extras)}]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    items = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    versions = {item["name"].lower().replace("_", "-"): item["version"] for item in items}
    assert versions["torch"].startswith(torch)
    assert ("sgl-flash-mla" in versions) is (group == "cuda")


@pytest.mark.network
def test_the_wheel_holds_every_file_of_its_packages(tmp_path: Path) -> None:
    """Golden pages, manifests and pins too: what is not Python is forgotten first."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    folders = [
        path.parent
        for where in ("", "backends/*/", "conformance/")
        for path in ROOT.glob(f"{where}*/py.typed")
    ]
    assert {folder.name for folder in folders} == set(PACKAGES)
    assert packed == {
        str(path.relative_to(folder.parent))
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_a_backend_that_cannot_run_ends_the_suite_with_its_reason(tmp_path: Path) -> None:
    """Exit code 4, never "0 tests, green"."""
    command = [sys.executable, "-m", "pytest", "--pyargs", "dsv4core_conformance", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "--backend", "xpu"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert result.returncode == 4
    assert "nothing was run: backend 'xpu'" in result.stderr
    assert "Backends here:" in result.stderr


def test_other_projects_keep_their_own_backend_option(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--backend')\n"
    )
    (tmp_path / "test_own.py").write_text(
        "def test_own(request):\n    assert request.config.getoption('backend') == 'x'\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--backend", "x", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr

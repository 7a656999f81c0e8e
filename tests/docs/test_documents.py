"""What the documents promise: the quick start runs, commands are those of CI, links and tables hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv4core import env
from dsv4core.ops import _page
from dsv4core.registry import get_registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_quick_start_runs_and_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([370, 64])")


def test_ci_runs_the_commands_of_the_readme() -> None:
    commands = re.search(r"```bash\n(.*?)```", README, re.S)[1].splitlines()
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        assert command in script or "README.md" in script


PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert ((ROOT / name).parent / target).exists(), target


def test_environment_table_is_current() -> None:
    assert env.markdown().strip() in (ROOT / "docs" / "environment.md").read_text()


@pytest.mark.parametrize("name", ["cpu", "cuda", "rocm", "xpu"])
def test_every_setting_has_its_row(name: str) -> None:
    text = (ROOT / "docs" / "environment.md").read_text()
    rows = set(re.findall(rf"^\| `DSV4CORE_{name.upper()}_(\w+)` \|", text, re.M))
    assert rows == {setting.upper() for setting in get_registry().settings[name] or ()}


def test_page_of_ops_is_current() -> None:
    assert (ROOT / "docs" / "ops.md").read_text() == _page.markdown()


def test_page_of_arithmetic_names_what_exists() -> None:
    text = (ROOT / "docs" / "arithmetic.md").read_text()
    for path in re.findall(r"\b([a-z_0-9]+\.(?:py|h))\b", text):
        assert list(ROOT.glob(f"**/{path}")), path
    for file in (ROOT / "dsv4core" / "numerics").glob("[a-z]*.py"):
        assert file.name in text, file.name


def test_architecture_names_what_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in re.findall(r"\b([a-z_]+\.py)\b", text):
        assert list(ROOT.glob(f"**/{path}")), path

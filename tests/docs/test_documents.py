"""What the documents promise: the quick start runs, commands are those of CI, links and tables hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv4core import env

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


def test_architecture_names_what_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in re.findall(r"\b([a-z_]+\.py)\b", text):
        assert list(ROOT.glob(f"**/{path}")), path

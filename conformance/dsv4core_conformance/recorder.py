"""Collects results where they arrive, and turns them into exit code, summary and reports at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest

from dsv4core_conformance import outcome
from dsv4core_conformance.case import Case
from dsv4core_conformance.deviations import Declared
from dsv4core_conformance.report import build, record, summary
from dsv4core_conformance.report.record import Record
from dsv4core_conformance.result import CaseResult, verdict
from dsv4core_conformance.subject import Subject

RECORDER = "dsv4core_conformance.recorder"

_EXIT = {"pass": 0, "partial": 0, "fail": 1, "not run": 4}


class Recorder:
    """Plugin of the process that decides: the only one, or under pytest-xdist the one that starts workers."""

    def __init__(
        self,
        config: pytest.Config,
        subject: Subject,
        level: Mapping[str, Case],
        names: Sequence[str],
        declared: Sequence[Declared],
    ) -> None:
        """`level`: the cases of the level, chosen or not; `names`: the ids of the whole list."""
        self._config = config
        self._subject = subject
        self._level = level
        self._names = names
        self._declared = declared
        self._results: dict[str, CaseResult] = {}
        self._begun: list[str] = []
        self._started = datetime.now(timezone.utc).replace(microsecond=0)
        self._clock = time.perf_counter()
        self._record: Record | None = None
        self._files: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember which cases began: one without a result has ended the session."""
        self._begun.append(_name(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the result that a report carries; a report without one that failed is a lost process."""
        found = getattr(report, outcome.ATTRIBUTE, None)
        if found is not None:
            self._keep(CaseResult.from_dict(found))
        elif report.failed:
            name = _name(report.nodeid)
            if name in self._level:
                self._keep(outcome.lost(self._level[name], report.longreprtext))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn the results into the exit code and write the reports."""
        if exitstatus not in (0, 1, 2, 5) or self._config.option.collectonly:
            return
        if exitstatus == 0:  # an op that calls pytest.exit(..., 0) would take the cases behind it along
            for name in self._begun:
                if name in self._level and name not in self._results:
                    self._keep(outcome.lost(self._level[name], "the session was ended inside this case"))
        results = [self._results[name] for name in self._level if name in self._results]
        found = verdict(results)
        if exitstatus != 2:  # interrupted stays interrupted
            code = 1 if found == "partial" and self._config.getoption("strict", False) else _EXIT[found]
            # pytest has seen a failure that belongs to no case: it must not become a pass
            session.exitstatus = 1 if exitstatus == 1 and code == 0 else code
        self._record = build.build(
            self._subject,
            results,
            names=self._names,
            level=self._config.getoption("level"),
            complete=len(results) == len(self._level) and exitstatus != 2,
            declared=self._declared,
            arguments=[str(word) for word in self._config.invocation_params.args],
            started=self._started,
            seconds=time.perf_counter() - self._clock,
            exit_code=int(session.exitstatus),
        )
        self._write(self._record)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line per family, the verdict, and how to repeat each failure."""
        if self._record is None:
            return
        terminalreporter.section(summary.title(self._record))
        for line in summary.lines(self._record):
            terminalreporter.line(line)
        for file in self._files:
            terminalreporter.line(f"written: {file}")

    def _keep(self, result: CaseResult) -> None:
        before = self._results.get(result.id)
        if before is None or before.outcome != "fail":
            self._results[result.id] = result

    def _write(self, found: Record) -> None:
        target = self._config.getoption("dsv4core_report")
        if target:
            record.save(found, Path(target))
            self._files.append(target)
        page = self._config.getoption("dsv4core_html")
        if page:
            from dsv4core_conformance.report.html import render

            Path(page).parent.mkdir(parents=True, exist_ok=True)
            Path(page).write_text(render(found), encoding="utf-8")
            self._files.append(page)


def _name(nodeid: str) -> str:
    """The name of the case of an item."""
    return nodeid.partition("[")[2].removesuffix("]")

"""A run as one HTML page that loads nothing: matrix, errors, failures with their pages, deviations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from dsv4core_conformance.report import pagemap, plot, style, summary
from dsv4core_conformance.report.plot import Point
from dsv4core_conformance.report.record import Record, results
from dsv4core_conformance.result import OUTCOMES, CaseResult, count

FAILURES_SHOWN = 200


def render(record: Record) -> str:
    """The page of one run."""
    found = results(record)
    title = f"{record['backend']['name']} on {record['device']['name']}"
    parts = [
        _head(record, title),
        _families(found),
        _ops(record, found),
        _errors(record, found),
        _failures(record, summary.failures(found)),
        _deviations(record),
        _left_out(found),
        _origin(record),
    ]
    return style.page(f"dsv4core conformance: {title}", "\n".join(parts))


def _head(record: Record, title: str) -> str:
    word = record["verdict"]
    totals = {name: record["totals"][name] for name in OUTCOMES}
    said = ", ".join(f"{number} {name}" for name, number in totals.items() if number)
    part = "" if record["complete"] else " A part of the level was run, so this is no result of the level."
    legend = "".join(
        f'<li><span class="swatch" style="background:var(--{name.replace(" ", "-")})"></span>'
        f"{number} {name}</li>"
        for name, number in totals.items()
        if number
    )
    suite, versions = record["suite"], record["versions"]
    return (
        f'<p class="over">dsv4core conformance</p><h1>{escape(title)} '
        f'<span class="chip {word.replace(" ", "-")}">{word}</span></h1>'
        f"<p>{said or 'no case was run'}.{part}</p>{plot.outcomes(totals)}<ul class=legend>{legend}</ul>"
        + _facts(
            [
                ("tier", f"{record['tier']}: {TIERS[record['tier']]}"),
                ("level", record["level"]),
                ("suite", f"{suite['version']}, case list {suite['case_list']} of {suite['cases']} cases"),
                ("torch", versions.get("torch", "not known")),
                ("run", f"{record['started']}, {record['seconds']:.1f} s"),
            ]
        )
    )


TIERS = {
    "device": "the backend's own hardware; the only tier that earns a tick",
    "foreign-device": "another vendor's hardware",
    "interpreter": "kernels interpreted on a CPU",
    "portable": "only the core's portable bodies ran",
}


def _families(found: Sequence[CaseResult]) -> str:
    groups = _by(found, lambda result: [result.family])
    rows = [[f"<code>{escape(name)}</code>", *_numbers(members)] for name, members in groups.items()]
    foot = ["all", *_numbers(found)]
    body = style.table(["family", *OUTCOMES], rows, numbers=len(OUTCOMES), foot=foot)
    return f"<h2>Families</h2>{body}"


def _ops(record: Record, found: Sequence[CaseResult]) -> str:
    groups = _by(found, lambda result: result.ops)
    own = set(record["backend"]["own_ops"])
    rows: list[list[str]] = []
    for op, origin in record["backend"]["ops"].items():
        bound = record["bounds"].get(op, {"kind": "", "bound": 0})
        contract = f"{bound['kind']}, {bound['bound']:g}" if bound["bound"] else bound["kind"]
        mark = "" if op in own else ' <span class="portable">not its own</span>'
        name = f"<code>{escape(op)}</code>"
        rows.append([name, f"{escape(origin)}{mark}", contract, *_numbers(groups.get(op, []))])
    head = ["op", "comes from", "contract", *OUTCOMES]
    intro = "A case of a whole layer counts for every op that it goes through."
    return f"<h2>Ops</h2><p class=quiet>{intro}</p>{style.table(head, rows, numbers=len(OUTCOMES))}"


def _errors(record: Record, found: Iterable[CaseResult]) -> str:
    points: dict[str, list[Point]] = {}
    for result in found:
        for op, error in result.errors.items():
            bound = record["bounds"].get(op, {}).get("bound", 0)
            if bound:
                points.setdefault(op, []).append(Point(result.id, error / bound, result.outcome == "fail"))
    text = (
        "The worst error of every case in units of its bound, on a logarithmic axis; the figure beside an "
        "op counts its cases. Ops that are not here must be exact, bit for bit."
    )
    drawn = plot.errors({op: points[op] for op in record["bounds"] if op in points})
    return f"<h2>Errors against their bounds</h2><p class=quiet>{text}</p>{drawn}"


def _failures(record: Record, failed: Sequence[CaseResult]) -> str:
    if not failed:
        return "<h2>Failures</h2><p>None.</p>"
    shown: list[str] = []
    for number, result in enumerate(failed[:FAILURES_SHOWN]):
        opened = " open" if number < 3 else ""
        again = escape(summary.reproduce(record, result.id))
        shown.append(
            f"<details{opened}><summary><code>{escape(result.id)}</code></summary><div>"
            f"<pre>{escape(result.detail.strip())}</pre>{pagemap.draw(result.facts)}"
            f"<p class=quiet>repeat it</p><pre>{again}</pre></div></details>"
        )
    more = len(failed) - len(shown)
    rest = f"<p>{more} more failures are in the JSON report.</p>" if more > 0 else ""
    return f"<h2>Failures ({len(failed)})</h2>{''.join(shown)}{rest}"


def _deviations(record: Record) -> str:
    if not record["deviations"]:
        return "<h2>Deviations</h2><p>None declared.</p>"
    rows: list[list[str]] = []
    for item in record["deviations"]:
        url = escape(item["url"] or "", quote=True)
        link = f'<br><a href="{url}">{url}</a>' if url else ""
        where = ", ".join(item["devices"]) or "every device"
        about = f"{escape(where)}{'' if item['active'] else ', not this one'}"
        until = escape(item["until"] or "no end")
        rows.append(
            [
                f"<code>{escape(item['case'])}</code>",
                escape(item["kind"]),
                f"{escape(item['reason'])}{link}",
                about,
                until,
                str(len(item["cases"])),
            ]
        )
    head = ["case", "kind", "reason", "devices", "until", "cases"]
    return f"<h2>Deviations</h2>{style.table(head, rows, numbers=1)}"


def _left_out(found: Iterable[CaseResult]) -> str:
    """Cases that say nothing about the backend, by reason."""
    reasons: dict[tuple[str, str], int] = {}
    for result in found:
        if result.outcome in ("not run", "portable", "unclaimed"):
            key = result.outcome, result.detail
            reasons[key] = reasons.get(key, 0) + 1
    if not reasons:
        return ""
    rows = [
        [escape(outcome), escape(reason), str(number)]
        for (outcome, reason), number in sorted(reasons.items())
    ]
    return f"<h2>Left out, and why</h2>{style.table(['outcome', 'reason', 'cases'], rows, numbers=1)}"


def _origin(record: Record) -> str:
    backend, device, git = record["backend"], record["device"], record["git"]
    state = f"{git['commit']}{', changed' if git['changed'] else ''}" if git else "not a checkout"
    environment = "\n".join(f"{name}={value}" for name, value in record["environment"].items())
    layouts = [[f"<code>{name}</code>", f"<code>{mark}</code>"] for name, mark in backend["layouts"].items()]
    facts = [
        ("distribution", f"{backend['distribution']} {backend['version']}".strip() or "not installed"),
        ("features", ", ".join(backend["features"]) or "none"),
        ("device", f"{device['name']} ({device['torch']})"),
        ("driver", "; ".join(device["driver"]) or "none"),
        ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        ("python", f"{record['python']}, {record['platform']}"),
        ("checkout", state),
        ("case list", record["suite"]["case_list_sha256"]),
    ]
    return (
        f"<h2>How to repeat this run</h2><pre>{escape(record['command'])}</pre>{_facts(facts)}"
        f"<h3>Environment</h3><pre>{escape(environment) or 'nothing set'}</pre>"
        f"<h3>Layouts claimed</h3>{style.table(['layout', 'fingerprint'], layouts)}"
    )


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in pairs)}</dl>"


def _numbers(members: Iterable[CaseResult]) -> list[str]:
    """Counts by outcome; failures stand out."""
    return [
        f'<strong class="fail">{number}</strong>' if word == "fail" and number else str(number)
        for word, number in count(members).items()
    ]


def _by(
    found: Iterable[CaseResult], keys: Callable[[CaseResult], Iterable[str]]
) -> dict[str, list[CaseResult]]:
    groups: dict[str, list[CaseResult]] = {}
    for result in found:
        for key in keys(result):
            groups.setdefault(key, []).append(result)
    return groups

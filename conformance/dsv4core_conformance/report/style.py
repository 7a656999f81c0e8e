"""The look of every page: calm, readable without colours, light and dark, nothing from elsewhere."""

from __future__ import annotations

from html import escape

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --ink: #23272b; --quiet: #666d74; --line: #dedbd3; --card: #ffffff;
  --pass: #2f7d5b; --declared: #a86d12; --portable: #5f77a3; --unclaimed: #a9adb2; --not-run: #8b9096;
  --fail: #b3382c; --mark: #b3382c;
  --f0: #8db3cc; --f1: #a4c48f; --f2: #e0bd7e; --f3: #bfa5d0; --f4: #d6a299; --f5: #9cc9c1; --gap: #e6e3dc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17191c; --ink: #e3e4e2; --quiet: #9aa1a8; --line: #33373c; --card: #1e2125;
    --pass: #63b68f; --declared: #d9a54a; --portable: #8ea6d3; --unclaimed: #6a7077; --not-run: #7d848b;
    --fail: #e5786c; --mark: #ff8d80;
    --f0: #4f7c99; --f1: #5f854a; --f2: #99742f; --f3: #7d6291; --f4: #96625a; --f5: #4d847b; --gap: #2b2f33;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2.5rem 1.25rem 5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; font-weight: 650; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; font-weight: 650; }
h3 { font-size: 1rem; margin: 0; font-weight: 600; }
p { margin: .35rem 0; max-width: 46rem; }
a { color: inherit; }
code, pre, .mono { font: .86em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .7rem .85rem; margin: .6rem 0; }
.quiet { color: var(--quiet); }
.over { letter-spacing: .04em; font-size: .85rem; color: var(--quiet); margin: 0 0 .3rem; }
.chip { display: inline-block; border: 1.5px solid currentColor; border-radius: 999px; padding: 0 .7rem;
  font-size: .95rem; font-weight: 600; vertical-align: .18rem; margin-left: .5rem; }
.pass { color: var(--pass); } .partial, .declared { color: var(--declared); } .fail { color: var(--fail); }
.portable { color: var(--portable); } .unclaimed, .not-run { color: var(--not-run); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 1rem 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: left; padding: .22rem .7rem .22rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { font-weight: 600; color: var(--quiet); font-size: .85rem; white-space: nowrap; }
tbody th { font-weight: 400; white-space: nowrap; }
td.n, th.n { text-align: right; }
td.zero { color: var(--quiet); opacity: .55; }
tfoot td, tfoot th { font-weight: 600; border-bottom: 0; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; }
summary { cursor: pointer; padding: .6rem .85rem; overflow-wrap: anywhere; }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--portable); outline-offset: 2px; }
details > div { padding: 0 .85rem .8rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--ink); font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text.quiet { fill: var(--quiet); }
svg .axis { stroke: var(--line); stroke-width: 1; } svg .bound { stroke: var(--mark); stroke-dasharray: 4 3; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .88rem; margin: .5rem 0; padding: 0;
  list-style: none; }
.swatch { display: inline-block; width: .85em; height: .85em; border-radius: 2px; margin-right: .4em;
  vertical-align: -.08em; }
.bytes { border-collapse: separate; border-spacing: 2px; width: auto; margin: .4rem 0; }
.bytes td { border: 0; border-bottom: 4px solid var(--gap); padding: 0 .3rem; text-align: center; }
.bytes td.wrong { outline: 2px solid var(--mark); font-weight: 700; }
.bytes th { color: var(--quiet); border: 0; padding-right: .8rem; }
@media print { body { max-width: none; } details { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole document that loads nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def table(head: list[str], rows: list[list[str]], *, numbers: int = 0, foot: list[str] | None = None) -> str:
    """A table; cells are HTML, the first of a row is its heading, the last `numbers` columns are figures."""
    first = len(head) - numbers
    cells = [f"<th{' class=n' if i >= first else ''} scope=col>{cell}</th>" for i, cell in enumerate(head)]
    lines = [f"<tr>{_row(row, first)}</tr>" for row in rows]
    end = f"<tfoot><tr>{_row(foot, first)}</tr></tfoot>" if foot else ""
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(cells)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody>{end}</table></div>"
    )


def _row(cells: list[str], first: int) -> str:
    shown = [f"<th scope=row>{cells[0]}</th>"]
    for i, cell in enumerate(cells[1:], 1):
        kind = ("n zero" if cell in ("0", "") else "n") if i >= first else ""
        shown.append(f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>")
    return "".join(shown)

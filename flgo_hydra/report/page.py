"""A report as one HTML file: tables that sort, and pictures, with nothing to load from anywhere."""

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flgo_hydra.report import figure
from flgo_hydra.report.formats import Interval, KeyValue, Spread, Table, heading, is_number_column, texts_of
from flgo_hydra.report.pictures import Picture

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.origin { color: #555; margin: .2rem 0 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .28rem .7rem; text-align: left; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { border-bottom: 2px solid #888; position: sticky; top: 0; background: #fff; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072B2; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.number { text-align: right; }
.best { font-weight: 600; background: #fff4e8; }
tbody tr:hover { background: #eef5fb; }
.note { color: #555; font-size: .85rem; margin: .25rem 0; }
.said { font-weight: 600; }
figure { margin: 0 0 1.5rem; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .85rem; }
@media print { th { position: static; } .wide { overflow: visible; } }
"""
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not there comes last, up or down
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""


def html_page(
    title: str,
    origin: str,
    tables: Mapping[str, Table],
    conclusions: Sequence[str],
    pictures: Sequence[Picture],
    remarks: Sequence[str],
) -> str:
    """The whole page. Its policy forbids to load anything, so it stays readable wherever it is sent."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="origin">{html.escape(origin)}</p>']
    for name, table in tables.items():
        parts.append(_section(table))
        if name == "comparison":
            parts += [f'<p class="said">{html.escape(text)}</p>' for text in conclusions]
    parts += [f'<p class="note">{html.escape(text)}</p>' for text in remarks]
    if pictures:
        parts.append("<h2>pictures</h2>")
    with tempfile.TemporaryDirectory() as folder:
        for picture in pictures:
            file = Path(folder) / f"{picture.name}.png"
            picture.draw(file)
            text = html.escape(picture.title)
            data = base64.b64encode(file.read_bytes()).decode()
            # As large as it was drawn: a browser shows 96 dots an inch.
            width = int.from_bytes(file.read_bytes()[16:20], "big") * 96 // figure.DPI
            image = f'<img alt="{text}" width="{width}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n<script>{_SCRIPT}</script>\n'
        "</body>\n</html>\n"
    )


def _section(table: Table) -> str:
    table = table.for_people()
    numbers = [is_number_column(table, i) for i in range(len(table.columns))]
    heads = "".join(
        f'<th scope="col"{_class(number)}><button type="button">{html.escape(heading(column))}</button></th>'
        for column, number in zip(table.columns, numbers, strict=True)
    )
    rows = []
    for i, (row, texts) in enumerate(zip(table.rows, texts_of(table), strict=True)):
        cells = "".join(
            f'<td{_class(number)} data-value="{html.escape(_sorted_by(cell), quote=True)}">{html.escape(text)}</td>'
            for cell, text, number in zip(row, texts, numbers, strict=True)
        )
        best = ' class="best"' if i in table.best else ""
        rows.append(f"<tr{best}>{cells}</tr>")
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    body = "\n".join(rows)
    return (
        f'<h2>{html.escape(table.title)}</h2>\n<div class="wide"><table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{notes}"
    )


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _sorted_by(cell: object) -> str:
    """What a click on the heading sorts by: the number itself, not its four digits."""
    if isinstance(cell, KeyValue):
        cell = cell.value
    elif isinstance(cell, Spread | Interval):
        cell = cell[0]
    return "" if cell is None or cell != cell else "Infinity" if cell == float("inf") else str(cell)

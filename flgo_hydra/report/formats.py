"""A table as text, CSV, Markdown, LaTeX or values for JSON."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from flgo_hydra.record.plain_text import csv_cell, printable
from flgo_hydra.report.runs import value_text


class Spread(NamedTuple):
    """A mean over seeds; in CSV and JSON a column each."""

    mean: float
    std: float


class Interval(NamedTuple):
    low: float
    high: float


class KeyValue(NamedTuple):
    """A config value, shown as it is typed: `0.1`, not `0.1000`."""

    value: Any


_DECIMALS = {"seconds": 2, "peak_memory_mib": 0}


@dataclass(frozen=True)
class Table:
    """Rows for people and programs."""

    title: str
    columns: tuple[str, ...]
    """machine names; people read `best_valid_loss` as `best valid_loss`"""
    rows: Sequence[tuple[Any, ...]]
    notes: tuple[str, ...] = ()
    best: frozenset[int] = frozenset()
    """rows that are to be set in bold where type can be bold"""
    hidden: tuple[str, ...] = ()
    """columns for programs only (CSV, JSON)"""

    def for_people(self) -> "Table":
        """Without hidden columns, and without those that are empty all the way down."""
        kept = [
            i
            for i, column in enumerate(self.columns)
            if column not in self.hidden and not (self.rows and all(row[i] == "" for row in self.rows))
        ]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows, hidden=())


def number_text(value: float) -> str:
    """Four decimals, or four digits where those would be zeros or noise."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def cell_text(cell: Any, column: str = "") -> str:
    if cell is None:
        return "-"
    if column in ("p", "p_holm", "p_exact") and isinstance(cell, float) and not math.isnan(cell):
        return f"{cell:.4f}" if cell >= 1e-4 else "<0.0001"
    if column in _DECIMALS and isinstance(cell, float) and math.isfinite(cell):
        return f"{cell:.{_DECIMALS[column]}f}"
    if isinstance(cell, KeyValue):
        return printable(value_text(cell.value))
    if isinstance(cell, Spread):
        mean = number_text(cell.mean)
        if math.isnan(cell.std) or mean == "-":
            return mean
        is_plain = "e" not in mean and (cell.std == 0 or cell.std >= 5e-5)
        return f"{mean} ± {cell.std:.4f}" if is_plain else f"{mean} ± {number_text(cell.std)}"
    if isinstance(cell, Interval):
        return "-" if math.isnan(cell.low) else f"[{number_text(cell.low)}, {number_text(cell.high)}]"
    return number_text(cell) if isinstance(cell, float) else printable(" ".join(str(cell).split()))


def as_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    table = table.for_people()
    texts = texts_of(table)
    heads = [heading(column) for column in table.columns]
    widths = [max(len(head), *(len(row[i]) for row in texts), 0) for i, head in enumerate(heads)]
    is_right = [is_number_column(table, i) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_right, strict=True)
        ]
        return ("  " + "  ".join(padded)).rstrip()

    body = "\n".join([line(heads), *map(line, texts)]) if texts else "  (none)"
    return "\n".join([table.title, body, *(f"  {note}" for note in table.notes)])


def as_markdown(table: Table) -> str:
    """A table as GitHub shows it."""
    table = table.for_people()

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rules = ["---:" if is_number_column(table, i) else "---" for i in range(len(table.columns))]
    rows = [
        line([f"**{cell}**" for cell in cells] if i in table.best else cells) for i, cells in enumerate(texts_of(table))
    ]
    heads = [heading(column) for column in table.columns]
    return "\n\n".join(
        [f"**{table.title}**", "\n".join([line(heads), line(rules), *rows]), *(f"{note}" for note in table.notes)]
    )


def as_latex(table: Table) -> str:
    """A `tabular` for `\\usepackage{booktabs}`."""
    table = table.for_people()

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    spec = "".join("r" if is_number_column(table, i) else "l" for i in range(len(table.columns)))
    rows = []
    for i, texts in enumerate(texts_of(table)):
        cells = [_latex(text) for text in texts]
        rows.append(line([rf"\textbf{{{cell}}}" for cell in cells] if i in table.best else cells))
    head = line([_latex(heading(column)) for column in table.columns])
    lines = [f"% {table.title}", *(f"% {note}" for note in table.notes)]
    lines += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)


def as_csv(table: Table) -> str:
    """Numbers in full; what is not there or not a number is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    records = as_records(table, is_finite=False)
    names = list(records[0]) if records else list(table.columns)
    writer.writerow(map(csv_cell, names))
    for record in records:
        writer.writerow([csv_cell(_csv_text(record[name])) for name in names])
    return buffer.getvalue().rstrip("\n")


def as_records(table: Table, is_finite: bool = True) -> list[dict[str, Any]]:
    """A dict a row. JSON knows finite numbers only: with `is_finite` others are None."""
    records = []
    for row in table.rows:
        record: dict[str, Any] = {}
        for name, cell in zip(table.columns, row, strict=True):
            if isinstance(cell, KeyValue):
                record[name] = cell.value
            elif isinstance(cell, Spread):
                record[f"{name}_mean"], record[f"{name}_std"] = cell
            elif isinstance(cell, Interval):
                record[f"{name}_low"], record[f"{name}_high"] = cell
            else:
                record[name] = cell
        if is_finite:
            bad = [name for name, cell in record.items() if isinstance(cell, float) and not math.isfinite(cell)]
            record.update(dict.fromkeys(bad))
        records.append(record)
    return records


TEXT_FORMATS: dict[str, Callable[[Table], str]] = {
    "text": as_text,
    "csv": as_csv,
    "md": as_markdown,
    "latex": as_latex,
}


def heading(column: str) -> str:
    """What people read above a column."""
    words = {"best_valid_loss": "best valid_loss", "peak_memory_mib": "MiB", "best_round": "round", "last_round": "of"}
    words |= {"interval_95": "95 % interval", "left_out": "left out", "p_holm": "p (Holm)", "p_exact": "p (exact)"}
    return words.get(column, column)


def texts_of(table: Table) -> list[list[str]]:
    """What people read in each cell."""
    return [[cell_text(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]


def is_number_column(table: Table, index: int) -> bool:
    """Whether it is set flush right."""
    cells = [row[index].value if isinstance(row[index], KeyValue) else row[index] for row in table.rows]
    cells = [cell for cell in cells if cell not in (None, "-")]
    return bool(cells) and all(isinstance(cell, int | float | Spread | Interval) for cell in cells)


def _csv_text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return str(cell).lower() if isinstance(cell, bool) else repr(cell) if isinstance(cell, float) else str(cell)


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | {"…": r"\ldots{}", "<": "$<$", ">": "$>$"}
    return "".join(special.get(character, character) for character in text)

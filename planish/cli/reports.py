"""What the pass manager recorded, as rows of a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from planish.cli.output import table
from planish.passes.report import Report


def show_reports(reports: Iterable[Report]) -> None:
    """One table over all pipelines that ran, in order."""
    rows = [row for report in reports for row in report.rows()]
    if rows:
        columns = list(rows[0])
        table("Passes", columns, [[row[c] for c in columns] for row in rows])


def reports_as_json(reports: Iterable[Report]) -> list[Any]:
    return [record for report in reports for record in report.as_dict()["passes"]]

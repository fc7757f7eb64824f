"""The report of a run: tables on a terminal, numbers in a file, one page for a browser."""

from mulcot.report.against import compare
from mulcot.report.collect import collect
from mulcot.report.command import main_report, report, report_against
from mulcot.report.systems import COLUMNS
from mulcot.report.terminal import render

__all__ = ["COLUMNS", "collect", "compare", "main_report", "render", "report", "report_against"]

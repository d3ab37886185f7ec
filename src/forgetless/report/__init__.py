"""Tables and pictures of finished or unfinished runs, from their records alone: nothing here trains."""

from forgetless.report.figures import accuracy_curves, chain_forgetting, forgetting_bars, trade_off
from forgetless.report.findings import headline
from forgetless.report.page import load_result, report_html, write_report
from forgetless.report.table import summary_table
from forgetless.report.words import chosen_alpha, command_line

__all__ = [
    # pictures
    "accuracy_curves",
    "chain_forgetting",
    "forgetting_bars",
    "trade_off",
    # the page and the terminal
    "load_result",
    "report_html",
    "summary_table",
    "write_report",
    # words
    "chosen_alpha",
    "command_line",
    "headline",
]

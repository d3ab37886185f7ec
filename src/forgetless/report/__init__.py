"""Tables and pictures of finished or unfinished runs, from their records alone: nothing here trains."""

from forgetless.report.comparison.figures import forgetting_against_quality
from forgetless.report.comparison.page import comparison_table
from forgetless.report.fine_tune.figure import frontier_figure
from forgetless.report.fine_tune.page import fine_tune_table
from forgetless.report.page import report_html, write_report
from forgetless.report.search.cells import cell_drawing
from forgetless.report.search.figures import forgetting_curves
from forgetless.report.search.findings import search_headline
from forgetless.report.search.interference import interference_map, interference_table
from forgetless.report.search.page import search_table
from forgetless.report.two_model.figures import accuracy_curves, chain_forgetting, forgetting_bars, trade_off
from forgetless.report.two_model.findings import headline
from forgetless.report.two_model.page import summary_table

__all__ = [
    # pictures
    "accuracy_curves",
    "cell_drawing",
    "chain_forgetting",
    "forgetting_against_quality",
    "forgetting_bars",
    "forgetting_curves",
    "frontier_figure",
    "interference_map",
    "trade_off",
    # the page and the terminal
    "comparison_table",
    "fine_tune_table",
    "interference_table",
    "report_html",
    "search_table",
    "summary_table",
    "write_report",
    # words
    "headline",
    "search_headline",
]

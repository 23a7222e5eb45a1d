"""The static report: one HTML file a store."""

from landscape.report.page import render_page, write_report
from landscape.report.sheet import Part, Sheet, Words, render_sheet

__all__ = ["Part", "Sheet", "Words", "render_page", "render_sheet", "write_report"]

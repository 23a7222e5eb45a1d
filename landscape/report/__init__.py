"""The static report: one HTML file a store."""

from landscape.report.page import render_page, write_report

__all__ = ["render_page", "write_report"]

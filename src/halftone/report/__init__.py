"""What was measured, made readable: one HTML page, and Markdown tables."""

from halftone.report.page import write_report

__all__ = ["write_report"]

"""A lens pack as one HTML file: its lenses, where concepts are represented, how far to trust them.

LensPack (+ LensDataset, + other packs) --make_report--> Report --render_page--> one HTML page
"""

from lenstrain.report.data import Report, make_report
from lenstrain.report.page import render_page, require_report_packages

__all__ = ["Report", "make_report", "render_page", "require_report_packages"]

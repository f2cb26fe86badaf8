"""Run directories and reports."""

"""Runs and models as pages: report.py and explain.py of programs/ write them."""

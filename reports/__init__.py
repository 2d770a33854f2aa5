"""Reads what the harness kept and draws it: tables, figures, one HTML page."""

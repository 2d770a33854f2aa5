"""Asks the questions: one module a question, over the pure search in `probes.bisecting.search`."""

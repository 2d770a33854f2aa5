"""Parsers of what the tools wrote: artifact -> frames."""

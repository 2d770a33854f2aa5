"""Runs things: tools as subprocesses, engines, models; and keeps what came back in a session folder."""

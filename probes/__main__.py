"""Where the process begins: until the command line is loaded Ctrl-C ends it at once, for there is nothing to keep yet."""

from __future__ import annotations

import signal


def main() -> None:
    """The console script, and `python -m probes`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from probes import cli

    cli.main()


if __name__ == "__main__":
    main()

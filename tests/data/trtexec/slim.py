"""Takes most verbose lines out of a trtexec log: `python slim.py < LONG > SHORT` keeps 40 at each end, and all others."""

import sys

lines = sys.stdin.read().split("\n")
verbose = [at for at, line in enumerate(lines) if "] [V] " in line]
dropped = set(verbose[40:-40])
sys.stdout.write("\n".join(line for at, line in enumerate(lines) if at not in dropped))

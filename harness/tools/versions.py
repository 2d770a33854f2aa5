"""Which versions of NVIDIA's tools have which options: what is gone by where a tool's own help says nothing."""

from __future__ import annotations

from collections.abc import Mapping

Version = tuple[int, ...]
ALWAYS: Version = ()
NEVER: Version = (9999,)

# Of the options that probe gives: the first version that has it, and the first that has it no more. What is not listed
# all versions have from the floor on. From NVIDIA's release notes and manuals, and from help texts; where these leave a
# first version open, the oldest that is known to have it.
OPTIONS: Mapping[str, Mapping[str, tuple[Version, Version]]] = {
    "nsys": {
        "--capture-range-end": ((2021, 2), NEVER),
        "--cpuctxsw": ((2022, 1), NEVER),
        "--cuda-graph-trace": ((2022, 1), NEVER),
    },
    "compute-sanitizer": {
        "--filter": (ALWAYS, (2021, 2)),
        "--kernel-regex": ((2021, 2), (2023, 3)),
        "--kernel-name": ((2023, 3), NEVER),
        "--launch-count": ((2021, 2), NEVER),
        "--launch-skip": ((2021, 2), NEVER),
        "--ignore-getprocaddress-notfound": ((2022, 2), NEVER),
        "--nvtx-include": ((2026, 4), NEVER),
    },
    "trtexec": {
        "--staticPlugins": ((8, 6), NEVER),
        "--bf16": ((9,), NEVER),
        "--fp16": (ALWAYS, (11,)),
        "--int8": (ALWAYS, (11,)),
        "--useCudaGraph": (ALWAYS, (11,)),
        "--useSpinWait": (ALWAYS, (11,)),
        "--noDataTransfers": (ALWAYS, (11,)),
        "--separateProfileRun": (ALWAYS, (11,)),
        "--noCudaGraph": ((11,), NEVER),
        "--noSpinWait": ((11,), NEVER),
        "--includeDataTransfers": ((11,), NEVER),
    },
}  # fmt: skip


def has(tool: str, version: Version, option: str) -> bool:
    """Whether a version of a tool has an option; a tool that does not tell its version is taken for a current one."""
    first, gone = OPTIONS.get(tool, {}).get(option, (ALWAYS, NEVER))
    return gone == NEVER if not version else first <= version < gone

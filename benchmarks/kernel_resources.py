"""What every kernel takes on sm_80 and sm_90a, without a GPU: registers, shared memory, spills.

    python benchmarks/kernel_resources.py [--arch sm_80 --arch sm_90a] [FILE.cu [--define T=half] ...]

Without files: every source with every set of macros that the cases of `kernels/manifest.py` launch. Needs nvcc. Ends
with 1 if a kernel spills registers to memory, or does not compile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.cuda.compile import ARCH
from harness.cuda.resources import Resources, resources
from harness.errors import BuildFailed
from kernels.manifest import SPECS
from kernels.plan import Launch

ARCHS = ("sm_80", "sm_90a")
WORKERS = 2  # nvcc processes at a time


@dataclass(frozen=True)
class Variant:
    """One compilation."""

    source: Path
    arch: str
    defines: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        return f"{self.source.name} {' '.join(f'{name}={value}' for name, value in self.defines)}".strip()


def launched(archs: tuple[str, ...]) -> Iterator[Variant]:
    """What the operations' cases compile, on each architecture that they run on."""
    for spec in SPECS:
        for case in (*spec.cases, *spec.bench):
            if spec.refuse(case) is not None:
                continue
            for step in spec.plan(case).steps:
                if isinstance(step, Launch):
                    needed = getattr(case, "capability", (0, 0))
                    yield from (
                        Variant(step.source, arch, step.defines) for arch in archs if capability(arch) >= needed
                    )


def capability(arch: str) -> tuple[int, int]:
    number = ARCH.fullmatch(arch)[1]
    return int(number[:-1]), int(number[-1])


def measure(variant: Variant) -> list[Resources] | BuildFailed:
    try:
        return resources(variant.source, (variant.arch,), variant.defines)
    except BuildFailed as error:
        return error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, metavar="FILE.cu", help="default: all of probe's kernels")
    parser.add_argument("--arch", action="append", help="default: sm_80 and sm_90a")
    parser.add_argument("--define", action="append", default=[], metavar="NAME=VALUE", help="for the files given")
    options = parser.parse_args()
    archs = tuple(options.arch or ARCHS)
    defines = tuple((name, value) for name, _, value in (text.partition("=") for text in options.define))
    given = [Variant(source, arch, defines) for source in options.sources for arch in archs]
    variants = sorted(set(given or launched(archs)), key=lambda variant: (variant.label, variant.arch))
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(zip(variants, pool.map(measure, variants), strict=True))
    rows = [(variant, row) for variant, result in found if not isinstance(result, BuildFailed) for row in result]
    failed = [(variant, result) for variant, result in found if isinstance(result, BuildFailed)]
    for line in table(rows):
        print(line)
    for variant, error in failed:
        print(f"{variant.label} does not compile for {variant.arch}: {error}")
    spilling = [row for _, row in rows if row.spill_store_bytes or row.spill_load_bytes]
    print(f"{len(variants)} compilations, {len(rows)} kernels, {len(spilling)} spilling, {len(failed)} not compiling")
    return 1 if spilling or failed else 0


def table(rows: list[tuple[Variant, Resources]]) -> Iterator[str]:
    width = max((len(variant.label) for variant, _ in rows), default=6)
    yield f"{'source':{width}}  {'entry':30} {'arch':7} {'regs':>4} {'shared':>7} {'stack':>6} {'spilled':>7} {'barriers':>8}"
    for variant, row in rows:
        spilled = row.spill_store_bytes + row.spill_load_bytes
        yield (f"{variant.label:{width}}  {row.entry:30} {row.arch:7} {row.registers:4} {row.shared_bytes:7} "
               f"{row.stack_bytes:6} {spilled:7} {row.barriers:8}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

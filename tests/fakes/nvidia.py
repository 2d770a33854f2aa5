"""nsys, ncu, compute-sanitizer and trtexec as far as probe drives them: `nvidia.py NAME CONFIG.json ARGUMENT...`.

They replay real artifacts, run the program that they are given, and behave as badly as CONFIG says:
{NAME: {"mode": ..., "version": ..., "data": ..., ...}}. Every start is written to CONFIG's folder, as NAME.calls.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ALONE = {
    "--nvtx",
    "--csv",
    "--force-overwrite",
    "--xml",
}  # options without a value, where values are words of their own


def main(name: str, config: Path, arguments: list[str]) -> int:
    settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")).get(name, {})
    with (config.parent / f"{name}.calls").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(arguments) + "\n")
    if (bad := BAD.get(settings.get("mode", ""))) is not None:
        bad(settings, config)
    tool = {"nsys": nsys, "ncu": ncu, "compute-sanitizer": sanitizer, "trtexec": trtexec}[name]
    return tool(settings, arguments)


# Ways to behave badly


def fail(settings: dict[str, Any], _: Path) -> None:
    print(settings.get("says", "something went wrong"), file=sys.stderr)
    sys.exit(settings.get("code", 1))


def crash(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_: dict[str, Any], config: Path) -> None:
    """Say what we are, then do nothing for long, with a child in a session of its own, which ignores SIGTERM."""
    code = ("import os, pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\ntime.sleep(600)")  # fmt: skip
    pids = config.parent / "pids"
    subprocess.Popen([sys.executable, "-c", code, str(pids)], start_new_session=True)
    while not pids.exists() or not pids.read_text().endswith("\n"):
        time.sleep(0.01)
    with pids.open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    print("Collecting data...", flush=True)
    (config.parent / "hangs").touch()
    time.sleep(600)


def stubborn(settings: dict[str, Any], config: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(settings, config)


def garbage(*_: object) -> None:
    sys.stdout.buffer.write(bytes(range(256)) * 8)
    sys.stdout.flush()
    sys.exit(0)


BAD = {"fail": fail, "crash": crash, "killed": killed, "hang": hang, "stubborn": stubborn, "garbage": garbage}


# The tools


def run_program(words: list[str]) -> int:
    return subprocess.run(words, check=False).returncode


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of a tool whose values are words of their own, and the program behind them."""
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            return options, [word, *rest]
        options[word] = "" if word in ALONE else next(rest)
    return options, []


def write(path: str, data: bytes, settings: dict[str, Any]) -> None:
    mode = settings.get("mode")
    Path(path).write_bytes(data[: len(data) // 2] if mode == "half" else b"" if mode == "empty" else data)


def data_of(settings: dict[str, Any]) -> bytes:
    path = Path(settings["data"])
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def nsys(settings: dict[str, Any], arguments: list[str]) -> int:
    if arguments[0] == "export":
        Path(arguments[arguments.index("--output") + 1]).write_bytes(data_of(settings))
        return 0
    program = arguments[1:]
    options = dict(word.split("=", 1) for word in program[: len(program) - len(code_of(program))])
    code = run_program(code_of(program))
    mode, output = settings.get("mode"), options["--output"]
    if mode == "nothing":
        print("Generated:\n    No reports were generated")
        return code
    if mode == "qdstrm":
        Path(f"{output}.qdstrm").write_bytes(b"stream")
        print("Importer error status: An unknown error occurred.")
        return 0
    Path(f"{output}.nsys-rep").write_bytes(b"NSYS-REP")
    if mode != "report only":
        write(f"{output}.sqlite", data_of(settings), settings)
    print(f"Generated:\n    {output}.nsys-rep\n    {output}.sqlite")
    return code


def code_of(words: list[str]) -> list[str]:
    """The program among nsys's words: from the first that is no option."""
    first = next((at for at, word in enumerate(words) if not word.startswith("-")), len(words))
    return words[first:]


def ncu(settings: dict[str, Any], arguments: list[str]) -> int:
    options, program = split(arguments)
    code = run_program(program)
    log = Path(options["--log-file"])
    lines = "==PROF== Connected to process 1024\n"
    if code:
        lines += f"==ERROR== The application returned an error code ({code}).\n"
    if settings.get("mode") == "no kernels":
        log.write_text(f"{lines}==WARNING== No kernels were profiled.\n")
        return code
    if says := settings.get("says"):
        log.write_text(f"{lines}==ERROR== {says}\n==WARNING== No kernels were profiled.\n")
        return 1
    Path(f"{options['--export']}.ncu-rep").write_bytes(b"NCU-REP")
    write(options["--log-file"], lines.encode() + data_of(settings), settings)
    return 0


def sanitizer(settings: dict[str, Any], arguments: list[str]) -> int:
    """Shows the findings of the checker's data, as long as the faulty launch is among those that are checked."""
    at = arguments.index("--xml")  # which older versions want a value for
    options, program = split([*arguments[: at + 1], *arguments[at + 1 + (arguments[at + 1] == "yes") :]])
    print("========= COMPUTE-SANITIZER", flush=True)
    code = run_program(program)
    if settings.get("mode") == "no cuda":
        print("========= Error: Target application terminated before first instrumented API call")
        return code or 255
    data = settings.get(options["--tool"])
    count, skip = int(options.get("--launch-count", 0)), int(options.get("--launch-skip", 0))
    faulty = settings.get("faulty", 0)
    seen = data is not None and skip <= faulty and (not count or faulty < skip + count)
    if settings.get("asks"):  # the program says in a file beside its last argument whether there is something to find
        seen = seen and Path(program[-1]).with_name("finding").exists()
    records = Path(data).read_text(encoding="utf-8") if seen else EMPTY
    if (alarm := settings.get("alarm")) and f"kns={alarm}" not in arguments:  # it accuses a kernel that is good
        records = (
            Path(settings["memcheck"]).read_text(encoding="utf-8").replace("<func>oob</func>", f"<func>{alarm}</func>")
        )
        records = re.sub(r"<text>Invalid __global__ write of size 4 bytes[^<]*", f"<text>{CLUSTER}", records)
    elif seen and (kernel := settings.get("kernel")):
        records = re.sub(r"<func>(oob|race|uninit|badsync)</func>", f"<func>{kernel}</func>", records)
    write(options["--save"], records.encode(), settings)
    found = records.count("<record>")
    if code:
        print("========= Target application returned an error")
    print(f"========= ERROR SUMMARY: {found} error{'s' * (found != 1)}")
    return code or (int(options["--error-exitcode"]) if found else 0)


CLUSTER = "Invalid __shared__ write of size 4 bytes is Cluster needs to have at least 2 blocks"
EMPTY = '<?xml version="1.0" encoding="utf-8"?>\n<ComputeSanitizerOutput>\n</ComputeSanitizerOutput>\n'


def trtexec(settings: dict[str, Any], arguments: list[str]) -> int:
    text = data_of(settings).decode()
    sys.stdout.write(text[: len(text) // 2] if settings.get("mode") == "half" else text)
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    for option, key in (("--exportTimes", "times"), ("--exportProfile", "profile"), ("--exportLayerInfo", "layers")):
        if key in settings:
            Path(options[option]).write_bytes(Path(settings[key]).read_bytes())
    return 0 if "&&&& PASSED" in text else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))

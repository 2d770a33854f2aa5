"""What each version of TensorRT has: read off the module that is here, one table of questions for all versions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

STRONG_FROM = (10, 12)  # weak typing is deprecated from here on: networks get their types from the model


def _member(enum: str, name: str) -> Callable[[ModuleType], bool]:
    return lambda trt: name in getattr(getattr(trt, enum, None), "__members__", {})


def _attribute(owner: str, name: str) -> Callable[[ModuleType], bool]:
    return lambda trt: hasattr(getattr(trt, owner, None), name)


def _name(name: str) -> Callable[[ModuleType], bool]:
    return lambda trt: hasattr(trt, name)


# Feature -> is it in this module?                          8.6   10    11   RTX
FEATURES: dict[str, Callable[[ModuleType], bool]] = {
    "explicit_batch": _member("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),  #   yes   yes   no   no
    "strong_typing": _member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),  #    no    yes   yes  yes
    "fp16_flag": _member("BuilderFlag", "FP16"),  #                                    yes   yes   no   no
    "bf16_flag": _member("BuilderFlag", "BF16"),  #                                    no    yes   no   no
    "int8_flag": _member("BuilderFlag", "INT8"),  #                                    yes   yes   no   no
    "tf32_flag": _member("BuilderFlag", "TF32"),  #                                    yes   yes   yes  yes
    "layer_precision": _attribute("ILayer", "precision"),  #                           yes   yes   no   no
    "calibrator": _name("IInt8EntropyCalibrator2"),  #                                 yes   yes   no   no
    "progress_monitor": _name("IProgressMonitor"),  #                                  no    yes   yes  yes
    "debug_tensors": _attribute("INetworkDefinition", "mark_debug"),  #                no    yes   yes  yes
    "debug_unfused": _attribute("INetworkDefinition", "mark_unfused_tensors_as_debug_tensors"),  # no later yes yes
    "algorithm_selector": _name("IAlgorithmSelector"),  #                              yes   yes   no   no
    "build_route": _attribute("IBuilderConfig", "build_route"),  #                     no    no   later yes
    "compute_capability": _attribute("IBuilderConfig", "set_compute_capability"),  #   no    no    no   yes
    "plugin_v3": _name("IPluginV3"),  #                                                no    yes   yes  yes
    "layer_metadata": _attribute("ILayer", "metadata"),  #                             yes   yes   yes  yes
    "runtime_validity": _attribute("Runtime", "get_engine_validity"),  #               no    no    no   yes
}


@dataclass(frozen=True)
class Api:
    """One TensorRT module: its version and which of FEATURES it has."""

    rtx: bool
    version: tuple[int, ...]
    text: str
    has: frozenset[str]

    @property
    def weak(self) -> bool:
        """Whether precision can be asked for by builder flags."""
        return "fp16_flag" in self.has

    @property
    def name(self) -> str:
        return f"TensorRT{'-RTX' if self.rtx else ''} {self.text}"

    def strong(self, typing: str = "auto") -> bool:
        """Whether networks are to be typed by the model: always from 11 on and with RTX, by choice before."""
        if not self.weak:
            return True
        if "strong_typing" not in self.has:
            return False
        return typing == "strong" or (typing == "auto" and self.version >= STRONG_FROM)


def read(trt: ModuleType) -> Api:
    """The facts of a module, asked of the module itself: a version number alone does not say what a wheel was built with."""
    text = str(getattr(trt, "__version__", "0"))
    version = tuple(int(number) for number in re.findall(r"\d+", text)[:4])
    rtx = "rtx" in trt.__name__
    return Api(rtx, version, text, frozenset(name for name, asked in FEATURES.items() if asked(trt)))

"""What NVIDIA's tools say when they fail, as users have met it, and what probe makes of it: the reason and the next step."""

from __future__ import annotations

import pytest

from harness.tools import ncu, nsys, sanitizer, trtexec
from harness.tools import tool as tools

SYMPTOMS = {
    "nsys": nsys.SYMPTOMS,
    "ncu": ncu.SYMPTOMS,
    "compute-sanitizer": sanitizer.SYMPTOMS,
    "trtexec": trtexec.SYMPTOMS,
}
MET = [
    ("nsys", "Importer error status: The importer binary and its dependencies were not found.\nUnable to retrieve the importer"
     " version: skipping importation of the QDSTRM file.", "packages of Debian and Ubuntu", "cuda-nsight-systems"),
    ("nsys", "Importer error status: Importation failed.\nImport Failed with unexpected exception: QuadDCommon::RuntimeException\n"
     'ErrorText = "Wrong event order has been detected when adding events to the collection"', "a fault of this version", "a newer nsys"),
    ("nsys", "[1/8] [==21%] a.nsys-rep\nImporter error status: An unknown error occurred.", "could not make a report", "nsys-ui"),
    ("nsys", 'Failed to create directory "/tmp/nvidia/nsight_systems": Permission denied\n\nNOTE: If you are using a system that does'
     ' not allow writing to "/tmp"', "cannot write to /tmp/nvidia/nsight_systems (Permission denied)", "TMPDIR="),
    ("nsys", "Illegal --trace argument 'cudnn'\nPossible --trace values are one or more of 'cuda', 'cuda-sw', 'nvtx'",
     "does not know one of the traces cudnn", "--trace cuda,nvtx"),
    ("ncu", "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the target"
     " device 0.\n==ERROR== Failed to prepare kernel for profiling", "counters for administrators", "sudo"),
    ("ncu", "==ERROR== An error was reported by the driver:\n==ERROR== Profiling failed because a driver resource was unavailable."
     " Ensure that no other tool (like DCGM) is concurrently collecting profiling data.", "another program uses the GPU's counters",
     "dcgmi profile --pause"),
    ("ncu", "==ERROR== Cuda driver is not compatible with Nsight Compute.", "do not fit each other", "no newer than the driver"),
    ("ncu", "==ERROR== Profiling is not supported on device 0. To find out supported GPUs refer --list-chips option.",
     "does not support this GPU", "ncu --list-chips"),
    ("ncu", "==ERROR== Failed to prepare kernel for profiling\n==ERROR== Unknown Error on device 0.", "older than the GPU or the driver",
     "a newer ncu"),
    ("ncu", "==ERROR== An error was reported by the driver\n\n==ERROR== Cannot lock GPU clock frequencies on MIG! Try locking the"
     " clocks externally (e.g. using 'nvidia-smi --lock-gpu-clocks')", "may not lock the clocks", "--clock-control none"),
    ("ncu", "==ERROR== Failed to open/create lock file /tmp/nsight-compute-lock. Please check that this process has write permissions",
     "belongs to another user", "TMPDIR="),
    ("compute-sanitizer", "========= COMPUTE-SANITIZER\n========= Unable to find injection library libsanitizer-collection.so",
     "packages of Debian and Ubuntu", "PATH=/usr/local/cuda/bin"),
    ("compute-sanitizer", "========= Error: Failed to initialize WDDM debugger interface. Please run EnableDebuggerInterface.bat as an administrator\n"
     "========= Error: Device not supported. Please refer to the \"Supported Devices\" section of the sanitizer"
     " documentation", "does not support this GPU", "probe doctor"),
    ("compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer: error while loading shared libraries: libstdc++.so.6:"
     " cannot open shared object file: No such file or directory", "libstdc++.so.6 is not found", "LD_LIBRARY_PATH"),
    ("trtexec", "[E] Error[6]: [engine.cpp] The engine plan file is generated on an incompatible device, expecting compute 8.9 got"
     " compute 8.6, please rebuild.", "for another GPU", "from the model"),
    ("trtexec", "[E] [TRT] 10: [optimizer.cpp::computeCosts::2033] Error Code 10: Internal Error (Could not find any implementation for"
     " node Conv_119 + Add_182.)", "no kernel for Conv_119 + Add_182,", "--fault build"),
    ("trtexec", "[E] 3: getPluginCreator could not find plugin: InstanceNormalization_TRT version: 1", "importer for InstanceNormalization_TRT",
     "--plugin"),
    ("trtexec", "[E] 4: [network.cpp::validate::2919] Error Code 4: Internal Error (Network has dynamic or shape inputs, but no"
     " optimization profile has been defined.)", "free dimensions", "--shapes"),
    ("trtexec", "[E] [TRT] 2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no further information)",
     "memory ran out", "smaller shapes"),
    ("trtexec", "[W] [TRT] CUDA initialization failure with error: 35", "driver is too old", "probe doctor"),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "text", "meaning", "hint"), MET, ids=[f"{tool}: {hint}" for tool, _, _, hint in MET])
def test_a_failure_is_told_with_its_reason_and_what_to_type(tool, text, meaning, hint):
    found = tools.diagnose(text, SYMPTOMS[tool])
    assert found is not None
    assert meaning in found[0]
    assert hint in found[1]

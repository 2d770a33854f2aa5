"""The device log: values that kernels write, taken on the GPU or under emulation, at places of our choosing."""

from harness.device_log.layout import HEADERS, capture

__all__ = ["HEADERS", "capture"]

"""Frames to frames: kernels tied to ranges, layers and nodes; what is hot, what differs, what limits."""

"""Engines behind one interface: TensorRT 8.6 to 11, TensorRT-RTX and ONNX Runtime, built, run and measured; our plugins."""

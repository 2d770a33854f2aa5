"""ONNX models: read, cut, lowered to less precision, rewritten, run by ONNX Runtime, and what flows through them."""

"""Our BERT encoder in every form that the ladder climbs: ONNX, network API, plan of kernels, PyTorch; its weights."""

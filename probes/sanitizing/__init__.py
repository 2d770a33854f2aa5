"""`probe sanitize`: findings of the checkers taken to the launch, the layer and the ONNX nodes."""

"""What each BERT plugin is, apart from TensorRT's classes: a module an operation, and the table of all."""

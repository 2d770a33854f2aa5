"""`probe bisect --backend trt`: every evaluation an engine, in a process of its own."""

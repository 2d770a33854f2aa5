"""`probe bisect FILE.cu`: statements of a kernel as candidates."""

"""What is looked at (a model, an engine, a kernel, any program), and the processes that run it for the tools."""

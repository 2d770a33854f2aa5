"""NVIDIA's command-line tools: where each is, the command for each job, and how a run of it went."""

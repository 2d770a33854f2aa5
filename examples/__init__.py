"""Real models and planted faults: run the modules as scripts, or import them from the root of the checkout."""

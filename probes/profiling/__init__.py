"""`probe profile`: the right tools around a target, in one report."""

"""`probe ladder`: how fast a model can get, step by step and route by route."""

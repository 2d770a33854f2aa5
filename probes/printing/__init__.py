"""`probe printf`: values of chosen threads, as a table."""

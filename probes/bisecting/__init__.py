"""`probe bisect`: the pure search, the questions it is asked, and the session that holds the answers."""

"""Tables to pictures; never shown, never written."""

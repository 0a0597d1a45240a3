"""Losses of other methods behind this trainer: what each paper says, and what is our reading, stands in its file."""

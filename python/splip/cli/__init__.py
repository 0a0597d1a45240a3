"""The `splip` command: the table of verbs in `main`, and the verbs that no other wing holds."""

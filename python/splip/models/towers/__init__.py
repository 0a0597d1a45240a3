"""The families of towers: how each cuts pictures into tokens, runs its layers with prompts, pools, and reads texts."""

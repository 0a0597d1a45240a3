"""The stages of gpu_suite.py, and what they share. A stage is a function of a Job, run in a process of its own."""

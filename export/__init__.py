"""Export of trained encoders; the directory ``export/`` of the repository."""

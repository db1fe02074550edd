"""Files: atomic writes, run folders, the metrics file, provenance, rows of data."""

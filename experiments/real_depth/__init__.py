"""Does the depth of an alignment decide whether one example repairs it? See `README.md`."""

"""One report for a set of runs: scores with intervals, categories, judges, and their agreement."""

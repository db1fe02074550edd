"""Which selector finds the instance that repairs best? The analysis behind docs/selection.md."""

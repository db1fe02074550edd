"""Scores of answers: metrics, judges, lm-eval, intervals."""

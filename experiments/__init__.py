"""Analyses of single papers. They import the package; nothing in the package imports them."""

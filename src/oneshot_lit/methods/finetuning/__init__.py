"""Defences that act while a model is fine-tuned."""

"""Repairs after the fine-tuning."""

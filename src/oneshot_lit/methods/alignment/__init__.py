"""Alignment that withstands a later attack: methods of the stage before the attack."""

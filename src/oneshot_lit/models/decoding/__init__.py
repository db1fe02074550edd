"""How answers are made: rows that end leave the batch at once, and waiting prompts take over."""

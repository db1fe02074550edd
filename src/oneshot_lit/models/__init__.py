"""Load, build and run language models; losses. No LightningModule here."""

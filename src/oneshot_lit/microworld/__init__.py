"""The embedded micro-world: a made-up language in which the whole story runs offline."""

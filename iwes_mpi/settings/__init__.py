"""Settings: what they are, where they come from, and refusing wrong ones."""

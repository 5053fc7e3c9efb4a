"""One episode of a policy to its return and length, by whatever runs the environment fastest."""

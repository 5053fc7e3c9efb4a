"""The policy: a network over one flat parameter vector, and statistics of what it observes."""

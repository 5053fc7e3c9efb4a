"""A run from the first agreement of its ranks to its last word: training, and the maximization of any objective."""

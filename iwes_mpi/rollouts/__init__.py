"""One episode of a policy to its return and length, by whatever runs the environment fastest."""

from iwes_mpi.rollouts.base import Episode, EpisodeRunner, EpisodeTask, open_runner

__all__ = ["Episode", "EpisodeRunner", "EpisodeTask", "open_runner"]

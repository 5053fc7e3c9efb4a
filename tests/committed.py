"""What the tests know of the logs that are committed in analysis/data."""

# Tables whose logs keep steps and evaluations alone (analysis/collect.py --slim).
SLIM_TABLES = {
    "controls",
    "halfcheetah_2386",
    "halfcheetah_reuse",
    "options",
    "pendulum_first",
    "populations",
    "sample_efficiency",
}

"""The only room that knows HDF5: logs, checkpoints and run directories."""

"""The version of the program, alone in a module so that packaging can read it without importing anything."""

__version__ = "0.1.0"

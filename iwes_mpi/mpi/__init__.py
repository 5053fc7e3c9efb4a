"""The only room that knows MPI. Importing the package itself takes next to no time."""

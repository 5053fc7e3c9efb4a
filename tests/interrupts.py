"""A module that interrupts the program when it is imported, in colors."""

raise KeyboardInterrupt("\x1b[31mred\x1b]0;owned\x07")

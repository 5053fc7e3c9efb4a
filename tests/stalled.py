"""What jobs/train.sbatch and iwes_mpi.supervise must make of the file that counts restarts without progress."""

# What the file holds (None: there is none), iterations completed by now, and what it holds then: None if the fourth
# restart in a row without a further iteration is one too many.
CASES: list[tuple[str | None, str, str | None]] = [
    (None, "0", "0 1"),
    (None, "4", "4 0"),
    ("4 2", "4", "4 3"),
    ("4 3", "5", "5 0"),
    ("4 3", "4", None),
    ("08 09", "8", None),  # not octal
    ("", "0", "0 1"),
    ("garbage", "0", "0 1"),
    ("3", "0", "0 1"),
    ("0 3 1", "0", "0 1"),
    ("-1 3", "0", "0 1"),
    ("9" * 40 + " 3", "0", "0 1"),
    ("\0\1\xff 3", "0", "0 1"),
    ("a[$(touch executed)] a[$(touch executed)]", "0", "0 1"),
]

"""Named settings for ``--preset``: one TOML file each."""

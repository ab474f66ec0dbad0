"""The ``halftone`` command: one file per sub-command, which reads options, calls the rooms below and prints."""

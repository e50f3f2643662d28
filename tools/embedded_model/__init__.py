"""Train, vary and report the embedded model; nothing of it is in the wheel."""

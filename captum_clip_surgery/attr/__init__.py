"""Methods that score patches for texts, and the shapes they share."""

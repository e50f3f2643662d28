"""Data sets as they lie on disk once downloaded, and what is known of their images."""

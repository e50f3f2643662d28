"""Text towers: templates, encoding and caching."""

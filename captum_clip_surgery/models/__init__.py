"""What is known about CLIP models: image towers, text towers, loading."""

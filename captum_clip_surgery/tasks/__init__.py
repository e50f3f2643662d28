"""What CLIP Surgery enables: segmentation, recognition, points for SAM, maps for words."""

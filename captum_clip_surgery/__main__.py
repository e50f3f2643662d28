"""`python -m captum_clip_surgery` runs the command line."""

from captum_clip_surgery.cli import main

main()

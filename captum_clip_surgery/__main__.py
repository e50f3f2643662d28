"""`python -m captum_clip_surgery` is the command line."""

from captum_clip_surgery.cli import main

main()

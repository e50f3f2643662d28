"""Training, variants, sprites and report of the embedded model; not part of the wheel.

Run the modules in the project's root: `python -m tools.embedded_model.report`.
"""

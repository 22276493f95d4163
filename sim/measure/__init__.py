"""Quantities that are read off measurements: curves, tilts, fits of decay, trade-offs, losses.

No disk, no plots; of `sim`, nothing beside this room is imported.
"""

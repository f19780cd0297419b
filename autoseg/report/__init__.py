"""What a person sees: results as text and JSON, curves and overlays as pictures."""

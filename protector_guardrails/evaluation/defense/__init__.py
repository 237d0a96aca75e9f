"""Measuring the whole defence: attack success rate with and without the guard, and what it costs harmless questions."""

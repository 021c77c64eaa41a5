"""Whose weights score: the policy's own, its start, or its average. No maths, no text, no TRL."""

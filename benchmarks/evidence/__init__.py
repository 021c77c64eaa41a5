"""Does it learn, what decides it, against its controls: see docs/evidence.md."""

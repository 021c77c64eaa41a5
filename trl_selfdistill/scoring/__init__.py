"""Hidden states to float32 log-probabilities, whatever the model is wrapped in."""

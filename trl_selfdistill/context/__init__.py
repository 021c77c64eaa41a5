"""Which privileged text a rollout's teacher is shown, and how it gets into the prompt. No TRL, no model."""

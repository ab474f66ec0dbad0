"""What each module of a denoiser is: roles, execution order, concatenations, and the plan that follows from a policy."""

"""The environments: time-steps, action buffer, runner."""

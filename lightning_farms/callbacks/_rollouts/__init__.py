"""What the callbacks that draw rollouts share."""

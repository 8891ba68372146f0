"""Helpers of the callback that draws rollouts: records and pictures of an evaluation."""

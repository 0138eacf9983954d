"""Trainer: leases a run on a node, takes LoRA steps, and hands the adapter over; nothing else."""

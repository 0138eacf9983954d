"""The rules of money: transfers that sum to zero, and the bill of a run computed from its events."""

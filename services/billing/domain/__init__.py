"""The rules of money: transfers that sum to zero, and bills computed from events."""

"""Billing owns money: accounts, plans, holds, charges, refunds and the double-entry ledger."""

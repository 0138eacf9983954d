"""Validator: may this run start, what will it need, what will it cost."""

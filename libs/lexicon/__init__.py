"""The platform's vocabulary: fault codes, ids, resource names, PEFT's adapter settings.

Standard library only.
"""

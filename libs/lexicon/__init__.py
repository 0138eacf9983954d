"""The platform's vocabulary: fault codes, ids, resource names. Standard library only."""

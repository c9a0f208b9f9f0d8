"""What requests to an embeddings API cost: models and their prices, tokens, and the books."""

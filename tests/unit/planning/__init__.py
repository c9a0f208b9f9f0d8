"""What is known before a request is sent: models, tokens, requests, plans."""

"""As fast as a server takes it and no faster: budgets, requests at once, retries, and a breaker."""

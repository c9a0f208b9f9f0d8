"""What is done with the state of jobs, besides running them."""

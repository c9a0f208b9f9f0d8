"""What commands do with a job: put it together and run it, plan, verify, repair and copy it, and tell what failed."""

"""What decides: the search for a plan, and the command line around it."""

"""What is written from results and code: the README's tables and the method cards."""

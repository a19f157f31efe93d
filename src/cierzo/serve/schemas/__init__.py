"""What requests and answers look like, in each of the languages that are spoken."""

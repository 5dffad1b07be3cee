"""What applications call: a database of sessions, turns that settle as one commit, and the lane kept for them."""

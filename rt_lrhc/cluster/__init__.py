"""The control cluster: N controllers in worker processes, and the client that drives robots by them."""

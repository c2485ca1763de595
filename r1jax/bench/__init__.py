"""Speed against this machine's limit, and the same work done by other packages."""

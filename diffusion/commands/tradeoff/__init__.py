"""`tradeoff`: quality against cost."""

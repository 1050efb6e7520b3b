"""What each family of models optimises, as Lightning modules."""

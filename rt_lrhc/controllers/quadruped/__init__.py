"""Model predictive control of quadrupeds as one rigid body on four feet, for all robots of a worker at once."""

"""The step Jacobians of chosen samples: the map of the gradient over (t, k), long products, Lyapunov exponents."""

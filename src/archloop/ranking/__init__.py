"""Plain records of figures and pure functions of them: noise, budgets, fronts, membership."""
